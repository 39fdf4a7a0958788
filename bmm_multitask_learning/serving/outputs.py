"""What a family answers: the fields of a prediction, and their values from the model's."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, Field

from ..backbones import Words
from ..comparison import class_probabilities
from ..family import Family
from ..layout import Layout
from ..likelihoods import Bernoulli
from ..metrics import decode_tags, spans
from ..prediction import Prediction
from ..tabular import TargetKind

Floats = npt.NDArray[np.float64]
_KNOWN = "False: the task was not in the fit; the prediction is the population's, and wider."


class NumberAnswer(BaseModel):
    """The predictive distribution of a number, noise included."""

    mean: float
    std: float
    lower: float = Field(description="Lower end of the interval of the coverage asked for.")
    upper: float
    known: bool = Field(description=_KNOWN)


class NumbersAnswer(BaseModel):
    """The predictive distributions of several numbers, in the order of the fit."""

    mean: list[float]
    std: list[float]
    lower: list[float]
    upper: list[float]
    known: bool = Field(description=_KNOWN)


class ClassAnswer(BaseModel):
    """The probability of each class."""

    predicted: str = Field(description="The most probable class.")
    probability: dict[str, float]
    known: bool = Field(description=_KNOWN)


class Entity(BaseModel):
    """Neighbouring words that are one entity."""

    type: str
    start: int = Field(description="Number of the first word, from 0.")
    end: int = Field(description="Number of the word after the last.")
    text: str


class TagAnswer(BaseModel):
    """The tag of each word, and the entities that the tags make."""

    tags: list[str]
    probability: list[float] = Field(description="Of each word's tag, by itself.")
    entities: list[Entity]
    known: bool = Field(description=_KNOWN)


class Answers(ABC):
    """From a prediction to what is sent back."""

    model: type[BaseModel]
    intervals = False
    """Whether a coverage is asked for."""

    @abstractmethod
    def of(
        self, prediction: Prediction, coverage: float, rows: list[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """A dictionary a row, of the fields of `model`."""


class NumberAnswers(Answers):
    """Means, spreads and intervals, in the user's units.

    Args:
        layout: of the table that was fitted, if there was one.
        several: whether a row has several targets.
    """

    intervals = True

    def __init__(self, layout: Layout | None, *, several: bool) -> None:
        self.scaled = layout if layout and layout.kind is TargetKind.REAL else None
        self.model = NumbersAnswer if several else NumberAnswer

    def of(
        self, prediction: Prediction, coverage: float, rows: list[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        if self.scaled:
            one = np.zeros(len(rows), dtype=np.int64)
            prediction = self.scaled.units.prediction(prediction, one)
        interval = _finite(prediction.interval(coverage))
        columns = {
            "mean": _finite(prediction.mean).tolist(),
            "std": _finite(prediction.std).tolist(),
            "lower": interval[..., 0].tolist(),
            "upper": interval[..., 1].tolist(),
            "known": torch.as_tensor(prediction.known).tolist(),
        }
        return [
            dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
        ]


class ClassAnswers(Answers):
    """Probabilities of classes by their names."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.model = ClassAnswer

    def of(
        self, prediction: Prediction, coverage: float, rows: list[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        chance = _finite(class_probabilities(prediction))
        known = torch.as_tensor(prediction.known).tolist()
        return [
            {
                "predicted": self.names[int(row.argmax())],
                "probability": dict(zip(self.names, row.tolist(), strict=True)),
                "known": seen,
            }
            for row, seen in zip(chance, known, strict=True)
        ]


class TagAnswers(Answers):
    """Tags of words by their names, and entities where the tags are O, B- and I-.

    Tags that begin and continue entities are the most probable legal sequence.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.of_entities = all(re.fullmatch("O|[BI]-.+", name) for name in names)
        self.model = TagAnswer

    def of(
        self, prediction: Prediction, coverage: float, rows: list[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        assert prediction.words is not None
        text, place = (part.numpy() for part in prediction.words)
        chance = _finite(class_probabilities(prediction))
        lengths = np.bincount(text, minlength=len(rows))
        table = np.zeros((len(rows), lengths.max(), len(self.names)))
        table[text, place] = chance
        method: Literal["viterbi", "greedy"] = "viterbi" if self.of_entities else "greedy"
        known = np.zeros(len(rows), dtype=bool)
        known[text] = torch.as_tensor(prediction.known).numpy()
        answers = []
        for n, tags in enumerate(decode_tags(table, self.names, lengths, method)):
            places = [self.names.index(tag) for tag in tags]
            answers.append(
                {
                    "tags": tags,
                    "probability": table[n, np.arange(len(tags)), places].tolist(),
                    "entities": self._entities(tags, rows[n]["words"]),
                    "known": bool(known[n]),
                }
            )
        return answers

    def _entities(self, tags: list[str], words: list[str]) -> list[dict[str, Any]]:
        if not self.of_entities:
            return []
        found = sorted(spans(tags), key=lambda span: span[1])
        return [
            {"type": kind, "start": start, "end": end, "text": " ".join(words[start:end])}
            for kind, start, end in found
        ]


def _finite(values: Any) -> Floats:
    array = torch.as_tensor(values).numpy()
    if not np.isfinite(array).all():
        raise ValueError(
            "the prediction is not finite: a value lies too far outside what the model was fitted "
            "to. Check the units of the inputs."
        )
    return array


def make_answers(family: Family, layout: Layout | None, names: tuple[str, ...]) -> Answers:
    """The answers of a family.

    Args:
        family: of a loaded model.
        layout: of the table that was fitted, if there was one.
        names: of the classes; none: their numbers.
    """
    outputs = family.sizes.num_outputs
    words = isinstance(family.reader, Words)
    if words and not family.likelihood.classes:
        raise ValueError("a family of words can be served if its targets are classes.")
    if not family.likelihood.classes:
        return NumberAnswers(layout, several=outputs > 1)
    if isinstance(family.likelihood, Bernoulli):
        if outputs > 1:
            return NumberAnswers(layout, several=True)
        count = 2
    else:
        count = family.likelihood.get_params()["num_classes"]
    if names and len(names) != count:
        raise ValueError(f"{len(names)} names of classes are given where the model has {count}.")
    names = names or tuple(map(str, range(count)))
    return TagAnswers(names) if words else ClassAnswers(names)
