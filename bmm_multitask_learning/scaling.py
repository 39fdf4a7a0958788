"""Features on one scale, and a constant one for the intercept."""

from __future__ import annotations

import dataclasses
from typing import Self

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Scaling:
    r"""$\phi = (1, (x - \bar x) / s)$ with mean and standard deviation of the rows it was made of.

    A constant column becomes zero.

    Args:
        mean: (D,) means.
        scale: (D,) standard deviations, 1 for a constant column.

    Example:
        >>> rows = torch.tensor([[1.0, 7.0], [3.0, 7.0]])
        >>> Scaling.of(rows).apply(rows)
        tensor([[ 1., -1.,  0.],
                [ 1.,  1.,  0.]])
    """

    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Self:
        """The scaling of rows (N, D)."""
        mean = x.mean(0)
        std = x.std(0, correction=0)
        constant = std <= 1e-12 * x.abs().amax(0)  # rounding of the mean is no variation
        return cls(mean, torch.where(constant, 1.0, std))

    def apply(self, x: Tensor) -> Tensor:
        """Rows (N, D) as features (N, 1 + D)."""
        return torch.cat([x.new_ones(len(x), 1), (x - self.mean) / self.scale], 1)
