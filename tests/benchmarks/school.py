"""School: 139 schools, exam scores; random 75/25 splits within school."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import RidgeCV
from tqdm.auto import tqdm

from bmm_multitask_learning import (
    Gaussian,
    IndependentTasks,
    MultitaskModel,
    PooledTasks,
    SharedGaussian,
    TaskClustering,
    TaskData,
    datasets,
    fit,
    metrics,
)
from bmm_multitask_learning.priors import TaskPrior

from .record import Column, paired, summary, write

PENALTIES = np.logspace(-2, 4, 25)
PRIORS: dict[str, Callable[[], TaskPrior]] = {
    "IndependentTasks": IndependentTasks,
    "PooledTasks": PooledTasks,
    "SharedGaussian": SharedGaussian,
    "SharedGaussian, diagonal": lambda: SharedGaussian("diagonal"),
    "SharedGaussian, isotropic": lambda: SharedGaussian("isotropic"),
    "TaskClustering, C chosen": lambda: TaskClustering("auto"),
    "TaskClustering, C = 2": lambda: TaskClustering(2),
    "TaskClustering, C = 3": lambda: TaskClustering(3),
}
COLUMNS = (
    Column("EV_global", "EV global"),
    Column("EV_within", "EV within"),
    Column("EV_taskmean", "EV task mean"),
    Column("RMSE", "RMSE", 2),
    Column("log_density", "log density"),
    Column("coverage", "coverage of 90 %"),
    Column("width", "width", 1),
    Column("evidence", "evidence, nats", 0),
    Column("seconds", "seconds", 2),
)
PAGE = """
Protocol: {splits} random 75/25 splits of the rows within each school, seeds 0 to {last};
the 27 features are standardised on the training rows and a constant is added; the target is
centred on the training mean. Nothing is chosen on test rows. Figures are means over the splits ±
their standard deviation. *EV* is explained variance in three definitions that are not to be mixed
up: around the mean of all test rows, around each school's own mean, and the mean over schools of
each school's own. *Evidence* is log p(D | η̂) of the training rows at fitted hyperparameters: it
does not rank priors of different size. Ridge regressions have their penalty chosen by
leave-one-out on the training rows.

{table}

Differences on the same splits, ± standard error:

{pairs}

Clusters chosen by `TaskClustering("auto")`, split by split: {clusters}.
"""


def prepared(data: TaskData, seed: int) -> tuple[TaskData, TaskData]:
    """Train and test part of one split, standardised by the training rows."""
    train, test = data.split(0.75, seed=seed)
    mean, std = train.x.mean(0), train.x.std(0, correction=0)
    centre = train.y.mean()

    def ready(part: TaskData) -> TaskData:
        x = (part.x - mean) / torch.where(std > 0, std, 1.0)
        labels = [part.tasks[i] for i in part.task.tolist()]
        x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
        return TaskData(x, part.y - centre, labels, tasks=data.tasks)

    return ready(train), ready(test)


def scores(test: TaskData, mean: torch.Tensor) -> dict[str, float]:
    """Explained variances and RMSE."""
    named = {
        f"EV_{kind}": metrics.explained_variance(test.y, mean, test.task, kind)
        for kind in ("global", "within", "taskmean")
    }
    return {**named, "RMSE": metrics.rmse(test.y, mean)}


def evaluate(prior: TaskPrior, train: TaskData, test: TaskData) -> dict[str, float]:
    """Fit one prior and score its predictions."""
    model = MultitaskModel(prior=prior, likelihood=Gaussian())
    result = fit(model, train, progress=False)
    p = model.predict(test.x, [test.tasks[i] for i in test.task.tolist()])
    lower, upper = p.interval(0.9).unbind(-1)
    chosen = getattr(model.prior, "responsibilities", None)
    return {
        **scores(test, p.mean),
        "log_density": metrics.mean_log_predictive_density(p.log_prob(test.y)),
        "coverage": metrics.interval_coverage(test.y, lower, upper),
        "width": metrics.interval_width(lower, upper),
        "evidence": model.log_evidence(train).value,
        "seconds": result.seconds,
        "clusters": float("nan") if chosen is None else chosen.shape[1],
        "converged": result.converged,
    }


def ridges(train: TaskData, test: TaskData) -> Iterator[tuple[str, dict[str, float]]]:
    """scikit-learn's ridge regression, one for all schools and one for each."""
    x, y, task = (t.numpy() for t in (train.x, train.y, train.task))
    new, new_task = test.x.numpy(), test.task.numpy()
    start = time.perf_counter()
    mean = RidgeCV(PENALTIES).fit(x, y).predict(new)
    yield (
        "RidgeCV, pooled",
        {
            **scores(test, torch.as_tensor(mean)),
            "seconds": time.perf_counter() - start,
        },
    )
    start = time.perf_counter()
    for k in range(train.num_tasks):
        at = new_task == k
        if at.any():
            mean[at] = RidgeCV(PENALTIES).fit(x[task == k], y[task == k]).predict(new[at])
    yield (
        "RidgeCV, per school",
        {
            **scores(test, torch.as_tensor(mean)),
            "seconds": time.perf_counter() - start,
        },
    )


def measure(
    splits: int = 10, priors: dict[str, Callable[[], TaskPrior]] | None = None
) -> pd.DataFrame:
    """One row for each split and method."""
    data = datasets.fetch_school()
    rows = []
    for split in tqdm(range(splits), desc="School", unit="split"):
        train, test = prepared(data, split)
        for method, make in (priors or PRIORS).items():
            rows.append({"method": method, "split": split, **evaluate(make(), train, test)})
        if priors is None:
            for method, figures in ridges(train, test):
                rows.append({"method": method, "split": split, **figures})
    return pd.DataFrame(rows)


def main(splits: int = 10) -> None:
    """Measure, and write the tables."""
    rows = measure(splits)
    chosen = rows.loc[rows.method == "TaskClustering, C chosen", "clusters"].astype(int)
    page = PAGE.format(
        splits=splits,
        last=splits - 1,
        table=summary(rows, ["method"], COLUMNS),
        pairs=paired(rows, "EV_global", "SharedGaussian"),
        clusters=", ".join(map(str, chosen)),
    )
    write(
        "school",
        rows,
        page,
        {"benchmark": "school", "splits": splits, "seeds": list(range(splits))},
    )
