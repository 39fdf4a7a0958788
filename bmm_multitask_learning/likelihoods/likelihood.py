"""What a likelihood is: rows in, Gaussian statistics and predictive distributions out."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from ..hyperparameters import Eta, ProbabilisticModule
from ..places import Places
from ..posterior import WeightPosterior
from ..precision import Precision, RowPrecision
from ..processes import all_reduce_max, all_reduce_sum, num_processes, sum_before
from ..sizes import Sizes
from ..statistics import RowBlocks, TaskStatistics, make_blocks, task_sum

_NODES = 32
# Tasks with no more rows than this share of the features are conditioned by their rows: measured,
# from 32 features on it is 1.2 to 1.6 times as fast at a half, and even at three quarters.
_ROWS_PER_FEATURE = 0.5


@dataclasses.dataclass(frozen=True)
class Rows:
    """Observed rows of a family of tasks, as a likelihood sees them.

    Args:
        phi: (N, D) features.
        y: (N, T) targets; whatever stands where `weight` is 0 is not read.
        weight: (N, T) row weights, 0 where a target is not observed.
        task: (N,) task index.
        blocks: the rows laid out by task.
        laid_out: (K, 1, n, D) features by task, where precisions are to be held as rows.
        shared: whether these are one process's share of the rows, so that what is added up over
            rows is added up over processes too; see `processes`.
    """

    phi: Tensor
    y: Tensor
    weight: Tensor
    task: Tensor
    blocks: RowBlocks
    laid_out: Tensor | None = None
    shared: bool = False

    @classmethod
    def from_targets(
        cls,
        phi: Tensor,
        y: Tensor,
        weight: Tensor | None,
        task: Tensor,
        num_tasks: int,
        blocks: RowBlocks | None = None,
    ) -> Rows:
        """NaN in `y` (N,) or (N, T) means "not observed"; `blocks` of the same rows are reused.

        Features (N, W, D) are those of words, with targets (N, W): each word with one is a row.
        """
        if phi.ndim == 3:
            words = Places.labelled(phi, y)
            phi, y, task = words.among(phi), words.among(y), task[words.text]
            weight = None if weight is None else weight[words.text]
        y = (y[:, None] if y.ndim == 1 else y).to(phi.dtype)
        observed = ~y.isnan()
        w = observed.to(phi.dtype) if weight is None else observed * weight.to(phi.dtype)[:, None]
        if blocks is None:
            blocks = make_blocks(task, num_tasks, phi.shape[1])
        return cls(phi, torch.where(observed, y, 0.0), w, task, blocks)

    @property
    def num_tasks(self) -> int:
        """K."""
        return self.blocks.num_tasks

    def in_dual_form(self) -> Rows:
        """The same rows; where tasks have so few that it is cheaper, precisions hold rows."""
        longest = self.blocks.index.shape[1]
        single = len(self.blocks.task.unique()) == len(self.blocks.task)
        # rows of other processes are not here to be held
        whole = not self.shared or num_processes() == 1
        if not (whole and single and longest <= _ROWS_PER_FEATURE * self.phi.shape[1]):
            return self
        return dataclasses.replace(self, laid_out=self.blocks.by_task(self.phi)[:, None])

    def moments(self, weight: Tensor | None, target: Tensor) -> tuple[Precision, Tensor]:
        """See `RowBlocks.moments`."""
        if self.laid_out is None:
            square, linear = self.blocks.moments(self.phi, weight, target)
            return self._added(square), self._added(linear)
        if weight is None:
            weight = torch.ones_like(self.phi[:, :1])
        linear = self.blocks.by_task(target).mT @ self.laid_out[:, 0]
        return RowPrecision(self.laid_out, self.blocks.by_task(weight).mT), linear

    def sum_by_task(self, value: Tensor) -> Tensor:
        """The sum of (N, ...) values within each task: (K, ...)."""
        return self.sum_within(value, self.task, self.num_tasks)

    def sum_within(self, value: Tensor, cell: Tensor, num_cells: int) -> Tensor:
        """The sum of (N, ...) values within each cell, by the cell (N,) of each row."""
        return self._added(task_sum(value, cell, num_cells))

    def sum(self, value: Tensor) -> Tensor:
        """The sum of (N, ...) values over all rows."""
        return self._added(value.sum(0))

    def max(self, value: Tensor) -> Tensor:
        """The largest of all values."""
        return all_reduce_max(value.max()) if self.shared else value.max()

    def before(self, count: Tensor) -> Tensor:
        """The part of a count (K,) that rows of processes before this one have."""
        return sum_before(count) if self.shared else torch.zeros_like(count)

    def _added(self, value: Tensor) -> Tensor:
        return all_reduce_sum(value) if self.shared else value


class Likelihood(ProbabilisticModule):
    r"""$p(y_n \mid f_n, \theta)$ for latents $f_n = \phi_n^\top w_{task(n)}$, (N, O).

    `QuadraticLikelihood` adds what the closed-form engine needs.
    """

    sizes: Sizes

    classes: bool = False
    """Whether targets are classes, so that predictions are probabilities."""
    exact: bool = False
    """Whether the likelihood is a Gaussian factor of the latents, without a bound."""
    location_scale: bool = False
    """Whether targets in other units, a + b y, are the same model with other latents and scale."""

    def num_outputs(self, y: Tensor) -> int:
        """O, the number of weight vectors a task needs for targets `y`."""
        return 1 if y.ndim == 1 else y.shape[1]

    @abstractmethod
    def check(self, y: Tensor) -> None:
        """Raise a ValueError unless the observed targets (N,) or (N, T) lie in the support."""

    def build(self, sizes: Sizes, like: Tensor) -> None:
        """Register every tensor, eagerly."""
        self.sizes = sizes
        self.register_hyperparameters(like)

    def grow(self, sizes: Sizes) -> None:
        """Make room for tasks outside the fit, which come after those in it."""
        self.sizes = sizes

    @abstractmethod
    def register_hyperparameters(self, like: Tensor) -> None:
        r"""Register a buffer for each site of `hyperprior`, at any valid value."""

    @abstractmethod
    def initialise(self, rows: Rows) -> None:
        r"""Set the scale of the hyperprior and a first $\theta$ from data."""

    def first_latent(self, rows: Rows) -> Tensor:
        """Latents (N, O) near which each row's likelihood has its mass, where a fit may start.

        Newton steps from there do not overshoot. By default 0, which suits bounded curvature.
        """
        return rows.phi.new_zeros(len(rows.phi), self.sizes.num_outputs)

    @abstractmethod
    def conditional(self, f: Tensor, task: Tensor, theta: Eta) -> Distribution:
        r"""$p(y_n \mid f_n, \theta)$ as a distribution.

        Args:
            f: (N, J, O) latents, J values for each row.
            task: (N,) task index of each row; -1 for a task outside the fit.
            theta: hyperparameters.
        """

    def probability(self, f: Tensor, theta: Eta) -> Tensor:
        """Probabilities of the classes at latents f (..., O), where targets are classes."""
        raise NotImplementedError(f"{type(self).__name__} is no likelihood of classes.")

    def log_prob(self, rows: Rows, f: Tensor, theta: Eta) -> Tensor:
        """Weighted log likelihood of each row at latents f (N, J, O), (N, J)."""
        log_prob = self.conditional(f, rows.task, theta).log_prob(rows.y[:, None])
        return torch.einsum("nt,njt->nj", rows.weight, log_prob)

    def expected_log_prob(self, rows: Rows, mean: Tensor, variance: Tensor, theta: Eta) -> Tensor:
        r"""$E[\log p(y_n \mid f_n)]$ for $f_n \sim N(\text{mean}, \text{variance})$, (N, J).

        By Gauss-Hermite quadrature unless a subclass knows the integral.

        Args:
            rows: targets.
            mean, variance: (N, J, O), one Gaussian for each of J components.
        """
        N, J, O = mean.shape
        node, weight = hermite(mean)
        f = mean[:, :, None] + variance.sqrt()[:, :, None] * node[:, None]
        values = self.log_prob(rows, f.reshape(N, -1, O), theta)
        return values.reshape(N, J, -1) @ weight

    def predictive(
        self, log_weights: Tensor, mean: Tensor, variance: Tensor, task: Tensor
    ) -> tuple[Tensor, Distribution]:
        r"""$p(y_n)$ as a mixture of J conditionals: log weights (N, J) and batch shape (N, J, O).

        The mixture over latents is made finite by Gauss-Hermite nodes.

        Args:
            log_weights: (N, C) of the posterior's components.
            mean, variance: (N, C, O) of the latents.
            task: (N,) task index, -1 for tasks outside the fit.
        """
        node, weight = hermite(mean)
        f = mean[:, :, None] + variance.sqrt()[:, :, None] * node[:, None]
        log_weights = log_weights[..., None] + weight.log()
        return log_weights.flatten(1), self.conditional(f.flatten(1, 2), task, self.eta)


Summary = TypeVar("Summary")


class QuadraticLikelihood(Likelihood, Generic[Summary]):
    """A likelihood that is a Gaussian factor of the latents, exactly or by a lower bound."""

    @abstractmethod
    def summarise(self, rows: Rows) -> Summary:
        """What later calls need of the rows."""

    @abstractmethod
    def refresh(self, summary: Summary, rows: Rows) -> Summary:
        """The summary of the same rows with other features; local parameters stay."""

    @abstractmethod
    def statistics(self, summary: Summary, theta: Eta) -> TaskStatistics:
        r"""The factor of each task at hyperparameters $\theta$ and the local parameters."""

    @abstractmethod
    def update(self, summary: Summary, posterior: WeightPosterior) -> Summary:
        """Move hyperparameters and local parameters so that the bound does not fall.

        Returns:
            the summary with the new local parameters.
        """


def no_classes(y: Tensor, num_classes: int) -> Tensor:
    """The observed targets that are none of 0 .. O-1."""
    observed = y[~y.isnan()]
    return observed[(observed != observed.round()) | (observed < 0) | (observed >= num_classes)]


def target_variance(rows: Rows) -> Tensor:
    """Variance (T,) of the observed targets; of constant ones, a share of their size, or 1."""
    count = rows.sum(rows.weight).clamp(min=1)
    mean = rows.sum(rows.weight * rows.y) / count
    variance = rows.sum(rows.weight * (rows.y - mean).square()) / count
    fallback = torch.where(mean == 0, 1.0, mean.square())
    return torch.where(variance > 1e-16 * fallback, variance, 1e-4 * fallback)


def hermite(like: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights (Q,) of the expectation under a standard normal."""
    node, weight = np.polynomial.hermite_e.hermegauss(_NODES)
    weight = weight / weight.sum()
    return like.new_tensor(node), like.new_tensor(weight)
