"""The parts of a `TaskData` from frames, several outputs, tables by task, or other data."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, NamedTuple, cast

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
    others = [task] if weight is None else [task, weight]
    if task_features is None or is_frame(task_features):
        table, task_columns = cast("pd.DataFrame | None", task_features), []
    else:
        task_columns = check_columns(df, cast("Sequence[str]", task_features), "task_features")
        check_columns(df, [task], "task")
        table = _constant_columns(df, task, task_columns)
    check_columns(df, [*targets, *others], "df")
    if features is None:
        chosen = other_numeric_columns(df, [*targets, *others, *task_columns])
    else:
        chosen = check_columns(df, features, "features")
        _check_features(df, chosen, targets)
    y = df[targets[0]] if isinstance(target, str) else df[targets]
    return FrameParts((df[chosen], y, df[task]), None if weight is None else df[weight], table)


def other_numeric_columns(df: pd.DataFrame, taken: Sequence[str]) -> list[str]:
    """Numeric columns apart from those taken; an error where there is none."""
    text = non_numeric_columns(df)
    chosen = [name for name in df.columns if name not in taken and str(name) not in text]
    if not chosen:
        raise ValueError(
            f"df must have a numeric column besides {list(taken)}; got columns "
            f"{list(df.columns)}. Encode categories, e.g. by pandas.get_dummies."
        )
    return chosen


def _check_features(df: pd.DataFrame, features: list[str], targets: Sequence[str]) -> None:
    leaks = [name for name in targets if name in features]
    if leaks:
        raise ValueError(f"features must not hold the target; got {leaks} in both.")
    text = non_numeric_columns(df[features])
    if text:
        raise TypeError(
            f"features must be numeric columns; got non-numeric {text}. Encode them, "
            f"e.g. pandas.get_dummies(df, columns={text})."
        )


def check_columns(df: pd.DataFrame, columns: Sequence[str], what: str) -> list[str]:
    """The columns as a list; an error where one is not in the frame."""
    if isinstance(columns, str):
        raise TypeError(f"{what} must be a list of columns; got the string {columns!r}.")
    for column in columns:
        if column not in df.columns:
            names = [str(name) for name in df.columns]
            close = get_close_matches(str(column), names, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise KeyError(f"df has no column {column!r}; its columns are {names}.{hint}")
    return list(columns)


def _constant_columns(df: pd.DataFrame, task: str, columns: list[str]) -> pd.DataFrame:
    import pandas as pd

    by_task = df.groupby(task, observed=True, sort=False)[columns]
    varies = by_task.nunique(dropna=False) > 1
    for column in columns:
        if varies[column].any():
            raise ValueError(
                f"task_features must be constant within a task; got {column!r} with several "
                f"values in task {varies.index[varies[column]][0]!r}. Use its mean by task, or "
                "make it a feature."
            )
    first = df.drop_duplicates(task)
    return first[columns].set_axis(pd.Index(first[task]), axis=0)


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
    names = as_labels(list(labels), "tasks")
    return np.take(names, task.cpu().numpy())


def table_parts(
    tables: Mapping[Hashable, tuple[ArrayLike, ArrayLike]],
) -> tuple[Tensor, Tensor, Tensor, list[Hashable], tuple[str, ...] | None]:
    """Inputs, targets, task index, labels and feature names of tables by task."""
    if not tables:
        raise ValueError("tables must hold at least one task; got none.")
    xs, ys = [], []
    for label, table in tables.items():
        try:
            if not isinstance(table, tuple | list) or len(table) != 2:
                raise TypeError(f"expected a pair (x, y); got {type(table).__name__}.")
            xs.append(as_inputs(table[0]))
            ys.append(as_targets(table[1], xs[-1]).to(xs[0]))
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
    weights = [
        part.y.new_ones(len(part)) if part.weight is None else part.weight for part in parts
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
