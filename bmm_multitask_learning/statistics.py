"""Per-task Gaussian statistics: what a likelihood tells a prior about each task's weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

# Rows of a chunk times features: 2**20 doubles are 8 MiB, which stays in a core's cache.
_CHUNK_ELEMENTS = 2**20


@dataclasses.dataclass(frozen=True)
class TaskStatistics:
    r"""A Gaussian factor for each task's weights.

    $\log t_k(w) = c_k + b_k^\top w - \tfrac12 w^\top A_k w$ is the log likelihood of the rows of
    task k (exactly for Gaussian noise) or a lower bound on it. Factors of the same tasks add up.

    Args:
        A: (K, O, D, D) precision; (K, 1, D, D) where all outputs share it.
        b: (K, O, D) linear coefficient.
        c: (K, O) constant.
        rows: (K,) number of observed rows, weighted.
    """

    A: Tensor
    b: Tensor
    c: Tensor
    rows: Tensor

    @classmethod
    def zeros_like(cls, other: TaskStatistics, num_tasks: int) -> TaskStatistics:
        """The statistics of `num_tasks` tasks that have no rows."""
        tensors = (other.A, other.b, other.c, other.rows)
        return cls(*(t.new_zeros(num_tasks, *t.shape[1:]) for t in tensors))

    def __add__(self, other: TaskStatistics) -> TaskStatistics:
        return TaskStatistics(
            self.A + other.A, self.b + other.b, self.c + other.c, self.rows + other.rows
        )

    def total(self) -> TaskStatistics:
        """The sum over tasks, as the statistics of one task."""
        tensors = (self.A, self.b, self.c, self.rows)
        return TaskStatistics(*(t.sum(0, keepdim=True) for t in tensors))

    def trace_term(self, root: Tensor) -> Tensor:
        r"""$\mathrm{tr}(A_k\, \text{root}\,\text{root}^\top)$, (..., K, O)."""
        return ((self.A @ root) * root).sum((-2, -1))

    def log_factor(self, mean: Tensor, root: Tensor) -> Tensor:
        r"""$E[\log t_k(w)]$ for $w \sim N(\text{mean}, \text{root}\,\text{root}^\top)$.

        Args:
            mean: (..., K, O, D).
            root: (..., K, O, D, R).

        Returns:
            (..., K, O).
        """
        quadratic = ((self.A @ mean[..., None])[..., 0] * mean).sum(-1)
        return self.c + (self.b * mean).sum(-1) - 0.5 * (quadratic + self.trace_term(root))


@dataclasses.dataclass(frozen=True)
class RowBlocks:
    """Rows of ragged tasks laid out in blocks of equal length, one task a block.

    Padding is confined to the last block of each task, so that memory stays near that of the rows
    while every product over rows is one batched matrix product.

    Args:
        index: (M, B) row of each place; padding repeats row 0.
        valid: (M, B) False where padded.
        task: (M,) task of each block.
        num_tasks: K.
    """

    index: Tensor
    valid: Tensor
    task: Tensor
    num_tasks: int

    @classmethod
    def from_tasks(cls, task: Tensor, num_tasks: int, block_size: int) -> RowBlocks:
        """Lay out rows with task indices `task` (N,) in blocks of at most `block_size` rows."""
        count = torch.bincount(task, minlength=num_tasks)
        ordered = bool((task[1:] >= task[:-1]).all())
        order = (
            torch.arange(len(task), device=task.device) if ordered else task.argsort(stable=True)
        )
        size = max(1, min(int(count.max()) if len(task) else 1, block_size))
        blocks = (count + size - 1) // size
        block_task = torch.repeat_interleave(blocks)
        position = torch.arange(len(block_task), device=task.device)
        position = position - (blocks.cumsum(0) - blocks)[block_task]
        start = (count.cumsum(0) - count)[block_task] + position * size
        place = start[:, None] + torch.arange(size, device=task.device)
        valid = place < (count.cumsum(0)[block_task])[:, None]
        index = order[torch.where(valid, place, 0)] if len(task) else place.new_zeros(0, size)
        return cls(index, valid, block_task, num_tasks)

    def chunks(self, num_features: int) -> Iterator[slice]:
        """Slices of blocks small enough to be gathered in cache."""
        step = max(1, _CHUNK_ELEMENTS // (self.index.shape[1] * num_features))
        for start in range(0, len(self.index), step):
            yield slice(start, start + step)

    def gather(self, rows: Tensor, at: slice) -> Tensor:
        """(N, ...) rows to (m, B, ...) blocks; padding holds copies of row 0."""
        index = self.index[at]
        return rows.index_select(0, index.flatten()).unflatten(0, index.shape)

    def gram(self, phi: Tensor, weight: Tensor) -> Tensor:
        r"""$\sum_{n \in k} \omega_{no}\, \phi_n \phi_n^\top$ as (K, O, D, D).

        Args:
            phi: (N, D) features.
            weight: (N, O) weights $\omega$.
        """
        D, O = phi.shape[1], weight.shape[1]
        total = phi.new_zeros(self.num_tasks, O, D, D)
        for at in self.chunks(D * O):
            x = self.gather(phi, at)
            omega = self.gather(weight, at) * self.valid[at][..., None]
            weighted = x[:, None] * omega.mT[..., None]  # (m, O, B, D)
            total.index_add_(0, self.task[at], weighted.mT @ x[:, None])
        return total

    def project(self, phi: Tensor, target: Tensor) -> Tensor:
        r"""$\sum_{n \in k} \phi_n r_{no}$ as (K, O, D).

        Args:
            phi: (N, D) features.
            target: (N, O) values $r$.
        """
        D, O = phi.shape[1], target.shape[1]
        total = phi.new_zeros(self.num_tasks, O, D)
        for at in self.chunks(D):
            r = self.gather(target, at) * self.valid[at][..., None]
            total.index_add_(0, self.task[at], r.mT @ self.gather(phi, at))
        return total


def make_blocks(task: Tensor, num_tasks: int, num_features: int) -> RowBlocks:
    """Blocks long enough that the (M, D, D) products weigh no more than the rows themselves."""
    return RowBlocks.from_tasks(task, num_tasks, block_size=max(num_features, 256))


def task_sum(value: Tensor, task: Tensor, num_tasks: int) -> Tensor:
    """Sum the rows of (N, ...) values within each task: (K, ...)."""
    return value.new_zeros(num_tasks, *value.shape[1:]).index_add(0, task, value)
