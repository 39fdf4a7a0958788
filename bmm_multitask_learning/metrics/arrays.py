"""How the metrics read their arguments."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

Array = ArrayLike | torch.Tensor
Floats = NDArray[np.float64]


def numbers(values: Array) -> Floats:
    """Float64 array of an array or tensor."""
    if isinstance(values, torch.Tensor):
        values = values.detach().to("cpu", torch.float64).numpy()  # NumPy has no bfloat16
    return np.asarray(values, dtype=np.float64)


def task_index(task: Array, num_rows: int | None = None) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Sorted labels of the tasks, and the index of each row's task among them."""
    if isinstance(task, torch.Tensor):
        task = task.detach().cpu().numpy()
    labels = np.asarray(task)
    if labels.ndim != 1 or num_rows not in (None, len(labels)):
        rows = "N" if num_rows is None else num_rows
        raise ValueError(
            f"task must be ({rows},), one label a row; got an array of shape {labels.shape}."
        )
    return np.unique(labels, return_inverse=True)


def aligned(y: Array, **predictions: Array) -> tuple[Floats, ...]:
    """Targets and predictions shaped like them, checked to be finite wherever y is observed."""
    targets = numbers(y)
    read = {name: numbers(values) for name, values in predictions.items()}
    seen = ~np.isnan(targets)
    for name, values in read.items():
        if values.shape != targets.shape:
            raise ValueError(
                f"{name} must be shaped like the targets, {targets.shape}; got {values.shape}."
            )
        check_finite(name, values[seen])
    return targets, *read.values()


def observed(y: Array, **predictions: Array) -> tuple[Floats, ...]:
    """Flat arrays of targets and of predictions, where y is observed."""
    targets, *rest = aligned(y, **predictions)
    seen = ~np.isnan(targets)
    return targets[seen], *(values[seen] for values in rest)


def check_finite(name: str, values: Floats) -> None:
    """Refuse predictions that are NaN or infinite."""
    bad = int((~np.isfinite(values)).sum())
    if bad:
        raise ValueError(
            f"{name} must be finite wherever a target is observed; {bad} of {values.size} values "
            "are not. Did the fit diverge?"
        )


def average(values: NDArray[Any]) -> float:
    """Mean as a Python float; NaN of nothing."""
    return float(values.mean()) if values.size else float("nan")
