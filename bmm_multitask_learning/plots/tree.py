"""A tree of tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.cluster.hierarchy import leaves_list

from bmm_multitask_learning.plots._canvas import (
    RASTERISE_FROM,
    Names,
    as_names,
    axis,
    ink,
    label_step,
    label_ticks,
)
from bmm_multitask_learning.trees import TaskTree

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def tree(
    found: TaskTree,
    *,
    tasks: Names | None = None,
    mixing: float = 1.0,
    ax: Axes | None = None,
) -> Axes:
    r"""Draw a tree of tasks as a dendrogram, the root on the left.

    Two tasks meet at one less the correlation of their weights around the centre: with `mixing`
    below 1 no pair meets left of it, and the branches of the leaves are long.

    Args:
        found: such as `model.prior.tree`.
        tasks: K task names.
        mixing: $\lambda$, such as `model.prior.mixing_weight`.
        ax: axis to draw on.

    Returns:
        The axis.

    Raises:
        ValueError: for names that are not K.

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
    ax.set_xlim(1.02, 0.0)
    ax.set_ylim(-0.6, count - 0.4)
    ax.set_xlabel("distance of two tasks: 1 less their correlation")
    ax.spines["left"].set_visible(False)
    ax.yaxis.tick_right()
    step = label_step(ax, count, vertical=True)
    size = 7 if count > 15 else 9
    label_ticks(ax.yaxis, [names[k] for k in order], step, fontsize=size)
    return ax
