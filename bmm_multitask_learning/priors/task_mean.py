r"""Task features in the mean of any prior.

$$w_k = \delta_k + u_k, \qquad \delta_k = \Psi^{1/2} \circ \sum_f f_{kf}\, s_f M_f, \qquad
  (u_1, \dots, u_K) \sim \text{the prior within}, \qquad M_{fod} \sim N(0, 1)$$

with task features $f_k$ in standard deviations from their mean over the tasks of the fit. The
constant is the prior's own: its centre, where it has one. Given M, the factor of task k is a
Gaussian factor of $u_k$, $t_k(u_k + \delta_k)$, so that the prior within conditions, updates and
predicts as it does alone. M is a hyperparameter: at its mode under the closed form, with a
Gaussian of its own under SVI, sampled under NUTS. The size s of each feature's effect is chosen by
empirical Bayes between the climbs, `refresh`, M integrated out by Laplace's method: at a fixed
size, M would fit the scatter of few tasks. SVI and NUTS keep the s of their start; a tree within
moves under SVI as it does alone.

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
from torch.distributions.transforms import Transform

from ..gaussian import DiagonalScale
from ..hyperparameters import Eta
from ..posterior import WeightPosterior, mixture_posterior
from ..roots import Roots
from ..statistics import TaskStatistics
from .ridge import PooledTasks
from .task_prior import TaskPrior, standardised, unit_signal_scatter

# Change of the log normaliser, in nats whatever the units, below which s and M have settled.
_RISE = 0.03
# They and the other hyperparameters move in turn, at most so often.
_MOST_ROUNDS = 10
_SIZE_STEPS = 100
# Of s²: an effect of a thousandth of the noise. At 0 it could not rise again.
_LEAST = 1e-6


@final
class TaskMean(TaskPrior):
    r"""What is known about tasks shifts their weights; the rest has any other prior.

    $w_k = \delta_k + u_k$ with $\delta_k = \Psi^{1/2} \circ \sum_f f_{kf} s_f M_f$ from the task
    features (K, F) and $(u_k)$ from `prior`. $\Psi$ is the diagonal covariance that makes the
    signal as large as the noise; the size $s_f$ of a feature's effect is learned, and near 0 for
    one that says nothing. The read-outs of `prior`, such as `model.prior.prior.tree`, speak of u:
    of what is left when the task features are known.

    A new task needs its features; its law is the population's around $\delta$, the uncertainty of
    M included. A round of M costs F D posteriors.

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
    size: Tensor
    spread: Tensor
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
        if prior.amortised is not None:
            raise ValueError(
                f"TaskMean shifts the weights of tasks, and the network of {type(prior).__name__} "
                "would not see it. Take amortised=None, or the prior within alone."
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
        self.register_buffer("size", like.new_ones(len(self.slopes)))
        self.register_buffer("spread", like.new_zeros(*shape, shape[0] * shape[2]))
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
        return self._offset_at(self._design(), self.size[:, None, None] * eta["slopes"])

    def _offset_at(self, design: Tensor, theta: Tensor) -> Tensor:
        """δ (..., K, O, D) of tasks with standardised features (K, F), for θ = s M."""
        return self.scatter.sqrt() * torch.einsum("kf,...fod->...kod", design, theta)

    def _design(self, features: Tensor | None = None) -> Tensor:
        """(K, F) standardised features, of the tasks of the fit unless others are given."""
        assert self.task_features is not None  # `register_hyperparameters` asked for them
        chosen = self.task_features if features is None else features
        return standardised(chosen, self.task_features)

    # ---- closed-form half ---------------------------------------------------------------------

    def initialise(
        self, statistics: TaskStatistics, generator: torch.Generator, start: int
    ) -> None:
        # the prior within starts from weights that the features have been regressed out of
        self.register_buffer("scatter", unit_signal_scatter(statistics))
        self.register_buffer("slopes", self._regression(statistics))
        self.register_buffer("size", torch.ones_like(self.size))
        self.rounds.zero_()
        at = statistics.shifted(self._offset(self.eta))
        self.prior.initialise(at, generator, start)
        ratio = self.scatter / self.prior.scatter
        self.register_buffer("scatter", self.prior.scatter)
        self.register_buffer("slopes", self.slopes * ratio.sqrt())

    def _regression(self, statistics: TaskStatistics) -> Tensor:
        r"""$(G + I)^{-1} F^\top \hat W$ in units of $\Psi^{1/2}$: of each task's ridge weights."""
        std = self.scatter.sqrt()
        alone = std.new_zeros(len(statistics.b), 1)
        ridge = mixture_posterior(statistics, alone, torch.zeros_like(std), DiagonalScale(std))
        white = ridge.means[:, 0] / std
        design = self._design()
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
        r"""Move s and M given the rest, as long as that changes the fit; then the prior within."""
        parts = folds()
        statistics = functools.reduce(operator.add, parts)
        if int(self.rounds) < _MOST_ROUNDS and self._move(statistics):
            self.rounds.add_(1)
            return True
        offset = self._offset(self.eta)
        residual = self._residual(posterior)
        own = count - int(self.rounds)
        return self.prior.refresh(own, residual, lambda: [p.shifted(offset) for p in parts])

    def points(self) -> dict[str, Transform]:
        return {f"prior.{name}": t for name, t in self.prior.points().items()}

    def renew(self, folds: Callable[[], Sequence[TaskStatistics]]) -> bool:
        offset = self._offset(self.eta)
        return self.prior.renew(lambda: [part.shifted(offset) for part in folds()])

    def _move(self, statistics: TaskStatistics) -> bool:
        r"""Empirical Bayes of s, with M at its mode; whether the fit is another now.

        With $g$ and $-H$ the gradient and curvature of $\log p(D \mid \eta)$ at the present
        $\theta = sM$, of P columns that are (f, d), for each output:
        $$C = (H + S^{-1})^{-1}, \quad \hat\theta = C (g + H\theta), \quad
          s_f^2 = \tfrac{1}{OD} \sum_{od} \big(\hat\theta_{fod}^2 + C_{fod,fod}\big)$$
        """
        F, _, D = self.slopes.shape
        theta = self.size[:, None, None] * self.slopes
        pull, before = self._pull(statistics, theta)
        H = self._curvature(statistics, theta, pull)
        flat = _per_output(theta)
        told = _per_output(pull)[..., None] + H @ flat[..., None]
        square = self.size.square()
        for _ in range(_SIZE_STEPS):
            precision = torch.diag(1 / square.repeat_interleave(D))
            C = torch.cholesky_inverse(torch.linalg.cholesky(H + precision))
            flat = (C @ told)[..., 0]
            second = flat.square() + C.diagonal(dim1=-2, dim2=-1)
            square = second.unflatten(1, (F, D)).mean((0, 2)).clamp(min=_LEAST)
        after = flat.unflatten(1, (F, D)).movedim(0, 1)  # (F, O, D)
        _, reached = self._pull(statistics, after)
        spent = 0.5 * (after.square() - theta.square()).sum((1, 2)) / square
        if reached - before < spent.sum():  # components far from one Gaussian: θ stays
            after, reached = theta, before
        moved = bool((reached - before).abs() > _RISE)
        if moved:  # else the bound reported is that of s and M as they are
            size = square.sqrt()
            self.register_buffer("size", size)
            self.register_buffer("slopes", after / size[:, None, None])
        root = torch.linalg.cholesky(C)
        self.register_buffer("spread", root.unflatten(1, (F, D)).movedim(0, 1))
        return moved

    def _pull(self, statistics: TaskStatistics, theta: Tensor) -> tuple[Tensor, Tensor]:
        r"""The gradient of the log normaliser in $\theta$ (F, O, D), and the log normaliser.

        $\sum_k f_k (b_k - A_k E[w_k])$ in units of $\Psi^{1/2}$, by Fisher's identity.
        """
        offset = self._offset_at(self._design(), theta)
        given = self.prior.condition(statistics.shifted(offset), self.prior.eta)
        mean = torch.einsum("kc,kcod->kod", given.log_weights.exp(), given.means) + offset
        residual = statistics.b - (statistics.A @ mean[..., None])[..., 0]
        pull = torch.einsum("kf,kod->fod", self._design(), self.scatter.sqrt() * residual)
        return pull, given.log_normaliser

    def _curvature(self, statistics: TaskStatistics, theta: Tensor, pull: Tensor) -> Tensor:
        """H (O, F D, F D), exact where the prior within is Gaussian, outputs independent."""
        F, _, D = theta.shape
        columns = []
        for at in range(F * D):  # as many posteriors in memory at once would be too many
            step = torch.zeros(F * D).to(theta)
            step[at] = 1.0
            other, _ = self._pull(statistics, theta + step.unflatten(0, (F, 1, D)))
            columns.append(_per_output(pull - other))
        H = torch.stack(columns, -1)
        values, vectors = torch.linalg.eigh(0.5 * (H + H.mT))
        return (vectors * values.clamp(min=0)[..., None, :]) @ vectors.mT

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
        design = self._design(task_features)
        mean = offset = self._offset_at(design, self.size[:, None, None] * eta["slopes"])
        if offset.ndim == 3:  # M at its mode: what Laplace's method says of it
            spread = self._offset_at(design, self.spread.movedim(-1, 0))
        else:  # draws (S, ...) of M: a root of their covariance in S columns
            mean = offset.mean(0)
            spread = (offset - mean) / len(offset) ** 0.5
        spread = spread.permute(1, 2, 3, 0)[:, None]
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
        return self.scatter.sqrt() * self.size[:, None, None] * self.slopes


def _within(eta: Eta) -> Eta:
    """The sites of the prior within."""
    return {name: value for name, value in eta.items() if name != "slopes"}


def _moved(posterior: WeightPosterior, offset: Tensor) -> WeightPosterior:
    """The law of weights that are larger by an offset (K, O, D)."""
    return dataclasses.replace(posterior, means=posterior.means + offset[:, None])


def _per_output(value: Tensor) -> Tensor:
    """(F, O, D) as (O, F D)."""
    return value.movedim(1, 0).flatten(1)
