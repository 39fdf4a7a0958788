"""The hierarchical model of `SharedGaussian` by NumPyro's NUTS, as a method of a benchmark."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import expit, log_expit, logsumexp
from scipy.stats import norm

from .protocol import Array, CannotError, Forecast, Method, Problem, Rows, cannot

WARMUP, DRAWS = 200, 200
MOST_WEIGHTS = 4000
NAME = "NumPyro NUTS (hierarchical)"
TWO_CLASSES: dict[str, Method] = {NAME: cannot("two classes at most")}


def hierarchical(*, yes_or_no: bool = False) -> dict[str, Method]:
    r"""NumPyro's NUTS: one chain of 200 draws after 200 of warm-up.

    $w_k = m + \tau \odot z_k$ with $z_k \sim N(0, I)$, $m_d \sim N(0, s^2)$, $s \sim
    \text{Half-N}(5^2)$, $\tau_d \sim \text{Half-N}(1)$ and noise of deviation
    $\sigma \sim \text{Half-N}(1)$, of targets that have unit variance.

    Args:
        yes_or_no: targets are 0 or 1, of probability $1 / (1 + e^{-x^\top w_k})$.
    """

    def forecast(problem: Problem) -> Forecast:
        draws = _draws(problem.train, problem.num_tasks, yes_or_no=yes_or_no)
        return (_classes if yes_or_no else _numbers)(problem, draws)

    return {NAME: forecast}


def _scale(train: Rows) -> float:
    return float(train.y.std()) or 1.0


def _latent(test: Rows, weights: Array) -> Array:
    return np.einsum("nd,snd->sn", test.x, weights[:, test.task])


def _classes(problem: Problem, draws: dict[str, Array]) -> Forecast:
    f = _latent(problem.test, draws["weights"])
    log_prob = log_expit(np.where(problem.test.y == 1, f, -f))
    return Forecast(expit(f).mean(0), logsumexp(log_prob, 0) - np.log(len(f)))


def _numbers(problem: Problem, draws: dict[str, Array]) -> Forecast:
    unit = _scale(problem.train)
    f, noise = unit * _latent(problem.test, draws["weights"]), unit * draws["noise"][:, None]
    log_prob = logsumexp(norm.logpdf(problem.test.y, f, noise), 0) - np.log(len(f))
    fresh = f + noise * np.random.default_rng(0).standard_normal(f.shape)
    interval = np.quantile(fresh, (0.05, 0.95), axis=0).T
    return Forecast(f.mean(0), log_prob, interval)


def _draws(train: Rows, num_tasks: int, *, yes_or_no: bool) -> dict[str, Array]:
    """Weights (S, K, D) and noise (S,) of targets of unit variance."""
    D = train.x.shape[1]
    if num_tasks * D > MOST_WEIGHTS:
        raise CannotError(f"more than {MOST_WEIGHTS} weights")
    try:
        import jax
        import numpyro
        import numpyro.distributions as dist
        from numpyro.infer import MCMC, NUTS
    except ImportError:
        raise CannotError("NumPyro is not installed") from None

    def model(x: Any, y: Any) -> None:
        size = numpyro.sample("size", dist.HalfNormal(5.0))
        centre = numpyro.sample("centre", dist.Normal(0, 1).expand([D]).to_event(1))
        scale = numpyro.sample("scale", dist.HalfNormal(1.0).expand([D]).to_event(1))
        with numpyro.plate("tasks", num_tasks):
            own = numpyro.sample("own", dist.Normal(0, 1).expand([D]).to_event(1))
        weights = numpyro.deterministic("weights", size * centre + scale * own)
        f = (x * weights[train.task]).sum(-1)
        if yes_or_no:
            law = dist.BernoulliLogits(f)
        else:
            law = dist.Normal(f, numpyro.sample("noise", dist.HalfNormal(1.0)))
        numpyro.sample("y", law, obs=y)

    chain = MCMC(NUTS(model), num_warmup=WARMUP, num_samples=DRAWS, progress_bar=False)
    chain.run(jax.random.PRNGKey(0), train.x, train.y / (1 if yes_or_no else _scale(train)))
    return {name: np.asarray(draws, float) for name, draws in chain.get_samples().items()}
