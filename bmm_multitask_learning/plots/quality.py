"""Do probabilities and intervals keep their promise?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from scipy.stats import binom
from torch import Tensor

from bmm_multitask_learning.plots._canvas import (
    DASHED,
    PALETTE,
    Array,
    Floats,
    as_array,
    axis,
    counted,
    grid,
    ink,
    legend_above,
    paper,
    per_cent,
    tone,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Interval: TypeAlias = "Array | tuple[Array, Array]"


def calibration(
    nominal: Array,
    observed: Array,
    *,
    counts: Array | None = None,
    label: str = "model",
    ax: Axes | None = None,
) -> Axes:
    """Draw observed frequencies against the probabilities that were promised.

    With `counts`, a grey band holds 95 % of what a perfectly calibrated model would show at each
    point, by the binomial distribution of independent rows. `coverage` and `reliability` compute
    the frequencies and call this.

    Args:
        nominal: (L,) promised probabilities.
        observed: (L,) frequencies with which the promise came true; NaN where unknown.
        counts: (L,) or a scalar, rows behind each frequency.
        label: what the legend calls the curve; call again with the same axis to compare models.
        ax: axis to draw on.

    Returns:
        The axis.

    Raises:
        ValueError: shapes that differ, or values outside [0, 1].

    Example:
        >>> from matplotlib.figure import Figure
        >>> ax = calibration([0.5, 0.9], [0.48, 0.93], counts=200, ax=Figure().subplots())
        >>> ax.lines[-1].get_ydata()
        array([0.48, 0.93])
    """
    promised = _probabilities(nominal, "nominal", "L")
    seen = _probabilities(observed, "observed", len(promised))
    rows = None if counts is None else _counts(counts, len(promised))
    order = np.argsort(promised, kind="stable")
    promised, seen = promised[order], seen[order]
    first = ax is None or not ax.has_data()

    ax = axis(ax, (4.8, 4.6))
    if first:
        grid(ax)
        ax.plot([0, 1], [0, 1], color=ink(ax, 0.5), **DASHED)
        if rows is not None:
            _binomial_band(ax, promised, rows[order])
    kept = np.isfinite(seen)
    curves = sum(line.get_marker() == "o" for line in ax.lines)
    colour = tone(ax, PALETTE[curves % len(PALETTE)])
    look: dict[str, Any] = {
        "marker": "o",
        "markersize": 5,
        "linewidth": 1.5,
        "markeredgecolor": paper(ax),
    }
    ax.plot(promised[kept], seen[kept], color=colour, label=label, zorder=3, **look)
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    ax.set_aspect("equal")
    ax.set_xlabel("promised probability")
    ax.set_ylabel("observed frequency")
    legend_above(ax, columns=2)
    return ax


def coverage(
    y: Array,
    interval: Callable[[float], Interval],
    *,
    levels: Sequence[float] | None = None,
    label: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw how often central intervals hold the target, at every nominal level.

    Args:
        y: (N,) targets; NaN is ignored.
        interval: gives the central interval at a level, as (lower, upper) or as an (N, 2) array;
            a prediction's own method serves: `coverage(y, prediction.interval)`.
        levels: nominal levels between 0 and 1; by default 5 % to 95 % in steps of 5 %.
        label: what the legend calls the curve; by default the coverage nearest to 90 %.
        ax: axis to draw on.

    Returns:
        The axis, in per cent.

    Raises:
        ValueError: intervals whose length is not N, or levels outside (0, 1).

    Example:
        >>> from matplotlib.figure import Figure
        >>> from scipy.stats import norm
        >>> y = norm.ppf((0.5 + np.arange(400)) / 400)
        >>> ax = coverage(y, lambda level: norm.interval(level, np.zeros(400)),
        ...               levels=[0.5, 0.9], ax=Figure().subplots())
        >>> ax.lines[-1].get_ydata()
        array([0.5, 0.9])
    """
    from matplotlib.ticker import PercentFormatter

    target = as_array(y, "y", ("N",))
    grid_levels = np.linspace(0.05, 0.95, 19) if levels is None else levels
    nominal = as_array(grid_levels, "levels", ("L",))
    if not np.all((nominal > 0) & (nominal < 1)):
        raise ValueError(f"levels must lie between 0 and 1; got {nominal.tolist()}.")
    kept = np.isfinite(target)
    if not kept.any():
        raise ValueError("y has no observed target; nothing to compare the intervals with.")
    share = np.empty(len(nominal))
    for index, level in enumerate(nominal):
        lower, upper = _bounds(interval(float(level)), len(target))
        share[index] = np.mean((target >= lower)[kept] & (target <= upper)[kept])
    near = int(np.argmin(np.abs(nominal - 0.9)))
    default = f"{per_cent(nominal[near])} intervals hold {per_cent(share[near], 1)}"
    count = int(kept.sum())
    ax = calibration(nominal, share, counts=count, label=label or default, ax=ax)
    for each in (ax.xaxis, ax.yaxis):
        each.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    ax.set_xlabel("nominal level of the central interval")
    ax.set_ylabel(f"share of {counted(count, 'row')} inside")
    return ax


def reliability(
    y: Array,
    probability: Array,
    *,
    bins: int = 15,
    label: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw how often an event happens among the rows that were given about the same probability.

    The bars at the foot count the rows of each bin. For several classes the event is that the most
    probable class is the true one, and the mean gap is `metrics.expected_calibration_error`.

    Args:
        y: (N,) labels 0/1, or classes 0..O-1; NaN is ignored.
        probability: (N,) probabilities of label 1, or (N, O) of each class.
        bins: number of bins of equal width, closed on the right.
        label: what the legend calls the curve; by default the mean gap over rows
            between the curve and the diagonal.
        ax: axis to draw on.

    Returns:
        The axis.

    Raises:
        ValueError: labels or probabilities outside their range, or fewer than one bin.

    Example:
        >>> from matplotlib.figure import Figure
        >>> ax = reliability([0, 0, 1, 1], [0.2, 0.2, 0.9, 0.9], bins=5, ax=Figure().subplots())
        >>> ax.lines[-1].get_xydata()
        array([[0.2, 0. ],
               [0.9, 1. ]])
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1; got {bins}.")
    event, chance, classes = _events(y, probability)
    place = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], chance, side="left")
    counts = np.bincount(place, minlength=bins).astype(np.float64)
    used = counts > 0
    promised = np.bincount(place, chance, minlength=bins)[used] / counts[used]
    seen = np.bincount(place, event, minlength=bins)[used] / counts[used]
    gap = float(np.sum(counts[used] * np.abs(promised - seen)) / counts.sum())
    text = label or f"mean gap to the diagonal {gap:.3f}"
    foot = ax is None or not ax.has_data()
    ax = calibration(promised, seen, counts=counts[used], label=text, ax=ax)
    if foot:
        _foot_histogram(ax, counts)
    several = classes > 2
    ax.set_xlabel("probability of the most probable class" if several else "predicted probability")
    ax.set_ylabel("share of rows where it is right" if several else "share of rows with label 1")
    return ax


def _probabilities(value: Array, name: str, size: int | str) -> Floats:
    array = as_array(value, name, (size,))
    if np.any((array < 0) | (array > 1)):
        raise ValueError(
            f"{name} must lie between 0 and 1; got {np.nanmin(array):.3g} to "
            f"{np.nanmax(array):.3g}. Divide per cent by 100."
        )
    return array


def _counts(counts: Array, size: int) -> Floats:
    host = counts.detach().cpu().numpy() if isinstance(counts, Tensor) else np.asarray(counts)
    rows = np.full(size, float(host)) if host.ndim == 0 else as_array(counts, "counts", (size,))
    if rows.min() < 1:
        raise ValueError(f"counts must be at least 1 row each; got {rows.min():g}.")
    return rows


def _binomial_band(ax: Axes, promised: Floats, rows: Floats) -> None:
    low, high = (binom.ppf(tail, rows, promised) / rows for tail in (0.025, 0.975))
    shade: dict[str, Any] = {"color": ink(ax, 0.13), "linewidth": 0, "zorder": 1.2}
    ax.fill_between(promised, low, high, label="95 % of calibrated models", **shade)


def _bounds(interval: Interval, size: int) -> tuple[Floats, Floats]:
    if isinstance(interval, tuple):
        lower, upper = interval
        return as_array(lower, "lower", (size,)), as_array(upper, "upper", (size,))
    both = as_array(interval, "interval", (size, 2))
    return both[:, 0], both[:, 1]


def _events(y: Array, probability: Array) -> tuple[Floats, Floats, int]:
    label = as_array(y, "y", ("N",))
    host = probability.detach().cpu().numpy() if isinstance(probability, Tensor) else probability
    shape: tuple[int | str, ...] = (len(label), "O") if np.ndim(host) == 2 else (len(label),)
    chance = as_array(host, "probability", shape)
    if np.any((chance < 0) | (chance > 1)) or not np.all(np.isfinite(chance)):
        raise ValueError("probability must lie between 0 and 1; pass probabilities, not logits.")
    classes = chance.shape[1] if chance.ndim == 2 else 2
    kept = np.isfinite(label)
    if not np.all(np.isin(label[kept], np.arange(classes))):
        raise ValueError(
            f"y must hold labels 0..{classes - 1}; got {np.unique(label[kept])[:5].tolist()}. "
            "Encode the labels as integers first."
        )
    if not kept.any():
        raise ValueError("y has no observed label; nothing to compare the probabilities with.")
    label, chance = label[kept], chance[kept]
    if chance.ndim == 1:
        return label, chance, classes
    return (chance.argmax(1) == label).astype(np.float64), chance.max(1), classes


def _foot_histogram(ax: Axes, counts: Floats) -> None:
    # The bars fill the lowest sixth of the axis; the right-hand scale gives their rows.
    largest = counts.max()
    height = 1 / 6
    edges = np.arange(len(counts)) / len(counts)
    width = 1 / len(counts)
    look: dict[str, Any] = {
        "color": ink(ax, 0.22),
        "edgecolor": paper(ax),
        "linewidth": 1,
        "zorder": 1,
    }
    ax.bar(edges, counts / largest * height, width=width, align="edge", **look)
    rows = largest / height
    scale = (lambda share: np.multiply(share, rows), lambda count: np.divide(count, rows))
    right = ax.secondary_yaxis("right", functions=scale)
    right.set_yticks([0, largest], ["0", f"{int(largest):,}"], fontsize="x-small")
    right.set_ylabel("rows in bin", loc="bottom", fontsize="x-small", color=ink(ax, 0.6))
    right.tick_params(length=2, color=ink(ax, 0.45), labelcolor=ink(ax, 0.6))
    right.spines["right"].set_visible(False)
