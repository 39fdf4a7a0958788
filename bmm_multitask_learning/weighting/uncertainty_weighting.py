"""Kendall's weighting by uncertainty: one precision for each head, trained with the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from .loss_weighting import Kind, LossWeighting, check_losses, powers


@final
class UncertaintyWeighting(LossWeighting):
    r"""Precisions as parameters: a point estimate of the noise of each head.

    $$\sum_j \lambda_j L_j - \nu_j \log \lambda_j$$

    For a mean squared error $\nu = \tfrac12$ and $\lambda = 1 / 2\sigma^2$, which is
    $L / 2\sigma^2 + \log \sigma$ up to a constant; for a mean absolute error $\nu = 1$ and
    $\lambda$ is the inverse of a Laplace's scale. The minimum over $\lambda$ is
    $\hat\lambda_j = \nu_j / L_j$. The objective falls below 0 once $\lambda$ is large: that is no
    fault. Give `parameters()` to the optimiser, without weight decay.

    Args:
        kinds: what the loss of each head is: "squared", "absolute" or "cross_entropy".

    Raises:
        ValueError: for an unknown kind, or losses that are negative.

    Example:
        >>> weighting = UncertaintyWeighting(["squared", "cross_entropy"])
        >>> weighting.weights(torch.tensor([2.0, 0.3])).tolist()
        [1.0, 1.0]

    References:
        Kendall, Gal and Cipolla, Multi-task learning using uncertainty to weigh losses for scene
        geometry and semantics (2018), equations 7 and 10.
    """

    power: Tensor

    def __init__(self, kinds: Sequence[Kind]) -> None:
        super().__init__()
        self.register_buffer("power", powers(kinds))
        self.log_precision = nn.Parameter(torch.zeros(len(kinds), dtype=torch.float64))

    def weights(self, losses: Tensor) -> Tensor:
        check_losses(losses.detach(), len(self.power))
        return self.log_precision.exp().to(losses)

    def forward(self, losses: Tensor) -> Tensor:
        r"""The objective $\sum_j \lambda_j L_j - \nu_j \log \lambda_j$ of losses (J,)."""
        return super().forward(losses) - (self.power * self.log_precision).sum().to(losses)
