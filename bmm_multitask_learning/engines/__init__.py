"""Engines: how q(W) and the hyperparameters are found."""

from .callbacks import Callback, TensorBoard, Unfreezing
from .checkpoint import Checkpoint
from .coordinate_ascent import CoordinateAscent
from .nuts import NUTS
from .result import Engine, FitResult, NonFiniteBoundError
from .svi import SVI

__all__ = [
    "NUTS",
    "SVI",
    "Callback",
    "Checkpoint",
    "CoordinateAscent",
    "Engine",
    "FitResult",
    "NonFiniteBoundError",
    "TensorBoard",
    "Unfreezing",
]
