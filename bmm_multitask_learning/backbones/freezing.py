r"""What of an encoder trains, and how fast.

A layer's depth counts from the top: the last block has depth 1, the embeddings the largest; what
stands above the blocks (a last norm, attention pooling) has depth 0.
"""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn

from .sentence_encoder import SentenceEncoder
from .text_encoder import TextEncoder, find_text_encoder

_Module = TypeVar("_Module", bound=nn.Module)


def heads_only(backbone: _Module) -> _Module:
    """Freeze all of a backbone, so that heads alone are fitted; in closed form where they can be.

    Example:
        >>> backbone = heads_only(nn.Linear(3, 2))
        >>> any(p.requires_grad for p in backbone.parameters())
        False
    """
    return backbone.requires_grad_(requires_grad=False)


def train_top(backbone: nn.Module, blocks: int) -> None:
    """Train an encoder's last `blocks` blocks and what stands above them, and freeze the rest.

    Args:
        backbone: the encoder, or a module with one within.
        blocks: how many; 0 freezes the encoder, all of them trains the embeddings too.

    Raises:
        TypeError: for a backbone without a text encoder.
        ValueError: for more blocks than there are, fewer than 0, or an encoder with adapters.

    Example:
        >>> from bmm_multitask_learning.backbones import TransformerEncoder
        >>> encoder = TransformerEncoder.from_texts(["a text"], vocab_size=300, layers=3)
        >>> train_top(encoder, 1)
        >>> [block.linear1.weight.requires_grad for block in encoder.blocks]
        [False, False, True]
    """
    encoder = _encoder(backbone)
    if isinstance(encoder, SentenceEncoder) and encoder.lora is not None:
        raise ValueError(
            "the encoder has low-rank adapters, which are to train instead of its blocks. Take an "
            "encoder without them."
        )
    count = len(encoder.blocks)
    if not 0 <= blocks <= count:
        raise ValueError(f"the encoder has {count} blocks; asked to train the last {blocks}.")
    for depth, parameters in by_depth(encoder).items():
        trained = blocks > 0 and (depth <= blocks or blocks == count)
        for parameter in parameters:
            parameter.requires_grad_(trained)


def by_depth(encoder: TextEncoder) -> dict[int, list[nn.Parameter]]:
    """The encoder's parameters by their depth, from the top down."""
    every = list(encoder.parameters())
    blocks = [list(block.parameters()) for block in encoder.blocks]
    inside = {id(p) for block in blocks for p in block}
    # modules register what their inputs meet first
    first = next(n for n, p in enumerate(every) if id(p) in inside)
    above = [p for p in every[first:] if id(p) not in inside]
    return dict(enumerate([above, *reversed(blocks), every[:first]]))


def layerwise_groups(
    backbone: nn.Module, lr: float, *, decay: float = 0.9
) -> list[dict[str, Any]]:
    r"""Parameter groups of an optimiser whose learning rate falls with depth.

    $$\mathrm{lr}_d = \mathrm{lr} \cdot \mathrm{decay}^d$$

    Groups have frozen parameters too, so that they may be unfrozen later. For `SVI`:
    `backbone_lr=functools.partial(layerwise_groups, lr=1e-4)`.

    Args:
        backbone: a text encoder, or a module with one within.
        lr: learning rate at the top.
        decay: factor from a layer to the one below.

    Raises:
        TypeError: for a backbone without a text encoder.
        ValueError: for a rate that is not positive, or a decay outside (0, 1].

    Example:
        >>> from bmm_multitask_learning.backbones import TransformerEncoder
        >>> encoder = TransformerEncoder.from_texts(["a text"], vocab_size=300, layers=2)
        >>> [round(group["lr"], 4) for group in layerwise_groups(encoder, 0.01, decay=0.5)]
        [0.01, 0.005, 0.0025, 0.0013]

    References:
        Howard and Ruder, Universal language model fine-tuning for text classification (2018),
        section 3.2.
    """
    if not lr > 0 or not 0 < decay <= 1:
        raise ValueError(f"lr must be positive and decay in (0, 1]; got {lr} and {decay}.")
    groups = by_depth(_encoder(backbone)).items()
    return [{"params": ps, "lr": lr * decay**depth} for depth, ps in groups if ps]


def _encoder(backbone: nn.Module) -> TextEncoder:
    encoder = find_text_encoder(backbone)
    if encoder is None:
        raise TypeError(
            f"layers are counted in a text encoder; {type(backbone).__name__} has none. Set "
            "requires_grad of its own layers."
        )
    return encoder
