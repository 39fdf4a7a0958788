"""School: 139 schools, exam scores; random 75/25 splits within school."""

from __future__ import annotations

from functools import cache, lru_cache

from .. import datasets
from ..data import TaskData
from . import library, peers, sampled, scores
from .features import standardised
from .protocol import Metric, Problem, Protocol, Rows, Split, cannot, draws

TEXT = f"""
139 schools, 15362 pupils: random 75/25 splits of the rows within each school. The 27 features are
standardised on the train rows and a constant is added; the target is centred on the train mean.
Nothing is chosen on test rows. *EV* is explained variance in three definitions that are not to be
mixed up: around the mean of all test rows, around each school's own mean, and the mean over
schools of each school's own. Ridge regressions have their penalty by leave-one-out on the train
rows. `TaskCovariance`, whose cost grows with the cube of tasks times features, is fitted to the
first split only. {library.FOUND}
"""


@cache
def _data() -> TaskData:
    return datasets.fetch_school()


@lru_cache(maxsize=1)
def prepare(split: Split) -> Problem:
    """Three quarters of each school's rows, and the others."""
    parts = [Rows.of(part) for part in _data().split(0.75, seed=split.seed)]
    centre = parts[0].y.mean()
    train, test = (part._replace(y=part.y - centre) for part in parts)
    return standardised(train, test, _data().num_tasks)


SCHOOL = Protocol(
    name="school",
    text=TEXT,
    splits=draws(("",), 10),
    methods={
        **library.numbers(),
        **peers.ridge(),
        "MultiTaskLassoCV": cannot("needs shared inputs"),
        "GPyTorch ICM (linear)": cannot(f"more than {peers.MOST_ROWS} rows"),
        **sampled.hierarchical(),
    },
    prepare=prepare,
    score=scores.explained,
    metrics=(
        Metric("EV_global", "EV global"),
        Metric("EV_within", "EV within"),
        Metric("EV_taskmean", "EV task mean"),
        Metric("RMSE", "RMSE", 2),
        *scores.SPREAD,
        Metric("found", "found", 2),
        scores.SECONDS,
    ),
    reference="SharedGaussian (full)",
    compared=("EV_global", "log_density"),
    some=dict.fromkeys(("TaskCovariance", "NumPyro NUTS (hierarchical)"), draws(("",), 1)),
    quick_splits=draws(("",), 2),
    quick_methods=("IndependentTasks", "PooledTasks", "SharedGaussian (full)"),
)
