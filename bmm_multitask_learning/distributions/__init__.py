"""Distributions that torch and Pyro lack."""

from .affine import Affine
from .brownian_tree import BrownianTree
from .cumulative import PoissonWithCdf, StudentTWithCdf
from .exchangeable_gaussian import ExchangeableGaussian
from .gaussian_mixture import GaussianMixture
from .generalized_inverse_gaussian import GIG, GeneralizedInverseGaussian
from .matrix_normal import MatrixNormal
from .spherical_cauchy import SphericalCauchy
from .wishart import LogCholeskyTransform, Wishart, positive_definite_matrix

__all__ = [
    "GIG",
    "Affine",
    "BrownianTree",
    "ExchangeableGaussian",
    "GaussianMixture",
    "GeneralizedInverseGaussian",
    "LogCholeskyTransform",
    "MatrixNormal",
    "PoissonWithCdf",
    "SphericalCauchy",
    "StudentTWithCdf",
    "Wishart",
    "positive_definite_matrix",
]
