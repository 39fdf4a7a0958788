r"""The likelihood as seen by q(W): a Gaussian factor for each task, moved by natural gradients.

$q(W \mid \eta) \propto p(W \mid \eta) \prod_k t_k(w_k)$ with $t_k$ a Gaussian factor. For a
Gaussian likelihood the optimal factor is the likelihood itself, so that q is the exact posterior
at every $\eta$; for others it is the best Gaussian factor. Because W is conditioned on $\eta$
rather than assumed independent of it, hyperparameters do not collapse as under a mean-field guide.

References:
    Khan and Lin, Conjugate-computation variational inference (2017), eq. 6.
    Opper and Archambeau, The variational Gaussian approximation revisited (2009), for the moments.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .hyperparameters import Eta
from .likelihoods import Likelihood, QuadraticLikelihood, Rows
from .posterior import WeightPosterior
from .statistics import TaskStatistics, task_sum

# Variance of the latents from which the first factors are made.
_FIRST_VARIANCE = 0.1


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
    phi = rows.phi.detach()
    average = torch.einsum("nc,nco->no", weight.detach(), mean.detach())
    # a factor must stay a factor where the log likelihood is convex, as Student-t tails are: the
    # size of the curvature takes the step no further than the target
    curvature = (-2 * slope.sum(1)).abs()
    linear = gradient.sum(1) + curvature * average
    A = rows.blocks.gram(phi, curvature)
    b = rows.blocks.project(phi, linear)
    # the constant drops out of the bound; it is 0
    count = task_sum(rows.weight.mean(-1), rows.task, rows.num_tasks)
    return TaskStatistics(A, b, torch.zeros_like(b[..., 0]), count)


def first_factor(likelihood: Likelihood, rows: Rows, theta: Eta) -> TaskStatistics:
    """The factor of latents at the likelihood's own mass: where to start, knowing nothing else."""
    mean = likelihood.first_latent(rows)[:, None]
    variance = torch.full_like(mean, _FIRST_VARIANCE)
    return local_factor(likelihood, rows, torch.ones_like(mean[..., 0]), mean, variance, theta)


def blend(old: TaskStatistics, new: TaskStatistics, rate: float) -> TaskStatistics:
    r"""A natural-gradient step: $(1 - \rho)\,\text{old} + \rho\,\text{new}$."""
    return TaskStatistics(
        old.A.lerp(new.A, rate), old.b.lerp(new.b, rate), old.c.lerp(new.c, rate), old.rows
    )


def latent_moments(posterior: WeightPosterior, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Responsibilities (N, C), means and variances (N, C, O) of the latents of each row."""
    mean, variance = posterior.latent(rows.phi, rows.blocks)
    return posterior.log_weights.exp()[rows.task], mean, variance
