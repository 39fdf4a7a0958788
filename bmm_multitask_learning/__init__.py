"""Bayesian multi-task learning: related tasks, their relations, honest predictions."""

from . import datasets, metrics, plots
from .data import LeaveTasksOut, TaskData
from .engines import NUTS, SVI, CoordinateAscent, FitResult
from .estimators import MultitaskClassifier, MultitaskRegressor
from .fitting import fit
from .likelihoods import Bernoulli, Categorical, Gaussian, Poisson, StudentT
from .model import Family, MultitaskModel
from .persistence import load
from .prediction import Prediction
from .priors import IndependentTasks, PooledTasks, SharedGaussian, TaskClustering, TaskPrior

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
    "LeaveTasksOut",
    "MultitaskClassifier",
    "MultitaskModel",
    "MultitaskRegressor",
    "Poisson",
    "PooledTasks",
    "Prediction",
    "SharedGaussian",
    "StudentT",
    "TaskClustering",
    "TaskData",
    "TaskPrior",
    "datasets",
    "fit",
    "load",
    "metrics",
    "plots",
]
