"""Rotated MNIST: digits turned by six angles, few labels an angle."""

from __future__ import annotations

from functools import cache, lru_cache

import numpy as np

from .. import datasets
from . import library, peers, sampled, scores
from .features import principal
from .office import one_of_each_first
from .protocol import Metric, Problem, Protocol, Rows, Split, draws

NUM_ANGLES, NUM_DIGITS, NUM_FEATURES = 6, 10, 64
TEST_ROWS = 300
TEXT = f"""
Digits turned by 0, 15, .. 75 degrees, other images at every angle, the angle is the task. n train
rows of each angle (*size*), drawn at random with one of every digit first, and {TEST_ROWS} others
to test. Pixels are centred and projected on the {NUM_FEATURES} principal axes of the train rows,
scaled to a mean variance of 1, and a constant is added. *Accuracy* is the mean over angles; log
density, Brier and the expected calibration error (15 bins of equal width) are of all test rows
together. The angle itself is not given to any method. Slow methods are fitted to the first
draws of each size only; the column *splits* counts. {library.FOUND}
"""


@cache
def _rows() -> Rows:
    return Rows.of(datasets.fetch_rotated_mnist())


@lru_cache(maxsize=1)
def prepare(split: Split) -> Problem:
    """The train rows of each angle, and others."""
    rows = _rows()
    rng = np.random.default_rng([int(split.size), split.seed])
    chosen = one_of_each_first(rows, np.full(NUM_ANGLES, int(split.size)), rng)
    others = [
        rng.permutation(np.flatnonzero((rows.task == k) & ~chosen))[:TEST_ROWS]
        for k in range(NUM_ANGLES)
    ]
    return principal(
        rows.where(chosen), rows.where(np.concatenate(others)), NUM_ANGLES, NUM_FEATURES
    )


ROTATED_MNIST = Protocol(
    name="rotated-mnist",
    text=TEXT,
    splits=draws(("20", "50"), 5),
    methods={
        **library.kinds(NUM_DIGITS, library.WIDE),
        **peers.logistic(NUM_DIGITS),
        **peers.NO_CLASSES,
        **sampled.TWO_CLASSES,
    },
    prepare=prepare,
    score=scores.classes,
    metrics=(
        Metric("accuracy", "accuracy"),
        *scores.CHANCE,
        Metric("found", "found", 2),
        scores.SECONDS,
    ),
    reference="SharedGaussian (isotropic)",
    compared=("accuracy", "log_density"),
    some={
        "TaskClustering (isotropic)": draws(("20", "50"), 1),
        "LatentHierarchy (isotropic)": draws(("20", "50"), 3),
    },
    quick_splits=draws(("20",), 1),
    quick_methods=(
        *("IndependentTasks", "PooledTasks", "SharedGaussian (isotropic)"),
        "LogisticRegression (pooled)",
    ),
)
