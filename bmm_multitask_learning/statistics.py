"""Per-task Gaussian statistics: what a likelihood tells a prior about each task's weights."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .precision import Precision, combine, formed, weighted_sum

# Rows of a chunk times features: 2**20 doubles are 8 MiB, which stays in a core's cache.
_CHUNK_ELEMENTS = 2**20


@dataclasses.dataclass(frozen=True)
class TaskStatistics:
    r"""A Gaussian factor for each task's weights.

    $\log t_k(w) = c_k + b_k^\top w - \tfrac12 w^\top A_k w$ is the log likelihood of the rows of
    task k (exactly for Gaussian noise) or a lower bound on it. Factors of the same tasks add up.

    Args:
        precision: (K, O, D, D) $A$; (K, 1, D, D) where all outputs share it. Where tasks have
            fewer rows than features it may be held as the rows.
        b: (K, O, D) linear coefficient.
        c: (K, O) constant.
        rows: (K,) number of observed rows, weighted.
    """

    precision: Precision
    b: Tensor
    c: Tensor
    rows: Tensor

    @property
    def A(self) -> Tensor:  # the letter of the papers
        """The precision as a tensor, formed if it is held as rows."""
        return formed(self.precision)

    def __getitem__(self, tasks: slice) -> TaskStatistics:
        return TaskStatistics(
            self.precision[tasks], self.b[tasks], self.c[tasks], self.rows[tasks]
        )

    def __add__(self, other: TaskStatistics) -> TaskStatistics:
        return combined((1, 1), (self, other), self.rows + other.rows)

    def total(self) -> TaskStatistics:
        """The sum over tasks, as the statistics of one task."""
        tensors = (self.A, self.b, self.c, self.rows)
        return TaskStatistics(*(t.sum(0, keepdim=True) for t in tensors))

    def shifted(self, offset: Tensor) -> TaskStatistics:
        r"""The factors $t_k(u + \delta_k)$ of $u = w - \delta$.

        Args:
            offset: (K, O, D) $\delta$.
        """
        b, c = shifted_factor(self.precision, self.b, self.c, offset)
        return dataclasses.replace(self, b=b, c=c)

    def trace_term(self, root: Tensor) -> Tensor:
        r"""$\mathrm{tr}(A_k\, \text{root}\,\text{root}^\top)$, (..., K, O)."""
        return ((self.precision @ root) * root).sum((-2, -1))

    def log_factor(self, mean: Tensor, effective: Tensor) -> Tensor:
        r"""$E[\log t_k(w)]$, (..., K, O), from the moments of w.

        Args:
            mean: (..., K, O, D).
            effective: $\mathrm{tr}(A_k\,\mathrm{cov}(w))$, (..., K, O).
        """
        quadratic = ((self.precision @ mean[..., None])[..., 0] * mean).sum(-1)
        return self.c + (self.b * mean).sum(-1) - 0.5 * (quadratic + effective)


def combined(
    weights: Sequence[float | Tensor], factors: Sequence[TaskStatistics], rows: Tensor
) -> TaskStatistics:
    r"""The factor $\prod_i t_i^{w_i}$ of each task: its natural parameters are linear.

    Args:
        weights: $w$.
        factors: $t$.
        rows: (K,) number of rows that the result stands for.
    """
    b, c = (weighted_sum(weights, [getattr(t, name) for t in factors]) for name in ("b", "c"))
    return TaskStatistics(combine(weights, [t.precision for t in factors]), b, c, rows)


def shifted_factor(A: Precision, b: Tensor, c: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    r"""Linear coefficient and constant of $t(u + \delta)$ as a function of u; A is the same.

    Args:
        A: (..., D, D), b: (..., D), c: (...) of the factor $c + b^T w - w^T A w / 2$.
        offset: (..., D) $\delta$.
    """
    # t(δ + u) = exp( c + bᵀδ − ½ δᵀAδ + (b − A δ)ᵀu − ½ uᵀAu )
    residual = b - (A @ offset[..., None])[..., 0]
    return residual, c + 0.5 * ((b + residual) * offset).sum(-1)


@dataclasses.dataclass(frozen=True)
class RowBlocks:
    """Rows of ragged tasks laid out in blocks of equal length, one task a block.

    Padding is confined to the last block of each task, so that memory stays near that of the rows
    while every product over rows is one batched matrix product.

    Args:
        index: (M, B) row of each place; padding repeats other rows.
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
        largest = int(count.max()) if len(task) else 1
        # the fewest blocks that hold the largest task, and no longer than it needs
        size = math.ceil(largest / math.ceil(largest / block_size))
        blocks = (count + size - 1) // size
        block_task = torch.repeat_interleave(blocks)
        position = torch.arange(len(block_task), device=task.device)
        position = position - (blocks.cumsum(0) - blocks)[block_task]
        start = (count.cumsum(0) - count)[block_task] + position * size
        place = start[:, None] + torch.arange(size, device=task.device)
        valid = place < (count.cumsum(0)[block_task])[:, None]
        place.clamp_(max=len(task) - 1)
        ordered = bool((task[1:] >= task[:-1]).all())
        index = place if ordered else task.argsort(stable=True)[place]
        return cls(index, valid, block_task, num_tasks)

    def chunks(self, num_features: int) -> Iterator[slice]:
        """Slices of blocks small enough to be gathered in cache."""
        step = max(1, _CHUNK_ELEMENTS // (self.index.shape[1] * num_features))
        for start in range(0, len(self.index), step):
            yield slice(start, start + step)

    def gather(self, rows: Tensor, at: slice) -> Tensor:
        """(N, ...) rows to (m, B, ...) blocks; padding holds zeros."""
        index, padding = self.index[at], ~self.valid[at].flatten()
        placed = rows.index_select(0, index.flatten())
        return placed.index_fill_(0, padding.nonzero()[:, 0], 0.0).unflatten(0, index.shape)

    def by_task(self, rows: Tensor) -> Tensor:
        """(N, ...) rows to (K, B, ...), where no task has more than one block of B rows."""
        placed = rows.new_zeros(self.num_tasks, self.index.shape[1], *rows.shape[1:])
        return placed.index_copy(0, self.task, self.gather(rows, slice(None)))

    def moments(self, phi: Tensor, weight: Tensor | None, target: Tensor) -> tuple[Tensor, Tensor]:
        r"""$\sum_{n \in k} \omega_{no}\, \phi_n \phi_n^\top$ and $\sum_{n \in k} \phi_n r_{np}$.

        Args:
            phi: (N, D) features.
            weight: (N, O) weights $\omega$; None for O = 1 and weights of 1.
            target: (N, P) values $r$.

        Returns:
            (K, O, D, D) and (K, P, D).
        """
        D, P = phi.shape[1], target.shape[1]
        O = 1 if weight is None else weight.shape[1]
        square, linear = (phi.new_zeros(self.num_tasks, n, D) for n in (O * D, P))
        for at in self.chunks(O * D):
            x, r = self.gather(phi, at), self.gather(target, at)
            weighted = x
            if weight is not None:
                weighted = (self.gather(weight, at)[..., None] * x[:, :, None]).flatten(2)
            square.index_add_(0, self.task[at], weighted.mT @ x)
            linear.index_add_(0, self.task[at], r.mT @ x)
        return square.unflatten(1, (O, D)), linear


def make_blocks(task: Tensor, num_tasks: int, num_features: int) -> RowBlocks:
    """Blocks long enough that the (M, D, D) products weigh no more than the rows themselves."""
    return RowBlocks.from_tasks(task, num_tasks, block_size=max(num_features, 256))


def task_sum(value: Tensor, task: Tensor, num_tasks: int) -> Tensor:
    """Sum the rows of (N, ...) values within each task: (K, ...)."""
    return value.new_zeros(num_tasks, *value.shape[1:]).index_add(0, task, value)
