"""How probable data are under a fitted model."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch

from .data import TaskData
from .likelihoods import QuadraticLikelihood
from .sites import elbo, refine, tasks_posterior

if TYPE_CHECKING:
    from .model import MultitaskModel


class Evidence(NamedTuple):
    r"""$\log p(D \mid \hat\eta)$ in nats, the weights integrated out, or a bound on it.

    value: nats, summed over families.
    kind: "evidence" if exact at the fitted hyperparameters, "bound" if a lower bound, "surrogate"
        if the prior itself reads posteriors: it compares with nothing else.
    """

    value: float
    kind: Literal["evidence", "bound", "surrogate"]


def log_evidence(model: MultitaskModel, data: TaskData | Mapping[str, TaskData]) -> Evidence:
    """See `MultitaskModel.log_evidence`."""
    total, exact, generative = 0.0, True, True
    for name, part in model.named_data(data).items():
        family = model[name]
        likelihood = family.likelihood
        if not isinstance(likelihood, QuadraticLikelihood) or not family.prior.closed_form:
            raise TypeError(
                f"the evidence has no closed form for {type(likelihood).__name__} under "
                f"{type(family.prior).__name__}; compare held-out log predictive density instead."
            )
        if part.tasks != family.tasks:
            raise ValueError(
                "log_evidence needs data on the model's own tasks, in the same order; got "
                f"{len(part.tasks)} tasks where the model has {len(family.tasks)}. Take "
                "rows of the data that were fitted."
            )
        likelihood.check(part.y)
        rows = model.rows(name, part.to(model.device))
        with torch.no_grad():
            sites = likelihood.statistics(likelihood.summarise(rows), likelihood.eta)
            sites = refine(partial(tasks_posterior, family.prior), likelihood, rows, sites)
            posterior = tasks_posterior(family.prior, sites)
            total += float(elbo(likelihood, rows, posterior, sites))
        exact = exact and likelihood.exact and family.prior.exact
        generative = generative and family.prior.generative
    if not generative:
        return Evidence(total, "surrogate")
    return Evidence(total, "evidence" if exact else "bound")
