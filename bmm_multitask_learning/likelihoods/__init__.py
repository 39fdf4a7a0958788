"""Likelihoods: how a row's target depends on its latent value."""

from .bernoulli import Bernoulli
from .categorical import Categorical
from .counts import Poisson
from .gaussian import Gaussian
from .likelihood import Likelihood, QuadraticLikelihood, Rows
from .ordinal import Ordinal
from .student_t import StudentT

__all__ = [
    "Bernoulli",
    "Categorical",
    "Gaussian",
    "Likelihood",
    "Ordinal",
    "Poisson",
    "QuadraticLikelihood",
    "Rows",
    "StudentT",
]
