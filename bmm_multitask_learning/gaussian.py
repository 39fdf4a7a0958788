"""A Gaussian prior times a Gaussian factor, in coordinates where the prior is white.

Every posterior of task weights in this library comes from `condition`, whatever the prior.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple, final

import torch
from torch import Tensor

from .precision import LowRankFactor, Precision, RowPrecision
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

    def __getitem__(self, at: Tensor | slice) -> DenseScale:
        return DenseScale(self.matrix[at])

    def expand(self, *leading: int) -> DenseScale:
        """With these leading axes."""
        return DenseScale(self.matrix.expand(*leading, -1, -1))


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

    def __getitem__(self, at: Tensor | slice) -> DiagonalScale:
        return DiagonalScale(self.std[at])

    def expand(self, *leading: int) -> DiagonalScale:
        """With these leading axes."""
        return DiagonalScale(self.std.expand(*leading, -1))


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
    inverse_factor: Tensor | LowRankFactor
    log_normaliser: Tensor

    def effective(self) -> Tensor:
        r"""$\mathrm{tr}(A\,\mathrm{cov}(w))$, (...): how many weights the factor determines.

        It is $\mathrm{tr}(\tilde A \tilde C) = R - \mathrm{tr}\,\tilde C$, because
        $(I + \tilde A)\tilde C = I$.
        """
        inverse = self.inverse_factor
        if isinstance(inverse, LowRankFactor):  # C̃ = I − JᵀJ
            return inverse.right.square().sum((-2, -1))
        return self.v.shape[-1] - torch.linalg.vector_norm(inverse, dim=(-2, -1)).square()


def total_covariance(inverse: Tensor | LowRankFactor) -> Tensor:
    r"""$\sum_k U_k^{-\top} U_k^{-1}$ over the first axis, (..., R, R)."""
    if isinstance(inverse, Tensor):
        return (inverse.mT @ inverse).sum(0)
    # Σ_k (I − J_kᵀJ_k)
    J = inverse.right.movedim(0, -3).flatten(-3, -2)
    identity = torch.eye(J.shape[-1], dtype=J.dtype, device=J.device)
    return len(inverse.right) * identity - J.mT @ J


def pulled(inverse: Tensor | LowRankFactor, root: Tensor) -> tuple[Tensor, Tensor]:
    r"""How the data pull vectors from a centre whose covariance is $QQ^\top$.

    Args:
        inverse: (..., R, R) $U^{-1}$, so that $C = U^{-\top}U^{-1}$ given the centre.
        root: (..., R, S) $Q$.

    Returns:
        a root of $(I - C)QQ^\top(I - C)$, and $\mathrm{tr}(Q^\top C (I - C) Q)$.
    """
    if isinstance(inverse, Tensor):
        common = inverse.mT @ (inverse @ root)
        spread = root - common
        return spread, (spread * common).sum((-2, -1))
    # I − C = JᵀJ, and J Q has no more than n columns that count
    J = inverse.right
    half = torch.linalg.qr((J @ root).mT, mode="r").R.mT
    spread = J.mT @ half
    return spread, half.square().sum((-2, -1)) - spread.square().sum((-2, -1))


def condition(A: Precision, b: Tensor, c: Tensor, scale: Scale) -> Conditioned:
    """Multiply Gaussian priors of mean 0 by Gaussian factors, batched over all leading axes.

    Args:
        A: (..., D, D), formed or as rows, b: (..., D), c: (...) of the factor
            $c + b^T w - w^T A w / 2$.
        scale: square root of the prior covariance.
    """
    factor, inverse = _factors(A, scale)
    # h̃ = Lᵀ b
    h = scale.adjoint(b[..., None])
    # v̂ = U⁻ᵀ U⁻¹ h̃
    half = inverse @ h
    v = (inverse.mT @ half)[..., 0]
    # c + ½ h̃ᵀv̂ − log|U|
    log_normaliser = (
        c + 0.5 * half.square().sum((-2, -1)) - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    )
    return Conditioned(v, inverse, log_normaliser)


def _factors(A: Precision, scale: Scale) -> tuple[Tensor, Tensor | LowRankFactor]:
    """A factor with the determinant of U, and $U^{-1}$."""
    if isinstance(A, RowPrecision):
        # Ã = FᵀF with F = H^½ Φ L,  |I + Ã| = |I + F Fᵀ|
        return LowRankFactor.of(scale.adjoint(A.root().mT).mT)
    # Ã = Lᵀ A L
    white = scale.adjoint(scale.adjoint(A).mT)
    # U Uᵀ = I + Ã
    white.diagonal(dim1=-2, dim2=-1).add_(1)
    factor = torch.linalg.cholesky(white)
    identity = torch.eye(white.shape[-1], dtype=white.dtype, device=white.device)
    # U⁻¹ is wanted as such: it is the square root of the posterior covariance
    return factor, torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False)


def condition_at(A: Precision, b: Tensor, c: Tensor, loc: Tensor, scale: Scale) -> Conditioned:
    """`condition` for priors of mean `loc` (..., D); the result is the law of v, w = loc + L v."""
    return condition(A, *shifted_factor(A, b, c, loc), scale)


def condition_tasks(statistics: TaskStatistics, scale: Scale) -> list[Conditioned]:
    """`condition` for statistics of K tasks, in pieces of consecutive tasks that stay in cache.

    Args:
        statistics: factors with leading axes (K, O).
        scale: square root of a covariance that all tasks share.
    """
    K, O, D = statistics.b.shape
    A = statistics.precision
    height = A.phi.shape[-2] if isinstance(A, RowPrecision) else D
    step = max(1, _CHUNK_ELEMENTS // (O * D * height))
    pieces = (slice(start, start + step) for start in range(0, K, step))
    return [condition(A[at], statistics.b[at], statistics.c[at], scale) for at in pieces]
