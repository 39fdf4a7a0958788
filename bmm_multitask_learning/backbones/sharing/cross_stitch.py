r"""Columns that read each other's layers.

$$h_{lj} = \sum_k \alpha_{ljk}\, g(W_{lk} h_{l-1,k} + b_{lk})$$

References:
    Misra, Shrivastava, Gupta and Hebert, Cross-stitch networks for multi-task learning (2016),
    equation 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from ..backbone import Backbone
from .towers import Activation, TowerLayers, after_one

# share of the other columns at the start
_OTHERS = 0.1


@final
class CrossStitch(Backbone):
    r"""$h_{lj} = \sum_k \alpha_{ljk}\, g(W_{lk} h_{l-1,k} + b_{lk})$ in each of J columns.

    Read by `OwnColumn` or `Column`. The features of column j are a constant and the last layer's.
    Stitches are any numbers; they start at .9 for the column itself and .1 for all others
    together.

    Args:
        in_features: width of the inputs.
        hidden: widths of the layers; the last is the number of features without the constant.
        num_columns: J.
        activation: g, one of "tanh", "relu", "gelu".
        seed: of the initial weights; column j begins as `MLP(seed=seed + j)`.
        dtype: of the parameters.

    Attributes:
        stitches: $\alpha$, (L, J, J): what column j, the row, takes from column k in each layer.

    Raises:
        ValueError: for no columns, and what `MLP` refuses.

    Example:
        >>> network = CrossStitch(3, [8, 5], num_columns=4)
        >>> network(torch.zeros(2, 3, dtype=torch.float64)).shape, network.stitches.shape
        (torch.Size([2, 4, 6]), torch.Size([2, 4, 4]))

    References:
        Misra, Shrivastava, Gupta and Hebert, Cross-stitch networks for multi-task learning (2016).
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
        start = near_identity(num_columns, dtype)
        self.stitches = nn.Parameter(start.repeat(len(self.towers), 1, 1))

    def arguments(self) -> dict[str, Any]:
        return self._arguments

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, J, 1 + D) of inputs (N, in_features)."""
        h = self.towers.start(x)
        for l, alpha in enumerate(self.stitches):
            # h_j ← Σ_k α_jk h_k
            h = torch.einsum("jk,nkd->njd", alpha, self.towers.layer(l, h))
        return after_one(h)


def near_identity(size: int, dtype: torch.dtype) -> Tensor:
    """A (size, size) matrix whose rows sum to 1, most of it on the diagonal.

    Example:
        >>> near_identity(3, torch.float64)[0]
        tensor([0.9000, 0.0500, 0.0500], dtype=torch.float64)
        >>> near_identity(1, torch.float64)
        tensor([[1.]], dtype=torch.float64)
    """
    others = _OTHERS / max(size - 1, 1)
    alpha = torch.full((size, size), others, dtype=dtype)
    return alpha.fill_diagonal_(1 - others * (size - 1))
