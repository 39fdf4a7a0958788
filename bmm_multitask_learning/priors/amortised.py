r"""A network that tells the weights of a class from the mean feature of its rows.

$$q(w_{tc}) \propto p(w_{tc} \mid \eta)\; N\big(w_{tc};\, m(h_{tc}),\,
  \mathrm{diag}\,s^2(h_{tc}) / n_{tc}\big), \qquad
  h_{tc} = \tfrac{1}{n_{tc}} \sum_{n \in tc} \phi_n$$

One network (m, s) serves all tasks and classes. In the paper it gives $q(w_{tc})$ itself; here it
gives the factor of the rows, which the prior completes as in every other guide: a class without
rows has the prior's law, and where the prior is a diagonal Gaussian so is q.

References:
    Shen, Zhen, Worring and Shao, Variational multi-task learning with Gumbel-softmax priors
    (2021): the amortised classifier of VMTL-AC.
"""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor, nn

from ..statistics import TaskStatistics


@final
class AmortisedClassifier(nn.Module):
    r"""Factors $N(w_{tc}; m(h_{tc}), \mathrm{diag}\,s^2(h_{tc}) / n_{tc})$ of tasks and classes.

    In units of the scale $\Psi^{1/2}$ of the weights and $(D\Psi)^{-1/2}$ of the features, so that
    other units of the features are the same network. At the start m = 0 and $s^2 = D$, what rows
    say of weights whose signal has the noise's variance.

    Args:
        num_features: D.
        width: of the hidden layer.
        like: gives dtype and device.

    Example:
        >>> classifier = AmortisedClassifier(3, 8, torch.zeros((), dtype=torch.float64))
        >>> classifier.reset(torch.Generator().manual_seed(0))
        >>> mean, count = torch.zeros(4, 2, 3).double(), torch.ones(4, 2).double()
        >>> classifier(mean, count, torch.ones(2, 3).double()).b.shape
        torch.Size([4, 2, 3])

    References:
        Shen, Zhen, Worring and Shao, Variational multi-task learning with Gumbel-softmax priors
        (2021).
    """

    def __init__(self, num_features: int, width: int, like: Tensor) -> None:
        super().__init__()
        self.hidden = nn.Parameter(like.new_zeros(width, num_features + 1))
        self.loc = nn.Parameter(like.new_zeros(num_features, width + 1))
        self.log_scale = nn.Parameter(like.new_zeros(num_features, width + 1))

    def reset(self, generator: torch.Generator) -> None:
        """Draw the hidden layer anew, uniform in one over the root of its inputs."""
        with torch.no_grad():
            size = self.hidden.shape
            draw = torch.rand(size, generator=generator, dtype=self.hidden.dtype)
            self.hidden.copy_((2 * draw - 1) / math.sqrt(size[1]))
            self.loc.zero_()
            self.log_scale.zero_()

    def forward(self, mean: Tensor, count: Tensor, scatter: Tensor) -> TaskStatistics:
        r"""The factors, with $n_{tc} = 0$ a factor of 1.

        Args:
            mean: (K, O, D) $h$; zero where there are no rows.
            count: (K, O) $n$.
            scatter: (O, D) $\Psi$.
        """
        D = mean.shape[-1]
        hidden = _affine(self.hidden, mean * (D * scatter).sqrt()).tanh()
        m = scatter.sqrt() * _affine(self.loc, hidden)
        variance = D * scatter * (2 * _affine(self.log_scale, hidden)).exp()
        precision = count[..., None] / variance
        return TaskStatistics(
            torch.diag_embed(precision), precision * m, torch.zeros_like(count), count.sum(-1)
        )


def _affine(weight: Tensor, x: Tensor) -> Tensor:
    """Weights (B, A + 1), the last column a constant's, at (..., A)."""
    return x @ weight[:, :-1].mT + weight[:, -1]
