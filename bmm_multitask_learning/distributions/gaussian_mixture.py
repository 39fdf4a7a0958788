"""Mixtures of Gaussians that gradient samplers can use."""

from __future__ import annotations

from typing import ClassVar

import pyro.distributions as dist
from torch.distributions import constraints


class GaussianMixture(dist.MixtureSameFamily):  # type: ignore[misc]
    """Mixture of matrix-valued Gaussians, event shape (O, D), over all real matrices.

    torch declares the support of a mixture through its components, in a form that no sampler knows
    how to map to unconstrained space; that of Gaussians is the whole space.

    Example:
        >>> import torch
        >>> component = dist.Normal(torch.zeros(3, 2, 4), 1.0).to_event(2)
        >>> GaussianMixture(dist.Categorical(logits=torch.zeros(3)), component).event_shape
        torch.Size([2, 4])
    """

    support: ClassVar[constraints.Constraint] = constraints.independent(constraints.real, 2)
