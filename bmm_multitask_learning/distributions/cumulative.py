"""Distributions of torch with the cumulative distribution function that it leaves out."""

from __future__ import annotations

from typing import final

import torch
from scipy.special import stdtr
from torch import Tensor


@final
class PoissonWithCdf(torch.distributions.Poisson):
    r"""$P(y \le k) = Q(\lfloor k \rfloor + 1, \lambda)$, the regularised upper gamma function.

    Example:
        >>> PoissonWithCdf(torch.tensor(2.0)).cdf(torch.tensor([-1.0, 0.0, 1.5])).numpy().round(3)
        array([0.   , 0.135, 0.406], dtype=float32)
    """

    def cdf(self, value: Tensor) -> Tensor:
        """Probability of at most `value`."""
        count = value.floor()
        inside = torch.special.gammaincc(count.clamp(min=0) + 1, self.rate)
        return torch.where(count < 0, 0.0, inside)


@final
class StudentTWithCdf(torch.distributions.StudentT):
    """Student's t with SciPy's cumulative distribution function; no gradient flows through it.

    Example:
        >>> StudentTWithCdf(3.0).cdf(torch.tensor([0.0, 2.353])).numpy().round(3)
        array([0.5 , 0.95], dtype=float32)
    """

    def cdf(self, value: Tensor) -> Tensor:
        """Probability of at most `value`."""
        z = (value - self.loc) / self.scale
        df = self.df.expand(z.shape).detach().cpu().numpy()
        return torch.as_tensor(stdtr(df, z.detach().cpu().numpy())).to(z)
