"""Engines: how q(W) and the hyperparameters are found."""

from .coordinate_ascent import CoordinateAscent
from .nuts import NUTS
from .result import Engine, FitResult, NonFiniteBoundError
from .svi import SVI

__all__ = ["NUTS", "SVI", "CoordinateAscent", "Engine", "FitResult", "NonFiniteBoundError"]
