"""Backbones: modules from inputs to features."""

from .adapters import lora
from .backbone import Backbone
from .cached_features import CachedFeatures
from .freezing import heads_only, layerwise_groups, train_top
from .latent_encoder import LatentEncoder
from .mlp import MLP
from .readers import Pooled, Words
from .sentence_encoder import SentenceEncoder
from .text_encoder import TextEncoder, find_text_encoder
from .transformer_encoder import TransformerEncoder
from .with_constant import WithConstant, with_constant

__all__ = [
    "MLP",
    "Backbone",
    "CachedFeatures",
    "LatentEncoder",
    "Pooled",
    "SentenceEncoder",
    "TextEncoder",
    "TransformerEncoder",
    "WithConstant",
    "Words",
    "find_text_encoder",
    "heads_only",
    "layerwise_groups",
    "lora",
    "train_top",
    "with_constant",
]
