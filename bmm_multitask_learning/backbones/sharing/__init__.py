"""Sharing architectures: one column of features a task, and how columns learn from each other."""

from .columns import Column, OwnColumn
from .cross_stitch import CrossStitch
from .mixture_of_experts import MixtureOfExperts
from .sluice import Sluice
from .soft_sharing import SoftSharing
from .towers import Towers

__all__ = [
    "Column",
    "CrossStitch",
    "MixtureOfExperts",
    "OwnColumn",
    "Sluice",
    "SoftSharing",
    "Towers",
]
