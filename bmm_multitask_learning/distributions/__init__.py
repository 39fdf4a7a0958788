"""Distributions that torch and Pyro lack."""

from .affine import Affine
from .exchangeable_gaussian import ExchangeableGaussian
from .posterior_gaussian import PosteriorGaussian
from .wishart import LogCholeskyTransform, Wishart, positive_definite_matrix

__all__ = [
    "Affine",
    "ExchangeableGaussian",
    "LogCholeskyTransform",
    "PosteriorGaussian",
    "Wishart",
    "positive_definite_matrix",
]
