"""Tasks that have nothing in common: what sharing costs where there is nothing to share."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from .. import metrics
from ..likelihoods import Gaussian
from ..priors import IndependentTasks, TaskClustering
from . import library, peers, sampled, scores
from .planted import TEST_ROWS
from .protocol import Array, Forecast, Metric, Problem, Protocol, Rows, Split, draws

NUM_FEATURES, NOISE = 6, 0.5
SIZES = ("64 × 10", "64 × 30", "8 × 10")
TEXT = f"""
K tasks of n rows (*size*: K × n) in {NUM_FEATURES} features, w ~ N(0, I), noise {NOISE}; scored
on {TEST_ROWS} fresh rows a task. *Ratio* is the RMSE over that of `IndependentTasks` on the same
data, its mean and its worst over the seeds; *without noise* the same of the errors without the
noise of the targets. Above 1 is negative transfer. GPyTorch is fitted to the first two seeds of
each size. {library.FOUND}
"""


class Base(NamedTuple):
    """The mean of the test rows without noise, and the error and RMSE of separate models."""

    mean: Array
    error: float
    rmse: float


@lru_cache(maxsize=1)
def prepare(split: Split) -> Problem:
    """Weights, train rows and fresh rows, and what separate models make of them."""
    num_tasks, size = map(int, split.size.split(" × "))
    rng = np.random.default_rng([split.seed, size])
    weights = rng.standard_normal((num_tasks, NUM_FEATURES))
    train, _ = _rows(weights, size, rng)
    test, mean = _rows(weights, TEST_ROWS, np.random.default_rng([split.seed, size, 1]))
    problem = Problem(train, test, num_tasks)
    alone = library.forecast(IndependentTasks(), Gaussian(), problem).mean
    return problem._replace(
        truth=Base(mean, metrics.rmse(mean, alone), metrics.rmse(test.y, alone))
    )


def _rows(weights: Array, size: int, rng: np.random.Generator) -> tuple[Rows, Array]:
    """Rows of every task, and their mean without noise."""
    task = np.repeat(np.arange(len(weights)), size)
    x = rng.standard_normal((len(task), NUM_FEATURES))
    mean = np.einsum("nd,nd->n", x, weights[task])
    return Rows(x, mean + NOISE * rng.standard_normal(len(task)), task), mean


def score(problem: Problem, forecast: Forecast) -> dict[str, float]:
    """The usual figures of numbers, and ratios to separate models."""
    figures = scores.numeric(problem, forecast)
    base = problem.truth
    without = metrics.rmse(base.mean, forecast.mean) / base.error
    return {"ratio": figures["RMSE"] / base.rmse, "without_noise": without, **figures}


UNRELATED = Protocol(
    name="unrelated",
    text=TEXT,
    splits=draws(SIZES, 10),
    methods={
        **library.numbers(),
        **library.numbers({"TaskClustering (C = 4)": lambda: TaskClustering(4)}),
        **peers.ridge(),
        **peers.multitask_lasso(),
        **peers.coregionalisation(),
        **sampled.hierarchical(),
    },
    prepare=prepare,
    score=score,
    metrics=(
        Metric("ratio", "ratio"),
        Metric("ratio", "worst", worst=True),
        Metric("without_noise", "without noise"),
        Metric("without_noise", "worst", worst=True),
        *scores.SPREAD,
        Metric("found", "found", 2),
        scores.SECONDS,
    ),
    reference="SharedGaussian (full)",
    compared=("ratio", "log_density"),
    some=dict.fromkeys(("GPyTorch ICM (linear)", "NumPyro NUTS (hierarchical)"), draws(SIZES, 2)),
    quick_splits=draws(("64 × 10",), 2),
    quick_methods=("IndependentTasks", "PooledTasks", "SharedGaussian (full)", "TaskClustering"),
)
