"""One family of tasks as a pair of Pyro programs: the model, and what a fit knows of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyro
import pyro.distributions as dist
import torch
from pyro.contrib.autoname import scope
from torch import Tensor

from ..hyperparameters import Eta
from ..likelihoods import Rows
from ..weight_law import WeightLaw

if TYPE_CHECKING:
    from ..family import Family


def family_program(family: Family, name: str, rows: Rows) -> Tensor:
    r"""$\eta \sim p(\eta)$, $\theta \sim p(\theta)$, $W \sim p(W \mid \eta)$, then the targets.

    Args:
        family: prior and likelihood.
        name: prefix of the sites.
        rows: observed rows; their weights scale a minibatch to the whole.

    Returns:
        the weights (M, O, D), M = K unless the prior pools.
    """
    with scope(prefix=name):
        eta = family.prior.hyperprior()
        theta = family.likelihood.hyperprior()
        W = pyro.sample("weights", family.prior(eta))
        own = W.expand(family.sizes.num_tasks, -1, -1)
        f = torch.einsum("nd,nod->no", rows.phi, own[rows.task])
        log_prob = family.likelihood.log_prob(rows, f[:, None], theta)
        pyro.factor("targets", log_prob.sum())
    return W


def family_guide(family: Family, name: str) -> Tensor:
    r"""The sites of `family_program` after a fit: $\eta$, $\theta$ at their values, $W \sim q(W)$.

    Where the engine kept draws of $\eta$, one of them is taken together with weights given it: a
    joint draw, whose density is not known.

    Args:
        family: fitted.
        name: prefix of the sites.

    Returns:
        the weights (M, O, D), M = K unless the prior pools.
    """
    eta, law = family.prior.eta, WeightLaw(family.posterior)
    if family.kept_draws:
        generator = torch.Generator(family.prior.scatter.device)
        generator.manual_seed(int(torch.randint(2**31 - 1, ())))
        weights, draws = joint_draws(family, 1, generator)
        eta, law = {n: v[0] for n, v in draws.items()}, dist.Delta(weights[0], event_dim=3)
    with scope(prefix=name):
        for site, value in {**eta, **family.likelihood.eta}.items():
            pyro.sample(site, dist.Delta(value, event_dim=value.ndim))
        return pyro.sample("weights", law)


def joint_draws(
    family: Family, num_samples: int, generator: torch.Generator
) -> tuple[Tensor, Eta]:
    r"""Draws of the weights, and of the prior's hyperparameters where the engine kept any.

    Args:
        family: fitted.
        num_samples: number of draws; those of the engine come in their order, repeated or thinned.
        generator: the only source of randomness.

    Returns:
        weights (num_samples, M, O, D), and $\eta$ with a leading axis of `num_samples`, or {}.
    """
    posterior, kept = family.posterior, family.kept_draws
    if not kept:
        return posterior.draw(num_samples, generator), {}
    S = len(next(iter(kept.values())))
    K = len(posterior.means)
    at = torch.arange(num_samples, device=posterior.means.device) * S // num_samples
    # the components of one draw stand together
    log_weights = posterior.log_weights.reshape(K, S, -1)[:, at]
    C = log_weights.shape[-1]
    chances = log_weights.softmax(-1).flatten(0, 1)
    chosen = torch.multinomial(chances, 1, generator=generator).reshape(K, -1).T
    draws = posterior.draw_components(at[:, None] * C + chosen, generator)
    return draws, {name: value[at] for name, value in kept.items()}
