"""Adam for the guide and for what turns inputs into features, each at its own rate."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

# From a backbone to groups of its parameters, as torch's optimisers take them.
Grouping = Callable[[nn.Module], Iterable[dict[str, Any]]]


def make_optimiser(
    guide: nn.Module,
    backbone: nn.Module,
    features: nn.Module,
    *,
    lr: float,
    backbone_lr: float | Grouping | None,
    weight_decay: float,
) -> torch.optim.Optimizer:
    """AdamW on what has to be trained; its first group is the guide's.

    Args:
        guide: never decays.
        backbone: has rates of its own where `backbone_lr` gives them.
        features: the backbone and the families' readers.
        lr, backbone_lr, weight_decay: see `SVI`.
    """
    named: list[dict[str, Any]] = []
    if callable(backbone_lr):
        named = [{**group, "params": _trained(group["params"])} for group in backbone_lr(backbone)]
    elif backbone_lr is not None:
        named = [{"params": _trained(backbone.parameters()), "lr": backbone_lr}]
    taken = {id(p) for group in named for p in group["params"]}
    rest = [p for p in _trained(features.parameters()) if id(p) not in taken]
    groups: list[dict[str, Any]] = [
        {"params": list(guide.parameters()), "weight_decay": 0.0},
        {"params": rest},
        *named,
    ]
    groups = [g for g in groups if g["params"]] or groups[:1]
    return torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay)


def _trained(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return [p for p in parameters if p.requires_grad]
