r"""Stochastic variational inference: any likelihood, any backbone, minibatches, CPU or GPU.

The guide is $q(\eta)\,q(W \mid \eta)$: an independent Gaussian for each unconstrained
hyperparameter, and the prior conditioned on a Gaussian factor for each task (`sites`). Pyro's
`TraceMeanField_ELBO` adds up the bound; the divergence of $q(W \mid \eta)$ and the expected log
likelihood enter it in closed form or by quadrature, so that its gradient is quiet. Hyperparameters
and backbone move by Adam, the factors by natural gradients.

References:
    Hoffman, Blei, Wang and Paisley, Stochastic variational inference (2013).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, final

import torch

from ..data import Sampler, TaskData
from ..processes import broadcast
from ..weighting import LossWeighting
from .callbacks import Callback
from .checkpoint import Checkpoint, Keeper, identity_of
from .optimiser import Grouping
from .result import FitResult
from .snapshots import part_of, put_back
from .start import start_sites
from .training import Training
from .variational_program import VariationalProgram

if TYPE_CHECKING:
    from ..model import MultitaskModel

_DTYPES = {None: None, "bf16": torch.bfloat16, "fp16": torch.float16}


@final
@dataclasses.dataclass(frozen=True)
class SVI:
    r"""Stochastic variational inference with Pyro.

    It starts from the closed form on the backbone's first features. The learning rate decays to a
    hundredth along a cosine; gradients are clipped; with `patience` it stops early, by the
    held-out log predictive density if `validation_fraction` is positive and by the smoothed bound
    otherwise, and goes back to the best state that validation saw. A tree is sought anew after a
    quarter and half of the steps, each time at least an epoch after the last; the result's `jumps`
    has the bound before and after it became another.

    Args:
        steps: gradient steps, at most.
        lr: Adam's learning rate.
        batch_size: rows a step and family; None for all.
        num_particles: draws of the hyperparameters a step.
        weight_decay: of the backbone's parameters (AdamW).
        validation_fraction: share of each task's rows held out for early stopping.
        patience: checks (every 50 steps) without improvement before it stops; None: never.
        backbone_lr: the backbone's own learning rate, or a function from the backbone to groups
            `{"params": [...], "lr": ...}` as torch's optimisers take them, for rates by layer;
            None: `lr`. What it leaves out has `lr`, as readers have.
        accumulate: batches whose gradients and factors are averaged into one step: without
            dropout, that of one batch of their joint size, in the memory of one.
        precision: "bf16" or "fp16" runs a float32 backbone in mixed precision while it is
            trained; heads, bound and predictions stay as they are. None: the backbone's own.
        callbacks: see `Callback`; called in their order.
        checkpoint: where to write the state, and to go on from it; see `Checkpoint`.
        sampler: draws the rows of a batch; None: shuffled passes.
        weighting: weighs the families' negative bounds, in the order of the model's families and
            as means over their targets, in what moves backbone and guides; None: the bound, their
            sum. What it learned is in the result's `weighting`.

    Raises:
        ValueError: for sizes or rates that are not positive, an unknown precision, or one that the
            backbone's parameters have no use for; a sampler without batches; a weighting in fp16.

    Example:
        >>> SVI(steps=200, batch_size=64).lr
        0.01
    """

    steps: int = 1000
    lr: float = 1e-2
    batch_size: int | None = None
    num_particles: int = 1
    weight_decay: float = 0.0
    validation_fraction: float = 0.0
    patience: int | None = None
    backbone_lr: float | Grouping | None = None
    accumulate: int = 1
    precision: Literal["bf16", "fp16"] | None = None
    callbacks: Sequence[Callback] = ()
    checkpoint: Checkpoint | None = None
    sampler: Sampler | None = None
    weighting: LossWeighting | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "num_particles", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}.")
        for name, rate in (("lr", self.lr), ("backbone_lr", self.backbone_lr)):
            if isinstance(rate, float | int) and not 0 < rate < math.inf:
                raise ValueError(f"{name} must be positive and finite; got {rate}.")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(
                f"batch_size must be at least 1, or None for all rows; got {self.batch_size}."
            )
        if self.batch_size is None and self.accumulate > 1:
            raise ValueError(
                f"accumulate={self.accumulate} adds up batches, and batch_size=None is all rows "
                "at once; give a batch_size."
            )
        if self.patience is not None and self.patience < 1:
            raise ValueError(
                f"patience must be at least 1, or None to never stop early; got {self.patience}."
            )
        if self.sampler is not None and self.batch_size is None:
            raise ValueError("a sampler draws batches: give batch_size= as well; got None.")
        if self.weighting is not None and self.precision == "fp16":
            raise ValueError("weighting= has no use for the scaled losses of fp16; take 'bf16'.")
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay must not be negative; got {self.weight_decay}.")
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(
                f"validation_fraction must lie in [0, 1); got {self.validation_fraction}."
            )
        if self.precision not in _DTYPES:
            raise ValueError(f"precision must be 'bf16', 'fp16' or None; got {self.precision!r}.")

    def fit(
        self,
        model: MultitaskModel,
        data: Mapping[str, TaskData],
        *,
        generator: torch.Generator,
        progress: bool,
    ) -> FitResult:
        """Fit a built model in place."""
        self._check_precision(model)
        broadcast(model.feature_modules)
        keeper = None
        if self.checkpoint is not None:
            keeper = Keeper(self.checkpoint, identity_of(self, model, data, generator))
        held_out: dict[str, TaskData] = {}
        if self.validation_fraction:
            seed = int(torch.randint(2**31 - 1, (), generator=generator))
            splits = {n: d.split(1 - self.validation_fraction, seed=seed) for n, d in data.items()}
            data, held_out = ({n: s[i] for n, s in splits.items()} for i in (0, 1))
        found = None if keeper is None else keeper.find(model.device)
        if found is None:
            with torch.no_grad():
                sites = {
                    name: start_sites(
                        model[name],
                        model.rows(name, part, shared=True),
                        generator,
                        progress=progress,
                    )
                    for name, part in data.items()
                }
        else:
            sites = put_back(model, part_of(found.tensors, "program."))
        program = VariationalProgram(model, data, sites, _DTYPES[self.precision])
        model.feature_modules.train(not program.fixed_features)
        training = Training(self, program, data, held_out, generator)
        if found is not None:
            training.restore(found)
        callbacks = [*self.callbacks] if keeper is None else [*self.callbacks, keeper]
        report = training.run(callbacks, progress=progress)
        model.feature_modules.eval()
        return dataclasses.replace(report, bound=training.settle())

    def _check_precision(self, model: MultitaskModel) -> None:
        trained = {p.dtype for p in model.backbone.parameters() if p.requires_grad}
        if self.precision is not None and torch.float32 not in trained:
            raise ValueError(
                f"precision={self.precision!r} is for a backbone with float32 parameters to train;"
                f" got {[str(dtype) for dtype in trained] or 'nothing to train'}. Convert it with "
                "backbone.float(), or leave precision out."
            )
