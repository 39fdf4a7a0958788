"""Sentiment: reviews of 16 kinds of product as 384-dimensional embeddings."""

from __future__ import annotations

from functools import cache, lru_cache

import numpy as np

from .. import datasets
from . import library, peers, sampled, scores
from .features import one_scale
from .landmine import with_all_classes
from .protocol import Metric, Problem, Protocol, Rows, Split, cannot, draws

NUM_DOMAINS = 16
TEXT = f"""
16 kinds of product, reviews as frozen sentence embeddings of 384 numbers. n train rows of each
kind (*size*), half of them positive, drawn at random; "all" is the one standard train set, and
"20 any" takes no regard to the class when it draws. Test rows are the standard ones, 400 a kind.
Embeddings are centred and scaled to a mean square of 1 a feature by the train rows, one scale for
all; a constant is added. *Accuracy* is the mean over kinds; log density, Brier and the expected
calibration error (15 bins of equal width) are of all test rows together. Nothing is tuned:
hyperparameters by their evidence, penalties of the logistic regressions by 3-fold
cross-validation on the train rows. Three draws of each size; slow methods are fitted to the
first draw of the small sizes only, and the column *splits* counts. {library.FOUND}
"""


def balanced(rows: Rows, size: int, rng: np.random.Generator) -> np.ndarray:
    """Mask of `size` rows of each task, half of them of each class."""
    chosen = np.zeros(len(rows.y), dtype=bool)
    for k in np.unique(rows.task):
        for label in (0, 1):
            own = np.flatnonzero((rows.task == k) & (rows.y == label))
            chosen[rng.permutation(own)[: size // 2]] = True
    return chosen


@cache
def _parts() -> tuple[Rows, Rows]:
    train, test = datasets.fetch_sentiment()
    return Rows.of(train), Rows.of(test)


@lru_cache(maxsize=1)
def prepare(split: Split) -> Problem:
    """Train rows of each kind of product, or all, and the standard test rows."""
    train, test = _parts()
    if split.size != "all":
        number, *regardless = split.size.split()
        draw = with_all_classes if regardless else balanced
        size = int(number)
        train = train.where(draw(train, size, np.random.default_rng([size, split.seed])))
    return one_scale(train, test, NUM_DOMAINS)


SENTIMENT = Protocol(
    name="sentiment",
    text=TEXT,
    splits=(*draws(("20", "20 any", "50", "200"), 3), Split("all", 0)),
    methods={
        **library.yes_or_no(library.WIDE),
        "TaskCovariance (isotropic)": cannot("more than 6000 weights"),
        **peers.logistic(),
        **peers.NO_CLASSES,
        **sampled.hierarchical(yes_or_no=True),
    },
    prepare=prepare,
    score=scores.classes,
    metrics=(
        Metric("accuracy", "accuracy", 4),
        *scores.CHANCE,
        Metric("found", "found", 2),
        scores.SECONDS,
    ),
    reference="SharedGaussian (isotropic)",
    compared=("accuracy", "log_density"),
    some={
        "TaskClustering (isotropic)": draws(("20",), 1),
        "LatentHierarchy (isotropic)": draws(("20",), 1),
        "SparseBayesian": draws(("20", "50"), 1),
        "VariationalWeighting": draws(("20", "50", "200"), 1),
    },
    quick_splits=draws(("20",), 1),
    quick_methods=("PooledTasks", "SharedGaussian (isotropic)"),
)
