"""The state of a fit as named tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from ..statistics import TaskStatistics

if TYPE_CHECKING:
    from ..model import MultitaskModel


def part_of(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose name begins with `prefix`, by the rest of it."""
    return {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}


def put_back(model: MultitaskModel, state: Mapping[str, Tensor]) -> dict[str, TaskStatistics]:
    """Hyperparameters into a model's families; returns the factors of their tasks.

    Args:
        model: of the same families.
        state: from `VariationalProgram.snapshot`.
    """
    sites = {}
    for name, family in model.families.items():
        family.prior.put_back(part_of(state, f"prior.{name}."))
        family.likelihood.put_back(part_of(state, f"likelihood.{name}."))
        A, b, c, rows = (state[f"site.{name}.{field}"] for field in ("A", "b", "c", "rows"))
        sites[name] = TaskStatistics(A, b, c, rows)
    return sites
