"""Gaussian noise, one variance for all tasks or one for each."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, final

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution

from ..hyperparameters import Eta
from ..posterior import WeightPosterior
from ..sizes import Sizes
from ..statistics import TaskStatistics
from .likelihood import QuadraticLikelihood, Rows, target_variance

# The noise's prior is worth one row with this share of the targets' variance: it only keeps the
# variance of exactly fitted targets from zero.
_SCATTER_SHARE = 1e-3
# A task's own noise precision scatters around the common one as if the latter were 4 rows.
_TASK_SHAPE = 2.0


@dataclasses.dataclass(frozen=True)
class Moments:
    """Sums over rows at unit noise: factor A = ΦᵀΦ, b = Φᵀy, c = −yᵀy/2; counts (K, O)."""

    factor: TaskStatistics
    count: Tensor


def _common_weight(rows: Rows) -> Tensor | None:
    """None where every weight (N, T) is 1, (N, 1) where all targets share theirs: one ΦᵀΦ then."""
    weight, first = rows.weight, rows.weight[:, :1]
    if bool(rows.max((weight != first).any().long())):
        return weight
    return None if bool((first == 1).all()) else first


@final
class Gaussian(QuadraticLikelihood[Moments]):
    r"""$y_n \sim N(f_n, \sigma^2)$ with $\sigma^2$ inferred.

    Shared noise: $1/\sigma^2 \sim \mathrm{Gamma}(3/2, \psi/2)$ with $\psi$ a thousandth of the
    targets' variance. Noise per task: $1/\sigma_k^2 \sim \mathrm{Gamma}(2, 2\bar\sigma^2)$ around
    a common $\bar\sigma^2$ that is inferred; a task outside the fit has $\bar\sigma^2$.

    Args:
        noise: "shared" or "task".

    Raises:
        ValueError: for another `noise`.

    Example:
        >>> Gaussian(noise="task").noise
        'task'
    """

    noise_scatter: Tensor
    noise_level: Tensor
    noise_precision: Tensor

    exact = True
    location_scale = True

    def __init__(self, noise: Literal["shared", "task"] = "shared") -> None:
        super().__init__()
        if noise not in ("shared", "task"):
            raise ValueError(f'noise must be "shared" or "task"; got {noise!r}.')
        self.noise = noise

    def check(self, y: Tensor) -> None:
        """Every real number is allowed; TaskData has refused infinite ones."""

    def register_hyperparameters(self, like: Tensor) -> None:
        O = self.sizes.num_outputs
        self.register_buffer("noise_scatter", like.new_ones(O))
        self.register_buffer("noise_level", like.new_ones(O))
        if self.noise == "task":
            self.register_buffer("noise_precision", like.new_ones(self.sizes.num_tasks, O))

    def grow(self, sizes: Sizes) -> None:
        if self.noise == "task":
            added = sizes.num_tasks - len(self.noise_precision)
            fresh = self.noise_level.expand(added, -1)
            self.register_buffer("noise_precision", torch.cat([self.noise_precision, fresh]))
        super().grow(sizes)

    def hyperprior(self) -> Eta:
        # noise_level is the precision 1/σ² that all tasks share, or scatter around
        half = torch.full_like(self.noise_scatter, 0.5)
        law = dist.Gamma(3 * half, half * self.noise_scatter).to_event(1)
        theta = {"noise_level": pyro.sample("noise_level", law)}
        if self.noise == "task":
            shape = self.noise_scatter.new_tensor(_TASK_SHAPE)
            rate = (shape / theta["noise_level"]).expand(self.sizes.num_tasks, -1)
            theta["noise_precision"] = pyro.sample(
                "noise_precision", dist.Gamma(shape, rate).to_event(2)
            )
        return theta

    def initialise(self, rows: Rows) -> None:
        variance = target_variance(rows)
        self.register_buffer("noise_scatter", _SCATTER_SHARE * variance)
        self._set_precision(2 / variance, (2 / variance).expand(self.sizes.num_tasks, -1))

    def _set_precision(self, level: Tensor, by_task: Tensor) -> None:
        theta = {"noise_level": level}
        if self.noise == "task":
            theta["noise_precision"] = by_task
        self.set_eta(theta)

    def summarise(self, rows: Rows) -> Moments:
        weighted = rows.weight * rows.y
        A, b = rows.moments(_common_weight(rows), weighted)
        c = -0.5 * rows.sum_by_task(weighted * rows.y)
        count = rows.sum_by_task(rows.weight)
        return Moments(TaskStatistics(A, b, c, count.mean(-1)), count)

    def refresh(self, summary: Moments, rows: Rows) -> Moments:
        return self.summarise(rows)

    def statistics(self, summary: Moments, theta: Eta) -> TaskStatistics:
        # A = ΦᵀΦ/σ²,  b = Φᵀy/σ²,  c = −½ ( n log 2πσ² + yᵀy/σ² )
        precision = self._precision(theta)
        unit = summary.factor
        return TaskStatistics(
            precision=unit.precision * precision[..., None, None],
            b=unit.b * precision[..., None],
            c=0.5 * summary.count * (precision.log() - math.log(2 * math.pi)) + precision * unit.c,
            rows=unit.rows,
        )

    def _precision(self, theta: Eta) -> Tensor:
        """1/σ² as (K, O)."""
        if self.noise == "task":
            return theta["noise_precision"]
        return theta["noise_level"].expand(self.sizes.num_tasks, -1)

    def update(self, summary: Moments, posterior: WeightPosterior) -> Moments:
        # E‖y_k − Φ_k w_k‖² = −2 E[ bᵀw − ½ wᵀAw − ½ yᵀy ] at unit noise
        trace = posterior.own_trace() / self._precision(self.eta)
        residual = -2 * posterior.expected_log_factor(summary.factor, trace)
        if self.noise == "shared":
            # σ² = ( ψ + Σ_k E‖y_k − Φ_k w_k‖² ) / ( 1 + Σ_k n_k )
            level = (1 + summary.count.sum(0)) / (self.noise_scatter + residual.sum(0))
            self._set_precision(level, level)
            return summary
        # λ_k = ( 2a − 2 + n_k ) / ( 2a/λ̄ + E‖y_k − Φ_k w_k‖² )
        a = _TASK_SHAPE
        by_task = (2 * a - 2 + summary.count) / (2 * a / self.noise_level + residual)
        # λ̄ minimises  ½ψλ̄ + a Σ_k λ_k/λ̄ + (a K − ½) log λ̄, whose root is positive
        slope = a * len(by_task) - 0.5
        root = (slope**2 + 2 * self.noise_scatter * a * by_task.sum(0)).sqrt()
        level = 2 * a * by_task.sum(0) / (slope + root)
        self._set_precision(level, by_task)
        return summary

    def conditional(self, f: Tensor, task: Tensor, theta: Eta) -> Distribution:
        level = theta["noise_level"].expand(len(task), -1)
        if self.noise == "task":
            known = (task >= 0)[:, None]
            level = torch.where(known, theta["noise_precision"][task.clamp(min=0)], level)
        return torch.distributions.Normal(f, level.rsqrt()[:, None], validate_args=False)

    def expected_log_prob(self, rows: Rows, mean: Tensor, variance: Tensor, theta: Eta) -> Tensor:
        # log N(y; mean, σ²) − ½ variance/σ²
        law = self.conditional(mean, rows.task, theta)
        values = law.log_prob(rows.y[:, None]) - 0.5 * variance / law.variance
        return torch.einsum("nt,njt->nj", rows.weight, values)

    def predictive(
        self, log_weights: Tensor, mean: Tensor, variance: Tensor, task: Tensor
    ) -> tuple[Tensor, Distribution]:
        law = self.conditional(mean, task, self.eta)
        std = (variance + law.variance).sqrt()
        return log_weights, torch.distributions.Normal(mean, std, validate_args=False)
