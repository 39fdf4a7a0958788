"""Weights that stay: the baseline that other strategies have to beat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from .loss_weighting import LossWeighting


@final
class FixedWeights(LossWeighting):
    r"""$\sum_j w_j L_j$ with weights given once: all 1, or tuned on validation rows.

    Losses in different units want weights in their inverse: for squared errors of targets with
    variances $v_j$, $w_j = 1 / v_j$ is the same as to standardise the targets.

    Args:
        weights: (J,) non-negative numbers.

    Raises:
        ValueError: for weights that are negative, not finite or none.

    Example:
        >>> FixedWeights([1.0, 0.5])(torch.tensor([2.0, 4.0]))
        tensor(4.)
    """

    fixed: Tensor

    def __init__(self, weights: Sequence[float]) -> None:
        super().__init__()
        fixed = torch.as_tensor(weights, dtype=torch.float64)
        if fixed.ndim != 1 or not len(fixed) or not bool((fixed.isfinite() & (fixed >= 0)).all()):
            raise ValueError(f"weights must be finite numbers of at least 0; got {weights}.")
        self.register_buffer("fixed", fixed)

    def weights(self, losses: Tensor) -> Tensor:
        return self.fixed.to(losses)
