"""Floors of accuracy on real data and on planted truth, on a reduced protocol.

The figures themselves, with the whole protocol, stand in docs/benchmarks.md.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pandas as pd
import pytest

from bmm_multitask_learning import LatentHierarchy, TaskClustering
from bmm_multitask_learning.benchmarks import (
    LANDMINE,
    PLANTED,
    SARCOS,
    SCHOOL,
    SENTIMENT,
    UNRELATED,
    Protocol,
    library,
    measure,
)

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _data_sets(monkeypatch: pytest.MonkeyPatch, data_home: Path) -> None:
    monkeypatch.setenv("BMM_DATA_HOME", str(data_home))


def table(protocol: Protocol, size: str, seeds: int, *methods: str) -> pd.DataFrame:
    """Figures of methods on the first seeds of a size, by seed and method."""
    runs = [
        (split, method)
        for split in [split for split in protocol.splits if split.size == size][:seeds]
        for method in methods
    ]
    return measure(protocol, runs).set_index(["seed", "method"])


def means(protocol: Protocol, size: str, seeds: int, *methods: str) -> pd.DataFrame:
    """The same, averaged over seeds."""
    return table(protocol, size, seeds, *methods).groupby("method").mean(numeric_only=True)


def test_school() -> None:
    # one start: no split of School has a second cluster to find
    clusters = library.numbers({"clusters": lambda: TaskClustering("auto", n_init=1)})
    protocol = dataclasses.replace(SCHOOL, methods={**SCHOOL.methods, **clusters})
    alone = ["IndependentTasks", "PooledTasks"]
    shared = ["SharedGaussian (full)", "clusters"]
    mean = means(protocol, "", 3, *alone, *shared)
    # three splits are kinder than ten (.376): 0.385 for the shared prior
    for method in shared:
        assert mean.EV_global[method] >= 0.380
        assert mean.EV_within[method] >= 0.280
        assert 0.88 <= mean.coverage[method] <= 0.92
        assert mean.EV_global[method] > mean.EV_global[alone].max() + 0.02


@pytest.mark.parametrize(
    ("size", "floor"), [("20", 0.728), ("40", 0.745), ("80", 0.763), ("160", 0.770)]
)
def test_landmine(size: str, floor: float) -> None:
    mean = means(LANDMINE, size, 20, "PooledTasks", "SharedGaussian (full)")
    assert mean.AUC["SharedGaussian (full)"] >= floor
    assert mean.AUC["SharedGaussian (full)"] > mean.AUC["PooledTasks"]


@pytest.mark.parametrize("rows", ["50 a torque", "100 a torque"])
def test_sarcos(rows: str) -> None:
    """Below regressions of each torque by itself, also sparse ones."""
    peers = ["RidgeCV (per task)", "ARDRegression (per task)"]
    diagonal = "SharedGaussian (diagonal)"
    mean = means(SARCOS, rows, 10, "SparseBayesian", diagonal, *peers)
    assert mean.nMSE["SparseBayesian"] < mean.nMSE[diagonal] + 0.001
    assert mean.nMSE["SparseBayesian"] < mean.nMSE["RidgeCV (per task)"] - 0.005
    assert mean.nMSE["SparseBayesian"] < mean.nMSE["ARDRegression (per task)"]
    assert 0.85 <= mean.coverage["SparseBayesian"] <= 0.92


def test_sparse_prior_on_school() -> None:
    """Nothing is sparse there: a little below the shared prior, and no worse."""
    assert means(SCHOOL, "", 3, "SparseBayesian").EV_global.item() >= 0.375


def test_centre_does_not_collapse() -> None:
    """At 20 rows a task the shared prior is worth as much as pooling, up to 1 %."""
    mean = means(SENTIMENT, "20", 2, "PooledTasks", "SharedGaussian (isotropic)")
    shared = mean.accuracy["SharedGaussian (isotropic)"]
    assert shared >= 0.99 * mean.accuracy["PooledTasks"]
    # separate models, into which a collapse falls back, reach .62
    assert shared >= 0.70


@pytest.mark.parametrize(
    "method", ["TaskClustering (C = 4)", "TaskClustering", "TaskClustering (isotropic)"]
)
def test_planted_clusters(method: str) -> None:
    found = table(PLANTED, "4 clusters", 10, method)
    assert (found.recovered >= 0.95).sum() >= 9


def test_one_planted_cluster() -> None:
    assert (table(PLANTED, "1 cluster", 10, "TaskClustering (full)").found == 1).all()


@pytest.mark.parametrize("size", ["64 × 10", "64 × 30"])
def test_unrelated_tasks_are_left_alone(size: str) -> None:
    methods = ["SharedGaussian (full)", "SparseBayesian", "TaskClustering"]
    assert table(UNRELATED, size, 5, *methods).ratio.max() <= 1.02


def test_planted_tree() -> None:
    methods = ["LatentHierarchy", "SharedGaussian (diagonal)", "IndependentTasks"]
    wide = table(PLANTED, "tree", 10, *methods).unstack()
    clades = wide.recovered["LatentHierarchy"].mean()
    assert clades >= 0.92
    assert clades >= wide.recovered["IndependentTasks"].mean() + 0.05  # average linkage
    assert (wide.found["LatentHierarchy"] >= 0.8).all()
    ratio = wide.error["LatentHierarchy"] / wide.error["SharedGaussian (diagonal)"]
    assert (ratio <= 0.85).all()


@pytest.mark.parametrize("size", ["64 × 10", "64 × 30"])
def test_no_tree_where_there_is_none(size: str) -> None:
    ratio = table(UNRELATED, size, 5, "LatentHierarchy", "SharedGaussian (diagonal)").ratio
    wide = ratio.unstack()
    assert (wide["LatentHierarchy"] <= 1.02 * wide["SharedGaussian (diagonal)"]).all()


def test_school_has_no_tree() -> None:
    tree = library.numbers({"tree": lambda: LatentHierarchy("full")})
    protocol = dataclasses.replace(SCHOOL, methods={**SCHOOL.methods, **tree})
    mean = means(protocol, "", 3, "tree", "SharedGaussian (full)")
    assert abs(mean.EV_global["tree"] - mean.EV_global["SharedGaussian (full)"]) <= 0.003


def test_landmine_along_a_tree() -> None:
    auc = table(LANDMINE, "80", 10, "LatentHierarchy", "SharedGaussian (diagonal)").AUC.unstack()
    # with weight 0 they are the same model, found twice
    assert (auc["LatentHierarchy"] >= auc["SharedGaussian (diagonal)"] - 1e-4).sum() >= 7
