"""The random numbers of SVI's guide."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import final

import torch
from torch import Tensor

from ..processes import process
from .snapshots import part_of


@final
class Draws:
    """Random numbers of the guide, apart from those of dropout.

    Each step's can be drawn again: parts of a step, on whatever rows, then see the same
    hyperparameters.

    Args:
        device: of the model.
        seed: of the fit; dropout's own follows from it, another in every process.
    """

    def __init__(self, device: torch.device, seed: int) -> None:
        self._devices = [device] if device.type == "cuda" else []
        self._now = self._after = self._read()
        torch.manual_seed((seed + 1 + process()) % 2**63)

    @contextmanager
    def again(self) -> Iterator[None]:
        """Draw within from where the last `advance` was; dropout's go on afterwards."""
        with torch.random.fork_rng(devices=self._devices):
            self._write(self._now)
            yield
            self._after = self._read()

    def advance(self) -> None:
        """Leave behind what was drawn."""
        self._now = self._after

    def state(self) -> dict[str, Tensor]:
        """Of the guide's draws and of dropout's."""
        return {f"guide.{i}": value for i, value in enumerate(self._now)} | {
            f"dropout.{i}": value for i, value in enumerate(self._read())
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        self._now = list(part_of(state, "guide.").values())
        self._write(list(part_of(state, "dropout.").values()))

    def _read(self) -> list[Tensor]:
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in self._devices)]

    def _write(self, states: Sequence[Tensor]) -> None:
        torch.set_rng_state(states[0].cpu())
        for device, state in zip(self._devices, states[1:], strict=True):
            torch.cuda.set_rng_state(state.cpu(), device)
