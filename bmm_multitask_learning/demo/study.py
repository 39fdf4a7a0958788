"""The computations of the demo: fits, scores, and what the fitted models say about schools."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from .. import metrics
from ..comparison import COVERAGE, Candidate, fit_candidates, numeric_table
from ..data import TaskData
from ..datasets import load_exam
from ..fitting import fit
from ..insight import Contrast
from ..likelihoods import Gaussian
from ..model import MultitaskModel
from ..priors import IndependentTasks, PooledTasks, SharedGaussian, TaskClustering, TaskPrior
from ..report import Column, Table
from ..units import Units
from .newcomers import newcomers
from .works import works

Floats = npt.NDArray[np.float64]

ALONE, POOLED, SHARED = "Independent tasks", "Pooled tasks", "Shared Gaussian"
AUTO, GATED = "Task clusters", "Gated clusters"
READING = 1  # column of the reading score, after the constant
_DRAWS = 4000
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
        train: three quarters of each school's pupils, in the data's own units.
        test: the others.
        candidates: fitted on `train`, by name.
        whole: `SharedGaussian` fitted on `data`.
        newcomers: what is known of a school that was not in the fit.
        works: another problem, of sentences: scores by model.
        seed: of the split and the fits.
    """

    data: TaskData
    train: TaskData
    test: TaskData
    candidates: dict[str, Candidate]
    whole: MultitaskModel
    newcomers: Table
    works: Table
    seed: int

    @cached_property
    def scores(self) -> Table:
        """Every model on the held-out pupils."""
        return numeric_table(
            list(self.candidates.values()),
            self.test,
            unit="sd",
            caption=(
                f"Fitted on {self.train.num_rows:,} pupils, scored on the other "
                f"{self.test.num_rows:,}. sd: standard deviations of the exam score. EV: explained"
                " variance, in all, within schools, and as the mean over schools. Evidence ranks "
                "models of one kind only, so none is marked. Task clusters choose their number; "
                "there are two gated ones, whose chances depend on facts about the school. "
                "The priors: IndependentTasks, PooledTasks, SharedGaussian, TaskClustering."
            ),
        )

    def error(self, name: str) -> float:
        """RMSE of a model on the held-out pupils."""
        return metrics.rmse(self.test.y, self.candidates[name].prediction.mean)

    def held(self, name: str) -> float:
        """Share of the held-out pupils inside a model's intervals."""
        interval = self.candidates[name].prediction.interval(COVERAGE)
        return metrics.interval_coverage(self.test.y, interval[:, 0], interval[:, 1])

    def shares(self, name: str) -> Floats:
        """(K, C) probability of each cluster for each school, of a model with clusters."""
        prior = self.candidates[name].model.prior
        return prior.get_buffer("responsibilities").numpy()

    def by_size(self) -> Table:
        """Error on held-out pupils of small, middling and large schools."""
        rows, y = self.train.rows_per_task.numpy(), self.test.y.numpy()
        lines = []
        for low, high in _SIZES:
            school = (rows >= low) & (rows <= high)
            pupil = school[self.test.task.numpy()]
            errors = [
                metrics.rmse(y[pupil], self.candidates[name].prediction.mean[pupil])
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
            "What the other schools contribute to each of the smallest schools, and to the "
            "largest (last row). Both figures come from explain_tasks()."
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
                    chance[school, places - 10 :].sum(),
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
    units = Units.of(train, targets=False)  # the scores are standardised as they come
    data = Units.of(raw, targets=False).standardise(raw)
    priors: dict[str, TaskPrior] = {
        ALONE: IndependentTasks(),
        POOLED: PooledTasks(),
        SHARED: SharedGaussian(),
        AUTO: TaskClustering("auto"),
        GATED: TaskClustering(2, gating=True),
    }
    candidates: dict[str, Candidate] = {}
    for name, prior in priors.items():
        say(f"Fitting {name}")
        fitted = fit_candidates({name: prior}, Gaussian, train, test, units, seed=seed)
        candidates |= {each.name: each for each in fitted}
    say("Fitting all pupils")
    whole = MultitaskModel(prior=SharedGaussian())
    fit(whole, data, seed=seed, progress=False)
    say("Adapting to schools that were left out")
    newly = newcomers(data, seed=seed)
    say("Reading labels of works of art")
    labels = works((ALONE, POOLED, SHARED), seed=seed)
    return Study(data, train, test, candidates, whole, newly, labels, seed)
