"""F1 of spans against seqeval's strict IOB2, and decoding against a search over all sequences."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from bmm_multitask_learning import metrics
from bmm_multitask_learning.datasets import bio_tags

NAMES = bio_tags(["A", "B-and-C"])


def random_tags(rng, num_sentences=40):
    """Sentences of 0 to 8 tags, every other one illegal somewhere in most."""
    return [list(rng.choice(NAMES, rng.integers(0, 9))) for _ in range(num_sentences)]


def noisy(rng, tags, share):
    return [[str(rng.choice(NAMES)) if rng.random() < share else t for t in row] for row in tags]


@pytest.mark.parametrize("seed", range(5))
def test_span_f1_is_that_of_seqeval_in_strict_iob2(seed):
    from seqeval.metrics import classification_report
    from seqeval.scheme import IOB2

    rng = np.random.default_rng(seed)
    tags = random_tags(rng)
    predicted = noisy(rng, tags, 0.2)
    found = metrics.span_f1(tags, predicted)
    expected = classification_report(
        [row for row in tags if row],
        [row for row in predicted if row],
        mode="strict",
        scheme=IOB2,
        output_dict=True,
    )
    for name, score in {"micro avg": found.micro, **found.by_type}.items():
        assert score.precision == pytest.approx(expected[name]["precision"])
        assert score.recall == pytest.approx(expected[name]["recall"])
        assert score.f1 == pytest.approx(expected[name]["f1-score"])
        assert score.support == expected[name]["support"]
    assert 0 < found.micro.f1 < 1


def test_spans_end_where_their_type_does():
    assert metrics.spans(["B-A", "I-A", "I-B", "I-A", "B-A", "B-A"]) == {
        ("A", 0, 2),
        ("A", 4, 5),
        ("A", 5, 6),
    }
    assert metrics.spans(["I-A", "I-A"]) == metrics.spans([]) == set()


def test_span_f1_by_hand():
    tags = [["B-A", "I-A", "O", "B-B", "B-A"], ["O", "B-B"]]
    predicted = [["B-A", "I-A", "O", "B-A", "I-A"], ["B-C", "B-B"]]
    found = metrics.span_f1(tags, predicted)
    # right: (A, 0, 2) and the second sentence's B; predicted 4; true 4
    assert found.micro == (0.5, 0.5, 0.5, 4)
    assert found.by_type["A"] == (0.5, 0.5, 0.5, 2)
    assert found.by_type["B"] == (1.0, 0.5, pytest.approx(2 / 3), 2)
    assert math.isnan(found.by_type["C"].recall)
    assert found.by_type["C"].f1 == 0


def test_span_f1_of_nothing_is_nan():
    found = metrics.span_f1([["O", "O"], []], [["O", "O"], []])
    assert all(math.isnan(value) for value in found.micro[:3])
    assert (found.micro.support, found.by_type) == (0, {})
    missed = metrics.span_f1([["B-A"]], [["O"]]).micro
    assert math.isnan(missed.precision)
    assert (missed.recall, missed.f1) == (0, 0)


@pytest.mark.parametrize(
    ("tags", "predicted", "message"),
    [
        ([["O"]], [], "the 1 sentences of tags; got 0"),
        ([["O"], ["O", "O"]], [["O"], ["O"]], "sentence 1 has 2 words, got 1 tags"),
        ([["O", "PER"]], [["O", "O"]], "got 'PER' at word 1"),
        ([["O"]], [["BPER"]], "got 'BPER' at word 0"),
    ],
)
def test_span_f1_refuses_what_does_not_fit(tags, predicted, message):
    with pytest.raises(ValueError, match=message):
        metrics.span_f1(tags, predicted)


def legal(tags):
    return all(
        not tag.startswith("I-") or before[2:] == tag[2:]
        for before, tag in zip(("O", *tags), tags, strict=False)
    )


def test_viterbi_is_the_best_of_all_legal_sequences():
    rng = np.random.default_rng(0)
    lengths = [4, 0, 1, 3, 2, 4, 4, 4]
    probability = rng.dirichlet(np.full(5, 0.4), (8, 4))
    probability[0, 1, :4] = 0  # only an I-B-and-C is possible
    probability[0, 1, 4] = 1
    found = metrics.decode_tags(probability, NAMES, lengths)
    illegal = 0
    for table, length, row in zip(probability, lengths, found, strict=True):
        sequences = [tags for tags in itertools.product(NAMES, repeat=length) if legal(tags)]

        def score(tags, table=table):
            return sum(math.log(max(table[w, NAMES.index(t)], 1e-300)) for w, t in enumerate(tags))

        assert len(row) == length
        assert legal(row)
        assert score(row) == pytest.approx(max(map(score, sequences)))
        greedy = metrics.decode_tags(table[None], NAMES, [length], "greedy")[0]
        assert greedy == [NAMES[tag] for tag in table[:length].argmax(1)]
        illegal += not legal(greedy)
    assert illegal > 2


def test_viterbi_takes_tensors_and_leaves_padding_unread():
    probability = torch.full((2, 3, 5), torch.nan)
    probability[0, :2] = torch.tensor([0.1, 0.5, 0.1, 0.2, 0.1])
    probability[1] = torch.tensor([0.1, 0.1, 0.2, 0.2, 0.4])
    assert metrics.decode_tags(probability, NAMES, torch.tensor([2, 3])) == [
        ["B-A", "B-A"],
        ["B-B-and-C", "I-B-and-C", "I-B-and-C"],
    ]


def test_words_one_after_the_other_are_those_of_their_sentences():
    rng = np.random.default_rng(1)
    probability, lengths = rng.dirichlet(np.full(5, 0.4), (3, 4)), np.array([2, 0, 4])
    flat = probability[np.arange(4) < lengths[:, None]]
    for method in ("viterbi", "greedy"):
        expected = metrics.decode_tags(probability, NAMES, lengths, method)
        assert metrics.decode_tags(flat, NAMES, lengths, method) == expected


def test_impossible_tags_leave_a_legal_sequence():
    probability = np.zeros((1, 3, 5))
    probability[..., 2] = 1
    assert metrics.decode_tags(probability, NAMES, [3]) == [["B-A", "I-A", "I-A"]]


@pytest.mark.parametrize(
    ("probability", "lengths", "method", "message"),
    [
        (np.ones((2, 3, 4)), [3, 3], "viterbi", r"O = 5, one for each name; got \(2, 3, 4\)"),
        (np.ones((5, 5)), [3, 3], "viterbi", r"for the M = 6 words.*got \(5, 5\)"),
        (np.ones((2, 3, 5)), [3, 4], "viterbi", r"each in 0\.\.3; got 4"),
        (np.ones((2, 3, 5)), [3], "viterbi", r"must be \(2,\) numbers of words"),
        (-np.ones((2, 3, 5)), [0, 1], "viterbi", "Are these logits"),
        (np.ones((2, 3, 5)) * np.nan, [0, 1], "greedy", "finite"),
        (np.ones((2, 3, 5)), [3, 3], "beam", "or \"greedy\"; got 'beam'"),
    ],
)
def test_decoding_refuses_what_does_not_fit(probability, lengths, method, message):
    with pytest.raises(ValueError, match=message):
        metrics.decode_tags(probability, NAMES, lengths, method)
