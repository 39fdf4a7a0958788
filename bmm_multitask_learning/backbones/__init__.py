"""Backbones: modules from inputs to features."""

from .latent_encoder import LatentEncoder
from .mlp import MLP
from .with_constant import WithConstant, with_constant

__all__ = ["MLP", "LatentEncoder", "WithConstant", "with_constant"]
