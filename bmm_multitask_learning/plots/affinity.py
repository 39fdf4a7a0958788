"""Which tasks help which."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from bmm_multitask_learning.plots.structure import relations

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from bmm_multitask_learning.affinity import TaskAffinity

_LABELS = {
    "evidence": "evidence that a pair gains, nats",
    "held-out": "gain of held-out rows, nats",
    "lookahead": "share of the loss that a step takes away",
    "gradient": "cosine of gradients",
}


def affinity(
    affinity: TaskAffinity,
    *,
    num_groups: int | Literal["auto"] = "auto",
    ax: Axes | None = None,
) -> Axes:
    """Draw affinities as a heat map, the groups of tasks framed.

    What a task does for itself stays blank. Where the matrix is not symmetric, rows are helpers
    and columns the helped.

    Args:
        affinity: what `task_affinity` returned.
        num_groups: see `TaskAffinity.groups`.
        ax: axis to draw on; the colour bar takes its room from it.

    Returns:
        The axis.

    Raises:
        ValueError: for a number of groups that is not between 1 and K.

    Example:
        >>> from matplotlib.figure import Figure
        >>> from bmm_multitask_learning import MultitaskModel, datasets, fit, task_affinity
        >>> data, truth = datasets.make_clusters(num_tasks=6, num_clusters=2, seed=0)
        >>> model = MultitaskModel()
        >>> result = fit(model, data, progress=False)
        >>> ax = affinity(task_affinity(model, data), ax=Figure().subplots())
        >>> ax.images[0].get_size()
        (6, 6)
    """
    matrix = affinity.matrix.copy()
    np.fill_diagonal(matrix, np.nan)
    ax = relations(
        matrix,
        tasks=affinity.tasks,
        clusters=affinity.groups(num_groups),
        label=_LABELS[affinity.kind],
        ax=ax,
    )
    if not affinity.symmetric:
        ax.set_ylabel("helper")
        ax.set_xlabel("helped")
    return ax
