"""A frozen encoder run once for each distinct text."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Self, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .backbone import Backbone
from .freezing import heads_only
from .text_encoder import TextEncoder

# bytes of a key, and of the number of rows that stands behind it in an index
_KEY, _COUNT = 16, 8


@final
class CachedFeatures(Backbone):
    """A frozen encoder whose features are kept, by the content of each row.

    A row is known by a hash of its tokens, whatever the batch and its padding; the features by a
    hash of the encoder, its parameters and its arguments. So a changed weight forgets what was
    kept, as long as torch sees the change; what is written through `parameter.data` it does not,
    and neither does this. With a folder the features stay there, in one file an encoder that is
    mapped into memory; one process at a time may write it. What is kept was computed in the batch
    in which the row came first, and may differ from another batch's by rounding, some 1e-7.

    Args:
        encoder: which is frozen, as by `heads_only`.
        folder: where to keep features; None: in memory.

    Example:
        >>> from bmm_multitask_learning.backbones import TransformerEncoder
        >>> texts = ["good film", "bad film"]
        >>> encoder = TransformerEncoder.from_texts(texts, vocab_size=300, width=8)
        >>> backbone = CachedFeatures(encoder)
        >>> backbone(encoder.tokens([*texts, *texts])).shape, backbone.num_kept
        (torch.Size([4, 8]), 2)
    """

    def __init__(self, encoder: TextEncoder, folder: str | os.PathLike[str] | None = None) -> None:
        super().__init__()
        self.encoder = heads_only(encoder)
        self.folder = None if folder is None else Path(folder)
        self.num_features = encoder.num_features
        self._versions: tuple[tuple[int, int], ...] = ()
        self._store = _Store("", None, self.num_features)

    @property
    def num_kept(self) -> int:
        """Number of distinct rows whose features are kept."""
        return len(self._store.parts)

    def arguments(self) -> dict[str, Any]:
        # the folder is of this machine
        return {"encoder": self.encoder}

    def forward(self, x: Tensor) -> Tensor:
        """What the encoder gives: features (N, D), or states of tokens (N, L, D).

        Raises:
            ValueError: if a parameter has been set to train meanwhile.
        """
        trained = [n for n, p in self.encoder.named_parameters() if p.requires_grad]
        if trained:
            raise ValueError(
                f"features can be kept of a frozen encoder alone; {trained[0]!r} is to be "
                "trained. Call heads_only(encoder), or take the encoder itself as backbone."
            )
        self._follow_encoder()
        rows = x.cpu().numpy().astype(np.int32)
        lengths = (rows[:, 0] >= 0).sum(-1).clip(min=1)
        keys = [_hash(row[:, :n].tobytes()) for row, n in zip(rows, lengths, strict=True)]
        kept = self._store.parts
        new = list({key: n for n, key in enumerate(keys) if key not in kept}.values())
        if new:
            features = self.encoder(x[new]).cpu().numpy()
            pairs = zip(features, lengths[new], strict=True)
            parts = [part[:n] if part.ndim == 2 else part[None] for part, n in pairs]
            self._store.append([keys[n] for n in new], parts)
        if self.encoder.pool is not None:
            found = np.concatenate([kept[key] for key in keys])
        else:
            found = np.zeros((len(x), x.shape[-1], self.num_features), np.float32)
            for row, key in zip(found, keys, strict=True):
                row[: len(kept[key])] = kept[key]
        return torch.from_numpy(found).to(x.device)

    def _follow_encoder(self) -> None:
        tensors = [*self.encoder.parameters(), *self.encoder.buffers()]
        versions = tuple((t.data_ptr(), t._version) for t in tensors)
        if versions == self._versions:
            return
        self._versions = versions
        described = json.dumps(self.encoder.arguments(), sort_keys=True).encode()
        state = self.encoder.state_dict().items()
        name = _hash(described, *(n.encode() + t.cpu().numpy().tobytes() for n, t in state)).hex()
        if name != self._store.name:
            self._store = _Store(name, self.folder, self.num_features)

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002  # torch's
        """The encoder never trains: its dropout stays off."""
        super().train(mode)
        self.encoder.eval()
        return self


@final
class _Store:
    """Parts (n, D) by key, in memory or in a file; nothing in the files is ever changed."""

    def __init__(self, name: str, folder: Path | None, width: int) -> None:
        self.name = name
        self.width = width
        self.parts: dict[bytes, NDArray[np.float32]] = {}
        self._files = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._files = folder / f"{name}.index", folder / f"{name}.features"
            self._open(*self._files)

    def append(self, keys: list[bytes], parts: list[NDArray[np.float32]]) -> None:
        """Keep new parts; the index is written last, so that a stop loses them and no more."""
        if self._files is None:
            self.parts |= {key: part.copy() for key, part in zip(keys, parts, strict=True)}
            return
        index, values = self._files
        start = values.stat().st_size
        with values.open("ab") as file:
            file.writelines(part.tobytes() for part in parts)
        with index.open("ab") as file:
            pairs = zip(keys, parts, strict=True)
            file.writelines(k + len(p).to_bytes(_COUNT, "little") for k, p in pairs)
        self._map(values, start, keys, [len(part) for part in parts])

    def _open(self, index: Path, values: Path) -> None:
        """What an earlier process kept; the rest of one that was stopped is cut off."""
        index.touch()
        values.touch()
        entry, row = _KEY + _COUNT, 4 * self.width
        data = index.read_bytes()
        entries = [data[i : i + entry] for i in range(0, len(data) - entry + 1, entry)]
        keys = [e[:_KEY] for e in entries]
        counts = [int.from_bytes(e[_KEY:], "little") for e in entries]
        os.truncate(index, entry * len(entries))
        os.truncate(values, row * sum(counts))
        self._map(values, 0, keys, counts)

    def _map(self, values: Path, start: int, keys: list[bytes], counts: list[int]) -> None:
        if not keys:
            return
        shape = (sum(counts), self.width)
        rows = np.memmap(values, np.float32, mode="r", offset=start, shape=shape)
        self.parts |= dict(zip(keys, np.split(rows, np.cumsum(counts)[:-1]), strict=True))


def _hash(*parts: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=_KEY)
    for part in parts:
        digest.update(part)
    return digest.digest()
