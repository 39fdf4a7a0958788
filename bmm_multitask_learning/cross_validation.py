"""Which prior predicts best? Several priors on the same folds of the rows of each task."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, final

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from . import plots
from .comparison import predict_rows
from .data import TaskData
from .engines import Engine
from .fitting import fit
from .likelihoods import Gaussian, Likelihood
from .model import MultitaskModel
from .priors import (
    IndependentTasks,
    LatentHierarchy,
    PooledTasks,
    SharedGaussian,
    SparseBayesian,
    TaskClustering,
    TaskPrior,
)
from .units import Units

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

Floats = npt.NDArray[np.float64]

# What a prior may fail with on rows that it cannot take.
_FAILURES = (ValueError, TypeError, ArithmeticError, RuntimeError, MemoryError)


@final
@dataclasses.dataclass(frozen=True)
class Contender:
    """What `compare` found of one prior.

    Args:
        name: of the prior.
        log_density: mean held-out log predictive density, nats a row; NaN where a fit failed.
        difference: its log density less that of the best prior on the same rows; 0 for the best.
        standard_error: of the difference, tasks as the units; NaN where there is only one.
        seconds: of all fits.
        failure: why a fit failed, or "".
    """

    name: str
    log_density: float
    difference: float
    standard_error: float
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
    num_folds: int = 4,
    seed: int = 0,
    progress: bool = True,
) -> Comparison:
    r"""Cross-validate priors on the rows of each task.

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
        data: rows of all tasks, features (N, D).
        priors: by the name that tables show; None: `candidates(data)`. They are left as they are.
        likelihood: of the targets; `Gaussian()` by default.
        engine: as in `fit`.
        num_folds: each task's rows are dealt into so many folds.
        seed: of folds and fits.
        progress: show a progress bar, a step a prior.

    Returns:
        The priors, ranked; one that cannot be fitted is last, with the reason.

    Raises:
        ValueError: for data without an observed target, inputs that are not (N, D), or
            `num_folds` out of range.

    Example:
        >>> from bmm_multitask_learning import PooledTasks, SharedGaussian, compare, datasets
        >>> data, truth = datasets.make_clusters(num_tasks=12, rows_per_task=20, seed=0)
        >>> compare(data, {"one": PooledTasks(), "many": SharedGaussian()}, progress=False).best
        'many'

    References:
        Vehtari, Gelman and Gabry, Practical Bayesian model evaluation using leave-one-out
        cross-validation and WAIC (2017), for the paired difference.
    """
    if data.x.ndim != 2:
        raise ValueError(
            f"compare takes features (N, D); got inputs of shape {tuple(data.x.shape)}. Run a "
            "backbone on them first."
        )
    if not bool(data.observed.any()):
        raise ValueError("compare needs observed targets to score on; got none.")
    priors = candidates(data) if priors is None else priors
    if not priors:
        raise ValueError("priors must hold at least one prior; got none.")
    likelihood = Gaussian() if likelihood is None else likelihood
    folds = list(data.folds(num_folds, seed=seed))
    density: dict[str, Floats] = {}
    seconds: dict[str, float] = {}
    failures: dict[str, str] = {}
    for name, prior in tqdm(priors.items(), disable=not progress, desc="compare", unit="prior"):
        started = time.perf_counter()
        try:
            density[name] = _held_out(folds, prior, likelihood, engine, seed)
        except _FAILURES as error:
            failures[name] = str(error)
        seconds[name] = time.perf_counter() - started
    observed = data.observed.reshape(data.num_rows, -1).any(1).numpy()
    # the folds' test rows one after the other, as the densities are
    task = np.concatenate([test.task.numpy() for _, test in folds])
    seen = np.concatenate([test.observed.reshape(test.num_rows, -1).any(1) for _, test in folds])
    ranked = sorted(density, key=lambda name: -density[name][seen].mean())
    contenders = [
        Contender(
            name,
            float(density[name][seen].mean()),
            *_difference((density[name] - density[ranked[0]])[seen], task[seen]),
            seconds[name],
        )
        for name in ranked
    ]
    lost = [
        Contender(name, math.nan, math.nan, math.nan, seconds[name], why)
        for name, why in failures.items()
    ]
    return Comparison((*contenders, *lost), int(observed.sum()), len(np.unique(task[seen])))


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


def _held_out(
    folds: list[tuple[TaskData, TaskData]],
    prior: TaskPrior,
    likelihood: Likelihood,
    engine: Engine | None,
    seed: int,
) -> Floats:
    """Log predictive density of the test rows of all folds, one after the other."""
    values = []
    for train, test in folds:
        units = Units.of(train, targets=likelihood.location_scale)
        model = MultitaskModel(copy.deepcopy(prior), copy.deepcopy(likelihood))
        fit(model, units.standardise(train), engine=engine, seed=seed, progress=False)
        density = predict_rows(model, test, units).log_prob(test.y.numpy())
        values.append(np.nansum(density.reshape(test.num_rows, -1), 1))
    return np.concatenate(values)


def _difference(row: Floats, task: npt.NDArray[np.int64]) -> tuple[float, float]:
    """Mean of (N,) differences and its standard error, tasks as the units."""
    mean = float(row.mean())
    deviation = np.bincount(task, weights=row - mean)
    count = len(np.unique(task))
    if count == 1:
        return mean, math.nan
    return mean, math.sqrt(count / (count - 1) * np.square(deviation).sum()) / len(row)
