"""Which prior predicts best? Several priors on the same folds, of rows or of whole tasks."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, final

import numpy as np
import numpy.typing as npt
from torch import nn
from tqdm import tqdm

from . import plots
from .backbones import with_constant
from .comparison import COVERAGE, row_labels
from .data import TaskData
from .engines import Engine
from .fitting import fit
from .likelihoods import Gaussian, Likelihood
from .model import MultitaskModel
from .prediction import Prediction
from .priors import (
    IndependentTasks,
    LatentHierarchy,
    PooledTasks,
    SharedGaussian,
    SparseBayesian,
    TaskClustering,
    TaskPrior,
)
from .report import Column, Figure, Table, drawn
from .units import Units

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.intp]

# What a prior may fail with on rows that it cannot take.
_FAILURES = (ValueError, TypeError, ArithmeticError, RuntimeError, MemoryError)


class Splitter(Protocol):
    """What deals rows into folds, in scikit-learn's sense."""

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Iterable[tuple[Rows, Rows]]:
        """Pairs of train and test rows; `groups` are the task labels."""


@final
@dataclasses.dataclass(frozen=True)
class Contender:
    """What `compare` found of one prior.

    Args:
        name: of the prior.
        log_density: mean held-out log predictive density, nats a row; NaN where a fit failed.
        difference: its log density less that of the best prior on the same rows; 0 for the best.
        standard_error: of the difference, tasks as the units; NaN where there is only one.
        error: of held-out rows: root mean square, in the target's units, or the share of rows
            whose most probable class is another.
        coverage: share of held-out rows inside their 90 % intervals; NaN for classes.
        seconds: of all fits.
        failure: why a fit failed, or "".
    """

    name: str
    log_density: float
    difference: float
    standard_error: float
    error: float
    coverage: float
    seconds: float
    failure: str = ""


@final
@dataclasses.dataclass(frozen=True)
class Comparison:
    """Priors by their held-out log predictive density; see `compare`.

    Args:
        contenders: the best first, those that failed last.
        num_rows: held-out rows with an observed target.
        num_tasks: tasks that have any.
    """

    contenders: tuple[Contender, ...]
    num_rows: int
    num_tasks: int

    @property
    def best(self) -> str:
        """Name of the prior with the highest held-out log predictive density.

        Raises:
            RuntimeError: if no prior could be fitted.
        """
        first = self.contenders[0]
        if first.failure:
            raise RuntimeError(f"no prior could be fitted; {first.name}: {first.failure}")
        return first.name

    @property
    def table(self) -> pd.DataFrame:
        """A row for each prior, the best first."""
        import pandas as pd

        return pd.DataFrame([dataclasses.asdict(c) for c in self.contenders]).set_index("name")

    def plot(self, ax: Axes | None = None) -> Axes:
        """Differences from the best prior with intervals of two standard errors either way."""
        behind = [c for c in self.contenders if not c.failure and c.name != self.best]
        if not behind:
            raise ValueError("a picture of differences needs two priors that could be fitted.")
        centre = np.array([c.difference for c in behind])
        margin = 2 * np.nan_to_num([c.standard_error for c in behind])
        ax = plots.forest(
            centre,
            centre - margin,
            centre + margin,
            tasks=[c.name for c in behind],
            label=f"log density a row, less that of {self.best}",
            ax=ax,
        )
        ax.axhline(0.0, color="0.5", linewidth=1.0)
        return ax

    def summary(self) -> Table:
        """A table for a `report`."""
        columns = [
            Column("prior"),
            Column("log density", ".4f", "nats/row", best="highest"),
            Column("difference", "+.4f", "nats/row"),
            Column("standard error", ".4f", "nats/row"),
            Column("error", "#.4g", best="lowest"),
            Column("coverage", ".1%", f"of {100 * COVERAGE:.0f} %", best=COVERAGE),
            Column("time", ".2f", "s"),
        ]
        rows = [dataclasses.astuple(c)[:-1] for c in self.contenders]
        caption = f"{self.num_rows:,} held-out rows of {self.num_tasks:,} tasks."
        caption += "".join(f" {c.name} failed: {c.failure}" for c in self.contenders if c.failure)
        return Table(columns, rows, caption)

    def picture(self) -> Figure:
        """`plot` for a `report`."""
        caption = f"What each prior loses against {self.best}, with intervals of two standard "
        caption += "errors either way. An interval that holds 0 is no loss to rely on."
        alt = f"Differences in log density a row from {self.best}, with intervals."
        return drawn(self.plot, caption=caption, alt=alt)

    def __str__(self) -> str:
        width = max(len(c.name) for c in self.contenders)
        lines = [f"{'prior':{width}}  log density  difference ± s.e.  seconds"]
        for c in self.contenders:
            told = f"{c.difference:+.4f} ± {c.standard_error:.4f}"
            figures = f"{c.log_density:11.4f}  {told:>17}  {c.seconds:7.2f}"
            lines.append(f"{c.name:{width}}  {'failed: ' + c.failure if c.failure else figures}")
        lines.append(f"Nats a row, {self.num_rows:,} held-out rows of {self.num_tasks:,} tasks.")
        return "\n".join(lines)


def compare(
    data: TaskData,
    priors: Mapping[str, TaskPrior] | None = None,
    likelihood: Likelihood | None = None,
    *,
    engine: Engine | None = None,
    backbone: nn.Module | None = None,
    num_folds: int = 4,
    splitter: Splitter | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Comparison:
    r"""Cross-validate priors on the rows of each task, or on whole tasks.

    Every prior is fitted to the same folds and predicts every row once, from the other folds. It
    is ranked by the mean log predictive density

    $$\frac1N \sum_n \log p(y_n \mid x_n, D_{-\text{fold}(n)}),$$

    which judges the whole prediction, and means the same for any prior, likelihood and engine. An
    evidence at fitted hyperparameters ranks only models with as many of them, and a bound only
    those with the same bound, so neither takes part. Rows of a task are related: the standard
    error of a difference $\bar d$ takes the tasks, with sums $s_k$ over $n_k$ rows, as the units,
    $\frac1N \big(\tfrac{K}{K-1} \sum_k (s_k - n_k \bar d)^2\big)^{1/2}$.

    Features are standardised on the train rows after a constant, as are targets that are real
    numbers; densities are those of the targets in their own units.

    Args:
        data: rows of all tasks, features (N, D), or (N, ...) inputs of a backbone.
        priors: by the name that tables show; None: `candidates(data)`. They are left as they are.
        likelihood: of the targets; `Gaussian()` by default.
        engine: as in `fit`.
        backbone: from inputs to features; each fit trains a copy of it.
        num_folds: each task's rows are dealt into so many folds.
        splitter: deals the rows in place of `num_folds`: `data.LeaveTasksOut(4, random_state=0)`
            for tasks that no fit has seen, or any splitter of scikit-learn. Its groups are the
            task labels.
        seed: of folds and fits.
        progress: show a progress bar, a step a prior.

    Returns:
        The priors, ranked; one that cannot be fitted is last, with the reason.

    Raises:
        ValueError: for data without an observed target, inputs that are not (N, D) without a
            backbone, or `num_folds` out of range.

    Example:
        >>> from bmm_multitask_learning import PooledTasks, SharedGaussian, compare, datasets
        >>> data, truth = datasets.make_clusters(num_tasks=12, rows_per_task=20, seed=0)
        >>> compare(data, {"one": PooledTasks(), "many": SharedGaussian()}, progress=False).best
        'many'

    References:
        Vehtari, Gelman and Gabry, Practical Bayesian model evaluation using leave-one-out
        cross-validation and WAIC (2017), for the paired difference.
    """
    if data.x.ndim != 2 and backbone is None:
        raise ValueError(
            f"compare takes features (N, D); got inputs of shape {tuple(data.x.shape)}. Give "
            "the backbone= that makes features of them."
        )
    if not bool(data.observed.any()):
        raise ValueError("compare needs observed targets to score on; got none.")
    priors = candidates(data) if priors is None else priors
    if not priors:
        raise ValueError("priors must hold at least one prior; got none.")
    likelihood = Gaussian() if likelihood is None else likelihood
    folds = _folds(data, splitter) if splitter else list(data.folds(num_folds, seed=seed))
    found: dict[str, _HeldOut] = {}
    seconds: dict[str, float] = {}
    failures: dict[str, str] = {}
    for name, prior in tqdm(priors.items(), disable=not progress, desc="compare", unit="prior"):
        started = time.perf_counter()
        try:
            found[name] = _held_out(folds, prior, likelihood, backbone, engine, seed)
        except _FAILURES as error:
            failures[name] = str(error)
        seconds[name] = time.perf_counter() - started
    # the folds' test rows one after the other, as the scores are
    task = np.concatenate([test.task.numpy() for _, test in folds])
    seen = np.concatenate([test.observed.reshape(test.num_rows, -1).any(1) for _, test in folds])
    ranked = sorted(found, key=lambda name: -found[name].density[seen].mean())
    contenders = []
    for name in ranked:
        own = found[name]
        gap, spread = _difference((own.density - found[ranked[0]].density)[seen], task[seen])
        density, loss = float(own.density[seen].mean()), float(np.nanmean(own.loss))
        missed = loss if likelihood.classes else math.sqrt(loss)
        covered = math.nan if likelihood.classes else float(np.nanmean(own.inside))
        contenders.append(Contender(name, density, gap, spread, missed, covered, seconds[name]))
    nan = math.nan
    lost = [Contender(name, *(nan,) * 5, seconds[name], why) for name, why in failures.items()]
    return Comparison((*contenders, *lost), int(seen.sum()), len(np.unique(task[seen])))


def candidates(data: TaskData) -> dict[str, TaskPrior]:
    """The priors that `compare` takes by itself: every one that these data let run.

    Example:
        >>> list(candidates(TaskData([[1.0]], [0.5], ["a"])))
        ['IndependentTasks', 'PooledTasks', 'SharedGaussian', 'TaskClustering',
         'LatentHierarchy', 'SparseBayesian']
    """
    priors: dict[str, TaskPrior] = {
        "IndependentTasks": IndependentTasks(),
        "PooledTasks": PooledTasks(),
        "SharedGaussian": SharedGaussian(),
        "TaskClustering": TaskClustering(),
        "LatentHierarchy": LatentHierarchy(),
        "SparseBayesian": SparseBayesian(),
    }
    if data.task_features is not None:
        priors["TaskClustering, gating"] = TaskClustering(gating=True)
    return priors


class _HeldOut(NamedTuple):
    """Scores of held-out rows, one fold after the other.

    density: (N,) log predictive density.
    loss: squared errors of the targets; for classes whether another is most probable.
    inside: whether the targets lie in their intervals; NaN for classes.
    """

    density: Floats
    loss: Floats
    inside: Floats


def _folds(data: TaskData, splitter: Splitter) -> list[tuple[TaskData, TaskData]]:
    """Train and test rows; a task without train rows is no task of the fit."""
    rows, labels = np.zeros((data.num_rows, 1)), data.task.numpy()
    folds = []
    for train, test in splitter.split(rows, groups=labels):
        tasks = [data.tasks[k] for k in np.unique(labels[train])]
        folds.append((data.rows(train).select_tasks(tasks), data.rows(test)))
    return folds


def _held_out(
    folds: list[tuple[TaskData, TaskData]],
    prior: TaskPrior,
    likelihood: Likelihood,
    backbone: nn.Module | None,
    engine: Engine | None,
    seed: int,
) -> _HeldOut:
    """Scores of the test rows of all folds, one after the other."""
    parts = []
    for train, test in folds:
        units = Units.of(train, targets=likelihood.location_scale)
        model = MultitaskModel(
            copy.deepcopy(prior),
            copy.deepcopy(likelihood),
            backbone=with_constant(copy.deepcopy(backbone)),
        )
        rows = units.standardise(train, intercept=False)
        fit(model, rows, engine=engine, seed=seed, progress=False)
        parts.append(_scores(_predict(model, test, units), test, classes=likelihood.classes))
    return _HeldOut(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def _predict(model: MultitaskModel, test: TaskData, units: Units) -> Prediction:
    """In the user's units; tasks outside the fit are what the folds were made for."""
    features = test.task_features
    by_label = None if features is None else dict(zip(test.tasks, features.numpy(), strict=True))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\d+ task\(s\) outside the fit", UserWarning)
        prediction = model.predict(
            units.features(test.x.numpy()), row_labels(test), task_features=by_label
        )
    if model.likelihood.location_scale:
        return units.prediction(prediction, test.task.numpy())
    return prediction


def _scores(prediction: Prediction, test: TaskData, *, classes: bool) -> _HeldOut:
    y = test.y.numpy()
    density = np.nansum(prediction.log_prob(y).reshape(test.num_rows, -1), 1)
    if classes:
        chance = np.asarray(prediction.mean)
        likely = chance > 0.5 if chance.shape == y.shape else chance.argmax(1)
        wrong = np.where(np.isnan(y), np.nan, likely != y)
        return _HeldOut(density, wrong, np.full(len(y), np.nan))
    interval = prediction.interval(COVERAGE)
    inside = (interval[..., 0] <= y) & (y <= interval[..., 1])
    shape = (test.num_rows, -1)
    return _HeldOut(
        density,
        np.square(prediction.mean - y).reshape(shape),
        np.where(np.isnan(y), np.nan, inside).reshape(shape),
    )


def _difference(row: Floats, task: npt.NDArray[np.int64]) -> tuple[float, float]:
    """Mean of (N,) differences and its standard error, tasks as the units."""
    mean = float(row.mean())
    deviation = np.bincount(task, weights=row - mean)
    count = len(np.unique(task))
    if count == 1:
        return mean, math.nan
    return mean, math.sqrt(count / (count - 1) * np.square(deviation).sum()) / len(row)
