"""A BERT of a few thousand parameters with random weights, for tests of text encoders."""

from __future__ import annotations

from typing import Any

import pytest

from bmm_multitask_learning.backbones import SentenceEncoder

tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("transformers")

TEXTS = ["the film was great", "bad", "", "a long text about a film that was not bad at all"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = [*sorted(set(" ".join(TEXTS).split())), "un", "##able"]
CONFIG = {
    "model_type": "bert",
    "vocab_size": len(SPECIAL) + len(WORDS),
    "hidden_size": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "max_position_embeddings": 130,
}


def word_pieces() -> str:
    """A tokenizer of the words above, as JSON."""
    vocab = {word: n for n, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer.to_str()


def small(**arguments: Any) -> SentenceEncoder:
    """The encoder, of seed 0 and at most 20 tokens unless the arguments say otherwise."""
    return SentenceEncoder(CONFIG, word_pieces(), **{"seed": 0, "max_length": 20} | arguments)
