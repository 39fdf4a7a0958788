"""One table of priors and likelihoods, and small data, that every conformance test runs over.

A new prior is one more line of `PRIORS`, or of `SURROGATES` where it is no p(W | η) p(η); one more
of `CHOOSING` where a fit chooses by cross-validation.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from bmm_multitask_learning import (
    Bernoulli,
    Categorical,
    Gaussian,
    IndependentTasks,
    LatentHierarchy,
    MultitaskModel,
    PooledTasks,
    SharedGaussian,
    SparseBayesian,
    TaskClustering,
    TaskCovariance,
    TaskData,
    TaskMean,
    TaskPrior,
    VariationalWeighting,
)
from bmm_multitask_learning.hyperparameters import Eta, ProbabilisticModule
from bmm_multitask_learning.likelihoods import QuadraticLikelihood

# Every axis has a length of its own: K = 3 tasks, D = 5 features, F = 2 task features, O = 1 or 4.
NUM_TASKS, NUM_FEATURES, ROWS = 3, 5, (7, 2, 11)

PRIORS: dict[str, Callable[[], TaskPrior]] = {
    "independent": IndependentTasks,
    "pooled": PooledTasks,
    "shared-full": lambda: SharedGaussian("full"),
    "shared-diagonal": lambda: SharedGaussian("diagonal"),
    "shared-isotropic": lambda: SharedGaussian("isotropic"),
    "hierarchy-full": lambda: LatentHierarchy("full", mixing=0.7),
    "hierarchy-diagonal": lambda: LatentHierarchy(mixing=0.6),
    "hierarchy-isotropic": lambda: LatentHierarchy("isotropic", mixing=1.0),
    "hierarchy-auto": LatentHierarchy,
    "sparse": lambda: SparseBayesian(rank=2),
    "sparse-hyperprior": lambda: SparseBayesian(hyperprior=(0.5, 0.3, 0.8)),
    "clusters-full": lambda: TaskClustering(2, covariance="full", n_init=2),
    "clusters-diagonal": lambda: TaskClustering(2, covariance="diagonal", n_init=2),
    "clusters-isotropic": lambda: TaskClustering(2, covariance="isotropic", n_init=2),
    "clusters-gating": lambda: TaskClustering(2, gating=True, n_init=2),
    "clusters-task-mean": lambda: TaskClustering(2, task_mean=True, n_init=2),
    "clusters-gating-task-mean": lambda: TaskClustering(
        2, gating=True, task_mean=True, covariance="diagonal", n_init=2
    ),
    "covariance-full": lambda: TaskCovariance("full", strength=5.0),
    "covariance-diagonal": lambda: TaskCovariance("diagonal", strength=5.0),
    "covariance-isotropic": lambda: TaskCovariance(strength=5.0),
    "task-mean-shared": lambda: TaskMean(SharedGaussian()),
    "task-mean-hierarchy": lambda: TaskMean(LatentHierarchy(mixing=0.6)),
    "task-mean-sparse": lambda: TaskMean(SparseBayesian(rank=2)),
    "task-mean-covariance": lambda: TaskMean(TaskCovariance(strength=5.0)),
}
# their prior reads posteriors: no evidence, no NUTS, no calibration
SURROGATES: dict[str, Callable[[], TaskPrior]] = {
    "weighting": lambda: VariationalWeighting(refreshes=2, strength=100.0),
    "weighting-log-linear": lambda: VariationalWeighting(
        "log_linear", refreshes=2, strength=100.0
    ),
    "weighting-exact": lambda: VariationalWeighting("exact", refreshes=2, strength=100.0),
    "weighting-sum": lambda: VariationalWeighting("weighted_sum", refreshes=2, strength=100.0),
    "task-mean-weighting": lambda: TaskMean(VariationalWeighting(refreshes=2, strength=100.0)),
}
# what those above are told, these choose by held-out rows: many fits in one, for the slow tests
CHOOSING: dict[str, Callable[[], TaskPrior]] = {
    "covariance-auto": TaskCovariance,
    "weighting-auto": VariationalWeighting,
}
EVERY_PRIOR = PRIORS | SURROGATES | CHOOSING

LIKELIHOODS: dict[str, Callable[[], QuadraticLikelihood]] = {
    "gaussian": Gaussian,
    "gaussian-task": lambda: Gaussian(noise="task"),
    "bernoulli": Bernoulli,
    "categorical": lambda: Categorical(4),
}


def make_data(
    kind: str = "gaussian",
    *,
    rows: tuple[int, ...] = ROWS,
    num_features: int = NUM_FEATURES,
    outputs: int | None = None,
    noise: float = 0.6,
    spread: float = 0.5,
    seed: int = 0,
) -> TaskData:
    """Rows of tasks around one centre, rows of all tasks shuffled, with task features (K, 2)."""
    rng = np.random.default_rng(seed)
    K, O = len(rows), 4 if kind == "categorical" else outputs or 1
    centre = rng.standard_normal((1, O, num_features))
    weights = centre + spread * rng.standard_normal((K, O, num_features))
    task = rng.permutation(np.repeat(np.arange(K), rows))
    x = rng.standard_normal((len(task), num_features))
    f = np.einsum("nd,nod->no", x, weights[task])
    if kind == "categorical":
        y = (f + rng.gumbel(size=f.shape)).argmax(1).astype(float)
    elif kind == "bernoulli":
        y = (rng.random(f.shape) < 1 / (1 + np.exp(-f))).astype(float)
    else:
        y = f + noise * rng.standard_normal(f.shape)
    if outputs is None and y.ndim == 2:
        y = y[:, 0]
    features = rng.standard_normal((K, 2))
    return TaskData(x, y, task, tasks=range(K), task_features=features)


def draw_eta(module: ProbabilisticModule, seed: int) -> Eta:
    """A draw of the hyperparameters of a built module from their prior."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return module.hyperprior()


def innermost(prior: TaskPrior) -> TaskPrior:
    """The prior without task features in its mean."""
    return prior.prior if isinstance(prior, TaskMean) else prior


def built_model(
    prior: TaskPrior, likelihood: QuadraticLikelihood, data: TaskData, *, seed: int | None = None
) -> MultitaskModel:
    """A model with tensors for `data`, its hyperparameters a draw from the prior."""
    model = MultitaskModel(prior=prior, likelihood=likelihood)
    model.build(data)
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        scatter = torch.rand(prior.scatter.shape, generator=generator, dtype=torch.float64)
        prior.register_buffer("scatter", 0.3 + scatter)
        within = innermost(prior)
        if isinstance(within, VariationalWeighting):
            shape = (data.num_tasks, *scatter.shape)
            mean, variance = torch.rand((2, *shape), generator=generator, dtype=scatter.dtype)
            within.register_buffer("reference_mean", 4 * mean - 2)
            within.register_buffer("reference_variance", 0.1 + variance)
        prior.set_eta(draw_eta(prior, seed))
        likelihood.set_eta(draw_eta(likelihood, seed + 1))
    return model
