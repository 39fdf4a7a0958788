"""Simulation-based calibration with free hyperparameters: NUTS against the prior it samples."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pyro
import torch
from pyro.infer import MCMC
from pyro.infer import NUTS as PyroNUTS
from pyro.infer.autoguide.initialization import init_to_value
from torch import Tensor
from tqdm.auto import tqdm

from bmm_multitask_learning import Gaussian, SharedGaussian, TaskPrior
from bmm_multitask_learning.engines.nuts import _collapsed
from bmm_multitask_learning.hyperparameters import Eta
from tests.calibration import BINS, quantities, rank, uniformity
from tests.cases import built_model, draw_eta, make_data

from .record import markdown, write

SIMULATIONS, WARMUP, KEPT, THINNING = 100, 80, 19, 5
PRIORS: dict[str, Callable[[], TaskPrior]] = {
    "SharedGaussian, isotropic": lambda: SharedGaussian("isotropic"),
    "SharedGaussian, diagonal": lambda: SharedGaussian("diagonal"),
}
WEIGHTS = ("one weight", "sum over tasks", "product of two tasks", "size", "log likelihood")
NARROW = ", variances × 0.7"
PAGE = """
Hyperparameters, weights (4 tasks of 1 to 5 rows, 2 features) and targets drawn from the model,
then {kept} posterior draws by NUTS, every {thinning}th of a chain; {simulations} simulations. The
scale Ψ of the hyperprior, which a fit takes from the data, is held. Ranks of the truth among the
draws must be uniform: p of χ² in {bins} bins, of which the smallest must exceed .01 over their
number. The last rows are of posterior draws that are made too narrow.

{table}
"""


def simulate(make: Callable[[], TaskPrior], seed: int) -> dict[str, int]:
    """Ranks of one draw of everything among the draws of NUTS."""
    data = make_data(rows=(4, 2, 5, 1), num_features=2)  # the design alone is used
    model = built_model(make(), Gaussian(), data, seed=0)
    family = model.family()
    prior, likelihood = family.prior, model.likelihood
    truth = {**draw_eta(prior, 2 * seed), **draw_eta(likelihood, 2 * seed + 1)}
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        W = prior(truth).sample()
        f = torch.einsum("nd,nd->n", data.x, W[data.task, 0])
        data = data._replace(y=f + truth["noise_level"].rsqrt() * torch.randn_like(f))
    rows = model.rows("tasks", data)
    draws = _nuts(_collapsed(family, "tasks", rows), truth, seed)
    summary = likelihood.summarise(rows)

    def ranked(eta: Eta, W: Tensor, centre: Tensor, width: float) -> Tensor:
        factors = likelihood.statistics(summary, eta)
        return quantities(centre + width * (W - centre), factors)

    posteriors = [prior.condition(likelihood.statistics(summary, eta), eta) for eta in draws]
    weights = [posterior.draw(1, generator)[0] for posterior in posteriors]
    means = torch.stack([posterior.mean[:, None] for posterior in posteriors])
    true = torch.cat([value.flatten() for value in truth.values()])
    given = torch.stack([torch.cat([v.flatten() for v in eta.values()]) for eta in draws])
    names = [
        name if value.numel() == 1 else f"{name} {i}"
        for name, value in truth.items()
        for i in range(value.numel())
    ]
    found = dict(zip(names, rank(true, given), strict=True))
    for width, label in ((1.0, ""), (0.7**0.5, NARROW)):
        drawn = torch.stack(
            [ranked(*each, width) for each in zip(draws, weights, means, strict=True)]
        )
        ranks = rank(ranked(truth, W, W, 1.0), drawn)
        found |= dict(zip((name + label for name in WEIGHTS), ranks, strict=True))
    return {name: int(value) for name, value in found.items()}


def _nuts(program: Callable[[], None], start: Eta, seed: int) -> list[Eta]:
    """Draws of hyperparameters; a start in the truth is a draw from the posterior already."""
    values = {f"tasks/{name}": value for name, value in start.items()}
    kernel = PyroNUTS(program, max_tree_depth=5, init_strategy=init_to_value(values=values))
    mcmc = MCMC(kernel, KEPT * THINNING, WARMUP, disable_progbar=True)
    with torch.random.fork_rng(), pyro.validation_enabled(False):
        torch.manual_seed(seed)
        mcmc.run()
    samples = {name: value[::THINNING] for name, value in mcmc.get_samples().items()}
    return [{name: samples[f"tasks/{name}"][s] for name in start} for s in range(KEPT)]


def main(simulations: int = SIMULATIONS) -> None:
    """Measure, and write the tables."""
    tables, body = [], []
    for method, make in PRIORS.items():
        seeds = tqdm(range(simulations), desc=method, unit="chain")
        table = pd.DataFrame([simulate(make, seed) for seed in seeds])
        p = uniformity(table.to_numpy(), KEPT)
        body += [
            [method, str(name), f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"]
            for name, value in zip(table, p, strict=True)
        ]
        right = p[[NARROW not in str(name) for name in table]]
        body.append([method, "**smallest × number**", f"{right.min() * len(right):.2f}"])
        tables.append(table.assign(method=method, simulation=np.arange(simulations)))
    page = PAGE.format(
        simulations=simulations,
        kept=KEPT,
        thinning=THINNING,
        bins=BINS,
        table=markdown(["prior", "what is ranked", "p"], body),
    )
    facts = {"benchmark": "calibration", "simulations": simulations, "warmup": WARMUP}
    write("calibration", pd.concat(tables), page, facts)
