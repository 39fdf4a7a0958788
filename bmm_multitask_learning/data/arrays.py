"""From what users hold (arrays, tensors, lists, frames) to checked tensors."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from torch import Tensor

if TYPE_CHECKING:
    import pandas as pd

ArrayLike: TypeAlias = "Tensor | npt.ArrayLike | pd.DataFrame | pd.Series"


def is_frame(value: Any) -> bool:
    """Whether ``value`` is a pandas DataFrame; pandas is not imported to find out."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(value, pandas.DataFrame)


def is_series(value: Any) -> bool:
    """Whether ``value`` is a pandas Series; pandas is not imported to find out."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(value, pandas.Series)


def non_numeric_columns(frame: pd.DataFrame) -> list[str]:
    """Names of the columns of ``frame`` that hold no numbers."""
    from pandas.api.types import is_numeric_dtype

    return [
        str(name)
        for name, dtype in zip(frame.columns, frame.dtypes, strict=True)
        if not is_numeric_dtype(dtype)
    ]


def as_tensor(value: ArrayLike, name: str, advice: str) -> Tensor:
    """A floating tensor of ``value``.

    Floating tensors keep their dtype and memory; everything else becomes float64.

    Args:
        value: Numbers of any shape.
        name: What the value is called in an error.
        advice: What an error on values that are no numbers tells the user to do.

    Returns:
        The tensor, of the shape of ``value``.

    Raises:
        TypeError: Where the values are no real numbers.
        ValueError: Where the rows differ in length.
    """
    if isinstance(value, Tensor):
        if value.is_complex():
            raise TypeError(f"{name} must hold real numbers; got {value.dtype}. {advice}")
        return value if value.is_floating_point() else value.to(torch.float64)
    array = np.asarray(_numbers(value, name, advice), order="C")
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _numbers(value: Any, name: str, advice: str) -> npt.NDArray[np.float64]:
    if is_frame(value):
        text = non_numeric_columns(value)
        if text:
            raise TypeError(f"{name} must hold numbers; got non-numeric columns {text}. {advice}")
        return np.asarray(value.to_numpy(dtype=np.float64, na_value=np.nan))
    if sparse.issparse(value):
        raise TypeError(f"{name} must be dense; got a sparse matrix. Pass {name}.toarray().")
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(
            f"{name} must be a rectangular array of numbers; got rows of different length. "
            "Give every row the same shape."
        ) from error
    numeric = array.dtype.kind in "biuf"
    if array.dtype.kind == "O":
        numeric = not any(isinstance(item, str | bytes) for item in array.flat)
    if not numeric:
        raise TypeError(f"{name} must hold real numbers; got {_example(array)}. {advice}")
    if is_series(value):
        return np.asarray(value.to_numpy(dtype=np.float64, na_value=np.nan))
    try:
        return array.astype(np.float64, copy=False)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{name} must hold real numbers; got {_example(array)}. {advice}"
        ) from error


def _example(array: npt.NDArray[Any]) -> str:
    first = f", the first {next(iter(array.flat))!r}" if array.size else ""
    return f"values of type {array.dtype}{first}"


def check_finite(
    value: Tensor,
    name: str,
    advice: str,
    *,
    nan: bool = False,
    columns: Sequence[str] | None = None,
) -> None:
    """Raise a ValueError that counts the values that are not finite and places the first.

    Args:
        value: (N, ...) tensor.
        name: What the tensor is called in the error.
        advice: What the user can do.
        nan: Whether NaN is allowed.
        columns: Names of the second axis, if any.
    """
    bad = torch.isinf(value) if nan else ~torch.isfinite(value)
    if not bool(bad.any()):
        return
    first = bad.nonzero()[0].tolist()
    place = f"row {first[0]}"
    if len(first) == 2:
        place += f", column {first[1]}" + (f" ({columns[first[1]]!r})" if columns else "")
    elif len(first) > 2:
        place += f", position {tuple(first[1:])}"
    expected = "finite or NaN" if nan else "finite"
    nans, infs = int(torch.isnan(value).sum()), int(torch.isinf(value).sum())
    counts = f"{infs} infinite" if nan else f"{nans} NaN and {infs} infinite"
    raise ValueError(f"{name} must be {expected}; got {counts} values, first at {place}. {advice}")


def as_inputs(x: ArrayLike, columns: Sequence[str] | None = None) -> Tensor:
    """(N, ...) checked inputs; see `TaskData` for what is accepted."""
    advice = "Encode text and categories first, e.g. by pandas.get_dummies or an embedding."
    if isinstance(x, Tensor) and x.ndim > 2 and x.dtype in (torch.int32, torch.int64):
        value = x  # tokens: a backbone embeds them
    else:
        value = as_tensor(x, "x", advice)
    if value.ndim < 2:
        hint = " For one feature pass x[:, None]." if value.ndim == 1 else ""
        raise ValueError(f"x must have shape (N, D) or more axes; got {tuple(value.shape)}.{hint}")
    if value.shape[0] == 0:
        raise ValueError("x must have at least one row; got none. Did a filter drop every row?")
    if value[0].numel() == 0:
        raise ValueError(
            f"x must have at least one feature; got shape {tuple(value.shape)}. "
            "For a model of the means alone pass a column of ones."
        )
    names = columns if columns is not None and len(columns) == value.shape[1] else None
    check_finite(value, "x", "Drop or impute these rows first.", columns=names)
    return value


def as_targets(y: ArrayLike, x: Tensor) -> Tensor:
    """(N,) or (N, O) targets, NaN where not observed, in the dtype of ``x`` if it has decimals."""
    advice = "Encode labels as numbers, or use MultitaskClassifier, which does."
    dtype = x.dtype if x.is_floating_point() else torch.float64
    value = as_tensor(y, "y", advice).to(x.device, dtype)
    if value.ndim not in (1, 2) or (value.ndim == 2 and value.shape[1] == 0):
        raise ValueError(f"y must have shape (N,) or (N, O); got {tuple(value.shape)}.")
    _check_rows(value, "y", len(x))
    check_finite(value, "y", "Mark a target that was not observed as NaN.", nan=True)
    return value


def as_weight(weight: ArrayLike, like: Tensor) -> Tensor:
    """(N,) non-negative finite row weights, in the dtype and place of ``like``."""
    value = as_tensor(weight, "weight", "One number a row.").to(like)
    if value.ndim != 1:
        raise ValueError(f"weight must have shape (N,); got {tuple(value.shape)}.")
    _check_rows(value, "weight", like.shape[0])
    check_finite(value, "weight", "A row without weight has weight 0.")
    if bool((value < 0).any()):
        row = int((value < 0).nonzero()[0, 0])
        raise ValueError(
            f"weight must not be negative; got {float(value[row]):g} at row {row}. "
            "A row without weight has weight 0."
        )
    return value


def _check_rows(value: Tensor, name: str, rows: int) -> None:
    if value.shape[0] != rows:
        raise ValueError(
            f"{name} must have one entry per row of x, N = {rows}; got {value.shape[0]}."
        )


def as_names(names: Sequence[str] | None, count: int, what: str) -> tuple[str, ...] | None:
    """``names`` as a tuple of ``count`` strings, or None."""
    if names is None:
        return None
    if isinstance(names, str):
        raise TypeError(f"{what} must be a list of {count} names; got the string {names!r}.")
    if len(names) != count:
        raise ValueError(f"{what} must have {count} names; got {len(names)}.")
    return tuple(str(name) for name in names)


def column_names(value: ArrayLike) -> tuple[str, ...] | None:
    """Column names of a frame, the name of a named series, None otherwise."""
    if is_frame(value):
        return tuple(str(name) for name in value.columns)  # type: ignore[union-attr]
    if is_series(value) and value.name is not None:  # type: ignore[union-attr]
        return (str(value.name),)  # type: ignore[union-attr]
    return None
