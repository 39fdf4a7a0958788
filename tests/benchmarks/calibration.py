"""Simulation-based calibration with free hyperparameters: NUTS against the prior it samples."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import pyro
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide.initialization import init_to_value
from torch import Tensor
from tqdm.auto import tqdm

from bmm_multitask_learning import (
    Gaussian,
    IndependentTasks,
    LatentHierarchy,
    SharedGaussian,
    SparseBayesian,
    TaskClustering,
    TaskCovariance,
    TaskPrior,
)
from bmm_multitask_learning.hyperparameters import Eta
from bmm_multitask_learning.likelihoods.gaussian import Moments
from bmm_multitask_learning.posterior import WeightPosterior
from bmm_multitask_learning.roots import Roots
from bmm_multitask_learning.statistics import TaskStatistics
from tests.calibration import BINS, quantities, rank, uniformity
from tests.cases import built_model, make_data

from .record import FOLDER, machine, markdown, write

SIMULATIONS, WARMUP, KEPT, THINNING = 200, 200, 19, 6
PRIORS: dict[str, Callable[[], TaskPrior]] = {
    "IndependentTasks": IndependentTasks,
    "SharedGaussian, isotropic": lambda: SharedGaussian("isotropic"),
    "SharedGaussian, diagonal": lambda: SharedGaussian("diagonal"),
    "SharedGaussian, full": SharedGaussian,
    "LatentHierarchy, given the tree": lambda: LatentHierarchy(mixing=0.7),
    "TaskCovariance": lambda: TaskCovariance(strength=1.0),
    "TaskClustering": lambda: TaskClustering(2, covariance="isotropic"),
    # loadings of patterns have Cauchy tails along a ridge: one chain for all does not mix in them
    "SparseBayesian, no patterns": lambda: SparseBayesian(rank=0),
}
WEIGHTS = ("one weight", "sum over tasks", "product of two tasks", "size", "log likelihood")
NARROW = ", variances × 0.5"
# by what the posterior's standard deviations are multiplied, and what the ranks are called then
WIDTHS = {"": 1.0, NARROW: 0.5**0.5}
PAGE = """
Hyperparameters, weights (4 tasks of 1 to 5 rows, 2 features) and targets are drawn from the model,
{simulations} times; then {kept} times from the posterior, every {thinning}th draw of NUTS, the
weights integrated out. One chain samples all simulations side by side: their posteriors are
independent. It starts from the truth, which is itself a draw from the posterior. The scale Ψ of
the hyperprior, which a fit takes from the data, is held. Ranks of the truth among the draws must
be uniform: p of χ² in {bins} bins, the smallest times the number of things that are ranked at
least .01. Beside it the same for weights drawn too narrow, variances × 0.5, which must fail. Of
clusters the smaller and the larger of each value are ranked: labels are anybody's.

{table}
"""


def measure(make: Callable[[], TaskPrior], simulations: int) -> pd.DataFrame:
    """Ranks of the truth, a row for each simulation, a column for each thing that is ranked."""
    data = make_data(rows=(4, 2, 5, 1), num_features=2)  # the design alone is used
    model = built_model(make(), Gaussian(), data, seed=0)
    prior, likelihood = model.prior, model.likelihood

    def hyperprior() -> Eta:
        with poutine.broadcast(), pyro.plate("simulations", simulations):
            return {**prior.hyperprior(), **likelihood.hyperprior()}

    with torch.no_grad():
        truth = hyperprior()
        weights, moments = [], []
        for s in range(simulations):
            W = prior(_at(truth, s)).sample()
            f = torch.einsum("nd,nd->n", data.x, W[data.task, 0])
            y = f + truth["noise_level"][s].rsqrt() * torch.randn_like(f)
            weights.append(W)
            moments.append(likelihood.summarise(model.rows("tasks", data._replace(y=y))))
    b, c = (torch.stack([getattr(m.factor, part) for m in moments]) for part in "bc")

    def factors(b: Tensor, c: Tensor, eta: Eta) -> TaskStatistics:
        unit = TaskStatistics(moments[0].factor.A, b, c, moments[0].factor.rows)
        return likelihood.statistics(Moments(unit, moments[0].count), eta)

    def log_evidence(b: Tensor, c: Tensor, eta: Eta) -> Tensor:
        return prior.condition(factors(b, c, eta), eta).log_normaliser

    def program() -> None:
        eta = hyperprior()
        pyro.factor("targets", torch.func.vmap(log_evidence)(b, c, eta).sum())

    # the truth is itself a draw from the posterior
    kernel = NUTS(program, init_strategy=init_to_value(values=truth))
    mcmc = MCMC(kernel, KEPT * THINNING, WARMUP)
    with pyro.validation_enabled(False):
        mcmc.run()
    samples = {name: value[::THINNING] for name, value in mcmc.get_samples().items()}
    generators = {label: torch.Generator().manual_seed(0) for label in WIDTHS}
    rows = []
    for s in tqdm(range(simulations), desc="ranks"):
        draws = [_at(_at(samples, i), s) for i in range(KEPT)]
        given = [factors(b[s], c[s], eta) for eta in draws]
        found = _ranks_of_hyperparameters(_at(truth, s), draws)
        posteriors = [prior.condition(*each) for each in zip(given, draws, strict=True)]
        true = quantities(weights[s], factors(b[s], c[s], _at(truth, s)))
        for label, width in WIDTHS.items():
            values = [
                quantities(_scaled(posterior, width).draw(1, generators[label])[0], factor)
                for posterior, factor in zip(posteriors, given, strict=True)
            ]
            names = (name + label for name in WEIGHTS)
            found |= dict(zip(names, rank(true, torch.stack(values)), strict=True))
        rows.append({name: int(value) for name, value in found.items()})
    return pd.DataFrame(rows)


def _at(values: Eta, index: int) -> Eta:
    return {name: value[index] for name, value in values.items()}


def _scaled(posterior: WeightPosterior, width: float) -> WeightPosterior:
    """Every component narrower around its mean."""
    roots = Roots(width * posterior.roots.own, width * posterior.roots.common)
    return dataclasses.replace(posterior, roots=roots)


def _ranks_of_hyperparameters(truth: Eta, draws: list[Eta]) -> dict[str, int]:
    truth, draws = _identified(truth), [_identified(eta) for eta in draws]
    found = {}
    for name, value in truth.items():
        below = rank(value, torch.stack([eta[name] for eta in draws]))
        labels = [name] if len(below) == 1 else [f"{name} {i}" for i in range(len(below))]
        found |= dict(zip(labels, below, strict=True))
    return found


def _identified(eta: Eta) -> Eta:
    """What the rows can tell of hyperparameters, each flat and each number once."""
    if "proportion" in eta:  # clusters may change places
        eta = {name: value.sort(0).values for name, value in eta.items()}
    if "task_precision" in eta:  # symmetric
        row, column = torch.tril_indices(*eta["task_precision"].shape)
        eta = eta | {"task_precision": eta["task_precision"][row, column]}
    return {name: value.flatten() for name, value in eta.items()}


def main(simulations: int = SIMULATIONS) -> None:
    """Measure the priors that no earlier run of the same protocol measured; write the tables."""
    facts = {
        "benchmark": "calibration",
        "simulations": simulations,
        "warmup": WARMUP,
        "kept": KEPT,
        "thinning": THINNING,
    }
    tables, seconds = _known(facts)
    for method in [name for name in PRIORS if name not in tables]:
        torch.manual_seed(0)
        started = time.perf_counter()
        tables[method] = measure(PRIORS[method], simulations)
        seconds[method] = round(time.perf_counter() - started)
        _write(tables, {**facts, "seconds": seconds})


def _known(facts: dict[str, object]) -> tuple[dict[str, pd.DataFrame], dict[str, int]]:
    """Ranks and seconds by prior, of a run with the same facts on the same kind of machine."""
    rows, protocol = FOLDER / "calibration.csv", FOLDER / "calibration.json"
    if not (rows.is_file() and protocol.is_file()):
        return {}, {}
    before = json.loads(protocol.read_text())
    seconds = before.pop("seconds")
    if before != {**facts, "machine": machine()}:
        return {}, {}
    known = {
        method: table.drop(columns=["method", "simulation"]).dropna(axis=1).astype(int)
        for method, table in pd.read_csv(rows).groupby("method")
        if method in PRIORS
    }
    return known, {method: seconds[method] for method in known}


def _write(tables: dict[str, pd.DataFrame], facts: dict[str, object]) -> None:
    body, ranks = [], []
    for method in (name for name in PRIORS if name in tables):
        table = tables[method]
        p = dict(zip(table, uniformity(table.to_numpy(), KEPT), strict=True))
        wrong = {name: value for name, value in p.items() if NARROW in name}
        right = {name: value for name, value in p.items() if name not in wrong}
        worst = min(right, key=right.__getitem__)
        times = (min(1.0, min(found.values()) * len(found)) for found in (right, wrong))
        cells = (f"{value:.3f}" if value >= 0.001 else f"{value:.0e}" for value in times)
        body.append([method, str(len(right)), worst, *cells])
        ranks.append(table.assign(method=method, simulation=np.arange(len(table))))
    columns = ["prior", "things ranked", "the worst", "p × number", "the same, too narrow"]
    page = PAGE.format(
        simulations=facts["simulations"],
        kept=KEPT,
        thinning=THINNING,
        bins=BINS,
        table=markdown(columns, body),
    )
    write("calibration", pd.concat(ranks), page, facts)
