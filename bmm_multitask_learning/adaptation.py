"""Further rows for a fitted model: of new tasks, or more of known ones."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Hashable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .data import TaskData
from .likelihoods import Rows
from .posterior import WeightPosterior
from .predictive import check_width, concatenate, new_tasks
from .priors.task_prior import own_information
from .sites import amortised_factor, first_factor, refine
from .statistics import TaskStatistics

if TYPE_CHECKING:
    from .family import Family
    from .model import MultitaskModel


def adapt(model: MultitaskModel, data: TaskData, *, family: str | None) -> MultitaskModel:
    """See `MultitaskModel.adapt`."""
    part = model.family(family)
    part.likelihood.check(data.y)
    result = copy.deepcopy(model)
    target = result.family(family)
    data = data.to(model.device)
    index = part.index_of(data.tasks)
    fresh = [label for label, i in zip(data.tasks, index.tolist(), strict=True) if i < 0]
    newcomers = None
    if fresh:
        features = data.task_features
        if features is not None:
            features = features[(index < 0).to(features.device)]
        newcomers = new_tasks(target, fresh, features)
    tasks = part.tasks + tuple(fresh)
    place = {label: i for i, label in enumerate(tasks)}
    task = torch.tensor([place[label] for label in data.tasks], device=model.device)[data.task]
    with torch.no_grad():
        phi = model.read(part, model.outputs(data.x), data.x, task)
        check_width(part, phi)
        rows = Rows.from_targets(phi, data.y, data.weight, task, len(tasks))
        _grow(target, tasks, rows.task if phi.ndim == 3 else task)
        _add_rows(target, rows, target.weights, newcomers)
    return result


def _grow(target: Family, tasks: tuple[Hashable, ...], task: Tensor) -> None:
    """Make room in a family for new tasks: sizes, labels, row counts."""
    added = len(tasks) - len(target.tasks)
    target.sizes = dataclasses.replace(target.sizes, num_tasks=len(tasks))
    count = torch.bincount(task, minlength=len(tasks)).tolist()
    before = (*target.rows_per_task, *(0 for _ in range(added)))
    target.rows_per_task = tuple(a + b for a, b in zip(before, count, strict=True))
    target.tasks = tasks
    target.likelihood.grow(target.sizes)


def _add_rows(
    target: Family, rows: Rows, known: WeightPosterior, newcomers: WeightPosterior | None
) -> None:
    """Condition each task's weights on its further rows."""
    K, prior, likelihood = len(known.means), target.prior, target.likelihood

    def condition(statistics: TaskStatistics) -> WeightPosterior:
        posterior = known.condition(statistics[:K])
        if newcomers is None:
            return posterior
        return concatenate(posterior, prior.condense(newcomers.condition(statistics[K:])))

    # the rows' Gaussian factor: the likelihood itself, or the best at the posterior's moments
    if prior.classifier is not None:
        statistics = amortised_factor(prior, likelihood, rows)
    else:
        first = first_factor(likelihood, rows, likelihood.eta)
        statistics = refine(condition, likelihood, rows, first)
    posterior = condition(statistics)
    old = prior.information
    new = own_information(statistics, posterior)
    # the share that rows say grows from i to i + (1 - i) j, where j is the further rows' share
    padded = torch.cat([old, old.new_zeros(len(new) - len(old))])
    placed = None if newcomers is None else newcomers.condition(statistics[K:])
    prior.grow(padded + (1 - padded) * new, posterior, placed)
    target.set_posterior(dataclasses.replace(posterior, shared=known.shared))
