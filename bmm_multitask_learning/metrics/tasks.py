"""A metric task by task."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bmm_multitask_learning.metrics.arrays import Array, Floats, numbers, task_index


class ByTask(NamedTuple):
    """A metric of each task.

    Attributes:
        tasks: labels of the K tasks, sorted.
        values: (K,) the metric; NaN where it is undefined, as AUC is with one class.
        rows: (K,) rows of each task.
    """

    tasks: tuple[Hashable, ...]
    values: Floats
    rows: NDArray[np.int64]

    @property
    def mean(self) -> float:
        """Mean over the tasks where the metric is defined, each counting the same."""
        return (
            float(np.nanmean(self.values)) if self.num_skipped < len(self.values) else float("nan")
        )

    @property
    def num_skipped(self) -> int:
        """Number of tasks where the metric is undefined."""
        return int(np.isnan(self.values).sum())


def by_task(
    metric: Callable[..., float], task: Array, /, *arrays: Array, **options: Any
) -> ByTask:
    """Evaluate a metric on each task's rows.

    Args:
        metric: a function of arrays with one entry a row that returns a number. `crps_samples` has
            its draws first: `by_task(lambda y, s: crps_samples(y, s.T), task, y, samples.T)`.
        task: (N,) labels.
        arrays: what the metric takes, each (N, ...).
        options: further arguments of the metric, the same for all tasks.

    Returns:
        The metric of every task, and their mean.

    Raises:
        ValueError: an array has another number of rows than `task`.

    Example:
        >>> from bmm_multitask_learning.metrics import rmse
        >>> scores = by_task(rmse, ["a", "b", "b"], [1.0, 2.0, 2.0], [1.5, 2.0, 4.0])
        >>> scores.tasks, scores.values.round(3).tolist(), round(scores.mean, 3)
        (('a', 'b'), [0.5, 1.414], 0.957)
    """
    tasks, index = task_index(task)
    columns = [numbers(array) for array in arrays]
    for position, column in enumerate(columns):
        if column.ndim == 0 or len(column) != len(index):
            raise ValueError(
                f"every array must have one entry a row, {len(index)} as task has; array "
                f"{position} after task has shape {column.shape}."
            )
    rows = np.bincount(index, minlength=len(tasks))
    blocks = np.split(np.argsort(index, kind="stable"), np.cumsum(rows)[:-1])
    values = [metric(*(column[block] for column in columns), **options) for block in blocks]
    return ByTask(tuple(tasks.tolist()), np.asarray(values, dtype=np.float64), rows)
