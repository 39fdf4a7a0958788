"""One fit by several processes, each with its share of the rows.

Within a process group of `torch.distributed` (which `torchrun` makes) the engines add up over
processes what they add up over rows. Without one, everything here leaves its argument as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn

from .data import Batch, TaskData


def num_processes() -> int:
    """Processes of the group; 1 without a group."""
    grouped = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if grouped else 1


def process() -> int:
    """Number of this process in the group, from 0."""
    return distributed.get_rank() if num_processes() > 1 else 0


def share(data: TaskData) -> TaskData:
    """The rows of this process: the n-th of equal parts, in the order of the rows.

    Args:
        data: all rows, the same in every process.

    Raises:
        ValueError: where there are fewer rows than processes.

    Example:
        >>> from bmm_multitask_learning import datasets
        >>> data, truth = datasets.make_clusters(num_tasks=6, seed=0)
        >>> share(data).num_rows == data.num_rows  # a process without others has all
        True
    """
    count = num_processes()
    if data.num_rows < count:
        raise ValueError(f"{data.num_rows} rows are too few for {count} processes.")
    first, last = (i * data.num_rows // count for i in (process(), process() + 1))
    return data.rows(slice(first, last))


def standing_for_all(data: TaskData) -> TaskData:
    """A share with weights such that the mean over processes is the sum over all rows."""
    count = num_processes()
    if count == 1:
        return data
    every = torch.arange(data.num_rows, device=data.device)
    return data.batch(Batch(every, data.y.new_full((data.num_rows,), count)))


def all_reduce_sum(value: Tensor) -> Tensor:
    """The sum over processes; without a gradient."""
    return _reduced(value, distributed.ReduceOp.SUM)


def all_reduce_mean(value: Tensor) -> Tensor:
    """The mean over processes; without a gradient."""
    return value if num_processes() == 1 else all_reduce_sum(value) / num_processes()


def all_reduce_max(value: Tensor) -> Tensor:
    """The maximum over processes."""
    return _reduced(value, distributed.ReduceOp.MAX)


def sum_before(value: Tensor) -> Tensor:
    """The sum over the processes with a lower number."""
    if num_processes() == 1:
        return torch.zeros_like(value)
    parts = [torch.empty_like(value) for _ in range(num_processes())]
    distributed.all_gather(parts, value.contiguous())
    return torch.stack(parts)[: process()].sum(0)


def broadcast(module: nn.Module) -> None:
    """Parameters and buffers of the first process into those of all."""
    if num_processes() > 1:
        for value in module.state_dict().values():
            distributed.broadcast(value, 0)


def wait_for_all() -> None:
    """Return when every process has come here."""
    if num_processes() > 1:
        distributed.barrier()


def _reduced(value: Tensor, operation: distributed.ReduceOp.RedOpType) -> Tensor:
    if num_processes() == 1:
        return value
    value = value.detach().clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(value, operation)
    return value
