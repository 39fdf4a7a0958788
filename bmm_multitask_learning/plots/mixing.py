"""Who borrows from whom: weights between tasks as a directed graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bmm_multitask_learning.plots._canvas import (
    BLUE,
    RASTERISE_FROM,
    Array,
    Floats,
    Names,
    as_array,
    as_names,
    axis,
    counted,
    ink,
    no_ticks,
    tone,
)
from bmm_multitask_learning.plots.structure import leaf_order

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# An arrow that carries the whole weight of a task, in points.
_WIDEST = 5.0
# How far an arrow bends from its chord: those of a pair that borrows both ways lie apart.
_BEND = 0.12
# Beyond this many tasks names around the circle would run into each other.
_MOST_NAMES = 60


def mixing(
    matrix: Array, *, tasks: Names | None = None, least: float = 0.1, ax: Axes | None = None
) -> Axes:
    r"""Draw weights between tasks as arrows from the task that lends to the one that borrows.

    Tasks stand on a circle, those that borrow from each other side by side. An arrow's width is
    its weight, a task's dot grows with what it lends, $\sum_t \alpha_{ti}$. Weights below `least`
    are left out; the share of the others in the whole stands below. The same matrix as a heat
    map: `plots.relations`.

    Args:
        matrix: (K, K) $\alpha$, such as `VariationalWeighting.mixing`: row t says what task t
            borrows from each other task; the diagonal is not drawn.
        tasks: K task names, written where there are at most 60.
        least: the smallest weight that is drawn.
        ax: axis to draw on.

    Returns:
        The axis.

    Raises:
        ValueError: a matrix that is not square, or has entries that are negative or not finite;
            `least` that is not positive; names that are not K.

    Example:
        >>> from matplotlib.figure import Figure
        >>> alpha = [[0.0, 1.0, 0.0], [0.5, 0.0, 0.5], [0.0, 1.0, 0.0]]
        >>> ax = mixing(alpha, tasks=["a", "b", "c"], ax=Figure().subplots())
        >>> len(ax.collections[0].get_paths())
        4
    """
    weights = as_array(matrix, "matrix", ("K", "K"))
    count = len(weights)
    if weights.shape[1] != count:
        raise ValueError(f"matrix must be square, tasks by tasks; got {weights.shape}.")
    if not (np.isfinite(weights) & (weights >= 0)).all():
        raise ValueError(
            "matrix must hold finite weights that are not negative. Correlations, which may be "
            "negative, have a picture of their own: plots.relations."
        )
    if not least > 0:
        raise ValueError(f"least must be positive; got {least}.")
    names = None if tasks is None else as_names(tasks, count)
    weights = weights * (1 - np.eye(count))
    # neighbours are tasks that borrow from each other, or from the same others
    near = np.eye(count) + weights + weights.T
    angle = np.empty(count)
    angle[leaf_order(near @ near)] = np.pi / 2 - 2 * np.pi * np.arange(count) / count
    place = np.stack([np.cos(angle), np.sin(angle)], 1)

    ax = axis(ax, (5.6, 5.8))
    ax.set_aspect("equal")
    for side in ax.spines.values():
        side.set_visible(False)
    no_ticks(ax.xaxis)
    no_ticks(ax.yaxis)
    borrower, lender = np.nonzero(weights >= least)
    _arrows(ax, place[lender], place[borrower], weights[borrower, lender])
    lent = weights.sum(0)
    raster = count >= RASTERISE_FROM
    size = 12 + 60 * lent / max(1.0, float(lent.max()))
    ax.scatter(place[:, 0], place[:, 1], s=size, color=ink(ax, 0.75), zorder=3, rasterized=raster)
    room = 1.12
    if names is not None and count <= _MOST_NAMES:
        _names(ax, angle, names)
        room = 1.2 + 0.05 * max(map(len, names))
    ax.set_xlim(-room, room)
    ax.set_ylim(-room, room)
    total = float(weights.sum())
    shown = float(weights[borrower, lender].sum()) / total if total else 0.0
    ax.set_xlabel(
        f"{counted(count, 'task')}; weights from {least:g} on, {100 * shown:.0f} % of the whole"
    )
    return ax


def _arrows(ax: Axes, start: Floats, end: Floats, weight: Floats) -> None:
    """Curves from start to end (n, 2), bent to their right, with a head each."""
    from matplotlib.collections import LineCollection, PolyCollection

    chord = end - start
    aside = np.stack([chord[:, 1], -chord[:, 0]], 1)
    middle = (start + end) / 2 + _BEND * aside
    # the curve stops short of the dot: (1 − s)² a + 2 s (1 − s) m + s² b
    s = np.linspace(0, 0.93, 24)[None, :, None]
    ends = (start[:, None], middle[:, None], end[:, None])
    curve = (1 - s) ** 2 * ends[0] + 2 * s * (1 - s) * ends[1] + s**2 * ends[2]
    raster = len(weight) >= RASTERISE_FROM
    width = _WIDEST * np.clip(weight, 0, 1)
    look: dict[str, Any] = {"alpha": 0.55, "rasterized": raster}
    colour = tone(ax, BLUE)
    ax.add_collection(LineCollection(list(curve), linewidths=width, colors=colour, **look))
    way = curve[:, -1] - curve[:, -2]
    way /= np.maximum(np.linalg.norm(way, axis=1, keepdims=True), 1e-12)
    half = (0.025 + 0.035 * np.clip(weight, 0, 1))[:, None]
    across = half * np.stack([way[:, 1], -way[:, 0]], 1)
    tip = curve[:, -1] + 1.6 * half * way
    heads = np.stack([curve[:, -1] + across, curve[:, -1] - across, tip], 1)
    ax.add_collection(PolyCollection(list(heads), facecolors=colour, edgecolors="none", **look))


def _names(ax: Axes, angle: Floats, names: list[str]) -> None:
    """Around the circle, each read from the inside out or the outside in, never upside down."""
    for at, name in zip(angle, names, strict=True):
        left = np.cos(at) < -1e-9
        ax.text(
            1.08 * np.cos(at),
            1.08 * np.sin(at),
            name,
            rotation=np.degrees(at) - (180 if left else 0),
            rotation_mode="anchor",
            ha="right" if left else "left",
            va="center",
            fontsize=7 if len(names) > 15 else 9,
            color=ink(ax, 0.85),
        )
