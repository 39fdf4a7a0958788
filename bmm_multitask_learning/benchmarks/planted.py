"""Planted truth: clusters, a tree, active groups and blends, each found by its own prior."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from scipy.cluster.hierarchy import average
from sklearn.metrics import adjusted_rand_score

from .. import metrics
from ..data import TaskData
from ..datasets import (
    ClusterTruth,
    MixingTruth,
    SparseTruth,
    TreeTruth,
    make_clusters,
    make_mixing,
    make_sparse,
    make_tree,
)
from ..likelihoods import Gaussian
from ..model import MultitaskModel
from ..priors import (
    IndependentTasks,
    LatentHierarchy,
    SparseBayesian,
    TaskClustering,
    VariationalWeighting,
)
from ..trees import TaskTree
from . import library, peers, scores
from .protocol import Array, Forecast, Metric, Problem, Protocol, Rows, Split, draws

Truth = ClusterTruth | TreeTruth | SparseTruth | MixingTruth
TEST_ROWS = 50
SIZES = ("4 clusters", "1 cluster", "tree", "sparse", "mixing")
CORRELATION = 0.8  # of the features of make_tree
TEXT = f"""
Data whose truth is known (*size*), the defaults of `datasets.make_clusters` (64 tasks of 10 rows
in 4 clusters, and in one), `make_tree` (32 tasks, 24 features), `make_sparse` (5 tasks on 20
shared rows, 26 features in 8 groups, 2 of them active) and `make_mixing` (3 families of 2 tasks
with many rows and 3 blends of them with few); a new truth each seed. Scored on {TEST_ROWS} fresh
rows a task: *RMSE* and *error*, the same without the noise of the targets. `SparseBayesian` is
told the groups that were planted. *Recovered*: the adjusted Rand index of the most probable
clusters; the share of the true clades that are in the tree (`IndependentTasks`: in an average
linkage of its weights); how many times more relevant the least active group is than the most
relevant inactive one; the mass of `VariationalWeighting`'s mixing inside the true family.
{library.FOUND} GPyTorch is fitted to the first two seeds of each size.
"""


class Planted(NamedTuple):
    """The truth, and the mean of the test rows under it, without noise."""

    truth: Truth
    mean: Array


@lru_cache(maxsize=1)
def prepare(split: Split) -> Problem:
    """A draw of the truth and of train rows; fresh rows to test."""
    data, truth = _draw(split)
    rng = np.random.default_rng([split.seed, 1])
    K, D = truth.weights.shape
    task = np.repeat(np.arange(K), TEST_ROWS)
    x = rng.standard_normal((len(task), D))
    if isinstance(truth, TreeTruth):
        common = rng.standard_normal((len(task), 1))
        x = np.sqrt(1 - CORRELATION) * x + np.sqrt(CORRELATION) * common
    mean = np.einsum("nd,nd->n", x, truth.weights[task])
    test = Rows(x, mean + truth.noise * rng.standard_normal(len(task)), task)
    return Problem(Rows.of(data), test, K, Planted(truth, mean))


def _draw(split: Split) -> tuple[TaskData, Truth]:
    match split.size:
        case "4 clusters":
            return make_clusters(seed=split.seed)
        case "1 cluster":
            return make_clusters(num_clusters=1, seed=split.seed)
        case "tree":
            return make_tree(seed=split.seed)
        case "sparse":
            return make_sparse(seed=split.seed)
        case _:
            return make_mixing(seed=split.seed)


def score(problem: Problem, forecast: Forecast) -> dict[str, float]:
    """The usual figures of numbers, and the RMSE against the mean without noise."""
    error = metrics.rmse(problem.truth.mean, forecast.mean)
    return {"error": error, **scores.numeric(problem, forecast)}


def recovered(model: MultitaskModel, problem: Problem) -> dict[str, float]:
    """How much of the truth a prior that is made for it has found."""
    value = None
    match model.prior, problem.truth.truth:
        case TaskClustering(responsibilities=share), ClusterTruth(labels=labels):
            value = adjusted_rand_score(labels, share.argmax(1))
        case LatentHierarchy(tree=tree), TreeTruth(clades=clades):
            value = len(clades & set(tree.clades())) / len(clades)
        case IndependentTasks(), TreeTruth(clades=clades):
            joined = average(model.weights.mean.numpy())[:, :2].astype(int)
            tree = TaskTree(torch.from_numpy(joined), torch.zeros(len(joined)))
            value = len(clades & set(tree.clades())) / len(clades)
        case SparseBayesian(relevance=relevance), SparseTruth(active=active):
            value = float(relevance[active].min() / relevance[~active].max())
        case VariationalWeighting(mixing=mixing), MixingTruth(families=families):
            value = float((mixing.numpy() * (families[:, None] == families)).sum(1).mean())
    figures = library.found(model, problem)
    return figures if value is None else {**figures, "recovered": value}


def sparse(problem: Problem) -> Forecast:
    """The sparse prior with the groups that were planted, where there are any."""
    truth = problem.truth.truth
    groups = truth.groups if isinstance(truth, SparseTruth) else None
    return library.forecast(SparseBayesian(groups), Gaussian(), problem, recovered)


CLUSTERS: library.Makers = {
    "TaskClustering (C = 4)": lambda: TaskClustering(4),
    "TaskClustering (isotropic)": lambda: TaskClustering(covariance="isotropic"),
    "TaskClustering (full)": lambda: TaskClustering(covariance="full"),
}
PLANTED = Protocol(
    name="planted",
    text=TEXT,
    splits=draws(SIZES, 10),
    methods={
        **library.fitted({**library.PRIORS, **CLUSTERS}, Gaussian, recovered),
        "SparseBayesian": sparse,
        **peers.ridge(),
        **peers.multitask_lasso(),
        **peers.coregionalisation(),
    },
    prepare=prepare,
    score=score,
    metrics=(
        Metric("recovered", "recovered"),
        Metric("error", "error"),
        Metric("RMSE", "RMSE"),
        *scores.SPREAD,
        Metric("found", "found", 2),
        scores.SECONDS,
    ),
    reference="SharedGaussian (full)",
    compared=("error", "log_density"),
    some={"GPyTorch ICM (linear)": draws(SIZES, 2)},
    quick_splits=draws(("4 clusters", "mixing"), 2),
    quick_methods=(
        *("IndependentTasks", "PooledTasks", "SharedGaussian (full)"),
        *("TaskClustering", "VariationalWeighting"),
    ),
)
