"""Backbones: modules from inputs to features."""

from .mlp import MLP

__all__ = ["MLP"]
