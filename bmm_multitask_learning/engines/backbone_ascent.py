"""A backbone's parameters by the gradient of the evidence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..data import TaskData

if TYPE_CHECKING:
    from ..model import MultitaskModel
    from .coordinate_ascent import Ascent


def train_backbone(
    model: MultitaskModel, data: Mapping[str, TaskData], ascents: Mapping[str, Ascent], steps: int
) -> None:
    """L-BFGS up the bound in the backbone's parameters, everything else fixed."""
    parameters = [p for p in model.feature_modules.parameters() if p.requires_grad]
    optimiser = torch.optim.LBFGS(parameters, max_iter=steps, line_search_fn="strong_wolfe")
    scale = sum(part.num_rows for part in data.values())

    def loss() -> Tensor:
        optimiser.zero_grad()
        total = torch.zeros((), dtype=model.dtype, device=model.device)
        for name, ascent in ascents.items():
            rows = model.rows(name, data[name])
            ascent.refresh(rows)
            total = total - ascent.posterior().log_normaliser / scale
        total.backward()
        return total.detach()

    before = [p.detach().clone() for p in parameters]
    first = float(optimiser.step(loss))
    if not float(loss()) <= first:
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)
    with torch.no_grad():
        for name, ascent in ascents.items():
            ascent.refresh(model.rows(name, data[name]))
