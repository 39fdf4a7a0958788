r"""Log standard deviations that diffuse along a tree: tasks share covariances, not weights.

$$z_i \mid z_{p(i)} \sim N(z_{p(i)}, t_i \Sigma), \quad Q \sim \mathrm{Wishart}(D + 2, I), \quad
  w_k \sim N(0, E_k Q^{-1} E_k), \quad E_k = \mathrm{diag}(\sqrt{\Psi_d}\, e^{z_{kd}})$$

Given z, the weights of the tasks are independent and are integrated out. z itself is fitted: a
step of Fisher's scoring towards its mode, shortened until the expected log joint density rises.
Beside a z at its mode, its variances $\Sigma$ and $s^2$ would shrink to zero: they move, between
climbs, by an EM step on Laplace's approximation of z.

With $\tilde C = E^{-1} \mathrm{cov}(w) E^{-1}$, $\tilde M = E^{-1} E[ww^\top] E^{-1}$ and
$R = Q^{-1}$ the gradient and Fisher's information of $\log p(D_k \mid z_k)$ are

$$g = \mathrm{diag}(Q\tilde M) - 1, \qquad
  F = (I - \tilde C Q) \circ (I - \tilde C Q)^\top + (Q - Q\tilde C Q) \circ (R - \tilde C) .$$

References:
    Daumé III, Bayesian multitask learning with latent hierarchies (2009), section 3.2, where Q is
    the inverse of a correlation matrix; the scale of ours is absorbed by the centre of z.
"""

from __future__ import annotations

from typing import final

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ..distributions import Wishart
from ..gaussian import DenseScale
from ..hyperparameters import Eta
from ..posterior import WeightPosterior, mixture_posterior
from ..statistics import TaskStatistics
from ..trees import TaskTree
from ..trees.places import Newcomer
from .covariance import Covariance, identity, joint
from .diffusion import Branching, condition_along, means_along, tree_law
from .shared_gaussian import population_hyperprior, population_mode, update_population

_HALVINGS = 6
# EM steps of the variances on one approximation of z.
_EM_STEPS = 10


@final
class ScaleDiffusion:
    """The logs of the weights' standard deviations run along the tree."""

    rounds = 2

    def __init__(self, form: Covariance) -> None:
        self.form = form

    def spread(self, scatter: Tensor) -> Tensor:
        # a step of the whole height changes standard deviations by a factor of e, a priori
        return torch.ones_like(scatter)

    def mode(self, scatter: Tensor, num_tasks: int) -> Eta:
        O, D = scatter.shape
        return {
            **population_mode(self.form, self.spread(scatter)),
            "log_scale": scatter.new_zeros(num_tasks, O, D),
            "correlation_precision": identity(D, scatter).expand(O, D, D).clone(),
        }

    def hyperprior(self, scatter: Tensor, tree: TaskTree, mixing: Tensor) -> Eta:
        spread = self.spread(scatter)
        df = scatter.new_full(scatter.shape[:-1], scatter.shape[-1] + 2.0)
        eta = population_hyperprior(self.form, spread)
        law = tree_law(self.form, eta, spread, tree, mixing)
        return {
            **eta,
            "log_scale": pyro.sample("log_scale", law),
            "correlation_precision": pyro.sample(
                "correlation_precision", joint(Wishart(df, spread))
            ),
        }

    def law(
        self, eta: Eta, scatter: Tensor, tree: TaskTree, mixing: Tensor
    ) -> dist.TorchDistribution:
        root = self._root(eta, scatter)
        return dist.MultivariateNormal(torch.zeros_like(root[..., 0]), scale_tril=root).to_event(2)

    def _root(self, eta: Eta, scatter: Tensor) -> Tensor:
        """E_k Q^{-1/2}, (K, O, D, D)."""
        std = scatter.sqrt() * eta["log_scale"].exp()
        return std[..., None] * torch.linalg.cholesky(_inverse(eta["correlation_precision"]))

    def condition(
        self, statistics: TaskStatistics, eta: Eta, scatter: Tensor, along: Branching
    ) -> WeightPosterior:
        b = statistics.b
        scale = DenseScale(self._root(eta, scatter)[:, None])
        return mixture_posterior(
            statistics, b.new_zeros(len(b), 1), torch.zeros_like(b)[:, None], scale
        )

    def log_evidence(
        self, statistics: TaskStatistics, eta: Eta, scatter: Tensor, along: Branching
    ) -> Tensor:
        return self.condition(statistics, eta, scatter, along).log_normaliser

    def update(
        self, posterior: WeightPosterior, eta: Eta, scatter: Tensor, along: Branching
    ) -> Eta:
        spread, Q = self.spread(scatter), eta["correlation_precision"]
        law = tree_law(self.form, eta, spread, along.tree, along.mixing)
        factors = self._laplace(posterior, eta, scatter)
        target = condition_along(self.form, factors, eta, spread, along.levels).means[:, 0]
        mean, root = posterior.means[:, 0], posterior.roots.whole[:, 0]
        second = root @ root.mT + mean[..., None] * mean[..., None, :]

        def expected(z: Tensor) -> Tensor:
            # E log p(w | z, Q) + log p(z)
            white = _unscaled(second, z, scatter)
            return law.log_prob(z) - z.sum() - 0.5 * (Q * white).sum()

        z, step = eta["log_scale"], target - eta["log_scale"]
        before = expected(z)
        for _ in range(_HALVINGS):
            if expected(z + step) >= before:
                z = z + step
                break
            step = 0.5 * step
        # Q⁻¹ = ( I + Σ_k M̃_k ) / ( 1 + K )
        total = identity(mean.shape[-1], mean) + _unscaled(second, z, scatter).sum(0)
        return {"log_scale": z, "correlation_precision": _inverse(total / (1 + len(mean)))}

    def rates(
        self, posterior: WeightPosterior, eta: Eta, scatter: Tensor, along: Branching
    ) -> Eta:
        spread, factors = self.spread(scatter), self._laplace(posterior, eta, scatter)
        moved = dict(eta)
        for _ in range(_EM_STEPS):
            law = condition_along(self.form, factors, moved, spread, along.levels)
            moved |= update_population(self.form, moved, law, spread)
        # half a step of scoring, by a factor of e at most: it need not raise what `update` raises
        step = (0.5 * (law.means[:, 0] - eta["log_scale"])).clamp(-1, 1)
        return {**moved, "log_scale": eta["log_scale"] + step}

    def step(self, statistics: TaskStatistics, eta: Eta, scatter: Tensor, along: Branching) -> Eta:
        posterior = self.condition(statistics, eta, scatter, along)
        eta = self.rates(posterior, eta, scatter, along)
        posterior = self.condition(statistics, eta, scatter, along)
        return {**eta, **self.update(posterior, eta, scatter, along)}

    def forget(self, eta: Eta, scatter: Tensor) -> Eta:
        average = eta["log_scale"].mean(0, keepdim=True)
        return {**eta, "log_scale": average.expand_as(eta["log_scale"]).clone()}

    def leaves(self, statistics: TaskStatistics, eta: Eta, scatter: Tensor) -> TaskStatistics:
        root = self._root(eta, scatter)[:, None]
        b = statistics.b
        given = mixture_posterior(
            statistics, b.new_zeros(len(b), 1), torch.zeros_like(b)[:, None], DenseScale(root)
        )
        return self._laplace(given, eta, scatter)

    def _laplace(self, posterior: WeightPosterior, eta: Eta, scatter: Tensor) -> TaskStatistics:
        """Gaussian factors of z with the gradient and Fisher's information of the evidence."""
        z, Q = eta["log_scale"], eta["correlation_precision"]
        mean, root = posterior.means[:, 0], posterior.roots.whole[:, 0]
        C = _unscaled(root @ root.mT, z, scatter)
        white = mean / (scatter.sqrt() * z.exp())
        M = C + white[..., None] * white[..., None, :]
        gradient = (Q @ M).diagonal(dim1=-2, dim2=-1) - 1
        left = identity(C.shape[-1], C) - C @ Q
        F = left * left.mT + (Q - Q @ C @ Q) * (_inverse(Q) - C)
        b = (F @ z[..., None])[..., 0] + gradient
        return TaskStatistics(F, b, torch.zeros_like(b[..., 0]), b.new_ones(len(b)))

    def nodes(self, leaves: TaskStatistics, eta: Eta, scatter: Tensor, along: Branching) -> Tensor:
        z = means_along(self.form, leaves, eta, self.spread(scatter), along.levels)
        return self.log_standard_deviation({**eta, "log_scale": z}, scatter)

    def log_standard_deviation(self, eta: Eta, scatter: Tensor) -> Tensor:
        """Of each weight given the scales, (K, O, D)."""
        variance = _inverse(eta["correlation_precision"]).diagonal(dim1=-2, dim2=-1)
        return eta["log_scale"] + 0.5 * (scatter * variance).log()

    def newcomer(self, law: Newcomer, eta: Eta, scatter: Tensor) -> tuple[Tensor, Tensor]:
        scale = self.form.scale(eta, scatter.shape[-1])
        mean, root = scale.apply(law.mean[..., None])[..., 0], scale.root
        V = root @ law.covariance @ root.mT
        # E[e^{z_d + z_e}] = exp( μ_d + μ_e + ½ (V_dd + V_ee + 2 V_de) )
        half = mean + 0.5 * V.diagonal(dim1=-2, dim2=-1) + 0.5 * scatter.log()
        second = (half[..., None] + half[..., None, :] + V).exp()
        covariance = _inverse(eta["correlation_precision"]) * second
        return torch.zeros_like(mean), torch.linalg.cholesky(covariance)


def _unscaled(matrix: Tensor, z: Tensor, scatter: Tensor) -> Tensor:
    """E⁻¹ matrix E⁻¹."""
    std = scatter.sqrt() * z.exp()
    return matrix / std[..., None] / std[..., None, :]


def _inverse(matrix: Tensor) -> Tensor:
    """Of a positive definite matrix: precision and covariance are both hyperparameters here."""
    return torch.cholesky_inverse(torch.linalg.cholesky(matrix))
