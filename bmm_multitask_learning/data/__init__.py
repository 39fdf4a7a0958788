"""Long-form data of K tasks: rows, labels, splits and batches."""

from .families import families_from_frame
from .leave_tasks_out import LeaveTasksOut
from .sampling import Batch
from .task_data import TaskData

__all__ = ["Batch", "LeaveTasksOut", "TaskData", "families_from_frame"]
