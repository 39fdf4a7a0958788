"""Vectors that share an unknown Gaussian centre, the centre integrated out."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.types import _size

NO_SAMPLES = torch.Size()


class ExchangeableGaussian(TorchDistribution):
    r"""Joint distribution of K vectors around a common centre that is integrated out.

    $m \sim N(0, S)$ and $w_k \mid m \sim N(m, \Sigma)$ give
    $$\log p(w_1 \dots w_K) = \log N(\bar w; 0, S + \Sigma / K) - \tfrac{D}{2} \log K
      - \tfrac{K-1}{2} \log |2\pi\Sigma|
      - \tfrac12 \sum_k (w_k-\bar w)^\top\Sigma^{-1}(w_k-\bar w).$$

    Args:
        num_tasks: number of vectors K.
        centre_variance: (O, D) diagonal of $S$.
        scale_tril: (O, D, D) Cholesky factor of $\Sigma$.

    The event has shape (K, O, D); the O outputs are independent.

    Example:
        >>> ExchangeableGaussian(4, torch.ones(1, 3), torch.eye(3)[None]).sample().shape
        torch.Size([4, 1, 3])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "centre_variance": constraints.independent(constraints.positive, 2),
        "scale_tril": constraints.independent(constraints.lower_cholesky, 1),
    }
    support = constraints.independent(constraints.real, 3)
    has_rsample = True

    def __init__(
        self,
        num_tasks: int,
        centre_variance: Tensor,
        scale_tril: Tensor,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.num_tasks = num_tasks
        self.centre_variance = centre_variance
        self.scale_tril = scale_tril
        event = torch.Size((num_tasks, *centre_variance.shape[-2:]))
        super().__init__(centre_variance.shape[:-2], event, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        return self.centre_variance.new_zeros(self.batch_shape + self.event_shape)

    def rsample(self, sample_shape: _size = NO_SAMPLES) -> Tensor:
        shape = self._extended_shape(sample_shape)
        noise = torch.randn(shape, dtype=self.scale_tril.dtype, device=self.scale_tril.device)
        centre = torch.randn_like(noise[..., :1, :, :]) * self.centre_variance.sqrt().unsqueeze(-3)
        factor = self.scale_tril.unsqueeze(-4)
        return centre + (factor @ noise[..., None])[..., 0]

    def log_prob(self, value: Tensor) -> Tensor:
        count, size = self.num_tasks, value.shape[-1]
        factor = self.scale_tril
        average = value.mean(-3)
        deviation = value - average.unsqueeze(-3)
        white = torch.linalg.solve_triangular(
            factor.unsqueeze(-4), deviation[..., None], upper=False
        )[..., 0]
        log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        covariance = torch.diag_embed(self.centre_variance) + factor @ factor.mT / count
        at_average = torch.distributions.MultivariateNormal(
            torch.zeros_like(average), covariance, validate_args=False
        ).log_prob(average)
        within = -(count - 1) * (log_det + 0.5 * size * math.log(2 * math.pi))
        per_output = at_average + within - 0.5 * size * math.log(count)
        return (per_output - 0.5 * white.square().sum((-3, -1))).sum(-1)
