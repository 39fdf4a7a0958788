"""Office-Caltech10: pictures of ten kinds of object from four sources, few labels a source."""

from __future__ import annotations

from functools import cache, lru_cache

import numpy as np

from .. import datasets
from . import library, peers, sampled, scores
from .features import principal
from .protocol import Metric, Problem, Protocol, Rows, Split, draws

NUM_DOMAINS, NUM_KINDS, NUM_FEATURES = 4, 10, 128
SIZES = ("5 %", "10 %")
SLOW = ("SharedGaussian (full)", "SharedGaussian (diagonal)")
TEXT = f"""
Four sources of pictures, ten kinds of object, 2533 histograms of 800 SURF words: divided by their
sum, the square root taken, centred and projected on the {NUM_FEATURES} principal axes of the train
rows, scaled to a mean variance of 1, and a constant. 5 or 10 % of each source's rows (*size*), ten
at least, drawn at random with one of every kind first, train; the others are the test rows. No
iteration and no penalty is chosen on them. *Accuracy* is the mean over sources; log density, Brier
and the expected calibration error (15 bins of equal width) are of all test rows together.
Slow methods are fitted to the first draws of each size only; the column *splits* counts.
{library.FOUND}
"""


def one_of_each_first(rows: Rows, sizes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mask of `sizes[k]` rows of task k, drawn at random after one of each of its classes."""
    chosen = np.zeros(len(rows.y), dtype=bool)
    for k, size in enumerate(sizes):
        own = rng.permutation(np.flatnonzero(rows.task == k))
        _, first = np.unique(rows.y[own], return_index=True)
        others = np.delete(own, first)[: max(size - len(first), 0)]
        chosen[own[first]] = chosen[others] = True
    return chosen


@cache
def _rows() -> Rows:
    rows = Rows.of(datasets.fetch_office_caltech10())
    return rows._replace(x=np.sqrt(rows.x / rows.x.sum(1, keepdims=True)))


@lru_cache(maxsize=1)
def prepare(split: Split) -> Problem:
    """A share of each source's rows, and the others."""
    rows = _rows()
    share = float(split.size.removesuffix(" %")) / 100
    sizes = np.maximum((share * np.bincount(rows.task)).astype(int), NUM_KINDS)
    chosen = one_of_each_first(rows, sizes, np.random.default_rng(split.seed))
    return principal(rows.where(chosen), rows.where(~chosen), NUM_DOMAINS, NUM_FEATURES)


LEARNED_SCALES = {name: library.PRIORS[name] for name in SLOW}
OFFICE = Protocol(
    name="office",
    text=TEXT,
    splits=draws(SIZES, 10),
    methods={
        **library.kinds(NUM_KINDS, library.WIDE),
        **library.kinds(NUM_KINDS, LEARNED_SCALES),
        **library.kinds(NUM_KINDS, library.FORMS),
        **peers.logistic(NUM_KINDS),
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
        **dict.fromkeys((*SLOW, "TaskClustering (isotropic)"), draws(SIZES, 1)),
        "LatentHierarchy (isotropic)": draws(SIZES, 3),
        "TaskCovariance (isotropic)": draws(SIZES, 3),
        **dict.fromkeys(library.FORMS, draws(SIZES, 5)),
    },
    quick_splits=draws(("5 %",), 1),
    quick_methods=(
        *("IndependentTasks", "PooledTasks", "SharedGaussian (isotropic)"),
        *("VariationalWeighting", "LogisticRegression (pooled)"),
    ),
)
