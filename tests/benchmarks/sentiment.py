"""Sentiment: reviews of 16 kinds of product as 384-dimensional embeddings."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from bmm_multitask_learning import (
    IndependentTasks,
    PooledTasks,
    SharedGaussian,
    datasets,
    metrics,
)
from bmm_multitask_learning.priors import TaskPrior

from .binary import Array, balanced, evaluate, log_density, logistic, with_both_classes
from .record import Column, paired, summary, write

SIZES = (20, 50, 200)
FLOORS = {"20": 0.713, "50": 0.744, "200": 0.766, "all": 0.793}
PRIORS: dict[str, Callable[[], TaskPrior]] = {
    "IndependentTasks": IndependentTasks,
    "PooledTasks": PooledTasks,
    "SharedGaussian, isotropic": lambda: SharedGaussian("isotropic"),
}
COLUMNS = (
    Column("accuracy", "accuracy", 4),
    Column("log_density", "log density", 4),
    Column("ECE", "ECE"),
    Column("iterations", "iterations", 0),
    Column("seconds", "seconds", 1),
)
PAGE = """
Protocol: n training rows of each domain, half of them positive, drawn at random ({repeats} draws,
seeds 0 to {last}; "all" is the one standard training set); the standard test rows, 400 a domain.
Embeddings are centred and scaled to a mean square of 1 a feature by the training rows, one scale
for all; a constant is added. *Accuracy* is the mean over domains; *ECE*, the expected calibration
error, pools all test rows in 15 bins. Nothing is tuned: hyperparameters by their evidence, the
penalties of the logistic regressions by 3-fold cross-validation on the training rows. Figures are
means over the draws ± their standard deviation.

{table}

Accuracy less that of pooled tasks on the same draws, ± standard error:

{pairs}

Draws without regard to the class are harder:

{random}
"""


def score(y: Array, probability: Array, task: np.ndarray) -> dict[str, float]:
    """What is reported of one fit."""
    right = ((probability > 0.5) == y).astype(float)
    return {
        "accuracy": float(np.mean([right[task == k].mean() for k in range(task.max() + 1)])),
        "log_density": log_density(y, probability),
        "ECE": metrics.expected_calibration_error(y, probability, num_bins=15),
    }


def measure(
    repeats: int,
    sizes: tuple[int | None, ...],
    priors: dict[str, Callable[[], TaskPrior]] | None = None,
    draw: Callable[..., np.ndarray] = balanced,
) -> pd.DataFrame:
    """One row for each size, draw and method; size None takes all rows, once."""
    train, test = datasets.fetch_sentiment()
    x, y, task = train.x.numpy(), train.y.numpy(), train.task.numpy()
    new, truth, new_task = test.x.numpy(), test.y.numpy(), test.task.numpy()
    rows = []
    runs = [(n, seed) for n in sizes for seed in range(1 if n is None else repeats)]
    for n, seed in tqdm(runs, desc="Sentiment", unit="draw"):
        every = np.ones(len(y), dtype=bool)
        chosen = every if n is None else draw(y, task, n, np.random.default_rng([n, seed]))
        mean = x[chosen].mean(0)
        scale = x[chosen].std(0)
        scale = np.sqrt(np.mean(scale**2))
        part = (_ready(x[chosen], mean, scale), y[chosen], task[chosen])
        other = (_ready(new, mean, scale), truth, new_task)
        keys = {"n": "all" if n is None else str(n), "split": seed}
        for method, make in (priors or PRIORS).items():
            rows.append({"method": method, **keys, **evaluate(make(), part, other, score)})
        if priors is None:
            for method, figures in logistic(part, other, score):
                rows.append({"method": method, **keys, **figures})
    return pd.DataFrame(rows)


def _ready(x: Array, mean: Array, scale: float) -> Array:
    return np.column_stack([(x - mean) / scale, np.ones(len(x))])


def main(repeats: int = 5) -> None:
    """Measure, and write the tables."""
    rows = measure(repeats, (*SIZES, None))
    shared = {k: v for k, v in PRIORS.items() if k != "IndependentTasks"}
    plain = measure(repeats, (20, 50), shared, with_both_classes)
    page = PAGE.format(
        repeats=repeats,
        last=repeats - 1,
        table=summary(rows, ["n", "method"], COLUMNS),
        pairs=paired(rows, "accuracy", "PooledTasks", by=["n"]),
        random=summary(plain, ["n", "method"], COLUMNS),
    )
    rows = pd.concat([rows.assign(draw="balanced"), plain.assign(draw="random")])
    write("sentiment", rows, page, {"benchmark": "sentiment", "draws": repeats, "sizes": SIZES})
