"""Dynamic weight average: more weight for losses that fall slowly."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from .loss_weighting import LossWeighting


@final
class DynamicWeightAverage(LossWeighting):
    r"""Weights by how slowly each loss falls from one epoch to the next.

    $$w_j = J\,\mathrm{softmax}_j\big(r_j / T\big), \qquad
      r_j = \bar L_j(t - 1) / \bar L_j(t - 2)$$

    with $\bar L_j(t)$ the mean loss of head j over epoch t. Weights are 1 in the first two epochs,
    and $r_j$ is 1 for a head that was not seen in one of the last two.

    Args:
        num_losses: J.
        period: steps of an epoch.
        temperature: T; larger is more even.

    Raises:
        ValueError: for sizes below 1 or a temperature that is not positive.

    Example:
        >>> weighting = DynamicWeightAverage(2, period=1)
        >>> for losses in ([4.0, 4.0], [1.0, 4.0]):
        ...     weighting.update(torch.tensor(losses), torch.tensor([8, 8]))
        >>> weighting.weights(torch.tensor([1.0, 4.0]))
        tensor([0.8147, 1.1853])

    References:
        Liu, Johns and Davison, End-to-end multi-task learning with attention (2019), equation 7.
    """

    total: Tensor
    count: Tensor
    means: Tensor
    steps: Tensor

    def __init__(self, num_losses: int, period: int, *, temperature: float = 2.0) -> None:
        super().__init__()
        if num_losses < 1 or period < 1 or not temperature > 0:
            raise ValueError(
                "num_losses and period must be at least 1 and temperature positive; got "
                f"{num_losses}, {period} and {temperature}."
            )
        self.period, self.temperature = period, temperature
        zero = torch.zeros(num_losses, dtype=torch.float64)
        self.register_buffer("total", zero)  # of losses and of targets in this epoch
        self.register_buffer("count", zero.clone())
        # of the last two epochs, the older first; NaN: not seen
        self.register_buffer("means", torch.full((2, num_losses), torch.nan, dtype=torch.float64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def weights(self, losses: Tensor) -> Tensor:
        rate = self.means[1] / self.means[0]
        rate = torch.where(rate.isfinite(), rate, 1.0)
        return (len(rate) * torch.softmax(rate / self.temperature, 0)).to(losses)

    def update(self, losses: Tensor, counts: Tensor) -> None:
        self.total += losses * counts
        self.count += counts
        self.steps += 1
        if int(self.steps) % self.period == 0:
            self.means = torch.stack([self.means[1], self.total / self.count])
            self.total.zero_()
            self.count.zero_()
