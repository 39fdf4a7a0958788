"""The transformer of our own: its tokenizer, positions, seeds, and that it learns."""

from __future__ import annotations

import pytest
import torch

from bmm_multitask_learning.backbones import TransformerEncoder
from bmm_multitask_learning.backbones.transformer_encoder import _sinusoids

pytest.importorskip("tokenizers")

TEXTS = ["the film was great", "a bad film", "", "not that bad at all, a film for the summer"]


def small(**arguments) -> TransformerEncoder:
    sizes = {"width": 8, "heads": 2, "layers": 2, "max_length": 30, "vocab_size": 280}
    return TransformerEncoder.from_texts(TEXTS, **{**sizes, **arguments})


def test_the_same_texts_give_the_same_tokenizer():
    first = TransformerEncoder.train_tokenizer(TEXTS, vocab_size=290)
    assert first == TransformerEncoder.train_tokenizer(TEXTS, vocab_size=290)
    words = [text.split() for text in TEXTS]
    assert TransformerEncoder.train_tokenizer(words, vocab_size=290) == first


def test_tokens_know_their_words_and_nothing_is_unknown():
    encoder = small()
    x = encoder.tokens([["film", "Film", "\U0001f92f", "", "great"]])
    words = x[0, 1].tolist()
    assert sorted(set(words)) == [-1, 0, 1, 2, 3, 4]
    assert words[0] == words[-1] == -1
    first, second = (x[0, 0][x[0, 1] == n].tolist() for n in (0, 1))
    assert first == second  # in lower case
    unknown = encoder.tokenizer.token_to_id("[UNK]")
    assert bool((x[0, 0] != unknown).all())
    cased = small(lowercase=False).tokens([["film", "Film"]])[0]
    first, second = (cased[0][cased[1] == n].tolist() for n in (0, 1))
    assert first != second


def test_sinusoids():
    place = _sinusoids(5, 6)
    assert place.shape == (5, 6)
    rate = 10_000 ** (-2 / 6)
    expected = torch.tensor([3.0, 3 * rate, 3 * rate**2])
    torch.testing.assert_close(place[3, 0::2], expected.sin())
    torch.testing.assert_close(place[3, 1::2], expected.cos())


@pytest.mark.parametrize("positions", ["sinusoidal", "learned"])
def test_order_of_words_matters_and_padding_does_not(positions):
    encoder = small(positions=positions)
    x = encoder.tokens(["bad film", "film bad", TEXTS[3]])
    phi = encoder(x)
    assert float((phi[0] - phi[1]).detach().abs().max()) > 1e-3
    alone = encoder(encoder.tokens(["bad film"]))
    torch.testing.assert_close(alone[0], phi[0], atol=1e-5, rtol=1e-5)
    with torch.no_grad():  # torch's fast path
        torch.testing.assert_close(encoder(x), phi, atol=1e-5, rtol=1e-5)


def test_weights_come_from_the_seed_alone():
    before = torch.get_rng_state()
    first, second, other = small(seed=1), small(seed=1), small(seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(first.state_dict(), second.state_dict(), atol=0, rtol=0)
    assert not torch.equal(first.encode(TEXTS), other.encode(TEXTS))
    one, two = (block.linear1.weight for block in first.blocks)
    assert not torch.equal(one, two)  # layers are no copies of one another


@pytest.mark.parametrize("positions", ["sinusoidal", "learned"])
def test_every_parameter_has_a_gradient(positions):
    encoder = small(positions=positions, pooling="attention")
    encoder(encoder.tokens(TEXTS))[:, 0].sum().backward()
    assert [n for n, p in encoder.named_parameters() if p.grad is None] == []


def test_it_learns_which_word_comes_first():
    """What no bag of words can tell."""
    generator = torch.Generator().manual_seed(0)
    texts = ["bad film"] * 20 + ["film bad"] * 20
    y = torch.arange(40) >= 20
    encoder = small(dropout=0.0)
    head = torch.zeros(8, requires_grad=True)
    optimiser = torch.optim.Adam([*encoder.parameters(), head], lr=0.01)
    x = encoder.tokens(texts)
    for _ in range(30):
        at = torch.randperm(40, generator=generator)[:20]
        logits = encoder(x[at]) @ head
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, y[at].float())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert bool((((encoder(x) @ head) > 0) == y).all())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 9}, "even multiple of heads"),
        ({"width": 10, "heads": 4}, "even multiple of heads"),
        ({"layers": 0}, "layers at least 1"),
        ({"positions": "rotary"}, "positions must be"),
        ({"vocab_size": 260}, "more than the 260 tokens"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        small(**arguments)
