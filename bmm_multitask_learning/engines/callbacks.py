"""What a fit by SVI calls on its way: a base class for one's own, and those that are there."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, final

from torch import nn

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from .training import Training


class Callback:
    """What `SVI(callbacks=[...])` calls; write the methods that you need.

    A callback reads the `Training` that it is given, and may end it by `training.stop()`. A fit
    that goes on from a `Checkpoint` calls `on_start` at the step where it goes on: what a callback
    does should follow from `training.step`, since its own attributes are not kept.

    Example:
        >>> from bmm_multitask_learning import SVI, MultitaskModel, datasets, fit
        >>> class Ten(Callback):
        ...     def on_step(self, training):
        ...         if training.step == 10:
        ...             training.stop()
        >>> data, truth = datasets.make_clusters(num_tasks=6, seed=0)
        >>> len(fit(MultitaskModel(), data, engine=SVI(callbacks=[Ten()]), progress=False).history)
        10
    """

    def on_start(self, training: Training) -> None:
        """Before the first step, or the first after a checkpoint."""

    def on_step(self, training: Training) -> None:
        """After each step; `training.step` have been made."""

    def on_check(self, training: Training, score: float) -> None:
        """Every 50 steps, before early stopping.

        Args:
            training: the fit.
            score: mean held-out log predictive density of a row where rows are held out, else the
                mean bound of the steps since the last check.
        """

    def on_end(self, training: Training) -> None:
        """After the last step, before the best state is put back; or after an error."""


@final
class TensorBoard(Callback):
    """Writes bound, learning rates and scores for TensorBoard.

    Args:
        folder: of the event files.
        every: steps between two points of the bound.

    Raises:
        ImportError: without TensorBoard, when a fit starts.
        ValueError: for `every` below 1.

    Example:
        >>> TensorBoard("runs/first").every
        10
    """

    def __init__(self, folder: str | os.PathLike[str], *, every: int = 10) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1; got {every}.")
        self.folder = os.fspath(folder)
        self.every = every
        self._writer: SummaryWriter | None = None

    def on_start(self, training: Training) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "the TensorBoard callback needs TensorBoard, which is not installed: "
                "pip install tensorboard"
            ) from error
        # points that a stopped run wrote after its last checkpoint are written anew
        self._writer = SummaryWriter(self.folder, purge_step=training.step + 1)

    def on_step(self, training: Training) -> None:
        if self._writer is not None and training.step % self.every == 0:
            self._writer.add_scalar("bound", training.bound, training.step)
            for number, group in enumerate(training.optimiser.param_groups):
                self._writer.add_scalar(f"lr/{number}", group["lr"], training.step)

    def on_check(self, training: Training, score: float) -> None:
        if self._writer is not None:
            self._writer.add_scalar("score", score, training.step)

    def on_end(self, training: Training) -> None:
        if self._writer is not None:
            self._writer.close()


@final
class Unfreezing(Callback):
    """Modules that become trainable after a number of steps, and are as before when a fit ends.

    Give the layers nearest to the heads the fewest steps. A parameter that is frozen when the fit
    begins stays so: leave `requires_grad` on for all that is to be trained at last.

    Args:
        stages: from a number of steps to the modules that are trained from then on.

    Raises:
        ValueError: for a negative number of steps, or a module without parameters to train.

    References:
        Howard and Ruder, Universal language model fine-tuning for text classification (2018), 3.3.

    Example:
        >>> from bmm_multitask_learning.backbones import MLP
        >>> backbone = MLP(4, [8, 8])
        >>> unfreezing = Unfreezing({100: [backbone.layers[2]], 200: [backbone.layers[0]]})
        >>> sorted(unfreezing.stages)
        [100, 200]
    """

    def __init__(self, stages: Mapping[int, Sequence[nn.Module]]) -> None:
        self.stages = {
            step: [p for m in modules for p in m.parameters() if p.requires_grad]
            for step, modules in stages.items()
        }
        for step, parameters in self.stages.items():
            if step < 0 or not parameters:
                raise ValueError(
                    "stages must map numbers of steps, 0 or more, to modules with parameters "
                    f"that require gradients; got {len(parameters)} such after {step} steps."
                )

    def on_start(self, training: Training) -> None:
        self._set(training.step)

    def on_step(self, training: Training) -> None:
        if training.step in self.stages:
            self._set(training.step)

    def on_end(self, training: Training) -> None:
        self._set(max(self.stages, default=0))

    def _set(self, done: int) -> None:
        for step, parameters in self.stages.items():
            for parameter in parameters:
                parameter.requires_grad_(step <= done)
