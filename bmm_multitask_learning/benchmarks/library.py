"""The priors of this library as methods of a benchmark."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

from ..fitting import fit
from ..likelihoods import Bernoulli, Categorical, Gaussian, Likelihood
from ..model import MultitaskModel
from ..priors import (
    IndependentTasks,
    LatentHierarchy,
    PooledTasks,
    SharedGaussian,
    SparseBayesian,
    TaskClustering,
    TaskCovariance,
    TaskPrior,
    VariationalWeighting,
)
from .protocol import Forecast, Method, Problem

COVERAGE = 0.9
FOUND = (
    "*Found* is what a method reads in the tasks: the clusters of `TaskClustering`, the weight λ "
    "of `LatentHierarchy`'s tree, the features that `SparseBayesian` keeps (squared posterior "
    "mean, summed over tasks, above 1 % of the largest, the constant left out)."
)
Makers = Mapping[str, Callable[[], TaskPrior]]
Reader = Callable[[MultitaskModel, Problem], dict[str, float]]

PRIORS: Makers = {
    "IndependentTasks": IndependentTasks,
    "PooledTasks": PooledTasks,
    "SharedGaussian (full)": lambda: SharedGaussian("full"),
    "SharedGaussian (diagonal)": lambda: SharedGaussian("diagonal"),
    "SharedGaussian (isotropic)": lambda: SharedGaussian("isotropic"),
    "TaskClustering": TaskClustering,
    "LatentHierarchy": LatentHierarchy,
    "SparseBayesian": SparseBayesian,
    "TaskCovariance": TaskCovariance,
    "VariationalWeighting": VariationalWeighting,
}
# for hundreds of features or several classes: a scale a feature has too little to be learned from
WIDE: Makers = {
    "IndependentTasks": IndependentTasks,
    "PooledTasks": PooledTasks,
    "SharedGaussian (isotropic)": lambda: SharedGaussian("isotropic"),
    "TaskClustering (isotropic)": lambda: TaskClustering(covariance="isotropic"),
    "LatentHierarchy (isotropic)": lambda: LatentHierarchy("isotropic"),
    "SparseBayesian": SparseBayesian,
    "TaskCovariance (isotropic)": lambda: TaskCovariance("isotropic"),
    "VariationalWeighting": VariationalWeighting,
}
FORMS: Makers = {
    f"VariationalWeighting ({form})": lambda form=form: VariationalWeighting(form)  # type: ignore[misc]
    for form in ("log_linear", "exact", "weighted_sum")
}


def found(model: MultitaskModel, problem: Problem) -> dict[str, float]:
    """What the prior reads in the tasks, as `FOUND` says."""
    match model.prior:
        case TaskClustering(responsibilities=share):
            return {"found": float(share.shape[1])}
        case LatentHierarchy(mixing_weight=weight):
            return {"found": float(weight)}
        case SparseBayesian():
            size = model.weights.mean.square().sum(0).reshape(-1, problem.train.x.shape[1]).sum(0)
            size = size[torch.from_numpy(problem.train.x.std(0) > 0)]  # all but the constant
            return {"found": float((size > 0.01 * size.max()).sum())}
        case _:
            return {}


def fitted(
    priors: Makers, likelihood: Callable[[], Likelihood], read: Reader = found
) -> dict[str, Method]:
    """A method for each prior, by `forecast`.

    Args:
        priors: makers of priors, by the name that tables show.
        likelihood: maker of the likelihood.
        read: further figures of a fitted model.
    """

    def method(make: Callable[[], TaskPrior]) -> Method:
        return lambda problem: forecast(make(), likelihood(), problem, read)

    return {name: method(make) for name, make in priors.items()}


def forecast(
    prior: TaskPrior, likelihood: Likelihood, problem: Problem, read: Reader = found
) -> Forecast:
    """Fit by the closed form with seed 0, and predict the test rows."""
    model = MultitaskModel(prior=prior, likelihood=likelihood)
    fit(model, problem.train.data(problem.num_tasks), progress=False)
    prediction = model.predict(problem.test.x, problem.test.task)
    interval = None
    if not isinstance(likelihood, Bernoulli | Categorical):
        interval = np.asarray(prediction.interval(COVERAGE))
    log_prob = np.asarray(prediction.log_prob(problem.test.y))
    return Forecast(np.asarray(prediction.mean), log_prob, interval, read(model, problem))


def numbers(priors: Makers = PRIORS) -> dict[str, Method]:
    """The priors for numbers with one noise variance for all tasks."""
    return fitted(priors, Gaussian)


def noisy_numbers(priors: Makers = PRIORS) -> dict[str, Method]:
    """The priors for numbers with a noise variance a task."""
    return fitted(priors, lambda: Gaussian("task"))


def yes_or_no(priors: Makers = PRIORS) -> dict[str, Method]:
    """The priors for targets of 0 and 1."""
    return fitted(priors, Bernoulli)


def kinds(num_classes: int, priors: Makers = PRIORS) -> dict[str, Method]:
    """The priors for several classes."""
    return fitted(priors, lambda: Categorical(num_classes))
