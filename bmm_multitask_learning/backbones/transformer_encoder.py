"""A transformer of our own, with a tokenizer trained on the user's texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, Self, cast, final

import torch
from torch import Tensor, nn

from .text_encoder import Pooling, Precision, TextEncoder, as_texts, text_extra

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
# special tokens and bytes
_SMALLEST = len(_SPECIAL) + 256


@final
class TransformerEncoder(TextEncoder):
    r"""Layers of attention over embedded tokens, trained from nothing; `from_texts` makes one.

    $$h^0_l = E_{x_l} + P_l, \qquad h^{i+1} = \mathrm{layer}_i(h^i), \qquad
      P_{l,2j} = \sin(l\, 10^{-8j/D}),\ P_{l,2j+1} = \cos(l\, 10^{-8j/D})$$

    or P learned. Each layer normalises its input (pre-norm), and a last one the output.

    Args:
        tokenizer: as JSON, from `train_tokenizer`.
        width: D, size of a state; a multiple of `heads`, and even.
        layers: number of layers.
        heads: of attention in each layer.
        feedforward: units between the two linear maps of a layer; None: 4 D.
        positions: "sinusoidal" or "learned".
        dropout: share of units left out in training.
        pooling: "mean", "cls", "max", "attention" (see `Pooled`), or None for states of tokens.
        normalise: whether features have length 1.
        max_length: tokens of a text at most, with the two special ones; strings are cut there.
        precision: "bf16" computes the layers in mixed precision.
        batch_size: rows at once, at most.
        seed: of the initial weights.

    Raises:
        ImportError: without the extra `text`.
        ValueError: for arguments that do not fit.

    Example:
        >>> texts = ["good film", "bad film", "a film"]
        >>> encoder = TransformerEncoder.from_texts(texts, vocab_size=300, width=8, layers=1)
        >>> encoder(encoder.tokens(texts)).shape
        torch.Size([3, 8])

    References:
        Vaswani et al., Attention is all you need (2017), section 3.5.
        Sennrich, Haddow and Birch, Neural machine translation of rare words with subword units
        (2016).
    """

    def __init__(
        self,
        tokenizer: str,
        *,
        width: int = 128,
        layers: int = 2,
        heads: int = 4,
        feedforward: int | None = None,
        positions: Literal["sinusoidal", "learned"] = "sinusoidal",
        dropout: float = 0.1,
        pooling: Pooling | None = "mean",
        normalise: bool = False,
        max_length: int = 128,
        precision: Precision = "float32",
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        if positions not in ("sinusoidal", "learned"):
            raise ValueError(f"positions must be 'sinusoidal' or 'learned'; got {positions!r}.")
        if width < 2 or layers < 1 or heads < 1 or width % heads or width % 2:
            raise ValueError(
                "width must be an even multiple of heads, and layers at least 1; got "
                f"width={width}, heads={heads} and layers={layers}."
            )
        vocabulary = text_extra("tokenizers").Tokenizer.from_str(tokenizer).get_vocab_size()
        sizes = (width, layers, heads, feedforward or 4 * width)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            trunk = _Layers(vocabulary, max_length, sizes, positions, dropout)
        super().__init__(
            trunk,
            width,
            tokenizer,
            pad_id=_SPECIAL.index("[PAD]"),
            pooling=pooling,
            normalise=normalise,
            max_length=max_length,
            precision=precision,
            batch_size=batch_size,
        )
        self.layers = layers
        self.heads = heads
        self.feedforward = feedforward
        self.positions = positions
        self.dropout = dropout

    @classmethod
    def from_texts(
        cls,
        texts: Sequence[str] | Sequence[Sequence[str]],
        *,
        vocab_size: int = 8000,
        lowercase: bool = True,
        **arguments: Any,
    ) -> Self:
        """An encoder whose tokenizer is trained on these texts.

        Args:
            texts: strings, or lists of words.
            vocab_size: number of tokens at most.
            lowercase: whether capitals and accents are dropped.
            arguments: those of the class.
        """
        tokenizer = cls.train_tokenizer(texts, vocab_size=vocab_size, lowercase=lowercase)
        return cls(tokenizer, **arguments)

    @staticmethod
    def train_tokenizer(
        texts: Sequence[str] | Sequence[Sequence[str]],
        *,
        vocab_size: int = 8000,
        lowercase: bool = True,
    ) -> str:
        """Byte-pair encoding learned from texts, as JSON; the same texts give the same one.

        Args:
            texts: strings, or lists of words.
            vocab_size: number of tokens at most, with four special ones and 256 bytes.
            lowercase: whether capitals and accents are dropped.

        Raises:
            ValueError: for a vocabulary of bytes alone.
        """
        if vocab_size <= _SMALLEST:
            raise ValueError(
                f"vocab_size must be more than the {_SMALLEST} tokens that are always there; got "
                f"{vocab_size}."
            )
        library = text_extra("tokenizers")
        tokenizer = library.Tokenizer(library.models.BPE(unk_token="[UNK]"))
        tokenizer.normalizer = library.normalizers.BertNormalizer(lowercase=lowercase)
        tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel()
        trainer = library.trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(_SPECIAL),
            # with all bytes known at the start the merges alone decide; pieces such as ##x would
            # be numbered in the order of a hash
            initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        strings = (t if isinstance(t, str) else " ".join(t) for t in as_texts(texts))
        tokenizer.train_from_iterator(strings, trainer)
        tokenizer.post_processor = library.processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            special_tokens=[(t, tokenizer.token_to_id(t)) for t in ("[CLS]", "[SEP]")],
        )
        return cast(str, tokenizer.to_str())

    @property
    def blocks(self) -> nn.ModuleList:
        return cast(_Layers, self.trunk).encoder.layers

    def states(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.trunk(ids, mask)

    def arguments(self) -> dict[str, Any]:
        return super().arguments() | {
            "width": self.num_features,
            "layers": self.layers,
            "heads": self.heads,
            "feedforward": self.feedforward,
            "positions": self.positions,
            "dropout": self.dropout,
        }


class _Layers(nn.Module):
    """Embedded tokens and positions, then `torch.nn.TransformerEncoder`."""

    def __init__(
        self,
        vocabulary: int,
        max_length: int,
        sizes: tuple[int, int, int, int],
        positions: str,
        dropout: float,
    ) -> None:
        super().__init__()
        width, depth, heads, feedforward = sizes
        self.embeddings = nn.Embedding(vocabulary, width)
        place = _sinusoids(max_length, width)
        if positions == "learned":
            self.positions = nn.Parameter(torch.randn_like(place))
        else:
            self.register_buffer("positions", place)
        layers = [
            nn.TransformerEncoderLayer(
                width,
                heads,
                feedforward,
                dropout,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(depth)
        ]
        self.encoder = nn.TransformerEncoder(
            layers[0], depth, nn.LayerNorm(width), enable_nested_tensor=False
        )
        # torch copies the first layer, weights and all
        self.encoder.layers = nn.ModuleList(layers)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        h = self.embeddings(ids) + self.positions[: ids.shape[1]]
        return self.encoder(h, src_key_padding_mask=~mask)


def _sinusoids(length: int, width: int) -> Tensor:
    rate = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    angle = torch.arange(length)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)
