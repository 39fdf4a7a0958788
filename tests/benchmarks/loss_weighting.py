"""Weightings of losses on one network with many heads, against fixed weights that were tuned.

Three problems. `sarcos`: seven torques of a robot arm in their own units. `sarcos, noise in four`:
the same with few rows, unit variances, and noise of twice the standard deviation added to the
training and validation targets of four torques. `yeast`: fourteen labels of genes.

Every method has the same network, steps and batches. Validation rows choose its learning rate and
the step to stop at; those of fixed weights also the weights. Test rows are seen once.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torchjd.aggregation import IMTLG
from torchjd.scalarization import GeometricMean

from bmm_multitask_learning import datasets, metrics
from bmm_multitask_learning.data import TaskData
from bmm_multitask_learning.weighting import (
    Aggregated,
    DynamicWeightAverage,
    FixedWeights,
    LossWeighting,
    Scalarized,
    UncertaintyWeighting,
    VariationalLossWeighting,
)

from .record import markdown, write

SEEDS = range(5)
RATES = (3e-3, 1e-2, 3e-2)
POWERS = (0.0, 0.5, 1.0)  # fixed weights are variances to minus these
STEPS, BATCH, CHECK, WIDTH = 800, 64, 40, 48
NOISY = (0, 2, 3, 5)

PAGE = """
{number} seeds (split, noise and first weights); a network with one hidden layer of {width} units;
Adam, {steps} steps of {batch} rows; learning rate from {rates} and the step to stop at by
validation rows, for each method and seed. Means over seeds; "paired" is the difference from tuned
fixed weights, ± standard error, negative where the method is better. Tuned fixed weights have four
times the runs of the others to choose from: variances to the power 0, -½ and -1, and the inverse
of the validation error of least squares.

{tables}
"""


@dataclasses.dataclass(frozen=True)
class Problem:
    """Rows of J heads on shared inputs, in three parts, as (x, y)."""

    kind: str
    train: tuple[Tensor, Tensor]
    valid: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    def losses(self, f: Tensor, y: Tensor) -> Tensor:
        """(J,) mean losses of outputs (n, J)."""
        if self.kind == "squared":
            return (f - y).square().mean(0)
        return binary_cross_entropy_with_logits(f, y, reduction="none").mean(0)

    def error(self, f: Tensor, y: Tensor) -> float:
        """What validation chooses by: the mean of normalised squared errors, or of log losses."""
        losses = self.losses(f, y)
        return float((losses / y.var(0) if self.kind == "squared" else losses).mean())

    def scores(self, f: Tensor, y: Tensor) -> dict[str, float]:
        """What is reported of test rows."""
        if self.kind == "squared":
            normalised = self.losses(f, y) / y.var(0)
            return {"nMSE": float(normalised.mean()), "worst head": float(normalised.max())}
        task = np.repeat(np.arange(y.shape[1]), len(y))
        auc = metrics.auc(y.T.flatten().numpy(), f.sigmoid().T.flatten().numpy(), task)
        return {"log loss": self.error(f, y), "1 - AUC": 1 - auc}


def columns(data: TaskData) -> tuple[Tensor, Tensor]:
    """Inputs (n, D) and targets (n, J) of tasks on the same rows."""
    n = data.num_rows // data.num_tasks
    return data.x[:n].float(), data.y.view(-1, n).T.float()


def parts(x: Tensor, y: Tensor, sizes: list[int], order: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Rows in an order, cut into parts; inputs standardised by the first part."""
    pieces = order.split(sizes)
    mean, std = x[pieces[0]].mean(0), x[pieces[0]].std(0)
    return [((x[piece] - mean) / std, y[piece]) for piece in pieces]


def shuffled(number: int, seed: int) -> Tensor:
    """A permutation of rows."""
    return torch.from_numpy(np.random.default_rng(seed).permutation(number))


def sarcos(seed: int) -> Problem:
    """Torques in newton metres around the means of the training rows."""
    x, y = columns(datasets.fetch_sarcos())
    order = shuffled(len(x), seed)[:3500]
    return Problem("squared", *parts(x, y - y[order[:1000]].mean(0), [1000, 500, 2000], order))


def noisy_sarcos(seed: int) -> Problem:
    """Torques in standard deviations, those of `NOISY` with noise except in test rows."""
    x, y = columns(datasets.fetch_sarcos())
    order = shuffled(len(x), seed)[:2600]
    known = y[order[:300]]
    train, valid, test = parts(x, (y - known.mean(0)) / known.std(0), [300, 300, 2000], order)
    generator = torch.Generator().manual_seed(seed)
    scale = torch.zeros(y.shape[1])
    scale[list(NOISY)] = 2.0
    noisy = [(x, y + scale * torch.randn(y.shape, generator=generator)) for x, y in (train, valid)]
    return Problem("squared", *noisy, test)


def yeast(seed: int) -> Problem:
    """The standard test rows; a quarter of the training rows validate."""
    (x, y), (new, target) = (columns(data) for data in datasets.fetch_yeast())
    order = torch.cat([shuffled(len(x), seed), len(x) + torch.arange(len(new))])
    rows = torch.cat([x, new]), torch.cat([y, target])
    return Problem("cross_entropy", *parts(*rows, [1125, 375, 917], order))


PROBLEMS: dict[str, Callable[[int], Problem]] = {
    "sarcos": sarcos,
    "sarcos, noise in four": noisy_sarcos,
    "yeast": yeast,
}


def linear_error(problem: Problem) -> Tensor:
    """(J,) validation errors of least squares on the training rows."""
    (x, y), (new, target) = problem.train, problem.valid
    design, new = (torch.cat([torch.ones(len(a), 1), a], 1) for a in (x, new))
    return (new @ torch.linalg.lstsq(design, y).solution - target).square().mean(0)


def strategies(problem: Problem) -> Iterator[tuple[str, LossWeighting]]:
    """Every method to train with; "tuned fixed" comes four times."""
    n, J = problem.train[1].shape
    kinds, variance = J * [problem.kind], problem.train[1].var(0)
    yield "equal", FixedWeights(J * [1.0])
    for weights in (*(variance**-power for power in POWERS), 1 / linear_error(problem)):
        yield "tuned fixed", FixedWeights((weights / weights.mean()).tolist())
    yield "Kendall's uncertainty", UncertaintyWeighting(kinds)
    yield "variational", VariationalLossWeighting(kinds, J * [n])
    yield "dynamic average", DynamicWeightAverage(J, n // BATCH)
    yield "geometric mean (TorchJD)", Scalarized(GeometricMean())
    yield "IMTL-G (TorchJD)", Aggregated(IMTLG())


def train(problem: Problem, weighting: LossWeighting, rate: float, seed: int) -> dict[str, float]:
    """Validation error and test scores at the step with the lowest validation error."""
    (x, y), generator = problem.train, torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = nn.Sequential(nn.Linear(x.shape[1], WIDTH), nn.Tanh())
        heads = nn.Linear(WIDTH, y.shape[1])
    modules = nn.ModuleList([backbone, heads, weighting])
    optimiser = torch.optim.Adam([p for p in modules.parameters() if p.requires_grad], lr=rate)
    counts = torch.full((y.shape[1],), BATCH)
    best: dict[str, float] = {"validation": np.inf}
    for step in range(STEPS):
        rows = torch.randint(len(x), (BATCH,), generator=generator)
        losses = problem.losses(heads(backbone(x[rows])), y[rows])
        optimiser.zero_grad()
        weighting.backward(losses, backbone.parameters(), heads.parameters())
        optimiser.step()
        weighting.update(losses.detach(), counts)
        if (step + 1) % CHECK == 0:
            with torch.no_grad():
                error, test = (
                    (part[1], heads(backbone(part[0]))) for part in (problem.valid, problem.test)
                )
            validation = problem.error(error[1], error[0])
            if validation < best["validation"]:
                best = {"validation": validation, **problem.scores(test[1], test[0])}
    return best


def runs(names: list[str]) -> pd.DataFrame:
    """The chosen run of each method and seed."""
    rows = []
    for name in names:
        for seed in SEEDS:
            problem = PROBLEMS[name](seed)
            for rate in RATES:
                for method, weighting in strategies(problem):
                    started = time.perf_counter()
                    found = train(problem, weighting, rate, seed)
                    seconds = time.perf_counter() - started
                    rows.append(
                        {"problem": name, "method": method, "seed": seed, "rate": rate}
                        | {"seconds": seconds, **found}
                    )
    table = pd.DataFrame(rows)
    table["ms a step"] = table.pop("seconds") * 1000 / STEPS
    return table.loc[table.groupby(["problem", "method", "seed"])["validation"].idxmin()]


def tables(rows: pd.DataFrame) -> str:
    """A table a problem: mean scores, and paired differences from tuned fixed weights."""
    text = []
    for name, part in rows.groupby("problem", sort=False):
        scores = [
            c for c in ("nMSE", "worst head", "log loss", "1 - AUC") if part[c].notna().all()
        ]
        wide = part.pivot(index="seed", columns="method", values=[*scores, "ms a step"])
        body = []
        for method in part["method"].unique():
            cells = [method]
            for score in scores:
                value = wide[score][method]
                paired = value - wide[score]["tuned fixed"]
                error = paired.std() / len(paired) ** 0.5
                cells += [f"{value.mean():.4f}", f"{paired.mean():+.4f} ± {error:.4f}"]
            body.append([*cells, f"{wide['ms a step'][method].median():.2f}"])
        headings = [h for score in scores for h in (score, "paired")]
        text += [f"**{name}**", "", markdown(["method", *headings, "ms a step"], body), ""]
    return "\n".join(text)


def main() -> None:
    """Train everything; write the tables."""
    started = time.perf_counter()
    rows = runs(list(PROBLEMS))
    facts = {
        "benchmark": "loss-weighting",
        "seeds": list(SEEDS),
        "rates": RATES,
        "steps": STEPS,
        "batch": BATCH,
        "width": WIDTH,
        "seconds": round(time.perf_counter() - started),
    }
    page = PAGE.format(
        number=len(SEEDS),
        width=WIDTH,
        steps=STEPS,
        batch=BATCH,
        rates=", ".join(f"{rate:g}" for rate in RATES),
        tables=tables(rows),
    )
    write("loss-weighting", rows, page, facts)
