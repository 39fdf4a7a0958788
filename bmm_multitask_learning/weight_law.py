"""q(W) as a Pyro distribution."""

from __future__ import annotations

from typing import ClassVar, final

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from .posterior import WeightPosterior


@final
class WeightLaw(TorchDistribution):
    r"""$q(W)$ of M weight vectors, event shape (M, O, D).

    Args:
        posterior: q(W); it has no parameters that a gradient moves.

    Example:
        >>> from bmm_multitask_learning import MultitaskModel, datasets, fit
        >>> data, truth = datasets.make_clusters(num_tasks=8, num_features=3, seed=0)
        >>> model = MultitaskModel()
        >>> result = fit(model, data, progress=False)
        >>> WeightLaw(model.weights).event_shape
        torch.Size([8, 1, 3])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support: ClassVar[constraints.Constraint] = constraints.independent(constraints.real, 3)

    def __init__(self, posterior: WeightPosterior) -> None:
        self.posterior = posterior
        M, _, O, D = posterior.means.shape
        super().__init__(torch.Size(), torch.Size((M, O, D)), validate_args=False)

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """Joint draws, seeded by torch's generator."""
        generator = torch.Generator(self.posterior.means.device)
        generator.manual_seed(int(torch.randint(2**31 - 1, ())))
        shape = torch.Size(sample_shape)
        draws = self.posterior.draw(shape.numel(), generator)
        return draws.reshape(*shape, *self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """See `WeightPosterior.log_prob`."""
        return self.posterior.log_prob(value)
