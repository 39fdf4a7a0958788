"""Synthetic regression tasks whose weights diffused along a tree, with the truth beside them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bmm_multitask_learning.data import TaskData

__all__ = ["TreeTruth", "make_tree"]


class TreeTruth(NamedTuple):
    """What made the data.

    Attributes:
        weights: (K, D) weights of the tasks.
        clades: the sets of tasks below each inner node but the root, K - 2 of them.
        noise: standard deviation of y around x·w.
    """

    weights: NDArray[np.float64]
    clades: frozenset[frozenset[int]]
    noise: float


def make_tree(
    num_tasks: int = 32,
    *,
    num_features: int = 24,
    rows_per_task: tuple[int, int] = (36, 150),
    decay: float = 0.6,
    correlation: float = 0.8,
    noise: float = 0.6,
    seed: int = 0,
) -> tuple[TaskData, TreeTruth]:
    r"""Draw linear regression tasks at the leaves of a random binary tree.

    The tasks, in random order, are halved until each is alone. From a root $x \sim N(0, I)$ each
    node at depth d = 0, 1, .. below it takes a step, $x_i \sim N(x_p, \text{decay}^{2d} I)$; a
    task's weights are those of its leaf. Rows are log-uniform in number, features have unit
    variance and one correlation between all of them: what is known of the weights differs between
    tasks and directions.

    Args:
        num_tasks: K, at least 2.
        num_features: D.
        rows_per_task: smallest and largest number of rows of a task.
        decay: size of a step relative to the one above.
        correlation: between features, in [0, 1).
        noise: standard deviation of y around its mean.
        seed: everything is drawn from `numpy.random.default_rng(seed)`.

    Returns:
        (data, truth): tasks are labelled 0..K-1, in the order of the truth's rows.

    Raises:
        ValueError: a size, a scale or the correlation is out of range.

    Example:
        >>> data, truth = make_tree(num_tasks=6, num_features=3, seed=1)
        >>> truth.weights.shape, len(truth.clades)
        ((6, 3), 4)
    """
    _check(num_tasks, num_features, rows_per_task, decay, correlation, noise)
    rng = np.random.default_rng(seed)
    root = rng.standard_normal(num_features)
    weights = np.empty((num_tasks, num_features))
    clades = []
    waiting = [(rng.permutation(num_tasks), root, 0)]
    while waiting:
        members, place, depth = waiting.pop()
        if len(members) == 1:
            weights[members[0]] = place
            continue
        clades.append(frozenset(members.tolist()))
        for part in np.array_split(members, 2):
            step = decay**depth * rng.standard_normal(num_features)
            waiting.append((part, place + step, depth + 1))

    low, high = np.log(rows_per_task)
    rows = np.exp(rng.uniform(low, high, num_tasks)).round().astype(int)
    task = np.repeat(np.arange(num_tasks), rows)
    common = np.sqrt(correlation) * rng.standard_normal((len(task), 1))
    own = np.sqrt(1 - correlation) * rng.standard_normal((len(task), num_features))
    x = common + own
    y = np.einsum("nd,nd->n", x, weights[task]) + noise * rng.standard_normal(len(task))
    data = TaskData(x, y, task, tasks=range(num_tasks))
    return data, TreeTruth(weights, frozenset(clades[1:]), noise)


def _check(
    num_tasks: int,
    num_features: int,
    rows_per_task: tuple[int, int],
    decay: float,
    correlation: float,
    noise: float,
) -> None:
    if num_tasks < 2 or num_features < 1:
        raise ValueError(
            "num_tasks must be at least 2 and num_features at least 1; got "
            f"{num_tasks} and {num_features}."
        )
    if not 1 <= rows_per_task[0] <= rows_per_task[1]:
        raise ValueError(
            f"rows_per_task must be (smallest, largest), both at least 1; got {rows_per_task}."
        )
    if not (decay > 0 and np.isfinite(decay)):
        raise ValueError(f"decay must be positive and finite; got {decay}.")
    if not 0 <= correlation < 1:
        raise ValueError(f"correlation must lie in [0, 1); got {correlation}.")
    if not (noise >= 0 and np.isfinite(noise)):
        raise ValueError(f"noise must be a finite number >= 0; got {noise}.")
