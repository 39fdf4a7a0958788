"""Sharing architectures on SARCOS: a column of features a torque, and what columns share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import nn

from ..backbones import (
    MLP,
    CrossStitch,
    MixtureOfExperts,
    OwnColumn,
    Sluice,
    SoftSharing,
    Towers,
)
from ..engines import SVI
from ..family import Family
from ..fitting import fit
from ..likelihoods import Gaussian
from ..model import MultitaskModel
from ..priors import SharedGaussian
from . import library
from .protocol import Forecast, Method, Metric, Problem, Protocol, Rows, draws
from .sarcos import HELD_OUT, NUM_TORQUES, prepare, score
from .scores import SECONDS, SPREAD

HIDDEN, STEPS, RATES, STRENGTHS = (16, 16), 150, (0.01, 0.03), (1.0, 100.0)
EXPERTS, FIRST, NUM_DRAWS = 4, 301, 5
SHARE = 0.2
SIZES = ("100 a torque", "150 a torque")
TEXT = f"""
The rows of the benchmark *sarcos*, other draws: 100 or 150 rows of each of seven torques,
{HELD_OUT} states held out, seeds from {FIRST}. Every network has layers of {HIDDEN[0]} and
{HIDDEN[1]} tanh units, a column a torque but for hard sharing, and {STEPS} steps of `SVI` on all
rows; `SharedGaussian("diagonal")` on the features and a noise variance a torque. The learning
rate, of {", ".join(map(str, RATES))}, is that of the least squared error on a fifth of the train
rows held out, after which the network is fitted to all of them; so is the strength of *SoftSharing
(held out)*, of {", ".join(map(str, STRENGTHS))}. Seconds are of all of these fits. *Linear* is the
same prior on the inputs, by the closed form, with nothing to choose. Steps, widths and the start
of the evidence's spreads were settled on another draw, seed 300.
"""

# from the number of inputs to a backbone with its initial weights
Make = Callable[[int], nn.Module]


def network(make: Make, *variants: Make) -> Method:
    """A network whose rate, and which of whose variants, a fifth of the train rows chooses."""

    def method(problem: Problem) -> Forecast:
        left_out = np.random.default_rng(0).random(len(problem.train.y)) < SHARE
        some, others = problem.train.where(~left_out), problem.train.where(left_out)
        choices = [(kind, rate) for kind in (make, *variants) for rate in RATES]
        errors = []
        for kind, rate in choices:
            mean = _fitted(some, problem.num_tasks, kind, rate).predict(others.x, others.task).mean
            errors.append(float(np.square(np.asarray(mean) - others.y).mean()))
        kind, rate = choices[int(np.argmin(errors))]
        model = _fitted(problem.train, problem.num_tasks, kind, rate)
        prediction = model.predict(problem.test.x, problem.test.task)
        return Forecast(
            np.asarray(prediction.mean),
            np.asarray(prediction.log_prob(problem.test.y)),
            np.asarray(prediction.interval(library.COVERAGE)),
            {"rate": rate},
        )

    return method


def _fitted(rows: Rows, num_tasks: int, make: Make, rate: float) -> MultitaskModel:
    backbone = make(rows.x.shape[1])
    reader = None if isinstance(backbone, MLP) else OwnColumn()
    family = Family(SharedGaussian("diagonal"), Gaussian("task"), reader=reader)
    model = MultitaskModel(backbone=backbone, families={"torques": family})
    data = {"torques": rows.data(num_tasks)}
    fit(model, data, engine=SVI(steps=STEPS, lr=rate), progress=False)
    return model


def soft(strength: float | None) -> Make:
    """Makers of `SoftSharing`, by its strength."""
    return lambda width: SoftSharing(width, HIDDEN, num_columns=NUM_TORQUES, strength=strength)


SHARING = Protocol(
    name="sharing",
    text=TEXT,
    splits=draws(SIZES, NUM_DRAWS, first=FIRST),
    methods={
        "Linear": library.noisy_numbers()["SharedGaussian (diagonal)"],
        "MLP (hard sharing)": network(lambda width: MLP(width, HIDDEN)),
        "Towers": network(lambda width: Towers(width, HIDDEN, num_columns=NUM_TORQUES)),
        "SoftSharing (held out)": network(*(soft(strength) for strength in STRENGTHS)),
        "SoftSharing (evidence)": network(soft(None)),
        "CrossStitch": network(lambda width: CrossStitch(width, HIDDEN, num_columns=NUM_TORQUES)),
        "Sluice": network(lambda width: Sluice(width, HIDDEN, num_columns=NUM_TORQUES)),
        "MixtureOfExperts": network(
            lambda width: MixtureOfExperts(
                width, HIDDEN, num_columns=NUM_TORQUES, num_experts=EXPERTS
            )
        ),
    },
    prepare=prepare,
    score=score,
    metrics=(
        Metric("nMSE", "mean nMSE"),
        *SPREAD,
        Metric("rate", "rate"),
        SECONDS,
    ),
    reference="MLP (hard sharing)",
    compared=("nMSE", "log_density"),
    quick_splits=draws(SIZES[:1], 1, first=FIRST),
    quick_methods=("Linear", "MLP (hard sharing)"),
)
