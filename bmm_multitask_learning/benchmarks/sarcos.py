"""SARCOS: seven torques of a robot arm from few rows."""

from __future__ import annotations

from functools import cache, lru_cache

import numpy as np
from sklearn.linear_model import ARDRegression

from .. import datasets
from ..priors import SparseBayesian
from . import library, peers, sampled, scores
from .features import with_constant
from .protocol import Array, Forecast, Metric, Problem, Protocol, Rows, Split, draws

HELD_OUT = 2000
NUM_TORQUES = 7
SIZES = ("50 a torque", "50 shared", "100 a torque", "150 a torque")
TEXT = f"""
Seven torques, 4449 states of the arm. {HELD_OUT} states are held out; from the others come 50, 100
or 150 rows (*size*), other rows for each torque or the same for all ("shared"). Inputs are
standardised on the rows drawn and a constant is added; each torque is centred and scaled by its
own. *nMSE* is the squared error over the variance of the held-out targets, the mean over torques;
log density, coverage and width are of the scaled targets. Noise has a variance a torque (GPyTorch:
one). Ridge regressions have their penalty by leave-one-out, ARD by its evidence, MultiTaskLassoCV
by 5-fold cross-validation. The default hyperprior of the sparse prior was chosen with an eye on
draws 0 to 19 of these data; the draws here are others, seeds 100 to 119. GPyTorch is fitted to the
first two draws of each size. {library.FOUND}
"""


@cache
def _states() -> tuple[Array, Array]:
    """Inputs (4449, 21) and torques (7, 4449)."""
    data = datasets.fetch_sarcos()
    states = data.num_rows // NUM_TORQUES
    return data.x[:states].numpy(), data.y.reshape(NUM_TORQUES, states).numpy()


@lru_cache(maxsize=1)
def prepare(split: Split) -> Problem:
    """Rows of every torque, and the states held out."""
    x, y = _states()
    rng = np.random.default_rng(split.seed)
    order = rng.permutation(len(x))
    test, pool = order[:HELD_OUT], order[HELD_OUT:]
    size, kind = split.size.split(" ", 1)
    same = rng.choice(pool, int(size), replace=False)
    chosen = [
        same if kind == "shared" else rng.choice(pool, int(size), replace=False)
        for _ in range(NUM_TORQUES)
    ]
    seen = x[np.unique(np.concatenate(chosen))]
    features = with_constant((x - seen.mean(0)) / seen.std(0))

    def rows(parts: list[np.ndarray]) -> Rows:
        targets = [
            (y[k, part] - y[k, own].mean()) / y[k, own].std()
            for k, (part, own) in enumerate(zip(parts, chosen, strict=True))
        ]
        task = np.repeat(np.arange(NUM_TORQUES), [len(part) for part in parts])
        return Rows(features[np.concatenate(parts)], np.concatenate(targets), task)

    return Problem(rows(chosen), rows([test] * NUM_TORQUES), NUM_TORQUES)


def score(problem: Problem, forecast: Forecast) -> dict[str, float]:
    """The usual figures of numbers, and the error over the variance of each torque."""
    y, mean = (values.reshape(NUM_TORQUES, -1) for values in (problem.test.y, forecast.mean))
    ratio = np.square(mean - y).mean(1) / y.var(1)
    return {"nMSE": float(ratio.mean()), **scores.numeric(problem, forecast)}


SARCOS = Protocol(
    name="sarcos",
    text=TEXT,
    splits=draws(SIZES, 20, first=100),
    methods={
        **library.noisy_numbers(),
        **library.noisy_numbers({"SparseBayesian (R = 2)": lambda: SparseBayesian(rank=2)}),
        **peers.ridge(),
        "ARDRegression (per task)": peers.each(ARDRegression),
        **peers.multitask_lasso(),
        **peers.coregionalisation(),
        **sampled.hierarchical(),
    },
    prepare=prepare,
    score=score,
    metrics=(
        Metric("nMSE", "mean nMSE"),
        *scores.SPREAD,
        Metric("found", "found", 2),
        scores.SECONDS,
    ),
    reference="SharedGaussian (diagonal)",
    compared=("nMSE", "log_density"),
    some=dict.fromkeys(
        ("GPyTorch ICM (linear)", "NumPyro NUTS (hierarchical)"), draws(SIZES, 2, first=100)
    ),
    quick_splits=draws(("50 a torque", "50 shared"), 2, first=100),
    quick_methods=(
        *("IndependentTasks", "PooledTasks", "SharedGaussian (diagonal)"),
        *("SparseBayesian", "RidgeCV (per task)"),
    ),
)
