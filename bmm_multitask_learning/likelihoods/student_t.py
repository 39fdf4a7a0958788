"""Heavy-tailed noise, by SVI."""

from __future__ import annotations

from typing import final

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution

from ..distributions import StudentTWithCdf
from ..hyperparameters import Eta
from .likelihood import Likelihood, Rows, target_variance


@final
class StudentT(Likelihood):
    r"""$y_n \sim t_\nu(f_n, \sigma)$ with $\sigma$ inferred; fitted by `SVI` or `NUTS`.

    $1/\sigma^2 \sim \mathrm{Gamma}(3/2, \psi/2)$ with $\psi$ a thousandth of the
    targets' variance.

    Args:
        df: degrees of freedom $\nu$, above 2 so that predictions have a standard deviation.

    Raises:
        ValueError: for `df` of 2 or less.
    """

    noise_scatter: Tensor
    noise_precision: Tensor

    location_scale = True

    def __init__(self, df: float = 4.0) -> None:
        super().__init__()
        if not df > 2:
            raise ValueError(f"df must be above 2, so that the variance exists; got {df}.")
        self.df = df

    def check(self, y: Tensor) -> None:
        """Every real number is allowed; TaskData has refused infinite ones."""

    def register_hyperparameters(self, like: Tensor) -> None:
        O = self.sizes.num_outputs
        self.register_buffer("noise_scatter", like.new_ones(O))
        self.register_buffer("noise_precision", like.new_ones(O))

    def hyperprior(self) -> Eta:
        half = torch.full_like(self.noise_scatter, 0.5)
        law = dist.Gamma(3 * half, half * self.noise_scatter).to_event(1)
        return {"noise_precision": pyro.sample("noise_precision", law)}

    def initialise(self, rows: Rows) -> None:
        variance = target_variance(rows)
        self.register_buffer("noise_scatter", 1e-3 * variance)
        self.set_eta({"noise_precision": 2 / variance})

    def first_latent(self, rows: Rows) -> Tensor:
        return rows.y

    def conditional(self, f: Tensor, task: Tensor, theta: Eta) -> Distribution:
        scale = theta["noise_precision"].rsqrt()
        return StudentTWithCdf(self.df, f, scale, validate_args=False)
