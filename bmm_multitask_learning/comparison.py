"""Several priors on the same rows: fitted, scored on held-out rows, and put in one table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import numpy.typing as npt
import torch

from . import metrics
from .data import TaskData
from .engines import FitResult
from .fitting import fit
from .likelihoods import Likelihood, QuadraticLikelihood
from .model import MultitaskModel
from .prediction import Prediction
from .priors import TaskPrior
from .report import Column, Table
from .units import Units

COVERAGE = 0.9


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A fitted model and what it predicts for the held-out rows.

    Args:
        name: what tables call it.
        model: fitted on the train rows, in standardised units.
        result: report of the fit.
        prediction: for the test rows, in the user's units.
        evidence: log evidence of the train rows in the user's units, or a bound on it; None where
            there is no closed form.
    """

    name: str
    model: MultitaskModel
    result: FitResult
    prediction: Prediction
    evidence: float | None


def row_labels(data: TaskData) -> list[object]:
    """The task label of each row, (N,)."""
    return [data.tasks[k] for k in data.task.tolist()]


def fit_candidates(
    priors: Mapping[str, TaskPrior],
    likelihood: Callable[[], Likelihood],
    train: TaskData,
    test: TaskData,
    units: Units,
    *,
    seed: int,
) -> Iterator[Candidate]:
    """Fit one model a prior, one after the other.

    Args:
        priors: by the name that tables show.
        likelihood: makes a fresh likelihood for each model.
        train: rows to fit, in the user's units.
        test: rows of the same tasks to predict.
        units: those of the models.
        seed: of every fit.

    Example:
        >>> from bmm_multitask_learning import Gaussian, PooledTasks, datasets
        >>> data, truth = datasets.make_clusters(num_tasks=6, seed=0)
        >>> train, test = data.split(seed=0)
        >>> units = Units.of(train)
        >>> fitted = fit_candidates(
        ...     {"pooled": PooledTasks()}, Gaussian, train, test, units, seed=0
        ... )
        >>> [candidate.name for candidate in fitted]
        ['pooled']
    """
    rows = units.standardise(train)
    for name, prior in priors.items():
        model = MultitaskModel(prior=prior, likelihood=likelihood())
        result = fit(model, rows, seed=seed, progress=False)
        prediction = predict_rows(model, test, units)
        yield Candidate(name, model, result, prediction, _evidence(model, rows, units))


def predict_rows(model: MultitaskModel, data: TaskData, units: Units) -> Prediction:
    """What a model that was fitted in `units` predicts for rows in the user's units."""
    prediction = model.predict(units.features(data.x.numpy(), intercept=True), row_labels(data))
    if model.likelihood.location_scale:
        return units.prediction(prediction, data.task.numpy())
    return prediction


def _evidence(model: MultitaskModel, rows: TaskData, units: Units) -> float | None:
    if not isinstance(model.likelihood, QuadraticLikelihood):
        return None
    # a density of y is that of t = (y − c)/s over s
    _, scale = units.of_rows(rows.task.numpy())
    observed = rows.observed.reshape(len(rows.y), -1).numpy()
    return model.log_evidence(rows).value - float((observed * np.log(scale)).sum())


def numeric_table(
    candidates: list[Candidate], test: TaskData, *, caption: str, unit: str = ""
) -> Table:
    """Error, explained variances, density, intervals and evidence of each candidate.

    Args:
        candidates: models of numeric targets.
        test: the held-out rows, in the user's units.
        caption: of the table.
        unit: name of the user's units.
    """
    columns = [
        Column("model"),
        Column("RMSE", "#.4g", unit, best="lowest"),
        Column("EV", ".3f", "global", best="highest"),
        Column("EV", ".3f", "within", best="highest"),
        Column("EV", ".3f", "task mean", best="highest"),
        Column("log density", ".3f", "nats/row", best="highest"),
        Column("coverage", ".1%", f"of {100 * COVERAGE:.0f} %", best=COVERAGE),
        Column("width", "#.4g", unit),
        Column("evidence", ",.1f", "nats"),
        Column("time", ".2f", "s"),
    ]
    rows = [
        [each.name, *_numeric_scores(each.prediction, test), each.evidence, each.result.seconds]
        for each in candidates
    ]
    return Table(columns, rows, caption)


def _numeric_scores(prediction: Prediction, test: TaskData) -> list[float]:
    y = test.y.numpy()
    interval = prediction.interval(COVERAGE)
    lower, upper = interval[..., 0], interval[..., 1]
    return [
        metrics.rmse(y, prediction.mean),
        metrics.explained_variance(y, prediction.mean),
        metrics.explained_variance(y, prediction.mean, test.task, "within"),
        metrics.explained_variance(y, prediction.mean, test.task, "taskmean"),
        metrics.mean_log_predictive_density(prediction.log_prob(y)),
        metrics.interval_coverage(y, lower, upper),
        metrics.interval_width(lower, upper),
    ]


def class_probabilities(prediction: Prediction) -> npt.NDArray[np.float64]:
    """(N, O) probability of each class; two columns where the target is 0 or 1."""
    chance = torch.as_tensor(prediction.mean).numpy()
    return np.column_stack([1 - chance, chance]) if chance.ndim == 1 else chance
