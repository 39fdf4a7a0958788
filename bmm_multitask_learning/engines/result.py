"""What a fit reports."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import torch

from ..data import TaskData

if TYPE_CHECKING:
    from ..model import MultitaskModel
    from ..weighting import LossWeighting


@dataclasses.dataclass(frozen=True)
class FitResult:
    r"""Report of a fit.

    Args:
        bound: what the engine ascended, in nats: $\log p(D, \hat\eta)$ or a lower bound on it
            (`CoordinateAscent`), the ELBO (`SVI`), the mean log joint density (`NUTS`).
        converged: whether the engine's own criterion was met.
        history: the bound after each iteration, and last of what was kept.
        engine: name of the engine, and why it was taken where `fit` chose.
        seconds: wall-clock time.
        jumps: the bound before and after each time that a prior's law was replaced, see
            `TaskPrior.refresh`: `history` is that of the last climb. Under `SVI`, see
            `TaskPrior.renew`, they lie within the history; those of the climbs from which it
            starts are in no result.
        weighting: what `SVI(weighting=)` had learned at the end.
    """

    bound: float
    converged: bool
    history: tuple[float, ...]
    engine: str
    seconds: float = float("nan")
    jumps: tuple[tuple[float, float], ...] = ()
    weighting: LossWeighting | None = None


class Engine(Protocol):
    """An algorithm that fits a built model."""

    def fit(
        self,
        model: MultitaskModel,
        data: Mapping[str, TaskData],
        *,
        generator: torch.Generator,
        progress: bool,
    ) -> FitResult:
        """Fit `model` in place."""


class NonFiniteBoundError(ArithmeticError):
    """The bound became infinite or NaN: the message says where, and what to try."""
