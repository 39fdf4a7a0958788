"""Tables of a user's own: read, and checked column by column."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence
from difflib import get_close_matches
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from .data import TaskData

_MOST_CLASSES = 50

Floats = npt.NDArray[np.float64]


class TableError(ValueError):
    """A table cannot be used as asked: the message says why, and what to do."""


class TargetKind(Enum):
    """What the target's values are."""

    REAL = "real numbers"
    COUNT = "counts"
    BINARY = "two classes"
    CLASSES = "classes"


@dataclasses.dataclass(frozen=True)
class Columns:
    """Which column of a table plays which part.

    Args:
        task: labels of the tasks; read as text.
        target: what is to be predicted.
        features: numbers that it is predicted from; none: every other numeric column.
        task_features: numbers that are constant within a task.
        text: sentences that it is predicted from, in place of features.
    """

    task: str
    target: str
    features: tuple[str, ...] = ()
    task_features: tuple[str, ...] = ()
    text: str = ""


# ---- reading ------------------------------------------------------------------------------------


def read_table(path: Path, *, task: str, text: str = "", separator: str = ",") -> pd.DataFrame:
    """Read a CSV file with a header; task labels and sentences stay text.

    Args:
        path: the file.
        task: the column of labels.
        text: the column of sentences, if there is one; only an empty cell is missing there.
        separator: between columns.

    Returns:
        The table, with at least one row.

    Raises:
        TableError: the file is not there, not readable as CSV, or has no rows.
    """
    try:
        frame = pd.read_csv(path, sep=separator, dtype={task: str})
        if text in frame:  # as it stands in the file, even if that is "NA" or a number
            frame[text] = pd.read_csv(
                path, sep=separator, usecols=[text], dtype=str, keep_default_na=False
            )[text]
    except FileNotFoundError:
        raise TableError(f"there is no file {path}. Check the spelling and the folder.") from None
    except pd.errors.EmptyDataError:
        raise TableError(f"{path} is empty. It must have a header and at least one row.") from None
    except (pd.errors.ParserError, UnicodeDecodeError) as error:
        raise TableError(
            f"{path} is not readable as CSV ({error}). Save the table as CSV in UTF-8, with a "
            "header and commas between columns, or say --separator."
        ) from error
    except OSError as error:
        raise TableError(f"{path} cannot be read: {error.strerror}.") from error
    if frame.empty:
        raise TableError(f"{path} has a header but no rows. Give at least one row.")
    return frame


def check_columns(frame: pd.DataFrame, wanted: Sequence[str]) -> None:
    """Raise a TableError for the first column that is not there, with the nearest name."""
    names = [str(name) for name in frame.columns]
    for column in wanted:
        if column in names:
            continue
        lower = {name.lower(): name for name in names}
        close = get_close_matches(column.lower(), lower, n=1)
        hint = f" Did you mean {lower[close[0]]!r}?" if close else ""
        if len(names) == 1 and any(mark in names[0] for mark in ";\t|"):
            hint = " Columns seem to be separated by something else: say --separator ';'."
        raise TableError(f"there is no column {column!r}; the columns are {_listed(names)}.{hint}")


def _listed(names: Sequence[str], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(repr(name) for name in names[:most]) + more


def numbers(frame: pd.DataFrame, columns: Sequence[str]) -> Floats:
    """Columns (N, D) that must be finite numbers.

    Raises:
        TableError: a column is text, or a cell is empty or infinite; it is named.
    """
    check_columns(frame, columns)
    for column in columns:
        values = frame[column]
        if not _is_numeric(values):
            raise TableError(
                f"column {column!r} must be numeric; line {_first_text(values)} has text. "
                "Leave it out with --features, or encode it, e.g. as 0 and 1."
            )
        bad = ~np.isfinite(values.to_numpy(dtype=np.float64))
        if bad.any():
            raise TableError(
                f"column {column!r} is empty or infinite in {int(bad.sum())} of {len(frame)} "
                f"rows, first in line {int(bad.argmax()) + 2}. Fill or drop these rows, or "
                "leave the column out with --features."
            )
    return frame[list(columns)].to_numpy(dtype=np.float64)


def _is_numeric(values: pd.Series[Any]) -> bool:
    return bool(pd.api.types.is_numeric_dtype(values))


def _first_text(values: pd.Series[Any]) -> str:
    text = pd.to_numeric(values, errors="coerce").isna() & values.notna()
    row = int(text.to_numpy().argmax())
    return f"{row + 2} ({values.iloc[row]!r})"


def task_labels(frame: pd.DataFrame, task: str) -> list[str]:
    """The (N,) task labels as text.

    Raises:
        TableError: the column is not there, or a label is missing.
    """
    check_columns(frame, [task])
    missing = frame[task].isna().to_numpy()
    if missing.any():
        raise TableError(
            f"column {task!r} has no label in {int(missing.sum())} rows, first in line "
            f"{int(missing.argmax()) + 2}. Every row must belong to a task: fill or drop these."
        )
    return [str(label) for label in frame[task]]


def sentences(frame: pd.DataFrame, column: str) -> list[str]:
    """The (N,) sentences of a column.

    Raises:
        TableError: the column is not there, or a cell is empty.
    """
    check_columns(frame, [column])
    found = [str(cell).strip() for cell in frame[column]]
    empty = [line for line, text in enumerate(found, start=2) if not text]
    if empty:
        raise TableError(
            f"column {column!r} is empty in {len(empty)} of {len(found)} rows, first in line "
            f"{empty[0]}. Fill or drop these rows."
        )
    return found


def choose_features(frame: pd.DataFrame, columns: Columns) -> tuple[Columns, list[str]]:
    """Columns with features named, and the text columns that were left out.

    Raises:
        TableError: a column is missing, plays two parts, or none is left.
    """
    named = [columns.task, columns.target, *columns.task_features]
    inputs = [*columns.features, *([columns.text] if columns.text else [])]
    check_columns(frame, [*named, *inputs])
    taken = [name for name in inputs if name in (columns.task, columns.target)]
    if taken:
        raise TableError(f"{taken[0]!r} cannot be a feature too: it is the task or the target.")
    if columns.text and columns.features:
        raise TableError(
            f"say either --text or --features: got {columns.text!r} and {_listed(inputs[:-1])}."
        )
    if columns.text or columns.features:
        return columns, []
    others = [str(name) for name in frame.columns if name not in named]
    numeric = tuple(name for name in others if _is_numeric(frame[name]))
    if not numeric:
        raise TableError(
            f"no numeric column is left for features besides {_listed(named)}. Encode categories "
            "as numbers."
        )
    left_out = [name for name in others if name not in numeric]
    return dataclasses.replace(columns, features=numeric), left_out


def kind_of_target(frame: pd.DataFrame, target: str) -> TargetKind:
    """What a target's values are by their look: text and 0 or 1 are classes, numbers are real.

    Raises:
        TableError: the column is not there.
    """
    check_columns(frame, [target])
    values = frame[target].dropna()
    if _is_numeric(values):
        return TargetKind.BINARY if set(values.unique()) == {0, 1} else TargetKind.REAL
    if pd.to_numeric(values, errors="coerce").notna().mean() > 0.5:
        return TargetKind.REAL  # with a slip, which is told when they are read
    return TargetKind.BINARY if values.nunique() <= 2 else TargetKind.CLASSES


# ---- targets ------------------------------------------------------------------------------------


def read_target(
    frame: pd.DataFrame, target: str, kind: TargetKind, classes: tuple[str, ...] = ()
) -> tuple[Floats, tuple[str, ...]]:
    """The target (N,) as numbers, NaN where not observed, and its classes where it has any.

    Args:
        frame: the table.
        target: its column.
        kind: what its values are.
        classes: known classes in their order; by default those that occur, sorted.

    Raises:
        TableError: values that do not fit the kind.
    """
    check_columns(frame, [target])
    values = frame[target]
    if kind in (TargetKind.REAL, TargetKind.COUNT):
        return _numeric_target(values, kind), ()
    text = _as_text(values)
    occurring = {name for name in text if name is not None}
    found = classes or tuple(sorted(occurring, key=_in_order))
    _check_classes(target, found, kind)
    place = {name: float(index) for index, name in enumerate(found)}
    unknown = sorted(occurring - set(found))
    if unknown:
        raise TableError(
            f"target {target!r} has {unknown[0]!r}, which is not among {_listed(found)}."
        )
    return np.array([np.nan if name is None else place[name] for name in text]), found


def _numeric_target(values: pd.Series[Any], kind: TargetKind) -> Floats:
    if not _is_numeric(values):
        raise TableError(
            f"target {values.name!r} must be numeric for {kind.value}; line {_first_text(values)} "
            "has text. For classes say --likelihood bernoulli (two) or categorical (more)."
        )
    y = values.to_numpy(dtype=np.float64)
    observed = y[~np.isnan(y)]
    if not len(observed) or np.isinf(observed).any():
        raise TableError(
            f"target {values.name!r} must have observed, finite values; got none or infinite ones."
        )
    wrong = observed[(observed < 0) | (observed != np.round(observed))]
    if kind is TargetKind.COUNT and len(wrong):
        raise TableError(
            f"target {values.name!r} must be counts 0, 1, 2, ...; got {wrong[0]:g}. "
            "For real numbers say --likelihood gaussian."
        )
    return y


def _as_text(values: pd.Series[Any]) -> list[str | None]:
    """Class labels as text: 1.0 reads 1, empty cells None."""
    if _is_numeric(values) and not pd.api.types.is_bool_dtype(values):
        return [None if pd.isna(value) else f"{value:g}" for value in values]
    return [None if pd.isna(value) else str(value) for value in values]


def _in_order(name: str) -> tuple[bool, float, str]:
    """Numbers by their value, then text."""
    try:
        return False, float(name), name
    except ValueError:
        return True, 0.0, name


def _check_classes(target: str, found: Sequence[str], kind: TargetKind) -> None:
    if len(found) < 2:
        raise TableError(f"target {target!r} has {len(found)} class; at least two are needed.")
    if kind is TargetKind.BINARY and len(found) > 2:
        raise TableError(
            f"target {target!r} has {len(found)} different values ({_listed(found, 5)}); "
            "bernoulli takes two. Say --likelihood categorical, or gaussian for numbers."
        )
    if len(found) > _MOST_CLASSES:
        raise TableError(
            f"target {target!r} has {len(found)} different values, more than the {_MOST_CLASSES} "
            "classes that are allowed. For numbers say --likelihood gaussian."
        )


# ---- task features ---------------------------------------------------------------------------


def task_table(frame: pd.DataFrame, columns: Columns) -> dict[Hashable, Floats] | None:
    """The task features (F,) of each label, or None.

    Raises:
        TableError: a task feature varies within a task.
    """
    if not columns.task_features:
        return None
    values = numbers(frame, columns.task_features)
    table: dict[Hashable, Floats] = {}
    for row, label in enumerate(task_labels(frame, columns.task)):
        first = table.setdefault(label, values[row])
        if (first != values[row]).any():
            column = columns.task_features[int((first != values[row]).argmax())]
            raise TableError(
                f"task feature {column!r} must be constant within a task; task {label!r} has "
                f"{first[columns.task_features.index(column)]:g} and another value in line "
                f"{row + 2}. Make it a feature, or take its mean by task."
            )
    return table


# ---- all of it --------------------------------------------------------------------------------


def as_task_data(
    frame: pd.DataFrame, columns: Columns, kind: TargetKind, embedded: Floats | None = None
) -> tuple[TaskData, tuple[str, ...]]:
    """The rows in the user's units, and the classes of the target.

    Args:
        frame: the table.
        columns: with all features named.
        kind: of the target.
        embedded: (N, D) features of the sentences, where the columns name a text.

    Raises:
        TableError: anything in the table that does not fit; it is named.
    """
    y, classes = read_target(frame, columns.target, kind)
    data = TaskData(
        numbers(frame, columns.features) if embedded is None else embedded,
        y,
        task_labels(frame, columns.task),
        task_features=task_table(frame, columns),
        feature_names=columns.features or None,
        target_names=(columns.target,),
    )
    return data, classes
