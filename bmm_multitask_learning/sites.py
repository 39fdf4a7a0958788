r"""The likelihood as seen by q(W): a Gaussian factor for each task, moved by natural gradients.

$q(W \mid \eta) \propto p(W \mid \eta) \prod_k t_k(w_k)$ with $t_k$ a Gaussian factor. For a
Gaussian likelihood the optimal factor is the likelihood itself, so that q is the exact posterior
at every $\eta$; for others it is the best Gaussian factor. Because W is conditioned on $\eta$
rather than assumed independent of it, hyperparameters do not collapse as under a mean-field guide.

References:
    Khan and Lin, Conjugate-computation variational inference (2017), eq. 6.
    Varadhan and Roland (2008), scheme S3, for their extrapolation.
    Opper and Archambeau, The variational Gaussian approximation revisited (2009), for the moments.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # public, not exported

from .hyperparameters import Eta
from .likelihoods import Categorical, Likelihood, QuadraticLikelihood, Rows
from .posterior import WeightPosterior
from .priors import TaskPrior
from .statistics import TaskStatistics, combined

# Responsibilities (N, C), means and variances (N, C, O) of the latents.
Moments = tuple[Tensor, Tensor, Tensor]

# Variance of the latents from which the first factors are made.
_FIRST_VARIANCE = 0.1
# The damped step of the factors, which does not overshoot where a whole one may.
_RATE = 0.5
# Of a latent in a round, in its standard deviations.
_TOLERANCE = 0.005
_CYCLES = 6
# Parts of the rows that are held out in turn.
_FOLDS = 5


def expected_log_prob(
    likelihood: Likelihood, rows: Rows, weight: Tensor, mean: Tensor, variance: Tensor, theta: Eta
) -> Tensor:
    r"""$E_q[\log p(y_n \mid f_n)]$ of each row, (N,), averaged over the components of q.

    Args:
        likelihood: of the targets.
        rows: N observed rows, their weights included in the result.
        weight: (N, C) responsibilities.
        mean, variance: (N, C, O) of the latents.
        theta: hyperparameters of the likelihood.
    """
    return (weight * likelihood.expected_log_prob(rows, mean, variance, theta)).sum(-1)


def local_factor(
    likelihood: Likelihood, rows: Rows, weight: Tensor, mean: Tensor, variance: Tensor, theta: Eta
) -> TaskStatistics:
    r"""The Gaussian factor with the gradient and curvature that q sees, summed by task.

    With $E(\mu, v) = E_{N(\mu, v)}[\log p(y \mid f)]$, $h = -2\,\partial E/\partial v$ and
    $g = \partial E/\partial \mu$: $A = \sum h\,\phi\phi^\top$, $b = \sum (g + h\mu)\,\phi$. For
    a Gaussian likelihood this is the likelihood itself, wherever q is.
    """
    if isinstance(likelihood, QuadraticLikelihood) and likelihood.exact:
        return likelihood.statistics(likelihood.summarise(rows), theta)
    with torch.enable_grad():
        mean = mean.detach().requires_grad_()
        variance = variance.detach().requires_grad_()
        value = expected_log_prob(likelihood, rows, weight.detach(), mean, variance, theta)
        gradient, slope = torch.autograd.grad(value.sum(), (mean, variance))
    average = torch.einsum("nc,nco->no", weight.detach(), mean.detach())
    # a factor must stay a factor where the log likelihood is convex, as Student-t tails are: the
    # size of the curvature takes the step no further than the target
    curvature = (-2 * slope.sum(1)).abs()
    linear = gradient.sum(1) + curvature * average
    with torch.no_grad():
        precision, b = rows.moments(curvature, linear)
    # the constant drops out of the bound; it is 0
    count = rows.sum_by_task(rows.weight.mean(-1))
    return TaskStatistics(precision, b, torch.zeros_like(b[..., 0]), count)


def first_factor(likelihood: Likelihood, rows: Rows, theta: Eta) -> TaskStatistics:
    """The factor of latents at the likelihood's own mass: where to start, knowing nothing else."""
    mean = likelihood.first_latent(rows)[:, None]
    variance = torch.full_like(mean, _FIRST_VARIANCE)
    return local_factor(likelihood, rows, torch.ones_like(mean[..., 0]), mean, variance, theta)


def amortised_factor(prior: TaskPrior, likelihood: Likelihood, rows: Rows) -> TaskStatistics:
    """The factors that the prior's network makes of the mean feature of each task and class."""
    assert isinstance(likelihood, Categorical)  # `Family.build` asked for it
    assert prior.classifier is not None
    return prior.classifier(*likelihood.class_means(rows), prior.scatter)


def tasks_posterior(prior: TaskPrior, sites: TaskStatistics) -> WeightPosterior:
    """The tasks' posterior from their factors, at the prior's present hyperparameters."""
    return prior.expand(prior.condition(prior.reduce(sites), prior.eta), sites)


def refine(
    condition: Callable[[TaskStatistics], WeightPosterior],
    likelihood: Likelihood,
    rows: Rows,
    sites: TaskStatistics,
    *,
    tolerance: float = _TOLERANCE,
) -> TaskStatistics:
    """The best factors at fixed hyperparameters, by natural-gradient rounds from `sites`.

    Two damped rounds, their extrapolation (SQUAREM) and a third, again until no latent moves by
    more than `tolerance` of its standard deviation in a round; at most 18 rounds. A Gaussian
    likelihood is its own best factor.

    Args:
        condition: the tasks' posterior from their factors.
        likelihood: of the targets.
        rows: all of them.
        sites: factors from which to start.
        tolerance: in standard deviations of a latent.
    """
    if likelihood.exact:
        return first_factor(likelihood, rows, likelihood.eta)

    def move(sites: TaskStatistics) -> tuple[Moments, TaskStatistics]:
        moments = latent_moments(condition(sites), rows)
        new = local_factor(likelihood, rows, *moments, likelihood.eta)
        return moments, blend(sites, new, _RATE)

    for cycle in range(_CYCLES):
        before, once = move(sites)
        after, twice = move(once)
        if float(rows.max(_distance(before, after))) < tolerance:
            return twice
        try:
            _, sites = move(_extrapolate(sites, once, twice, 2.0 ** (cycle + 1)))
        except LinAlgError:
            # so far that the posterior is no longer a Gaussian
            sites = twice
    return sites


def _extrapolate(
    start: TaskStatistics, once: TaskStatistics, twice: TaskStatistics, limit: float
) -> TaskStatistics:
    """See `Ascent.cycle`: here of natural parameters, the step's length from the linear ones.

    A length of 2 undoes the damping; more is for the slow directions that are left near the end.
    """
    r, v = once.b - start.b, twice.b - 2 * once.b + start.b
    length = (r.norm() / v.norm().clamp(min=torch.finfo(v.dtype).tiny)).clamp(1, limit)
    # x' = x0 + 2 a (x1 − x0) + a² (x2 − 2 x1 + x0)
    weight = ((1 - length).square(), 2 * length * (1 - length), length.square())
    return combined(weight, (start, once, twice), start.rows)


def _distance(before: Moments, after: Moments) -> Tensor:
    """The move of each latent's mean or standard deviation, in standard deviations."""
    weight, mean, variance = after
    move = torch.maximum(
        (mean - before[1]).abs() / variance.sqrt(), 0.5 * (variance / before[2]).log().abs()
    )
    return weight[..., None] * move


def elbo(
    likelihood: Likelihood, rows: Rows, posterior: WeightPosterior, sites: TaskStatistics
) -> Tensor:
    r"""$E_q[\log p(D \mid W)] - KL(q(W) \| p(W \mid \eta)) \le \log p(D \mid \eta)$.

    It is no lower than the log normaliser of `posterior` where `sites` bound the likelihood from
    below; where they are the likelihood, both are the evidence.

    Args:
        likelihood: of the targets.
        rows: all of them.
        posterior: of the tasks, made by `sites`.
        sites: factors of the tasks.
    """
    if likelihood.exact:
        return posterior.log_normaliser
    moments = latent_moments(posterior, rows)
    expected = expected_log_prob(likelihood, rows, *moments, likelihood.eta)
    return rows.sum(expected) - posterior.kl_to_prior(sites)


def blend(old: TaskStatistics, new: TaskStatistics, rate: float) -> TaskStatistics:
    r"""A natural-gradient step: $(1 - \rho)\,\text{old} + \rho\,\text{new}$."""
    return combined((1 - rate, rate), (old, new), old.rows)


def mean_factor(parts: Sequence[TaskStatistics]) -> TaskStatistics:
    """The mean of factors of the same tasks, each an estimate of the same whole."""
    if len(parts) == 1:
        return parts[0]
    share = 1 / len(parts)
    return combined([share] * len(parts), parts, parts[0].rows)


def latent_moments(posterior: WeightPosterior, rows: Rows) -> Moments:
    """Responsibilities (N, C), means and variances (N, C, O) of the latents of each row."""
    mean, variance = posterior.latent(rows.phi, rows.blocks)
    return posterior.log_weights.exp()[rows.task], mean, variance


def fold_statistics(
    likelihood: Likelihood, rows: Rows, posterior: WeightPosterior
) -> list[TaskStatistics]:
    """The factors of disjoint parts of every task's rows, all at the moments of one posterior.

    The n-th row of a task falls into part n modulo five: no randomness, and parts that are alike
    where the rows are sorted.

    Args:
        likelihood: of the targets.
        rows: of K tasks.
        posterior: of the K tasks given all rows.
    """
    order = rows.task.argsort(stable=True)
    count = torch.bincount(rows.task, minlength=rows.num_tasks)
    first = (count.cumsum(0) - count)[rows.task[order]]
    number = torch.empty_like(order)
    place = torch.arange(len(order), device=order.device) - first
    number[order] = place + rows.before(count)[rows.task[order]]
    moments = latent_moments(posterior, rows)
    parts = []
    for fold in range(_FOLDS):
        weight = rows.weight * (number % _FOLDS == fold)[:, None]
        part = dataclasses.replace(rows, weight=weight)
        parts.append(local_factor(likelihood, part, *moments, likelihood.eta))
    return parts
