"""Landmine: do trees tell the two kinds of field apart, and does the tree itself help?

Fields 1-15 are foliated, 16-29 bare. The control is the same tree, weight and hyperparameters with
the fields at other leaves: what it gains is shrinkage, not kinship.
"""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pandas as pd
from sklearn.metrics import adjusted_rand_score
from tqdm.auto import tqdm

from bmm_multitask_learning import (
    Bernoulli,
    LatentHierarchy,
    MultitaskModel,
    SharedGaussian,
    TaskData,
    datasets,
    fit,
)
from bmm_multitask_learning.sites import first_factor, refine, tasks_posterior

from .binary import Array, mean_auc, with_both_classes
from .record import Column, markdown, paired, summary, write

FOLIATED = 15
SIZES = (20, 80)
COLUMNS = (Column("AUC", "AUC"), Column("ARI", "ARI"), Column("mixing", "λ", 2))
PAGE = """
The protocol is that of landmine, {repeats} repeats; diagonal covariance. *ARI*: adjusted Rand
index of the tree cut in two against foliated (1–15) and bare fields (16–29), whatever λ is.
*leaves permuted*: the same tree, λ and hyperparameters, the fields at other leaves.

{table}

AUC less that of `SharedGaussian` with the same covariance, ± standard error:

{pairs}

With all rows ({rows}), no test rows:

{whole}

The means of the inputs alone, cut in two by Ward's linkage without any label: ARI {inputs:.2f}.
"""


def permuted(model: MultitaskModel, data: TaskData, rng: np.random.Generator) -> MultitaskModel:
    """The model with its fields at other leaves of the tree, all else as it was."""
    other = copy.deepcopy(model)
    prior, likelihood = other.prior, other.likelihood
    merges, K = prior.merges.clone(), data.num_tasks
    leaf = merges < K
    merges[leaf] = merges.new_tensor(rng.permutation(K))[merges[leaf]]
    prior.register_buffer("merges", merges)
    rows = other.rows("tasks", data)
    start = first_factor(likelihood, rows, likelihood.eta)
    sites = refine(partial(tasks_posterior, prior), likelihood, rows, start)
    other.family().set_posterior(prior.condition(sites, prior.eta))
    return other


def agreement(model: MultitaskModel) -> float:
    """Adjusted Rand index of the two-way cut against the two kinds of field."""
    kind = np.arange(model.prior.tree.num_tasks) >= FOLIATED
    return float(adjusted_rand_score(kind, model.prior.tree.cut(2)))


def features(x: Array, rows: np.ndarray) -> Array:
    """Standardised on some rows, with a constant."""
    mean, std = x[rows].mean(0), x[rows].std(0)
    return np.column_stack([(x - mean) / np.where(std > 0, std, 1.0), np.ones(len(x))])


def measure(repeats: int = 6, sizes: tuple[int, ...] = SIZES) -> pd.DataFrame:
    """One row for each size, repeat and method."""
    data = datasets.fetch_landmine()
    x, y, task = data.x.numpy(), data.y.numpy(), data.task.numpy()
    rows = []
    for n, seed in tqdm([(n, s) for n in sizes for s in range(repeats)], desc="Landmine, trees"):
        rng = np.random.default_rng([n, seed])
        chosen = with_both_classes(y, task, n, rng)
        phi = features(x, chosen)
        train = TaskData(phi[chosen], y[chosen], task[chosen])
        tree = MultitaskModel(LatentHierarchy(), Bernoulli())
        fixed = MultitaskModel(LatentHierarchy(mixing=0.9), Bernoulli())
        shared = MultitaskModel(SharedGaussian("diagonal"), Bernoulli())
        for model in (tree, fixed, shared):
            fit(model, train, progress=False)
        models = {
            "LatentHierarchy": tree,
            "LatentHierarchy, λ = .9": fixed,
            "λ = .9, leaves permuted": permuted(fixed, train, rng),
            "SharedGaussian, diagonal": shared,
        }
        for method, model in models.items():
            p = model.predict(phi[~chosen], task[~chosen]).mean
            figures = {"AUC": mean_auc(y[~chosen], p, task[~chosen])}
            if isinstance(model.prior, LatentHierarchy):
                figures |= {"ARI": agreement(model), "mixing": float(model.prior.mixing_weight)}
            rows.append({"n": n, "method": method, "split": seed, **figures})
    return pd.DataFrame(rows)


def with_all_rows() -> tuple[list[list[str]], float]:
    """For each covariance ARI and λ; and the ARI of the input means."""
    from scipy.cluster.hierarchy import fcluster, ward

    data = datasets.fetch_landmine()
    x, y, task = data.x.numpy(), data.y.numpy(), data.task.numpy()
    phi, body = features(x, np.ones(len(x), dtype=bool)), []
    for covariance in ("diagonal", "full"):
        model = MultitaskModel(LatentHierarchy(covariance), Bernoulli())
        fit(model, TaskData(phi, y, task), progress=False)
        mixing = float(model.prior.mixing_weight)
        body.append([covariance, f"{agreement(model):.2f}", f"{mixing:.2f}"])
    means = np.array([phi[task == k].mean(0) for k in range(data.num_tasks)])
    kind = np.arange(len(means)) >= FOLIATED
    return body, adjusted_rand_score(kind, fcluster(ward(means), 2, "maxclust"))


def main(repeats: int = 6) -> None:
    """Measure, and write the tables."""
    rows, (whole, inputs) = measure(repeats), with_all_rows()
    page = PAGE.format(
        repeats=repeats,
        table=summary(rows, ["n", "method"], COLUMNS),
        pairs=paired(rows, "AUC", "SharedGaussian, diagonal", by=["n"]),
        rows="29 fields, 14820 rows",
        whole=markdown(["covariance", "ARI", "λ"], whole),
        inputs=inputs,
    )
    facts = {"benchmark": "landmine_tree", "repeats": repeats, "sizes": SIZES}
    write("landmine_tree", rows, page, facts)
