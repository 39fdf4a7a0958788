"""Rows of a matrix that are correlated with one another, and alike in how their columns are."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.types import _size

from .exchangeable_gaussian import NO_SAMPLES


class MatrixNormal(TorchDistribution):
    r"""A centred $W$ (K, O, D) with $\mathrm{cov}(w_{jo}, w_{ko}) = \Omega_{jk}\Sigma_o$.

    The O outputs are independent.

    $$\log p(W) = -\tfrac{KOD}{2}\log 2\pi - \tfrac{OD}{2}\log|\Omega|
      - \tfrac K2 \sum_o \log|\Sigma_o|
      - \tfrac12 \sum_o \mathrm{tr}(\Omega^{-1} W_o \Sigma_o^{-1} W_o^\top)$$

    Args:
        task_tril: (K, K) Cholesky factor of $\Omega$.
        scale_tril: (O, D, D) Cholesky factors of $\Sigma_o$.

    Example:
        >>> MatrixNormal(torch.eye(4), torch.eye(3)[None]).sample().shape
        torch.Size([4, 1, 3])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "task_tril": constraints.lower_cholesky,
        "scale_tril": constraints.independent(constraints.lower_cholesky, 1),
    }
    support = constraints.independent(constraints.real, 3)
    has_rsample = True

    def __init__(
        self, task_tril: Tensor, scale_tril: Tensor, *, validate_args: bool | None = None
    ) -> None:
        self.task_tril = task_tril
        self.scale_tril = scale_tril
        batch = torch.broadcast_shapes(task_tril.shape[:-2], scale_tril.shape[:-3])
        event = torch.Size((task_tril.shape[-1], *scale_tril.shape[-3:-1]))
        super().__init__(batch, event, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        return self.scale_tril.new_zeros(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        tasks = self.task_tril.square().sum(-1)[..., None, None]
        return tasks * self.scale_tril.square().sum(-1).unsqueeze(-3)

    def rsample(self, sample_shape: _size = NO_SAMPLES) -> Tensor:
        shape = self._extended_shape(sample_shape)
        noise = torch.randn(shape, dtype=self.scale_tril.dtype, device=self.scale_tril.device)
        rows = (self.task_tril @ noise.flatten(-2)).unflatten(-1, shape[-2:])
        return (self.scale_tril.unsqueeze(-4) @ rows[..., None])[..., 0]

    def log_prob(self, value: Tensor) -> Tensor:
        K, O, D = self.event_shape
        rows = torch.linalg.solve_triangular(
            self.scale_tril.unsqueeze(-4), value[..., None], upper=False
        )[..., 0]
        white = torch.linalg.solve_triangular(self.task_tril, rows.flatten(-2), upper=False)
        tasks = self.task_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        features = self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum((-2, -1))
        log_det = O * D * tasks + K * features
        return -0.5 * (K * O * D * math.log(2 * math.pi) + white.square().sum((-2, -1))) - log_det
