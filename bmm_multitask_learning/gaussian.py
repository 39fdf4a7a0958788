"""A Gaussian prior times a Gaussian factor, in coordinates where the prior is white.

Every posterior of task weights in this library comes from `condition`, whatever the prior.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple, final

import torch
from torch import Tensor

from .statistics import TaskStatistics

# A chunk of tasks holds at most this many matrix entries (2**23 doubles are 64 MiB).
_CHUNK_ELEMENTS = 2**23


@final
@dataclasses.dataclass(frozen=True)
class DenseScale:
    r"""A square root $L$ of a covariance, $LL^\top = \Sigma$, as a (..., D, R) matrix."""

    matrix: Tensor

    def apply(self, x: Tensor) -> Tensor:
        """$L x$ for x of shape (..., R, M)."""
        return self.matrix @ x

    def adjoint(self, x: Tensor) -> Tensor:
        r"""$L^\top x$ for x of shape (..., D, M)."""
        return self.matrix.mT @ x

    @property
    def root(self) -> Tensor:
        """$L$ as a (..., D, R) matrix."""
        return self.matrix

    def __getitem__(self, at: slice) -> DenseScale:
        return DenseScale(self.matrix[at])


@final
@dataclasses.dataclass(frozen=True)
class DiagonalScale:
    """Standard deviations (..., D) of a diagonal covariance."""

    std: Tensor

    def apply(self, x: Tensor) -> Tensor:
        """$L x$ for x of shape (..., D, M)."""
        return self.std[..., None] * x

    adjoint = apply

    @property
    def root(self) -> Tensor:
        """$L$ as a (..., D, D) matrix."""
        return torch.diag_embed(self.std)

    def __getitem__(self, at: slice) -> DiagonalScale:
        return DiagonalScale(self.std[at])


Scale = DenseScale | DiagonalScale


class Conditioned(NamedTuple):
    r"""$N(w; m, LL^\top)\, t(w)$ with $w = m + L v$: the product's normaliser and its law of v.

    With $\tilde A = L^\top A L$, $\tilde h = L^\top (b - A m)$ and $UU^\top = I + \tilde A$:

    v: $\hat v = (I + \tilde A)^{-1} \tilde h$, (..., R).
    inverse_factor: $U^{-1}$, lower triangular, so that $\mathrm{cov}(v) = U^{-\top}U^{-1}$.
    log_normaliser: $c + b^\top m - \tfrac12 m^\top A m + \tfrac12 \tilde h^\top \hat v
        - \log |U|$, (...).
    """

    v: Tensor
    inverse_factor: Tensor
    log_normaliser: Tensor


def condition(A: Tensor, b: Tensor, c: Tensor, loc: Tensor, scale: Scale) -> Conditioned:
    """Multiply Gaussian priors by Gaussian factors, batched over all leading axes.

    Args:
        A: (..., D, D), b: (..., D), c: (...) of the factor $c + b^T w - w^T A w / 2$.
        loc: (..., D) prior mean.
        scale: square root of the prior covariance.
    """
    # Ã = Lᵀ A L,  h̃ = Lᵀ (b − A m)
    white = scale.adjoint(scale.adjoint(A).mT)
    residual = b - (A @ loc[..., None])[..., 0]
    h = scale.adjoint(residual[..., None])
    # U Uᵀ = I + Ã
    white = white + torch.eye(white.shape[-1], dtype=white.dtype, device=white.device)
    factor = torch.linalg.cholesky(white)
    identity = torch.eye(white.shape[-1], dtype=white.dtype, device=white.device)
    # U⁻¹ is wanted as such: it is the square root of the posterior covariance
    inverse = torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False)
    # v̂ = U⁻ᵀ U⁻¹ h̃
    half = inverse @ h
    v = (inverse.mT @ half)[..., 0]
    # c + bᵀm − ½ mᵀAm + ½ h̃ᵀv̂ − log|U|,  with  bᵀm − ½ mᵀAm = ½ (b + residual)ᵀ m
    log_normaliser = (
        c
        + 0.5 * ((b + residual) * loc).sum(-1)
        + 0.5 * half.square().sum((-2, -1))
        - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    )
    return Conditioned(v, inverse, log_normaliser)


def condition_tasks(statistics: TaskStatistics, loc: Tensor, scale: Scale) -> Conditioned:
    """`condition` for statistics of K tasks, in chunks of tasks that bound the working memory.

    Args:
        statistics: factors with leading axes (K, O).
        loc: (O, D) or (K, O, D) prior means.
        scale: square root of a covariance that all tasks share.
    """
    K, D = statistics.b.shape[0], statistics.A.shape[-1]
    step = max(1, _CHUNK_ELEMENTS // (statistics.b.shape[1] * D * D))
    loc = loc.expand(K, *loc.shape[-2:])
    parts = [
        condition(statistics.A[at], statistics.b[at], statistics.c[at], loc[at], scale)
        for at in (slice(start, start + step) for start in range(0, K, step))
    ]
    if len(parts) == 1:
        return parts[0]
    return Conditioned(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
