"""Floors of accuracy on real data and on planted truth, on a reduced protocol.

The figures themselves, with the whole protocol, stand in docs/benchmarks.md.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bmm_multitask_learning import (
    LatentHierarchy,
    PooledTasks,
    SharedGaussian,
    SparseBayesian,
    TaskClustering,
)
from bmm_multitask_learning.priors import IndependentTasks
from tests.benchmarks import landmine, planted, sarcos, school, sentiment

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _data_sets(monkeypatch: pytest.MonkeyPatch, data_home: Path) -> None:
    monkeypatch.setenv("BMM_DATA_HOME", str(data_home))


def test_school() -> None:
    priors = {"independent": IndependentTasks, "pooled": PooledTasks, "shared": SharedGaussian}
    # one start: no split of School has a second cluster to find
    priors["clusters"] = lambda: TaskClustering("auto", n_init=1)
    mean = school.measure(3, priors).groupby("method").mean()
    # three splits are kinder than ten (.376): 0.385 for the shared prior
    for method in ("shared", "clusters"):
        assert mean.EV_global[method] >= 0.380
        assert mean.EV_within[method] >= 0.280
        assert 0.88 <= mean.coverage[method] <= 0.92
        assert mean.EV_global[method] > mean.EV_global[["independent", "pooled"]].max() + 0.02


@pytest.mark.parametrize("size", landmine.SIZES)
def test_landmine(size: int) -> None:
    priors = {"pooled": PooledTasks, "shared": SharedGaussian}
    mean = landmine.measure(20, (size,), priors).groupby("method").mean()
    assert mean.AUC["shared"] >= landmine.FLOORS[size]
    assert mean.AUC["shared"] > mean.AUC["pooled"]


@pytest.mark.parametrize("rows", ["50 a torque", "100 a torque"])
def test_sarcos(rows: str) -> None:
    """Below regressions of each torque by itself, also sparse ones."""
    priors = {"sparse": SparseBayesian, "diagonal": lambda: SharedGaussian("diagonal")}
    mean = sarcos.measure(10, priors, (rows,)).groupby("method").mean(numeric_only=True)
    assert mean.nMSE["sparse"] < mean.nMSE["diagonal"] + 0.001
    assert mean.nMSE["sparse"] < mean.nMSE["RidgeCV, per torque"] - 0.005
    assert mean.nMSE["sparse"] < mean.nMSE["ARDRegression, per torque"]
    assert 0.85 <= mean.coverage["sparse"] <= 0.92


def test_sparse_prior_on_school() -> None:
    """Nothing is sparse there: a little below the shared prior, and no worse."""
    mean = school.measure(3, {"sparse": SparseBayesian}).groupby("method").mean()
    assert mean.EV_global["sparse"] >= 0.375


def test_centre_does_not_collapse() -> None:
    """At 20 rows a task the shared prior is worth as much as pooling, up to 1 %."""
    priors = {"pooled": PooledTasks, "shared": lambda: SharedGaussian("isotropic")}
    mean = sentiment.measure(2, (20,), priors).groupby("method").mean(numeric_only=True)
    assert mean.accuracy["shared"] >= 0.99 * mean.accuracy["pooled"]
    # separate models, into which a collapse falls back, reach .62
    assert mean.accuracy["shared"] >= 0.70


def test_planted_clusters() -> None:
    right = [planted.found(4, "full", 4, seed)["ARI"] >= 0.95 for seed in range(10)]
    assert sum(right) >= 9


@pytest.mark.parametrize("covariance", ["diagonal", "isotropic"])
def test_number_of_planted_clusters(covariance: str) -> None:
    right = [planted.found("auto", covariance, 4, seed)["ARI"] >= 0.95 for seed in range(10)]
    assert sum(right) >= 9


def test_one_planted_cluster() -> None:
    assert all(planted.found("auto", "full", 1, seed)["clusters"] == 1 for seed in range(10))


@pytest.mark.parametrize("rows", planted.ROWS_OF_UNRELATED)
@pytest.mark.parametrize(
    "method", ["SharedGaussian", "SparseBayesian", "TaskClustering, C chosen"]
)
def test_unrelated_tasks_are_left_alone(method: str, rows: int) -> None:
    ratios = []
    for seed in range(5):
        data, weights = planted.unrelated(seed, rows)
        base = planted.error(IndependentTasks(), data, weights)
        ratios.append(planted.error(planted.UNRELATED[method](), data, weights)[0] / base[0])
    assert np.max(ratios) <= 1.02


def test_planted_tree() -> None:
    found = pd.DataFrame(planted.found_tree(seed) for seed in range(10))
    assert found.clades.mean() >= 0.92
    assert found.clades.mean() >= found.linkage.mean() + 0.05
    assert (found.mixing >= 0.8).all()
    assert (found.error <= 0.85).all()


@pytest.mark.parametrize("rows", planted.ROWS_OF_UNRELATED)
def test_no_tree_where_there_is_none(rows: int) -> None:
    for seed in range(5):
        data, weights = planted.unrelated(seed, rows)
        shared = planted.error(SharedGaussian("diagonal"), data, weights)[0]
        assert planted.error(LatentHierarchy(), data, weights)[0] <= 1.02 * shared


def test_school_has_no_tree() -> None:
    priors = {"shared": SharedGaussian, "hierarchy": lambda: LatentHierarchy("full")}
    mean = school.measure(3, priors).groupby("method").mean()
    assert abs(mean.EV_global["hierarchy"] - mean.EV_global["shared"]) <= 0.003


def test_landmine_along_a_tree() -> None:
    priors = {"shared": lambda: SharedGaussian("diagonal"), "hierarchy": LatentHierarchy}
    table = landmine.measure(10, (80,), priors)
    wide = table.pivot_table(index="split", columns="method", values="AUC")
    assert (wide.hierarchy >= wide.shared).sum() >= 7
