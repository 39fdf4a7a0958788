"""q(W) as a Pyro distribution, from its definition: prior times factors over the normaliser."""

from __future__ import annotations

from types import MappingProxyType

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch.distributions import constraints


class PosteriorGaussian(TorchDistribution):
    r"""$q(W) = p(W \mid \eta) \prod_k t_k(w_k) / Z$, event shape (M, O, D).

    Draws come from the posterior's moments, densities from prior, factors and normaliser: a
    posterior whose parts do not fit together shows.

    Args:
        posterior: q(W), from the prior's `condition` on `statistics` at the same $\eta$.
        statistics: the factors t.
        law: $p(W \mid \eta)$.
    """

    arg_constraints = MappingProxyType({})
    support = constraints.independent(constraints.real, 3)

    def __init__(self, posterior, statistics, law):
        self.posterior, self.statistics, self.law = posterior, statistics, law
        super().__init__(torch.Size(), law.event_shape, validate_args=False)

    def rsample(self, sample_shape=()):
        seed = int(torch.randint(2**31 - 1, ()))
        count = torch.Size(sample_shape).numel()
        draws = self.posterior.draw(count, torch.Generator().manual_seed(seed))
        return draws.reshape(*sample_shape, *self.event_shape)

    def log_prob(self, value):
        factor = self.statistics
        quadratic = ((factor.A @ value[..., None])[..., 0] * value).sum(-1)
        log_factor = factor.c + (factor.b * value).sum(-1) - 0.5 * quadratic
        return self.law.log_prob(value) + log_factor.sum((-2, -1)) - self.posterior.log_normaliser
