"""`SharedGaussian` on School as a NumPyro model: what others' engines need for the same."""

from __future__ import annotations

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpy.typing import NDArray
from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO, init_to_value
from numpyro.infer.autoguide import AutoNormal

numpyro.enable_x64()
Array = NDArray[np.float64]


def model(x: Array, y: Array, task: NDArray[np.int64], num_tasks: int) -> None:
    """Tasks around a learned centre with a learned covariance, non-centred."""
    D = x.shape[1]
    centre_scale = numpyro.sample("centre_scale", dist.HalfNormal(5.0))
    centre = numpyro.sample("centre", dist.Normal(0, 1).expand([D]).to_event(1))
    scale = numpyro.sample("scale", dist.HalfNormal(2.0).expand([D]).to_event(1))
    correlation = numpyro.sample("correlation", dist.LKJCholesky(D, 1.0))
    noise = numpyro.sample("noise", dist.HalfNormal(20.0))
    with numpyro.plate("tasks", num_tasks):
        z = numpyro.sample("z", dist.Normal(0, 1).expand([D]).to_event(1))
    weights = numpyro.deterministic(
        "weights", centre_scale * centre + z @ (scale[:, None] * correlation).T
    )
    mean = jnp.einsum("nd,nd->n", x, weights[task])
    numpyro.sample("y", dist.Normal(mean, noise), obs=y)


def svi(
    train: tuple[Array, Array, NDArray[np.int64]],
    num_tasks: int,
    score: Callable[[Array], float],
    target: float,
    *,
    limit: float,
) -> dict[str, float]:
    """Steps of AutoNormal until predictions by the mean weights reach the target."""
    start = time.perf_counter()
    guide = AutoNormal(model, init_scale=0.05)
    engine = SVI(model, guide, numpyro.optim.Adam(0.01), Trace_ELBO())
    arguments = (*train, num_tasks)
    state = engine.init(jax.random.PRNGKey(0), *arguments)

    @jax.jit
    def advance(state: object) -> object:
        return jax.lax.fori_loop(0, 100, lambda _, s: engine.update(s, *arguments)[0], state)

    reached, best, steps, compiled = False, -np.inf, 0, 0.0
    while time.perf_counter() - start < limit and not reached:
        state = jax.block_until_ready(advance(state))
        compiled = compiled or time.perf_counter() - start
        steps += 100
        best = max(best, score(_weights(guide.median(engine.get_params(state)))))
        reached = best >= target
    return {
        "seconds": time.perf_counter() - start,
        "start": compiled,
        "best": best,
        "reached": reached,
        "steps": steps,
    }


def nuts(
    train: tuple[Array, Array, NDArray[np.int64]],
    num_tasks: int,
    score: Callable[[Array], float],
    *,
    draws: int = 100,
) -> dict[str, float]:
    """One chain, as many draws of warm-up as kept ones."""
    start = time.perf_counter()
    kernel = NUTS(model, init_strategy=init_to_value(values={"noise": 10.0}))
    chain = MCMC(kernel, num_warmup=draws, num_samples=draws, progress_bar=False)
    chain.run(jax.random.PRNGKey(0), *train, num_tasks)
    weights = np.asarray(chain.get_samples()["weights"]).mean(0)
    return {"seconds": time.perf_counter() - start, "best": score(weights), "steps": 2 * draws}


def _weights(values: dict[str, jax.Array]) -> Array:
    centre = values["centre_scale"] * values["centre"]
    root = values["scale"][:, None] * values["correlation"]
    return np.asarray(centre + values["z"] @ root.T)
