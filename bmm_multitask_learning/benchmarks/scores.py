"""Figures of forecasts: how close, how sure, and whether rightly so."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import log_loss

from .. import metrics
from .protocol import Forecast, Metric, Problem

SPREAD = (
    Metric("log_density", "log density"),
    Metric("coverage", "coverage of 90 %"),
    Metric("width", "width"),
)
CHANCE = (
    Metric("log_density", "log density", 4),
    Metric("Brier", "Brier", 4),
    Metric("ECE", "ECE"),
)
SECONDS = Metric("seconds", "seconds", 2)


def numeric(problem: Problem, forecast: Forecast) -> dict[str, float]:
    """RMSE; log density, coverage and width of 90 % intervals where the method has them."""
    y = problem.test.y
    figures = {"RMSE": metrics.rmse(y, forecast.mean)}
    if forecast.log_prob is not None:
        figures["log_density"] = metrics.mean_log_predictive_density(forecast.log_prob)
    if forecast.interval is not None:
        lower, upper = forecast.interval.T
        figures["coverage"] = metrics.interval_coverage(y, lower, upper)
        figures["width"] = metrics.interval_width(lower, upper)
    return figures


def explained(problem: Problem, forecast: Forecast) -> dict[str, float]:
    """`numeric`, and the explained variance in three definitions."""
    y, task = problem.test.y, problem.test.task
    variances = {
        f"EV_{kind}": metrics.explained_variance(y, forecast.mean, task, kind)
        for kind in ("global", "within", "taskmean")
    }
    return {**variances, **numeric(problem, forecast)}


def classes(problem: Problem, forecast: Forecast) -> dict[str, float]:
    """Accuracy as the mean over tasks; log density, Brier and ECE of all test rows together."""
    y, task, chance = problem.test.y, problem.test.task, forecast.mean
    table = np.column_stack([1 - chance, chance]) if chance.ndim == 1 else chance
    right = (table.argmax(1) == y).astype(float)
    rows = np.bincount(task, minlength=problem.num_tasks)
    hits = np.bincount(task, right, minlength=problem.num_tasks)
    return {
        "accuracy": float((hits[rows > 0] / rows[rows > 0]).mean()),
        "log_density": -float(log_loss(y, table, labels=np.arange(table.shape[1]))),
        "Brier": metrics.brier(y, chance),
        "ECE": metrics.expected_calibration_error(y, chance, num_bins=15),
    }


def labels(problem: Problem, forecast: Forecast) -> dict[str, float]:
    """`classes` of a yes-or-no target, and the mean over tasks of each task's own AUC."""
    y, task = problem.test.y, problem.test.task
    return {"AUC": metrics.auc(y, forecast.mean, task), **classes(problem, forecast)}
