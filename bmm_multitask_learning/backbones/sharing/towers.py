"""One network a task, all of one architecture: nothing is shared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from ..backbone import Backbone
from ..mlp import MLP

Activation = Literal["tanh", "relu", "gelu"]


class TowerLayers(nn.Module):
    r"""The layers of J networks at once, $h_{lj} = g(W_{lj} h_{l-1,j} + b_{lj})$.

    Args:
        in_features: width of the inputs.
        hidden: widths of the layers, the same in all networks.
        num_columns: J.
        activation: g, one of "tanh", "relu", "gelu".
        seed: network j has the initial weights of `MLP(seed=seed + j)`.
        dtype: of the parameters.

    Raises:
        ValueError: for no columns, and what `MLP` refuses.
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int],
        num_columns: int,
        *,
        activation: Activation = "tanh",
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        if num_columns < 1:
            raise ValueError(f"num_columns must be at least 1; got {num_columns}.")
        towers = [
            MLP(in_features, hidden, activation=activation, seed=seed + j, dtype=dtype).layers
            for j in range(num_columns)
        ]
        linear = [[layer for layer in t if isinstance(layer, nn.Linear)] for t in towers]
        self.num_columns = num_columns
        self.activation: nn.Module = towers[0][1]
        # (J, in, out) and (J, out) of each layer
        self.weights = nn.ParameterList(
            torch.stack([layer.weight.detach().T for layer in layers])
            for layers in zip(*linear, strict=True)
        )
        self.biases = nn.ParameterList(
            torch.stack([layer.bias.detach() for layer in layers])
            for layers in zip(*linear, strict=True)
        )

    def __len__(self) -> int:
        return len(self.weights)

    def start(self, x: Tensor) -> Tensor:
        """Inputs (N, in_features) before every column, (N, J, in_features)."""
        return x[:, None].expand(-1, self.num_columns, -1)

    def layer(self, l: int, h: Tensor) -> Tensor:
        """$h_l$ (N, J, D_l) of $h_{l-1}$ (N, J, D_{l-1})."""
        return self.apply_layer(h, self.weights[l], self.biases[l])

    def apply_layer(self, h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """A layer with weights (J, in, out) and biases (J, out)."""
        return self.activation(torch.einsum("njd,jde->nje", h, weight) + bias)


@final
class Towers(Backbone):
    r"""$\phi_j(x) = (1, \text{network}_j(x))$: J columns, each an `MLP` of its own.

    Read by `OwnColumn` or `Column`. Tasks share no features, only the prior of their weights; it
    is what the sharing architectures are to be compared with.

    Args:
        in_features: width of the inputs.
        hidden: widths of the layers; the last is the number of features without the constant.
        num_columns: J.
        activation: one of "tanh", "relu", "gelu".
        seed: of the initial weights; column j begins as `MLP(seed=seed + j)`.
        dtype: of the parameters.

    Raises:
        ValueError: for no columns, and what `MLP` refuses.

    Example:
        >>> Towers(3, [8, 5], num_columns=4)(torch.zeros(2, 3, dtype=torch.float64)).shape
        torch.Size([2, 4, 6])
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int],
        *,
        num_columns: int,
        activation: Activation = "tanh",
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        self._arguments = {
            "in_features": in_features,
            "hidden": list(hidden),
            "num_columns": num_columns,
            "activation": activation,
        }
        self.towers = TowerLayers(
            in_features, hidden, num_columns, activation=activation, seed=seed, dtype=dtype
        )

    def arguments(self) -> dict[str, Any]:
        return self._arguments

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, J, 1 + D) of inputs (N, in_features)."""
        h = self.towers.start(x)
        for l in range(len(self.towers)):
            h = self.towers.layer(l, h)
        return after_one(h)


def after_one(h: Tensor) -> Tensor:
    """(1, h) in every column."""
    return torch.cat([torch.ones_like(h[..., :1]), h], -1)
