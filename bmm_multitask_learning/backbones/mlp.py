"""A multilayer perceptron: the shared hidden layer of Bakker and Heskes, or several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from .backbone import Backbone

_ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU}


@final
class MLP(Backbone):
    r"""$\phi(x) = (1, g(W_L \cdots g(W_1 x + b_1) \cdots + b_L))$ with a constant in front.

    Args:
        in_features: width of the inputs.
        hidden: widths of the layers; the last is the number of features without the constant.
        activation: g, one of "tanh", "relu", "gelu".
        constant: whether the features begin with a constant 1, the intercept of every task.
        seed: of the initial weights, uniform in $\pm 1/\sqrt{\text{fan in}}$.
        dtype: of the parameters.

    Raises:
        ValueError: for an unknown activation, or without layers.

    Example:
        >>> MLP(3, [8, 5], seed=0)(torch.zeros(2, 3, dtype=torch.float64)).shape
        torch.Size([2, 6])

    References:
        Bakker and Heskes, Task clustering and gating for Bayesian multitask learning (2003),
        section 2.1.
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int],
        *,
        activation: Literal["tanh", "relu", "gelu"] = "tanh",
        constant: bool = True,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        if activation not in _ACTIVATIONS:
            raise ValueError(
                f"activation must be one of {sorted(_ACTIVATIONS)}; got {activation!r}."
            )
        if not hidden or min(hidden) < 1 or in_features < 1:
            raise ValueError(
                f"an MLP needs inputs and at least one layer of at least one unit; got "
                f"in_features={in_features}, hidden={list(hidden)}."
            )
        self.in_features = in_features
        self.hidden = tuple(hidden)
        self.activation = activation
        self.constant = constant
        self.seed = seed
        widths = zip((in_features, *hidden[:-1]), hidden, strict=True)
        linear = [
            nn.Linear(a, b, dtype=dtype, device="meta").to_empty(device="cpu") for a, b in widths
        ]
        layers = [module for layer in linear for module in (layer, _ACTIVATIONS[activation]())]
        self.layers = nn.Sequential(*layers)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for layer in linear:
                bound = 1 / math.sqrt(layer.in_features)
                layer.weight.uniform_(-bound, bound, generator=generator)
                layer.bias.uniform_(-bound, bound, generator=generator)

    def arguments(self) -> dict[str, Any]:
        return {
            "in_features": self.in_features,
            "hidden": list(self.hidden),
            "activation": self.activation,
            "constant": self.constant,
        }

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, D) of inputs (N, in_features)."""
        h = self.layers(x)
        return torch.cat([torch.ones_like(h[:, :1]), h], -1) if self.constant else h
