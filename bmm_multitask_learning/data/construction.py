"""The parts of a `TaskData` from frames, several outputs, tables by task, or other data."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .arrays import ArrayLike, as_inputs, as_targets, column_names, is_frame, non_numeric_columns
from .labels import as_labels

if TYPE_CHECKING:
    import pandas as pd

    from .task_data import TaskData


class FrameParts(NamedTuple):
    """Columns of a frame by role."""

    rows: tuple[pd.DataFrame, Any, pd.Series]  # x, y, task
    weight: pd.Series | None
    task_features: pd.DataFrame | None


def frame_parts(
    df: pd.DataFrame,
    target: str | Sequence[str],
    task: str,
    features: Sequence[str] | None,
    weight: str | None,
    task_features: Sequence[str] | pd.DataFrame | None,
) -> FrameParts:
    """Columns of ``df`` by role; see `TaskData.from_frame`."""
    if not is_frame(df):
        raise TypeError(f"df must be a pandas DataFrame; got {type(df).__name__}.")
    if not df.columns.is_unique:
        twice = df.columns[df.columns.duplicated()][0]
        raise ValueError(f"df must have unique column names; got {twice!r} more than once.")
    targets = [target] if isinstance(target, str) else list(target)
    if isinstance(features, str):
        raise TypeError(f"features must be a list of columns; got the string {features!r}.")
    by_column = task_features is not None and not is_frame(task_features)
    task_columns = list(task_features) if by_column else []  # type: ignore[arg-type]
    taken = [*targets, task, *task_columns, *([] if weight is None else [weight])]
    for column in [*taken, *(features or [])]:
        _check_column(df, column)
    if features is None:
        text = set(non_numeric_columns(df))
        features = [c for c in df.columns if c not in taken and str(c) not in text]
        if not features:
            raise ValueError(
                f"df must have a numeric column besides {taken}; got columns {list(df.columns)}. "
                "Encode categories, e.g. by pandas.get_dummies."
            )
    leaks = [column for column in targets if column in features]
    if leaks:
        raise ValueError(f"features must not hold the target; got {leaks} in both.")
    x = df[list(features)]
    text_features = non_numeric_columns(x)
    if text_features:
        raise TypeError(
            f"features must be numeric columns; got non-numeric {text_features}. Encode them, "
            f"e.g. pandas.get_dummies(df, columns={text_features})."
        )
    table = _constant_columns(df, task, task_columns) if by_column else task_features
    y = df[targets[0]] if isinstance(target, str) else df[targets]
    return FrameParts((x, y, df[task]), None if weight is None else df[weight], table)


def _check_column(df: pd.DataFrame, column: str) -> None:
    if column in df.columns:
        return
    names = [str(name) for name in df.columns]
    close = get_close_matches(str(column), names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise KeyError(f"df has no column {column!r}; its columns are {names}.{hint}")


def _constant_columns(df: pd.DataFrame, task: str, columns: list[str]) -> pd.DataFrame:
    by_task = df.groupby(task, observed=True, sort=False)[columns]
    varies = by_task.nunique(dropna=False) > 1
    for column in columns:
        if varies[column].any():
            raise ValueError(
                f"task_features must be constant within a task; got {column!r} with several "
                f"values in task {varies.index[varies[column]][0]!r}. Use its mean by task, or "
                "make it a feature."
            )
    return by_task.head(1).set_axis(df[task].loc[by_task.head(1).index], axis=0)


def multioutput_parts(
    x: Tensor, targets: ArrayLike, tasks: Sequence[Hashable] | None
) -> tuple[Tensor, Tensor, Tensor, Sequence[Hashable]]:
    """Observed targets of (N, K) ``targets``, their rows, tasks and the K labels."""
    y = as_targets(targets, x)
    if y.ndim != 2:
        raise ValueError(f"Y must have shape (N, K), a column per task; got {tuple(y.shape)}.")
    if tasks is None:
        tasks = column_names(targets) or range(y.shape[1])
    labels = as_labels(list(tasks), "tasks").tolist()
    if len(labels) != y.shape[1]:
        raise ValueError(f"tasks must name the K = {y.shape[1]} columns of Y; got {len(labels)}.")
    task, row = (~torch.isnan(y)).T.nonzero(as_tuple=True)
    if len(row) == 0:
        raise ValueError("Y must have at least one observed entry; got only NaN.")
    return y[row, task], row, task, labels


def take_labels(labels: Sequence[Hashable], task: Tensor) -> npt.NDArray[Any]:
    """(N,) label of each row's task."""
    return as_labels(list(labels), "tasks")[task.cpu().numpy()]


def table_parts(
    tables: Mapping[Hashable, tuple[ArrayLike, ArrayLike]],
) -> tuple[Tensor, Tensor, Tensor, list[Hashable], tuple[str, ...] | None]:
    """Inputs, targets, task index, labels and feature names of tables by task."""
    if not tables:
        raise ValueError("tables must hold at least one task; got none.")
    xs, ys = [], []
    for label, table in tables.items():
        try:
            x, y = table
            xs.append(as_inputs(x))
            ys.append(as_targets(y, xs[-1]).to(xs[0]))
        except (TypeError, ValueError) as error:
            raise type(error)(f"task {label!r}: {error}") from error
        if xs[-1].shape[1:] != xs[0].shape[1:] or ys[-1].shape[1:] != ys[0].shape[1:]:
            raise ValueError(
                f"task {label!r}: x and y must have rows of shape {tuple(xs[0].shape[1:])} and "
                f"{tuple(ys[0].shape[1:])}, as the first task has; got "
                f"{tuple(xs[-1].shape[1:])} and {tuple(ys[-1].shape[1:])}."
            )
    counts = torch.tensor([len(x) for x in xs])
    task = torch.repeat_interleave(torch.arange(len(xs)), counts)
    x = torch.cat([part.to(xs[0]) for part in xs])
    names = column_names(next(iter(tables.values()))[0])
    return x, torch.cat(ys), task, list(tables), names


def concat_parts(parts: Sequence[TaskData]) -> dict[str, Any]:
    """Arguments of the `TaskData` that holds the rows of all ``parts``."""
    if not parts:
        raise ValueError("parts must hold at least one TaskData; got none.")
    first = parts[0]
    for name in ("feature_names", "target_names", "task_feature_names"):
        values = {getattr(part, name) for part in parts}
        if len(values) > 1:
            raise ValueError(f"parts must agree in {name}; got {sorted(map(str, values))}.")
    for i, part in enumerate(parts):
        if part.x.shape[1:] != first.x.shape[1:] or part.y.shape[1:] != first.y.shape[1:]:
            raise ValueError(
                f"parts must have rows of one shape; got x {tuple(part.x.shape)} and y "
                f"{tuple(part.y.shape)} in part {i}, x {tuple(first.x.shape)} and y "
                f"{tuple(first.y.shape)} in part 0."
            )
    weighted = any(part.weight is not None for part in parts)
    ones = [
        torch.ones_like(part.x[:, 0].flatten(1)[:, 0] if part.x.ndim > 2 else part.x[:, 0])
        for part in parts
    ]
    weights = [
        one if part.weight is None else part.weight for part, one in zip(parts, ones, strict=True)
    ]
    return {
        "x": torch.cat([part.x.to(first.x) for part in parts]),
        "y": torch.cat([part.y.to(first.y) for part in parts]),
        "task": np.concatenate([take_labels(part.tasks, part.task) for part in parts]),
        "tasks": list(dict.fromkeys(label for part in parts for label in part.tasks)),
        "weight": torch.cat([w.to(first.x) for w in weights]) if weighted else None,
        "task_features": _joined_task_features(parts),
        "feature_names": first.feature_names,
        "target_names": first.target_names,
        "task_feature_names": first.task_feature_names,
    }


def _joined_task_features(parts: Sequence[TaskData]) -> dict[Hashable, Any] | None:
    tables = [part.task_features for part in parts]
    if all(table is None for table in tables):
        return None
    joined: dict[Hashable, Any] = {}
    for i, (part, table) in enumerate(zip(parts, tables, strict=True)):
        if table is None:
            raise ValueError(f"parts must all have task_features or none; part {i} has none.")
        for label, row in zip(part.tasks, table.cpu().numpy(), strict=True):
            if label in joined and not np.array_equal(joined[label], row):
                raise ValueError(
                    f"parts must agree in the task_features of a task; got two rows for {label!r}."
                )
            joined[label] = row
    return joined


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
    return value.long()
