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
    counted,
    ink,
    label_step,
    label_ticks,
    no_ticks,
    per_cent,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Beyond this step a thinned list of names no longer tells which task is which.
_LARGEST_STEP = 3


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
    bar = ax.figure.colorbar(image, ax=ax, pad=0.02, fraction=0.05)
    bar.set_label("loading", color=ink(ax, 0.85))
    bar.outline.set_visible(False)
    bar.ax.tick_params(color=ink(ax, 0.45), labelcolor=ink(ax, 0.8), labelsize="small")
    rows = [f"pattern {r + 1}, {per_cent(part)}" for r, part in enumerate(share)]
    label_ticks(ax.yaxis, rows, 1, fontsize=9)
    step = label_step(ax, count, vertical=False)
    if names is None or step > _LARGEST_STEP:
        no_ticks(ax.xaxis)
        ax.set_xlabel(f"{counted(count, 'task')}, by their loading on the first pattern")
    else:
        turn, size_of_text = 90 if count > 8 else 0, 7 if count > 15 else 9
        ordered = [names[k] for k in order]
        label_ticks(ax.xaxis, ordered, step, rotation=turn, fontsize=size_of_text)
    return ax
