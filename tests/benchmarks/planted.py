"""Planted truth: clusters found, none invented, no harm to unrelated tasks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from sklearn.metrics import adjusted_rand_score
from tqdm.auto import tqdm

from bmm_multitask_learning import (
    IndependentTasks,
    MultitaskModel,
    PooledTasks,
    SharedGaussian,
    TaskClustering,
    TaskData,
    datasets,
    fit,
)
from bmm_multitask_learning.priors import TaskPrior

from .record import markdown, write

ROWS_OF_UNRELATED = (10, 30)
UNRELATED: dict[str, Callable[[], TaskPrior]] = {
    "PooledTasks": PooledTasks,
    "SharedGaussian": SharedGaussian,
    "SharedGaussian, diagonal": lambda: SharedGaussian("diagonal"),
    "SharedGaussian, isotropic": lambda: SharedGaussian("isotropic"),
    "TaskClustering, C chosen": lambda: TaskClustering("auto"),
    "TaskClustering, C = 4": lambda: TaskClustering(4),
}
PAGE = """
**Clusters.** 64 tasks of 10 rows in 6 features: w = centre + 0.2 ε, noise 0.5, the two nearest of
the 4 centres 2.0 apart (the defaults of `datasets.make_clusters`); {seeds} seeds, 0 to {last}.
*Found*: adjusted Rand index of the most probable cluster against the truth at least .95.

{clusters}

**Unrelated tasks.** 64 tasks of n rows in 6 features, w ~ N(0, I), noise 0.5: RMSE of x·ŵ against
x·w at fresh x, as a ratio to `IndependentTasks` on the same data; mean and worst of {seeds} seeds.

{unrelated}
"""


def found(num_clusters: int | str, planted: int, seed: int) -> dict[str, float]:
    """Fit clusters to planted ones, and compare."""
    data, truth = datasets.make_clusters(num_clusters=planted, seed=seed)
    model = MultitaskModel(prior=TaskClustering(num_clusters))
    result = fit(model, data, seed=seed, progress=False)
    labels = model.prior.responsibilities.argmax(1).numpy()
    return {
        "ARI": adjusted_rand_score(truth.labels, labels),
        "clusters": len(np.unique(labels)),
        "seconds": result.seconds,
    }


def unrelated(seed: int, rows: int) -> tuple[TaskData, np.ndarray]:
    """Tasks whose weights have nothing in common but their scale."""
    rng = np.random.default_rng([seed, rows])
    weights = rng.standard_normal((64, 6))
    task = np.repeat(np.arange(64), rows)
    x = rng.standard_normal((len(task), 6))
    y = np.einsum("nd,nd->n", x, weights[task]) + 0.5 * rng.standard_normal(len(task))
    return TaskData(x, y, task, tasks=range(64)), weights


def error(prior: TaskPrior, data: TaskData, weights: np.ndarray) -> float:
    """Root of E[(x·ŵ − x·w)²] for x ~ N(0, I)."""
    model = MultitaskModel(prior=prior)
    fit(model, data, progress=False)
    return float(np.sqrt(np.square(model.weights.mean.numpy() - weights).sum(1).mean()))


def measure_clusters(seeds: int) -> pd.DataFrame:
    """One row for each seed, number of planted clusters and number asked for."""
    cases = [(4, 4), ("auto", 4), ("auto", 1)]
    runs = [(seed, *case) for case in cases for seed in range(seeds)]
    return pd.DataFrame(
        {"seed": seed, "num_clusters": str(C), "planted": planted, **found(C, planted, seed)}
        for seed, C, planted in tqdm(runs, desc="planted clusters", unit="fit")
    )


def measure_unrelated(seeds: int) -> pd.DataFrame:
    """One row for each seed, size and prior: RMSE over that of independent tasks."""
    rows = []
    runs = [(seed, size) for size in ROWS_OF_UNRELATED for seed in range(seeds)]
    for seed, size in tqdm(runs, desc="unrelated tasks", unit="data set"):
        data, weights = unrelated(seed, size)
        base = error(IndependentTasks(), data, weights)
        for method, make in UNRELATED.items():
            ratio = error(make(), data, weights) / base
            rows.append({"seed": seed, "n": size, "method": method, "ratio": ratio})
    return pd.DataFrame(rows)


def main(seeds: int = 10) -> None:
    """Measure, and write the tables."""
    clusters, ratios = measure_clusters(seeds), measure_unrelated(seeds)
    body = []
    for (asked, planted), group in clusters.groupby(["num_clusters", "planted"], sort=False):
        good = group.ARI >= 0.95 if planted > 1 else group.clusters == 1
        numbers = ", ".join(map(str, sorted(group.clusters.unique())))
        body.append(
            [
                f"{planted}",
                f"`{asked}`",
                f"{int(good.sum())} of {len(group)}",
                f"{group.ARI.min():.3f}" if planted > 1 else "–",
                numbers,
                f"{group.seconds.mean():.2f}",
            ]
        )
    heads = ["planted", "num_clusters", "found", "worst ARI", "clusters", "seconds"]
    other = [
        [str(n), method, f"{group.ratio.mean():.3f}", f"{group.ratio.max():.3f}"]
        for (n, method), group in ratios.groupby(["n", "method"], sort=False)
    ]
    page = PAGE.format(
        seeds=seeds,
        last=seeds - 1,
        clusters=markdown(heads, body),
        unrelated=markdown(["n", "method", "mean ratio", "worst ratio"], other),
    )
    rows = pd.concat([clusters.assign(part="clusters"), ratios.assign(part="unrelated")])
    write("planted", rows, page, {"benchmark": "planted", "seeds": seeds})
