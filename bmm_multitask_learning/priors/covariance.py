"""Three forms of a covariance of task weights: its prior, its square root, its M-step."""

from __future__ import annotations

from typing import Protocol, final

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from ..distributions import Wishart
from ..gaussian import DenseScale, DiagonalScale, Scale
from ..hyperparameters import Eta


class Covariance(Protocol):
    r"""A covariance $\Sigma = (\ell\Lambda)^{-1}$: a shape $\Lambda$ and a level $\ell$.

    The shape's prior has its mode at $\Psi^{-1}$, the level's at 1. A diagonal shape's is worth
    one task, a full one's D tasks: it has D times as many numbers to learn. MAP estimates are
    those of $(\Lambda, \ell)$; of $\Sigma$ and $\ell$ the joint mode degenerates.
    """

    def reference(self, scatter: Tensor) -> Tensor:
        r"""$\Psi$ (O, D) in this form, from the scatter that gives every feature unit signal."""

    def hyperprior(self, scatter: Tensor) -> Eta:
        r"""Sample "precision" $\Lambda$ and "level" $\ell$ for each row of scatter (..., D)."""

    def mode(self, scatter: Tensor) -> Eta:
        """Where the prior is densest."""

    def scale(self, eta: Eta, num_features: int) -> Scale:
        r"""A square root of $\Sigma$."""

    def outer(self, root: Tensor) -> Tensor:
        r"""$\sum \text{root}\,\text{root}^\top$ over the first axis, as far as needed."""

    def part(self, matrix: Tensor) -> Tensor:
        """What `outer` keeps of a symmetric matrix."""

    def update(self, eta: Eta, outer: Tensor, count: Tensor, scatter: Tensor) -> Eta:
        r"""A step that does not lower $p(\eta \mid S)$, for S from `outer` of `count` tasks."""

    def charge(self, count: Tensor, num_features: int) -> Tensor:
        """Half the log ratio of posterior to prior curvature, in nats; shape of `count`."""


def _sample_level(scatter: Tensor) -> Tensor:
    r"""$\ell \sim \mathrm{Gamma}(1 + D/2, D/2)$: worth the D weights of one task."""
    half = torch.full_like(scatter[..., 0], 0.5 * scatter.shape[-1])
    return pyro.sample("level", joint(dist.Gamma(1 + half, half)))


def _level(total: Tensor, count: Tensor, num_features: int) -> Tensor:
    # 1/ℓ = ( D + tr ΛS ) / ( D + D count )
    return num_features * (1 + count) / (num_features + total)


def joint(law: TorchDistribution) -> TorchDistribution:
    """All of a batch as one event: sites of a prior are sampled whole."""
    return law.to_event(len(law.batch_shape))


@final
class FullCovariance:
    r"""$\Lambda \sim \mathrm{Wishart}(2D+1, (D\Psi)^{-1})$, $\ell \sim \mathrm{Ga}(1 + D/2, D/2)$.

    The shape is shrunk towards that of $\Psi$ as if by D tasks: with as many tasks as features,
    prior and data count alike. How large the covariance is overall is left to the data.
    """

    def reference(self, scatter: Tensor) -> Tensor:
        return scatter

    def hyperprior(self, scatter: Tensor) -> Eta:
        D = scatter.shape[-1]
        df = scatter.new_full(scatter.shape[:-1], 2.0 * D + 1)
        return {
            "precision": pyro.sample("precision", joint(Wishart(df, D * scatter))),
            "level": _sample_level(scatter),
        }

    def mode(self, scatter: Tensor) -> Eta:
        level = torch.ones_like(scatter[..., 0])
        return {"precision": torch.diag_embed(1 / scatter), "level": level}

    def scale(self, eta: Eta, num_features: int) -> Scale:
        # Λ = MᵀM with M lower triangular, so Λ⁻¹ = M⁻¹M⁻ᵀ and L = M⁻¹/√ℓ is lower triangular
        precision = eta["precision"] * eta["level"][..., None, None]
        factor = torch.linalg.cholesky(precision.flip((-2, -1))).flip((-2, -1)).mT
        identity = torch.eye(num_features, dtype=factor.dtype, device=factor.device)
        return DenseScale(
            torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False)
        )

    def outer(self, root: Tensor) -> Tensor:
        columns = root.movedim(0, -2).flatten(-2)  # (..., D, K R)
        return columns @ columns.mT

    def part(self, matrix: Tensor) -> Tensor:
        return matrix

    def update(self, eta: Eta, outer: Tensor, count: Tensor, scatter: Tensor) -> Eta:
        # Λ⁻¹ = ( DΨ + ℓS ) / ( D + count )
        D = scatter.shape[-1]
        total = torch.diag_embed(D * scatter) + eta["level"][..., None, None] * outer
        inverse = total / (D + count)[..., None, None]
        # the precision itself is the hyperparameter
        precision = torch.cholesky_inverse(torch.linalg.cholesky(inverse))
        level = _level((precision * outer).sum((-2, -1)), count, D)
        return {"precision": precision, "level": level}

    def charge(self, count: Tensor, num_features: int) -> Tensor:
        D = num_features
        shape = 0.25 * D * (D + 1) * torch.log1p(count / D)
        return shape + 0.5 * torch.log1p(count)


@final
class DiagonalCovariance:
    r"""$\Lambda_d \sim \mathrm{Ga}(3/2, \Psi_d/2)$, $\ell \sim \mathrm{Ga}(1 + D/2, D/2)$.

    Each variance is shrunk towards the common level as if by one task.
    """

    def reference(self, scatter: Tensor) -> Tensor:
        return scatter

    def hyperprior(self, scatter: Tensor) -> Eta:
        law = dist.Gamma(torch.full_like(scatter, 1.5), 0.5 * scatter)
        return {
            "precision": pyro.sample("precision", joint(law)),
            "level": _sample_level(scatter),
        }

    def mode(self, scatter: Tensor) -> Eta:
        return {"precision": 1 / scatter, "level": torch.ones_like(scatter[..., 0])}

    def scale(self, eta: Eta, num_features: int) -> Scale:
        return DiagonalScale((eta["precision"] * eta["level"][..., None]).rsqrt())

    def outer(self, root: Tensor) -> Tensor:
        return root.square().sum((0, -1))

    def part(self, matrix: Tensor) -> Tensor:
        return matrix.diagonal(dim1=-2, dim2=-1)

    def update(self, eta: Eta, outer: Tensor, count: Tensor, scatter: Tensor) -> Eta:
        # 1/Λ_d = ( Ψ_d + ℓS_d ) / ( 1 + count )
        precision = (1 + count)[..., None] / (scatter + eta["level"][..., None] * outer)
        level = _level((precision * outer).sum(-1), count, scatter.shape[-1])
        return {"precision": precision, "level": level}

    def charge(self, count: Tensor, num_features: int) -> Tensor:
        shape = 0.5 * num_features * torch.log1p(count)
        return shape + 0.5 * torch.log1p(count)


@final
class IsotropicCovariance:
    r"""$\Sigma = \lambda^{-1} I$ with $\lambda \sim \mathrm{Gamma}(3/2, \Psi / 2)$: no shape."""

    def reference(self, scatter: Tensor) -> Tensor:
        # the same signal in all as Ψ_d gives: 1 / Σ_d Ā_dd, and Ψ_d = 1 / (D Ā_dd)
        size = scatter.shape[-1]
        return (1 / (1 / (size * scatter)).sum(-1, keepdim=True)).expand_as(scatter)

    def hyperprior(self, scatter: Tensor) -> Eta:
        half = 0.5 * scatter[..., 0]
        law = dist.Gamma(torch.full_like(half, 1.5), half)
        return {"precision": pyro.sample("precision", joint(law))}

    def mode(self, scatter: Tensor) -> Eta:
        return {"precision": 1 / scatter[..., 0]}

    def scale(self, eta: Eta, num_features: int) -> Scale:
        std = eta["precision"].rsqrt()[..., None]
        return DiagonalScale(std.expand(*std.shape[:-1], num_features))

    def outer(self, root: Tensor) -> Tensor:
        return root.square().sum((0, -1))

    def part(self, matrix: Tensor) -> Tensor:
        return matrix.diagonal(dim1=-2, dim2=-1)

    def update(self, eta: Eta, outer: Tensor, count: Tensor, scatter: Tensor) -> Eta:
        # 1/λ = ( Ψ + tr S ) / ( 1 + D count )
        total = scatter[..., 0] + outer.sum(-1)
        return {"precision": (1 + scatter.shape[-1] * count) / total}

    def charge(self, count: Tensor, num_features: int) -> Tensor:
        return 0.5 * torch.log1p(count * num_features)


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


def covariance_matrix(form: Covariance, eta: Eta, num_features: int) -> Tensor:
    r"""$\Sigma = LL^\top$, (..., D, D), in squared units of the weights."""
    root = form.scale(eta, num_features).root
    return root @ root.mT


def correlation(covariance: Tensor) -> Tensor:
    """Correlations (K, K) of a covariance between tasks."""
    std = covariance.diagonal().sqrt()
    return (covariance / std / std[:, None]).fill_diagonal_(1.0)


def identity(size: int, like: Tensor) -> Tensor:
    """The (size, size) identity, of the dtype and on the device of `like`."""
    return torch.eye(size, dtype=like.dtype, device=like.device)
