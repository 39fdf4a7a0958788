"""Three forms of a covariance of task weights: its prior, its square root, its M-step."""

from __future__ import annotations

from typing import Protocol, final

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from ..distributions import Wishart
from ..gaussian import DenseScale, DiagonalScale, Scale


class Covariance(Protocol):
    r"""A covariance $\Sigma$ held as its precision; its prior is worth one draw of $\Psi$."""

    def reference(self, scatter: Tensor) -> Tensor:
        r"""$\Psi$ (O, D) in this form, from the scatter that gives every feature unit signal."""

    def prior(self, scatter: Tensor) -> TorchDistribution:
        r"""$p(\Lambda)$ with $E[\Sigma] = \Psi$; batch shape (O,) in full and isotropic form."""

    def scale(self, precision: Tensor, num_features: int) -> Scale:
        r"""A square root of $\Sigma = \Lambda^{-1}$."""

    def outer(self, root: Tensor) -> Tensor:
        r"""$\sum \text{root}\,\text{root}^\top$ over the first axis, as far as needed."""

    def mode(self, outer: Tensor, count: Tensor, scatter: Tensor) -> Tensor:
        r"""Mode of $\Lambda$ given S from `outer`: $\hat\Sigma = (\Psi + S) / (1 + \text{count})$.

        In isotropic form $\hat\sigma^2 = (\Psi + \mathrm{tr}S) / (1 + D\,\text{count})$.
        """


@final
class FullCovariance:
    r"""$\Lambda \sim \mathrm{Wishart}(D + 2, \Psi^{-1})$."""

    def reference(self, scatter: Tensor) -> Tensor:
        return scatter

    def prior(self, scatter: Tensor) -> TorchDistribution:
        df = scatter.new_full(scatter.shape[:-1], scatter.shape[-1] + 2.0)
        return Wishart(df, scatter)

    def scale(self, precision: Tensor, num_features: int) -> Scale:
        # Λ = MᵀM with M lower triangular, so Σ = M⁻¹M⁻ᵀ and L = M⁻¹ is lower triangular
        factor = torch.linalg.cholesky(precision.flip((-2, -1))).flip((-2, -1)).mT
        identity = torch.eye(num_features, dtype=factor.dtype, device=factor.device)
        return DenseScale(
            torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False)
        )

    def outer(self, root: Tensor) -> Tensor:
        columns = root.movedim(0, -2).flatten(-2)  # (..., D, K R)
        return columns @ columns.mT

    def mode(self, outer: Tensor, count: Tensor, scatter: Tensor) -> Tensor:
        covariance = (torch.diag_embed(scatter) + outer) / (1 + count)[..., None, None]
        # the precision itself is the hyperparameter
        return torch.cholesky_inverse(torch.linalg.cholesky(covariance))


@final
class DiagonalCovariance:
    r"""$\Lambda_d \sim \mathrm{Gamma}(3/2, \Psi_d / 2)$."""

    def reference(self, scatter: Tensor) -> Tensor:
        return scatter

    def prior(self, scatter: Tensor) -> TorchDistribution:
        return dist.Gamma(torch.full_like(scatter, 1.5), 0.5 * scatter).to_event(1)

    def scale(self, precision: Tensor, num_features: int) -> Scale:
        return DiagonalScale(precision.rsqrt())

    def outer(self, root: Tensor) -> Tensor:
        return root.square().sum((0, -1))

    def mode(self, outer: Tensor, count: Tensor, scatter: Tensor) -> Tensor:
        return (1 + count)[..., None] / (scatter + outer)


@final
class IsotropicCovariance:
    r"""$\Sigma = \lambda^{-1} I$ with $\lambda \sim \mathrm{Gamma}(3/2, \Psi / 2)$.

    Worth one weight, not one task of D: with many features the latter would outweigh the data.
    """

    def reference(self, scatter: Tensor) -> Tensor:
        # the same signal in all as Ψ_d gives: 1 / Σ_d Ā_dd, and Ψ_d = 1 / (D Ā_dd)
        size = scatter.shape[-1]
        return (1 / (1 / (size * scatter)).sum(-1, keepdim=True)).expand_as(scatter)

    def prior(self, scatter: Tensor) -> TorchDistribution:
        half = 0.5 * scatter[..., 0]
        return dist.Gamma(torch.full_like(half, 1.5), half)

    def scale(self, precision: Tensor, num_features: int) -> Scale:
        return DiagonalScale(precision.rsqrt()[..., None].expand(*precision.shape, num_features))

    def outer(self, root: Tensor) -> Tensor:
        return root.square().sum((0, -1))

    def mode(self, outer: Tensor, count: Tensor, scatter: Tensor) -> Tensor:
        return (1 + scatter.shape[-1] * count) / (scatter[..., 0] + outer.sum(-1))


FORMS: dict[str, Covariance] = {
    "full": FullCovariance(),
    "diagonal": DiagonalCovariance(),
    "isotropic": IsotropicCovariance(),
}


def covariance_form(name: str) -> Covariance:
    """The form called `name`; a ValueError lists the names."""
    if name not in FORMS:
        raise ValueError(f"covariance must be one of {sorted(FORMS)}; got {name!r}.")
    return FORMS[name]
