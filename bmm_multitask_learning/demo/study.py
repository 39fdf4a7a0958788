"""The computations of the demo: fits, scores, and what the fitted models say about schools."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from .. import metrics
from ..comparison import COVERAGE, Candidate, fit_candidates, numeric_table, row_labels
from ..data import TaskData
from ..datasets import load_exam
from ..fitting import fit
from ..insight import Contrast
from ..likelihoods import Gaussian
from ..model import MultitaskModel
from ..priors import IndependentTasks, PooledTasks, SharedGaussian, TaskClustering, TaskPrior
from ..report import Column, Table
from ..scaling import Scaling

Floats = npt.NDArray[np.float64]

ALONE, POOLED, SHARED = "IndependentTasks", "PooledTasks", "SharedGaussian"
AUTO, GATED = "TaskClustering(auto)", "TaskClustering(2, gating)"
READING = 1  # column of the reading score, after the constant
_DRAWS = 4000
_FOLDS = 5
_NEW_ROWS = (0, 1, 5, 20)
_SIZES = ((1, 30), (31, 60), (61, 10**9))


@dataclasses.dataclass(frozen=True)
class Reversal:
    """Two schools that their mean scores put in the wrong order.

    Args:
        ahead: the school whose pupils score higher on average.
        behind: the school that does more for a pupil of the same intake.
        gap: by how much the mean scores of the first exceed those of the second.
        contrast: second minus first for the average pupil.
        by_reading: second minus first for a weak, an average and a strong reader.
    """

    ahead: str
    behind: str
    gap: float
    contrast: Contrast
    by_reading: Contrast


@dataclasses.dataclass(frozen=True)
class Study:
    """The schools, the models fitted to a train split, and one fitted to all pupils.

    Args:
        data: all pupils, features standardised after a constant.
        train: three quarters of each school's pupils.
        test: the others.
        candidates: fitted on `train`, by name.
        whole: `SharedGaussian` fitted on `data`.
        newcomers: what is known of a school that was not in the fit.
        seed: of the split and the fits.
    """

    data: TaskData
    train: TaskData
    test: TaskData
    candidates: dict[str, Candidate]
    whole: MultitaskModel
    newcomers: Table
    seed: int

    def scores(self) -> Table:
        """Every model on the held-out pupils."""
        return numeric_table(
            list(self.candidates.values()),
            self.train,
            self.test,
            unit="sd",
            caption=(
                f"Fitted on {self.train.num_rows:,} pupils, scored on the other "
                f"{self.test.num_rows:,}. sd: standard deviations of the exam score. EV: explained "
                "variance, in all, within schools, and as the mean over schools. Evidence ranks "
                "models of one kind only, so none is marked."
            ),
        )

    def by_size(self) -> Table:
        """Error on held-out pupils of small, middling and large schools."""
        rows = self.train.rows_per_task
        lines = []
        for low, high in _SIZES:
            school = (rows >= low) & (rows <= high)
            pupil = school[self.test.task]
            errors = [
                metrics.rmse(self.test.y[pupil], self.candidates[name].prediction.mean[pupil])
                for name in (ALONE, POOLED, SHARED)
            ]
            span = f"{low} to {high}" if high < 10**9 else f"{low} and more"
            lines.append([span, int(school.sum()), int(pupil.sum()), *errors])
        head = [Column("pupils to learn from"), Column("schools", "d"), Column("scored", "d")]
        columns = [*head, *(Column(name, ".3f", "RMSE") for name in (ALONE, POOLED, SHARED))]
        caption = "Error on held-out pupils by the size of their school, in standard deviations."
        return Table(columns, lines, caption)

    def smallest(self, count: int = 6) -> Table:
        """What borrowing did for the schools with fewest pupils, and for the largest."""
        tasks = sorted(self.whole.explain_tasks(), key=lambda each: each.rows)
        lines = [
            [each.task, each.rows, each.shrinkage, each.rows_borrowed]
            for each in (*tasks[:count], tasks[-1])
        ]
        columns = [
            Column("school"),
            Column("pupils", "d", "own"),
            Column("from others", ".0%", "of what is known"),
            Column("borrowed", ".0f", "worth as many pupils"),
        ]
        caption = (
            "What the other schools contribute to each of the smallest schools, and to the largest "
            "(last row). Both figures come from explain_tasks()."
        )
        return Table(columns, lines, caption)

    @cached_property
    def centres(self) -> Floats:
        """(K,) mean exam score of each school, nothing taken into account."""
        total = torch.bincount(self.data.task, self.data.y)
        return (total / self.data.rows_per_task).numpy()

    @cached_property
    def effects(self) -> Floats:
        """(S, K) draws of each school's score for the average pupil, less the schools' mean."""
        draws = self.whole.weights.sample(_DRAWS, seed=self.seed)[..., 0].numpy()
        return draws - draws.mean(1, keepdims=True)

    @property
    def average_pupil(self) -> Floats:
        """(1, D) features of a pupil who is average in everything."""
        return np.eye(1, self.data.x.shape[1])

    def ranks(self, count: int = 5) -> Table:
        """How surely the first and the last schools are first and last."""
        chance = self.whole.ranking(self.average_pupil, num_samples=_DRAWS, seed=self.seed)
        share = chance.cumsum(1)
        order = np.argsort(-self.effects.mean(0))
        places = chance.shape[1]
        lines = []
        for school in (*order[:count], *order[-count:]):
            low, high = (int(np.searchsorted(share[school], tail)) + 1 for tail in (0.05, 0.95))
            lines.append(
                [
                    self.data.tasks[school],
                    self.effects[:, school].mean(),
                    share[school, 0],
                    share[school, 9],
                    1 - share[school, places - 11],
                    f"{low} to {min(high, places)}",
                ]
            )
        columns = [
            Column("school"),
            Column("effect", "+.2f", "sd"),
            Column("first", ".0%", "probability"),
            Column("top ten", ".0%", "probability"),
            Column("last ten", ".0%", "probability"),
            Column("rank", unit="90 % interval"),
        ]
        caption = f"The {count} schools with the highest and the {count} with the lowest effects."
        return Table(columns, lines, caption)

    @cached_property
    def reversal(self) -> Reversal:
        """The pair whose mean scores are in the wrong order with the highest probability."""
        effects = self.effects
        above = np.stack([(effects > effects[:, [k]]).mean(0) for k in range(effects.shape[1])])
        # above[i, j]: probability that school j does more than school i
        wrong = np.where(self.centres[:, None] > self.centres[None], above, 0.0)
        i, j = np.unravel_index(int(wrong.argmax()), wrong.shape)
        ahead, behind = (str(self.data.tasks[k]) for k in (i, j))
        readers = np.repeat(self.average_pupil, 3, axis=0)
        readers[:, READING] = (-1.5, 0.0, 1.5)
        return Reversal(
            ahead,
            behind,
            float(self.centres[i] - self.centres[j]),
            self.whole.contrast(behind, ahead, self.average_pupil),
            self.whole.contrast(behind, ahead, readers),
        )


def study_schools(*, seed: int = 0, say: Callable[[str], None] = lambda text: None) -> Study:
    """Fit every model of the demo.

    Args:
        seed: of the split and the fits.
        say: is told what is being done.

    Raises:
        ImportError: the extra `data` is not installed.
    """
    say("Reading the schools")
    raw = load_exam()
    train, test = raw.split(0.75, seed=seed)
    scaling = Scaling.of(train.x)
    train, test = (part.with_x(scaling.apply(part.x)) for part in (train, test))
    data = raw.with_x(Scaling.of(raw.x).apply(raw.x))
    priors: dict[str, TaskPrior] = {
        ALONE: IndependentTasks(),
        POOLED: PooledTasks(),
        SHARED: SharedGaussian(),
        AUTO: TaskClustering("auto"),
        GATED: TaskClustering(2, gating=True),
    }
    candidates = {}
    for name, prior in priors.items():
        say(f"Fitting {name}")
        fitted = fit_candidates({name: prior}, Gaussian, train, test, seed=seed)
        candidates |= {each.name: each for each in fitted}
    say("Fitting all pupils")
    whole = MultitaskModel(prior=SharedGaussian())
    fit(whole, data, seed=seed, progress=False)
    say("Adapting to schools that were left out")
    return Study(data, train, test, candidates, whole, _newcomers(data, seed), seed)


def _newcomers(data: TaskData, seed: int) -> Table:
    """Error on a school that was not in the fit, by the number of its pupils seen since."""
    errors = {rows: [] for rows in _NEW_ROWS}
    alone = {rows: [] for rows in _NEW_ROWS}
    inside = {rows: [] for rows in _NEW_ROWS}
    width = {rows: [] for rows in _NEW_ROWS}
    order = np.random.default_rng(seed).permutation(data.num_tasks)
    most, schools, scored = max(_NEW_ROWS), 0, 0
    for part in np.array_split(order, _FOLDS):
        held = [data.tasks[k] for k in part if data.rows_per_task[k] >= 2 * most]
        kept = [label for k, label in enumerate(data.tasks) if k not in set(part.tolist())]
        model = MultitaskModel(prior=SharedGaussian())
        fit(model, data.select_tasks(kept), seed=seed, progress=False)
        first, rest = _first_rows(data.select_tasks(held), most, seed)
        schools, scored = schools + len(held), scored + rest.num_rows
        labels = row_labels(rest)
        for rows in _NEW_ROWS:
            seen = first.rows(_place(first) < rows)
            prediction = _predict_new(model, seen, rest, labels)
            interval = prediction.interval(COVERAGE)
            errors[rows].append((rest.y - prediction.mean).square())
            inside[rows].append((interval[:, 0] <= rest.y) & (rest.y <= interval[:, 1]))
            width[rows].append(interval[:, 1] - interval[:, 0])
            if rows:
                own = MultitaskModel(prior=IndependentTasks())
                fit(own, seen, seed=seed, progress=False)
                alone[rows].append((rest.y - own.predict(rest.x, labels).mean).square())
    lines = [
        [
            rows,
            _root_mean(errors[rows]),
            _root_mean(alone[rows]) if rows else None,
            float(torch.cat(inside[rows]).double().mean()),
            float(torch.cat(width[rows]).mean()),
        ]
        for rows in _NEW_ROWS
    ]
    columns = [
        Column("pupils seen", "d"),
        Column("adapted", ".3f", "RMSE, sd"),
        Column("own rows alone", ".3f", "RMSE, sd"),
        Column("coverage", ".1%", f"of {COVERAGE:.0%}"),
        Column("width", ".2f", "sd"),
    ]
    return Table(
        columns,
        lines,
        f"Schools that were not in the fit: {schools} of them, left out a fifth of all schools at a "
        f"time; {scored:,} pupils scored, the same in each row. Coverage and width are those of "
        "the adapted model's 90 % intervals.",
    )


def _predict_new(model: MultitaskModel, seen: TaskData, rest: TaskData, labels: list[object]):
    if seen.num_rows:
        return model.adapt(seen).predict(rest.x, labels)
    with warnings.catch_warnings():
        # that these schools were not in the fit is the point
        warnings.filterwarnings("ignore", "1?\\d task\\(s\\) outside the fit", UserWarning)
        return model.predict(rest.x, labels)


def _place(data: TaskData) -> torch.Tensor:
    """(N,) number of each row within its task, from 0."""
    place = torch.empty_like(data.task)
    place[data.order] = torch.arange(len(data)) - data.offsets[data.task[data.order]]
    return place


def _first_rows(data: TaskData, count: int, seed: int) -> tuple[TaskData, TaskData]:
    """`count` rows of each task, drawn at random, and the others."""
    mixed = data.rows(np.random.default_rng(seed).permutation(len(data)))
    early = _place(mixed) < count
    return mixed.rows(early), mixed.rows(~early)


def _root_mean(squares: list[torch.Tensor]) -> float:
    return float(torch.cat(squares).mean().sqrt())
