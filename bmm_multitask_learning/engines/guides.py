r"""The parts of SVI's guide that gradients move."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, final

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ..posterior import WeightPosterior
from ..statistics import TaskStatistics

if TYPE_CHECKING:
    from ..family import Family
    from ..hyperparameters import Eta, ProbabilisticModule
    from ..priors import TaskPrior

# Standard deviation of q(η) in unconstrained space at the start.
_INITIAL_SPREAD = 0.05
# Pairs of draws for a divergence without closed form.
_PAIRS = 4


@final
class HyperGuide(nn.Module):
    r"""$q(\eta)$: an independent Gaussian for each unconstrained hyperparameter of a module.

    Sites that the module names in `relaxed` are draws of a Gumbel-softmax instead,

    $$\alpha_i = \frac{\exp((\log\pi_i + g_i) / T)}{\sum_j \exp((\log\pi_j + g_j) / T)}, \qquad
      g_i \sim \mathrm{Gumbel}(0, 1)$$

    with the logits $\log \pi$ learned and the temperature T falling from 1 to ½ over a fit.

    References:
        Jang, Gu and Poole, Categorical reparameterization with Gumbel-softmax (2017).
        Maddison, Mnih and Teh, The concrete distribution (2017), for its density.
    """

    def __init__(self, module: ProbabilisticModule) -> None:
        super().__init__()
        self.temperature = 1.0
        self.logits = nn.ParameterDict({name: module.eta[name].log() for name in module.relaxed})
        self.transforms = module.transforms
        start = {
            name: self.transforms[name].inv(value)
            for name, value in module.eta.items()
            if name not in module.relaxed
        }
        self.loc = nn.ParameterDict(start)
        spread = math.log(_INITIAL_SPREAD)
        self.log_scale = nn.ParameterDict(
            {name: torch.full_like(value, spread) for name, value in start.items()}
        )

    def forward(self) -> Eta:
        """Sample every site."""
        eta = {}
        for name, logits in self.logits.items():
            temperature = logits.new_tensor(self.temperature)
            draw = dist.RelaxedOneHotCategorical(temperature, logits=logits)
            eta[name] = pyro.sample(name, draw.to_event(logits.ndim - 1))
        for name, loc in self.loc.items():
            base = dist.Normal(loc, self.log_scale[name].exp()).to_event(loc.ndim)
            law = dist.TransformedDistribution(base, [self.transforms[name]])
            eta[name] = pyro.sample(name, law)
        return eta

    def median(self) -> Eta:
        """The centre of q, in the sites' own space; of relaxed sites the mean of their limit."""
        centre = {name: self.transforms[name](loc.detach()) for name, loc in self.loc.items()}
        # E α at T → 0, where the draws are one-hot
        return centre | {n: logits.detach().softmax(-1) for n, logits in self.logits.items()}

    def anneal(self, done: float) -> None:
        """Lower the temperature: to ½ at half of the fit, and constant then.

        Args:
            done: share of the fit's steps that are done.
        """
        self.temperature = max(0.5, 4.0**-done)


@final
class FamilyGuide(nn.Module):
    """The guide of one family: of its prior's and its likelihood's hyperparameters, and points.

    Args:
        family: prior and likelihood, their hyperparameters at the start.
        num_vectors: M weight vectors, K unless the prior pools.
    """

    prior: HyperGuide
    likelihood: HyperGuide
    stand_in: StandIn | None

    def __init__(self, family: Family, num_vectors: int) -> None:
        super().__init__()
        self.prior = HyperGuide(family.prior)
        self.likelihood = HyperGuide(family.likelihood)
        self.transforms = family.prior.points()
        self.points = nn.ParameterList(self._unconstrained(family.prior))
        closed = family.prior.closed_form
        self.stand_in = None if closed else StandIn(family.prior.scatter, num_vectors)
        self.classifier = family.prior.classifier  # its parameters move as the guide's own

    def _unconstrained(self, prior: TaskPrior) -> list[Tensor]:
        return [t.inv(prior.get_buffer(name)) for name, t in self.transforms.items()]

    def place(self, prior: TaskPrior) -> None:
        """Put the points into the prior's buffers, such that gradients reach them."""
        placed = zip(self.transforms.items(), self.points, strict=True)
        prior.put_back({name: transform(point) for (name, transform), point in placed})

    def follow(self, prior: TaskPrior) -> None:
        """The inverse of `place`, after `TaskPrior.renew`."""
        for point, value in zip(self.points, self._unconstrained(prior), strict=True):
            point.data.copy_(value)

    def weights(
        self, prior: TaskPrior, eta: Eta, sites: TaskStatistics
    ) -> tuple[WeightPosterior, Tensor]:
        r"""$q(W \mid \eta)$ and its divergence from $p(W \mid \eta)$, a scalar.

        Args:
            prior: of the weights.
            eta: its hyperparameters.
            sites: the likelihood's factors of the M weight vectors.
        """
        if self.stand_in is None:
            posterior = prior.condition(sites, eta)
            return posterior, posterior.kl_to_prior(sites)
        law = prior(eta)
        posterior = prior.condition(self.stand_in(law, sites), eta)
        return posterior, divergence(posterior, law)


@final
class StandIn(nn.Module):
    r"""A Gaussian in place of $p(W \mid \eta)$, its moments corrected for each weight.

    $$w_{kod} \sim N\big(m + \delta s,\; (s e^\rho)^2\big)$$
    with m and s the mean and standard deviation of $p(W \mid \eta)$, and $\delta$, $\rho$ learned.
    It follows $\eta$, so that the scale of a prior does not collapse as under a guide that holds
    weights and hyperparameters apart. Where the prior has no moments, m = 0 and $s^2$ is its
    `scatter`.

    Args:
        scatter: (O, D) variance for want of moments.
        num_vectors: M weight vectors, K unless the prior pools.
    """

    def __init__(self, scatter: Tensor, num_vectors: int) -> None:
        super().__init__()
        self.variance = scatter
        self.shift = nn.Parameter(scatter.new_zeros(num_vectors, *scatter.shape))
        self.log_ratio = nn.Parameter(scatter.new_zeros(num_vectors, *scatter.shape))

    def forward(self, law: Distribution, sites: TaskStatistics) -> TaskStatistics:
        r"""The sites times this Gaussian, as factors over a unit Gaussian.

        Args:
            law: $p(W \mid \eta)$, event shape (M, O, D).
            sites: the likelihood's factors.
        """
        mean, variance = self._moments(law)
        std = variance.sqrt()
        precision = (-2 * self.log_ratio).exp() / variance
        return TaskStatistics(
            precision=sites.A + torch.diag_embed(precision - 1),
            b=sites.b + precision * (mean + self.shift * std),
            c=sites.c,
            rows=sites.rows,
        )

    def _moments(self, law: Distribution) -> tuple[Tensor, Tensor]:
        try:
            mean, variance = law.mean, law.variance
        except NotImplementedError:
            mean = variance = torch.full_like(self.shift, torch.nan)
        usable = mean.isfinite() & variance.isfinite() & (variance > 0)
        return torch.where(usable, mean, 0.0), torch.where(usable, variance, self.variance)


def divergence(posterior: WeightPosterior, law: Distribution) -> Tensor:
    r"""$KL(q \| p)$: entropy in closed form, $E_q[\log p]$ from draws in pairs around the mean.

    Args:
        posterior: q(W), a single Gaussian for each weight vector, with triangular roots.
        law: $p(W \mid \eta)$, event shape (M, O, D).
    """
    mean, root = posterior.means[:, 0], posterior.roots.own[:, 0]
    noise = torch.randn(_PAIRS, *mean.shape, 1, dtype=mean.dtype, device=mean.device)
    step = (root @ noise)[..., 0]
    log_det = root.diagonal(dim1=-2, dim2=-1).abs().log().sum()
    entropy = log_det + 0.5 * mean.numel() * (1 + math.log(2 * math.pi))
    return -entropy - 0.5 * (law.log_prob(mean + step) + law.log_prob(mean - step)).mean()
