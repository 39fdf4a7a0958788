"""Priors over task weights: three references and the methods."""

from ..distributions import GIG
from .latent_hierarchy import LatentHierarchy
from .ridge import IndependentTasks, PooledTasks
from .shared_gaussian import SharedGaussian
from .sparse_bayesian import SparseBayesian
from .task_clustering import TaskClustering
from .task_covariance import TaskCovariance
from .task_mean import TaskMean
from .task_prior import TaskPrior
from .variational_weighting import VariationalWeighting

__all__ = [
    "GIG",
    "IndependentTasks",
    "LatentHierarchy",
    "PooledTasks",
    "SharedGaussian",
    "SparseBayesian",
    "TaskClustering",
    "TaskCovariance",
    "TaskMean",
    "TaskPrior",
    "VariationalWeighting",
]
