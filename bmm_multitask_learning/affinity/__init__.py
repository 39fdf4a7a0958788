"""Which tasks help which: pairs and groups of tasks, before any of them is trained together."""

from .result import TaskAffinity, TaskPair
from .task_affinity import task_affinity

__all__ = ["TaskAffinity", "TaskPair", "task_affinity"]
