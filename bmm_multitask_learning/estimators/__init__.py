"""The scikit-learn face of the library."""

from .classifier import MultitaskClassifier
from .regressor import MultitaskRegressor

__all__ = ["MultitaskClassifier", "MultitaskRegressor"]
