"""Distributions that torch and Pyro lack."""

from .affine import Affine
from .cumulative import PoissonWithCdf, StudentTWithCdf
from .exchangeable_gaussian import ExchangeableGaussian
from .gaussian_mixture import GaussianMixture
from .posterior_gaussian import PosteriorGaussian
from .wishart import LogCholeskyTransform, Wishart, positive_definite_matrix

__all__ = [
    "Affine",
    "ExchangeableGaussian",
    "GaussianMixture",
    "LogCholeskyTransform",
    "PoissonWithCdf",
    "PosteriorGaussian",
    "StudentTWithCdf",
    "Wishart",
    "positive_definite_matrix",
]
