"""What every benchmark is: splits, methods, figures, and how one is measured on another."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..data import TaskData
from ..engines import NonFiniteBoundError

Array = NDArray[np.float64]
Index = NDArray[np.int64]
Figures = dict[str, float | str]
FAILURES = (
    NonFiniteBoundError,
    np.linalg.LinAlgError,
    torch.linalg.LinAlgError,  # type: ignore[attr-defined]
)


class Split(NamedTuple):
    """One draw of train and test rows.

    Attributes:
        size: what the table groups by, such as the rows of a task; "" where there is one size.
        seed: of the draw.
    """

    size: str
    seed: int


class Rows(NamedTuple):
    """Inputs (N, D), targets (N,) and tasks (N,) numbered from 0."""

    x: Array
    y: Array
    task: Index

    @classmethod
    def of(cls, data: TaskData) -> Rows:
        """The rows of a data set."""
        return cls(data.x.numpy(), data.y.numpy(), data.task.numpy())

    def where(self, chosen: NDArray[np.bool_] | Index) -> Rows:
        """Some of the rows."""
        return Rows(self.x[chosen], self.y[chosen], self.task[chosen])

    def data(self, num_tasks: int) -> TaskData:
        """Tasks labelled by their number."""
        return TaskData(self.x, self.y, self.task, tasks=range(num_tasks))


class Problem(NamedTuple):
    """What a method may see, `train`, and the rows that it is scored on.

    Attributes:
        train: rows to fit, their features ready: standardised by these rows, a constant among
            them.
        test: rows to predict.
        num_tasks: K.
        truth: what made the data, where that is known.
    """

    train: Rows
    test: Rows
    num_tasks: int
    truth: Any = None


class Forecast(NamedTuple):
    """What a method says of the test rows.

    Attributes:
        mean: (N,) of the target, or of class 1; (N, C) probabilities of C classes.
        log_prob: (N,) log predictive density of the targets; None where the method has none.
        interval: (N, 2) ends of 90 % intervals of the targets; None where the method has none.
        found: further figures that this method alone has.
    """

    mean: Array
    log_prob: Array | None = None
    interval: Array | None = None
    found: Mapping[str, float] = {}


class CannotError(Exception):
    """A method cannot do the job; the message says why, in the table's words."""


Method = Callable[[Problem], Forecast]


def cannot(reason: str) -> Method:
    """A method that only says why it has no figures."""

    def refuse(problem: Problem) -> Forecast:
        raise CannotError(reason)

    return refuse


class Metric(NamedTuple):
    """A figure in a table.

    Attributes:
        key: its name in the rows.
        heading: of the column.
        decimals: shown.
        worst: show the largest over splits, not the mean.
    """

    key: str
    heading: str
    decimals: int = 3
    worst: bool = False


@dataclasses.dataclass(frozen=True)
class Protocol:
    """One benchmark.

    Args:
        name: of the command's argument and of the files.
        text: the protocol in words, Markdown.
        splits: draws, sizes one after the other.
        methods: by the name that tables show; a part in brackets tells variants of one method.
        prepare: the problem of a split.
        score: figures of a forecast.
        metrics: columns of the table.
        reference: the method that the others are compared with, split by split.
        compared: keys of the metrics that are compared.
        some: the splits that slow methods get; the others get all.
        quick_splits, quick_methods: what `--quick` takes.
    """

    name: str
    text: str
    splits: tuple[Split, ...]
    methods: Mapping[str, Method]
    prepare: Callable[[Split], Problem]
    score: Callable[[Problem, Forecast], dict[str, float]]
    metrics: tuple[Metric, ...]
    reference: str
    compared: tuple[str, ...]
    some: Mapping[str, tuple[Split, ...]] = dataclasses.field(default_factory=dict)
    quick_splits: tuple[Split, ...] = ()
    quick_methods: tuple[str, ...] = ()

    def run(self, split: Split, method: str) -> Figures:
        """Fit a method to a split's train rows and score it on its test rows.

        Args:
            split: one of `splits`.
            method: a name in `methods`.

        Returns:
            The figures, `seconds` of fit and prediction among them; or a `note` that says why
            there are none.
        """
        problem = self.prepare(split)
        started = time.perf_counter()
        try:
            forecast = self.methods[method](problem)
        except CannotError as reason:
            return {"note": str(reason)}
        except FAILURES as error:
            return {"note": f"failed: {type(error).__name__}"}
        seconds = time.perf_counter() - started
        return {**self.score(problem, forecast), **forecast.found, "seconds": seconds}

    def runs(self, *, quick: bool = False, only: tuple[str, ...] = ()) -> list[tuple[Split, str]]:
        """Pairs of split and method to measure, split by split.

        Args:
            quick: those of `quick_splits` and `quick_methods` alone.
            only: methods, by name with or without the part in brackets; () takes all.

        Raises:
            ValueError: for a method that the protocol does not have.
        """
        for name in only:
            if not any(_called(method, name) for method in self.methods):
                raise ValueError(
                    f"{self.name} has no method {name!r}; it has {', '.join(self.methods)}."
                )
        chosen = [m for m in self.methods if not only or any(_called(m, name) for name in only)]
        if quick and not only:
            chosen = [method for method in chosen if method in self.quick_methods]
        return [
            (split, method)
            for split in (self.quick_splits if quick else self.splits)
            for method in chosen
            if split in self.some.get(method, self.splits)
        ]


def _called(method: str, name: str) -> bool:
    return name in (method, method.split(" (")[0])


def draws(sizes: tuple[str, ...], seeds: int, *, first: int = 0) -> tuple[Split, ...]:
    """Splits of every size with seeds counted from `first`."""
    return tuple(Split(size, seed) for size in sizes for seed in range(first, first + seeds))
