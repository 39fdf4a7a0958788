"""Predictions and per-task quantities with their intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bmm_multitask_learning.plots._canvas import (
    BLUE,
    DASHED,
    PALETTE,
    RASTERISE_FROM,
    VERMILION,
    Array,
    Floats,
    Integers,
    Mask,
    Names,
    Texts,
    as_array,
    as_names,
    axis,
    cluster_colours,
    counted,
    grid,
    ink,
    label_step,
    label_ticks,
    legend,
    legend_above,
    per_cent,
    points_long,
    tone,
    whole_ticks,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def predictions(
    y: Array,
    mean: Array,
    lower: Array,
    upper: Array,
    *,
    task: Names | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw observed against predicted values, with the intervals and what they miss.

    A vertical line is the interval of a row; the dashed line is where observed equals predicted.
    Rows whose target lies outside are drawn last, as crosses.

    Args:
        y: (N,) targets; NaN is ignored.
        mean: (N,) predicted means, in the units of y.
        lower: (N,) lower ends of the intervals.
        upper: (N,) upper ends of the intervals.
        task: (N,) task of each row: up to eight tasks are told apart by colour, more are
            summed up in the legend by the range of their coverages.
        ax: axis to draw on.

    Returns:
        The axis.

    Raises:
        ValueError: arrays of different length, or a lower end above its upper end.

    Example:
        >>> from matplotlib.figure import Figure
        >>> ax = predictions([1.0, 5.0], [1.2, 3.0], [0.0, 2.0], [2.0, 4.0],
        ...                  ax=Figure().subplots())
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['inside the interval: 1 of 2 rows (50.0 %)', 'outside: 1']
    """
    target = as_array(y, "y", ("N",))
    centre, low, high = _interval(mean, lower, upper, len(target))
    names = None if task is None else np.array(as_names(task, len(target), "task"))
    kept = np.isfinite(target)
    if not kept.any():
        raise ValueError("y has no observed target; nothing to compare the predictions with.")
    target, centre, low, high = target[kept], centre[kept], low[kept], high[kept]
    names = None if names is None else names[kept]
    inside = (target >= low) & (target <= high)

    ax = axis(ax, (6.0, 5.0))
    grid(ax)
    raster = len(target) >= RASTERISE_FROM
    alpha = float(np.clip(100 / len(target), 0.06, 0.5))
    grey = ink(ax, 0.45)
    ax.vlines(centre, low, high, colors=grey, linewidth=1.1, alpha=alpha, rasterized=raster)
    ax.axline((centre.mean(), centre.mean()), slope=1, color=ink(ax, 0.6), **DASHED)
    _rows(ax, centre, target, inside, names)
    bottom, top = min(low.min(), target.min()), max(high.max(), target.max())
    pad = 0.04 * (top - bottom or 1.0)
    ax.set_ylim(bottom - pad, top + pad)
    ax.margins(x=0.04)
    ax.set_xlabel("predicted")
    ax.set_ylabel("observed")
    legend_above(ax, columns=2)
    return ax


def _interval(
    mean: Array, lower: Array, upper: Array, size: int | str
) -> tuple[Floats, Floats, Floats]:
    centre = as_array(mean, "mean", (size,))
    low = as_array(lower, "lower", (len(centre),))
    high = as_array(upper, "upper", (len(centre),))
    if not all(np.isfinite(each).all() for each in (centre, low, high)):
        raise ValueError("mean, lower and upper must be finite; got NaN or inf in one of them.")
    if np.any(low > high):
        row = int(np.argmax(low > high))
        raise ValueError(
            f"lower must not exceed upper; got {low[row]:g} > {high[row]:g} at row {row}. "
            "Are the two swapped?"
        )
    return centre, low, high


def _rows(ax: Axes, centre: Floats, target: Floats, inside: Mask, names: Texts | None) -> None:
    count = len(centre)
    different = [] if names is None else list(dict.fromkeys(names.tolist()))
    by_colour = 1 < len(different) <= len(PALETTE)
    held, missed = np.full(count, tone(ax, BLUE)), np.full(count, tone(ax, VERMILION))
    if names is not None and by_colour:
        palette = dict(zip(different, cluster_colours(ax, len(different)), strict=True))
        held = missed = np.array([palette[name] for name in names.tolist()])
    many, raster = count >= 1000, count >= RASTERISE_FROM
    size = float(np.clip(6000 / count, 3.5, 22.0))
    for mask, colour, look in (
        (inside, held, {"s": size, "linewidths": 0, "alpha": 0.6 if many else 0.9}),
        (~inside, missed, {"s": 1.7 * size, "marker": "x", "linewidths": 0.7 if many else 1.3}),
    ):
        options: dict[str, Any] = {"zorder": 3, "rasterized": raster, **look}
        ax.scatter(centre[mask], target[mask], color=colour[mask], **options)
    _rows_legend(ax, inside, names, different if by_colour else [])


def _rows_legend(ax: Axes, inside: Mask, names: Texts | None, coloured: list[str]) -> None:
    grey = ink(ax, 0.6)
    proxy: dict[str, Any] = {"linestyle": "none", "markersize": 5}
    text = f"inside the interval: {inside.sum():,} of {counted(len(inside), 'row')}"
    text += f" ({per_cent(inside.mean(), 1)})"
    ax.plot([], [], "o", color=grey if coloured else tone(ax, BLUE), label=text, **proxy)
    if names is not None and not coloured:
        different, index = np.unique(names, return_inverse=True)
        share = np.bincount(index, inside) / np.bincount(index)
        spread = f"{per_cent(share.min())} to {per_cent(share.max())}"
        if len(different) > 1:
            ax.plot([], [], " ", label=f"by task: {spread} inside ({len(different)} tasks)")
    text = f"outside: {np.count_nonzero(~inside):,}"
    ax.plot([], [], "x", color=grey if coloured else tone(ax, VERMILION), label=text, **proxy)
    for colour, name in zip(cluster_colours(ax, len(coloured)), coloured, strict=True):
        ax.plot([], [], "o", color=colour, markeredgewidth=0, label=name, **proxy)


def forest(
    mean: Array,
    lower: Array,
    upper: Array,
    *,
    tasks: Names | None = None,
    reference: float | None = None,
    label: str = "estimate",
    ax: Axes | None = None,
) -> Axes:
    """Draw one quantity of each task with its interval, ranked from lowest to highest.

    Args:
        mean: (K,) estimates.
        lower: (K,) lower ends of the intervals.
        upper: (K,) upper ends of the intervals.
        tasks: K task names: all below the axis where they fit, else the three lowest and the
            three highest in the empty corner.
        reference: value to compare with; intervals wholly above or below it are coloured.
        label: the quantity with its unit.
        ax: axis to draw on.

    Returns:
        The axis.

    Raises:
        ValueError: arrays of different length, or a lower end above its upper end.

    Example:
        >>> from matplotlib.figure import Figure
        >>> ax = forest([0.4, -0.3], [0.1, -0.5], [0.7, 0.1], tasks=["a", "b"], reference=0.0,
        ...             ax=Figure().subplots())
        >>> [tick.get_text() for tick in ax.get_xticklabels()]
        ['b', 'a']
    """
    centre, low, high = _interval(mean, lower, upper, "K")
    count = len(centre)
    names = None if tasks is None else as_names(tasks, count)
    order = np.argsort(centre, kind="stable")
    centre, low, high = centre[order], low[order], high[order]

    ax = axis(ax, (9.0, 4.4))
    grid(ax, "y")
    ax.set_ylabel(label)
    spare = max(0.02 * count, (8 - count) / 2)
    ax.set_xlim(0.5 - spare, count + 0.5 + spare)
    room = points_long(ax, vertical=False) / (count + 2 * spare)
    for mask, colour, text in _sides(ax, low, high, reference):
        _caterpillar(ax, np.flatnonzero(mask), (centre, low, high), colour, text, room)
    if reference is not None:
        ax.axhline(reference, color=ink(ax, 0.55), **DASHED)
    ax.margins(y=0.06)
    _name_ranks(ax, count, None if names is None else [names[task] for task in order])
    legend(ax, loc="upper left")
    return ax


def _sides(
    ax: Axes, low: Floats, high: Floats, reference: float | None
) -> list[tuple[Mask, str, str | None]]:
    if reference is None:
        return [(np.ones(len(low), dtype=bool), tone(ax, BLUE), None)]
    above, below = low > reference, high < reference
    parts = [
        (above, tone(ax, BLUE), "above"),
        (~above & ~below, ink(ax, 0.5), "not told apart from"),
        (below, tone(ax, VERMILION), "below"),
    ]
    return [
        (mask, colour, f"{word} {reference:g}: {counted(int(mask.sum()), 'task')}")
        for mask, colour, word in parts
        if mask.any()
    ]


def _caterpillar(
    ax: Axes,
    places: Integers,
    estimate: tuple[Floats, Floats, Floats],
    colour: str,
    text: str | None,
    room: float,
) -> None:
    centre, low, high = (each[places] for each in estimate)
    ranks = places + 1
    width = float(np.clip(0.3 * room, 0.5, 2.2))
    lines = ax.vlines(ranks, low, high, colors=colour, linewidth=width, alpha=0.55)
    lines.set_rasterized(len(estimate[0]) >= RASTERISE_FROM)
    dot: dict[str, Any] = {
        "linestyle": "none",
        "marker": "o",
        "color": colour,
        "markeredgewidth": 0,
    }
    ax.plot(ranks, centre, markersize=float(np.clip(0.7 * room, 1.6, 5.5)), zorder=3, **dot)
    if text is not None:
        ax.plot([], [], markersize=5, label=text, **dot)


def _name_ranks(ax: Axes, count: int, names: list[str] | None) -> None:
    if names is not None and label_step(ax, count, vertical=False, size=6.5) == 1:
        room = points_long(ax, vertical=False) / max(8, count)
        flat = max(map(len, names)) * 6.0 < room
        size = 8.0 if flat else 6.5
        label_ticks(ax.xaxis, names, 1, first=1, rotation=0 if flat else 90, fontsize=size)
        return
    ax.set_xlabel(f"rank among {counted(count, 'task')}")
    whole_ticks(ax.xaxis)
    if names is not None and count > 1:
        # The ranking rises to the right, so this corner is empty.
        shown = min(3, count // 2)
        first, last = ", ".join(names[:shown]), ", ".join(names[: -shown - 1 : -1])
        ax.text(
            0.99,
            0.02,
            f"highest: {last}\nlowest: {first}",
            transform=ax.transAxes,
            ha="right",
            va="bottom",
            fontsize="small",
            color=ink(ax, 0.85),
            linespacing=1.5,
        )
