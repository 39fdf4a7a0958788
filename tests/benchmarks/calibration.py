"""Simulation-based calibration with free hyperparameters: NUTS against the prior it samples."""

from __future__ import annotations

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

from bmm_multitask_learning import Gaussian, IndependentTasks, SharedGaussian, TaskPrior
from bmm_multitask_learning.hyperparameters import Eta
from bmm_multitask_learning.likelihoods.gaussian import Moments
from bmm_multitask_learning.statistics import TaskStatistics
from tests.calibration import BINS, quantities, rank, uniformity
from tests.cases import built_model, make_data

from .record import markdown, write

SIMULATIONS, WARMUP, KEPT, THINNING = 200, 200, 19, 6
PRIORS: dict[str, Callable[[], TaskPrior]] = {
    "IndependentTasks": IndependentTasks,
    "SharedGaussian, isotropic": lambda: SharedGaussian("isotropic"),
    "SharedGaussian, diagonal": lambda: SharedGaussian("diagonal"),
    "SharedGaussian, full": SharedGaussian,
}
WEIGHTS = ("one weight", "sum over tasks", "product of two tasks", "size", "log likelihood")
NARROW = ", variances × 0.5"
PAGE = """
Hyperparameters, weights (4 tasks of 1 to 5 rows, 2 features) and targets are drawn from the model,
{simulations} times; then {kept} times from the posterior, every {thinning}th draw of NUTS, the
weights integrated out. One chain samples all simulations side by side: their posteriors are
independent. The scale Ψ of the hyperprior, which a fit takes from the data, is held. Ranks of the
truth among the draws must be uniform: p of χ² in {bins} bins, of which the smallest must exceed
.01 over their number. The last rows of each prior are of draws made too narrow, and must fail.

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
    generator = torch.Generator().manual_seed(0)
    rows = []
    for s in tqdm(range(simulations), desc="ranks"):
        draws = [_at(_at(samples, i), s) for i in range(KEPT)]
        given = [factors(b[s], c[s], eta) for eta in draws]
        found = _ranks_of_hyperparameters(_at(truth, s), draws)
        posteriors = [prior.condition(*each) for each in zip(given, draws, strict=True)]
        drawn = [posterior.draw(1, generator)[0] for posterior in posteriors]
        true = quantities(weights[s], factors(b[s], c[s], _at(truth, s)))
        for width, label in ((1.0, ""), (0.5**0.5, NARROW)):
            values = [
                quantities(p.means[:, 0] + width * (W - p.means[:, 0]), factor)
                for p, W, factor in zip(posteriors, drawn, given, strict=True)
            ]
            names = (name + label for name in WEIGHTS)
            found |= dict(zip(names, rank(true, torch.stack(values)), strict=True))
        rows.append({name: int(value) for name, value in found.items()})
    return pd.DataFrame(rows)


def _at(values: Eta, index: int) -> Eta:
    return {name: value[index] for name, value in values.items()}


def _ranks_of_hyperparameters(truth: Eta, draws: list[Eta]) -> dict[str, int]:
    found = {}
    for name, value in truth.items():
        below = rank(value.flatten(), torch.stack([eta[name].flatten() for eta in draws]))
        labels = [name] if len(below) == 1 else [f"{name} {i}" for i in range(len(below))]
        found |= dict(zip(labels, below, strict=True))
    return found


def main(simulations: int = SIMULATIONS) -> None:
    """Measure, and write the tables."""
    tables, body, seconds = [], [], {}
    for method, make in PRIORS.items():
        torch.manual_seed(0)
        started = time.perf_counter()
        table = measure(make, simulations)
        seconds[method] = round(time.perf_counter() - started)
        p = dict(zip(table, uniformity(table.to_numpy(), KEPT), strict=True))
        right = [value for name, value in p.items() if NARROW not in name]
        p["**smallest of the right ones × number**"] = min(1.0, min(right) * len(right))
        body += [
            [method, name, f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"]
            for name, value in p.items()
        ]
        tables.append(table.assign(method=method, simulation=np.arange(simulations)))
    page = PAGE.format(
        simulations=simulations,
        kept=KEPT,
        thinning=THINNING,
        bins=BINS,
        table=markdown(["prior", "what is ranked", "p"], body),
    )
    facts = {"benchmark": "calibration", "warmup": WARMUP, "seconds": seconds}
    write("calibration", pd.concat(tables), page, facts)
