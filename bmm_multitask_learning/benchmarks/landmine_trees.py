"""Landmine: do trees tell the two kinds of field apart, and does the tree itself help?"""

from __future__ import annotations

from functools import partial

import numpy as np
from sklearn.metrics import adjusted_rand_score

from ..fitting import fit
from ..likelihoods import Bernoulli
from ..model import MultitaskModel
from ..priors import LatentHierarchy, SharedGaussian
from ..sites import first_factor, refine, tasks_posterior
from . import library, scores
from .landmine import prepare
from .protocol import Forecast, Metric, Problem, Protocol, draws

NUM_FOLIATED = 15
STRONG = 0.9
SIZES = ("20", "80")
TEXT = f"""
The draws of landmine; diagonal covariance. *ARI* is the adjusted Rand index of the tree cut in two
against foliated (1-{NUM_FOLIATED}) and bare fields, whatever the weight λ of the tree is. *Leaves
permuted* is the control: the same tree, λ and hyperparameters, the fields at other leaves. What it
gains is shrinkage, not kinship.
"""


def _read(model: MultitaskModel, problem: Problem) -> dict[str, float]:
    if not isinstance(model.prior, LatentHierarchy):
        return {}
    bare = np.arange(problem.num_tasks) >= NUM_FOLIATED
    agreement = adjusted_rand_score(bare, model.prior.tree.cut(2))
    return {"ARI": float(agreement), "found": float(model.prior.mixing_weight)}


def permuted(problem: Problem) -> Forecast:
    """A tree of weight .9 found as usual, and its fields then moved to other leaves."""
    prior, likelihood = LatentHierarchy(mixing=STRONG), Bernoulli()
    model = MultitaskModel(prior, likelihood)
    data = problem.train.data(problem.num_tasks)
    fit(model, data, progress=False)
    order = np.random.default_rng(problem.num_tasks).permutation(problem.num_tasks)
    merges = prior.merges.clone()
    leaf = merges < problem.num_tasks
    merges[leaf] = merges.new_tensor(order)[merges[leaf]]
    prior.register_buffer("merges", merges)
    rows = model.rows("tasks", data)
    start = first_factor(likelihood, rows, likelihood.eta)
    sites = refine(partial(tasks_posterior, prior), likelihood, rows, start)
    model.family().set_posterior(prior.condition(sites, prior.eta))
    prediction = model.predict(problem.test.x, problem.test.task)
    log_prob = np.asarray(prediction.log_prob(problem.test.y))
    return Forecast(np.asarray(prediction.mean), log_prob, None, _read(model, problem))


LANDMINE_TREES = Protocol(
    name="landmine-trees",
    text=TEXT,
    splits=draws(SIZES, 10),
    methods={
        **library.fitted(
            {
                "SharedGaussian (diagonal)": lambda: SharedGaussian("diagonal"),
                "LatentHierarchy": LatentHierarchy,
                "LatentHierarchy (λ = .9)": lambda: LatentHierarchy(mixing=STRONG),
            },
            Bernoulli,
            _read,
        ),
        "leaves permuted (λ = .9)": permuted,
    },
    prepare=prepare,
    score=scores.labels,
    metrics=(
        Metric("AUC", "AUC"),
        Metric("ARI", "ARI"),
        Metric("log_density", "log density"),
        Metric("found", "λ", 2),
        scores.SECONDS,
    ),
    reference="SharedGaussian (diagonal)",
    compared=("AUC", "log_density"),
    quick_splits=draws(SIZES, 1),
    quick_methods=("SharedGaussian (diagonal)", "LatentHierarchy"),
)
