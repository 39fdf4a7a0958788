"""A Gaussian prior times a Gaussian factor, in coordinates where the prior is white.

Every posterior of task weights in this library comes from `condition`, whatever the prior.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple, final

import torch
from torch import Tensor

from .statistics import TaskStatistics, shifted_factor

# A chunk of tasks holds at most this many matrix entries (2**18 doubles are 2 MiB).
_CHUNK_ELEMENTS = 2**18


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

    def colour(self, white: Tensor) -> Tensor:
        r"""$L S L^\top$ for S of shape (..., R, R)."""
        return self.matrix @ white @ self.matrix.mT

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

    def colour(self, white: Tensor) -> Tensor:
        r"""The diagonal (..., D) of $L S L^\top$ from that of S."""
        return self.std.square() * white

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

    def effective(self) -> Tensor:
        r"""$\mathrm{tr}(A\,\mathrm{cov}(w))$, (...): how many weights the factor determines.

        It is $\mathrm{tr}(\tilde A \tilde C) = R - \mathrm{tr}\,\tilde C$, because
        $(I + \tilde A)\tilde C = I$.
        """
        return (
            self.v.shape[-1] - torch.linalg.vector_norm(self.inverse_factor, dim=(-2, -1)).square()
        )


def condition(A: Tensor, b: Tensor, c: Tensor, scale: Scale) -> Conditioned:
    """Multiply Gaussian priors of mean 0 by Gaussian factors, batched over all leading axes.

    Args:
        A: (..., D, D), b: (..., D), c: (...) of the factor $c + b^T w - w^T A w / 2$.
        scale: square root of the prior covariance.
    """
    # Ã = Lᵀ A L,  h̃ = Lᵀ b
    white = scale.adjoint(scale.adjoint(A).mT)
    h = scale.adjoint(b[..., None])
    # U Uᵀ = I + Ã
    white.diagonal(dim1=-2, dim2=-1).add_(1)
    factor = torch.linalg.cholesky(white)
    identity = torch.eye(white.shape[-1], dtype=white.dtype, device=white.device)
    # U⁻¹ is wanted as such: it is the square root of the posterior covariance
    inverse = torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False)
    # v̂ = U⁻ᵀ U⁻¹ h̃
    half = inverse @ h
    v = (inverse.mT @ half)[..., 0]
    # c + ½ h̃ᵀv̂ − log|U|
    log_normaliser = (
        c + 0.5 * half.square().sum((-2, -1)) - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    )
    return Conditioned(v, inverse, log_normaliser)


def condition_at(A: Tensor, b: Tensor, c: Tensor, loc: Tensor, scale: Scale) -> Conditioned:
    """`condition` for priors of mean `loc` (..., D); the result is the law of v, w = loc + L v."""
    return condition(A, *shifted_factor(A, b, c, loc), scale)


def condition_tasks(statistics: TaskStatistics, scale: Scale) -> list[Conditioned]:
    """`condition` for statistics of K tasks, in pieces of consecutive tasks that stay in cache.

    Args:
        statistics: factors with leading axes (K, O).
        scale: square root of a covariance that all tasks share.
    """
    K, O, D = statistics.b.shape
    step = max(1, _CHUNK_ELEMENTS // (O * D * D))
    pieces = (slice(start, start + step) for start in range(0, K, step))
    return [
        condition(statistics.A[at], statistics.b[at], statistics.c[at], scale) for at in pieces
    ]
