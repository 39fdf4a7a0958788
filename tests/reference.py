"""The same models by brute force: dense Gaussians over all rows and all weights at once.

Nothing here calls the library's linear algebra; it reads hyperparameters alone.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import sqrtm
from scipy.special import log_softmax, logsumexp
from scipy.stats import multivariate_normal

from bmm_multitask_learning import (
    IndependentTasks,
    LatentHierarchy,
    PooledTasks,
    SharedGaussian,
    SparseBayesian,
    TaskClustering,
    TaskCovariance,
    TaskData,
    TaskMean,
    TaskPrior,
)
from bmm_multitask_learning.likelihoods import Gaussian

Array = NDArray[np.float64]


class JointLaw(NamedTuple):
    """Gaussian laws of all weights (K D) of each output, one for each labelling of the tasks."""

    log_weight: Array  # (Z,)
    mean: Array  # (Z, O, K D)
    covariance: Array  # (Z, O, K D, K D)


def covariance_of(eta: dict[str, Array], at: tuple[int, ...], num_features: int) -> Array:
    """Covariance (D, D) from a shape in full, diagonal or isotropic form and its level, if any."""
    precision = eta["precision"][at] * (eta["level"][at] if "level" in eta else 1.0)
    if precision.ndim == 2:
        return np.linalg.inv(precision)
    return np.diag(1 / np.broadcast_to(precision, (num_features,)))


def weight_law(prior: TaskPrior) -> JointLaw:
    """p(W | η) of a built prior as dense Gaussians."""
    K, O, D = prior.sizes.num_tasks, prior.sizes.num_outputs, prior.sizes.num_features
    eta = {name: value.numpy() for name, value in prior.eta.items()}
    if isinstance(prior, TaskClustering):
        return _cluster_law(prior, eta, K, O, D)
    if isinstance(prior, TaskMean):
        law = weight_law(prior.prior)
        raw = prior.task_features.numpy()
        features = (raw - raw.mean(0)) / raw.std(0)
        effect = np.einsum("kf,fod->okd", features, prior.effect.numpy())
        return law._replace(mean=law.mean + effect.reshape(O, -1))
    covariance = np.zeros((1, O, K * D, K * D))
    for o in range(O):
        if isinstance(prior, IndependentTasks):
            covariance[0, o] = np.kron(np.diag(1 / eta["precision"][:, o]), np.eye(D))
        elif isinstance(prior, PooledTasks):
            covariance[0, o] = np.kron(np.ones((K, K)), np.eye(D) / eta["precision"][0, o])
        elif isinstance(prior, SparseBayesian):
            V = prior.loading.numpy()
            tasks = V.T @ V + np.eye(K)
            precision = eta["level"][0] * eta["precision"][prior.group.numpy()]
            own = np.diag(prior.scatter[o].numpy() / precision)
            for g in set(prior.group.tolist()):
                at = np.flatnonzero(prior.group.numpy() == g)
                shapes = eta.get(f"shape_{len(at)}", [])
                alike = [h for h in range(g) if sum(prior.group == h) == len(at)]
                if len(shapes):
                    root = np.sqrt(own[at, at])
                    inner = np.linalg.inv(shapes[len(alike)])
                    own[np.ix_(at, at)] = root[:, None] * inner * root
            covariance[0, o] = np.kron(tasks, own)
        elif isinstance(prior, TaskCovariance):
            alike = eta["correlation"][0]
            mode = (1 - alike) * np.eye(K) + alike  # any two tasks correlated alike
            half = sqrtm(mode)
            tasks = half @ np.linalg.inv(eta["task_precision"]) @ half
            covariance[0, o] = np.kron(tasks, covariance_of(eta, (o,), D))
        else:
            assert isinstance(prior, SharedGaussian | LatentHierarchy)
            centre = np.diag(prior.scatter[o].numpy() / eta["centre_precision"][o])
            own = covariance_of(eta, (o,), D)
            between = between_tasks(prior) if isinstance(prior, LatentHierarchy) else np.eye(K)
            covariance[0, o] = np.kron(np.ones((K, K)), centre) + np.kron(between, own)
    return JointLaw(np.zeros(1), np.zeros((1, O, K * D)), covariance)


def between_tasks(prior: LatentHierarchy) -> Array:
    """λ C + (1 − λ) I from the merges and heights alone, C by the height at which two meet."""
    clades = [{k} for k in range(prior.sizes.num_tasks)]
    shared = np.eye(len(clades))
    for (left, right), height in zip(prior.merges.tolist(), prior.heights.tolist(), strict=True):
        for j, k in itertools.product(clades[left], clades[right]):
            shared[j, k] = shared[k, j] = 1 - height
        clades.append(clades[left] | clades[right])
    mixing = float(prior.mixing_weight)
    return mixing * shared + (1 - mixing) * np.eye(len(shared))


def _cluster_law(prior: TaskClustering, eta: dict[str, Array], K: int, O: int, D: int) -> JointLaw:
    features = np.ones((K, 1))
    if prior.task_features is not None:
        raw = prior.task_features.numpy()
        features = np.hstack([features, (raw - raw.mean(0)) / raw.std(0)])
    C = len(eta["centre"])
    log_pi = (
        log_softmax(features @ eta["gate"].T, axis=1)
        if prior.gating
        else np.broadcast_to(np.log(eta["proportion"]), (K, C))
    )
    used = features if prior.task_mean else features[:, :1]
    laws = []
    for labels in itertools.product(range(C), repeat=K):
        mean = np.zeros((O, K, D))
        covariance = np.zeros((O, K, D, K, D))
        for o, (k, c) in itertools.product(range(O), enumerate(labels)):
            mean[o, k] = sum(used[k, f] * eta["centre"][c, f, o] for f in range(used.shape[1]))
            covariance[o, k, :, k, :] = covariance_of(eta, (c, o), D)
        weight = sum(log_pi[k, c] for k, c in enumerate(labels))
        laws.append((weight, mean.reshape(O, -1), covariance.reshape(O, K * D, K * D)))
    return JointLaw(*(np.array(part) for part in zip(*laws, strict=True)))


class DensePosterior(NamedTuple):
    """Evidence and the joint posterior of all weights (K, O, D), labels summed out."""

    log_evidence: float
    mean: Array  # (O, K D)
    covariance: Array  # (O, K D, K D)


def dense_posterior(prior: TaskPrior, likelihood: Gaussian, data: TaskData) -> DensePosterior:
    """By the joint Gaussian of rows and weights; row weights must be whole numbers."""
    law = weight_law(prior)
    K, D = prior.sizes.num_tasks, prior.sizes.num_features
    x, task = data.x.numpy(), data.task.numpy()
    y = data.y.numpy().reshape(len(x), -1)
    repeat = np.ones(len(x), int) if data.weight is None else data.weight.numpy().astype(int)
    theta = {name: value.numpy() for name, value in likelihood.eta.items()}
    per_label = [
        [
            _one_output(
                law.mean[z, o], law.covariance[z, o], x, y[:, o], task, repeat, theta, o, K, D
            )
            for o in range(y.shape[1])
        ]
        for z in range(len(law.log_weight))
    ]
    joint = law.log_weight + np.array([sum(part[0] for part in parts) for parts in per_label])
    weight = np.exp(joint - logsumexp(joint))
    means = np.array([[part[1] for part in parts] for parts in per_label])  # (Z, O, K D)
    covariances = np.array([[part[2] for part in parts] for parts in per_label])
    mean = np.einsum("z,zoi->oi", weight, means)
    deviation = means - mean
    second = covariances + deviation[..., :, None] * deviation[..., None, :]
    return DensePosterior(float(logsumexp(joint)), mean, np.einsum("z,zoij->oij", weight, second))


def _one_output(mean, covariance, x, y, task, repeat, theta, o, K, D):
    observed = np.repeat(np.flatnonzero(~np.isnan(y)), repeat[~np.isnan(y)])
    design = np.zeros((len(observed), K, D))
    design[np.arange(len(observed)), task[observed]] = x[observed]
    design = design.reshape(len(observed), K * D)
    by_task = (
        theta["noise_precision"][:, o]
        if "noise_precision" in theta
        else np.full(K, theta["noise_level"][o])
    )
    noise = np.diag(1 / by_task[task[observed]])
    total = design @ covariance @ design.T + noise
    residual = y[observed] - design @ mean
    evidence = multivariate_normal(np.zeros(len(observed)), total).logpdf(residual)
    gain = np.linalg.solve(total, design @ covariance).T
    return evidence, mean + gain @ residual, covariance - gain @ design @ covariance
