"""One text encoder for reviews, questions, subjectivity and named entities, or one for each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .. import metrics
from ..backbones import Pooled, SentenceEncoder, Words
from ..data import TaskData
from ..datasets import (
    LabelledTexts,
    TaggedSentences,
    align_tags,
    fetch_entities,
    fetch_reviews,
    fetch_sent_conv,
    fetch_trec,
    tag_targets,
)
from ..engines import SVI
from ..family import Family
from ..fitting import fit
from ..likelihoods import Bernoulli, Categorical, Likelihood
from ..model import MultitaskModel
from ..prediction import Prediction
from ..priors import IndependentTasks, SharedGaussian
from .protocol import Forecast, Method, Metric, Problem, Protocol, Rows, Split

ENCODER = "all-MiniLM-L6-v2"
# words of a text that are read; sentences of more words than the second are left out
LONGEST, LONGEST_SENTENCE = 48, 32
REVIEWS, TEXTS_, SENTENCES = 50, 300, 60
REVIEWS_TEST, TEST = 50, 500
COMPONENTS = 96
TRAINED_LAYERS = 2
STEPS, ROWS = 100, 32
HEAD_RATE, ENCODER_RATE = 1e-2, 1e-4
# the family of each task, one column of the table a task
FAMILY = {
    "reviews": "sentiment",
    "TREC": "questions",
    "Subj": "subjectivity",
    "WNUT17": "rare names",
    "BTC": "names",
    "wikigold": "names",
    "SEC": "names",
}
TEXT = f"""
One model, with one encoder ({ENCODER}, texts cut after {LONGEST} words), for reviews of 16 kinds
of product ({REVIEWS} train reviews of each kind, half of them positive), the kind of a question's
answer (TREC, 6 classes), subjectivity (Subj) and named entities in four corpora: WNUT17 with its
own six types; BTC, wikigold and SEC with persons, places and organisations. {TEXTS_} train texts
of TREC and of Subj are drawn at random, and {SENTENCES} sentences, of {LONGEST_SENTENCE} words at
most, of each corpus of names; 3 draws. Test texts are the first {TEST} of each corpus's own test
part, of reviews {REVIEWS_TEST} a kind. Sentences are the mean of their tokens' states, words the
state of their first token; of either the first {COMPONENTS} principal components are the features.
*One model*: five families, each with `SharedGaussian("isotropic")`
over its tasks. *Alone*: a model a task, `IndependentTasks`, with an encoder of its own. *Frozen*:
the encoder stays as it is, heads in closed form. *Trained*: its last {TRAINED_LAYERS} layers are
trained with the heads by `SVI`, {STEPS} steps of {ROWS} texts a family, rates {ENCODER_RATE} and
{HEAD_RATE}; a model alone sees each of its texts as often as the model of all does. Nothing is
tuned on test texts: rates and steps were set before, and looked at on one other draw. The *score*
is the accuracy (of reviews: the mean over kinds), of names the F1 of entities that are right in
type, first and last word; log density and ECE (15 bins) are of texts, of names those of words.
"""


class Part(NamedTuple):
    """Texts of a family: strings with classes (N,), or lists of words with tags (N, W)."""

    texts: Sequence[str] | Sequence[Sequence[str]]
    y: NDArray[np.float64]
    task: NDArray[np.str_]

    def where(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> Part:
        """Some of the texts."""
        rows = np.arange(len(self.task))[chosen]
        return Part([self.texts[n] for n in rows], self.y[rows], self.task[rows])

    def data(self, encoder: SentenceEncoder) -> TaskData:
        """As tokens."""
        return TaskData(encoder.tokens(self.texts), self.y, self.task)


Prior = Callable[[], IndependentTasks] | Callable[[], SharedGaussian]


class Texts(NamedTuple):
    """Train and test texts of a family, and what its targets are."""

    train: Part
    test: Part
    likelihood: Callable[[], Likelihood]
    tags: tuple[str, ...] = ()

    def of(self, task: str) -> Texts:
        """The texts of one task."""
        train, test = (part.where(part.task == task) for part in (self.train, self.test))
        return self._replace(train=train, test=test)

    def family(self, prior: Prior, encoder: SentenceEncoder) -> Family:
        """A family for these texts: words where they have tags, else sentences."""
        reader = Words() if self.tags else Pooled("mean")
        return Family(prior(), self.likelihood(), reader=Components(reader, encoder, self.train))


class Components(nn.Module):
    """The first principal components of what a reader makes of the untrained encoder's states."""

    centre: Tensor
    basis: Tensor

    def __init__(self, reader: nn.Module, encoder: SentenceEncoder, part: Part) -> None:
        super().__init__()
        self.reader = reader
        x = encoder.tokens(part.texts)
        with torch.no_grad():
            phi = self.reader(encoder(x), x).flatten(0, -2)
        phi = phi[~phi[:, 0].isnan()]
        self.register_buffer("centre", phi.mean(0))
        values, vectors = torch.linalg.eigh((phi - self.centre).T @ (phi - self.centre))
        scale = (len(phi) * COMPONENTS / values[-COMPONENTS:].sum()).sqrt()
        self.register_buffer("basis", vectors[:, -COMPONENTS:] * scale)

    def forward(self, h: Tensor, x: Tensor, task: Tensor) -> Tensor:
        """Features (..., 1 + COMPONENTS) of unit mean square; NaN where there is no word."""
        z = (self.reader(h, x, task) - self.centre) @ self.basis
        return torch.cat([1 + 0 * z[..., :1], z], -1)


def _isotropic() -> SharedGaussian:
    return SharedGaussian("isotropic")


# ---- the texts --------------------------------------------------------------------------------


def draw(seed: int) -> dict[str, Texts]:
    """Train texts of one draw, and the test texts, by family."""
    rng = np.random.default_rng([7, seed])
    everything = _sources()
    reviews, questions, opinions, rare, names = everything
    return {
        "sentiment": Texts(
            _balanced(reviews.part("train"), REVIEWS, rng),
            _balanced(reviews.part("test"), REVIEWS_TEST, np.random.default_rng(7)),
            Bernoulli,
        ),
        "questions": _sentences(questions, rng, lambda: Categorical(len(questions.classes))),
        "subjectivity": _sentences(opinions, rng, Bernoulli),
        "rare names": _tagged(rare, rng),
        "names": _tagged(names, rng),
    }


@cache
def _sources() -> tuple[
    LabelledTexts, LabelledTexts, LabelledTexts, TaggedSentences, TaggedSentences
]:
    corpora = [fetch_entities(name) for name in ("BTC", "wikigold", "SEC")]
    return (
        fetch_reviews(),
        fetch_trec(),
        fetch_sent_conv("Subj"),
        fetch_entities("WNUT17"),
        align_tags(corpora, ("PER", "LOC", "ORG")),
    )


def _balanced(data: LabelledTexts, size: int, rng: np.random.Generator) -> Part:
    part = _cut(data)
    chosen = np.zeros(len(data), dtype=bool)
    for kind in np.unique(data.corpus):
        for label in (0, 1):
            own = np.flatnonzero((data.corpus == kind) & (data.labels == label))
            chosen[rng.permutation(own)[: size // 2]] = True
    return part.where(chosen)


def _cut(data: LabelledTexts) -> Part:
    """The first words of each text."""
    texts = [" ".join(text.split()[:LONGEST]) for text in data.texts]
    return Part(texts, data.labels, data.corpus)


def _sentences(
    data: LabelledTexts, rng: np.random.Generator, likelihood: Callable[[], Likelihood]
) -> Texts:
    parts = (data.part(name) for name in ("train", "test"))
    train, test = map(_cut, parts)
    chosen = rng.permutation(len(train.task))[:TEXTS_]
    return Texts(train.where(chosen), test.where(np.arange(len(test.task)) < TEST), likelihood)


def _tagged(data: TaggedSentences, rng: np.random.Generator) -> Texts:
    _, names = tag_targets(data.tags)
    parts = []
    for name in ("train", "test"):
        part = data.part(name)
        fits = np.array([len(words) <= LONGEST_SENTENCE for words in part.words])
        whole = Part(part.words, tag_targets(part.tags, names)[0], part.corpus)
        parts.append(whole.where(fits))
    train, test = parts
    chosen = np.zeros(len(train.task), dtype=bool)
    first = np.zeros(len(test.task), dtype=bool)
    for corpus in np.unique(train.task):
        chosen[rng.permutation(np.flatnonzero(train.task == corpus))[:SENTENCES]] = True
        first[np.flatnonzero(test.task == corpus)[:TEST]] = True
    classes = len(names)
    return Texts(train.where(chosen), test.where(first), lambda: Categorical(classes), names)


# ---- models -----------------------------------------------------------------------------------


def _encoder(*, trained: bool) -> SentenceEncoder:
    encoder = SentenceEncoder.from_pretrained(ENCODER, pooling=None)
    encoder.requires_grad_(requires_grad=False)
    if trained:
        for block in encoder.blocks[-TRAINED_LAYERS:]:
            block.requires_grad_(requires_grad=True)
    return encoder


def _fitted(
    texts: Mapping[str, Texts], prior: Prior, steps: int, rows: int, seed: int
) -> MultitaskModel:
    """A model of some families; an encoder that is trained where there are steps to do it."""
    encoder = _encoder(trained=steps > 0)
    families = {name: part.family(prior, encoder) for name, part in texts.items()}
    model = MultitaskModel(backbone=encoder, families=families)
    data = {name: part.train.data(encoder) for name, part in texts.items()}
    engine = None
    if steps:
        engine = SVI(steps=steps, lr=HEAD_RATE, backbone_lr=ENCODER_RATE, batch_size=rows)
    fit(model, data, engine=engine, seed=seed, progress=False)
    return model


@lru_cache(maxsize=2)
def _one_model(seed: int, steps: int) -> dict[str, dict[str, float]]:
    """Figures of every task under the model of all."""
    texts, started = draw(seed), time.perf_counter()
    model = _fitted(texts, _isotropic, steps, ROWS, seed)
    minutes = (time.perf_counter() - started) / 60
    return {
        task: {**_figures(model, name, _own(texts[name], task)), "minutes": minutes}
        for task, name in FAMILY.items()
    }


def _alone(seed: int, steps: int, task: str) -> dict[str, float]:
    """Figures of one task under a model of its own; of reviews, a model a kind."""
    started = time.perf_counter()
    whole = draw(seed)[FAMILY[task]]
    parts = [whole.of(kind) for kind in np.unique(_own(whole, task).train.task)]
    figures = []
    share = len(parts) if task == "reviews" else len(np.unique(whole.train.task))
    for part in parts:
        model = _fitted({"alone": part}, IndependentTasks, steps, max(ROWS // share, 2), seed)
        figures.append(_figures(model, "alone", part))
    mean = {key: float(np.mean([f[key] for f in figures])) for key in figures[0]}
    return {**mean, "minutes": (time.perf_counter() - started) / 60}


def _own(texts: Texts, task: str) -> Texts:
    return texts if len(np.unique(texts.train.task)) == 16 else texts.of(task)


def _figures(model: MultitaskModel, name: str, texts: Texts) -> dict[str, float]:
    test = texts.test
    prediction = model.predict(list(test.texts), test.task, family=name)
    p, log_prob = np.asarray(prediction.mean), np.asarray(prediction.log_prob(test.y))
    y = test.y if prediction.words is None else _of_words(prediction, test.y)
    return {
        "score": _f1(p, texts, prediction) if texts.tags else _accuracy(p, test),
        "log_density": float(log_prob.mean()),
        "ECE": metrics.expected_calibration_error(y, p, num_bins=15),
    }


def _accuracy(p: NDArray[np.float64], test: Part) -> float:
    right = ((p > 0.5) if p.ndim == 1 else p.argmax(1)) == test.y
    return float(np.mean([right[test.task == kind].mean() for kind in np.unique(test.task)]))


def _of_words(prediction: Prediction, y: NDArray[np.float64]) -> NDArray[np.float64]:
    assert prediction.words is not None
    text, place = (index.numpy() for index in prediction.words)
    return y[text, place]


def _f1(p: NDArray[np.float64], texts: Texts, prediction: Prediction) -> float:
    assert prediction.words is not None
    text, place = (index.numpy() for index in prediction.words)
    lengths = np.array([len(words) for words in texts.test.texts])
    table = np.zeros((len(lengths), lengths.max(), p.shape[1]))
    table[text, place] = p
    found = metrics.decode_tags(table, texts.tags, lengths)
    true = [
        [texts.tags[int(tag)] for tag in row[:length]]
        for row, length in zip(texts.test.y, lengths, strict=True)
    ]
    return metrics.span_f1(true, found).micro.f1


# ---- the protocol -----------------------------------------------------------------------------


def _prepare(split: Split) -> Problem:
    none = Rows(np.zeros((0, 1)), np.zeros(0), np.zeros(0, dtype=np.int64))
    return Problem(none, none, 0, split)


def _method(figures: Callable[[int, str], dict[str, float]]) -> Method:
    def forecast(problem: Problem) -> Forecast:
        split: Split = problem.truth
        return Forecast(np.zeros(0), found=figures(split.seed, split.size))

    return forecast


TEXTS = Protocol(
    name="texts",
    text=TEXT,
    splits=tuple(Split(task, seed) for seed in range(3) for task in FAMILY),
    methods={
        "Alone (frozen)": _method(lambda seed, task: _alone(seed, 0, task)),
        "One model (frozen)": _method(lambda seed, task: _one_model(seed, 0)[task]),
        "Alone (trained)": _method(lambda seed, task: _alone(seed, STEPS, task)),
        "One model (trained)": _method(lambda seed, task: _one_model(seed, STEPS)[task]),
    },
    prepare=_prepare,
    score=lambda problem, forecast: {},
    metrics=(
        Metric("score", "score"),
        Metric("log_density", "log density"),
        Metric("ECE", "ECE"),
        Metric("minutes", "minutes", 1),
    ),
    reference="Alone (frozen)",
    compared=("score", "log_density"),
    quick_splits=(Split("TREC", 0),),
    quick_methods=("Alone (frozen)",),
)
