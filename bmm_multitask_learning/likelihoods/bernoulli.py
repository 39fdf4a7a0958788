"""Binary targets through the logistic function."""

from __future__ import annotations

import dataclasses
from typing import final

import torch
from torch import Tensor
from torch.distributions import Distribution

from ..hyperparameters import Eta
from ..posterior import WeightPosterior
from ..statistics import TaskStatistics
from .likelihood import QuadraticLikelihood, Rows


@dataclasses.dataclass(frozen=True)
class TiltedRows:
    """Rows with the local parameter ξ (N, O) of each target's Pólya-Gamma variable."""

    rows: Rows
    xi: Tensor


def polya_gamma_mean(xi: Tensor) -> Tensor:
    r"""$E[\omega] = \tanh(\xi/2) / (2\xi)$ for $\omega \sim PG(1, \xi)$, and 1/4 at 0."""
    small = xi.abs() < 1e-4
    safe = torch.where(small, 1.0, xi)
    return torch.where(small, 0.25 - xi.square() / 48, torch.tanh(0.5 * safe) / (2 * safe))


def logistic_constant(xi: Tensor) -> Tensor:
    r"""$\log\sigma(\xi) - \xi/2 + \omega(\xi)\xi^2/2$: the part of the bound without f."""
    return torch.nn.functional.logsigmoid(xi) - 0.5 * xi + 0.5 * polya_gamma_mean(xi) * xi.square()


@final
class Bernoulli(QuadraticLikelihood[TiltedRows]):
    r"""$p(y_n = 1) = \sigma(f_n)$, the logistic function; several targets are independent labels.

    The closed-form engine starts by the bound, with $\omega = E[PG(1, \xi)]$ and
    $\xi_n^2 = E[f_n^2]$,
    $$\log\sigma((2y-1)f) \ge (y - \tfrac12) f - \tfrac12 \omega f^2 + \log\sigma(\xi)
      - \tfrac\xi2 + \tfrac12\omega\xi^2,$$
    and then climbs the ELBO of the best Gaussian factors (`engines.elbo_ascent`).

    References:
        Polson, Scott and Windle, Bayesian inference for logistic models using Pólya-Gamma latent
        variables (2013). Jaakkola and Jordan, Bayesian parameter estimation via variational
        methods (2000), eq. 5: the same bound.

    Example:
        >>> polya_gamma_mean(torch.tensor(0.0))
        tensor(0.2500)
    """

    classes = True

    def check(self, y: Tensor) -> None:
        """Raise a ValueError unless every observed target is 0 or 1."""
        observed = y[~y.isnan()]
        wrong = observed[(observed != 0) & (observed != 1)]
        if len(wrong):
            raise ValueError(
                f"Bernoulli targets must be 0 or 1 (NaN where not observed); got "
                f"{wrong[0].item():g}. Encode the classes first, or use MultitaskClassifier."
            )

    def register_hyperparameters(self, like: Tensor) -> None:
        """There are none."""

    def hyperprior(self) -> Eta:
        return {}

    def initialise(self, rows: Rows) -> None:
        """There is nothing to set."""

    def summarise(self, rows: Rows) -> TiltedRows:
        return TiltedRows(rows, torch.zeros_like(rows.y))

    def refresh(self, summary: TiltedRows, rows: Rows) -> TiltedRows:
        return dataclasses.replace(summary, rows=rows)

    def statistics(self, summary: TiltedRows, theta: Eta) -> TaskStatistics:
        rows, xi = summary.rows, summary.xi
        # A = Σ ω φφᵀ,  b = Σ (y − ½) φ
        A, b = rows.moments(rows.weight * polya_gamma_mean(xi), rows.weight * (rows.y - 0.5))
        return TaskStatistics(
            precision=A,
            b=b,
            c=rows.sum_by_task(rows.weight * logistic_constant(xi)),
            rows=rows.sum_by_task(rows.weight.mean(-1)),
        )

    def update(self, summary: TiltedRows, posterior: WeightPosterior) -> TiltedRows:
        # ξ_n² = E[f_n²]
        mean, variance = posterior.latent(summary.rows.phi, summary.rows.blocks)
        weight = posterior.log_weights.exp()[summary.rows.task]
        square = torch.einsum("nc,nco->no", weight, mean.square() + variance)
        return dataclasses.replace(summary, xi=square.sqrt())

    def conditional(self, f: Tensor, task: Tensor, theta: Eta) -> Distribution:
        return torch.distributions.Bernoulli(logits=f, validate_args=False)

    def probability(self, f: Tensor, theta: Eta) -> Tensor:
        return f.sigmoid()
