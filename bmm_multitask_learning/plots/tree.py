"""A tree of tasks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from scipy.cluster.hierarchy import leaves_list

from bmm_multitask_learning.plots._canvas import (
    RASTERISE_FROM,
    Array,
    Floats,
    Names,
    as_array,
    as_names,
    axis,
    ink,
    label_step,
    label_ticks,
)
from bmm_multitask_learning.trees import TaskTree

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LABELLED = 60  # tasks up to which clades are labelled
_COLUMN = 0.06  # width of a column of squares


def tree(
    found: TaskTree,
    *,
    tasks: Names | None = None,
    mixing: float = 1.0,
    weights: Array | None = None,
    features: Names | None = None,
    ax: Axes | None = None,
) -> Axes:
    r"""Draw a tree of tasks as a dendrogram, the root on the left.

    Two tasks meet at one less the correlation of their weights around the centre: with `mixing`
    below 1 no pair meets left of it, and the branches of the leaves are long. Where the tree knows
    them, the probabilities of clades stand at the merges, in per cent, up to 60 tasks.

    Args:
        found: such as `model.prior.tree`, or `model.prior.weigh_clades()`.
        tasks: K task names.
        mixing: $\lambda$, such as `model.prior.mixing_weight`.
        weights: (K, F) of two or three chosen features, a column of squares each at the leaves:
            red above zero, blue below, each column in units of its largest.
        features: F names of the columns.
        ax: axis to draw on.

    Returns:
        The axis.

    Raises:
        ValueError: for names that are not K, or weights and features of other shapes.

    Example:
        >>> import torch
        >>> from matplotlib.figure import Figure
        >>> found = TaskTree(torch.tensor([[0, 2], [1, 3]]), torch.tensor([0.25, 1.0]))
        >>> ax = tree(found, tasks=["maths", "music", "physics"], ax=Figure().subplots())
        >>> [tick.get_text() for tick in ax.get_yticklabels()]
        ['music', 'maths', 'physics']
    """
    count = found.num_tasks
    names = [str(k) for k in range(count)] if tasks is None else as_names(tasks, count)
    order = leaves_list(found.linkage()) if count > 1 else np.zeros(1, dtype=int)
    place = np.empty(2 * count - 1)
    place[order] = np.arange(count)
    distance = np.zeros(2 * count - 1)
    distance[count:] = 1 - mixing * (1 - found.heights.cpu().numpy())
    branches = []
    for node, (left, right) in enumerate(found.merges.tolist(), start=count):
        place[node] = 0.5 * (place[left] + place[right])
        ends = [(distance[child], place[child]) for child in (left, right)]
        corners = [(distance[node], place[child]) for child in (left, right)]
        branches.append([ends[0], *corners, ends[1]])

    ax = axis(ax, (6.4, 4.8))
    from matplotlib.collections import LineCollection

    rasterise = count >= RASTERISE_FROM
    ax.add_collection(
        LineCollection(branches, colors=ink(ax, 0.7), linewidths=1.0, rasterized=rasterise)
    )
    if count <= _LABELLED:
        for node, chance in enumerate(list(found.clades().values())[:-1], start=count):
            if not math.isnan(chance):
                ax.annotate(
                    f"{100 * chance:.0f}",
                    (float(distance[node]), float(place[node])),
                    xytext=(-2, 1),
                    textcoords="offset points",
                    ha="right",
                    va="bottom",
                    fontsize=6,
                    color=ink(ax, 0.7),
                )
    columns = 0 if weights is None else _squares(ax, weights, features, place[:count])
    ax.set_xlim(1.02, -_COLUMN * columns)
    ax.set_ylim(-0.6, count - 0.4)
    ax.set_xticks(np.linspace(0.0, 1.0, 6))
    ax.set_xlabel("distance of two tasks: 1 less their correlation")
    ax.spines["left"].set_visible(False)
    ax.yaxis.tick_right()
    step = label_step(ax, count, vertical=True)
    size = 7 if count > 15 else 9
    label_ticks(ax.yaxis, [names[k] for k in order], step, fontsize=size)
    return ax


def _squares(ax: Axes, weights: Array, features: Names | None, place: Floats) -> int:
    """A column of squares for each feature at the leaves; returns how many."""
    values = as_array(weights, "weights", (len(place), "F"))
    count = values.shape[1]
    names = [""] * count if features is None else as_names(features, count, "features")
    largest = np.abs(values).max(0)
    shown = values / np.where(largest > 0, largest, 1.0)
    for column, name in enumerate(names):
        across = -_COLUMN * (column + 0.6)
        ax.scatter(
            np.full(len(place), across),
            place,
            c=shown[:, column],
            cmap="RdBu_r",
            vmin=-1,
            vmax=1,
            marker="s",
            s=14,
        )
        ax.annotate(
            name,
            (across, 1.0),
            xycoords=("data", "axes fraction"),
            rotation=45,
            fontsize=7,
            color=ink(ax, 0.7),
        )
    return count
