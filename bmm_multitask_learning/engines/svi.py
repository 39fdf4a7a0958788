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
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, final

import pyro
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor, nn
from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # public, not exported
from tqdm import tqdm

from ..data import TaskData
from .result import FitResult, NonFiniteBoundError
from .start import start_sites
from .variational_program import VariationalProgram

if TYPE_CHECKING:
    from ..model import MultitaskModel

_CHECK_EVERY = 50
_MAX_GRADIENT = 10.0


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

    Raises:
        ValueError: for sizes or rates that are not positive.

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

    def __post_init__(self) -> None:
        for name in ("steps", "num_particles"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}.")
        if not self.lr > 0 or not math.isfinite(self.lr):
            raise ValueError(f"lr must be positive and finite; got {self.lr}.")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(
                f"batch_size must be at least 1, or None for all rows; got {self.batch_size}."
            )
        if self.patience is not None and self.patience < 1:
            raise ValueError(
                f"patience must be at least 1, or None to never stop early; got {self.patience}."
            )
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay must not be negative; got {self.weight_decay}.")
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(
                f"validation_fraction must lie in [0, 1); got {self.validation_fraction}."
            )

    def fit(
        self,
        model: MultitaskModel,
        data: Mapping[str, TaskData],
        *,
        generator: torch.Generator,
        progress: bool,
    ) -> FitResult:
        """Fit a built model in place."""
        held_out: dict[str, TaskData] = {}
        if self.validation_fraction:
            seed = int(torch.randint(2**31 - 1, (), generator=generator))
            splits = {n: d.split(1 - self.validation_fraction, seed=seed) for n, d in data.items()}
            data, held_out = ({n: s[i] for n, s in splits.items()} for i in (0, 1))
        with torch.no_grad():
            sites = {
                name: start_sites(
                    model[name], model.rows(name, part), generator, progress=progress
                )
                for name, part in data.items()
            }
        program = VariationalProgram(model, data, sites)
        model.feature_modules.train(not program.fixed_features)
        report = self._optimise(program, data, held_out, generator, progress=progress)
        model.feature_modules.eval()
        bound = program.settle(data)
        return dataclasses.replace(report, bound=bound)

    def _optimise(
        self,
        program: VariationalProgram,
        data: Mapping[str, TaskData],
        held_out: Mapping[str, TaskData],
        generator: torch.Generator,
        *,
        progress: bool,
    ) -> FitResult:
        optimiser = program.optimiser(self.lr, self.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            optimiser, self.steps, eta_min=0.01 * self.lr
        )
        elbo = TraceMeanField_ELBO(num_particles=self.num_particles)
        batches = _batches(data, self.batch_size, generator)
        stopper = EarlyStopping(self.patience)
        losses: list[Tensor] = []
        jumps: list[tuple[float, float]] = []
        period = due = max(self.steps // 4, self._epoch(data))
        for step in tqdm(range(self.steps), disable=not progress, desc="SVI", unit="step"):
            program.anneal(step / self.steps)
            try:
                losses.append(self._step(step, program, next(batches), elbo, optimiser))
            except LinAlgError as error:
                # what is not finite has no Cholesky factor
                raise NonFiniteBoundError(program.diagnose(_first_bad(losses))) from error
            schedule.step()
            if (step + 1) % _CHECK_EVERY == 0 or step + 1 == self.steps:
                recent = torch.stack(losses[-_CHECK_EVERY:])
                if not bool(torch.isfinite(recent).all()):
                    raise NonFiniteBoundError(program.diagnose(_first_bad(losses)))
                score = program.validate(held_out) if held_out else -float(recent.mean())
                if stopper.should_stop(score, program if held_out else None):
                    break
                if due <= step + 1 <= self.steps // 2:  # while steps are long
                    due += period
                    jumps += program.renew(data, optimiser)
                    if not held_out:
                        stopper.begin()
        stopper.restore(program)
        history = [-value for value in torch.stack(losses).tolist()]
        return FitResult(history[-1], stopper.stopped, tuple(history), "SVI", jumps=tuple(jumps))

    def _epoch(self, data: Mapping[str, TaskData]) -> int:
        """Steps in which every row of every family is seen."""
        sizes = [part.num_rows for part in data.values()]
        return max(math.ceil(n / (self.batch_size or n)) for n in sizes)

    def _step(
        self,
        step: int,
        program: VariationalProgram,
        batch: dict[str, TaskData],
        elbo: TraceMeanField_ELBO,
        optimiser: torch.optim.Optimizer,
    ) -> Tensor:
        """One step of Adam and of the factors; returns the loss before it."""
        program.load(batch)
        optimiser.zero_grad()
        with pyro.validation_enabled(is_validate=False), warnings.catch_warnings():
            # Pyro warns of NaN; the check every few steps raises, and says where
            warnings.filterwarnings("ignore", message="Encountered NaN")
            loss: Tensor = elbo.differentiable_loss(program.model, program.guide)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(
            program.gradient_parameters(), _MAX_GRADIENT * program.num_rows
        )
        # a step that is not finite moves nothing, so that what broke it can be told
        finite = torch.isfinite(norm)
        for parameter in program.gradient_parameters():
            if parameter.grad is not None:
                parameter.grad = torch.where(finite, parameter.grad, 0.0)
        optimiser.step()
        program.move_sites(self._site_rate(step, program))
        return loss.detach()

    def _site_rate(self, step: int, program: VariationalProgram) -> float:
        """Step of the factors: whole with all rows and exact factors, else decreasing."""
        if self.batch_size is None:
            return 1.0 if program.exact else 0.5
        epoch = max(1.0, program.num_rows / (self.batch_size * len(program.sites)))
        return (1 + epoch + step) ** -0.75 if epoch > 1 else 0.5


class EarlyStopping:
    """Stops after `patience` checks without a better score; keeps the best state it was given."""

    def __init__(self, patience: int | None) -> None:
        self.patience = patience
        self.stopped = False
        self._state: dict[str, Any] | None = None
        self.begin()

    def begin(self) -> None:
        """Wait anew: scores that come are not to be compared with those that were."""
        self.best, self.waited = -math.inf, 0

    def should_stop(self, score: float, program: VariationalProgram | None) -> bool:
        """Whether to stop after a check with this score; `program` is kept if it is the best."""
        if score > self.best + 1e-6 * abs(score):
            self.best, self.waited = score, 0
            if program is not None:
                self._state = program.snapshot()
        else:
            self.waited += 1
        self.stopped = self.patience is not None and self.waited >= self.patience
        return self.stopped

    def restore(self, program: VariationalProgram) -> None:
        """Back to the best state that was kept, if any was."""
        if self._state is not None:
            program.restore(self._state)


def _first_bad(losses: list[Tensor]) -> int:
    """The first step whose loss is not finite; the step after the last where all are."""
    finite = [bool(torch.isfinite(loss)) for loss in losses]
    return finite.index(False) if False in finite else len(losses)


def _batches(
    data: Mapping[str, TaskData], batch_size: int | None, generator: torch.Generator
) -> Iterator[dict[str, TaskData]]:
    """Endless batches of every family; row weights scale each to the whole."""
    if batch_size is None:
        while True:
            yield dict(data)
    streams = {name: _family_batches(part, batch_size, generator) for name, part in data.items()}
    while True:
        yield {name: next(stream) for name, stream in streams.items()}


def _family_batches(
    data: TaskData, batch_size: int, generator: torch.Generator
) -> Iterator[TaskData]:
    while True:
        for batch in data.batches(min(batch_size, data.num_rows), generator=generator):
            yield data.batch(batch)
