"""Task labels: integers or strings, never floats, never missing."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .arrays import ArrayLike, as_tensor, check_finite, is_frame


def as_labels(task: Any, name: str = "task") -> npt.NDArray[Any]:
    """Labels as an int64 array or an object array of strings, of any length.

    Args:
        task: (N,) integers or strings: list, array, tensor, series or categorical.
        name: What the labels are called in an error.

    Returns:
        (N,) labels.

    Raises:
        TypeError: Where labels are floats or neither integers nor strings.
        ValueError: Where labels are missing or not one axis.
    """
    values = task.detach().cpu().numpy() if isinstance(task, Tensor) else task
    if isinstance(values, list | tuple):  # NumPy would turn [1, "a"] into two strings
        values = np.fromiter(values, dtype=object, count=len(values))
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(
            f"{name} must hold one label per row, shape (N,); got shape {array.shape}. "
            "Pass task.ravel() for a single column."
        )
    if array.dtype.kind in "biu":
        return array.astype(np.int64, copy=False)
    objects = array.astype(object, copy=False)
    kinds = {type(item) for item in objects.tolist()}
    if all(issubclass(kind, str) for kind in kinds):
        return objects if kinds <= {str} else objects.astype(str).astype(object)
    if all(issubclass(kind, int | np.integer) for kind in kinds):
        return objects.astype(np.int64)
    raise _label_error(objects, kinds, name)


def _label_error(objects: npt.NDArray[Any], kinds: set[type], name: str) -> Exception:
    missing = [row for row, item in enumerate(objects.tolist()) if is_missing(item)]
    if missing:
        return ValueError(
            f"{name} must have a label in every row; got {len(missing)} missing (NaN or None), "
            f"first at row {missing[0]}. Drop these rows or give them a label of their own."
        )
    if any(issubclass(kind, float | np.floating) for kind in kinds):
        return TypeError(
            f"{name} must hold integer or string labels; got floats, e.g. "
            f"{float(next(i for i in objects if isinstance(i, float | np.floating)))!r}. "
            "Cast them, e.g. task.astype(int)."
        )
    found = sorted(kind.__name__ for kind in kinds)
    return TypeError(
        f"{name} must hold labels of one kind, integers or strings; got {', '.join(found)}. "
        "Cast them, e.g. [str(label) for label in task]."
    )


def is_missing(item: Any) -> bool:
    """Whether a value stands for "not there": None, NaN, pandas' NA."""
    nan = isinstance(item, float | np.floating) and bool(np.isnan(item))
    return item is None or nan or type(item).__name__ in ("NAType", "NaTType")


def as_tasks(tasks: Sequence[Hashable] | None, labels: npt.NDArray[Any]) -> tuple[Hashable, ...]:
    """The K task labels: ``tasks`` in its order, or the sorted labels that occur."""
    if tasks is None:
        if labels.dtype == object:
            return tuple(sorted(set(labels.tolist())))
        return tuple(np.unique(labels).tolist())
    known = tuple(as_labels(tasks, "tasks").tolist())
    if not known:
        raise ValueError("tasks must name at least one task; got none.")
    if len(set(known)) < len(known):
        twice = next(label for i, label in enumerate(known) if label in known[:i])
        raise ValueError(f"tasks must name each task once; got {twice!r} more than once.")
    return known


def find(labels: npt.NDArray[Any], tasks: Sequence[Hashable]) -> npt.NDArray[np.int64]:
    """Position of each label in ``tasks``, -1 where it is not there."""
    known = as_labels(tasks, "tasks")
    if labels.dtype != known.dtype:
        return np.full(len(labels), -1, dtype=np.int64)
    if labels.dtype == object:
        position = {label: k for k, label in enumerate(tasks)}
        found = (position.get(label, -1) for label in labels.tolist())
        return np.fromiter(found, dtype=np.int64, count=len(labels))
    by_label = np.argsort(known, kind="stable")
    place = np.searchsorted(known, labels, sorter=by_label).clip(max=len(known) - 1)
    candidate = by_label[place]
    return np.where(known[candidate] == labels, candidate, -1)


def index_rows(labels: npt.NDArray[Any], tasks: Sequence[Hashable]) -> Tensor:
    """(N,) task index of each row.

    Raises:
        ValueError: Where a label is not in ``tasks``.
    """
    index = find(labels, tasks)
    if (index < 0).any():
        row = int((index < 0).argmax())
        raise ValueError(
            f"task must hold labels of the K = {len(tasks)} tasks ({shown(tasks)}); got "
            f"{labels[row]!r} at row {row}. Add it to tasks or drop its rows."
        )
    return torch.from_numpy(index)


def shown(tasks: Sequence[Hashable]) -> str:
    """The first few labels, for an error."""
    return ", ".join(repr(label) for label in tasks[:5]) + (", ..." if len(tasks) > 5 else "")


def as_task_features(
    features: ArrayLike | Mapping[Hashable, Any], tasks: Sequence[Hashable], like: Tensor
) -> Tensor:
    """(K, F) finite task features in the order of ``tasks``, dtype and device of ``like``.

    Mappings and frames are joined by label; their labels outside ``tasks`` are left out.
    """
    if isinstance(features, Mapping):
        absent = [label for label in tasks if label not in features]
        values: Any = None if absent else [np.atleast_1d(features[label]) for label in tasks]
    elif is_frame(features):
        place = find(as_labels(features.index, "the index of task_features"), tasks)  # type: ignore[union-attr]
        if len(np.unique(place[place >= 0])) < int((place >= 0).sum()):
            raise ValueError("task_features must have one row per task; got a label twice.")
        row_of = dict(zip(place.tolist(), range(len(place)), strict=True))
        absent = [label for k, label in enumerate(tasks) if k not in row_of]
        rows = [row_of.get(k, 0) for k in range(len(tasks))]
        values = None if absent else features.iloc[rows]  # type: ignore[union-attr]
    else:
        absent, values = [], features
    if absent:
        raise ValueError(
            f"task_features must have a row for each of the K = {len(tasks)} tasks; got none for "
            f"{len(absent)} of them, first {absent[0]!r}."
        )
    value = as_tensor(values, "task_features", "Encode categories as indicator columns.").to(like)
    if value.ndim != 2 or value.shape[0] != len(tasks) or value.shape[1] == 0:
        raise ValueError(
            f"task_features must have shape (K, F) with K = {len(tasks)} tasks; got "
            f"{tuple(value.shape)}. Give one row per task, in the order of tasks."
        )
    check_finite(value, "task_features", "Impute it; row k describes task k.")
    return value


def row_numbers(index: Any, num_rows: int) -> Tensor:
    """(M,) row numbers of an index or mask."""
    value = torch.as_tensor(index)
    if value.dtype == torch.bool:
        if value.shape != (num_rows,):
            raise ValueError(
                f"a mask of rows must have shape (N,) = ({num_rows},); got {tuple(value.shape)}."
            )
        return value.nonzero()[:, 0]
    if value.ndim != 1 or (value.numel() and value.is_floating_point()):
        raise ValueError(
            f"index must be (M,) row numbers, a mask or a slice; got {value.dtype} of shape "
            f"{tuple(value.shape)}."
        )
    rows = value.long()
    outside = (rows < -num_rows) | (rows >= num_rows)
    if bool(outside.any()):
        raise IndexError(
            f"index must lie in rows 0..{num_rows - 1}; got {int(rows[outside][0])}. "
            "Count rows from 0."
        )
    return rows
