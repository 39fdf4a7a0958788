r"""What a weighting of losses is.

J heads on one backbone have losses $L_1, \dots, L_J$, and one number must be made of them.

```python
losses = ...                                    # (J,) mean loss of each head over the batch
optimiser.zero_grad()
weighting.backward(losses, backbone.parameters(), heads.parameters())
optimiser.step()
weighting.update(losses.detach(), counts)       # (J,) observed targets behind each mean
```
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

Kind = Literal["squared", "absolute", "cross_entropy"]

_POWERS: dict[str, float] = {"squared": 0.5, "absolute": 1.0, "cross_entropy": 0.5}


class LossWeighting(nn.Module, ABC):
    r"""Makes one objective of the losses of J heads: $\sum_j w_j L_j$.

    Two methods say it all: `weights`, what multiplies each loss now, and `update`, what is learned
    from a step. Give a head without a target in the batch the loss 0 and the count 0. What a
    strategy remembers are buffers or parameters, so that `state_dict` saves it; parameters are for
    the optimiser of the loop.

    Example:
        >>> class WorstFirst(LossWeighting):
        ...     '''Weight 1 for the largest running loss, 0.1 for the others.'''
        ...
        ...     def __init__(self, num_losses):
        ...         super().__init__()
        ...         self.register_buffer("running", torch.zeros(num_losses))
        ...
        ...     def weights(self, losses):
        ...         return torch.where(self.running == self.running.max(), 1.0, 0.1)
        ...
        ...     def update(self, losses, counts):
        ...         self.running.lerp_(losses, 0.5)
        >>> weighting = WorstFirst(3)
        >>> weighting.update(torch.tensor([4.0, 1.0, 2.0]), torch.tensor([8, 8, 8]))
        >>> weighting(torch.tensor([3.0, 1.0, 2.0]))
        tensor(3.3000)
    """

    def extra_repr(self) -> str:
        """The settings that are no tensors, for `repr`."""
        own = {name: v for name, v in vars(self).items() if name != "training" and name[0] != "_"}
        return ", ".join(f"{name}={value!r}" for name, value in own.items())

    @abstractmethod
    def weights(self, losses: Tensor) -> Tensor:
        """What multiplies each loss.

        Args:
            losses: (J,) mean loss of each head over the batch.

        Returns:
            (J,) non-negative weights, in the dtype of the losses.
        """

    def update(self, losses: Tensor, counts: Tensor) -> None:
        """Learn from the losses of a step.

        Args:
            losses: (J,) mean loss of each head over the batch, detached; 0 where nothing is seen.
            counts: (J,) observed targets behind each mean.
        """
        return

    def forward(self, losses: Tensor) -> Tensor:
        r"""The objective $\sum_j w_j L_j$ of losses (J,), a scalar."""
        return (self.weights(losses) * losses).sum()

    def backward(
        self, losses: Tensor, shared: Iterable[nn.Parameter], own: Iterable[nn.Parameter]
    ) -> None:
        """Add the gradient of the objective to that of every parameter.

        Args:
            losses: (J,) mean loss of each head over the batch.
            shared: parameters that several losses reach, such as the backbone's.
            own: parameters of single heads. Only `Aggregated` must know them apart.
        """
        self(losses).backward()


def powers(kinds: Sequence[Kind]) -> Tensor:
    r"""$\nu$ of $p(y \mid \lambda) \propto \lambda^{\nu} e^{-\lambda \ell}$ for each loss.

    A squared error is a Gaussian's (½), an absolute error a Laplace's (1): these are normalised.
    Of cross-entropy ½ is a convention, that of Kendall and others: $\lambda$ divides no logits.
    """
    unknown = [kind for kind in kinds if kind not in _POWERS]
    if unknown or not kinds:
        raise ValueError(
            f"kinds must name the loss of each head, among {sorted(_POWERS)}; got {list(kinds)}."
        )
    return torch.tensor([_POWERS[kind] for kind in kinds], dtype=torch.float64)


def check_losses(losses: Tensor, number: int) -> None:
    """Raise a ValueError where losses are not (J,) numbers of at least 0."""
    if losses.shape != (number,):
        raise ValueError(
            f"losses must have shape ({number},), one a head; got {tuple(losses.shape)}."
        )
    bad = ~(losses >= 0)
    if bool(bad.any()):
        j = int(bad.nonzero()[0, 0])
        raise ValueError(
            f"losses must be at least 0 to tell a precision; got {float(losses[j]):.4g} for head "
            f"{j}. A log density can be negative: it has its own noise. Pass the error instead."
        )
