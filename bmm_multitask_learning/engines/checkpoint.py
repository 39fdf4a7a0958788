"""Checkpoints of a fit by SVI: one safetensors file, with JSON in its header."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..data import Sampler, TaskData
from ..processes import all_reduce_max, process, wait_for_all
from .callbacks import Callback
from .training import State, Training

if TYPE_CHECKING:
    from ..model import MultitaskModel
    from .svi import SVI

# What of `SVI` says how a fit is watched, not what it finds.
_WATCHING = ("callbacks", "checkpoint")


@final
@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Where `SVI(checkpoint=)` writes its state, and looks for one to go on from.

    The same call on the same data goes on from what it finds in the folder, and on the CPU ends
    with the bits of a fit that was never stopped. Remove the folder to start anew. The file is
    replaced as a whole, so that a stop while it is written leaves the one before.

    Args:
        folder: of this fit alone; made if need be.
        every: steps between two checkpoints.

    Raises:
        ValueError: for `every` below 1.

    Example:
        >>> Checkpoint("runs/first", every=100).every
        100
    """

    folder: str | os.PathLike[str]
    every: int = 500

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every must be at least 1; got {self.every}.")


@final
class Keeper(Callback):
    """Reads and writes the checkpoints of one fit.

    Args:
        checkpoint: where.
        identity: of the fit, see `identity_of`.
    """

    def __init__(self, checkpoint: Checkpoint, identity: dict[str, Any]) -> None:
        self.every = checkpoint.every
        # every process has rows, batches and dropout of its own
        number = f"-{process()}" if process() else ""
        self.file = Path(checkpoint.folder) / f"checkpoint{number}.safetensors"
        # what JSON makes of it, to be compared with what is read
        self.identity = json.loads(json.dumps(identity))

    def find(self, device: torch.device) -> State | None:
        """The state in the file, if there is one.

        Raises:
            ValueError: where the file is of another fit, or no checkpoint, or where processes
                have files of different steps.
        """
        state = self._read(device) if self.file.exists() else None
        step = torch.tensor(0 if state is None else state.values["step"], device=device)
        if int(all_reduce_max(step)) != -int(all_reduce_max(-step)):
            raise ValueError(
                f"{self.file} is of step {int(step)} (0: there is none); another process has that "
                "of another step. Remove the checkpoints of all to start anew."
            )
        return state

    def _read(self, device: torch.device) -> State:
        try:
            with safe_open(self.file, framework="pt", device=str(device)) as stored:
                header = json.loads(stored.metadata()["fit"])
                tensors = {
                    name: _laid_out(stored.get_tensor(name), stride)
                    for name, stride in header["strides"].items()
                }
        except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{self.file} is truncated or no checkpoint ({error}). Remove it to start anew."
            ) from error
        differences = list(_differences(header["identity"], self.identity))
        if differences:
            raise ValueError(
                f"{self.file} is of another fit: {'; '.join(differences)}. Give this fit another "
                "folder, or remove the file to start anew."
            )
        return State(tensors, header["values"])

    def on_step(self, training: Training) -> None:
        if training.step % self.every == 0:
            self.write(training.state())

    def write(self, state: State) -> None:
        """Replace the file."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        tensors = {n: value.cpu().contiguous() for n, value in state.tensors.items()}
        header = {
            "identity": self.identity,
            "values": state.values,
            "strides": {n: value.stride() for n, value in state.tensors.items()},
        }
        partial = self.file.with_suffix(".part")
        save_file(tensors, partial, metadata={"fit": json.dumps(header)})
        wait_for_all()
        partial.replace(self.file)


def identity_of(
    settings: SVI,
    model: MultitaskModel,
    data: Mapping[str, TaskData],
    generator: torch.Generator,
) -> dict[str, Any]:
    """What two fits must have in common for one to go on with the other's state, fit for JSON.

    Args:
        settings: the engine; a function among them counts by its name.
        model: built. Its parameters' values do not count: a checkpoint brings its own.
        data: as they were given, by family.
        generator: before its first use.
    """
    chosen = {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)}
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    families = {name: [repr(f.prior), repr(f.likelihood)] for name, f in model.families.items()}
    return {
        "settings": {
            name: _said(value) for name, value in chosen.items() if name not in _WATCHING
        },
        "model": {
            "families": families,
            "tensors": {n: [str(t.dtype), list(t.shape)] for n, t in tensors.items()},
        },
        "data": {name: _digest(part) for name, part in data.items()},
        "seed": hashlib.sha256(_bytes(generator.get_state())).hexdigest(),
    }


def _said(value: Any) -> Any:
    """A setting, fit for JSON and the same in another process."""
    if isinstance(value, nn.Module):
        state = b"".join(_bytes(tensor) for tensor in value.state_dict().values())
        return [repr(value), hashlib.sha256(state).hexdigest()]
    if isinstance(value, Sampler):
        return repr(value)
    return getattr(value, "__qualname__", value)


def _laid_out(value: Tensor, stride: Sequence[int]) -> Tensor:
    """A copy in its former layout, and aligned: sums go in another order otherwise."""
    like = torch.empty_strided(value.shape, stride, dtype=value.dtype, device=value.device)
    return like.copy_(value)


def _digest(data: TaskData) -> str:
    found = hashlib.sha256(repr(data.tasks).encode())
    for tensor in (data.x, data.y, data.task, data.weight, data.task_features):
        if tensor is not None:
            found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(_bytes(tensor))
    return found.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _differences(there: dict[str, Any], here: dict[str, Any]) -> Iterable[str]:
    """In words, what two identities do not share."""
    settings = here["settings"]
    for name in sorted(settings.keys() | there["settings"].keys()):
        values = [part["settings"].get(name) for part in (there, here)]
        if values[0] != values[1]:
            yield f"it had {name}={values[0]!r}, this one has {name}={values[1]!r}"
    for name in here["data"].keys() | there["data"].keys():
        if there["data"].get(name) != here["data"].get(name):
            yield f"the data of family {name!r} are others"
    if there["model"] != here["model"]:
        yield "the model has other priors, likelihoods or sizes"
    if there["seed"] != here["seed"]:
        yield "the seed is another"
