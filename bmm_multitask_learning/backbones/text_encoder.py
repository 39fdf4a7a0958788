r"""Text encoders: from sentences to rows of tokens, and from those to features.

A text is a row of an integer tensor x, (N, 2, L): `x[:, 0]` are the ids of its tokens, `x[:, 1]`
the number of the word that each belongs to, from 0; -1 is padding among the ids, and no word
(special tokens, padding) among the words. So texts go through `TaskData` and minibatches like any
other inputs.
"""

from __future__ import annotations

import importlib
import json
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from .backbone import Backbone
from .readers import Pooled, token_mask

if TYPE_CHECKING:
    from tokenizers import Encoding

Pooling = Literal["mean", "cls", "max", "attention"]
Precision = Literal["float32", "bf16"]

# floats of the states in a pass on the CPU: more of them leave the processor's cache (MiniLM on
# reviews: batches of 4 to 8 take three quarters of the time that batches of 32 take)
_CACHED_FLOATS = 400_000
# seconds before a progress bar shows
_PATIENCE = 2.0


class TextEncoder(Backbone):
    r"""A transformer over tokens: $\phi(x)$ of sentences if it pools, states of tokens if not.

    `forward` goes through the rows in batches sorted by length, so that little is computed on
    padding: families of long and of short texts share a pass without loss. Without gradients
    memory stays that of one batch. Dropout is for training alone, and only where the transformer
    itself has parameters to train.

    Args:
        trunk: the transformer.
        width: D, size of a state.
        tokenizer: a tokenizer of the `tokenizers` library, as JSON.
        pad_id: the token that stands in places without one.
        pooling: "mean", "cls", "max", "attention" (see `Pooled`), or None for states of tokens.
        normalise: whether features have length 1.
        max_length: tokens of a text at most, with special ones; strings are cut there.
        precision: "bf16" computes the transformer in mixed precision.
        batch_size: rows at once, at most; the CPU takes fewer of long texts.

    Raises:
        ImportError: without the extra `text`.
        ValueError: for arguments that do not fit.
    """

    def __init__(
        self,
        trunk: nn.Module,
        width: int,
        tokenizer: str,
        *,
        pad_id: int,
        pooling: Pooling | None,
        normalise: bool,
        max_length: int,
        precision: Precision,
        batch_size: int,
    ) -> None:
        super().__init__()
        if precision not in ("float32", "bf16"):
            raise ValueError(f"precision must be 'float32' or 'bf16'; got {precision!r}.")
        if normalise and pooling is None:
            raise ValueError("normalise=True is for pooled features; give a pooling as well.")
        if max_length < 3 or batch_size < 1:
            raise ValueError(
                "max_length must be at least 3 and batch_size at least 1; got "
                f"{max_length} and {batch_size}."
            )
        self.trunk = trunk
        self.pool = None if pooling is None else Pooled(pooling, num_features=width)
        self.num_features = width
        self.pad_id = pad_id
        self.pooling = pooling
        self.normalise = normalise
        self.max_length = max_length
        self.precision = precision
        self.batch_size = batch_size
        self.tokenizer = text_extra("tokenizers").Tokenizer.from_str(tokenizer)
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(max_length)
        self.eval()

    @property
    @abstractmethod
    def blocks(self) -> nn.ModuleList:
        """The layers of the transformer, from the input up."""

    @abstractmethod
    def states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """States (N, L, D) of tokens (N, L); `mask` is False where there is none."""

    def arguments(self) -> dict[str, Any]:
        return {
            "tokenizer": self.tokenizer.to_str(),
            "pooling": self.pooling,
            "normalise": self.normalise,
            "max_length": self.max_length,
            "precision": self.precision,
            "batch_size": self.batch_size,
        }

    # ---- tokens -------------------------------------------------------------------------------

    def tokens(self, texts: Sequence[str] | Sequence[Sequence[str]]) -> Tensor:
        """Rows (N, 2, L) int32 of N strings, or of N lists of words.

        L is the longest of them in tokens. A word that has no token, such as a lone control
        character, becomes the unknown token.

        Args:
            texts: strings, which are cut after `max_length` tokens, or lists of words, which must
                fit, since each word may have a label.

        Raises:
            TypeError: for one string instead of a list, or for what is neither.
            ValueError: for a list of words that is too long.
        """
        texts = as_texts(texts)
        if all(isinstance(text, str) for text in texts):
            return _rows(self.tokenizer.encode_batch(texts))
        if any(isinstance(text, str) for text in texts):
            raise TypeError("texts must be all strings or all lists of words; got some of each.")
        # byte-level tokenizers know a word's beginning by the space before it; others drop it
        words = [[f" {word}" for word in text] for text in texts]
        encodings = self.tokenizer.encode_batch(words, is_pretokenized=True)
        for n, encoding in enumerate(encodings):
            there = set(encoding.word_ids)
            if encoding.overflowing:
                raise ValueError(
                    f"sentence {n} has {len(words[n])} words in more than max_length = "
                    f"{self.max_length} tokens, and words with labels are not cut: split the "
                    "sentence, or raise max_length."
                )
            if len(there - {None}) < len(words[n]):
                known = [w if i in there else self._unknown for i, w in enumerate(words[n])]
                encodings[n] = self.tokenizer.encode(known, is_pretokenized=True)
        return _rows(encodings)

    @property
    def _unknown(self) -> str:
        model = json.loads(self.tokenizer.to_str())["model"]
        if model["type"] == "Unigram":
            token = model["vocab"][model["unk_id"]][0] if model["unk_id"] is not None else None
        else:
            token = model["unk_token"]
        if token is None:
            raise ValueError(
                "a word has no token, and this tokenizer has none for what is unknown: remove "
                "words that are empty or hold control characters alone."
            )
        return str(token)

    # ---- features -----------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, D) of rows (N, 2, L) if it pools, else states of tokens (N, L, D).

        Raises:
            ValueError: for inputs that are no rows of tokens.
        """
        _check_rows(x)
        return self._in_batches(x, self.batch_size, progress=False)

    def encode(
        self, texts: Sequence[str], *, batch_size: int | None = None, progress: bool = True
    ) -> Tensor:
        """Features (N, D) of N strings, float32 on the CPU, without gradients or dropout.

        Args:
            texts: N strings.
            batch_size: rows at once, at most; None: the encoder's own.
            progress: whether to show a bar, after two seconds.

        Raises:
            ValueError: if the encoder does not pool.
        """
        if self.pool is None:
            raise ValueError(
                "encode gives features of sentences: make the encoder with a pooling."
            )
        x = self.tokens(texts).to(next(self.parameters()).device)
        training = self.training
        self.eval()
        with torch.no_grad():
            features = self._in_batches(x, batch_size or self.batch_size, progress=progress)
        self.train(training)
        return features.cpu()

    def _in_batches(self, x: Tensor, batch_size: int, *, progress: bool) -> Tensor:
        """As `_pass`, in batches sorted by length, the longest first."""
        lengths, order = token_mask(x).sum(-1).sort(descending=True, stable=True)
        shape = (len(x), self.num_features) if self.pool else (*x[:, 0].shape, self.num_features)
        features = torch.zeros(shape, device=x.device)
        with tqdm(
            total=len(x), disable=not progress, delay=_PATIENCE, desc="encode", unit="text"
        ) as bar:
            done = 0
            while done < len(x):
                size = batch_size
                if x.device.type == "cpu":
                    floats = int(lengths[done]) * self.num_features
                    size = min(size, max(1, _CACHED_FLOATS // floats))
                at = order[done : done + size]
                done += len(at)
                part = self._pass(x[at])
                if self.pool:
                    features[at] = part
                else:
                    features[at, : part.shape[1]] = part
                bar.update(len(at))
        return features

    def _pass(self, x: Tensor) -> Tensor:
        """One pass over all rows; columns without a token are cut."""
        mask = token_mask(x)
        length = int(mask.any(0).nonzero()[-1]) + 1
        x, mask = x[..., :length], mask[:, :length]
        ids = x[:, 0].long().masked_fill(x[:, 0] < 0, self.pad_id)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            states = self.states(ids, mask)
        states = states.float()
        if self.pool is None:
            return states * mask[..., None]
        pooled = self.pool(states, x)
        return functional.normalize(pooled, dim=-1) if self.normalise else pooled

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002  # torch's
        """Training or not; a transformer that is frozen keeps its dropout off."""
        super().train(mode)
        self.trunk.train(mode and any(p.requires_grad for p in self.trunk.parameters()))
        return self


def text_extra(name: str) -> Any:
    """A library of the extra `text`, imported where it is used."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"text encoders need {name}, which is not installed; "
            "install the extra: pip install 'bmm-multitask-learning[text]'"
        ) from error


def find_text_encoder(backbone: nn.Module) -> TextEncoder | None:
    """The text encoder within a backbone, if there is one: it knows how to make tokens.

    Example:
        >>> find_text_encoder(nn.Identity()) is None
        True
    """
    return next((m for m in backbone.modules() if isinstance(m, TextEncoder)), None)


def as_texts(texts: Sequence[str] | Sequence[Sequence[str]]) -> list[str] | list[Sequence[str]]:
    """A list of strings or of lists of words; a TypeError for anything else."""
    if isinstance(texts, str):
        raise TypeError(f"texts must be a list; got one string. Pass [{texts[:20]!r}].")
    listed = list(texts)
    for n, text in enumerate(listed):
        words = [text] if isinstance(text, str) else text
        if not isinstance(words, Sequence | np.ndarray) or not all(
            isinstance(word, str) for word in words
        ):
            raise TypeError(
                f"texts must be strings or lists of words; got {text!r} at {n}. Replace what is "
                "missing by an empty string."
            )
    return listed


def _rows(encodings: Sequence[Encoding]) -> Tensor:
    length = max((len(encoding.ids) for encoding in encodings), default=0)
    x = np.full((len(encodings), 2, max(length, 1)), -1, dtype=np.int32)
    for row, encoding in zip(x, encodings, strict=True):
        row[0, : len(encoding.ids)] = encoding.ids
        row[1, : len(encoding.ids)] = [-1 if w is None else w for w in encoding.word_ids]
    return torch.from_numpy(x)


def _check_rows(x: Tensor) -> None:
    if x.ndim != 3 or x.shape[1] != 2 or x.is_floating_point():
        raise ValueError(
            "a text encoder takes integer rows of tokens of shape (N, 2, L), which its "
            f"tokens(texts) makes; got {tuple(x.shape)} of {x.dtype}."
        )
