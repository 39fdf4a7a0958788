"""Readers of columns: which of a backbone's J columns a row has its features from."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from ..backbone import Backbone


@final
class Column(Backbone):
    """The features of one column, for a family that has a column to itself.

    Args:
        column: its number, from 0.

    Raises:
        ValueError: for a negative number, or, when it reads, where there is no such column.

    Example:
        >>> h = torch.arange(12.0).reshape(2, 3, 2)  # (N, J, D)
        >>> Column(2)(h, torch.zeros(2, 1), torch.zeros(2, dtype=torch.long))
        tensor([[ 4.,  5.],
                [10., 11.]])
    """

    def __init__(self, column: int) -> None:
        super().__init__()
        if column < 0:
            raise ValueError(f"column must be 0 or more; got {column}.")
        self.column = column

    def arguments(self) -> dict[str, Any]:
        return {"column": self.column}

    def forward(self, h: Tensor, x: Tensor, task: Tensor) -> Tensor:
        """Features (N, D) of columns h (N, J, D)."""
        _check(h)
        if self.column >= h.shape[1]:
            raise ValueError(
                f"Column({self.column}) is not among the backbone's {h.shape[1]} columns, which "
                "are numbered from 0. Give the backbone a column for each reader."
            )
        return h[:, self.column]


@final
class OwnColumn(Backbone):
    """The features of the column of each row's task: the first task reads the first column.

    Give the backbone as many columns as there are tasks. Tasks outside the fit, which have no
    column, read the mean of all.

    Raises:
        ValueError: when it reads what are no columns.

    Example:
        >>> h = torch.arange(12.0).reshape(2, 3, 2)  # (N, J, D)
        >>> OwnColumn()(h, torch.zeros(2, 1), torch.tensor([1, 3]))
        tensor([[2., 3.],
                [8., 9.]])
    """

    def arguments(self) -> dict[str, Any]:
        return {}

    def forward(self, h: Tensor, x: Tensor, task: Tensor) -> Tensor:
        """Features (N, D) of columns h (N, J, D)."""
        _check(h)
        J = h.shape[1]
        own = h[torch.arange(len(h), device=h.device), task.clamp(max=J - 1)]
        return torch.where((task < J)[:, None], own, h.mean(1))


def _check(h: Tensor) -> None:
    if h.ndim != 3:
        raise ValueError(
            f"columns of features have the shape (N, J, D); got {tuple(h.shape)}. Take a backbone "
            "with columns, such as Towers or CrossStitch, or leave reader= out."
        )
