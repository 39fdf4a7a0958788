"""How large a vector is, without a scale of its own."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.types import _size

from .exchangeable_gaussian import NO_SAMPLES


class SphericalCauchy(TorchDistribution):
    r"""$p(v) \propto (1 + \|v\|^2 / K)^{-(K + 1)/2}$: entries near 1, or all of them larger.

    A Gaussian of unknown scale, $v \sim N(0, I/\alpha)$ with
    $\alpha \sim \mathrm{Gamma}(\tfrac12, \tfrac K2)$ integrated out.

    Args:
        like: (R, K), of the shape, dtype and device of a draw: R independent vectors.

    Example:
        >>> SphericalCauchy(torch.zeros(2, 5)).sample().shape
        torch.Size([2, 5])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.independent(constraints.real, 1)
    has_rsample = True

    def __init__(self, like: Tensor, *, validate_args: bool | None = None) -> None:
        self.like = like
        super().__init__(like.shape[:-1], like.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: _size, _instance: Any = None) -> SphericalCauchy:
        shape = (*batch_shape, *self.event_shape)
        return SphericalCauchy(self.like.expand(shape), validate_args=False)

    def rsample(self, sample_shape: _size = NO_SAMPLES) -> Tensor:
        shape = self._extended_shape(sample_shape)
        like = self.like
        normal = torch.randn(shape, dtype=like.dtype, device=like.device)
        scale = torch.randn((*shape[:-1], 1), dtype=like.dtype, device=like.device)
        return normal * shape[-1] ** 0.5 / scale.abs()

    def log_prob(self, value: Tensor) -> Tensor:
        half = 0.5 * (value.shape[-1] + 1)
        K = value.shape[-1]
        constant = math.lgamma(half) - half * math.log(math.pi) - 0.5 * K * math.log(K)
        return constant - half * value.square().mean(-1).log1p()
