"""What the two benchmarks of binary tasks share: draws of labelled rows, baselines, scores."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold

from bmm_multitask_learning import Bernoulli, MultitaskModel, TaskData, fit, metrics
from bmm_multitask_learning.priors import TaskPrior

Array = NDArray[np.float64]
# of logistic regression on features of unit mean square, from strong to weak
STRENGTHS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
FOLDS = 3


def with_both_classes(
    y: Array, task: NDArray[np.int64], size: int, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Mask of `size` rows of each task, drawn again until both classes are among them."""
    chosen = np.zeros(len(y), dtype=bool)
    for k in range(task.max() + 1):
        rows = np.flatnonzero(task == k)
        draw = rng.permutation(rows)[:size]
        while not 0 < y[draw].sum() < len(draw):
            draw = rng.permutation(rows)[:size]
        chosen[draw] = True
    return chosen


def balanced(
    y: Array, task: NDArray[np.int64], size: int, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Mask of `size` rows of each task, half of them of each class."""
    chosen = np.zeros(len(y), dtype=bool)
    for k in range(task.max() + 1):
        for label in (0, 1):
            rows = np.flatnonzero((task == k) & (y == label))
            chosen[rng.permutation(rows)[: size // 2]] = True
    return chosen


Score = Callable[[Array, Array, NDArray[np.int64]], dict[str, float]]


def evaluate(
    prior: TaskPrior,
    train: tuple[Array, Array, NDArray[np.int64]],
    test: tuple[Array, Array, NDArray[np.int64]],
    score: Score,
) -> dict[str, float]:
    """Fit one prior by the closed form and score its probabilities."""
    model = MultitaskModel(prior=prior, likelihood=Bernoulli())
    result = fit(model, TaskData(*train), progress=False)
    x, y, task = test
    figures = score(y, model.predict(x, task).mean, task)
    return {**figures, "seconds": result.seconds, "iterations": len(result.history)}


def logistic(
    train: tuple[Array, Array, NDArray[np.int64]],
    test: tuple[Array, Array, NDArray[np.int64]],
    score: Score,
) -> Iterator[tuple[str, dict[str, float]]]:
    """Logistic regression, one for all tasks and one for each, the penalty by cross-validation."""
    x, y, task = train
    new, truth, new_task = test
    for name, groups, new_groups in (
        ("logistic regression, pooled", np.zeros_like(task), np.zeros_like(new_task)),
        ("logistic regression, per task", task, new_task),
    ):
        start = time.perf_counter()
        strength = _choose(x, y, groups)
        probability = _fit_predict(x, y, groups, new, new_groups, strength)
        figures = score(truth, probability, new_task)
        yield name, {**figures, "seconds": time.perf_counter() - start}


def _choose(x: Array, y: Array, groups: NDArray[np.int64]) -> float:
    """The strength of least log loss in cross-validation; one for all groups."""
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    parts = list(folds.split(x, groups if groups.any() else y))
    losses = []
    for strength in STRENGTHS:
        out = np.empty_like(y)
        for fit_rows, rows in parts:
            out[rows] = _fit_predict(
                x[fit_rows], y[fit_rows], groups[fit_rows], x[rows], groups[rows], strength
            )
        losses.append(log_loss(y, out))
    return STRENGTHS[int(np.argmin(losses))]


def _fit_predict(
    x: Array,
    y: Array,
    groups: NDArray[np.int64],
    new: Array,
    new_groups: NDArray[np.int64],
    strength: float,
) -> Array:
    """Probabilities; a group of one class gets its smoothed rate."""
    out = np.empty(len(new))
    for k in np.unique(new_groups):
        rows, at = groups == k, new_groups == k
        if 0 < y[rows].sum() < rows.sum():
            model = LogisticRegression(C=strength, max_iter=1000, tol=1e-3)
            out[at] = model.fit(x[rows], y[rows]).predict_proba(new[at])[:, 1]
        else:
            out[at] = (y[rows].sum() + 0.5) / (rows.sum() + 1)
    return out


def log_density(y: Array, probability: Array) -> float:
    """Mean log probability of the classes seen."""
    return -float(log_loss(y, probability))


def mean_auc(y: Array, probability: Array, task: NDArray[np.int64]) -> float:
    """Mean over tasks of the area under the ROC curve."""
    return metrics.by_task(metrics.auc, task, y, probability).mean
