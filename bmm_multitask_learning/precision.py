r"""Matrices of tasks with fewer rows than features: held as their rows, never formed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # public, not exported


@final
@dataclasses.dataclass(frozen=True)
class RowPrecision:
    r"""$A = \Phi^\top \mathrm{diag}(h)\,\Phi$ of n rows; the leading axes of both broadcast.

    It takes the place of a (..., D, D) tensor in `A[at]`, `A @ x` and `A * s`.

    Args:
        phi: (..., n, D) features; rows that pad a task to n hold zeros.
        weight: (..., n) $h$.

    Example:
        >>> A = RowPrecision(torch.eye(2, 3), torch.tensor([4.0, 9.0]))
        >>> A @ torch.ones(3, 1)
        tensor([[4.],
                [9.],
                [0.]])
    """

    phi: Tensor
    weight: Tensor

    def __getitem__(self, at: Any) -> RowPrecision:
        """At leading axes that `phi` and `weight` both have, and new axes between them."""
        return RowPrecision(self.phi[at], self.weight[at])

    def __matmul__(self, x: Tensor) -> Tensor:
        """$A x$ for x of shape (..., D, M)."""
        return self.phi.mT @ (self.weight[..., None] * (self.phi @ x))

    def __mul__(self, size: Tensor) -> RowPrecision:
        """For factors of shape (..., 1, 1)."""
        return RowPrecision(self.phi, self.weight * size[..., 0])

    def dense(self) -> Tensor:
        """(..., D, D)."""
        return (self.phi * self.weight[..., None]).mT @ self.phi

    def root(self) -> Tensor:
        r"""$H^{1/2}\Phi$, (..., n, D).

        Raises:
            LinAlgError: for a negative weight, as of factors extrapolated too far.
        """
        positive = self.weight > 0
        if bool((self.weight < 0).any()):
            raise LinAlgError("a precision has a negative weight: it is no precision.")
        # the root of 0 has no gradient; that of rows which say nothing is 0
        return (torch.where(positive, self.weight, 1.0).sqrt() * positive)[..., None] * self.phi


Precision = Tensor | RowPrecision


def formed(matrix: Precision | LowRankFactor) -> Tensor:
    """(..., D, D), whichever way it is held."""
    return matrix if isinstance(matrix, Tensor) else matrix.dense()


def combine(weights: Sequence[float | Tensor], precisions: Sequence[Precision]) -> Precision:
    r"""$\sum_i w_i A_i$: as rows where all are of the same rows."""
    first = precisions[0]
    if isinstance(first, RowPrecision):
        same = [p.weight for p in precisions if isinstance(p, RowPrecision) and p.phi is first.phi]
        if len(same) == len(precisions):
            return RowPrecision(first.phi, weighted_sum(weights, same))
    return weighted_sum(weights, [formed(precision) for precision in precisions])


def weighted_sum(weights: Sequence[float | Tensor], values: Sequence[Tensor]) -> Tensor:
    r"""$\sum_i w_i x_i$."""
    terms = (w * x for w, x in zip(weights, values, strict=True))
    return sum(terms, torch.zeros_like(values[0]))


@final
@dataclasses.dataclass(frozen=True)
class LowRankFactor:
    r"""A root $U^{-1} = I - E^\top J$ of $(I + F^\top F)^{-1} = U^{-\top} U^{-1}$.

    With $TT^\top = I + FF^\top$ lower triangular, n × n: $J = T^{-1}F$ and $E = (I + T)^{-1}F$,
    because $(I - J^\top E)(I - E^\top J) = I - J^\top J$. It takes the place of a (..., R, R)
    tensor in `U[at]`, `U @ x` and `U.mT`, at the cost of n R in place of R² a column.

    Args:
        left: (..., n, R) $E$.
        right: (..., n, R) $J$.

    References:
        Andrews, A square root formulation of the Kalman covariance equations (1968).
    """

    left: Tensor
    right: Tensor

    @classmethod
    def of(cls, F: Tensor) -> tuple[Tensor, LowRankFactor]:
        """$T$ (..., n, n), and the root, for $F$ (..., n, R)."""
        gram = F @ F.mT
        gram.diagonal(dim1=-2, dim2=-1).add_(1)
        T = torch.linalg.cholesky(gram)
        identity = torch.eye(T.shape[-1], dtype=T.dtype, device=T.device)
        E, J = (torch.linalg.solve_triangular(t, F, upper=False) for t in (identity + T, T))
        return T, cls(E, J)

    def __getitem__(self, at: Any) -> LowRankFactor:
        return LowRankFactor(self.left[at], self.right[at])

    def __matmul__(self, x: Tensor) -> Tensor:
        """$U^{-1} x$ for x of shape (..., R, M)."""
        return x - self.left.mT @ (self.right @ x)

    @property
    def mT(self) -> LowRankFactor:  # as of tensors
        """The transpose."""
        return LowRankFactor(self.right, self.left)

    def dense(self) -> Tensor:
        """(..., R, R)."""
        product = -(self.left.mT @ self.right)
        product.diagonal(dim1=-2, dim2=-1).add_(1)
        return product


def concatenated(factors: Sequence[Tensor | LowRankFactor]) -> Tensor | LowRankFactor:
    """Factors of pieces of tasks, held alike, as one."""
    tensors = [factor for factor in factors if isinstance(factor, Tensor)]
    if tensors:
        return torch.cat(tensors)
    low = [factor for factor in factors if isinstance(factor, LowRankFactor)]
    left, right = ([getattr(f, side) for f in low] for side in ("left", "right"))
    return LowRankFactor(torch.cat(left), torch.cat(right))
