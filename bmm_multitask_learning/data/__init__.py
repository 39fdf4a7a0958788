"""Long-form data of K tasks: rows, labels, splits and batches."""

from .families import families_from_frame
from .leave_tasks_out import LeaveTasksOut
from .samplers import (
    Annealed,
    Batch,
    Proportional,
    Resampled,
    RoundRobin,
    RowsByTask,
    Sampler,
    Tempered,
)
from .task_data import TaskData

__all__ = [
    "Annealed",
    "Batch",
    "LeaveTasksOut",
    "Proportional",
    "Resampled",
    "RoundRobin",
    "RowsByTask",
    "Sampler",
    "TaskData",
    "Tempered",
    "families_from_frame",
]
