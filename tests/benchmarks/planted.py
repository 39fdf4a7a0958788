"""Planted truth: clusters found, none invented, no harm to unrelated tasks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from scipy.cluster.hierarchy import average
from sklearn.metrics import adjusted_rand_score
from tqdm.auto import tqdm

from bmm_multitask_learning import (
    IndependentTasks,
    LatentHierarchy,
    MultitaskModel,
    PooledTasks,
    SharedGaussian,
    SparseBayesian,
    TaskClustering,
    TaskCovariance,
    TaskData,
    VariationalWeighting,
    datasets,
    fit,
)
from bmm_multitask_learning.priors import TaskPrior
from bmm_multitask_learning.trees import TaskTree

from .record import markdown, write

UNRELATED_SIZES = ((64, 10), (64, 30), (8, 10))  # tasks, rows of each
NOISE = 0.5
# num_clusters, planted clusters
ASKED = ((4, 4), ("auto", 4), ("auto", 1))
UNRELATED: dict[str, Callable[[], TaskPrior]] = {
    "PooledTasks": PooledTasks,
    "SharedGaussian": SharedGaussian,
    "SharedGaussian, diagonal": lambda: SharedGaussian("diagonal"),
    "SharedGaussian, isotropic": lambda: SharedGaussian("isotropic"),
    "SparseBayesian": SparseBayesian,
    "TaskClustering, C chosen": lambda: TaskClustering("auto"),
    "TaskClustering, C = 4": lambda: TaskClustering(4),
    "LatentHierarchy": LatentHierarchy,
    "TaskCovariance": TaskCovariance,
    "VariationalWeighting": VariationalWeighting,
}
PAGE = """
**Clusters.** 64 tasks of 10 rows in 6 features: w = centre + 0.2 ε, noise 0.5, the two nearest of
the 4 centres 2.0 apart (the defaults of `datasets.make_clusters`); {seeds} seeds, 0 to {last}.
*Found*: adjusted Rand index of the most probable cluster against the truth at least .95.

{clusters}

**Unrelated tasks.** K tasks of n rows in 6 features, w ~ N(0, I), noise 0.5: root of the expected
squared error of x·ŵ at fresh rows, as a ratio to `IndependentTasks` on the same data; mean and
worst of {seeds} seeds. *RMSE* is against new targets, noise included; *without noise* against x·w,
where differences are larger.

{unrelated}
"""


def found(num_clusters: int | str, covariance: str, planted: int, seed: int) -> dict[str, float]:
    """Fit clusters to planted ones, and compare."""
    data, truth = datasets.make_clusters(num_clusters=planted, seed=seed)
    model = MultitaskModel(prior=TaskClustering(num_clusters, covariance=covariance))
    result = fit(model, data, seed=seed, progress=False)
    labels = model.prior.responsibilities.argmax(1).numpy()
    return {
        "ARI": adjusted_rand_score(truth.labels, labels),
        "clusters": len(np.unique(labels)),
        "seconds": result.seconds,
    }


def found_tree(seed: int) -> dict[str, float]:
    """Find a planted tree; the share of its clades that are found, here and by average linkage."""
    data, truth = datasets.make_tree(seed=seed)
    model, shared = (MultitaskModel(p) for p in (LatentHierarchy(), SharedGaussian("diagonal")))
    for each in (model, shared):
        fit(each, data, progress=False)
    ridge = MultitaskModel(IndependentTasks())
    fit(ridge, data, progress=False)
    linkage = average(ridge.weights.mean.numpy())
    joined = TaskTree(torch.as_tensor(linkage[:, :2].astype(int)), torch.as_tensor(linkage[:, 2]))
    errors = [np.linalg.norm(m.weights.mean.numpy() - truth.weights) for m in (model, shared)]
    return {
        "clades": len(set(model.prior.tree.clades()) & truth.clades) / len(truth.clades),
        "linkage": len(set(joined.clades()) & truth.clades) / len(truth.clades),
        "mixing": float(model.prior.mixing_weight),
        "error": errors[0] / errors[1],
    }


def unrelated(seed: int, rows: int, tasks: int = 64) -> tuple[TaskData, np.ndarray]:
    """Tasks whose weights have nothing in common but their scale."""
    rng = np.random.default_rng([seed, rows])
    weights = rng.standard_normal((tasks, 6))
    task = np.repeat(np.arange(tasks), rows)
    x = rng.standard_normal((len(task), 6))
    y = np.einsum("nd,nd->n", x, weights[task]) + NOISE * rng.standard_normal(len(task))
    return TaskData(x, y, task, tasks=range(tasks)), weights


def error(prior: TaskPrior, data: TaskData, weights: np.ndarray) -> np.ndarray:
    """Root of E[(x·ŵ − y)²] for x ~ N(0, I), with the noise of y and without."""
    model = MultitaskModel(prior=prior)
    fit(model, data, progress=False)
    square = np.square(model.weights.mean.numpy() - weights).sum(1).mean()
    return np.sqrt([square + NOISE**2, square])


def measure_clusters(seeds: int) -> pd.DataFrame:
    """One row for each seed, number of planted clusters and number asked for."""
    forms = ("full", "diagonal", "isotropic")
    cases = [(C, form, planted) for C, planted in ASKED for form in forms]
    runs = [(seed, *case) for case in cases for seed in range(seeds)]
    return pd.DataFrame(
        {
            "seed": seed,
            "num_clusters": str(C),
            "covariance": form,
            "planted": planted,
            **found(C, form, planted, seed),
        }
        for seed, C, form, planted in tqdm(runs, desc="planted clusters", unit="fit")
    )


def measure_unrelated(seeds: int) -> pd.DataFrame:
    """One row for each seed, size and prior: RMSE over that of independent tasks."""
    rows = []
    runs = [(seed, *size) for size in UNRELATED_SIZES for seed in range(seeds)]
    for seed, tasks, size in tqdm(runs, desc="unrelated tasks", unit="data set"):
        data, weights = unrelated(seed, size, tasks)
        base = error(IndependentTasks(), data, weights)
        for method, make in UNRELATED.items():
            ratio, clean = error(make(), data, weights) / base
            keys = {"seed": seed, "K": tasks, "n": size, "method": method}
            rows.append({**keys, "ratio": ratio, "without_noise": clean})
    return pd.DataFrame(rows)


def main(seeds: int = 10) -> None:
    """Measure, and write the tables."""
    clusters, ratios = measure_clusters(seeds), measure_unrelated(seeds)
    body = []
    keys = ["num_clusters", "covariance", "planted"]
    for (asked, form, planted), group in clusters.groupby(keys, sort=False):
        good = group.ARI >= 0.95 if planted > 1 else group.clusters == 1
        numbers = ", ".join(map(str, sorted(group.clusters.unique())))
        body.append(
            [
                f"{planted}",
                f"`{asked}`",
                form,
                f"{int(good.sum())} of {len(group)}",
                f"{group.ARI.min():.3f}" if planted > 1 else "–",
                numbers,
                f"{group.seconds.mean():.2f}",
            ]
        )
    heads = ["planted", "num_clusters", "covariance", "found", "worst ARI", "clusters", "seconds"]
    other = [
        [
            str(tasks),
            str(n),
            method,
            f"{group.ratio.mean():.3f}",
            f"{group.ratio.max():.3f}",
            f"{group.without_noise.mean():.3f}",
            f"{group.without_noise.max():.3f}",
        ]
        for (tasks, n, method), group in ratios.groupby(["K", "n", "method"], sort=False)
    ]
    headings = ["K", "n", "method", "RMSE, mean", "worst", "without noise, mean", "worst"]
    page = PAGE.format(
        seeds=seeds,
        last=seeds - 1,
        clusters=markdown(heads, body),
        unrelated=markdown(headings, other),
    )
    rows = pd.concat([clusters.assign(part="clusters"), ratios.assign(part="unrelated")])
    write("planted", rows, page, {"benchmark": "planted", "seeds": seeds})
