"""NUTS: the same model by Hamiltonian Monte Carlo, for small problems and as a reference.

Where the likelihood is a Gaussian factor exactly, the weights are integrated out and only the
hyperparameters are sampled; otherwise both are.

References:
    Hoffman and Gelman, The No-U-Turn Sampler (2014).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, final

import pyro
import torch
from pyro.contrib.autoname import scope
from pyro.infer import MCMC
from pyro.infer import NUTS as PyroNUTS
from pyro.infer.autoguide.initialization import init_to_value
from torch import Tensor
from torch.distributions.transforms import Transform

from ..data import TaskData
from ..likelihoods import Rows
from ..posterior import WeightPosterior
from ..sites import latent_moments, local_factor
from ..statistics import TaskStatistics
from .coordinate_ascent import quadratic
from .program import family_program
from .result import FitResult
from .start import start_sites

if TYPE_CHECKING:
    from ..family import Family
    from ..hyperparameters import Eta
    from ..model import MultitaskModel

# Precision, in units of the prior's, at which a weight counts as known.
_SHARPNESS = 1e10


@final
@dataclasses.dataclass(frozen=True)
class NUTS:
    """Draws from the joint posterior of hyperparameters and weights; starts from the closed form.

    Predictions average over the draws. The point values of the hyperparameters that read-outs use
    are the means of the draws in unconstrained space.

    Args:
        num_samples: draws that are kept.
        warmup_steps: steps of adaptation before.
        max_tree_depth: of a trajectory.

    Raises:
        ValueError: for sizes that are not positive.

    Example:
        >>> NUTS(num_samples=50).warmup_steps
        200
    """

    num_samples: int = 200
    warmup_steps: int = 200
    max_tree_depth: int = 8

    def __post_init__(self) -> None:
        for name, least in (("num_samples", 1), ("warmup_steps", 0), ("max_tree_depth", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}; got {getattr(self, name)}.")

    def fit(
        self,
        model: MultitaskModel,
        data: Mapping[str, TaskData],
        *,
        generator: torch.Generator,
        progress: bool,
    ) -> FitResult:
        """Fit a built model in place."""
        if any(p.requires_grad for p in model.feature_modules.parameters()):
            raise TypeError(
                "NUTS samples hyperparameters and weights, not a backbone: freeze its parameters "
                "(requires_grad_(False)) or use engine=SVI()."
            )
        for family in model.families.values():
            if not family.prior.generative:
                raise TypeError(
                    f"{type(family.prior).__name__} reads posteriors and is no law p(W | eta) "
                    "p(eta) to sample from; use engine=CoordinateAscent() or SVI()."
                )
        results = []
        for name, part in data.items():
            with torch.no_grad():
                rows = model.rows(name, part)
            results.append(self._fit_family(model[name], name, rows, generator, progress=progress))
        return FitResult(sum(results), converged=True, history=(sum(results),), engine="NUTS")

    def _fit_family(
        self, family: Family, name: str, rows: Rows, generator: torch.Generator, *, progress: bool
    ) -> float:
        start = _start(family, name, rows, generator)
        collapsed = family.prior.closed_form and family.likelihood.exact
        program = _collapsed(family, name, rows) if collapsed else _joint(family, name, rows)
        kernel = PyroNUTS(
            program, max_tree_depth=self.max_tree_depth, init_strategy=init_to_value(values=start)
        )
        mcmc = MCMC(kernel, self.num_samples, self.warmup_steps, disable_progbar=not progress)
        with pyro.validation_enabled(is_validate=False):
            mcmc.run()
        draws = {
            site.removeprefix(f"{name}/"): value for site, value in mcmc.get_samples().items()
        }
        with torch.no_grad():
            return _publish(family, rows, draws)


def _start(family: Family, name: str, rows: Rows, generator: torch.Generator) -> Eta:
    """Values of every site from the closed form, or from the factors that SVI starts from."""
    with torch.no_grad():
        sites = start_sites(family, rows, generator, progress=False)
        weights = family.prior.condition(family.prior.reduce(sites), family.prior.eta).mean
    weights = weights.reshape(len(weights), family.sizes.num_outputs, -1)
    values = {**family.prior.eta, **family.likelihood.eta, "weights": weights}
    return {f"{name}/{site}": value for site, value in values.items()}


def _collapsed(family: Family, name: str, rows: Rows) -> Callable[[], None]:
    r"""$p(\eta, \theta) \int p(D \mid W, \theta)\, p(W \mid \eta)\, dW$ as a Pyro program."""
    likelihood = quadratic(family)
    with torch.no_grad():
        summary = likelihood.summarise(rows)

    def program() -> None:
        with scope(prefix=name):
            eta = family.prior.hyperprior()
            theta = likelihood.hyperprior()
            statistics = family.prior.reduce(likelihood.statistics(summary, theta))
            pyro.factor("targets", family.prior.condition(statistics, eta).log_normaliser)

    return program


def _joint(family: Family, name: str, rows: Rows) -> Callable[[], None]:
    """Hyperparameters, weights and targets as a Pyro program."""

    def program() -> None:
        family_program(family, name, rows)

    return program


def _publish(family: Family, rows: Rows, draws: Eta) -> float:
    """Write the draws into a family; returns the mean log normaliser."""
    prior, likelihood = family.prior, family.likelihood
    eta = {site: draws[site] for site in prior.transforms}
    theta = {site: draws[site] for site in likelihood.transforms}
    prior.set_eta(_centre(eta, prior.transforms))
    likelihood.set_eta(_centre(theta, likelihood.transforms))
    if "weights" in draws:
        factors = torch.func.vmap(lambda W: vars(_known_weights(W, prior.scatter)))(
            draws["weights"]
        )
    else:
        exact = quadratic(family)
        summary = exact.summarise(rows)
        factors = torch.func.vmap(lambda one: vars(exact.statistics(summary, one)))(theta)

    @torch.enable_grad()  # priors branch on values only where no gradient can be asked for
    def posterior_given(factor: dict[str, Tensor], one: Eta) -> dict[str, Tensor]:
        return prior.condition(prior.reduce(TaskStatistics(**factor)), one).tensors()

    stacked = torch.func.vmap(posterior_given)(factors, eta)
    family.set_posterior(_as_mixture(stacked))
    family.set_draws(eta)
    _settle(family, rows)
    return float(stacked["log_normaliser"].mean())


def _settle(family: Family, rows: Rows) -> None:
    """Read-outs at the point values of the hyperparameters."""
    moments = latent_moments(family.weights, rows)
    statistics = local_factor(family.likelihood, rows, *moments, family.likelihood.eta)
    prior = family.prior
    posterior = prior.condition(prior.reduce(statistics), prior.eta)
    prior.settle(statistics, prior.expand(posterior))


def _known_weights(weights: Tensor, scatter: Tensor) -> TaskStatistics:
    """Factors so sharp that the posterior of the weights is a point."""
    precision = (_SHARPNESS / scatter).expand_as(weights)
    return TaskStatistics(
        precision=torch.diag_embed(precision),
        b=precision * weights,
        c=torch.zeros_like(weights[..., 0]),
        rows=torch.ones_like(weights[:, 0, 0]),
    )


def _as_mixture(stacked: dict[str, Tensor]) -> WeightPosterior:
    """S posteriors of C components as one of S C components of equal share."""
    S = len(stacked["log_normaliser"])

    def merge(value: Tensor) -> Tensor:
        return value.movedim(0, 1).flatten(1, 2)

    merged = {n: merge(stacked[n]) for n in ("log_weights", "means", "own", "common")}
    merged["log_weights"] -= math.log(S)
    merged["log_normaliser"] = stacked["log_normaliser"].mean()
    centres = {n: stacked[n].flatten(0, 1) for n in ("centre_mean", "centre_root") if n in stacked}
    return WeightPosterior.from_tensors(merged | centres)


def _centre(draws: Eta, transforms: dict[str, Transform]) -> Eta:
    """Mean of draws in unconstrained space, mapped back."""
    return {n: transforms[n](transforms[n].inv(v).mean(0)) for n, v in draws.items()}
