"""q(W) as a Pyro distribution, with its divergence from the prior in closed form."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution, constraints, register_kl
from torch.types import _size

from ..posterior import WeightPosterior
from ..statistics import TaskStatistics
from .exchangeable_gaussian import NO_SAMPLES

# Pairs of draws for a divergence without closed form.
_PAIRS = 4


class PosteriorGaussian(TorchDistribution):
    r"""$q(W) = p(W \mid \eta) \prod_k t_k(w_k) / Z$, event shape (M, O, D).

    Args:
        posterior: q(W), from the prior's `condition` on `statistics` at the same $\eta$.
        statistics: the factors t.
        law: $p(W \mid \eta)$, or what `condition` used in its place.
        conditional: whether `law` is the prior itself, so that
            $KL(q \| p) = E_q[\log t] - \log Z$; otherwise the divergence is estimated by draws,
            and q must be a single Gaussian.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.independent(constraints.real, 3)
    has_rsample = True

    def __init__(
        self,
        posterior: WeightPosterior,
        statistics: TaskStatistics,
        law: Distribution,
        *,
        conditional: bool,
    ) -> None:
        self.posterior = posterior
        self.statistics = statistics
        self.law = law
        self.conditional = conditional
        K, _, O, D = posterior.means.shape
        super().__init__(torch.Size(), torch.Size((K, O, D)), validate_args=False)

    def rsample(self, sample_shape: _size = NO_SAMPLES) -> Tensor:
        q = self.posterior
        K, _, O, _, R = q.roots.shape
        # a draw of the component is not differentiable: mixtures enter bounds by their moments
        component = torch.multinomial(q.log_weights.detach().exp(), 1)[:, 0]
        at = (torch.arange(K, device=component.device), component)
        shape = torch.Size(sample_shape)
        own = torch.randn(*shape, K, O, R, 1, dtype=q.means.dtype, device=q.means.device)
        shared = torch.randn(
            *shape, 1, O, q.commons.shape[-1], 1, dtype=q.means.dtype, device=q.means.device
        )
        return q.means[at] + (q.roots[at] @ own + q.commons[at] @ shared)[..., 0]

    def log_prob(self, value: Tensor) -> Tensor:
        factor = self.statistics
        quadratic = ((factor.A @ value[..., None])[..., 0] * value).sum(-1)
        log_factor = factor.c + (factor.b * value).sum(-1) - 0.5 * quadratic
        return self.law.log_prob(value) + log_factor.sum((-2, -1)) - self.posterior.log_normaliser

    def entropy(self) -> Tensor:
        """Entropy of a single Gaussian with independent vectors, in nats."""
        root = self.posterior.roots  # triangular, as `condition` makes it over a diagonal prior
        log_det = root.diagonal(dim1=-2, dim2=-1).abs().log().sum()
        return log_det + 0.5 * self.event_shape.numel() * (1 + math.log(2 * math.pi))


@register_kl(PosteriorGaussian, Distribution)  # type: ignore[untyped-decorator]
def _kl_to_prior(q: PosteriorGaussian, p: Distribution) -> Tensor:
    if q.conditional:
        return q.posterior.kl_to_prior(q.statistics)
    # the entropy in closed form, the rest from draws in pairs around the mean
    draws = q.rsample(torch.Size((_PAIRS,)))
    mirrored = 2 * q.posterior.means[:, 0] - draws
    return -q.entropy() - 0.5 * (p.log_prob(draws) + p.log_prob(mirrored)).mean()
