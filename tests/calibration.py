"""Simulation-based calibration: truth drawn from the prior ranks anywhere among posterior draws.

References:
    Talts, Betancourt, Simpson, Vehtari and Gelman, Validating Bayesian inference algorithms with
    simulation-based calibration (2018).
    Modrák and others, Simulation-based calibration checking for Bayesian computation: the choice
    of test quantities shapes sensitivity (2023), for the log likelihood as a test function.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from bmm_multitask_learning import Gaussian, TaskClustering, TaskData, TaskPrior
from bmm_multitask_learning.posterior import WeightPosterior
from bmm_multitask_learning.statistics import TaskStatistics

from .cases import built_model, make_data

# Draws a simulation: a true value has 100 equally probable ranks, ten to each of ten bins.
DRAWS, BINS = 99, 10


class Simulation(NamedTuple):
    """Weights (K, O, D) from the prior, the factors of the rows they made, and q(W)."""

    weights: Tensor
    statistics: TaskStatistics
    posterior: WeightPosterior


def simulate(prior: TaskPrior, count: int, *, seed: int = 0) -> list[Simulation]:
    """W from p(W | η), y from the likelihood, q(W) from the closed form, at one drawn η.

    Five tasks of 1 to 5 rows, two outputs, the second of them missing in every third row.
    """
    data = make_data(rows=(4, 2, 5, 1, 3), num_features=3, outputs=2, seed=seed)
    model = built_model(prior, Gaussian(), data, seed=seed)
    if isinstance(prior, TaskClustering):  # centres so near that rows leave the label open
        prior.set_eta({"centre": 0.2 * prior.centre})
    likelihood, K = model.likelihood, data.num_tasks
    missing = torch.zeros(data.y.shape, dtype=torch.bool)
    missing[::3, 1] = True
    noise = likelihood.eta["noise_level"].rsqrt()
    found = []
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for W in prior(prior.eta).sample((count,)):
            W = W.expand(K, *W.shape[1:])
            f = torch.einsum("nd,nod->no", data.x, W[data.task])
            y = (f + noise * torch.randn_like(f)).masked_fill(missing, torch.nan)
            statistics = _factors(model, data._replace(y=y))
            posterior = prior.condition(prior.reduce(statistics), prior.eta)
            found.append(Simulation(W, statistics, prior.expand(posterior, statistics)))
    return found


def _factors(model, data: TaskData) -> TaskStatistics:
    likelihood = model.likelihood
    summary = likelihood.summarise(model.rows("tasks", data))
    return likelihood.statistics(summary, likelihood.eta)


def quantities(W: Tensor, statistics: TaskStatistics) -> Tensor:
    """What is ranked, (..., J), of weights (..., K, O, D).

    One weight, a sum over tasks, a product of two tasks' weights, the size of all of them, and the
    log likelihood, which alone sees whether the rows were used.
    """
    log_likelihood = statistics.log_factor(W, torch.zeros(())).sum((-2, -1))
    return torch.stack(
        [
            W[..., 0, 0, 0],
            W[..., -1, -1].sum(-1),
            (W[..., 0, :, :] * W[..., 3, :, :]).sum((-2, -1)),
            W.square().sum((-3, -2, -1)),
            log_likelihood,
        ],
        -1,
    )


def ranks(simulations: Sequence[Simulation], *, seed: int = 0) -> NDArray[np.int64]:
    """Rank of the truth among `DRAWS` posterior draws, (S, J), from 0 to `DRAWS`."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for W, statistics, posterior in simulations:
        draws = quantities(posterior.draw(DRAWS, generator), statistics)
        rows.append(rank(quantities(W, statistics), draws))
    return np.stack(rows)


def rank(truth: Tensor, draws: Tensor) -> NDArray[np.int64]:
    """How many of the draws (S, J) are below the truth (J,)."""
    return (draws < truth).sum(0).numpy()


def uniformity(ranks: NDArray[np.int64], highest: int = DRAWS) -> NDArray[np.float64]:
    """p-values (J,) of Pearson's χ² of ranks (S, J) in 0..highest, in `BINS` bins."""
    bins = ranks * BINS // (highest + 1)
    counts = np.stack([np.bincount(column, minlength=BINS) for column in bins.T])
    return stats.chisquare(counts, axis=1).pvalue


def whiteness(simulations: Sequence[Simulation]) -> NDArray[np.float64]:
    r"""Of a Gaussian q, p-values that $z = C^{-1/2}(W - \mu)$ has mean 0 and covariance I.

    C is the joint covariance of all tasks' weights; tasks that are one vector count once. The
    second is the likelihood ratio with Bartlett's correction,
    $S(\mathrm{tr}\hat\Sigma - \log|\hat\Sigma| - n)(1 - \frac{2n + 1 - 2/(n+1)}{6S - 1})$.
    """
    z = torch.stack([_standardised(*each) for each in simulations]).numpy()
    S, n = z.shape
    covariance = z.T @ z / S
    ratio = S * (np.trace(covariance) - np.linalg.slogdet(covariance)[1] - n)
    ratio *= 1 - (2 * n + 1 - 2 / (n + 1)) / (6 * S - 1)
    mean = S * np.square(z.mean(0)).sum()
    return np.array([stats.chi2(n).sf(mean), stats.chi2(n * (n + 1) / 2).sf(ratio)])


def _standardised(W: Tensor, statistics: TaskStatistics, posterior: WeightPosterior) -> Tensor:
    own, common = posterior.roots.own[:, 0], posterior.roots.common[:, 0]
    step = W - posterior.means[:, 0]
    if not own.shape[-1] and common.shape[-1] == common.shape[-2]:  # all tasks are one vector
        own, common, step = common[:1], common[:1, ..., :0], step[:1]
    joint = torch.stack([torch.block_diag(*own[:, o]) for o in range(W.shape[1])])
    joint = torch.cat([joint, common.movedim(1, 0).flatten(1, 2)], -1)
    factor = torch.linalg.cholesky(joint @ joint.mT)
    step = step.movedim(1, 0).flatten(1)[..., None]
    return torch.linalg.solve_triangular(factor, step, upper=False).flatten()
