"""Backbones: modules from inputs to features."""

from .mlp import MLP
from .with_constant import WithConstant

__all__ = ["MLP", "WithConstant"]
