"""Metrics of probabilities."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import brier_score_loss, cohen_kappa_score, roc_auc_score

from bmm_multitask_learning.metrics.arrays import (
    Array,
    Floats,
    check_finite,
    numbers,
    observed,
)
from bmm_multitask_learning.metrics.tasks import by_task


def brier(y: Array, probability: Array) -> float:
    """Brier score: mean squared distance of probabilities from what happened.

    Binary: mean (p − y)², between 0 and 1.  C classes: mean Σ_c (p_c − [y = c])², between 0 and 2.

    Args:
        y: 0 or 1, shaped like probability; or (N,) classes 0..C-1.
        probability: of class 1, shaped like y; or (N, C), rows sum to 1.

    Returns:
        Lower is better.

    Raises:
        ValueError: shapes, labels or probabilities are out of range.

    Example:
        >>> brier([1, 0], [0.5, 0.0]), brier([2, 0], [[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
        (0.125, 1.0)
    """
    labels, table = _class_probabilities(y, probability)
    if not len(labels):
        return float("nan")
    if np.ndim(probability) == np.ndim(y):
        return float(brier_score_loss(labels, table[:, 1], labels=[0, 1], pos_label=1))
    classes = np.arange(table.shape[1])
    return float(brier_score_loss(labels, table, labels=classes, scale_by_half=False))


def expected_calibration_error(y: Array, probability: Array, *, num_bins: int = 15) -> float:
    """Mean gap between how sure predictions are and how often they are right.

    ECE = Σ_b n_b/N |accuracy_b − confidence_b|, over bins of equal width of the largest
    probability (Guo, Pleiss, Sun and Weinberger 2017). Pool tasks: on few rows the figure is far
    above 0 even when probabilities are perfect (about .046 on 400 rows, .012 on 6400).

    Args:
        y: 0 or 1, shaped like probability; or (N,) classes 0..C-1.
        probability: of class 1, shaped like y; or (N, C), rows sum to 1.
        num_bins: bins of [0, 1], closed on the right.

    Returns:
        Between 0 and 1; lower is better.

    Raises:
        ValueError: shapes, labels or probabilities are out of range, or num_bins < 1.

    Example:
        >>> round(expected_calibration_error([1, 1, 0, 0], [0.9, 0.9, 0.1, 0.9]), 3)
        0.15
    """
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, got {num_bins}.")
    labels, table = _class_probabilities(y, probability)
    if not len(labels):
        return float("nan")
    confidence, right = table.max(axis=1), table.argmax(axis=1) == labels
    edges = np.linspace(0.0, 1.0, num_bins + 1)
    index = np.searchsorted(edges[1:-1], confidence, side="left")
    gap = np.bincount(index, right - confidence, minlength=num_bins)
    return float(np.abs(gap).sum() / len(labels))


def auc(y: Array, probability: Array, task: Array | None = None) -> float:
    """Area under the ROC curve; with `task`, its mean over the tasks that have both classes.

    `by_task(auc, task, y, probability)` gives the tasks' figures and how many tasks were skipped.

    Args:
        y: (N,) 0 or 1.
        probability: (N,) probability of 1, or any score that ranks.
        task: (N,) labels.

    Returns:
        Between 0 and 1, ½ for a ranking at random; NaN where only one class is there.

    Raises:
        ValueError: shapes differ, a label is neither 0 nor 1, or a score is not finite.

    Example:
        >>> auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
        0.75
        >>> auc([0, 1, 1, 1], [0.2, 0.9, 0.1, 0.3], task=["a", "a", "b", "b"])
        1.0
    """
    if task is not None:
        return by_task(auc, task, y, probability).mean
    labels, scores = observed(y, probability=probability)
    _check_classes(labels, 2)
    if len(np.unique(labels)) < 2:
        return float("nan")
    return float(roc_auc_score(labels, scores))


def quadratic_weighted_kappa(y: Array, predicted: Array) -> float:
    """Agreement of ordered classes beyond chance, errors weighed by the square of their size.

    κ = 1 − N Σ_n (y_n − ŷ_n)² / Σ_nm (y_n − ŷ_m)²: the squared error over that of the same
    predictions given to rows at random (Cohen 1968).

    Args:
        y: (N,) numbers of the classes in their order, 0, 1, ...
        predicted: (N,) predicted numbers.

    Returns:
        At most 1; 0 for predictions at random; NaN where y and predictions are all one class.

    Raises:
        ValueError: shapes differ, or a value is no whole number >= 0.

    Example:
        >>> quadratic_weighted_kappa([0, 1, 2, 3], [0, 1, 2, 3])
        1.0
        >>> round(quadratic_weighted_kappa([0, 1, 2, 3], [1, 1, 2, 2]), 3)
        0.667
    """
    labels, guesses = observed(y, predicted=predicted)
    if not len(labels):
        return float("nan")
    num_classes = int(max(labels.max(), guesses.max(), 0)) + 1
    _check_classes(labels, num_classes)
    _check_classes(guesses, num_classes)
    if np.ptp(np.concatenate([labels, guesses])) == 0:
        return float("nan")
    classes = np.arange(num_classes)
    return float(cohen_kappa_score(labels, guesses, labels=classes, weights="quadratic"))


def _class_probabilities(y: Array, probability: Array) -> tuple[NDArray[np.int64], Floats]:
    """Observed labels (n,) and the probabilities (n, C) of their classes."""
    targets, given = numbers(y), numbers(probability)
    if given.shape == targets.shape:
        labels, positive = observed(y, probability=probability)
        table = np.column_stack([1 - positive, positive])
    elif targets.ndim == 1 and given.ndim == 2 and len(given) == len(targets):
        seen = ~np.isnan(targets)
        labels, table = targets[seen], given[seen]
        check_finite("probability", table)
    else:
        raise ValueError(
            f"probability must be shaped like y, {targets.shape}, or ({len(targets)}, C) for "
            f"classes; got {given.shape}."
        )
    _check_classes(labels, table.shape[1])
    if (table < 0).any() or (table > 1).any():
        raise ValueError(
            "probability must lie in 0..1; got values from "
            f"{table.min():.4g} to {table.max():.4g}. Are these logits?"
        )
    total = table.sum(axis=1, keepdims=True)
    if not np.allclose(total, 1, atol=1e-4):  # float32 softmax over many classes is off by 1e-5
        raise ValueError(
            "the probabilities of a row must sum to 1; got sums from "
            f"{total.min():.4g} to {total.max():.4g}."
        )
    return labels.astype(np.int64), table / total


def _check_classes(labels: Floats, num_classes: int) -> None:
    wrong = ~np.isin(labels, np.arange(num_classes))
    if wrong.any():
        raise ValueError(
            f"y must hold whole numbers in 0..{num_classes - 1}; got {labels[wrong][0]:g}. "
            "Encode the labels, as MultitaskClassifier does."
        )
