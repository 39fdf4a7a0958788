"""A tree of tasks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
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
_LINE = 2.2  # width in points of a line along a branch
_PIECES = 12  # of one colour each along a branch


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
            red above zero, blue below, each column in units of its largest. Of (2K - 1, F) at all
            nodes, such as `model.prior.nodes[:, 0, chosen]`, each branch is a band of as many
            lines, the first column's on top, coloured by the weights along it.
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
    merges = found.merges.tolist()
    for node, (left, right) in enumerate(merges, start=count):
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
    columns, lift = 0, 1.0
    if weights is not None:
        shown, heads = _shades(weights, features, count)
        columns = len(heads)
        _squares(ax, shown[:count], heads, place[:count])
        if len(shown) > count:
            _bands(ax, shown, distance, place, found.parents().cpu().numpy()[:-1])
            lift += 0.5 * _LINE * columns
    if count <= _LABELLED:
        _chances(ax, found, distance, place, lift)
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


def _chances(ax: Axes, found: TaskTree, distance: Floats, place: Floats, lift: float) -> None:
    """Probabilities at the merges but the root, `lift` points above the branches."""
    for node, chance in enumerate(list(found.clades().values())[:-1], start=found.num_tasks):
        if not math.isnan(chance):
            ax.annotate(
                f"{100 * chance:.0f}",
                (float(distance[node]), float(place[node])),
                xytext=(-2, lift),
                textcoords="offset points",
                ha="right",
                va="bottom",
                fontsize=6,
                color=ink(ax, 0.7),
            )


def _shades(weights: Array, features: Names | None, count: int) -> tuple[Floats, list[str]]:
    """Weights of tasks or nodes in units of each column's largest, and the columns' names."""
    values = as_array(weights, "weights", ("nodes", "F"))
    if len(values) not in (count, 2 * count - 1):
        raise ValueError(
            f"weights must have a row for each of {count} tasks, or for each of "
            f"{2 * count - 1} nodes; got shape {values.shape}."
        )
    columns = values.shape[1]
    heads = [""] * columns if features is None else as_names(features, columns, "features")
    largest = np.abs(values).max(0)
    return values / np.where(largest > 0, largest, 1.0), heads


def _squares(ax: Axes, shown: Floats, features: list[str], place: Floats) -> None:
    """A column of squares for each feature at the leaves."""
    for column, name in enumerate(features):
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


def _bands(
    ax: Axes, shown: Floats, distance: Floats, place: Floats, parent: NDArray[np.int64]
) -> None:
    """A line for each feature along every branch: given its ends, its mean is linear between."""
    from matplotlib.collections import LineCollection
    from matplotlib.transforms import ScaledTranslation

    child = np.arange(len(parent))
    step = np.linspace(0.0, 1.0, _PIECES + 1)
    x = distance[child, None] + (distance[parent] - distance[child])[:, None] * step
    y = np.broadcast_to(place[child, None], x.shape)
    points = np.stack([x, y], -1)
    pieces = np.stack([points[:, :-1], points[:, 1:]], -2).reshape(-1, 2, 2)
    middle = 0.5 * (step[:-1] + step[1:])[:, None]
    colour = shown[child, None] + (shown[parent] - shown[child])[:, None] * middle
    columns = shown.shape[1]
    # pale lines need an edge
    ends = np.stack([points[:, 0], points[:, -1]], 1)
    edge = LineCollection(list(ends), colors=ink(ax, 0.4), linewidths=columns * _LINE + 0.8)
    ax.add_collection(edge)
    for column in range(columns):
        up = _LINE * (0.5 * (columns - 1) - column)
        lines = LineCollection(
            list(pieces),
            array=colour[..., column].ravel(),
            cmap="RdBu_r",
            clim=(-1, 1),
            linewidths=_LINE,
            transform=ax.transData + ScaledTranslation(0.0, up / 72, ax.figure.dpi_scale_trans),
            rasterized=len(pieces) >= RASTERISE_FROM,
        )
        ax.add_collection(lines, autolim=False)
