"""Metrics of numeric predictions: their error, their density, their intervals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.metrics import r2_score, root_mean_squared_error

from bmm_multitask_learning.metrics.arrays import (
    Array,
    Floats,
    aligned,
    average,
    check_finite,
    numbers,
    observed,
    task_index,
)


def explained_variance(
    y: Array,
    mean: Array,
    task: Array | None = None,
    definition: Literal["global", "within", "taskmean"] = "global",
) -> float:
    """Share of the targets' variation that predictions explain, in one of three definitions.

    "global"    1 − Σ(y−f)² / Σ(y−ȳ)², ȳ the mean over all rows (R²);
    "within"    1 − Σ(y−f)² / Σ(y−ȳ_task)², around each task's own mean;
    "taskmean"  the mean over tasks of 1 − Σ_task(y−f)² / Σ_task(y−ȳ_task)².

    The three differ by far on the same predictions; say which one a figure is. All means are those
    of the rows given. "taskmean" leaves out tasks whose targets do not vary. Several outputs: the
    mean of the outputs' figures.

    Args:
        y: (N,) or (N, O) targets.
        mean: predictions, shaped like y.
        task: (N,) labels; not needed for "global".
        definition: one of the above.

    Returns:
        At most 1; NaN where the targets do not vary at all.

    Raises:
        ValueError: shapes differ, a prediction is not finite, `task` is missing, or the definition
            is none of the three.

    Example:
        >>> y, mean, task = [0.0, 2.0, 10.0, 12.0], [1.0, 1.0, 11.0, 11.0], ["a", "a", "b", "b"]
        >>> round(explained_variance(y, mean), 3), explained_variance(y, mean, task, "within")
        (0.962, 0.0)
    """
    targets, means = aligned(y, mean=mean)
    if definition == "global":
        return _over_outputs(_around_one_mean, targets, means)
    if definition not in ("within", "taskmean"):
        raise ValueError(
            f"definition must be 'global', 'within' or 'taskmean', got {definition!r}."
        )
    if task is None:
        raise ValueError(f"definition={definition!r} needs the task of each row: task=...")
    index = task_index(task, len(targets))[1]
    measure = _around_task_means if definition == "within" else _mean_over_tasks
    return _over_outputs(measure, targets, means, index)


def _around_one_mean(y: Floats, mean: Floats, _: NDArray[np.int64]) -> float:
    return float(r2_score(y, mean)) if np.ptp(y) > 0 else float("nan")


def _around_task_means(y: Floats, mean: Floats, task: NDArray[np.int64]) -> float:
    error, variation = _sums_by_task(y, mean, task)
    return float(1 - error.sum() / variation.sum()) if variation.any() else float("nan")


def _mean_over_tasks(y: Floats, mean: Floats, task: NDArray[np.int64]) -> float:
    error, variation = _sums_by_task(y, mean, task)
    varies = variation > 0
    return average(1 - error[varies] / variation[varies])


def _sums_by_task(y: Floats, mean: Floats, task: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """(K,) Σ (y−f)² and Σ (y−ȳ_task)² of each task; the latter 0 where the targets are equal."""
    centre = np.bincount(task, y) / np.maximum(np.bincount(task), 1)
    error = np.bincount(task, (y - mean) ** 2).astype(np.float64)
    variation = np.bincount(task, (y - centre[task]) ** 2)
    rounding = 1e-28 * np.bincount(task, y**2)  # of equal targets around their computed mean
    return error, np.where(variation > rounding, variation, 0.0)


def _over_outputs(
    measure: Callable[[Floats, Floats, NDArray[np.int64]], float],
    y: Floats,
    mean: Floats,
    task: NDArray[np.int64] | None = None,
) -> float:
    """Mean over outputs of a measure of each output's observed rows."""
    rows = np.zeros(len(y), dtype=np.int64) if task is None else task
    figures = []
    for target, prediction in zip(np.atleast_2d(y.T), np.atleast_2d(mean.T), strict=True):
        seen = ~np.isnan(target)
        part = target[seen], prediction[seen], rows[seen]
        figures.append(measure(*part) if seen.any() else np.nan)
    return float(np.mean(figures))


def rmse(y: Array, mean: Array) -> float:
    """Root of the mean squared error, in the targets' units.

    Args:
        y: (N,) or (N, O) targets; of several outputs the mean of their figures is taken.
        mean: predictions, shaped like y.

    Returns:
        √ mean (y−f)².

    Raises:
        ValueError: shapes differ or a prediction is not finite.

    Example:
        >>> rmse([1.0, 2.0, float("nan")], [4.0, 5.0, 0.0])
        3.0
    """
    targets, means = aligned(y, mean=mean)
    return _over_outputs(lambda y, f, _: float(root_mean_squared_error(y, f)), targets, means)


def mean_log_predictive_density(log_prob: Array) -> float:
    """Mean of log p(y_n | x_n, training data): higher is better, in nats a row.

    Args:
        log_prob: log densities of any shape, as `Prediction.log_prob` gives them; NaN is ignored.

    Returns:
        Their mean; -inf where a target was held impossible.

    Example:
        >>> mean_log_predictive_density([-1.0, -2.0, float("nan")])
        -1.5
    """
    values = numbers(log_prob)
    return average(values[~np.isnan(values)])


def crps(y: Array, mean: Array, std: Array) -> float:
    """Continuous ranked probability score of normal predictions: lower is better, in y's units.

    CRPS = σ [ z (2Φ(z) − 1) + 2φ(z) − 1/√π ],   z = (y − μ)/σ;   |y − μ| where σ = 0.

    Gneiting and Raftery (2007), "Strictly proper scoring rules, prediction, and estimation".

    Args:
        y: targets.
        mean: μ, shaped like y.
        std: σ ≥ 0 with the noise in it, shaped like y.

    Returns:
        The mean over observed targets.

    Raises:
        ValueError: shapes differ, a prediction is not finite, or a std is negative.

    Example:
        >>> round(crps([0.0], [0.0], [1.0]), 4)
        0.2337
    """
    targets, means, stds = observed(y, mean=mean, std=std)
    if (stds < 0).any():
        raise ValueError(f"std must be >= 0, got a smallest value of {stds.min()}.")
    error = np.abs(targets - means)
    z = np.divide(error, stds, out=np.zeros_like(error), where=stds > 0)
    score = stds * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / np.sqrt(np.pi))
    return average(np.where(stds > 0, score, error))


def crps_samples(y: Array, samples: Array) -> float:
    """Continuous ranked probability score from draws of the predictions, without bias.

    CRPS = E|X − y| − ½ E|X − X'|, both means over the S draws, the second over pairs of different
    ones.

    Args:
        y: (N,) or (N, O) targets.
        samples: (S, N) or (S, N, O) draws, S ≥ 2.

    Returns:
        The mean over observed targets.

    Raises:
        ValueError: a draw is not shaped like y, there are fewer than two, or one is not finite.

    Example:
        >>> crps_samples([1.0], [[0.0], [4.0]])
        0.0
    """
    targets, draws = numbers(y), numbers(samples)
    if draws.shape[1:] != targets.shape or len(draws) < 2:
        raise ValueError(
            f"samples must hold at least 2 draws shaped like y, so (S, "
            f"{', '.join(map(str, targets.shape))}); got shape {draws.shape}."
        )
    seen = ~np.isnan(targets)
    check_finite("samples", draws[:, seen])
    ordered = np.sort(draws[:, seen], axis=0)
    num_draws = len(ordered)
    # Σ_{i<j} (x_(j) − x_(i)) = Σ_i (2i − S − 1) x_(i), i = 1..S in rising order
    rank = 2 * np.arange(1, num_draws + 1) - num_draws - 1
    spread = np.einsum("s,sn->n", rank, ordered) / (num_draws * (num_draws - 1))
    return average(np.abs(ordered - targets[seen]).mean(axis=0) - spread)


def interval_coverage(y: Array, lower: Array, upper: Array) -> float:
    """Share of the targets that lie inside their intervals, the ends included.

    Args:
        y: targets.
        lower: lower ends, shaped like y.
        upper: upper ends, shaped like y.

    Returns:
        Between 0 and 1; honest 90 % intervals give about 0.9.

    Raises:
        ValueError: shapes differ, an end is not finite, or a lower end exceeds its upper end.

    Example:
        >>> interval_coverage([0.0, 5.0], [-1.0, -1.0], [1.0, 1.0])
        0.5
    """
    targets, low, high = observed(y, lower=lower, upper=upper)
    _check_ends(low, high)
    return average((low <= targets) & (targets <= high))


def interval_width(lower: Array, upper: Array) -> float:
    """Mean width of intervals, in the targets' units.

    Args:
        lower: lower ends.
        upper: upper ends, shaped like lower.

    Returns:
        mean(upper − lower).

    Raises:
        ValueError: shapes differ, or a lower end exceeds its upper end.

    Example:
        >>> interval_width([-1.0, 0.0], [1.0, 4.0])
        3.0
    """
    low, high = observed(lower, upper=upper)
    _check_ends(low, high)
    return average(high - low)


def _check_ends(lower: Floats, upper: Floats) -> None:
    crossed = int((lower > upper).sum())
    if crossed:
        raise ValueError(f"lower must not exceed upper; it does for {crossed} rows. Swapped?")
