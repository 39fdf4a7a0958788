"""When a fit by SVI has seen enough."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, final

from torch import Tensor

if TYPE_CHECKING:
    from .variational_program import VariationalProgram


@final
class EarlyStopping:
    """Stops after `patience` checks without a better score; keeps the best state it was given."""

    def __init__(self, patience: int | None) -> None:
        self.patience = patience
        self.stopped = False
        self.kept: dict[str, Tensor] = {}
        self.begin()

    def begin(self) -> None:
        """Wait anew: scores that come are not to be compared with those that were."""
        self.best, self.waited = -math.inf, 0

    def should_stop(self, score: float, program: VariationalProgram | None) -> bool:
        """Whether to stop after a check with this score; `program` is kept if it is the best."""
        if score > self.best + 1e-6 * abs(score):
            self.best, self.waited = score, 0
            if program is not None:
                self.kept = program.snapshot()
        else:
            self.waited += 1
        self.stopped = self.patience is not None and self.waited >= self.patience
        return self.stopped

    def restore(self, program: VariationalProgram) -> None:
        """Back to the best state that was kept, if any was."""
        if self.kept:
            program.restore(self.kept)
