"""Parkinsons: how severe 42 patients' symptoms are, from their voices and the time."""

from __future__ import annotations

from functools import cache, lru_cache

import numpy as np

from .. import datasets
from ..data import TaskData
from . import library, peers, sampled, scores
from .features import standardised
from .protocol import Forecast, Metric, Problem, Protocol, Rows, Split, cannot, draws

TEXT = f"""
42 patients, 5875 recordings; the total and the motor score (*size*) are fitted one after the
other. 20 % of each patient's rows, drawn at random, train. Features are standardised on them and a
constant is added; the target is centred and scaled by its train rows. Noise has a variance a
patient. *EV within* is explained variance around each patient's own mean: around the mean of all,
the patients' means alone reach .93, which is not a figure to quote. The signal within patients is
almost wholly the time of the test, and the labels are said to be interpolated in time, so random
rows leak; trained on the first fifth of the time every linear method fails. No claim about
forecasting. {library.FOUND}
"""


@cache
def _data() -> TaskData:
    return datasets.fetch_parkinsons()


@lru_cache(maxsize=1)
def prepare(split: Split) -> Problem:
    """A fifth of each patient's rows, and the others."""
    column = {"motor": 0, "total": 1}[split.size]
    train, test = (
        Rows(part.x.numpy(), part.y[:, column].numpy(), part.task.numpy())
        for part in _data().split(0.2, seed=split.seed)
    )
    centre, scale = train.y.mean(), train.y.std()
    train, test = (part._replace(y=(part.y - centre) / scale) for part in (train, test))
    return standardised(train, test, _data().num_tasks)


def patients_mean(problem: Problem) -> Forecast:
    """Every patient's mean of the train rows."""
    task, y = problem.train.task, problem.train.y
    mean = np.bincount(task, y, problem.num_tasks) / np.bincount(task, None, problem.num_tasks)
    return Forecast(mean[problem.test.task])


PARKINSONS = Protocol(
    name="parkinsons",
    text=TEXT,
    splits=draws(("total", "motor"), 6),
    methods={
        **library.noisy_numbers(),
        "patient's mean": patients_mean,
        **peers.ridge(),
        "MultiTaskLassoCV": cannot("needs shared inputs"),
        **peers.coregionalisation(),
        **sampled.hierarchical(),
    },
    prepare=prepare,
    score=scores.explained,
    metrics=(
        Metric("EV_within", "EV within"),
        Metric("RMSE", "RMSE"),
        *scores.SPREAD,
        Metric("found", "found", 2),
        scores.SECONDS,
    ),
    reference="SharedGaussian (diagonal)",
    compared=("EV_within", "log_density"),
    some=dict.fromkeys(
        ("GPyTorch ICM (linear)", "NumPyro NUTS (hierarchical)"), draws(("total", "motor"), 1)
    ),
    quick_splits=draws(("total",), 2),
    quick_methods=("IndependentTasks", "PooledTasks", "SharedGaussian (diagonal)"),
)
