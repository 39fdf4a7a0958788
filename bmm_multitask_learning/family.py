"""Tasks that share a kind of output: likelihood, prior, and what a fit knows of them."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, final

import torch
from torch import Tensor, nn

from .hyperparameters import Eta
from .likelihoods import Categorical, Gaussian, Likelihood
from .posterior import WeightPosterior
from .priors import SharedGaussian, TaskPrior
from .sizes import Sizes, free_memory

_POSTERIOR = (
    "log_weights",
    "means",
    "own",
    "common",
    "log_normaliser",
    "centre_mean",
    "centre_root",
)
# Matrices of shape (K, O, D, D) alive at once in a fit: statistics, factor, root, shared root.
_COPIES = 5


@final
class Family(nn.Module):
    """Tasks that share a kind of output: their likelihood and their prior.

    Args:
        prior: of the tasks' weights; `SharedGaussian()` by default.
        likelihood: of the targets; `Gaussian()` by default.
        reader: what the family makes of the backbone's output, a module `reader(h, x, task)` from
            h (N, ...), inputs x (N, ...) and task indices (N,) to features (N, D) of rows, or
            (N, W, D) of words, NaN at places without a word; targets are then (N, W). None: the
            output itself.
    """

    prior: TaskPrior
    likelihood: Likelihood
    reader: nn.Module | None

    def __init__(
        self,
        prior: TaskPrior | None = None,
        likelihood: Likelihood | None = None,
        *,
        reader: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.prior = SharedGaussian() if prior is None else prior
        self.likelihood = Gaussian() if likelihood is None else likelihood
        self.reader = reader
        self.tasks: tuple[Hashable, ...] = ()
        self.rows_per_task: tuple[int, ...] = ()

    def build(
        self, sizes: Sizes, tasks: tuple[Hashable, ...], like: Tensor, task_features: Tensor | None
    ) -> None:
        """Register every tensor, eagerly."""
        _check_memory(sizes, like)
        if self.prior.amortised is not None and not isinstance(self.likelihood, Categorical):
            raise ValueError(
                "amortised= makes weights from the mean feature of each class, which "
                f"{type(self.likelihood).__name__} targets do not have. Take "
                "likelihood=Categorical(num_classes), or amortised=None."
            )
        self.sizes = sizes
        self.tasks = tasks
        self.rows_per_task = (0,) * len(tasks)
        self.prior.build(sizes, like, task_features)
        self.likelihood.build(sizes, like)
        for name in _POSTERIOR:
            self.register_buffer(f"posterior_{name}", None)
        for name in self.prior.transforms:
            self.register_buffer(f"draws_{name}", None)

    def set_posterior(self, posterior: WeightPosterior) -> None:
        """Keep q(W)."""
        tensors = posterior.tensors()
        for name in _POSTERIOR:
            value = tensors[name].detach() if name in tensors else None
            self.register_buffer(f"posterior_{name}", value)

    @property
    def posterior(self) -> WeightPosterior:
        """q(W) of the prior's weight vectors."""
        kept = {name: self._buffers.get(f"posterior_{name}") for name in _POSTERIOR}
        if kept["means"] is None:
            raise RuntimeError("this model has no posterior yet: call fit(model, data) first.")
        return WeightPosterior.from_tensors({n: v for n, v in kept.items() if v is not None})

    def set_draws(self, eta: Eta) -> None:
        r"""Keep draws (S, ...) of the prior's hyperparameters: predictions average over them."""
        for name, value in eta.items():
            self.register_buffer(f"draws_{name}", value)

    @property
    def draws(self) -> Eta:
        r"""Draws of $\eta$ where the engine made any, else its one value."""
        return self.kept_draws or self.prior.eta

    @property
    def kept_draws(self) -> Eta:
        r"""Draws (S, ...) of $\eta$ where the engine made any, else none."""
        kept = {n: self.get_buffer(f"draws_{n}") for n in self.prior.transforms}
        return {} if any(value is None for value in kept.values()) else kept

    @property
    def weights(self) -> WeightPosterior:
        """q(W) of the tasks: `.mean`, `.covariance`, `.std`, `.sample(n)`, `.interval(0.9)`."""
        return self.prior.expand(self.posterior)

    def index_of(self, tasks: Any) -> Tensor:
        """Index of each label, -1 for one outside the fit."""
        place = {label: i for i, label in enumerate(self.tasks)}
        return torch.tensor([place.get(label, -1) for label in tasks], dtype=torch.long)


def _check_memory(sizes: Sizes, like: Tensor) -> None:
    """Refuse, before allocating, what cannot fit."""
    K, O, D = sizes.num_tasks, sizes.num_outputs, sizes.num_features
    needed = _COPIES * K * O * D * D * like.element_size()
    available = free_memory(like.device)
    if needed > available:
        raise MemoryError(
            f"{K} tasks x {O} outputs x {D} x {D} features need about {needed / 2**30:.1f} GiB "
            f"for their covariances; {available / 2**30:.1f} GiB free on {like.device}. Reduce "
            "the features first (PCA, or a backbone with a narrower output), fit fewer tasks at "
            "once, or use dtype=torch.float32."
        )
