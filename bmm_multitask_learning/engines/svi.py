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

import copy
import dataclasses
import math
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast, final

import pyro
import pyro.distributions as dist
import torch
from pyro.contrib.autoname import scope
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # public, not exported
from tqdm import tqdm

from ..data import TaskData
from ..distributions import PosteriorGaussian
from ..likelihoods import Rows
from ..posterior import WeightPosterior
from ..sites import blend, expected_log_prob, latent_moments, local_factor
from ..statistics import TaskStatistics
from .guides import FamilyGuide
from .result import FitResult, NonFiniteBoundError
from .start import start_sites

if TYPE_CHECKING:
    from ..hyperparameters import Eta
    from ..model import MultitaskModel

_CHECK_EVERY = 50
_MAX_GRADIENT = 10.0
_FINAL_PARTICLES = 16


@final
@dataclasses.dataclass(frozen=True)
class SVI:
    r"""Stochastic variational inference with Pyro.

    It starts from the closed form on the backbone's first features. The learning rate decays to a
    hundredth along a cosine; gradients are clipped; with `patience` it stops early, by the
    held-out log predictive density if `validation_fraction` is positive and by the smoothed bound
    otherwise, and goes back to the best state that validation saw.

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
        history, converged = self._optimise(program, data, held_out, generator, progress=progress)
        bound = program.settle(data)
        return FitResult(bound, converged, tuple(history), "SVI")

    def _optimise(
        self,
        program: VariationalProgram,
        data: Mapping[str, TaskData],
        held_out: Mapping[str, TaskData],
        generator: torch.Generator,
        *,
        progress: bool,
    ) -> tuple[list[float], bool]:
        optimiser = program.optimiser(self.lr, self.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            optimiser, self.steps, eta_min=0.01 * self.lr
        )
        elbo = TraceMeanField_ELBO(num_particles=self.num_particles)
        batches = _batches(data, self.batch_size, generator)
        stopper = EarlyStopping(self.patience)
        losses: list[Tensor] = []
        for step in tqdm(range(self.steps), disable=not progress, desc="SVI", unit="step"):
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
        stopper.restore(program)
        return [-value for value in torch.stack(losses).tolist()], stopper.stopped

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
        self.best = -math.inf
        self.waited = 0
        self.stopped = False
        self._state: dict[str, Any] | None = None

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


class VariationalProgram:
    """Model and guide as Pyro programs over one batch of rows of every family."""

    def __init__(
        self, model: MultitaskModel, data: Mapping[str, TaskData], sites: dict[str, TaskStatistics]
    ) -> None:
        self.network = model
        self.sites = sites
        self.guide_modules = nn.ModuleDict(
            {
                name: FamilyGuide(family, len(family.prior.reduce(sites[name]).b))
                for name, family in model.families.items()
            }
        )
        self.num_rows = sum(part.num_rows for part in data.values())
        self.exact = all(family.likelihood.exact for family in model.families.values())
        self.batch: dict[str, Rows] = {}
        self._last: dict[str, TaskData] = {}
        self._posterior: dict[str, WeightPosterior] = {}
        self._theta: dict[str, Eta] = {}
        self._law: dict[str, TorchDistribution] = {}
        self._moments: dict[str, tuple[Tensor, Tensor, Tensor]] = {}

    @property
    def guides(self) -> dict[str, FamilyGuide]:
        """The guides of the families by name."""
        return cast(dict[str, FamilyGuide], dict(self.guide_modules.items()))

    def load(self, batch: Mapping[str, TaskData]) -> None:
        """Run the backbone, once for all families, on the rows that the next step uses."""
        parts = list(batch.items())
        phi = self.network.features(torch.cat([part.x for _, part in parts]))
        pieces = phi.split([part.num_rows for _, part in parts])
        for (name, part), piece in zip(parts, pieces, strict=True):
            # all rows come again at every step: their layout by task stays
            again = part is self._last.get(name)
            blocks = self.batch[name].blocks if again else None
            self.batch[name] = Rows.from_targets(
                piece, part.y, part.weight, part.task, part.num_tasks, blocks
            )
        self._last = dict(batch)

    def guide(self) -> None:
        r"""$q(\eta)\, q(W \mid \eta)$."""
        for name, family in self.network.families.items():
            with scope(prefix=name):
                guide, prior = self.guides[name], family.prior
                eta = guide.prior()
                self._theta[name] = guide.likelihood()
                # the model's law at the same η, so built once
                law = self._law[name] = prior(eta)
                factors = guide.factors(law, prior.reduce(self.sites[name]))
                posterior = prior.condition(factors, eta)
                q = PosteriorGaussian(
                    posterior,
                    factors,
                    law if prior.closed_form else _unit(factors.b),
                    conditional=prior.closed_form,
                )
                pyro.sample("weights", q)
                self._posterior[name] = posterior

    def model(self) -> None:
        """`MultitaskModel.model`, its likelihood replaced by its expectation under the guide."""
        for name, family in self.network.families.items():
            with scope(prefix=name):
                family.prior.hyperprior()
                family.likelihood.hyperprior()
                pyro.sample("weights", self._law[name])
                rows = self.batch[name]
                moments = latent_moments(family.prior.expand(self._posterior[name]), rows)
                self._moments[name] = moments
                value = expected_log_prob(family.likelihood, rows, *moments, self._theta[name])
                pyro.factor("targets", value.sum())

    def move_sites(self, rate: float) -> None:
        """Natural-gradient step of the factors towards what the last batch saw."""
        with torch.no_grad():
            for name, family in self.network.families.items():
                theta = {n: value.detach() for n, value in self._theta[name].items()}
                new = local_factor(
                    family.likelihood, self.batch[name], *self._moments[name], theta
                )
                self.sites[name] = blend(self.sites[name], new, rate)

    # ---- optimisation -------------------------------------------------------------------------

    def optimiser(self, lr: float, weight_decay: float) -> torch.optim.Optimizer:
        """AdamW on the guide and on what the backbone has to train."""
        backbone = [p for p in self.network.backbone.parameters() if p.requires_grad]
        groups = [
            {"params": list(self.guide_modules.parameters()), "weight_decay": 0.0},
            {"params": backbone, "weight_decay": weight_decay},
        ]
        return torch.optim.AdamW([g for g in groups if g["params"]] or groups[:1], lr=lr)

    def gradient_parameters(self) -> Iterator[nn.Parameter]:
        """All parameters that Adam moves."""
        yield from self.guide_modules.parameters()
        yield from self.network.backbone.parameters()

    def snapshot(self) -> dict[str, Any]:
        """Everything that a fit changes."""
        state = {
            "guides": self.guide_modules.state_dict(),
            "backbone": self.network.backbone.state_dict(),
        }
        return {**copy.deepcopy(state), "sites": dict(self.sites)}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `snapshot`."""
        self.guide_modules.load_state_dict(state["guides"])
        self.network.backbone.load_state_dict(state["backbone"])
        self.sites = dict(state["sites"])

    def validate(self, held_out: Mapping[str, TaskData]) -> float:
        """Mean log predictive density of held-out rows at the centre of the guide."""
        self.publish()
        total, count = 0.0, 0
        for name, part in held_out.items():
            y = part.y[:, None] if part.y.ndim == 1 else part.y
            observed = ~y.isnan().all(-1)
            if not bool(observed.any()):
                continue
            labels = [part.tasks[i] for i in part.task.tolist()]
            values = self.network.predict(part.x, labels, family=name).log_prob(part.y)
            values = values if values.ndim == 1 else values.nansum(-1)
            total, count = total + float(values[observed].sum()), count + int(observed.sum())
        return total / max(count, 1)

    def publish(self) -> None:
        """Write the centre of the guide into the model's families."""
        with torch.no_grad():
            for name, family in self.network.families.items():
                guide, prior = self.guides[name], family.prior
                prior.set_eta(guide.prior.median())
                family.likelihood.set_eta(guide.likelihood.median())
                factors = guide.factors(prior(prior.eta), prior.reduce(self.sites[name]))
                posterior = prior.condition(factors, prior.eta)
                prior.settle(self.sites[name], prior.expand(posterior))
                family.set_posterior(posterior)

    def settle(self, data: Mapping[str, TaskData]) -> float:
        """Publish, and return the bound on all rows."""
        self.publish()
        with torch.no_grad(), pyro.validation_enabled(is_validate=False):
            self.load(data)
            elbo = TraceMeanField_ELBO(num_particles=_FINAL_PARTICLES)
            return -float(elbo.loss(self.model, self.guide))

    def diagnose(self, step: int) -> str:
        """Which part of the bound is not finite, and what to try."""
        # in the order of the program: what comes first breaks what comes after
        backbone = self.network.backbone.named_parameters()
        parts: dict[str, Tensor] = {f"backbone.{n}": p for n, p in backbone}
        parts |= {f"features of {n}": rows.phi for n, rows in self.batch.items()}
        parts |= dict(self.guide_modules.named_parameters())
        parts |= {f"factor of {n}": s.A for n, s in self.sites.items()}
        broken = [name for name, value in parts.items() if not bool(torch.isfinite(value).all())]
        return (
            f"the bound became infinite or NaN at step {step}; first at: "
            f"{broken[0] if broken else 'the expected log likelihood'}. Try a smaller lr, "
            "standardised inputs and targets, or weight_decay for the backbone; see the "
            "troubleshooting page."
        )


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


def _unit(like: Tensor) -> Distribution:
    """The unit Gaussian that stands for a prior without closed form in its guide."""
    return dist.Normal(torch.zeros_like(like), torch.ones_like(like)).to_event(3)
