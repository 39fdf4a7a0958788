"""Targets in other units: a distribution shifted and scaled."""

from __future__ import annotations

from typing import final

from torch import Tensor
from torch.distributions import AffineTransform, Distribution, TransformedDistribution


@final
class Affine(TransformedDistribution):
    r"""$y = a + b z$ with $z \sim$ `base`: torch's own, with its mean and variance.

    Args:
        base: of z, univariate.
        loc: $a$, broadcastable against the batch shape.
        scale: $b > 0$, likewise.

    Example:
        >>> import torch
        >>> law = torch.distributions.Normal(torch.zeros(3), torch.ones(3))
        >>> Affine(law, torch.tensor(5.0), torch.tensor(2.0)).variance
        tensor([4., 4., 4.])
    """

    def __init__(self, base: Distribution, loc: Tensor, scale: Tensor) -> None:
        self.loc, self.scale = loc, scale
        super().__init__(base, AffineTransform(loc, scale), validate_args=False)

    @property
    def mean(self) -> Tensor:
        """$a + b E[z]$."""
        return self.loc + self.scale * self.base_dist.mean

    @property
    def variance(self) -> Tensor:
        """$b^2 Var[z]$."""
        return self.scale.square() * self.base_dist.variance
