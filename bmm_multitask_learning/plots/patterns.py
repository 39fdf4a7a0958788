"""Which patterns of weights the tasks share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bmm_multitask_learning.plots._canvas import (
    Array,
    Names,
    as_array,
    as_names,
    axis,
    colour_bar,
    counted,
    label_ticks,
    name_columns,
    per_cent,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def patterns(loading: Array, *, tasks: Names | None = None, ax: Axes | None = None) -> Axes:
    r"""Draw how much of each shared pattern of weights each task has, with its sign.

    Loadings are known up to a rotation of the patterns. They are drawn along their principal axes,
    $V^\top = A\,\mathrm{diag}(s)\,U^\top$: rows $s_r U_r^\top$, the largest first, each named
    with its share $s_r^2 / \sum s^2$; tasks stand in the order of the first row, whose largest
    entry is positive. Tasks of one colour go together, tasks of opposite colours go opposite ways.

    Args:
        loading: (R, K) as `SparseBayesian.loading`.
        tasks: K task names.
        ax: axis to draw on; the colour bar takes its room from it.

    Returns:
        The axis.

    Raises:
        ValueError: for loadings that are not finite, or names that are not K.

    Example:
        >>> from matplotlib.figure import Figure
        >>> ax = patterns([[0.1, 2.0, -1.0]], tasks=["a", "b", "c"], ax=Figure().subplots())
        >>> [tick.get_text() for tick in ax.get_xticklabels()]
        ['b', 'a', 'c']

    References:
        Archambeau, Guo and Zoeter, Sparse Bayesian multi-task learning, NIPS 24 (2011).
    """
    values = as_array(loading, "loading", ("R", "K"))
    if not np.isfinite(values).all():
        raise ValueError("loading must be finite; got NaN or infinite entries.")
    count = values.shape[1]
    names = None if tasks is None else as_names(tasks, count)
    _, size, axes = np.linalg.svd(values, full_matrices=False)
    shown = size[:, None] * axes
    largest = shown[np.arange(len(shown)), np.abs(shown).argmax(1)]
    shown = shown * np.where(largest < 0, -1.0, 1.0)[:, None]
    order = np.argsort(-shown[0], kind="stable")
    share = size**2 / (float((size**2).sum()) or 1.0)

    ax = axis(ax, (7.0, 1.4 + 0.5 * len(shown)))
    bound = float(np.abs(shown).max()) or 1.0
    image = ax.imshow(
        shown[:, order],
        cmap="RdBu_r",
        vmin=-bound,
        vmax=bound,
        interpolation="nearest",
        aspect="auto",
    )
    for side in ax.spines.values():
        side.set_visible(False)
    colour_bar(ax, image, "loading", pad=0.02, fraction=0.05)
    rows = [f"pattern {r + 1}, {per_cent(part)}" for r, part in enumerate(share)]
    label_ticks(ax.yaxis, rows, 1, fontsize=9)
    ordered = None if names is None else [names[k] for k in order]
    caption = f"{counted(count, 'task')}, by their loading on the first pattern"
    name_columns(ax, ordered, count, caption)
    return ax
