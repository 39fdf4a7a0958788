"""What a fitted model says about its tasks: contrasts, ranks, and what borrowing did."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from .predictive import Inputs

if TYPE_CHECKING:
    from .family import Family
    from .model import MultitaskModel

_DRAWS = 4000


@dataclasses.dataclass(frozen=True)
class Contrast:
    """Draws of the difference between two tasks, from their joint posterior.

    Args:
        draws: (S, ...) differences, first minus second.
    """

    draws: npt.NDArray[np.float64]

    @property
    def mean(self) -> npt.NDArray[np.float64]:
        """Posterior mean of the difference."""
        return self.draws.mean(0)

    @property
    def std(self) -> npt.NDArray[np.float64]:
        """Posterior standard deviation of the difference."""
        return self.draws.std(0)

    @property
    def probability(self) -> npt.NDArray[np.float64]:
        """Posterior probability that the first task's value is the larger one."""
        return (self.draws > 0).mean(0)

    def interval(self, coverage: float = 0.9) -> npt.NDArray[np.float64]:
        """Central interval (..., 2): lower and upper."""
        tail = 0.5 * (1 - coverage)
        return np.moveaxis(np.quantile(self.draws, [tail, 1 - tail], axis=0), 0, -1)


def contrast(
    model: MultitaskModel, first: Hashable, second: Hashable, x: Any, *, family: str | None
) -> Contrast:
    """See `MultitaskModel.contrast`."""
    part = model.family(family)
    index = _known(part, [first, second])
    generator = torch.Generator(model.device).manual_seed(0)
    draws = part.weights.select(index).draw(_DRAWS, generator)
    difference = draws[:, 0] - draws[:, 1]  # (S, O, D)
    if x is not None:
        inputs = Inputs.of(model, x)
        values = []
        for draw, k in zip(draws.unbind(1), index, strict=True):
            phi, _ = inputs.features(model, part, k.expand(len(inputs.x)))
            values.append(torch.einsum("sod,nd->sno", draw, phi))
        difference = values[0] - values[1]
        difference = difference[..., 0] if difference.shape[-1] == 1 else difference
    elif difference.shape[1] == 1:
        difference = difference[:, 0]
    return Contrast(difference.cpu().numpy())


def ranking(
    model: MultitaskModel, x: Any, *, num_samples: int, seed: int, family: str | None
) -> npt.NDArray[np.float64]:
    """See `MultitaskModel.ranking`."""
    part = model.family(family)
    inputs = Inputs.of(model, x)
    if len(inputs.x) != 1:
        raise ValueError(
            f"ranking compares tasks at one input, x of shape (1, ...); got {len(inputs.x)} rows."
        )
    if part.sizes.num_outputs > 1:
        raise ValueError("ranking needs one output a task; this family has several.")
    generator = torch.Generator(model.device).manual_seed(seed)
    K = len(part.tasks)
    each = dataclasses.replace(
        inputs,
        x=inputs.x.expand(K, *inputs.x.shape[1:]),
        outputs=inputs.outputs.expand(K, *inputs.outputs.shape[1:]),
    )
    phi, _ = each.features(model, part, torch.arange(K, device=model.device))  # (K, D)
    draws = part.weights.draw(num_samples, generator)[:, :, 0]
    f = torch.einsum("skd,kd->sk", draws, phi)
    rank = f.argsort(dim=1, descending=True).argsort(dim=1)
    cell = torch.arange(K, device=rank.device) * K + rank
    count = torch.bincount(cell.flatten(), minlength=K * K).reshape(K, K)
    return (count.double() / num_samples).cpu().numpy()


class TaskSummary(NamedTuple):
    """What borrowing did for one task.

    task: its label.
    rows: rows of its own.
    shrinkage: share of what is known of its weights that other tasks say, between 0 and 1.
    rows_borrowed: how many more rows of its own would have told as much as the others did,
        rows x shrinkage / (1 - shrinkage).
    borrowed_from: labels of the (up to three) tasks most related to it, by the prior's relations.
    """

    task: Hashable
    rows: int
    shrinkage: float
    rows_borrowed: float
    borrowed_from: tuple[Hashable, ...]


def explain_tasks(model: MultitaskModel, *, family: str | None) -> list[TaskSummary]:
    """See `MultitaskModel.explain_tasks`."""
    part = model.family(family)
    share = part.prior.information.expand(len(part.tasks)).clamp(0, 1).cpu().numpy()
    relations = part.prior.relations().clone().fill_diagonal_(0)
    strength, nearest = relations.topk(min(3, max(len(part.tasks) - 1, 0)), dim=1)
    summaries = []
    for k, (label, rows) in enumerate(zip(part.tasks, part.rows_per_task, strict=True)):
        related = [(int(j), float(s)) for j, s in zip(nearest[k], strength[k], strict=True)]
        summaries.append(
            TaskSummary(
                task=label,
                rows=rows,
                shrinkage=float(1 - share[k]),
                rows_borrowed=float(rows * (1 - share[k]) / max(share[k], 1e-12)),
                borrowed_from=tuple(part.tasks[j] for j, s in related if s > 0),
            )
        )
    return summaries


def _known(part: Family, labels: list[Hashable]) -> torch.Tensor:
    index = part.index_of(labels)
    for label, i in zip(labels, index.tolist(), strict=True):
        if i < 0:
            raise KeyError(f"{label!r} is not one of the model's {len(part.tasks)} tasks.")
    return index.to(part.prior.scatter.device)
