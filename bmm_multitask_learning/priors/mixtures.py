r"""The four forms of a prior that is mixed from references: their laws, as Gaussians or a mixture.

References:
    Shen, Zhen, Worring and Shao, Variational multi-task learning with Gumbel-softmax priors
    (2021), equation 5.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..posterior import WeightPosterior


class References(NamedTuple):
    """Frozen posteriors of the tasks.

    mean: (K, O, D); of no tasks before the first refresh.
    variance: (K, O, D).
    """

    mean: Tensor
    variance: Tensor


class Law(NamedTuple):
    """A mixture of C Gaussians for each task's weights.

    log_weights: (K, C).
    loc: (K, C, O, D).
    variance: (K, C, O, D).
    """

    log_weights: Tensor
    loc: Tensor
    variance: Tensor


def moment_matched(share: Tensor, loc: Tensor, variance: Tensor) -> Law:
    r"""The Gaussian with the mixture's own mean and variance.

    $$m_t = \sum_i \alpha_{ti}\mu_{ti}, \qquad
      v_t = \sum_i \alpha_{ti}\big(\sigma_{ti}^2 + (\mu_{ti} - m_t)^2\big)$$

    Args:
        share: (K, C) $\alpha$.
        loc: (K, C, O, D) $\mu$.
        variance: (K, C, O, D) $\sigma^2$.

    Example:
        >>> third, one = torch.full((1, 3), 1 / 3), torch.ones(1, 3, 1, 1)
        >>> means = torch.tensor([-2.0, 0.0, 2.0]).reshape(1, 3, 1, 1)
        >>> round(float(moment_matched(third, means, one).variance), 3)
        3.667
    """
    mean = _average(share, loc)
    # v = Σ α ( σ² + (μ − m)² )
    return gaussian(mean, _average(share, variance + (loc - mean).square()))


def log_linear(share: Tensor, loc: Tensor, variance: Tensor) -> Law:
    r"""The normalised geometric mean $\prod_i q_i^{\alpha_{ti}}$: precisions are averaged."""
    precision = _average(share, 1 / variance)
    return gaussian(_average(share, loc / variance) / precision, 1 / precision)


def exact(share: Tensor, loc: Tensor, variance: Tensor) -> Law:
    """The mixture itself."""
    return Law(share.log(), loc, variance)


def weighted_sum(share: Tensor, loc: Tensor, variance: Tensor) -> Law:
    r"""The law of $\sum_i \alpha_{ti} w_i$, of variance $\sum_i \alpha_{ti}^2\sigma_i^2$.

    What the paper's released code computes. It is narrower than the mixture, and the narrower the
    more tasks there are.
    """
    return gaussian(_average(share, loc), _average(share.square(), variance))


def _average(share: Tensor, value: Tensor) -> Tensor:
    return torch.einsum("kc,kcod->kod", share, value)[:, None]


def gaussian(loc: Tensor, variance: Tensor) -> Law:
    """One Gaussian (K, 1, O, D) a task, as a law."""
    return Law(loc.new_zeros(loc.shape[:2]), loc, variance)


def moments(posterior: WeightPosterior) -> References:
    """Mean and variance of each weight."""
    share = posterior.log_weights.exp()
    law = moment_matched(share, posterior.means, posterior.roots.variance())
    return References(law.loc[:, 0], law.variance[:, 0])


MIXTURES: dict[str, Callable[[Tensor, Tensor, Tensor], Law]] = {
    "moment_matched": moment_matched,
    "log_linear": log_linear,
    "exact": exact,
    "weighted_sum": weighted_sum,
}
