"""A constant feature before those of any backbone."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn

from .backbone import Backbone
from .latent_encoder import LatentEncoder
from .mlp import MLP


@final
class WithConstant(Backbone):
    """A backbone whose features begin with a constant 1, the intercept of every task.

    Args:
        backbone: from inputs (N, ...) to features (N, D).

    Example:
        >>> WithConstant(nn.Identity())(torch.zeros(2, 3)).shape
        torch.Size([2, 4])
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def arguments(self) -> dict[str, Any]:
        return {"backbone": self.backbone}

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, 1 + D)."""
        phi = self.backbone(x)
        return torch.cat([torch.ones_like(phi[..., :1]), phi], -1)


def with_constant(backbone: nn.Module | None) -> nn.Module:
    """The backbone, or the inputs themselves, after a constant unless it gives one already.

    Args:
        backbone: from inputs (N, ...) to features (N, D), or None.

    Example:
        >>> with_constant(None)(torch.zeros(2, 3)).shape
        torch.Size([2, 4])
        >>> with_constant(MLP(3, [5])).hidden
        (5,)
    """
    if isinstance(backbone, LatentEncoder) or (isinstance(backbone, MLP) and backbone.constant):
        return backbone
    return WithConstant(nn.Identity() if backbone is None else backbone)
