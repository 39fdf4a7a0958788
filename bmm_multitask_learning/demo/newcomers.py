"""How well schools are predicted that were not in the fit, as their pupils come in."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ..comparison import COVERAGE, row_labels
from ..data import TaskData
from ..fitting import fit
from ..model import MultitaskModel
from ..prediction import Prediction
from ..priors import IndependentTasks, SharedGaussian
from ..report import Column, Table

_FOLDS = 5
_SEEN = (0, 1, 5, 20)


@dataclasses.dataclass(frozen=True)
class _Fold:
    """A model of other schools, and pupils of schools that it has not seen."""

    model: MultitaskModel
    first: TaskData
    rest: TaskData


def newcomers(data: TaskData, *, seed: int) -> Table:
    """Error on schools that were not in the fit, by the number of their pupils seen since.

    Args:
        data: all schools; a fifth of them is left out at a time.
        seed: of the folds and the fits.
    """
    folds = list(_folds(data, seed))
    columns = [
        Column("pupils seen", "d"),
        Column("adapted", ".3f", "RMSE, sd"),
        Column("own rows alone", ".3f", "RMSE, sd"),
        Column("coverage", ".1%", f"of {100 * COVERAGE:.0f} %"),
        Column("width", ".2f", "sd"),
    ]
    schools = sum(fold.rest.num_tasks for fold in folds)
    pupils = sum(fold.rest.num_rows for fold in folds)
    return Table(
        columns,
        [[seen, *_scores(folds, seen, seed)] for seen in _SEEN],
        f"Schools that were not in the fit: {schools} of them, left out a fifth of all schools at "
        f"a time; {pupils:,} pupils scored, the same in each row. Coverage and width are those of "
        "the adapted model's 90 % intervals.",
    )


def _folds(data: TaskData, seed: int) -> Iterator[_Fold]:
    order = np.random.default_rng(seed).permutation(data.num_tasks)
    most = max(_SEEN)
    for part in np.array_split(order, _FOLDS):
        left_out = set(part.tolist())
        others = [label for k, label in enumerate(data.tasks) if k not in left_out]
        model = MultitaskModel(prior=SharedGaussian())
        fit(model, data.select_tasks(others), seed=seed, progress=False)
        # schools with as many pupils to score as there are to learn from
        large = [data.tasks[k] for k in part if data.rows_per_task[k] >= 2 * most]
        mixed = data.select_tasks(large)
        mixed = mixed.rows(np.random.default_rng(seed).permutation(len(mixed)))
        early = _place(mixed) < most
        yield _Fold(model, mixed.rows(early), mixed.rows(~early))


def _place(data: TaskData) -> Tensor:
    """(N,) number of each row within its task, from 0."""
    place = torch.empty_like(data.task)
    place[data.order] = torch.arange(len(data)) - data.offsets[data.task[data.order]]
    return place


def _scores(folds: list[_Fold], count: int, seed: int) -> list[float | None]:
    """Error of the adapted model and of the rows alone; coverage and width of the first."""
    square: list[Tensor] = []
    alone: list[Tensor] = []
    inside: list[Tensor] = []
    width: list[Tensor] = []
    for fold in folds:
        seen, y = fold.first.rows(_place(fold.first) < count), fold.rest.y
        prediction = _adapted(fold, seen)
        lower, upper = prediction.interval(COVERAGE).T
        square.append((y - prediction.mean).square())
        inside.append(((lower <= y) & (y <= upper)).double())
        width.append(upper - lower)
        if count:
            own = MultitaskModel(prior=IndependentTasks())
            fit(own, seen, seed=seed, progress=False)
            alone.append((y - own.predict(fold.rest.x, row_labels(fold.rest)).mean).square())
    return [
        float(torch.cat(square).mean().sqrt()),
        float(torch.cat(alone).mean().sqrt()) if alone else None,
        float(torch.cat(inside).mean()),
        float(torch.cat(width).mean()),
    ]


def _adapted(fold: _Fold, seen: TaskData) -> Prediction:
    labels = row_labels(fold.rest)
    if seen.num_rows:
        return fold.model.adapt(seen).predict(fold.rest.x, labels)
    with warnings.catch_warnings():
        # that these schools were not in the fit is the point
        warnings.filterwarnings("ignore", r"\d+ task\(s\) outside the fit", UserWarning)
        return fold.model.predict(fold.rest.x, labels)
