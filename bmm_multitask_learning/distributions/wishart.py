"""The Wishart distribution with a change of variables that gradient samplers can use."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import biject_to, constraints
from torch.distributions.transforms import Transform
from torch.types import _size

from .exchangeable_gaussian import NO_SAMPLES


class _PositiveDefiniteMatrix(constraints.Constraint):
    """Symmetric positive definite matrices, mapped to by `LogCholeskyTransform`."""

    event_dim = 2

    def check(self, value: Tensor) -> Tensor:
        return constraints.positive_definite.check(value)


positive_definite_matrix = _PositiveDefiniteMatrix()


class LogCholeskyTransform(Transform):
    r"""Map a vector to a positive definite matrix through its log-Cholesky factor.

    $M = L L^\top$ where $L$ is lower triangular with $L_{ii} = e^{x_{ii}}$. The log Jacobian is
    $D \log 2 + \sum_i (D - i + 2) \log L_{ii}$ for $i = 1, \dots, D$: torch's own transform to
    positive definite matrices has none, so that HMC cannot use it.
    """

    domain = constraints.real_vector
    codomain = positive_definite_matrix
    bijective = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LogCholeskyTransform)

    def __hash__(self) -> int:
        return hash(LogCholeskyTransform)

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        size = (math.isqrt(8 * shape[-1] + 1) - 1) // 2
        return torch.Size((*shape[:-1], size, size))

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        return torch.Size((*shape[:-2], shape[-1] * (shape[-1] + 1) // 2))

    def _factor(self, x: Tensor) -> Tensor:
        size = self.forward_shape(x.shape)[-1]
        row, column = torch.tril_indices(size, size, device=x.device)
        factor = x.new_zeros(*x.shape[:-1], size, size)
        factor[..., row, column] = torch.where(row == column, x.exp(), x)
        return factor

    def _call(self, x: Tensor) -> Tensor:
        factor = self._factor(x)
        return factor @ factor.mT

    def _inverse(self, y: Tensor) -> Tensor:
        factor = torch.linalg.cholesky(y)
        row, column = torch.tril_indices(y.shape[-1], y.shape[-1], device=y.device)
        x = factor[..., row, column]
        return torch.where(row == column, x.log(), x)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        size = y.shape[-1]
        row, column = torch.tril_indices(size, size, device=x.device)
        power = torch.arange(size + 1, 1, -1, device=x.device, dtype=x.dtype)
        return (x[..., row == column] * power).sum(-1) + size * math.log(2.0)


@biject_to.register(_PositiveDefiniteMatrix)  # type: ignore[untyped-decorator]
def _log_cholesky(constraint: _PositiveDefiniteMatrix) -> LogCholeskyTransform:
    return LogCholeskyTransform()


class Wishart(TorchDistribution):
    r"""Wishart distribution of a precision matrix, given by degrees of freedom and a scatter.

    $p(\Lambda) \propto |\Lambda|^{(\nu - D - 1)/2} \exp(-\tfrac12 \mathrm{tr}\,\Psi\Lambda)$ with
    $\Psi$ diagonal. With $\nu = D + 2$ the covariance $\Lambda^{-1}$ has mean $\Psi$ and the prior
    is worth one observation of scatter $\Psi$: the mode after $K$ observations with total scatter
    $S$ is $\Lambda^{-1} = (\Psi + S) / (K + 1)$.

    Args:
        df: (...) degrees of freedom $\nu > D - 1$.
        scatter: (..., D) diagonal of $\Psi$, in squared units of the variable.

    Example:
        >>> precision = Wishart(torch.tensor(5.0), torch.ones(3)).sample()
        >>> precision.shape
        torch.Size([3, 3])

    References:
        Bartlett, On the theory of statistical regression (1933), for the sampler.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "df": constraints.positive,
        "scatter": constraints.independent(constraints.positive, 1),
    }
    support = positive_definite_matrix
    has_rsample = True

    def __init__(self, df: Tensor, scatter: Tensor, *, validate_args: bool | None = None) -> None:
        batch = torch.broadcast_shapes(df.shape, scatter.shape[:-1])
        size = scatter.shape[-1]
        self.df = df.expand(batch)
        self.scatter = scatter.expand(*batch, size)
        super().__init__(batch, torch.Size((size, size)), validate_args=validate_args)

    def expand(self, batch_shape: _size, _instance: Any = None) -> Wishart:
        shape = torch.Size(batch_shape)
        return Wishart(self.df.expand(shape), self.scatter.expand(*shape, -1), validate_args=False)

    @property
    def mean(self) -> Tensor:
        return torch.diag_embed(self.df[..., None] / self.scatter)

    def rsample(self, sample_shape: _size = NO_SAMPLES) -> Tensor:
        shape = self._extended_shape(sample_shape)
        size = shape[-1]
        # Bartlett: Λ = Ψ^{-1/2} T Tᵀ Ψ^{-1/2},  T_ii² ~ χ²(ν − i + 1),  T_ij ~ N(0, 1)
        index = torch.arange(size, device=self.df.device, dtype=self.df.dtype)
        chi2 = torch.distributions.Chi2((self.df[..., None] - index).expand(shape[:-1])).rsample()
        normal = torch.randn(shape, dtype=self.df.dtype, device=self.df.device)
        factor = normal.tril(-1) + chi2.sqrt().diag_embed()
        factor = factor / self.scatter.sqrt()[..., None]
        return factor @ factor.mT

    def log_prob(self, value: Tensor) -> Tensor:
        size = self.scatter.shape[-1]
        log_det = 2 * torch.linalg.cholesky(value).diagonal(dim1=-2, dim2=-1).log().sum(-1)
        trace = (self.scatter * value.diagonal(dim1=-2, dim2=-1)).sum(-1)
        log_normaliser = 0.5 * self.df * (
            size * math.log(2.0) - self.scatter.log().sum(-1)
        ) + torch.special.multigammaln(0.5 * self.df, size)
        return 0.5 * (self.df - size - 1) * log_det - 0.5 * trace - log_normaliser
