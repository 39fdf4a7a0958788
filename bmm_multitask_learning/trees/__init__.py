"""Trees of tasks: what they are, how weights diffuse along them, how they are found."""

from .task_tree import TaskTree

__all__ = ["TaskTree"]
