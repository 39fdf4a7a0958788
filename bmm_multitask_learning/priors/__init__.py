"""Priors over task weights: three references and the methods."""

from .ridge import IndependentTasks, PooledTasks
from .shared_gaussian import SharedGaussian
from .task_clustering import TaskClustering
from .task_prior import TaskPrior

__all__ = ["IndependentTasks", "PooledTasks", "SharedGaussian", "TaskClustering", "TaskPrior"]
