"""Classes through the softmax function."""

from __future__ import annotations

import dataclasses
from typing import final

import torch
from torch import Tensor
from torch.distributions import Distribution

from ..hyperparameters import Eta
from ..posterior import WeightPosterior
from ..statistics import TaskStatistics
from .bernoulli import logistic_constant, polya_gamma_mean
from .likelihood import QuadraticLikelihood, Rows, no_classes

# Latent draws of a predictive probability or of an expected log likelihood: the same
# quasi-random points for every row.
_DRAWS = 256


@dataclasses.dataclass(frozen=True)
class TiltedClasses:
    """Rows with one-hot targets (N, O) and the bound's local parameters ξ (N, O) and α (N, 1)."""

    rows: Rows
    one_hot: Tensor
    xi: Tensor
    alpha: Tensor


@final
class Categorical(QuadraticLikelihood[TiltedClasses]):
    r"""$p(y_n = c) \propto e^{f_{nc}}$, one latent and one weight vector a class.

    The closed-form engine starts by Bouchard's bound with the Pólya-Gamma bound of each term,
    $$\log \sum_c e^{f_c} \le \alpha + \sum_c \log(1 + e^{f_c - \alpha}),$$
    which leaves the classes' weights independent given the hyperparameters. The bound is loose for
    uncertain latents, so that weights and hyperparameters are then found by the best Gaussian
    factors (`engines.elbo_ascent`), the classes' weights independent in them.

    Args:
        num_classes: O, at least 2. Targets are 0 .. O-1.

    Raises:
        ValueError: for fewer than 2 classes.

    References:
        Bouchard, Efficient bounds for the softmax function and applications to approximate
        inference in hybrid models (2007).
    """

    classes = True

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2; got {num_classes}.")
        self.num_classes = num_classes

    def num_outputs(self, y: Tensor) -> int:
        if y.ndim > 1:
            raise ValueError(
                f"Categorical takes one target a row, y of shape (N,); got {tuple(y.shape)}. "
                "Give class numbers, not one-hot rows; for independent labels use Bernoulli."
            )
        return self.num_classes

    def check(self, y: Tensor) -> None:
        """Raise a ValueError unless every observed target is one of 0 .. O-1."""
        wrong = no_classes(y, self.num_classes)
        if len(wrong):
            raise ValueError(
                f"Categorical(num_classes={self.num_classes}) targets must be whole numbers "
                f"0..{self.num_classes - 1}; got {wrong[0].item():g}. Encode the classes first, "
                "or use MultitaskClassifier, which does it."
            )

    def class_means(self, rows: Rows) -> tuple[Tensor, Tensor]:
        r"""$\tfrac{1}{n_{tc}}\sum_{n \in tc}\phi_n$, (K, O, D), and $n_{tc}$, (K, O).

        Rows count by their weights; a class without rows has a mean of zeros.
        """
        K, O = rows.num_tasks, self.num_classes
        cell = rows.task * O + rows.y[:, 0].long()
        count = rows.sum_within(rows.weight[:, 0], cell, K * O)
        total = rows.sum_within(rows.weight * rows.phi, cell, K * O)
        mean = total / torch.where(count > 0, count, 1.0)[:, None]
        return mean.unflatten(0, (K, O)), count.unflatten(0, (K, O))

    def register_hyperparameters(self, like: Tensor) -> None:
        """There are none."""

    def hyperprior(self) -> Eta:
        return {}

    def initialise(self, rows: Rows) -> None:
        """There is nothing to set."""

    def summarise(self, rows: Rows) -> TiltedClasses:
        one_hot = torch.nn.functional.one_hot(rows.y[:, 0].long(), self.num_classes).to(
            rows.y.dtype
        )
        zero = torch.zeros_like(one_hot)
        # ξ = 0 and Bouchard's α at f = 0
        alpha = zero[:, :1] + (0.5 * self.num_classes - 1) / (0.25 * self.num_classes)
        return TiltedClasses(rows, one_hot, zero + alpha, alpha)

    def refresh(self, summary: TiltedClasses, rows: Rows) -> TiltedClasses:
        return dataclasses.replace(summary, rows=rows)

    def statistics(self, summary: TiltedClasses, theta: Eta) -> TaskStatistics:
        rows, xi, alpha = summary.rows, summary.xi, summary.alpha
        omega = polya_gamma_mean(xi)
        # −α − Σ_c log(1 + e^{f_c−α}) ≥ −α + Σ_c [ κ(ξ_c) − ½(f_c−α) − ½ω_c (f_c−α)² ]
        linear = summary.one_hot - 0.5 + omega * alpha
        constant = logistic_constant(xi) + 0.5 * alpha - 0.5 * omega * alpha.square()
        constant = constant - alpha / self.num_classes
        A, b = rows.moments(rows.weight * omega, rows.weight * linear)
        return TaskStatistics(
            precision=A,
            b=b,
            c=rows.sum_by_task(rows.weight * constant),
            rows=rows.sum_by_task(rows.weight[:, 0]),
        )

    def update(self, summary: TiltedClasses, posterior: WeightPosterior) -> TiltedClasses:
        mean, variance = posterior.latent(summary.rows.phi, summary.rows.blocks)
        weight = posterior.log_weights.exp()[summary.rows.task]
        first = torch.einsum("nc,nco->no", weight, mean)
        second = torch.einsum("nc,nco->no", weight, mean.square() + variance)
        # α = ( O/2 − 1 + Σ_c ω_c E f_c ) / Σ_c ω_c,  then  ξ_c² = E (f_c − α)²
        omega = polya_gamma_mean(summary.xi)
        alpha = 0.5 * self.num_classes - 1 + (omega * first).sum(-1, keepdim=True)
        alpha = alpha / omega.sum(-1, keepdim=True)
        square = second - 2 * alpha * first + alpha.square()
        return dataclasses.replace(summary, alpha=alpha, xi=square.clamp(min=0).sqrt())

    def conditional(self, f: Tensor, task: Tensor, theta: Eta) -> Distribution:
        return torch.distributions.Categorical(logits=f, validate_args=False)

    def probability(self, f: Tensor, theta: Eta) -> Tensor:
        return f.softmax(-1)

    def log_prob(self, rows: Rows, f: Tensor, theta: Eta) -> Tensor:
        log_prob = self.conditional(f, rows.task, theta).log_prob(rows.y)
        return rows.weight * log_prob

    def expected_log_prob(self, rows: Rows, mean: Tensor, variance: Tensor, theta: Eta) -> Tensor:
        node, std = self._nodes(mean), variance.sqrt()
        own = rows.y[:, 0].long()[:, None, None].expand(-1, mean.shape[1], 1)
        # E log p = E f_y − E log Σ_c exp f_c, both over the same points
        first = (mean + std * node.mean(0)).gather(-1, own)[..., 0]
        points = mean[..., None] + std[..., None] * node.T  # (N, J, O, S)
        normaliser = points.logsumexp(-2).mean(-1)
        return rows.weight * (first - normaliser)

    def predictive(
        self, log_weights: Tensor, mean: Tensor, variance: Tensor, task: Tensor
    ) -> tuple[Tensor, Distribution]:
        probability = self.probability(self._latent_draws(mean, variance), self.eta).mean(-2)
        return log_weights, torch.distributions.Categorical(probs=probability, validate_args=False)

    def _latent_draws(self, mean: Tensor, variance: Tensor) -> Tensor:
        """(N, J, S, O)."""
        return mean[..., None, :] + variance.sqrt()[..., None, :] * self._nodes(mean)

    def _nodes(self, like: Tensor) -> Tensor:
        """The same quasi-random points of a standard normal for every row: (S, O)."""
        engine = torch.quasirandom.SobolEngine(self.num_classes, scramble=True, seed=0)
        uniform = engine.draw(_DRAWS, dtype=torch.float64).clamp(1e-9, 1 - 1e-9)
        return torch.special.ndtri(uniform).to(like)
