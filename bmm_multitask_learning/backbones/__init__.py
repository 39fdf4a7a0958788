"""Backbones: modules from inputs to features."""

from .mlp import MLP
from .with_constant import WithConstant, with_constant

__all__ = ["MLP", "WithConstant", "with_constant"]
