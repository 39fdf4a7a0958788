"""Shrinkage of task weights towards their cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bmm_multitask_learning.plots._canvas import (
    Array,
    Floats,
    Integers,
    Names,
    Texts,
    as_array,
    as_labels,
    as_names,
    axis,
    cluster_colours,
    counted,
    grid,
    ink,
    legend_above,
    paper,
    settle,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox

# More task names than this on one scatter are a wall of text.
_MOST_NAMES = 12
_MOST_TRIED = 60


def shrinkage(
    own: Array,
    fitted: Array,
    *,
    centres: Array | None = None,
    assignment: Array | None = None,
    names: Sequence[str] | None = None,
    tasks: Names | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw an arrow for each task, from what its own rows say to what the model infers.

    The limits follow the fitted weights and the bulk of the own estimates: a task with few rows
    may have an own estimate far away, whose arrow then comes in from outside; the x label says
    how many do.

    Args:
        own: (K, 2) estimates of two weights from each task's rows alone; NaN gives no arrow.
        fitted: (K, 2) posterior means of the same two weights.
        centres: (C, 2) cluster centres.
        assignment: (K,) index of each task's cluster, 0..C-1.
        names: the names, with units, of the two weights.
        tasks: K task names; those that moved most within the picture are named.
        ax: axis to draw on.

    Returns:
        The axis.

    Raises:
        ValueError: shapes that do not fit together.

    Example:
        >>> from matplotlib.figure import Figure
        >>> own, fitted = [[0.0, 2.0], [4.0, 1.0]], [[1.0, 1.8], [2.5, 1.2]]
        >>> ax = shrinkage(own, fitted, names=("intercept", "slope"), ax=Figure().subplots())
        >>> ax.get_ylabel()
        'slope'
    """
    start = as_array(own, "own", ("K", 2))
    end = as_array(fitted, "fitted", (len(start), 2))
    middle = None if centres is None else as_array(centres, "centres", ("C", 2))
    group = _groups(assignment, len(start), None if middle is None else len(middle))
    labels = None if tasks is None else np.array(as_names(tasks, len(start)))
    across, up = as_names(names or ("first weight", "second weight"), 2, "names")
    if not np.isfinite(end).all():
        raise ValueError("fitted must be finite; got NaN or inf. Did the fit converge?")
    known = np.isfinite(start).all(1)

    ax = axis(ax, (6.4, 5.2))
    grid(ax)
    low, high = _limits(start[known], end, middle)
    colours = np.array(cluster_colours(ax, int(group.max()) + 1))
    _arrows(ax, start[known], end[known], colours[group[known]])
    _fitted(ax, end, colours[group])
    if middle is not None:
        _centres(ax, middle, colours)
    _legend_groups(ax, group, colours)
    ax.set_xlim(low[0], high[0])
    ax.set_ylim(low[1], high[1])
    inside = known & ((start >= low) & (start <= high)).all(1)
    ax.set_xlabel(
        "\n".join([across, *_left_out(int(known.sum() - inside.sum()), int(np.sum(~known)))])
    )
    ax.set_ylabel(up)
    legend_above(ax, columns=3)
    if labels is not None:
        _name_movers(ax, start[inside], end[inside], labels[inside])
    return ax


def _left_out(outside: int, unknown: int) -> list[str]:
    parts = []
    if outside:
        parts.append(f"{counted(outside, 'own estimate')} outside the picture")
    if unknown:
        parts.append(f"{counted(unknown, 'task')} without an own estimate")
    return [f"({', '.join(parts)})"] if parts else []


def _groups(assignment: Array | None, tasks: int, clusters: int | None) -> Integers:
    if assignment is None:
        return np.zeros(tasks, dtype=np.int64)
    group = as_labels(assignment, "assignment", tasks)
    if clusters is not None and group.max() >= clusters:
        raise ValueError(
            f"assignment must lie in 0..{clusters - 1}, as centres has {clusters} rows; "
            f"got {group.max()}."
        )
    return group


def _limits(start: Floats, end: Floats, middle: Floats | None) -> tuple[Floats, Floats]:
    # Fitted weights and centres are all inside; own estimates as far as Tukey's fences, and
    # never beyond the central 95 %.
    shown = [end] if middle is None else [end, middle]
    if len(start):
        tail, quarter, three, head = np.quantile(start, [0.025, 0.25, 0.75, 0.975], axis=0)
        fence = 1.5 * (three - quarter)
        shown.append(np.maximum(tail, quarter - fence)[None])
        shown.append(np.minimum(head, three + fence)[None])
    everything = np.vstack(shown)
    low, high = everything.min(0), everything.max(0)
    flat = np.maximum(1e-3, 0.05 * np.abs(high))
    span = np.where(high > low, high - low, flat)
    return low - 0.06 * span, high + 0.06 * span


def _arrows(ax: Axes, start: Floats, end: Floats, colour: Texts) -> None:
    many = len(start) > 200
    step = end - start
    ax.scatter(
        start[:, 0],
        start[:, 1],
        s=7 if many else 20,
        facecolors="none",
        edgecolors=list(colour),
        linewidths=0.5 if many else 0.9,
        alpha=0.35 if many else 0.75,
        zorder=2,
    )
    ax.quiver(
        start[:, 0],
        start[:, 1],
        step[:, 0],
        step[:, 1],
        angles="xy",
        scale_units="xy",
        scale=1.0,
        color=colour,
        units="inches",
        width=0.006 if many else 0.012,
        headwidth=5.0,
        headlength=6.0,
        headaxislength=5.2,
        minlength=0.1,
        alpha=0.22 if many else 0.5,
        zorder=2.5,
    )
    label: dict[str, Any] = {"linestyle": "none", "marker": "o", "label": "own rows alone"}
    ax.plot([], [], color=ink(ax, 0.6), markerfacecolor="none", markersize=5, **label)


def _fitted(ax: Axes, end: Floats, colour: Texts) -> None:
    many = len(end) > 200
    size, edge = (9, 0.25) if many else (26, 0.6)
    ax.scatter(end[:, 0], end[:, 1], s=size, c=colour, edgecolors=paper(ax), linewidths=edge,
               zorder=3)  # fmt: skip
    label: dict[str, Any] = {"linestyle": "none", "marker": "o", "label": "posterior mean"}
    ax.plot([], [], color=ink(ax, 0.6), markeredgewidth=0, markersize=5, **label)


def _legend_groups(ax: Axes, group: Integers, colours: Texts) -> None:
    sizes = np.bincount(group, minlength=len(colours))
    if len(colours) > 1:
        for index, (size, colour) in enumerate(zip(sizes, colours, strict=True)):
            text = f"cluster {index + 1}: {counted(int(size), 'task')}"
            ax.plot([], [], "o", color=colour, markersize=5, label=text)


def _centres(ax: Axes, middle: Floats, colours: Texts) -> None:
    shades = cluster_colours(ax, len(middle)) if len(middle) > 1 else list(colours[:1])
    look: dict[str, Any] = {"marker": "X", "edgecolors": paper(ax), "linewidths": 1.3}
    ax.scatter(middle[:, 0], middle[:, 1], s=150, c=shades, zorder=5, **look)
    word = "centre" if len(middle) == 1 else "cluster centres"
    ax.plot([], [], "X", color=ink(ax, 0.6), markersize=8, markeredgewidth=0, label=word)


def _name_movers(ax: Axes, start: Floats, end: Floats, labels: Texts) -> None:
    # Greedy: longest arrow first, at the arrow's tail; a name that would cover a point or
    # another name is left out.
    settle(ax)
    tail, head = ax.transData.transform(start), ax.transData.transform(end)
    taken: list[Bbox] = []
    longest = np.argsort(-np.linalg.norm(head - tail, axis=1), kind="stable")
    for task in longest[:_MOST_TRIED]:
        away = np.where(tail[task] >= head[task], 1, -1)
        text = ax.annotate(
            labels[task],
            (float(start[task, 0]), float(start[task, 1])),
            xytext=(5 * away[0], 4 * away[1]),
            textcoords="offset points",
            ha="left" if away[0] > 0 else "right",
            va="bottom" if away[1] > 0 else "top",
            fontsize="x-small",
            color=ink(ax, 0.8),
            zorder=6,
        )
        box = text.get_window_extent()
        if _is_free(box, ax.get_window_extent(), np.vstack([tail, head]), taken):
            taken.append(box)
        else:
            text.remove()
        if len(taken) == _MOST_NAMES:
            return


def _is_free(box: Bbox, frame: Bbox, points: Floats, taken: list[Bbox]) -> bool:
    inside = (
        frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
    )
    return inside and not box.padded(3).count_contains(points) and not box.count_overlaps(taken)
