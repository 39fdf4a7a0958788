"""How steps of a backbone on one task change the losses of the others."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Hashable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Literal, final

import torch
from torch import Tensor
from tqdm import tqdm

from ..data import TaskData
from ..engines.start import start_sites
from ..family import Family
from ..fitting import seeded
from ..likelihoods import Rows
from ..sites import first_factor, refine, tasks_posterior
from ..statistics import TaskStatistics, task_sum
from .result import Array

if TYPE_CHECKING:
    from ..model import MultitaskModel


def measure_steps(
    model: MultitaskModel,
    data: TaskData | Mapping[str, TaskData],
    method: Literal["lookahead", "gradient"],
    *,
    family: str | None,
    steps: int,
    lr: float,
    seed: int,
    progress: bool,
) -> tuple[Array, tuple[Hashable, ...]]:
    """The matrix of `task_affinity` and its tasks, from a run of a copy of the model."""
    trained = [p for p in model.backbone.parameters() if p.requires_grad]
    if not trained:
        raise ValueError(
            f'method="{method}" watches a backbone learn, and this one has no parameters to '
            'train. Use method="evidence", or give the model a backbone that can learn.'
        )
    if steps < 1 or not lr > 0:
        raise ValueError(f"steps must be at least 1 and lr positive; got {steps} and {lr}.")
    measured = []
    with seeded(seed, trained[0].device):
        run = Run(model, data, family, seed)
        optimiser = torch.optim.Adam(run.parameters, lr=lr)
        for _ in tqdm(range(steps), disable=not progress, desc=method, unit="step", delay=2):
            losses, gradients = run.gradients()
            measured.append(
                cosines(gradients)
                if method == "gradient"
                else run.lookahead(losses, gradients, lr)
            )
            for parameter, gradient in zip(run.parameters, gradients, strict=True):
                parameter.grad = gradient.mean(0)
            optimiser.step()
    return torch.stack(measured).mean(0).cpu().numpy(), run.tasks


@final
class Run:
    """A copy of a model whose backbone learns, its heads always at their posterior means.

    Args:
        model: what is copied.
        data: rows of each family.
        family: whose tasks are told apart; None: those of the only family, or else the families.
        seed: of the start of a model that has not been fitted.
    """

    def __init__(
        self,
        model: MultitaskModel,
        data: TaskData | Mapping[str, TaskData],
        family: str | None,
        seed: int,
    ) -> None:
        named = model.named_data(data)
        self.model = copy.deepcopy(model).eval()
        self.by_task = family is not None or len(named) == 1
        self.named = named if family is None else {family: named[family]}
        generator = torch.Generator().manual_seed(seed)
        device = next(self.model.backbone.parameters()).device
        self.named = {name: part.to(device) for name, part in self.named.items()}
        if not all(part.tasks for part in self.model.families.values()):
            self.model.build(named, device)
            with torch.no_grad():
                for name, part in self.named.items():
                    rows = self.model.rows(name, part)
                    start_sites(self.model[name], rows, generator, progress=False)
        families = [self.model[name] for name in self.named]
        self.tasks = families[0].tasks if self.by_task else tuple(self.named)
        self.parameters = [p for p in self.model.backbone.parameters() if p.requires_grad]
        self._sites: dict[str, TaskStatistics] = {}
        self._heads: dict[str, Tensor] = {}

    def gradients(self) -> tuple[Tensor, list[Tensor]]:
        """Losses (K,), and their gradients (K, ...) in each parameter of the backbone."""
        rows = {name: self.model.rows(name, part) for name, part in self.named.items()}
        for name in rows:
            self._move_head(name, rows[name])
        losses = self._losses(rows)
        # a backward pass a task: not every layer's gradient can be batched
        each = [
            torch.autograd.grad(loss, self.parameters, retain_graph=True, materialize_grads=True)
            for loss in losses
        ]
        return losses.detach(), [torch.stack(columns) for columns in zip(*each, strict=True)]

    @torch.no_grad()
    def lookahead(self, losses: Tensor, gradients: list[Tensor], lr: float) -> Tensor:
        """$1 - L_j(θ - lr ∇L_i) / L_j(θ)$, (K, K); 0 where no loss is left.

        Args:
            losses: (K,) at θ.
            gradients: (K, ...) in each parameter.
            lr: length of the step, in gradients.
        """
        kept = [parameter.clone() for parameter in self.parameters]
        after = torch.empty(len(losses), len(losses)).to(losses)
        # a forward pass a task: K copies of the features at once would not fit
        for i in range(len(losses)):
            for parameter, value, gradient in zip(self.parameters, kept, gradients, strict=True):
                parameter.copy_(value - lr * gradient[i])
            rows = {name: self.model.rows(name, part) for name, part in self.named.items()}
            after[i] = self._losses(rows)
        for parameter, value in zip(self.parameters, kept, strict=True):
            parameter.copy_(value)
        return torch.where(losses > 0, 1 - after / losses, 0.0)

    @torch.no_grad()
    def _move_head(self, name: str, rows: Rows) -> None:
        """The tasks' weights to their posterior mean on these features."""
        part = self.model[name]
        rows = dataclasses.replace(rows, phi=rows.phi.detach())
        if name not in self._sites:
            self._sites[name] = first_factor(part.likelihood, rows, part.likelihood.eta)
        condition = partial(tasks_posterior, part.prior)
        self._sites[name] = refine(condition, part.likelihood, rows, self._sites[name])
        posterior = condition(self._sites[name])
        weights = posterior.log_weights.exp()
        self._heads[name] = torch.einsum("kc,kcod->kod", weights, posterior.means)

    def _losses(self, rows: Mapping[str, Rows]) -> Tensor:
        sums = {name: losses(self.model[name], r, self._heads[name]) for name, r in rows.items()}
        if self.by_task:
            (one,) = sums.values()
            return one[0] / one[1].clamp(min=torch.finfo(one[1].dtype).tiny)
        return torch.stack([loss.sum() / count.sum() for loss, count in sums.values()])


def losses(part: Family, rows: Rows, weights: Tensor) -> tuple[Tensor, Tensor]:
    r"""Sums (K,) of $\max_f \log p(y_n \mid f) - \log p(y_n \mid f_n)$ by task, and row counts.

    The maximum is left out, as 0, for classes and counts.

    Args:
        part: the family.
        rows: of its tasks.
        weights: (K, O, D) of the tasks.
    """
    likelihood, theta = part.likelihood, part.likelihood.eta
    f = torch.einsum("nd,nod->no", rows.phi, weights[rows.task])
    loss = -likelihood.log_prob(rows, f[:, None], theta)[:, 0]
    if likelihood.location_scale:  # densities are highest at the target itself
        loss = loss + likelihood.log_prob(rows, rows.y[:, None], theta)[:, 0]
    count = rows.weight.sum(-1)
    K = rows.num_tasks
    return task_sum(loss, rows.task, K), task_sum(count, rows.task, K)


def cosines(gradients: list[Tensor]) -> Tensor:
    """Cosines (K, K) of the angles between gradients (K, ...) over all parameters; 0 for none."""
    flat = [gradient.reshape(len(gradient), -1).double() for gradient in gradients]
    product = torch.stack([g @ g.T for g in flat]).sum(0)
    size = product.diagonal().sqrt().clamp(min=torch.finfo(product.dtype).tiny)
    return product / size / size[:, None]
