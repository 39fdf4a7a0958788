"""Synthetic regression tasks in which only a few groups of features matter, with the truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bmm_multitask_learning.data import TaskData

__all__ = ["SparseTruth", "make_sparse"]


class SparseTruth(NamedTuple):
    """What made the data.

    Attributes:
        weights: (K, D) weights of the tasks.
        groups: (D,) group of each feature, 0..G-1.
        active: (G,) True where the group matters.
        loading: (K, R) how much each task has of each shared pattern.
        noise: standard deviation of y around x·w.
    """

    weights: NDArray[np.float64]
    groups: NDArray[np.int64]
    active: NDArray[np.bool_]
    loading: NDArray[np.float64]
    noise: float


def make_sparse(
    num_tasks: int = 5,
    rows: int = 20,
    *,
    group_sizes: Sequence[int] = (1, 2, 3, 7, 1, 2, 3, 7),
    num_active: int = 2,
    rank: int = 2,
    own: float = 0.3,
    noise: float = 0.1,
    shared_inputs: bool = True,
    seed: int = 0,
) -> tuple[TaskData, SparseTruth]:
    r"""Draw linear regression tasks whose weights are zero but in a few groups of features.

    $$W_g = V Z_g + \text{own}\,E_g \text{ in active groups, } 0 \text{ in others}, \qquad
      y_n \sim N(x_n^\top w_k, \text{noise}^2)$$

    with standard normal $V$, $Z$, $E$ and x. Features stand in the order of their groups.

    Args:
        num_tasks: K.
        rows: of each task.
        group_sizes: features in each of the G groups.
        num_active: how many groups, drawn at random, matter.
        rank: R, patterns that the tasks share.
        own: standard deviation of each weight around its tasks' shared patterns.
        noise: standard deviation of y around its mean.
        shared_inputs: whether all tasks see the same rows of x.
        seed: everything is drawn from `numpy.random.default_rng(seed)`.

    Returns:
        (data, truth): tasks are labelled 0..K-1, in the order of the truth's rows.

    Raises:
        ValueError: a size or a scale is out of range.

    Example:
        >>> data, truth = make_sparse(seed=1)
        >>> tuple(data.x.shape), int(truth.active.sum())
        ((100, 26), 2)
    """
    sizes = np.asarray(group_sizes)
    if min(num_tasks, rows, rank) < 1 or sizes.ndim != 1 or (sizes < 1).any():
        raise ValueError(
            "num_tasks, rows, rank and every group's size must be at least 1; got "
            f"{num_tasks}, {rows}, {rank}, {group_sizes}."
        )
    if not 1 <= num_active <= len(sizes):
        raise ValueError(
            f"num_active must lie in 1..{len(sizes)}, the number of groups; got {num_active}."
        )
    if not (own >= 0 and noise >= 0):
        raise ValueError(f"own and noise must be at least 0; got {own} and {noise}.")
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(len(sizes)), sizes)
    active = np.zeros(len(sizes), dtype=bool)
    active[rng.choice(len(sizes), num_active, replace=False)] = True
    loading = rng.standard_normal((num_tasks, rank))
    patterns = rng.standard_normal((rank, len(groups)))
    weights = loading @ patterns + own * rng.standard_normal((num_tasks, len(groups)))
    weights = weights * active[groups]
    task = np.repeat(np.arange(num_tasks), rows)
    if shared_inputs:
        x = np.tile(rng.standard_normal((rows, len(groups))), (num_tasks, 1))
    else:
        x = rng.standard_normal((len(task), len(groups)))
    y = np.einsum("nd,nd->n", x, weights[task]) + noise * rng.standard_normal(len(task))
    data = TaskData(x, y, task, tasks=range(num_tasks))
    return data, SparseTruth(weights, groups, active, loading, noise)
