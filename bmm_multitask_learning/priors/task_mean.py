r"""Task features in the mean of any prior.

$$w_k = \Psi^{1/2} \circ M f_k + u_k, \qquad (u_1, \dots, u_K) \sim \text{the prior within},
  \qquad M_{fod} \sim N(0, 1)$$

with task features $f_k$ in standard deviations from their mean over the tasks of the fit. The
constant is the prior's own: its centre, where it has one. Given M, the factor of task k is a
Gaussian factor of $u_k$, $t_k(u_k + \delta_k)$ with $\delta_k = \Psi^{1/2} \circ M f_k$, so that
the prior within conditions, updates and predicts as it does alone. M is a hyperparameter: at its
mode under the closed form, with a Gaussian of its own under SVI, sampled under NUTS.

References:
    Lindley and Smith, Bayes estimates for the linear model (1972), section 2: a regression of the
    regressions' coefficients.
    Bakker and Heskes, Task clustering and gating for Bayesian multitask learning (2003),
    section 2.2: the task-dependent prior mean.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Sequence
from typing import final

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import AffineTransform, Distribution

from ..gaussian import DiagonalScale
from ..hyperparameters import Eta
from ..posterior import WeightPosterior, mixture_posterior
from ..roots import Roots
from ..statistics import TaskStatistics
from .ridge import PooledTasks
from .task_prior import TaskPrior, standardised, unit_signal_scatter

# Rise of the bound, relative to its size, below which M stays where it is.
_RISE = 1e-6
# M and the other hyperparameters move in turn, at most so often.
_MOST_ROUNDS = 10
# Gradient steps of a climb of M: with Gaussian weights the bound is quadratic in M.
_STEPS = 100


@final
class TaskMean(TaskPrior):
    r"""What is known about tasks shifts their weights; the rest has any other prior.

    $w_k = \delta_k + u_k$ with $\delta_k = \Psi^{1/2} \circ M f_k$ from the task features
    (K, F) and $(u_k)$ from `prior`. $\Psi$ is the diagonal covariance that makes the signal as
    large as the noise, so that the law of M, $N(0, 1)$, is free of units. The read-outs of
    `prior`, such as `model.prior.prior.tree`, speak of u: of what is left when the task features
    are known.

    A new task needs its features, and its law is the population's around $\delta$. Where the
    features say nothing, M has little to find, but it is F numbers for each weight: with few tasks
    a feature, they fit the scatter of the tasks in part.

    Args:
        prior: of what the task features do not say; fitted in place.

    Raises:
        ValueError: for `PooledTasks`, another `TaskMean`, or a prior without closed form; for data
            without task features, and new tasks without theirs.

    Example:
        >>> import numpy as np
        >>> from bmm_multitask_learning import MultitaskModel, SharedGaussian, TaskData, TaskMean
        >>> from bmm_multitask_learning import fit
        >>> rng = np.random.default_rng(0)
        >>> age = rng.standard_normal((20, 1))
        >>> task = np.repeat(np.arange(20), 9)
        >>> x = rng.standard_normal((180, 3))
        >>> y = x @ [1.0, 0.0, 0.0] + x[:, 1] * age[task, 0] + 0.3 * rng.standard_normal(180)
        >>> model = MultitaskModel(prior=TaskMean(SharedGaussian()))
        >>> result = fit(model, TaskData(x, y, task, task_features=age), progress=False)
        >>> bool(abs(model.prior.effect[0, 0, 1] - age.std()) < 0.1)  # per year it is 1
        True

    References:
        Lindley and Smith (1972); Bakker and Heskes (2003), section 2.2.
    """

    slopes: Tensor
    rounds: Tensor

    def __init__(self, prior: TaskPrior) -> None:
        super().__init__()
        if isinstance(prior, PooledTasks):
            raise ValueError(
                "TaskMean(PooledTasks()) has one weight vector for all tasks and nothing to "
                "shift. Put products of x with the task features into x instead."
            )
        if isinstance(prior, TaskMean):
            raise ValueError(
                "TaskMean(TaskMean(...)) would shift the weights twice. Give all task features to "
                "one TaskMean."
            )
        if not prior.closed_form:
            raise ValueError(
                f"TaskMean needs a prior with a closed form, and {type(prior).__name__} has a "
                "generative half only. Read self.task_features in its `forward` instead."
            )
        self.prior = prior
        self.exact = prior.exact
        self.generative = prior.generative

    # ---- generative half ----------------------------------------------------------------------

    def register_hyperparameters(self, like: Tensor) -> None:
        sizes = self.sizes
        if self.task_features is None:
            raise ValueError(
                "TaskMean reads task features, and the data have none. Give "
                "TaskData(..., task_features=) of shape (K, F), or take the prior within alone."
            )
        self.prior.build(sizes, like, self.task_features)
        shape = (sizes.num_task_features, sizes.num_outputs, sizes.num_features)
        self.register_buffer("slopes", like.new_zeros(shape))
        self.register_buffer("rounds", torch.zeros((), dtype=torch.int64, device=like.device))

    def hyperprior(self) -> Eta:
        law = dist.Normal(0.0, torch.ones_like(self.slopes)).to_event(3)
        return {"slopes": pyro.sample("slopes", law), **self.prior.hyperprior()}

    @property
    def eta(self) -> Eta:
        r"""The current value of M and of the $\eta$ of the prior within."""
        return {"slopes": self.slopes, **self.prior.eta}

    def set_eta(self, eta: Eta) -> None:
        r"""Make $\eta$ the current value."""
        within = dict(eta)
        if "slopes" in within:
            self.register_buffer("slopes", within.pop("slopes").detach().clone())
        self.prior.set_eta(within)

    def forward(self, eta: Eta) -> Distribution:
        shift = AffineTransform(self._offset(eta), 1.0, event_dim=3)
        return dist.TransformedDistribution(self.prior(_within(eta)), [shift])

    def _offset(self, eta: Eta) -> Tensor:
        """δ (..., K, O, D) of the tasks of the fit."""
        assert self.task_features is not None  # `register_hyperparameters` asked for them
        return self._offset_of(self.task_features, eta)

    def _offset_of(self, features: Tensor, eta: Eta) -> Tensor:
        """δ (..., K, O, D) of tasks with these features (K, F)."""
        assert self.task_features is not None
        design = standardised(features, self.task_features)
        return self.scatter.sqrt() * torch.einsum("kf,...fod->...kod", design, eta["slopes"])

    # ---- closed-form half ---------------------------------------------------------------------

    def initialise(
        self, statistics: TaskStatistics, generator: torch.Generator, start: int
    ) -> None:
        # the prior within starts from weights that the features have been regressed out of
        self.register_buffer("scatter", unit_signal_scatter(statistics))
        self.register_buffer("slopes", self._regression(statistics))
        self.rounds.zero_()
        at = statistics.shifted(self._offset(self.eta))
        self.prior.initialise(at, generator, start)
        size = self.scatter / self.prior.scatter
        self.register_buffer("scatter", self.prior.scatter)
        self.register_buffer("slopes", self.slopes * size.sqrt())

    def _regression(self, statistics: TaskStatistics) -> Tensor:
        r"""$(G + I)^{-1} F^\top \hat W$ in units of $\Psi^{1/2}$: of each task's ridge weights."""
        assert self.task_features is not None
        std = self.scatter.sqrt()
        alone = std.new_zeros(len(statistics.b), 1)
        ridge = mixture_posterior(statistics, alone, torch.zeros_like(std), DiagonalScale(std))
        white = ridge.means[:, 0] / std
        design = standardised(self.task_features, self.task_features)
        gram = design.mT @ design + torch.eye(design.shape[1]).to(design)
        moment = (design.mT @ (white - white.mean(0)).flatten(1)).contiguous()
        return torch.linalg.solve(gram, moment).unflatten(1, std.shape)

    def more_starts(self, scores: list[float]) -> bool:
        return self.prior.more_starts(scores)

    def complexity(self) -> float:
        return self.prior.complexity()

    def condition(self, statistics: TaskStatistics, eta: Eta) -> WeightPosterior:
        offset = self._offset(eta)
        return _moved(self.prior.condition(statistics.shifted(offset), _within(eta)), offset)

    def update(self, posterior: WeightPosterior) -> None:
        """An M-step of the prior within; M moves in `refresh`."""
        self.prior.update(self._residual(posterior))

    def _residual(self, posterior: WeightPosterior) -> WeightPosterior:
        """The law of u."""
        return _moved(posterior, -self._offset(self.eta))

    def refresh(
        self,
        count: int,
        posterior: WeightPosterior,
        folds: Callable[[], Sequence[TaskStatistics]],
    ) -> bool:
        r"""Move M to its mode given the rest, as long as that is worth it; then the prior within.

        $$\hat M = \arg\max_M \log \int p(u \mid \eta) \prod_k t_k(u_k + \delta_k)\, du
          - \tfrac12 \lVert M \rVert^2$$
        """
        parts = folds()
        if int(self.rounds) < _MOST_ROUNDS and self._climb(functools.reduce(operator.add, parts)):
            self.rounds.add_(1)
            return True
        offset = self._offset(self.eta)
        residual = self._residual(posterior)
        own = count - int(self.rounds)
        return self.prior.refresh(own, residual, lambda: [p.shifted(offset) for p in parts])

    def _climb(self, statistics: TaskStatistics) -> bool:
        """Whether the bound rose with M; otherwise nothing moved."""
        eta, slopes = self.prior.eta, self.slopes.clone().requires_grad_()
        optimiser = torch.optim.LBFGS([slopes], max_iter=_STEPS, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimiser.zero_grad()
            at = statistics.shifted(self._offset({"slopes": slopes}))
            value = 0.5 * slopes.square().sum() - self.prior.condition(at, eta).log_normaliser
            value.backward()
            return value.detach()

        with torch.enable_grad():
            before = optimiser.step(loss)
            after = loss()
        rose = bool(before - after > _RISE * before.abs().clamp(min=1.0))
        if rose:
            self.register_buffer("slopes", slopes.detach())
        return rose

    def settle(self, statistics: TaskStatistics, posterior: WeightPosterior) -> None:
        # read-outs of weights, such as relevances, are of the whole weights
        self.prior.settle(statistics.shifted(self._offset(self.eta)), posterior)
        self.register_buffer("information", self.prior.information)

    def grow(
        self, information: Tensor, posterior: WeightPosterior, newcomers: WeightPosterior | None
    ) -> None:
        self.prior.grow(information, posterior, newcomers)
        self.register_buffer("information", self.prior.information)

    def population(
        self, eta: Eta, posterior: WeightPosterior, task_features: Tensor | None, num_tasks: int
    ) -> WeightPosterior:
        if task_features is None:
            raise ValueError(
                "TaskMean reads task features: give task_features of shape "
                f"({num_tasks}, {self.sizes.num_task_features}) for the new tasks."
            )
        known = self._residual(posterior.select(slice(self.sizes.num_tasks)))
        law = self.prior.population(_within(eta), known, task_features, num_tasks)
        offset = self._offset_of(task_features, eta)
        if offset.ndim == 3:
            return _moved(law, offset)
        # draws (S, ...) of M: their mean, and S columns of a root of their covariance
        mean = offset.mean(0)
        spread = ((offset - mean) / len(offset) ** 0.5).permute(1, 2, 3, 0)[:, None]
        own, common = law.roots.own, law.roots.common
        spread = spread.expand(*own.shape[:-1], -1)
        roots = Roots(torch.cat([own, spread], -1), common)
        return dataclasses.replace(_moved(law, mean), roots=roots)

    def condense(self, newcomers: WeightPosterior) -> WeightPosterior:
        return self.prior.condense(newcomers)

    def relations(self) -> Tensor:
        """(K, K) of the prior within: between what the task features do not say of the tasks."""
        return self.prior.relations()

    # ---- read-outs ----------------------------------------------------------------------------

    @property
    def effect(self) -> Tensor:
        r"""$\Psi^{1/2} \circ M$, (F, O, D): what one standard deviation of each task feature adds.

        In units of the weights; the standard deviation is that over the tasks of the fit.
        """
        return self.scatter.sqrt() * self.slopes


def _within(eta: Eta) -> Eta:
    """The sites of the prior within."""
    return {name: value for name, value in eta.items() if name != "slopes"}


def _moved(posterior: WeightPosterior, offset: Tensor) -> WeightPosterior:
    """The law of weights that are larger by an offset (K, O, D)."""
    return dataclasses.replace(posterior, means=posterior.means + offset[:, None])
