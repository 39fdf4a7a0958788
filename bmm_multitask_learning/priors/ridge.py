r"""The two ends between which every other prior lies: tasks alone, and tasks as one.

$$1/\tau_k^2 \sim \mathrm{Gamma}(\tfrac32, \tfrac12 \Psi), \qquad
  w_k \sim N(0, \tau_k^2 I)$$

The penalty of a ridge regression (for `Gaussian` noise) is inferred by the evidence of its rows.

References:
    MacKay, Bayesian interpolation (1992).
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from typing import final

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution

from ..gaussian import DiagonalScale
from ..hyperparameters import Eta
from ..posterior import Centre, WeightPosterior, mixture_posterior
from ..roots import Roots
from ..statistics import TaskStatistics
from .covariance import IsotropicCovariance
from .task_prior import TaskPrior

_FORM = IsotropicCovariance()


class RidgePrior(TaskPrior):
    """M weight vectors, each with a scale of its own; which tasks use which is left open."""

    precision: Tensor

    @property
    @abstractmethod
    def num_vectors(self) -> int:
        """M."""

    def register_hyperparameters(self, like: Tensor) -> None:
        self.register_buffer("precision", like.new_ones(self.num_vectors, self.sizes.num_outputs))

    def hyperprior(self) -> Eta:
        return _FORM.hyperprior(self.scatter.expand(self.num_vectors, -1, -1))

    def _std(self, precision: Tensor) -> Tensor:
        return precision.rsqrt()[..., None].expand(*precision.shape, self.sizes.num_features)

    def forward(self, eta: Eta) -> Distribution:
        std = self._std(eta["precision"])
        return dist.Normal(torch.zeros_like(std), std).to_event(3)

    def initialise(
        self, statistics: TaskStatistics, generator: torch.Generator, start: int
    ) -> None:
        super().initialise(statistics, generator, start)
        self.register_buffer("scatter", _FORM.reference(self.scatter))
        self.set_eta(_FORM.mode(self.scatter.expand(self.num_vectors, -1, -1)))

    def condition(self, statistics: TaskStatistics, eta: Eta) -> WeightPosterior:
        std = self._std(eta["precision"])
        one = std.new_zeros(len(std), 1)
        return mixture_posterior(
            statistics, one, torch.zeros_like(std)[:, None], DiagonalScale(std[:, None])
        )

    def update(self, posterior: WeightPosterior) -> None:
        # τ_k² = ( Ψ + E‖w_k‖² ) / ( 1 + D )
        square = posterior.means[:, 0].square() + posterior.roots.variance()[:, 0]
        self.set_eta(_FORM.update(self.eta, square, torch.ones_like(square[..., 0]), self.scatter))


@final
class IndependentTasks(RidgePrior):
    r"""Each task by itself: $w_k \sim N(0, \tau_k^2 I)$, $\tau_k$ inferred by its evidence.

    The reference that a multi-task prior must not fall below. A task outside the fit has weights
    from $N(0, \tau^2 I)$ with the mean of the precisions.
    """

    @property
    def num_vectors(self) -> int:
        return self.sizes.num_tasks

    def population(
        self, eta: Eta, posterior: WeightPosterior, task_features: Tensor | None, num_tasks: int
    ) -> WeightPosterior:
        std = self._std(eta["precision"].mean(-2, keepdim=True))  # (..., 1, O, D)
        std = std.reshape(1, -1, *std.shape[-2:]).expand(num_tasks, -1, -1, -1)
        return WeightPosterior(
            log_weights=std.new_zeros(std.shape[:2]).log_softmax(-1),
            means=torch.zeros_like(std),
            roots=Roots.independent(torch.diag_embed(std)),
            log_normaliser=std.new_zeros(()),
        )

    def relations(self) -> Tensor:
        """The identity (K, K): no task borrows."""
        return torch.eye(len(self.information)).to(self.scatter)


@final
class PooledTasks(RidgePrior):
    r"""One weight vector for all tasks: $w_k = w \sim N(0, \tau^2 I)$, $\tau$ inferred.

    A task outside the fit has the same weights as the others.
    """

    @property
    def num_vectors(self) -> int:
        return 1

    def condition(self, statistics: TaskStatistics, eta: Eta) -> WeightPosterior:
        one = super().condition(statistics, eta)
        # every task's weights are the same: all of their uncertainty is shared
        return dataclasses.replace(
            one,
            roots=Roots(one.roots.common, one.roots.own),
            shared=Centre(one.means[0], one.roots.own[0]),
        )

    def reduce(self, statistics: TaskStatistics) -> TaskStatistics:
        return statistics.total()

    def expand(
        self, posterior: WeightPosterior, statistics: TaskStatistics | None = None
    ) -> WeightPosterior:
        # after `adapt` each task has a vector of its own, and there may be more tasks
        tasks = posterior.expand(max(len(posterior.means), self.sizes.num_tasks))
        if statistics is None:
            return tasks
        root = posterior.roots.common[:, 0]
        return dataclasses.replace(tasks, effective=lambda: statistics.trace_term(root)[:, None])

    def population(
        self, eta: Eta, posterior: WeightPosterior, task_features: Tensor | None, num_tasks: int
    ) -> WeightPosterior:
        centre = posterior.centre()
        mean, root = centre.mean, centre.root
        return WeightPosterior(
            log_weights=mean.new_zeros(num_tasks, len(mean)).log_softmax(-1),
            means=mean.expand(num_tasks, *mean.shape),
            roots=Roots(root.new_zeros(1, *mean.shape, 0), root[None]).expand(num_tasks),
            log_normaliser=mean.new_zeros(()),
        )

    def relations(self) -> Tensor:
        """All ones (K, K): the tasks are one."""
        return self.scatter.new_ones(len(self.information), len(self.information))
