r"""Experts that all tasks share, and a gate a task that chooses among them for each input.

$$\phi_j(x) = \sum_e \mathrm{softmax}(G_j x + c_j)_e\, f_e(x)$$

References:
    Ma, Zhao, Yi, Chen, Hong and Chi, Modeling task relationships in multi-task learning with
    multi-gate mixture-of-experts (2018), equations 5 to 7.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from ..backbone import Backbone
from .towers import Activation, TowerLayers, after_one


@final
class MixtureOfExperts(Backbone):
    r"""$\phi_j(x) = (1, \sum_e \mathrm{softmax}(G_j x + c_j)_e f_e(x))$ in each of J columns.

    Read by `OwnColumn` or `Column`. Gates start at 0, where every column is the experts' mean.

    Args:
        in_features: width of the inputs.
        hidden: widths of an expert's layers; the last is the number of features without the
            constant.
        num_columns: J.
        num_experts: E.
        activation: one of "tanh", "relu", "gelu".
        seed: of the initial weights; expert e begins as `MLP(seed=seed + e)`.
        dtype: of the parameters.

    Raises:
        ValueError: for no columns or experts, and what `MLP` refuses.

    Example:
        >>> network = MixtureOfExperts(3, [8, 5], num_columns=4, num_experts=2)
        >>> x = torch.zeros(6, 3, dtype=torch.float64)
        >>> network(x).shape, network.gates(x).shape
        (torch.Size([6, 4, 6]), torch.Size([6, 4, 2]))

    References:
        Ma, Zhao, Yi, Chen, Hong and Chi, Modeling task relationships in multi-task learning with
        multi-gate mixture-of-experts (2018).
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int],
        *,
        num_columns: int,
        num_experts: int,
        activation: Activation = "tanh",
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        if min(num_columns, num_experts) < 1:
            raise ValueError(
                "num_columns and num_experts must be at least 1; got "
                f"{num_columns} and {num_experts}."
            )
        self._arguments = {
            "in_features": in_features,
            "hidden": list(hidden),
            "num_columns": num_columns,
            "num_experts": num_experts,
            "activation": activation,
        }
        self.experts = TowerLayers(
            in_features, hidden, num_experts, activation=activation, seed=seed, dtype=dtype
        )
        shape = (num_columns, num_experts, in_features)
        self.gate_weights = nn.Parameter(torch.zeros(shape, dtype=dtype))
        self.gate_biases = nn.Parameter(torch.zeros(shape[:2], dtype=dtype))

    def arguments(self) -> dict[str, Any]:
        return self._arguments

    def gates(self, x: Tensor) -> Tensor:
        """Share of each expert in each column, (N, J, E), of inputs (N, in_features)."""
        logits = torch.einsum("nd,jed->nje", x, self.gate_weights) + self.gate_biases
        return logits.softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, J, 1 + D) of inputs (N, in_features)."""
        h = self.experts.start(x)
        for l in range(len(self.experts)):
            h = self.experts.layer(l, h)
        # φ_j = Σ_e gate_je f_e
        return after_one(torch.einsum("nje,ned->njd", self.gates(x), h))
