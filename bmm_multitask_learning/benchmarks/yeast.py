"""Yeast: 14 functional classes of genes on shared inputs, the standard split."""

from __future__ import annotations

from functools import lru_cache

from .. import datasets
from ..priors import SparseBayesian
from . import library, peers, sampled, scores
from .features import standardised
from .protocol import Metric, Problem, Protocol, Rows, Split, cannot, draws

NUM_LABELS = 14
TEXT = f"""
14 yes-or-no labels of genes on the same 103 inputs; the standard split into 1500 train and 917
test rows, so there is one split and no spread. Inputs are standardised on the train rows, a
constant is added. *AUC* is the mean over labels of each label's area under the ROC curve,
*accuracy* the mean over labels; log density, Brier and the expected calibration error (15 bins of
equal width) are of all labels together. MultiTaskLassoCV predicts numbers, which are clipped to
.01 to .99; its penalty is by 5-fold cross-validation. {library.FOUND}
"""


@lru_cache(maxsize=1)
def prepare(split: Split) -> Problem:
    """The standard split."""
    train, test = datasets.fetch_yeast()
    return standardised(Rows.of(train), Rows.of(test), NUM_LABELS)


RANKS: library.Makers = {
    "SparseBayesian (R = 0)": lambda: SparseBayesian(rank=0),
    "SparseBayesian (R = 2)": lambda: SparseBayesian(rank=2),
}
YEAST = Protocol(
    name="yeast",
    text=TEXT,
    splits=draws(("",), 1),
    methods={
        **library.yes_or_no(),
        **library.yes_or_no(RANKS),
        **peers.logistic(),
        **peers.multitask_lasso(probabilities=True),
        "GPyTorch ICM (linear)": cannot("no classes"),
        **sampled.hierarchical(yes_or_no=True),
    },
    prepare=prepare,
    score=scores.labels,
    metrics=(
        Metric("AUC", "AUC", 4),
        Metric("accuracy", "accuracy"),
        *scores.CHANCE,
        Metric("found", "found", 2),
        scores.SECONDS,
    ),
    reference="SharedGaussian (diagonal)",
    compared=("AUC", "log_density"),
    quick_splits=draws(("",), 1),
    quick_methods=("IndependentTasks", "PooledTasks", "SharedGaussian (diagonal)"),
)
