"""The sizes that fix the shape of every tensor of a model."""

from __future__ import annotations

import dataclasses
import os

import torch


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of one family of tasks.

    Args:
        num_tasks: K.
        num_features: D, the width of the backbone's output.
        num_outputs: O, weight vectors a task: targets, or classes.
        num_task_features: F, 0 without task features.
    """

    num_tasks: int
    num_features: int
    num_outputs: int = 1
    num_task_features: int = 0


def free_memory(device: torch.device) -> int:
    """Bytes of memory that are free on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
