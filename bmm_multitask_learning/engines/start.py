"""Where SVI and NUTS start: the closed form, or the nearest thing to it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from ..likelihoods import QuadraticLikelihood, Rows
from ..posterior import WeightPosterior
from ..processes import broadcast
from ..sites import blend, first_factor, fold_statistics, latent_moments, local_factor
from ..statistics import TaskStatistics
from .coordinate_ascent import CoordinateAscent

if TYPE_CHECKING:
    from ..family import Family

_ROUNDS = 10


def start_sites(
    family: Family, rows: Rows, generator: torch.Generator, *, progress: bool
) -> TaskStatistics:
    """Set the hyperparameters of a family, and return the factors of its tasks."""
    prior, likelihood = family.prior, family.likelihood
    if not (isinstance(likelihood, QuadraticLikelihood) and prior.closed_form):
        return _laplace_start(family, rows, generator)
    CoordinateAscent().fit_family(family, rows, generator, progress=progress)
    moments = latent_moments(family.weights, rows)
    return local_factor(likelihood, rows, *moments, likelihood.eta)


def _laplace_start(family: Family, rows: Rows, generator: torch.Generator) -> TaskStatistics:
    """A few rounds of factors at the posterior's own moments, from latents near the targets."""
    prior, likelihood = family.prior, family.likelihood
    likelihood.initialise(rows)
    broadcast(likelihood)  # where it looked at its own process's rows alone
    sites = first_factor(likelihood, rows, likelihood.eta)
    prior.initialise(prior.reduce(sites), generator, 0)
    count = 0
    while True:
        for _ in range(_ROUNDS):
            posterior = prior.condition(prior.reduce(sites), prior.eta)
            if prior.closed_form:
                prior.update(posterior)
            moments = latent_moments(prior.expand(posterior), rows)
            new = local_factor(likelihood, rows, *moments, likelihood.eta)
            sites = blend(sites, new, 0.5)
        tasks = prior.expand(posterior)
        if not prior.refresh(count, posterior, partial(_folds, family, rows, tasks)):
            return sites
        count += 1


def _folds(family: Family, rows: Rows, tasks: WeightPosterior) -> list[TaskStatistics]:
    """See `TaskPrior.refresh`."""
    parts = fold_statistics(family.likelihood, rows, tasks)
    return [family.prior.reduce(part) for part in parts]
