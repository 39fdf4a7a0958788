"""What follows from the tensors of long-form data: sizes, order, subsets, moved copies."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from .arrays import ArrayLike, as_inputs, as_names, column_names
from .labels import as_labels, find, row_numbers
from .samplers import Batch


class LongForm:
    """Stored tensors of N rows of K tasks; `TaskData` says what they are and how to make one."""

    x: Tensor
    y: Tensor
    task: Tensor
    weight: Tensor | None
    tasks: tuple[Hashable, ...]
    task_features: Tensor | None
    feature_names: tuple[str, ...] | None
    target_names: tuple[str, ...] | None
    task_feature_names: tuple[str, ...] | None

    def _replace(self, **changes: Any) -> Self:
        """A new object with other attributes, unchecked; nothing cached is taken along."""
        new = object.__new__(type(self))
        for name in LongForm.__annotations__:
            setattr(new, name, changes[name] if name in changes else getattr(self, name))
        return new

    # Sizes

    def __len__(self) -> int:
        return self.num_rows

    def __repr__(self) -> str:
        low, high = int(self.rows_per_task.min()), int(self.rows_per_task.max())
        size = f"{low} to {high} rows a task" if low < high else f"{_count(low, 'row')} a task"
        if self.x.ndim == 2:
            features = _count(self.x.shape[1], "feature")
        else:
            features = f"inputs of shape {tuple(self.x.shape[1:])}"
        extra = ", weighted" if self.weight is not None else ""
        if self.task_features is not None:
            extra += ", " + _count(self.num_task_features, "task feature")
        missing = int(self.y.numel() - self.observed.sum())
        extra += f", {_count(missing, 'target')} not observed" if missing else ""
        return (
            f"TaskData({_count(len(self), 'row')}, {_count(self.num_tasks, 'task')}, {size}, "
            f"{features}, {_count(self.num_outputs, 'output')}{extra}, "
            f"{self.x.dtype} on {self.device})"
        )

    @property
    def num_rows(self) -> int:
        """N."""
        return self.x.shape[0]

    @property
    def num_tasks(self) -> int:
        """K, tasks without rows included."""
        return len(self.tasks)

    @property
    def num_outputs(self) -> int:
        """O; 1 where y is (N,)."""
        return 1 if self.y.ndim == 1 else self.y.shape[1]

    @property
    def num_task_features(self) -> int:
        """F; 0 without task features."""
        return 0 if self.task_features is None else self.task_features.shape[1]

    @property
    def device(self) -> torch.device:
        """The device of every tensor."""
        return self.x.device

    @cached_property
    def observed(self) -> Tensor:
        """Mask of the shape of y: True where the target was observed."""
        return ~torch.isnan(self.y)

    @cached_property
    def rows_per_task(self) -> Tensor:
        """(K,) rows of each task, observed or not."""
        return torch.bincount(self.task, minlength=self.num_tasks)

    @cached_property
    def order(self) -> Tensor:
        """(N,) rows sorted by task, in their own order within a task."""
        if bool((self.task[1:] >= self.task[:-1]).all()):
            return torch.arange(self.num_rows, device=self.device)
        return torch.argsort(self.task, stable=True)

    @cached_property
    def offsets(self) -> Tensor:
        """(K+1,) the rows of task k are ``order[offsets[k]:offsets[k + 1]]``."""
        return torch.nn.functional.pad(self.rows_per_task.cumsum(0), (1, 0))

    def index_of(self, labels: Any) -> Tensor:
        """Task index of each label, -1 for a label that is not among ``tasks``.

        Args:
            labels: (M,) labels, or one label.

        Returns:
            (M,) indices; (1,) for one label.

        Example:
            >>> from bmm_multitask_learning.data import TaskData
            >>> TaskData([[1.0], [2.0]], [0.5, 0.1], ["a", "b"]).index_of(["b", "never seen"])
            tensor([ 1, -1])
        """
        one = isinstance(labels, str | int | np.generic) or (
            isinstance(labels, Tensor | np.ndarray) and labels.ndim == 0
        )
        found = find(as_labels([_item(labels)] if one else labels), self.tasks)
        return torch.from_numpy(found).to(self.device)

    # Other rows, other inputs, another place

    def rows(self, index: Any) -> Self:
        """Some rows; the tasks stay as they are, even those left without rows.

        Args:
            index: (M,) row numbers, an (N,) mask or a slice.

        Returns:
            The M rows in the order of ``index``.

        Example:
            >>> from bmm_multitask_learning.data import TaskData
            >>> data = TaskData([[1.0], [2.0], [3.0]], [0.5, 0.1, 0.3], ["a", "b", "b"])
            >>> data.rows([0]).rows_per_task
            tensor([1, 0])
        """
        if isinstance(index, slice):
            row = torch.arange(self.num_rows, device=self.device)[index]
        else:
            row = row_numbers(index, self.num_rows).to(self.device)
        return self._replace(
            x=self.x[row],
            y=self.y[row],
            task=self.task[row],
            weight=None if self.weight is None else self.weight[row],
        )

    def batch(self, batch: Batch) -> Self:
        """The rows of a minibatch, their weights times its scale.

        Args:
            batch: from `TaskData.batches`.
        """
        part = self.rows(batch.index)
        scale = batch.scale.to(part.x.device, part.y.dtype)
        return part._replace(weight=scale if part.weight is None else part.weight * scale)

    def with_x(self, x: ArrayLike, *, feature_names: Sequence[str] | None = None) -> Self:
        """The same rows with other inputs, e.g. standardised ones or a backbone's features.

        Args:
            x: (N, ...) inputs; targets, weights and task features follow their dtype and device.
            feature_names: Names of the new columns.

        Returns:
            The data with the new inputs.

        Example:
            >>> from bmm_multitask_learning.data import TaskData
            >>> data = TaskData([[1.0], [2.0]], [0.5, 0.1], ["a", "b"])
            >>> data.with_x(data.x.repeat(1, 3)).x.shape
            torch.Size([2, 3])
        """
        names = column_names(x) if feature_names is None else feature_names
        new = as_inputs(x, names)
        if len(new) != self.num_rows:
            raise ValueError(
                f"x must have the N = {self.num_rows} rows of before; got {len(new)}."
            )
        moved = self.to(new.device, new.dtype)
        return moved._replace(x=new, feature_names=as_names(names, new.shape[1], "feature_names"))

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Self:
        """The data on another device or in another floating dtype.

        Args:
            device: Where to; None: as before.
            dtype: Floating dtype of x, y, weight and task features; None: as before.

        Returns:
            The moved data; tensors that need no move are shared.

        Example:
            >>> from bmm_multitask_learning.data import TaskData
            >>> TaskData([[1.0]], [0.5], ["a"]).to(dtype=torch.float32).y.dtype
            torch.float32
        """
        if dtype is not None and not dtype.is_floating_point:
            raise ValueError(f"dtype must be a floating dtype; got {dtype}.")
        floats = {
            name: None if value is None else value.to(device=device, dtype=dtype)
            for name, value in (
                ("y", self.y),
                ("weight", self.weight),
                ("task_features", self.task_features),
            )
        }
        x = self.x.to(device=device, dtype=dtype if self.x.is_floating_point() else None)
        return self._replace(x=x, task=self.task.to(device=device), **floats)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _item(label: Any) -> Any:
    return label.item() if isinstance(label, np.generic | np.ndarray | Tensor) else label
