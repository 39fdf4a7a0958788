"""Synthetic regression tasks that fall into clusters, with the truth beside them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import pdist

from bmm_multitask_learning.data import TaskData

__all__ = ["ClusterTruth", "make_clusters"]

FEATURE_RADIUS, FEATURE_NOISE = 2.0, 0.5  # neighbours of 4 clusters overlap by .2 %, of 8 by 6 %


class ClusterTruth(NamedTuple):
    """What made the data.

    Attributes:
        weights: (K, D) weights of the tasks.
        labels: (K,) cluster of each task, 0..C-1.
        centres: (C, D) mean weights of the clusters.
        within: standard deviation of a task's weights around its centre.
        noise: standard deviation of y around x·w.
    """

    weights: NDArray[np.float64]
    labels: NDArray[np.int64]
    centres: NDArray[np.float64]
    within: float
    noise: float


def make_clusters(
    num_tasks: int = 64,
    num_clusters: int = 4,
    *,
    rows_per_task: ArrayLike = 10,
    num_features: int = 6,
    separation: float = 2.0,
    within: float = 0.2,
    noise: float = 0.5,
    informative_features: bool = False,
    seed: int = 0,
) -> tuple[TaskData, ClusterTruth]:
    r"""Draw linear regression tasks whose weights lie around a few centres.

    $$w_k \sim N(m_{z_k}, \text{within}^2 I), \quad x_n \sim N(0, I), \quad
      y_n \sim N(x_n^\top w_k, \text{noise}^2)$$

    The tasks are dealt to clusters $z_k$ in random order, sizes as equal as can be. The centres
    $m_c$ are normal draws, scaled together so that the two nearest are `separation`
    apart (a single centre has length `separation`).

    Args:
        num_tasks: K.
        num_clusters: C, at most K.
        rows_per_task: rows of each task, one number or (K,).
        num_features: D.
        separation: distance of the two nearest centres, in units of the weights.
        within: standard deviation of each weight around its centre.
        noise: standard deviation of y around its mean.
        informative_features: attach task features (K, 2) that tell the cluster up to some overlap:
            clusters lie on a circle of radius 2, tasks around them with standard deviation 0.5.
        seed: everything is drawn from `numpy.random.default_rng(seed)`.

    Returns:
        (data, truth): tasks are labelled 0..K-1, in the order of the truth's rows.

    Raises:
        ValueError: a size or a scale is out of range.

    Example:
        >>> data, truth = make_clusters(num_tasks=12, num_clusters=3, rows_per_task=5, seed=1)
        >>> tuple(data.x.shape), truth.centres.shape
        ((60, 6), (3, 6))
    """
    rows = _checked_sizes(num_tasks, num_clusters, rows_per_task, num_features)
    scales = {"separation": separation, "within": within, "noise": noise}
    for name, scale in scales.items():
        if not (np.isfinite(scale) and scale >= 0):
            raise ValueError(f"{name} must be a finite number >= 0, got {scale}.")

    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(num_tasks) % num_clusters)
    centres = rng.standard_normal((num_clusters, num_features))
    nearest = pdist(centres).min() if num_clusters > 1 else np.linalg.norm(centres)
    centres *= separation / nearest
    weights = centres[labels] + within * rng.standard_normal((num_tasks, num_features))

    task = np.repeat(np.arange(num_tasks), rows)
    x = rng.standard_normal((len(task), num_features))
    y = np.einsum("nd,nd->n", x, weights[task]) + noise * rng.standard_normal(len(task))
    features = _features_of(labels, num_clusters, rng) if informative_features else None
    data = TaskData(x, y, task, tasks=range(num_tasks), task_features=features)
    return data, ClusterTruth(weights, labels, centres, within, noise)


def _features_of(
    labels: NDArray[np.int64], num_clusters: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    angle = 2 * np.pi * labels / num_clusters
    position = FEATURE_RADIUS * np.column_stack([np.cos(angle), np.sin(angle)])
    return position + FEATURE_NOISE * rng.standard_normal(position.shape)


def _checked_sizes(
    num_tasks: int, num_clusters: int, rows_per_task: ArrayLike, num_features: int
) -> NDArray[np.int64]:
    if not 1 <= num_clusters <= num_tasks:
        raise ValueError(
            f"num_clusters must lie in 1..num_tasks = 1..{num_tasks}, got {num_clusters}."
        )
    if num_features < 1:
        raise ValueError(f"num_features must be at least 1, got {num_features}.")
    rows = np.asarray(rows_per_task)
    if rows.shape not in ((), (num_tasks,)) or rows.dtype.kind not in "iu" or (rows < 1).any():
        raise ValueError(
            f"rows_per_task must be one whole number >= 1, or {num_tasks} of them, one a task; "
            f"got {rows_per_task!r}."
        )
    return np.broadcast_to(rows, (num_tasks,)).astype(np.int64)
