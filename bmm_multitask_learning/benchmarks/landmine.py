"""Landmine: 29 fields, n labelled rows in each; 6 % of the rows are mines."""

from __future__ import annotations

from functools import cache, lru_cache

import numpy as np

from .. import datasets
from . import library, peers, sampled, scores
from .features import standardised
from .protocol import Metric, Problem, Protocol, Rows, Split, draws

NUM_FIELDS = 29
SIZES = ("20", "40", "80", "160")
TEXT = f"""
29 fields of 445 to 690 rows, 6 % of them mines. n labelled rows of each field (*size*), drawn at
random, again until both classes are among them; the other rows are the test rows. Features are
standardised on the labelled rows, a constant is added. *AUC* is the mean over fields of each
field's own area under the ROC curve, *accuracy* the mean over fields; log density, Brier and the
expected calibration error (15 bins of equal width) are of all test rows together. Penalties of
the logistic regressions are chosen by 3-fold cross-validation of the log loss on the labelled
rows. Slow methods are fitted to the first draws of each size only; the column *splits* counts.
{library.FOUND}
"""


def with_all_classes(rows: Rows, size: int, rng: np.random.Generator) -> np.ndarray:
    """Mask of `size` rows of each task, drawn again until it has all of the task's classes."""
    chosen = np.zeros(len(rows.y), dtype=bool)
    for k in np.unique(rows.task):
        own = np.flatnonzero(rows.task == k)
        kinds = len(np.unique(rows.y[own]))
        draw = rng.permutation(own)[:size]
        while len(np.unique(rows.y[draw])) < kinds:
            draw = rng.permutation(own)[:size]
        chosen[draw] = True
    return chosen


@cache
def _rows() -> Rows:
    return Rows.of(datasets.fetch_landmine())


@lru_cache(maxsize=1)
def prepare(split: Split) -> Problem:
    """The labelled rows of each field, and the others."""
    rows, size = _rows(), int(split.size)
    chosen = with_all_classes(rows, size, np.random.default_rng([size, split.seed]))
    return standardised(rows.where(chosen), rows.where(~chosen), NUM_FIELDS)


LANDMINE = Protocol(
    name="landmine",
    text=TEXT,
    splits=draws(SIZES, 20),
    methods={
        **library.yes_or_no(),
        **peers.logistic(),
        **peers.NO_CLASSES,
        **sampled.hierarchical(yes_or_no=True),
    },
    prepare=prepare,
    score=scores.labels,
    metrics=(
        Metric("AUC", "AUC"),
        Metric("accuracy", "accuracy"),
        *scores.CHANCE,
        Metric("found", "found", 2),
        scores.SECONDS,
    ),
    reference="SharedGaussian (full)",
    compared=("AUC", "log_density"),
    some={
        **dict.fromkeys(("TaskClustering", "VariationalWeighting"), draws(SIZES, 10)),
        "NumPyro NUTS (hierarchical)": draws(SIZES, 2),
    },
    quick_splits=draws(("20", "80"), 2),
    quick_methods=("IndependentTasks", "PooledTasks", "SharedGaussian (full)"),
)
