r"""Gaussian factors in information form, and what they become along a branch."""

from __future__ import annotations

import dataclasses
from typing import final

import torch
from torch import Tensor


@final
@dataclasses.dataclass(frozen=True)
class Factor:
    r"""$\exp(c + h^\top x - \tfrac12 x^\top P x)$ at each of n places, O outputs independent.

    P may be singular: rows that see few directions say nothing of the others.

    Args:
        constant: (n, O) c.
        linear: (n, O, D) h.
        precision: (n, O, D, D) P.
    """

    constant: Tensor
    linear: Tensor
    precision: Tensor

    @classmethod
    def blank(cls, count: int, like: Factor) -> Factor:
        """Factors of 1."""
        tensors = (like.constant, like.linear, like.precision)
        return cls(*(t.new_zeros(count, *t.shape[1:]) for t in tensors))

    def __getitem__(self, at: list[int] | slice | Tensor) -> Factor:
        return Factor(self.constant[at], self.linear[at], self.precision[at])

    def __setitem__(self, at: list[int] | slice, value: Factor) -> None:
        self.constant[at] = value.constant
        self.linear[at] = value.linear
        self.precision[at] = value.precision

    def cpu(self) -> Factor:
        """The same factors, double precision on the CPU."""
        tensors = (self.constant, self.linear, self.precision)
        return Factor(*(t.double().cpu() for t in tensors))

    def __add__(self, other: Factor) -> Factor:
        """The product of two factors: their exponents add."""
        return Factor(
            self.constant + other.constant,
            self.linear + other.linear,
            self.precision + other.precision,
        )

    def along(self, length: Tensor) -> Factor:
        r"""$\int N(x; y, t I)\,f(x)\,dx$ as a factor of y, the other end of a branch.

        With $C = (I + tP)^{-1}$:
        $c + \tfrac t2 h^\top C h + \tfrac12 \log|C|$, $\;C h$, $\;P C$.

        Args:
            length: (n,) t, at least 0.
        """
        t = length[:, None, None]
        identity = torch.eye(self.linear.shape[-1], dtype=t.dtype, device=t.device)
        factor = torch.linalg.cholesky(identity + t[..., None] * self.precision)
        # C is wanted as such: it multiplies both h and P
        C = torch.cholesky_inverse(factor)
        told = (C @ self.linear[..., None])[..., 0]
        log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        gain = 0.5 * length[:, None] * (self.linear * told).sum(-1)
        return Factor(self.constant + gain - log_det, told, self.precision @ C)

    def log_integral(self) -> Tensor:
        r"""$\log \int f - \tfrac D2 \log 2\pi$ over all outputs, (n,); P must be definite."""
        factor = torch.linalg.cholesky(self.precision)
        half = torch.linalg.solve_triangular(factor, self.linear[..., None], upper=False)
        log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return (self.constant + 0.5 * half.square().sum((-2, -1)) - log_det).sum(-1)

    def law(self) -> tuple[Tensor, Tensor]:
        """Mean (n, O, D) and covariance (n, O, D, D) of the Gaussian that it is, normalised."""
        covariance = torch.cholesky_inverse(torch.linalg.cholesky(self.precision))
        return (covariance @ self.linear[..., None])[..., 0], covariance
