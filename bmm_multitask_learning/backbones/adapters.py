"""Low-rank adapters: a small part that trains beside each frozen linear map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .text_encoder import text_extra

if TYPE_CHECKING:
    from .sentence_encoder import SentenceEncoder


def lora(
    encoder: SentenceEncoder,
    *,
    rank: int = 8,
    alpha: float | None = None,
    targets: Sequence[str] | None = None,
    dropout: float = 0.0,
    seed: int = 0,
) -> SentenceEncoder:
    r"""Freeze the encoder's transformer and train low-rank adapters in its blocks, by `peft`.

    $$W x \to W x + \tfrac{\alpha}{r} B A x, \qquad A \in R^{r \times d}, \quad B = 0 \text{ at
      first}$$

    so features are at first those of the encoder without adapters. A pooling's own parameters
    train on. A saved model keeps the adapters.

    Args:
        encoder: changed in place.
        rank: r.
        alpha: scale of what the adapters add; None: r.
        targets: last parts of the names of linear maps, such as ["query", "value"]; None: all
            linear maps of the blocks.
        dropout: of the adapters' inputs, in training.
        seed: of A.

    Raises:
        ImportError: without the extra `text`.
        ValueError: for a rank below 1, or an encoder that has adapters already.

    Example:
        >>> from bmm_multitask_learning.backbones import SentenceEncoder
        >>> encoder = lora(SentenceEncoder.from_pretrained("all-MiniLM-L6-v2"), rank=4)
        >>> sum(p.numel() for p in encoder.parameters() if p.requires_grad)
        165888

    References:
        Hu et al., LoRA: Low-rank adaptation of large language models (2022), equation 3.
    """
    if encoder.lora is not None:
        raise ValueError(f"the encoder has adapters already: {encoder.lora}. Load it anew.")
    settings = {
        "rank": rank,
        "alpha": rank if alpha is None else alpha,
        "targets": _linear_maps(encoder.blocks) if targets is None else list(targets),
        "dropout": dropout,
    }
    add_adapters(encoder.trunk, settings, seed)
    encoder.lora = settings
    return encoder


def add_adapters(trunk: nn.Module, settings: dict[str, Any], seed: int) -> None:
    """Put adapters into a transformer and freeze everything else."""
    if settings["rank"] < 1:
        raise ValueError(f"rank must be at least 1; got {settings['rank']}.")
    peft = text_extra("peft")
    config = peft.LoraConfig(
        r=settings["rank"],
        lora_alpha=settings["alpha"],
        target_modules=settings["targets"],
        lora_dropout=settings["dropout"],
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        peft.inject_adapter_in_model(config, trunk)


def _linear_maps(blocks: nn.ModuleList) -> list[str]:
    names = (n for n, m in blocks.named_modules() if isinstance(m, nn.Linear))
    return sorted({name.rpartition(".")[2] for name in names})
