"""Synthetic regression tasks in families, where small tasks are blends of large ones."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bmm_multitask_learning.data import TaskData

__all__ = ["MixingTruth", "make_mixing"]


class MixingTruth(NamedTuple):
    """What made the data.

    Attributes:
        weights: (K, D) weights of the tasks.
        families: (K,) family of each task, 0..F-1.
        mixing: (K, K) share of each task in the weights of another; rows of leaders are zero.
        noise: standard deviation of y around x·w.
    """

    weights: NDArray[np.float64]
    families: NDArray[np.int64]
    mixing: NDArray[np.float64]
    noise: float


def make_mixing(
    num_families: int = 3,
    *,
    leaders: int = 2,
    followers: int = 3,
    rows_of_leader: int = 60,
    rows_of_follower: int = 8,
    num_features: int = 6,
    spread: float = 0.3,
    within: float = 0.1,
    noise: float = 0.5,
    seed: int = 0,
) -> tuple[TaskData, MixingTruth]:
    r"""Draw linear regression tasks: in each family a few leaders, and blends of them.

    $$w_l \sim N(m_f, \text{spread}^2 I), \qquad
      w_t \sim N\big(\textstyle\sum_l \alpha_{tl} w_l, \text{within}^2 I\big), \quad
      \alpha_t \sim \mathrm{Dirichlet}(1), \qquad m_f \sim N(0, I)$$

    Args:
        num_families: F.
        leaders: tasks of a family with many rows.
        followers: tasks of a family with few rows, blends of its leaders.
        rows_of_leader: rows of each leader.
        rows_of_follower: rows of each follower.
        num_features: D.
        spread: standard deviation of leaders around their family's mean.
        within: standard deviation of followers around their blend.
        noise: standard deviation of y around its mean.
        seed: everything is drawn from `numpy.random.default_rng(seed)`.

    Returns:
        (data, truth): tasks are labelled 0..K-1, family by family, leaders first.

    Raises:
        ValueError: a size below 1 or a negative scale.

    Example:
        >>> data, truth = make_mixing(num_families=2, leaders=1, followers=3, seed=1)
        >>> data.num_tasks, truth.mixing.shape
        (8, (8, 8))
    """
    sizes = {
        "num_families": num_families,
        "leaders": leaders,
        "followers": followers,
        "rows_of_leader": rows_of_leader,
        "rows_of_follower": rows_of_follower,
        "num_features": num_features,
    }
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}.")
    for name, scale in {"spread": spread, "within": within, "noise": noise}.items():
        if not (np.isfinite(scale) and scale >= 0):
            raise ValueError(f"{name} must be a finite number >= 0, got {scale}.")

    rng = np.random.default_rng(seed)
    F, L, M, D = num_families, leaders, followers, num_features
    means = rng.standard_normal((F, 1, D))
    led = means + spread * rng.standard_normal((F, L, D))
    share = rng.dirichlet(np.ones(L), size=(F, M))
    blends = share @ led + within * rng.standard_normal((F, M, D))
    weights = np.concatenate([led, blends], axis=1).reshape(-1, D)
    mixing = np.zeros((F, L + M, F, L + M))
    mixing[np.arange(F), L:, np.arange(F), :L] = share

    rows = np.tile(np.repeat([rows_of_leader, rows_of_follower], [L, M]), F)
    task = np.repeat(np.arange(len(weights)), rows)
    x = rng.standard_normal((len(task), D))
    y = np.einsum("nd,nd->n", x, weights[task]) + noise * rng.standard_normal(len(task))
    families = np.repeat(np.arange(F), L + M)
    truth = MixingTruth(weights, families, mixing.reshape(len(weights), -1), noise)
    return TaskData(x, y, task, tasks=range(len(weights))), truth
