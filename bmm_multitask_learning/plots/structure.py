"""Relations between tasks and responsibilities of clusters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
from scipy.spatial.distance import squareform
from sklearn.metrics.pairwise import euclidean_distances

from bmm_multitask_learning.plots._canvas import (
    LARGEST_STEP,
    RASTERISE_FROM,
    Array,
    Floats,
    Integers,
    Names,
    as_array,
    as_labels,
    as_names,
    axis,
    cluster_colours,
    colour_bar,
    counted,
    is_dark,
    label_step,
    label_ticks,
    legend_above,
    name_columns,
    no_ticks,
    paper,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Optimal leaf order costs O(K^3) at worst: seconds at 1000 tasks, where a picture shows no more of
# it than of the order of the tree.
_OPTIMAL_ORDER_UP_TO = 300


def relations(
    matrix: Array,
    *,
    tasks: Names | None = None,
    clusters: Array | None = None,
    label: str = "relation",
    ax: Axes | None = None,
) -> Axes:
    """Draw the relations between tasks as a heat map in an order that shows who belongs together.

    Tasks stand cluster by cluster, within a cluster (or over all, without `clusters`) in the order
    of a hierarchical clustering of the matrix's rows. A matrix with negative entries gets a
    diverging scale around zero, another one a scale from zero to its largest entry.

    Args:
        matrix: (K, K) relations; row i says how task i relates to the others; NaN stays blank.
        tasks: K task names.
        clusters: (K,) index of each task's cluster, whose blocks are framed and counted.
        label: what an entry means, with its unit, beside the colour bar.
        ax: axis to draw on; the colour bar takes its room from it.

    Returns:
        The axis.

    Raises:
        ValueError: a matrix that is not square, or names or clusters that are not K.

    Example:
        >>> from matplotlib.figure import Figure
        >>> ax = relations(
        ...     [[1.0, 0.1, 0.9], [0.1, 1.0, 0.2], [0.9, 0.2, 1.0]],
        ...     tasks=["a", "b", "c"], clusters=[0, 1, 0], ax=Figure().subplots(),
        ... )
        >>> [tick.get_text() for tick in ax.get_yticklabels()]
        ['a', 'c', 'b']
    """
    entries = as_array(matrix, "matrix", ("K", "K"))
    count = len(entries)
    if entries.shape[1] != count:
        raise ValueError(
            f"matrix must be square, tasks by tasks; got {entries.shape}. "
            "Responsibilities (K, C) have a picture of their own: plots.responsibilities."
        )
    names = None if tasks is None else as_names(tasks, count)
    group = None if clusters is None else as_labels(clusters, "clusters", count)
    order = _order(entries, group)

    ax = axis(ax, (6.8, 5.2))
    ax.set_anchor("E")  # what room a square leaves is wanted on the left, for names
    for side in ax.spines.values():
        side.set_visible(False)
    _heat_map(ax, entries[np.ix_(order, order)], label)
    _name_rows_and_columns(ax, None if names is None else [names[task] for task in order])
    if group is not None:
        _frame_blocks(ax, group[order])
    return ax


def _order(entries: Floats, group: Integers | None) -> Integers:
    # Within a cluster the same leaf order serves, as far as it goes.
    leaves = leaf_order(entries)
    return leaves if group is None else leaves[np.argsort(group[leaves], kind="stable")]


def leaf_order(entries: Floats) -> Integers:
    """Tasks in the order of a hierarchical clustering of their rows and columns."""
    count = len(entries)
    if count < 3:
        return np.arange(count)
    rows = np.nan_to_num(entries)
    profiles = rows if np.array_equal(rows, rows.T) else np.hstack([rows, rows.T])
    distance = squareform(euclidean_distances(profiles), checks=False)
    tree = linkage(distance, "average")
    if count <= _OPTIMAL_ORDER_UP_TO:
        tree = optimal_leaf_ordering(tree, distance)
    leaves = np.asarray(leaves_list(tree), dtype=np.int64)
    # Either end may come first: the one that keeps the caller's order better.
    return leaves if leaves[0] < leaves[-1] else leaves[::-1]


def _heat_map(ax: Axes, ordered: Floats, label: str) -> None:
    finite = ordered[np.isfinite(ordered)]
    largest = float(np.abs(finite).max()) if finite.size and finite.any() else 1.0
    signed = bool((finite < 0).any())
    image = ax.imshow(
        ordered,
        cmap="RdBu_r" if signed else "GnBu_r" if is_dark(ax) else "GnBu",
        vmin=-largest if signed else 0.0,
        vmax=largest,
        interpolation="nearest",
        aspect="equal",
    )
    colour_bar(ax, image, label, shrink=0.7, pad=0.03, fraction=0.05)


def _name_rows_and_columns(ax: Axes, names: list[str] | None) -> None:
    count = ax.images[0].get_size()[0]
    step = label_step(ax, count, vertical=True)
    if names is None or step > LARGEST_STEP:
        no_ticks(ax.xaxis)
        no_ticks(ax.yaxis)
        ax.set_xlabel(f"{counted(count, 'task')}, in the same order as the rows")
        return
    size = 7 if count > 15 else 9
    label_ticks(ax.yaxis, names, step, fontsize=size)
    label_ticks(ax.xaxis, names, step, fontsize=size, rotation=90 if count > 1 else 0)


def _frame_blocks(ax: Axes, ordered: Integers) -> None:
    from matplotlib.patches import Rectangle

    found, starts, sizes = np.unique(ordered, return_index=True, return_counts=True)
    colours = cluster_colours(ax, int(found.max()) + 1)
    count = len(ordered)
    for cluster, start, size in zip(found, starts, sizes, strict=True):
        corner = (start - 0.5, start - 0.5)
        frame = Rectangle(corner, size, size, fill=False, clip_on=False, linewidth=1.6)
        frame.set_edgecolor(colours[cluster])
        ax.add_patch(frame)
        if size / count >= 0.04:
            ax.annotate(
                f"cluster {cluster + 1} ({size})" if size / count >= 0.15 else f"{cluster + 1}",
                (start + size / 2 - 0.5, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize="small",
                color=colours[cluster],
            )


def responsibilities(
    responsibilities: Array,
    *,
    tasks: Names | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw each task as a bar of the probabilities with which it belongs to each cluster.

    Tasks stand cluster by cluster, the surest of each cluster first, so that the doubtful ones
    form a ramp at the border.

    Args:
        responsibilities: (K, C) probabilities, rows sum to 1.
        tasks: K task names, written below their bars as far as they fit.
        ax: axis to draw on.

    Returns:
        The axis.

    Raises:
        ValueError: negative entries or rows that do not sum to 1.

    Example:
        >>> from matplotlib.figure import Figure
        >>> ax = responsibilities(
        ...     [[0.1, 0.9], [0.8, 0.2], [0.6, 0.4]],
        ...     tasks=["a", "b", "c"], ax=Figure().subplots(),
        ... )
        >>> [tick.get_text() for tick in ax.get_xticklabels()]
        ['b', 'c', 'a']
    """
    share = as_array(responsibilities, "responsibilities", ("K", "C"))
    count, clusters = share.shape
    sums = share.sum(1)
    if share.min() < 0 or not np.allclose(sums, 1.0, atol=1e-4):
        worst = float(sums[np.argmax(np.abs(sums - 1))])
        raise ValueError(
            "responsibilities must be non-negative with rows that sum to 1; got a smallest entry "
            f"of {share.min():.3g} and a row that sums to {worst:.3g}. Is it (C, K) transposed?"
        )
    names = None if tasks is None else as_names(tasks, count)
    best = share.argmax(1)
    order = np.lexsort((-share.max(1), best))

    ax = axis(ax, (7.6, 3.4))
    _stacked_bars(ax, share[order], np.bincount(best, minlength=clusters))
    ax.set_ylim(0, 1)
    spare = max(0.01 * count, (8 - count) / 2)
    ax.set_xlim(-0.5 - spare, count - 0.5 + spare)
    ax.set_ylabel("probability of cluster")
    ax.spines["bottom"].set_visible(False)
    ordered = None if names is None else [names[task] for task in order]
    name_columns(ax, ordered, count, f"{counted(count, 'task')}, by cluster and certainty")
    legend_above(ax, columns=min(clusters, 5))
    return ax


def _stacked_bars(ax: Axes, ordered: Floats, sizes: Integers) -> None:
    # One collection of K rectangles a cluster: a bar a task, whatever K is.
    from matplotlib.collections import PolyCollection

    count, clusters = ordered.shape
    many = count > 150
    half = 0.5 if many else 0.43
    top = np.cumsum(ordered, axis=1)
    left, right = np.arange(count) - half, np.arange(count) + half
    for cluster, colour in enumerate(cluster_colours(ax, clusters)):
        upper = top[:, cluster]
        lower = upper - ordered[:, cluster]
        corners = [(left, lower), (left, upper), (right, upper), (right, lower)]
        shape = np.stack([np.stack(corner, axis=-1) for corner in corners], axis=1)
        bars = PolyCollection(
            list(shape),
            facecolors=colour,
            edgecolors="none" if many else paper(ax),
            linewidths=0.0 if many else 0.4,
            antialiased=not many,
            alpha=0.88,
            label=f"cluster {cluster + 1}: {counted(int(sizes[cluster]), 'task')}",
            rasterized=count >= RASTERISE_FROM,
        )
        ax.add_collection(bars, autolim=False)
