r"""Columns whose layers fall into subspaces, each shared by itself, and a mixture of layers.

$$h_{l,js} = \sum_{k,r} \alpha_{l,js,kr}\, g(W_{l,kr} h_{l-1,k} + b_{l,kr}), \qquad
  \phi_j = \sum_l \beta_{jl} h_{lj}$$

References:
    Ruder, Bingel, Augenstein and Søgaard, Latent multi-task architecture learning (2019),
    equations 2 to 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any, final

import torch
from torch import Tensor, nn

from ..backbone import Backbone
from ..parameter_prior import ParameterPrior
from .cross_stitch import near_identity
from .towers import Activation, TowerLayers, after_one


@final
class Sluice(Backbone, ParameterPrior):
    r"""$h_{l,js} = \sum_{kr} \alpha_{l,js,kr}\, g(W_{l,kr} h_{l-1,k} + b_{l,kr})$ in J columns.

    Each layer of a column falls into S subspaces, and $\phi_j = (1, \sum_l \beta_{jl} h_{lj})$
    mixes the layers; $\beta_j = \mathrm{softmax}$ of parameters that start at 0, so all layers
    must be of one width. `SVI` adds to the bound

    $$\log p(W) = -\lambda \sum_{lj} \sum_{s < r} \|W_{l,js} W_{l,jr}^\top\|_F^2$$

    (rows of $W_{l,js}$ are units), which keeps the subspaces of a layer apart. Read by `OwnColumn`
    or `Column`.

    Args:
        in_features: width of the inputs.
        hidden: widths of the layers, all the same and a multiple of S.
        num_columns: J.
        num_subspaces: S.
        orthogonality: $\lambda$, in nats.
        activation: g, one of "tanh", "relu", "gelu".
        seed: of the initial weights; column j begins as `MLP(seed=seed + j)`.
        dtype: of the parameters.

    Attributes:
        stitches: $\alpha$, (L, J S, J S), subspaces of a column side by side; near the identity
            at the start.

    Raises:
        ValueError: for layers of several widths or that do not divide into subspaces, a negative
            orthogonality, no columns, and what `MLP` refuses.

    Example:
        >>> network = Sluice(3, [6, 6], num_columns=4, num_subspaces=2)
        >>> network(torch.zeros(2, 3, dtype=torch.float64)).shape, network.mixture.shape
        (torch.Size([2, 4, 7]), torch.Size([4, 2]))

    References:
        Ruder, Bingel, Augenstein and Søgaard, Latent multi-task architecture learning (2019).
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int],
        *,
        num_columns: int,
        num_subspaces: int = 2,
        orthogonality: float = 0.1,
        activation: Activation = "tanh",
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        if num_subspaces < 1 or len(set(hidden)) > 1 or any(w % num_subspaces for w in hidden):
            raise ValueError(
                "a Sluice mixes its layers and divides each: hidden must have one width, a "
                f"multiple of num_subspaces; got {list(hidden)} and {num_subspaces}."
            )
        if not orthogonality >= 0:
            raise ValueError(f"orthogonality must not be negative; got {orthogonality}.")
        self._arguments = {
            "in_features": in_features,
            "hidden": list(hidden),
            "num_columns": num_columns,
            "num_subspaces": num_subspaces,
            "orthogonality": orthogonality,
            "activation": activation,
        }
        self.num_subspaces = num_subspaces
        self.orthogonality = orthogonality
        self.towers = TowerLayers(
            in_features, hidden, num_columns, activation=activation, seed=seed, dtype=dtype
        )
        start = near_identity(num_columns * num_subspaces, dtype)
        self.stitches = nn.Parameter(start.repeat(len(self.towers), 1, 1))
        self.logits = nn.Parameter(torch.zeros(num_columns, len(self.towers), dtype=dtype))

    def arguments(self) -> dict[str, Any]:
        return self._arguments

    @property
    def mixture(self) -> Tensor:
        r"""$\beta$, (J, L): how much of each layer a column's features have; rows sum to 1."""
        return self.logits.detach().softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, J, 1 + D) of inputs (N, in_features)."""
        h, layers = self.towers.start(x), []
        for l, alpha in enumerate(self.stitches):
            g = self.towers.layer(l, h)
            parts = g.reshape(len(x), len(alpha), -1)  # (N, J S, D / S)
            h = torch.einsum("jk,nkd->njd", alpha, parts).reshape(g.shape)
            layers.append(h)
        # φ_j = Σ_l β_jl h_lj
        phi = torch.einsum("jl,lnjd->njd", self.logits.softmax(-1), torch.stack(layers))
        return after_one(phi)

    def log_prior(self) -> Tensor:
        r"""$-\lambda \sum_{lj} \sum_{s<r} \|W_{l,js} W_{l,jr}^\top\|_F^2$, a scalar."""
        total = self.logits.new_zeros(())
        for weight in self.towers.weights:
            parts = weight.chunk(self.num_subspaces, -1)  # S of (J, in, D / S)
            for first, second in combinations(parts, 2):
                total = total + torch.einsum("jde,jdf->jef", first, second).square().sum()
        return -self.orthogonality * total
