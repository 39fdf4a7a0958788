"""How much the loss of each head counts: strategies for any training loop."""

from .dynamic_weight_average import DynamicWeightAverage
from .fixed_weights import FixedWeights
from .loss_weighting import LossWeighting
from .torchjd_adapter import Aggregated, Scalarized
from .uncertainty_weighting import UncertaintyWeighting
from .variational_loss_weighting import VariationalLossWeighting

__all__ = [
    "Aggregated",
    "DynamicWeightAverage",
    "FixedWeights",
    "LossWeighting",
    "Scalarized",
    "UncertaintyWeighting",
    "VariationalLossWeighting",
]
