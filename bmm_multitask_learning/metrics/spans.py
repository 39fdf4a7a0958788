"""Entities as spans of words: their F1, and the most probable tags that are legal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bmm_multitask_learning.metrics.arrays import Array, Floats, numbers

Span = tuple[str, int, int]


class SpanScore(NamedTuple):
    """How well spans are found.

    Attributes:
        precision: share of the predicted spans that are right; NaN where none is predicted.
        recall: share of the true spans that are found; NaN where there is none.
        f1: 2 · right / (predicted + true); NaN where there are neither.
        support: number of true spans.
    """

    precision: float
    recall: float
    f1: float
    support: int


class SpanF1(NamedTuple):
    """Scores over the spans of all types, and of each type.

    Attributes:
        micro: all spans together.
        by_type: by the type, sorted; the types that are true or predicted somewhere.
    """

    micro: SpanScore
    by_type: dict[str, SpanScore]


def spans(tags: Sequence[str]) -> set[Span]:
    """Spans of one sentence: type, first word, and the word after the last.

    A span is B-X and the I-X that follow it. An I-X that follows neither B-X nor I-X of a span is
    no part of any.

    Args:
        tags: BIO tags of the words.

    Returns:
        The spans.

    Raises:
        ValueError: a tag is neither O nor begins with B- or I-.

    Example:
        >>> sorted(spans(["B-PER", "I-PER", "O", "I-LOC", "B-LOC"]))
        [('LOC', 4, 5), ('PER', 0, 2)]
    """
    found: set[Span] = set()
    kind, start = None, 0
    for place, tag in enumerate((*tags, "O")):
        if tag != "O" and tag[:2] not in ("B-", "I-"):
            raise ValueError(
                f'every tag must be "O", "B-" and a type, or "I-" and a type; got {tag!r} at word '
                f"{place}. Turn numbers into names: names[number]."
            )
        if kind is not None and tag != f"I-{kind}":
            found.add((kind, start, place))
            kind = None
        if tag.startswith("B-"):
            kind, start = tag[2:], place
    return found


def span_f1(tags: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> SpanF1:
    """F1 of entities: a predicted span is right where its type, first and last word are.

    F1 = 2 · right / (predicted + true), over all sentences. As `seqeval` in strict mode with the
    scheme IOB2, apart from 0/0, which is NaN here; see `spans` for illegal tags.

    Args:
        tags: true BIO tags of N sentences.
        predicted: tags of the same words.

    Returns:
        Precision, recall and F1, of all spans and of each type.

    Raises:
        ValueError: sentences differ in number or length, or a tag is no BIO tag.

    Example:
        >>> score = span_f1([["B-PER", "I-PER", "O", "B-LOC"]], [["B-PER", "O", "O", "B-LOC"]])
        >>> score.micro
        SpanScore(precision=0.5, recall=0.5, f1=0.5, support=2)
        >>> score.by_type["LOC"].f1
        1.0
    """
    if len(tags) != len(predicted):
        raise ValueError(
            f"predicted must have the {len(tags)} sentences of tags; got {len(predicted)}."
        )
    true, guessed, right = Counter[str](), Counter[str](), Counter[str]()
    for number, (row, guess) in enumerate(zip(tags, predicted, strict=True)):
        if len(row) != len(guess):
            raise ValueError(
                f"predicted must have a tag for each word; sentence {number} has {len(row)} "
                f"words, got {len(guess)} tags. A word that was cut off has the tag O."
            )
        there, here = spans(row), spans(guess)
        for counter, found in ((true, there), (guessed, here), (right, there & here)):
            counter.update(kind for kind, _, _ in found)
    by_type = {
        kind: _score(right[kind], guessed[kind], true[kind]) for kind in sorted(true | guessed)
    }
    return SpanF1(_score(right.total(), guessed.total(), true.total()), by_type)


def _score(right: int, guessed: int, true: int) -> SpanScore:
    return SpanScore(
        right / guessed if guessed else float("nan"),
        right / true if true else float("nan"),
        2 * right / (guessed + true) if guessed + true else float("nan"),
        true,
    )


def decode_tags(
    probability: Array,
    names: Sequence[str],
    lengths: Sequence[int] | NDArray[np.int64],
    method: Literal["viterbi", "greedy"] = "viterbi",
) -> list[list[str]]:
    """Tags of words from their probabilities.

    "greedy": each word's most probable tag, which may be illegal.  "viterbi": the sequence with
    the largest Σ_w log p(tag_w) among those where I-X follows B-X or I-X only.

    Args:
        probability: (N, W, O) of each tag, where what stands after a sentence's last word is not
            read; or (M, O) of the words of all sentences one after the other, as a prediction for
            a family of words has them.
        names: of the O tags, as `datasets.tag_targets` gives them.
        lengths: (N,) number of words of each sentence, 0 .. W.
        method: one of the above.

    Returns:
        The tags of each sentence's words.

    Raises:
        ValueError: shapes, lengths or names do not fit, a probability is not finite or negative,
            or the method is neither.

    Example:
        >>> p = [[[0.5, 0.1, 0.4], [0.1, 0.2, 0.7]]]
        >>> names = ("O", "B-PER", "I-PER")
        >>> decode_tags(p, names, [2], "greedy"), decode_tags(p, names, [2])
        ([['O', 'I-PER']], [['O', 'B-PER']])
    """
    table, counts = _checked(probability, names, lengths)
    if method == "greedy":
        chosen = table.argmax(-1)
    elif method == "viterbi":
        chosen = _viterbi(np.log(np.maximum(table, np.finfo(np.float64).tiny)), names)
    else:
        raise ValueError(f'method must be "viterbi" or "greedy"; got {method!r}.')
    return [[names[tag] for tag in row[:count]] for row, count in zip(chosen, counts, strict=True)]


def _checked(
    probability: Array, names: Sequence[str], lengths: Sequence[int] | NDArray[np.int64]
) -> tuple[Floats, NDArray[np.int64]]:
    """Probabilities, 1 after a sentence's end, and lengths."""
    table = numbers(probability)
    counts = np.asarray(lengths, dtype=np.int64)
    if table.ndim == 2 and counts.ndim == 1 and len(table) == counts.sum():
        one_by_one, W = table, counts.max(initial=0)
        table = np.ones((len(counts), W, one_by_one.shape[1]))
        table[np.arange(W) < counts[:, None]] = one_by_one
    if table.ndim != 3 or table.shape[2] != len(names):
        raise ValueError(
            f"probability must be (N, W, O), or (M, O) for the M = {counts.sum()} words, with "
            f"O = {len(names)}, one for each name; got {table.shape}."
        )
    N, W, _ = table.shape
    if counts.shape != (N,) or (counts < 0).any() or (counts > W).any():
        got = counts.max(initial=0) if counts.shape == (N,) else counts.shape
        raise ValueError(
            f"lengths must be ({N},) numbers of words, each in 0..{W}; got {got}. Is a sentence "
            "longer than what the encoder reads? Give the number of words it has read."
        )
    table = np.where((np.arange(W) < counts[:, None])[..., None], table, 1.0)
    if not (np.isfinite(table) & (table >= 0)).all():
        raise ValueError("probability must be finite and >= 0 at each word. Are these logits?")
    return table, counts


def _viterbi(log_probability: Floats, names: Sequence[str]) -> NDArray[np.int64]:
    """(N, W) numbers of the tags of the best legal sequences.

    Words after a sentence's end have log probability 0 for every tag; O follows every tag, so that
    they leave the best tags before them as they are.
    """
    inside = np.array([name.startswith("I-") for name in names])
    goes_on = np.array([[name[2:] == last[2:] != "" for name in names] for last in names])
    step = np.where(~inside | goes_on, 0.0, -np.inf)  # (O, O), from the row's tag to the column's
    N, W, O = log_probability.shape
    chosen = np.zeros((N, W), dtype=np.int64)
    origin = np.zeros((N, W, O), dtype=np.int64)
    score = np.where(inside, -np.inf, np.zeros((N, 1)))  # no sentence begins inside a span
    for w in range(W):
        if w:
            paths = score[:, :, None] + step
            origin[:, w], score = paths.argmax(1), paths.max(1)
        score = score + log_probability[:, w]
    last = score.argmax(1)
    for w in reversed(range(W)):
        chosen[:, w] = last
        last = origin[np.arange(N), w, last]
    return chosen
