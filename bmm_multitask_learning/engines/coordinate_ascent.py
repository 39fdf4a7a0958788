r"""Closed-form engine: EM on the evidence, the weights integrated out.

Each iteration conditions the weights on the present hyperparameters, then moves the
hyperparameters of prior and likelihood and the local parameters of the likelihood's bound. What it
reports, $\log p(D, \eta)$ or a lower bound on it, never falls. EM's steps are extrapolated
(SQUAREM) in unconstrained coordinates; an extrapolation that does not raise the bound is undone.

A tangent bound such as Pólya-Gamma's pulls the weights towards zero and makes their variances and
their population's too small. So where it has come near its optimum, the best Gaussian factors take
its place, and the hyperparameters climb the ELBO of these (`elbo_ascent`): what `SVI` ascends.

References:
    Varadhan and Roland, Simple and globally convergent methods for accelerating the convergence of
    any EM algorithm (2008), scheme S3.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, final

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # public, not exported
from tqdm import tqdm

from ..backbones import LatentEncoder, ParameterPrior
from ..data import TaskData
from ..hyperparameters import ProbabilisticModule, pack, unpack
from ..likelihoods import QuadraticLikelihood, Rows
from ..posterior import WeightPosterior
from ..sites import fold_statistics
from ..statistics import TaskStatistics
from .backbone_ascent import train_backbone
from .elbo_ascent import ElboAscent
from .result import FitResult

if TYPE_CHECKING:
    from ..family import Family
    from ..model import MultitaskModel

# Relative rise over a cycle at which a tangent bound gives way to the ELBO.
_NEAR = 1e-3


@final
@dataclasses.dataclass(frozen=True)
class CoordinateAscent:
    """Closed-form updates until the bound rises by less than `tol`, relative to its size.

    A backbone with trainable parameters is fitted too, by gradient steps of the evidence on
    statistics recomputed per step.

    Args:
        max_iter: iterations a start, at most.
        tol: relative rise of the bound over an iteration (an accelerated cycle) that ends a fit.
        backbone_steps: gradient evaluations of the backbone an iteration.

    Example:
        >>> CoordinateAscent(max_iter=200).tol
        1e-06
    """

    max_iter: int = 500
    tol: float = 1e-6
    backbone_steps: int = 10

    def __post_init__(self) -> None:
        if self.max_iter < 1:
            raise ValueError(f"max_iter must be at least 1; got {self.max_iter}.")
        if not self.tol > 0:
            raise ValueError(f"tol must be positive; got {self.tol}.")

    def fit(
        self,
        model: MultitaskModel,
        data: Mapping[str, TaskData],
        *,
        generator: torch.Generator,
        progress: bool,
    ) -> FitResult:
        """Fit a built model in place."""
        if isinstance(model.backbone, LatentEncoder):
            raise TypeError("CoordinateAscent draws no codes for a LatentEncoder; use SVI().")
        for family in model.families.values():
            quadratic(family)
            if family.prior.amortised is not None:
                raise TypeError("CoordinateAscent trains no amortised classifier; use SVI().")
        if any(p.requires_grad for p in model.feature_modules.parameters()):
            if any(isinstance(m, ParameterPrior) for m in model.feature_modules.modules()):
                raise TypeError(
                    "CoordinateAscent trains no backbone whose parameters have a prior; use SVI()."
                )
            return self._fit_with_backbone(model, data, generator, progress=progress)
        with torch.no_grad():
            results = []
            for name, part in data.items():
                rows = model.rows(name, part, shared=True)
                results.append(self.fit_family(model[name], rows, generator, progress=progress))
        return _combine(results)

    def fit_family(
        self, family: Family, rows: Rows, generator: torch.Generator, *, progress: bool
    ) -> FitResult:
        """Fit one family on fixed features, from every start that its prior asks for."""
        family.likelihood.initialise(rows)
        ascent = Ascent(family, rows)
        start = ascent.snapshot()
        scores: list[float] = []
        with tqdm(disable=not progress, desc="closed form", unit="it") as bar:
            while family.prior.more_starts(scores):
                ascent.restore(start)
                family.prior.initialise(ascent.statistics(), generator, len(scores))
                history, converged = self._climb(ascent, bar)
                scores.append(history[-1] - family.prior.complexity())
                if scores[-1] == max(scores):
                    best, report = ascent.snapshot(), (history, converged)
            ascent.restore(best)
            jumps: list[tuple[float, float]] = []
            while family.prior.refresh(len(jumps), ascent.posterior(), ascent.folds):
                before = report[0][-1]
                report = self._climb(ascent, bar)
                jumps.append((before, report[0][0]))
        history, converged = report
        ascent.settle()
        return FitResult(
            history[-1], converged, tuple(history), "CoordinateAscent", jumps=tuple(jumps)
        )

    def _climb(self, ascent: Ascent, bar: tqdm) -> tuple[list[float], bool]:
        def advance(bound: float) -> None:
            bar.update()
            bar.set_postfix_str(f"bound {bound:.2f}", refresh=False)

        history: list[float] = []
        if ascent.best is None:
            tol = self.tol if ascent.likelihood.exact else max(self.tol, _NEAR)
            history, converged = self._climb_in_closed_form(ascent, tol, advance)
        if not ascent.likelihood.exact:
            tight, converged = ascent.tighten(self.max_iter, self.tol, advance)
            history += tight
        return history, converged

    def _climb_in_closed_form(
        self, ascent: Ascent, tol: float, advance: Callable[[float], None]
    ) -> tuple[list[float], bool]:
        history = [ascent.step()]
        for _ in range(self.max_iter):
            before = history[-1]
            history += ascent.cycle(before)
            advance(history[-1])
            if history[-1] - before <= tol * max(1.0, abs(before)):
                return history, True
        return history, False

    def _fit_with_backbone(
        self,
        model: MultitaskModel,
        data: Mapping[str, TaskData],
        generator: torch.Generator,
        *,
        progress: bool,
    ) -> FitResult:
        ascents = {}
        with torch.no_grad():
            for name, part in data.items():
                family = model[name]
                rows = model.rows(name, part)
                family.likelihood.initialise(rows)
                ascents[name] = Ascent(family, rows)
                family.prior.initialise(ascents[name].statistics(), generator, 0)
        history, converged = self._climb_with_backbone(model, data, ascents, progress=progress)
        jumps: list[tuple[float, float]] = []
        while _refresh(ascents, len(jumps)):
            before = history[-1]
            history, converged = self._climb_with_backbone(model, data, ascents, progress=progress)
            jumps.append((before, history[0]))
        with torch.no_grad():
            history.append(sum(self._finish(ascent) for ascent in ascents.values()))
        return FitResult(
            history[-1], converged, tuple(history), "CoordinateAscent", jumps=tuple(jumps)
        )

    def _finish(self, ascent: Ascent) -> float:
        if ascent.likelihood.exact:
            bound = float(ascent.bound(ascent.posterior()))
        else:
            history, _ = ascent.tighten(self.max_iter, self.tol, lambda _: None)
            bound = history[-1]
        ascent.settle()
        return bound

    def _climb_with_backbone(
        self,
        model: MultitaskModel,
        data: Mapping[str, TaskData],
        ascents: Mapping[str, Ascent],
        *,
        progress: bool,
    ) -> tuple[list[float], bool]:
        with torch.no_grad():
            history = [sum(ascent.step() for ascent in ascents.values())]
        for _ in tqdm(range(self.max_iter), disable=not progress, desc="closed form", unit="it"):
            train_backbone(model, data, ascents, self.backbone_steps)
            with torch.no_grad():
                history.append(sum(ascent.step() for ascent in ascents.values()))
            if history[-1] - history[-2] <= self.tol * max(1.0, abs(history[-2])):
                return history, True
        return history, False


class Ascent:
    """The state of one family's fit: hyperparameters in its modules, local parameters here."""

    def __init__(self, family: Family, rows: Rows) -> None:
        self.family = family
        self.prior = family.prior
        self.likelihood = quadratic(family)
        self.rows = rows.in_dual_form()
        self.summary = self.likelihood.summarise(self.rows)
        # the best Gaussian factors, once `tighten` has found them
        self.best: TaskStatistics | None = None

    def factors(self) -> TaskStatistics:
        """The factors of the tasks at the present state."""
        if self.best is not None:
            return self.best
        return self.likelihood.statistics(self.summary, self.likelihood.eta)

    def statistics(self) -> TaskStatistics:
        """The factors of the prior's weight vectors at the present state."""
        return self.prior.reduce(self.factors())

    def posterior(self) -> WeightPosterior:
        """q(W) of the weight vectors at the present state."""
        return self.prior.condition(self.statistics(), self.prior.eta)

    def folds(self) -> list[TaskStatistics]:
        """See `TaskPrior.refresh`; at the present state."""
        tasks = self.prior.expand(self.posterior())
        parts = fold_statistics(self.likelihood, self.rows, tasks)
        return [self.prior.reduce(part) for part in parts]

    def refresh(self, rows: Rows) -> None:
        """The same rows with other features."""
        self.rows = rows.in_dual_form()
        self.summary = self.likelihood.refresh(self.summary, self.rows)

    def bound(self, posterior: WeightPosterior) -> Tensor:
        r"""$\log p(D, \eta)$, or its bound, at the state that gave `posterior`."""
        return posterior.log_normaliser + self.log_hyperprior()

    def log_hyperprior(self) -> Tensor:
        r"""$\log p(\eta)$."""
        parts = [module.log_hyperprior(module.eta) for module in self._modules()]
        return torch.stack(parts).sum()

    def step(self) -> float:
        """One EM step; returns the bound before it."""
        factors = self.factors()
        posterior = self.prior.condition(self.prior.reduce(factors), self.prior.eta)
        bound = float(self.bound(posterior))
        self.prior.update(posterior)
        tasks = self.prior.expand(posterior, factors)
        self.summary = self.likelihood.update(self.summary, tasks)
        return bound

    def cycle(self, before: float) -> list[float]:
        """Two EM steps and an extrapolation; returns the bounds that were reached, rising."""
        x0 = self.vector()
        reached = [self.step()]
        x1 = self.vector()
        reached.append(self.step())
        plain = self.snapshot()
        x2 = self.vector()
        # x' = x0 − 2 a r + a² v,  r = x1 − x0,  v = x2 − 2 x1 + x0,  a = −|r|/|v|
        r, v = x1 - x0, x2 - 2 * x1 + x0
        length = r.norm() / v.norm().clamp(min=torch.finfo(v.dtype).tiny)
        if not bool(length > 1):
            return reached
        try:
            self.move_to(x0 + 2 * length * r + length.square() * v)
            bound = self.step()
        except (LinAlgError, ValueError):
            # a step so far that a covariance is no longer one, in floating point
            bound = float("-inf")
        # what gains more than the bound's own size is rounding, at scales of 1e±16
        if 0 <= bound - reached[-1] <= max(1.0, abs(reached[-1])):
            return [*reached, bound]
        self.restore(plain)
        return reached

    def vector(self) -> Tensor:
        """All hyperparameters, unconstrained."""
        parts = [pack(m.eta, m.transforms) for m in self._modules() if m.transforms]
        return torch.cat(parts)

    def move_to(self, vector: Tensor) -> None:
        """The inverse of `vector`."""
        for module in self._modules():
            size = pack(module.eta, module.transforms).numel() if module.transforms else 0
            module.set_eta(unpack(vector[:size], module.eta, module.transforms))
            vector = vector[size:]

    def snapshot(self) -> Snapshot:
        """The present state, to `restore` later."""
        return Snapshot(self.summary, self.best, tuple(m.kept() for m in self._modules()))

    def restore(self, snapshot: Snapshot) -> None:
        """Make a snapshot the state again."""
        self.summary, self.best = snapshot.summary, snapshot.best
        for module, buffers in zip(self._modules(), snapshot.buffers, strict=True):
            module.put_back(buffers)

    def tighten(
        self, max_iter: int, tol: float, advance: Callable[[float], None]
    ) -> tuple[list[float], bool]:
        """Climb the ELBO; returns the bounds that were reached, and whether they converged."""
        ascent = ElboAscent(self.prior, self.likelihood, self.rows, self.factors())
        history, converged = ascent.climb(max_iter=max_iter, tol=tol, advance=advance)
        self.best = ascent.factors
        return history, converged

    def settle(self) -> None:
        """Keep the posterior of the present state."""
        posterior = self.posterior()
        self.prior.settle(self.factors(), self.prior.expand(posterior))
        self.family.set_posterior(posterior)

    def _modules(self) -> tuple[ProbabilisticModule, ProbabilisticModule]:
        return self.prior, self.likelihood


class Snapshot(NamedTuple):
    """Local parameters, and the buffers of prior and likelihood."""

    summary: Any
    best: TaskStatistics | None
    buffers: tuple[dict[str, Tensor], ...]


def quadratic(family: Family) -> QuadraticLikelihood[Any]:
    """The likelihood of a family with a closed form; a TypeError says what to use otherwise."""
    if not isinstance(family.likelihood, QuadraticLikelihood):
        raise TypeError(
            f"CoordinateAscent has no closed form for {type(family.likelihood).__name__}; use "
            "engine=SVI(), or a Gaussian, Bernoulli or Categorical likelihood."
        )
    if not family.prior.closed_form:
        raise TypeError(
            f"{type(family.prior).__name__} has a generative half only; use engine=SVI() "
            "or NUTS()."
        )
    return family.likelihood


@torch.no_grad()
def _refresh(ascents: Mapping[str, Ascent], count: int) -> bool:
    """Whether a prior has another law now, see `TaskPrior.refresh`."""
    changed = [a.prior.refresh(count, a.posterior(), a.folds) for a in ascents.values()]
    return any(changed)


def _combine(results: list[FitResult]) -> FitResult:
    """Families with a fixed backbone are fitted one by one: their bounds add."""
    longest = max(len(result.history) for result in results)
    padded = [(*r.history, *[r.history[-1]] * (longest - len(r.history))) for r in results]
    return FitResult(
        bound=sum(result.bound for result in results),
        converged=all(result.converged for result in results),
        history=tuple(sum(values) for values in zip(*padded, strict=True)),
        engine="CoordinateAscent",
        jumps=tuple(jump for result in results for jump in result.jumps),
    )
