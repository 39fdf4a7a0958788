"""Landmine: 29 fields, n labelled rows in each; 6 % of the rows are mines."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from bmm_multitask_learning import (
    IndependentTasks,
    PooledTasks,
    SharedGaussian,
    TaskClustering,
    datasets,
    metrics,
)
from bmm_multitask_learning.priors import TaskPrior

from .binary import Array, evaluate, log_density, logistic, mean_auc, with_both_classes
from .record import Column, paired, summary, write

SIZES = (20, 40, 80, 160)
FLOORS = {20: 0.730, 40: 0.745, 80: 0.763, 160: 0.770}
PRIORS: dict[str, Callable[[], TaskPrior]] = {
    "IndependentTasks": IndependentTasks,
    "PooledTasks": PooledTasks,
    "SharedGaussian": SharedGaussian,
    "SharedGaussian, diagonal": lambda: SharedGaussian("diagonal"),
    "SharedGaussian, isotropic": lambda: SharedGaussian("isotropic"),
}
SLOW: dict[str, Callable[[], TaskPrior]] = {
    "TaskClustering, C chosen": lambda: TaskClustering("auto", n_init=1),
}
SLOW_REPEATS = 3
COLUMNS = (
    Column("AUC", "AUC"),
    Column("Brier", "Brier", 4),
    Column("log_density", "log density", 4),
    Column("seconds", "seconds", 2),
)
PAGE = """
Protocol: n labelled rows of each field, drawn at random, again until both classes are among them;
the other rows are the test rows. {repeats} repeats, seeds 0 to {last}. Features are standardised
on the labelled rows, a constant is added. *AUC* is the mean over fields of each field's own area
under the ROC curve. Penalties of the logistic regressions are chosen by 3-fold cross-validation
of the log loss on the labelled rows. Figures are means over the repeats ± their standard
deviation; `TaskClustering` is fitted in the first {slow} only.

{table}

AUC less that of pooled tasks on the same repeats, ± standard error:

{pairs}
"""


def score(y: Array, probability: Array, task: np.ndarray) -> dict[str, float]:
    """What is reported of one fit."""
    return {
        "AUC": mean_auc(y, probability, task),
        "Brier": metrics.brier(y, probability),
        "log_density": log_density(y, probability),
    }


def measure(
    repeats: int = 20,
    sizes: tuple[int, ...] = SIZES,
    priors: dict[str, Callable[[], TaskPrior]] | None = None,
) -> pd.DataFrame:
    """One row for each size, repeat and method."""
    data = datasets.fetch_landmine()
    x, y, task = data.x.numpy(), data.y.numpy(), data.task.numpy()
    rows = []
    runs = [(n, seed) for n in sizes for seed in range(repeats)]
    for n, seed in tqdm(runs, desc="Landmine", unit="fit"):
        chosen = with_both_classes(y, task, n, np.random.default_rng([n, seed]))
        mean, std = x[chosen].mean(0), x[chosen].std(0)
        features = np.column_stack([(x - mean) / np.where(std > 0, std, 1.0), np.ones(len(x))])
        train = (features[chosen], y[chosen], task[chosen])
        test = (features[~chosen], y[~chosen], task[~chosen])
        keys = {"n": n, "split": seed}
        slow = SLOW if priors is None and seed < SLOW_REPEATS else {}
        for method, make in {**(priors or PRIORS), **slow}.items():
            rows.append({"method": method, **keys, **evaluate(make(), train, test, score)})
        if priors is None:
            for method, figures in logistic(train, test, score):
                rows.append({"method": method, **keys, **figures})
    return pd.DataFrame(rows)


def main(repeats: int = 20) -> None:
    """Measure, and write the tables."""
    rows = measure(repeats)
    page = PAGE.format(
        repeats=repeats,
        last=repeats - 1,
        slow=SLOW_REPEATS,
        table=summary(rows, ["n", "method"], COLUMNS),
        pairs=paired(rows, "AUC", "PooledTasks", by=["n"]),
    )
    write("landmine", rows, page, {"benchmark": "landmine", "repeats": repeats, "sizes": SIZES})
