"""How probable data are under a fitted model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch

from .data import TaskData
from .likelihoods import QuadraticLikelihood

if TYPE_CHECKING:
    from .model import MultitaskModel

_LOCAL_STEPS = 100


class Evidence(NamedTuple):
    r"""$\log p(D \mid \hat\eta)$ in nats, the weights integrated out, or a bound on it.

    value: nats, summed over families.
    kind: "evidence" if exact at the fitted hyperparameters, "bound" if a lower bound.
    """

    value: float
    kind: Literal["evidence", "bound", "surrogate"]


def log_evidence(model: MultitaskModel, data: TaskData | Mapping[str, TaskData]) -> Evidence:
    """See `MultitaskModel.log_evidence`."""
    total, exact = 0.0, True
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
        with torch.no_grad():
            summary = likelihood.summarise(model.rows(name, part.to(model.device)))
            for _ in range(1 if likelihood.exact else _LOCAL_STEPS):
                statistics = family.prior.reduce(likelihood.statistics(summary, likelihood.eta))
                posterior = family.prior.condition(statistics, family.prior.eta)
                if not likelihood.exact:
                    summary = likelihood.update(summary, family.prior.expand(posterior))
        total += float(posterior.log_normaliser)
        exact = exact and likelihood.exact
    return Evidence(total, "evidence" if exact else "bound")
