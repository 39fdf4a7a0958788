"""Counts, by SVI."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor
from torch.distributions import Distribution

from ..distributions import PoissonWithCdf
from ..hyperparameters import Eta
from .likelihood import Likelihood, Rows


@final
class Poisson(Likelihood):
    r"""$y_n \sim \mathrm{Poisson}(e^{f_n})$; fitted by `SVI` or `NUTS`.

    $E[\log p(y)] = y\mu - e^{\mu + v/2} - \log y!$ for $f \sim N(\mu, v)$ in closed form.
    """

    def check(self, y: Tensor) -> None:
        """Raise a ValueError unless every observed target is a count."""
        observed = y[~y.isnan()]
        wrong = observed[(observed < 0) | (observed != observed.round())]
        if len(wrong):
            raise ValueError(
                f"Poisson targets must be counts 0, 1, 2, ...; got {wrong[0].item():g}. "
                "Use Gaussian or StudentT for real-valued targets."
            )

    def register_hyperparameters(self, like: Tensor) -> None:
        """There are none."""

    def hyperprior(self) -> Eta:
        return {}

    def initialise(self, rows: Rows) -> None:
        """There is nothing to set."""

    def first_latent(self, rows: Rows) -> Tensor:
        return (rows.y + 0.5).log()

    def conditional(self, f: Tensor, task: Tensor, theta: Eta) -> Distribution:
        return PoissonWithCdf(f.exp(), validate_args=False)

    def expected_log_prob(self, rows: Rows, mean: Tensor, variance: Tensor, theta: Eta) -> Tensor:
        y = rows.y[:, None]
        values = y * mean - (mean + 0.5 * variance).exp() - torch.lgamma(y + 1)
        return torch.einsum("nt,njt->nj", rows.weight, values)
