"""Backbones whose parameters have a prior, which enters the bound."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class ParameterPrior(nn.Module, ABC):
    """A backbone, or a part of one, whose parameters have a prior.

    `SVI` adds `log_prior` to the bound once a step, whatever the rows of the step are.
    """

    @abstractmethod
    def log_prior(self) -> Tensor:
        r"""$\log p(\theta)$ of the parameters up to a constant, a scalar.

        Of parameters with a law q of their own, $-KL(q(\theta) \,\|\, p(\theta))$.
        """
