"""Which kinds of product help which: affinities against what training every pair brings."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.stats import spearmanr

from ..affinity import task_affinity
from ..affinity.task_affinity import Method as Measure
from ..backbones import MLP
from ..data import TaskData
from ..fitting import fit
from ..likelihoods import Bernoulli
from ..model import MultitaskModel
from ..priors import IndependentTasks, SharedGaussian
from . import scores, sentiment
from .protocol import Array, Forecast, Method, Metric, Problem, Protocol, Rows, Split, draws

CHOSEN = 10  # pairs ranked highest, and lowest
HIDDEN = 16
TEXT = f"""
The 16 kinds of product, embeddings and test rows of the benchmark sentiment, n train rows of
each kind (*size*), half of them positive, seeds from 200 on. All 120 pairs are trained as two
tasks of `SharedGaussian("isotropic")`, and each kind alone by the same prior; a pair's *gain* is
what its two kinds' standard test rows gain in log density (nats a row) and in accuracy, their
mean. An affinity sees train rows alone: `evidence` of `SharedGaussian("isotropic")` on all 16,
`lookahead` and `gradient` for 20 steps of an MLP with {HIDDEN} hidden units. Baselines: the
cosine of the weights of separate models, that of the kinds' mean embeddings, and one random order.
Shown are the mean gains of the {CHOSEN} pairs ranked highest and of the {CHOSEN} ranked lowest,
their difference, and Spearman's rank correlation over all 120 pairs with the gain in log
density.
"""


class Gains(NamedTuple):
    """What pairs gain over each task alone, (P,) in the order of `numpy.triu_indices(K, 1)`."""

    log_density: Array
    accuracy: Array


@lru_cache(maxsize=1)
def prepare(split: Split) -> Problem:
    """The train rows of all kinds, and what every pair of them gains."""
    problem = sentiment.prepare(split)
    K = problem.num_tasks
    alone = np.stack([_scored(problem, (k,))[0] for k in range(K)])
    first, second = np.triu_indices(K, 1)
    together = np.stack(
        [_scored(problem, pair) for pair in zip(first.tolist(), second.tolist(), strict=True)]
    )
    gain = together.mean(1) - 0.5 * (alone[first] + alone[second])
    return problem._replace(truth=Gains(gain[:, 0], gain[:, 1]))


def _scored(problem: Problem, tasks: tuple[int, ...]) -> Array:
    """Mean log density and accuracy of the test rows of each of some tasks, (len(tasks), 2)."""
    train, test = (part.where(np.isin(part.task, tasks)) for part in problem[:2])
    train, test = in_row_space(train, test)
    model = MultitaskModel(prior=SharedGaussian("isotropic"), likelihood=Bernoulli())
    fit(model, TaskData(*train, tasks=tasks), progress=False)
    prediction = model.predict(test.x, test.task)
    right = (prediction.mean > 0.5) == test.y
    figures = np.column_stack([prediction.log_prob(test.y), right])
    return np.stack([figures[test.task == k].mean(0) for k in tasks])


def in_row_space(train: Rows, test: Rows) -> tuple[Rows, Rows]:
    """Rotated features, those that are 0 in all train rows as one: their length.

    An isotropic prior predicts the same from them, up to where its fit stops, in a quarter of the
    time.
    """
    _, size, axes = np.linalg.svd(train.x, full_matrices=False)
    axes = axes[size > 1e-10 * size[0]]
    inside = test.x @ axes.T
    rest = np.square(test.x).sum(1) - np.square(inside).sum(1)
    return (
        train._replace(x=np.column_stack([train.x @ axes.T, np.zeros(len(train.x))])),
        test._replace(x=np.column_stack([inside, np.sqrt(rest.clip(min=0))])),
    )


def measured(measure: Measure) -> Method:
    """By `task_affinity`."""

    def run(problem: Problem) -> Forecast:
        data = problem.train.data(problem.num_tasks)
        prior, backbone = SharedGaussian("isotropic"), None
        if measure != "evidence":
            backbone = MLP(data.x.shape[1], [HIDDEN])
        model = MultitaskModel(prior=prior, likelihood=Bernoulli(), backbone=backbone)
        if measure == "evidence":
            fit(model, data, progress=False)
        return Forecast(task_affinity(model, data, measure, progress=False).matrix)

    return run


def alike_weights(problem: Problem) -> Forecast:
    """Cosines of the weights of separate models."""
    model = MultitaskModel(prior=IndependentTasks(), likelihood=Bernoulli())
    fit(model, problem.train.data(problem.num_tasks), progress=False)
    return Forecast(_cosines(model.weights.mean.numpy()))


def alike_inputs(problem: Problem) -> Forecast:
    """Cosines of the tasks' mean inputs, less the constant."""
    x, task = problem.train.x[:, 1:], problem.train.task
    return Forecast(_cosines(np.stack([x[task == k].mean(0) for k in range(problem.num_tasks)])))


def random_order(problem: Problem) -> Forecast:
    """Nothing is known of any pair."""
    rng = np.random.default_rng(len(problem.train.y))
    return Forecast(rng.standard_normal((problem.num_tasks, problem.num_tasks)))


def _cosines(vectors: Array) -> Array:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit @ unit.T


def score(problem: Problem, forecast: Forecast) -> dict[str, float]:
    """What the pairs gain that a matrix (K, K), the forecast's mean, ranks highest and lowest."""
    gains: Gains = problem.truth
    matrix = 0.5 * (forecast.mean + forecast.mean.T)
    affinity = matrix[np.triu_indices(problem.num_tasks, 1)]
    order = np.argsort(-affinity, kind="stable")
    figures = {"rank": float(spearmanr(affinity, gains.log_density).statistic)}
    for key, gain in zip(("density", "accuracy"), gains, strict=True):
        highest, lowest = gain[order[:CHOSEN]].mean(), gain[order[-CHOSEN:]].mean()
        figures |= {f"{key}_highest": float(highest), f"{key}_lowest": float(lowest)}
        figures[f"{key}_apart"] = float(highest - lowest)
    return figures


AFFINITY = Protocol(
    name="affinity",
    text=TEXT,
    splits=draws(("20", "50"), 3, first=200),
    methods={
        "evidence": measured("evidence"),
        "lookahead": measured("lookahead"),
        "gradient": measured("gradient"),
        "weights": alike_weights,
        "inputs": alike_inputs,
        "random": random_order,
    },
    prepare=prepare,
    score=score,
    metrics=(
        Metric("density_highest", "log density: highest", 4),
        Metric("density_lowest", "lowest", 4),
        Metric("density_apart", "log density: apart", 4),
        Metric("accuracy_highest", "accuracy: highest", 4),
        Metric("accuracy_lowest", "lowest", 4),
        Metric("accuracy_apart", "accuracy: apart", 4),
        Metric("rank", "rank correlation"),
        scores.SECONDS,
    ),
    reference="random",
    compared=("density_apart", "accuracy_apart", "rank"),
    quick_splits=draws(("20",), 1, first=200),
    quick_methods=("evidence", "random"),
)
