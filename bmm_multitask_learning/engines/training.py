"""A fit by SVI under way: its steps, and the state from which it can go on."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast, final

import pyro
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor, nn
from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # public, not exported
from tqdm import tqdm

from ..data import Proportional, TaskData
from ..processes import all_reduce_max, all_reduce_mean, num_processes, standing_for_all
from ..sites import mean_factor
from ..statistics import TaskStatistics
from .batches import BatchStream
from .callbacks import Callback
from .draws import Draws
from .early_stopping import EarlyStopping
from .optimiser import make_optimiser
from .result import FitResult, NonFiniteBoundError
from .snapshots import part_of
from .variational_program import VariationalProgram

if TYPE_CHECKING:
    from .svi import SVI

_CHECK_EVERY = 50
_MAX_GRADIENT = 10.0
# Share of a learning rate that is left at the end.
_LAST_RATE = 0.01


class State(NamedTuple):
    """Everything that a fit needs to go on with the same bits: tensors, and what JSON holds."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]


@final
class Training:
    """A fit by `SVI` under way, as callbacks see it.

    Args:
        settings: the engine.
        program: model, guide and factors.
        data: rows of each family that train.
        held_out: rows of each family that validate; none.
        generator: of the minibatches.

    Attributes:
        step: steps made.
        optimiser: AdamW; its first group is the guide's.
    """

    def __init__(
        self,
        settings: SVI,
        program: VariationalProgram,
        data: Mapping[str, TaskData],
        held_out: Mapping[str, TaskData],
        generator: torch.Generator,
    ) -> None:
        self.settings = settings
        self.program = program
        self.data, self.held_out = data, held_out
        self.generator = generator
        self.step = 0
        self.optimiser = make_optimiser(
            program.guide_modules,
            program.network.backbone,
            program.network.feature_modules,
            lr=settings.lr,
            backbone_lr=settings.backbone_lr,
            weight_decay=settings.weight_decay,
        )
        self.weighting = copy.deepcopy(settings.weighting)
        if self.weighting is not None:
            learned = list(self.weighting.to(program.network.device).parameters())
            if learned:
                self.optimiser.add_param_group({"params": learned, "weight_decay": 0.0})
        self.draws = Draws(program.network.device, generator.initial_seed())
        self._rates = [group["lr"] for group in self.optimiser.param_groups]
        self._scaler = torch.amp.GradScaler(
            program.network.device.type, enabled=settings.precision == "fp16"
        )
        self._elbo = TraceMeanField_ELBO(num_particles=settings.num_particles)
        sampler = settings.sampler or Proportional()
        self._streams = {
            name: BatchStream(standing_for_all(part), settings.batch_size, generator, sampler)
            for name, part in data.items()
        }
        self._stopper = EarlyStopping(settings.patience)
        self._stopped = False
        self._losses: list[Tensor] = []
        self._jumps: list[tuple[float, float]] = []
        self._period = self._due = max(settings.steps // 4, self._epoch())

    @property
    def bound(self) -> float:
        """The bound before the last step, estimated on its batch."""
        return -float(self._losses[-1]) if self._losses else math.nan

    def stop(self) -> None:
        """Make the present step the last."""
        self._stopped = True

    # ---- steps --------------------------------------------------------------------------------

    def run(self, callbacks: Sequence[Callback], *, progress: bool) -> FitResult:
        """Make the steps that are left; the best state that validation saw is then the present."""
        steps = self.settings.steps
        try:
            for callback in callbacks:
                callback.on_start(self)
            bar = tqdm(
                total=steps, initial=self.step, disable=not progress, desc="SVI", unit="step"
            )
            with bar:
                while self.step < steps and not self._stopped:
                    self._advance(callbacks)
                    bar.update()
        finally:
            for callback in callbacks:
                callback.on_end(self)
        self._stopper.restore(self.program)
        history = [-value for value in torch.stack(self._losses).tolist()]
        return FitResult(
            history[-1],
            self._stopper.stopped,
            tuple(history),
            "SVI",
            jumps=tuple(self._jumps),
            weighting=self.weighting,
        )

    def settle(self) -> float:
        """Publish with the best factors of all rows; returns the bound on all rows."""
        with self.draws.again():
            return self.program.settle(self.data)

    def _advance(self, callbacks: Sequence[Callback]) -> None:
        done = self.step / self.settings.steps
        self.program.anneal(done)
        for group, rate in zip(self.optimiser.param_groups, self._rates, strict=True):
            group["lr"] = rate * _decayed(done)
        try:
            self._losses.append(self._move())
        except LinAlgError as error:
            # what is not finite has no Cholesky factor
            raise NonFiniteBoundError(self.program.diagnose(_first_bad(self._losses))) from error
        self.step += 1
        if self.step % _CHECK_EVERY == 0 or self.step == self.settings.steps:
            self._check(callbacks)
        for callback in callbacks:
            callback.on_step(self)

    def _check(self, callbacks: Sequence[Callback]) -> None:
        recent = torch.stack(self._losses[-_CHECK_EVERY:])
        if not bool(torch.isfinite(recent).all()):
            raise NonFiniteBoundError(self.program.diagnose(_first_bad(self._losses)))
        validated = self.program if self.held_out else None
        score = self.program.validate(self.held_out) if self.held_out else -float(recent.mean())
        for callback in callbacks:
            callback.on_check(self, score)
        if self._stopper.should_stop(score, validated):
            self.stop()
        elif self._due <= self.step <= self.settings.steps // 2:  # while steps are long
            self._due += self._period
            with self.draws.again():
                self._jumps += self.program.renew(self.data, self.optimiser)
            self.draws.advance()
            if not self.held_out:
                self._stopper.begin()

    def _move(self) -> Tensor:
        """One step of Adam and of the factors; returns the loss before it."""
        program, count = self.program, self.settings.accumulate
        self.optimiser.zero_grad()
        losses: list[Tensor] = []
        factors: list[dict[str, TaskStatistics]] = []
        for _ in range(count):
            batch = {name: stream.next() for name, stream in self._streams.items()}
            program.load(batch)
            # the same hyperparameters for each part of a step
            with self.draws.again():
                bounds = self._negative_bounds()
            size = self._backward(bounds, batch)
            losses.append(bounds.detach().sum())
            factors.append(program.factors())
        self.draws.advance()
        for parameter in program.gradient_parameters():
            if parameter.grad is not None:
                parameter.grad = all_reduce_mean(parameter.grad)
        self._scaler.unscale_(self.optimiser)
        norm = nn.utils.clip_grad_norm_(program.gradient_parameters(), _MAX_GRADIENT * size)
        # a step that is not finite moves nothing, so that what broke it can be told
        finite = torch.isfinite(norm)
        for parameter in program.gradient_parameters():
            if parameter.grad is not None:
                parameter.grad = torch.where(finite, parameter.grad, 0.0)
        self._scaler.step(self.optimiser)
        self._scaler.update()
        seen = {name: _mean_of_all([part[name] for part in factors]) for name in factors[0]}
        program.move_sites(seen, self._site_rate())
        return all_reduce_mean(torch.stack(losses).mean())

    def _negative_bounds(self) -> Tensor:
        """Of each family (J,) where they are weighed, else their sum (1,)."""
        program = self.program
        apart = [None] if self.weighting is None else [[name] for name in program.guides]
        with pyro.validation_enabled(is_validate=False), warnings.catch_warnings():
            # Pyro warns of NaN; the check every few steps raises, and says where
            warnings.filterwarnings("ignore", message="Encountered NaN")
            return torch.stack(
                [
                    self._elbo.differentiable_loss(program.model, program.guide, names)
                    for names in apart
                ]
            )

    def _backward(self, bounds: Tensor, batch: Mapping[str, TaskData]) -> float:
        """Gradients of negative bounds, as means over targets where they are weighed.

        Returns:
            What gradients grow with: the number of rows or, for means, the sum of weights.
        """
        program, weighting, count = self.program, self.weighting, self.settings.accumulate
        if weighting is None:
            self._scaler.scale(bounds.sum() / count).backward()
            return program.num_rows
        counts = torch.stack([batch[name].observed.sum() for name in program.guides])
        targets = torch.stack([self.data[name].observed.sum() for name in program.guides])
        means = bounds / targets
        if not bool(means.isfinite().all()):
            raise NonFiniteBoundError(program.diagnose(self.step))
        total = weighting.weights(means.detach()).detach().sum()
        shared = program.network.feature_modules.parameters()
        weighting.backward(means, shared, program.guide_modules.parameters())
        weighting.update(means.detach(), counts)
        # gradients of a step's parts add up: to Adam their sum is their mean
        return cast(float, count * total)  # stays on its device

    def _site_rate(self) -> float:
        """Step of the factors: whole with all rows and exact factors, else decreasing."""
        if self.settings.batch_size is None:
            return 1.0 if self.program.exact else 0.5
        joint = self.settings.batch_size * self.settings.accumulate * len(self.data)
        joint *= num_processes()
        epoch = max(1.0, self.program.num_rows / joint)
        return (1 + epoch + self.step) ** -0.75 if epoch > 1 else 0.5

    def _epoch(self) -> int:
        """Steps in which every row of every family is seen."""
        sizes = [part.num_rows for part in self.data.values()]
        batch = (self.settings.batch_size or max(sizes)) * self.settings.accumulate
        steps = max(math.ceil(n / batch) for n in sizes)
        return int(all_reduce_max(torch.tensor(steps, device=self.program.network.device)))

    # ---- going on -----------------------------------------------------------------------------

    def state(self) -> State:
        """Where the fit stands; see `restore`."""
        tensors = {f"program.{n}": value for n, value in self.program.snapshot().items()}
        tensors |= {f"best.{n}": value for n, value in self._stopper.kept.items()}
        for number, moments in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{number}.{n}": value for n, value in moments.items()}
        tensors |= {f"epoch.{n}": stream.begin for n, stream in self._streams.items()}
        tensors |= {f"random.{n}": value for n, value in self.draws.state().items()}
        if self.weighting is not None:
            tensors |= {f"weighting.{n}": v for n, v in self.weighting.state_dict().items()}
        tensors["random.batches"] = self.generator.get_state()
        tensors["losses"] = torch.stack(self._losses)
        stopper = self._stopper
        values = {
            "step": self.step,
            "due": self._due,
            "stopped": self._stopped,
            "jumps": self._jumps,
            "taken": {n: [stream.before, stream.taken] for n, stream in self._streams.items()},
            "stopper": [stopper.best, stopper.waited, stopper.stopped],
            "scaler": self._scaler.state_dict(),
            "groups": self._groups(),
        }
        return State(tensors, values)

    def restore(self, state: State) -> None:
        """Go to where `state` was made, by a fit with the same settings on the same data.

        Raises:
            ValueError: where the parameters fall into other groups than they did there.
        """
        tensors, values = state
        if values["groups"] != self._groups():
            raise ValueError(
                f"the checkpoint's parameters have the rates, decays and sizes {values['groups']};"
                f" this fit's have {self._groups()}. Give the same backbone_lr and the same "
                "requires_grad, or a checkpoint in another folder."
            )
        self.program.restore(part_of(tensors, "program."))
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in part_of(tensors, "optimiser.").items():
            number, leaf = name.split(".")
            moments.setdefault(int(number), {})[leaf] = value
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": moments, "param_groups": groups})
        for name, stream in self._streams.items():
            stream.resume(tensors[f"epoch.{name}"].cpu(), *values["taken"][name])
        if self.weighting is not None:
            self.weighting.load_state_dict(part_of(tensors, "weighting."))
        self.generator.set_state(tensors["random.batches"].cpu())
        self.draws.restore(part_of(tensors, "random."))
        self._losses = list(tensors["losses"])
        self.step, self._due = values["step"], values["due"]
        self._stopped = values["stopped"]
        self._jumps = [(before, after) for before, after in values["jumps"]]
        stopper = self._stopper
        stopper.best, stopper.waited, stopper.stopped = values["stopper"]
        stopper.kept = part_of(tensors, "best.")
        self._scaler.load_state_dict(values["scaler"])

    def _groups(self) -> list[list[float]]:
        """Rate, decay and number of elements of each group of parameters."""
        return [
            [rate, group["weight_decay"], sum(p.numel() for p in group["params"])]
            for rate, group in zip(self._rates, self.optimiser.param_groups, strict=True)
        ]


def _mean_of_all(parts: Sequence[TaskStatistics]) -> TaskStatistics:
    """The mean of the factors of a step's batches, in all processes."""
    mean = mean_factor(parts)
    if num_processes() == 1:
        return mean
    return TaskStatistics(*(all_reduce_mean(t) for t in (mean.A, mean.b, mean.c, mean.rows)))


def _decayed(done: float) -> float:
    """Share of a learning rate after a share `done` of the steps: along a cosine."""
    return _LAST_RATE + (1 - _LAST_RATE) * 0.5 * (1 + math.cos(math.pi * done))


def _first_bad(losses: list[Tensor]) -> int:
    """The first step whose loss is not finite; the step after the last where all are."""
    finite = [bool(torch.isfinite(loss)) for loss in losses]
    return finite.index(False) if False in finite else len(losses)
