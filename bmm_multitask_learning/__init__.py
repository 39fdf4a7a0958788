"""Bayesian multi-task learning: related tasks, their relations, honest predictions."""

from . import datasets, metrics, plots
from .affinity import TaskAffinity, TaskPair, task_affinity
from .cross_validation import compare
from .data import LeaveTasksOut, TaskData, families_from_frame
from .engines import NUTS, SVI, CoordinateAscent, FitResult
from .estimators import MultitaskClassifier, MultitaskRegressor
from .family import Family
from .fitting import fit
from .likelihoods import Bernoulli, Categorical, Gaussian, Ordinal, Poisson, StudentT
from .model import MultitaskModel
from .persistence import load
from .prediction import Prediction
from .priors import (
    IndependentTasks,
    LatentHierarchy,
    PooledTasks,
    SharedGaussian,
    SparseBayesian,
    TaskClustering,
    TaskCovariance,
    TaskMean,
    TaskPrior,
    VariationalWeighting,
)

__version__ = "0.1.0"

__all__ = [
    "NUTS",
    "SVI",
    "Bernoulli",
    "Categorical",
    "CoordinateAscent",
    "Family",
    "FitResult",
    "Gaussian",
    "IndependentTasks",
    "LatentHierarchy",
    "LeaveTasksOut",
    "MultitaskClassifier",
    "MultitaskModel",
    "MultitaskRegressor",
    "Ordinal",
    "Poisson",
    "PooledTasks",
    "Prediction",
    "SharedGaussian",
    "SparseBayesian",
    "StudentT",
    "TaskAffinity",
    "TaskClustering",
    "TaskCovariance",
    "TaskData",
    "TaskMean",
    "TaskPair",
    "TaskPrior",
    "VariationalWeighting",
    "compare",
    "datasets",
    "families_from_frame",
    "fit",
    "load",
    "metrics",
    "plots",
    "task_affinity",
]
