"""TorchJD's scalarizers and aggregators as weightings; the extra "gradients" has them."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn

from .loss_weighting import LossWeighting

if TYPE_CHECKING:
    from torchjd.aggregation import Aggregator
    from torchjd.scalarization import Scalarizer


@final
class Scalarized(LossWeighting):
    r"""A scalarizer $s$ of TorchJD: the objective is $s(L_1, \dots, L_J)$.

    Its weights are the derivatives $\partial s / \partial L_j$. What a scalarizer learns is in
    `parameters()`, for the optimiser. What TorchJD asks for after a step or an epoch, such as
    `scalarizer.step()` of DWA or `scalarizer.update(...)` of FAMO, is for the loop to call.

    Args:
        scalarizer: of `torchjd.scalarization`.

    Example:
        >>> from torchjd.scalarization import GeometricMean
        >>> Scalarized(GeometricMean())(torch.tensor([1.0, 4.0]))
        tensor(2.)
    """

    def __init__(self, scalarizer: Scalarizer) -> None:
        super().__init__()
        self.scalarizer = scalarizer

    def weights(self, losses: Tensor) -> Tensor:
        at = losses.detach().clone().requires_grad_()
        # some scalarizers remember every call; this one is only a look
        with torch.enable_grad():
            value = copy.deepcopy(self.scalarizer)(at)
        return torch.autograd.grad(value, at)[0]

    def forward(self, losses: Tensor) -> Tensor:
        r"""The objective $s(L_1, \dots, L_J)$ of losses (J,)."""
        return self.scalarizer(losses)


@final
class Aggregated(LossWeighting):
    r"""An aggregator $A$ of TorchJD, such as UPGrad, MGDA, CAGrad, PCGrad or NashMTL.

    Shared parameters move along $A(\nabla L_1, \dots, \nabla L_J)$, each head along the gradient
    of its own loss, so that `weights` are 1. A step costs J backward passes, and memory for J
    gradients of the shared parameters. Some aggregators want a solver that TorchJD does not
    bring along, and say so; UPGrad does.

    Args:
        aggregator: of `torchjd.aggregation`.

    Raises:
        ImportError: at the first step, without TorchJD.

    Example:
        >>> from torchjd.aggregation import MGDA
        >>> shared = nn.Parameter(torch.tensor([1.0, 1.0]))
        >>> losses = torch.stack([4 * shared[0], shared[1]])
        >>> Aggregated(MGDA()).backward(losses, [shared], [])
        >>> shared.grad  # equally good for both
        tensor([0.2353, 0.9412])

    References:
        Quinton and Rey, Jacobian descent for multi-objective optimization (2024).
    """

    def __init__(self, aggregator: Aggregator) -> None:
        super().__init__()
        self.aggregator = aggregator

    def weights(self, losses: Tensor) -> Tensor:
        return torch.ones_like(losses)

    def backward(
        self, losses: Tensor, shared: Iterable[nn.Parameter], own: Iterable[nn.Parameter]
    ) -> None:
        try:
            from torchjd import autojac
        except ImportError as error:
            raise ImportError(
                "Aggregated needs TorchJD, which is not installed; "
                "install the extra: pip install 'bmm-multitask-learning[gradients]'"
            ) from error
        together = [p for p in shared if p.requires_grad]
        apart = [p for p in own if p.requires_grad]
        # one loss after the other: not every operation of a bound can be vectorised over losses
        autojac.backward(losses, inputs=together, retain_graph=True, parallel_chunk_size=1)
        autojac.jac_to_grad(together, self.aggregator)
        if apart:
            losses.sum().backward(inputs=apart)
