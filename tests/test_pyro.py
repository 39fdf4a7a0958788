"""Model and guide inside programs of the user's own."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI as PyroSVI
from pyro.infer import Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.optim import Adam

from bmm_multitask_learning import (
    NUTS,
    Bernoulli,
    Family,
    MultitaskModel,
    PooledTasks,
    SharedGaussian,
    TaskClustering,
    TaskData,
    fit,
)
from bmm_multitask_learning.engines.program import joint_draws

from .cases import PRIORS, make_data


@pytest.fixture(autouse=True)
def clean_state():
    """Users' programs have a parameter store; the next test must not see it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    pyro.clear_param_store()


def fitted(prior, kind="gaussian", likelihood=None, engine=None, **sizes):
    data = make_data(kind, **sizes)
    model = MultitaskModel(prior, likelihood)
    result = fit(model, data, engine=engine, progress=False)
    return model, data, result


@pytest.mark.parametrize("name", PRIORS)
def test_every_draw_of_the_guide_gives_the_bound_of_the_fit(name):
    """log p(D, W, η) − log q(W) is log p(D, η) at any W if q(W) is the exact posterior."""
    model, data, result = fitted(PRIORS[name](), num_features=2, rows=(9, 4, 12))
    with torch.no_grad():
        for _ in range(3):
            loss = Trace_ELBO().loss(model.model, model.guide, data)
            assert -loss == pytest.approx(result.bound, rel=1e-6, abs=1e-5)


def test_a_bound_is_below_what_the_guide_gives_for_classes():
    """The quadratic bound of the closed form is a lower bound on Pyro's own ELBO."""
    model, data, result = fitted(SharedGaussian(), "bernoulli", Bernoulli(), num_features=2)
    with torch.no_grad():
        elbo = -Trace_ELBO(num_particles=400).loss(model.model, model.guide, data)
    assert result.bound < elbo < result.bound + 2


def test_the_guide_has_the_sites_of_the_model_and_no_others():
    families = {"a": Family(SharedGaussian()), "b": Family(TaskClustering(2, n_init=1))}
    model = MultitaskModel(families=families)
    data = {"a": make_data(), "b": make_data(seed=1)}
    fit(model, data, progress=False)
    of_model = poutine.trace(model.model).get_trace(data)
    of_guide = poutine.trace(model.guide).get_trace(data)
    latent = {n for n in of_model.stochastic_nodes if "targets" not in n}
    assert set(of_guide.stochastic_nodes) == latent
    assert {"a/weights", "b/weights", "a/noise_level"} < latent
    for name in latent:
        assert of_guide.nodes[name]["value"].shape == of_model.nodes[name]["value"].shape


@pytest.mark.parametrize("prior", [SharedGaussian("isotropic"), PooledTasks()])
def test_predictive_draws_from_the_posterior(prior):
    model, data, _ = fitted(prior, num_features=2)
    draws = Predictive(model.model, guide=model.guide, num_samples=1500)(data)
    weights = draws["tasks/weights"].reshape(1500, -1, 2)
    exact = model.family().posterior
    exact = exact if len(exact.means) > 1 else exact.expand(1)
    error = exact.std / 1500**0.5
    assert ((weights.mean(0) - exact.mean).abs() < 5 * error).all()
    torch.testing.assert_close(weights.std(0), exact.std, rtol=0.1, atol=0)
    level = model.likelihood.get_buffer("noise_level")
    assert (draws["tasks/noise_level"].reshape(1500, -1) == level).all()


def test_a_program_goes_on_from_the_weights():
    """What tasks' weights say of a second measurement of the tasks, q(W) held fixed."""
    model, data, _ = fitted(SharedGaussian(), rows=(30,) * 25, num_features=2, noise=0.3)
    slope = model.weights.mean[:, 0]
    noise = 0.05 * torch.randn(25, dtype=torch.float64)
    measured = 1.5 - 2 * slope + noise

    def program(data, measured):
        weights = model.model(data)["tasks"][:, 0]
        a, b = (pyro.sample(n, dist.Normal(torch.zeros(()).double(), 10.0)) for n in "ab")
        with pyro.plate("of tasks", len(measured)):
            pyro.sample("measured", dist.Normal(a + b * weights[:, 0], 0.2), obs=measured)

    rest = AutoNormal(poutine.block(program, expose=["a", "b"]))

    def guide(data, measured):
        model.guide(data)
        rest(data, measured)

    svi = PyroSVI(program, guide, Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(400):
        svi.step(data, measured)
    found = rest.median()
    assert float(found["a"]) == pytest.approx(1.5, abs=0.2)
    assert float(found["b"]) == pytest.approx(-2.0, abs=0.2)


def test_draws_of_nuts_come_jointly():
    """Weights belong to their own draw of the hyperparameters."""
    model, data, _ = fitted(
        SharedGaussian("isotropic"),
        engine=NUTS(num_samples=12, warmup_steps=10, max_tree_depth=3),
        num_features=2,
    )
    family = model.family()
    generator = torch.Generator().manual_seed(0)
    _, eta = joint_draws(family, 24, generator)
    posterior = family.posterior
    for site, value in eta.items():
        assert torch.equal(value, family.kept_draws[site].repeat_interleave(2, 0))
    # the posterior given one draw has that draw's moments
    many, _ = joint_draws(family, 12 * 3000, generator)
    many = many.reshape(12, 3000, 3, 1, 2)
    torch.testing.assert_close(many.mean(1), posterior.means.movedim(1, 0), atol=0.1, rtol=0)
    trace = poutine.trace(model.guide).get_trace(data)
    site = next(iter(family.kept_draws))
    drawn = trace.nodes[f"tasks/{site}"]["value"]
    assert any(torch.equal(drawn, value) for value in family.kept_draws[site])


def test_rows_of_other_tasks_are_refused():
    model, data, _ = fitted(SharedGaussian(), num_features=2)
    other = TaskData(data.x, data.y, [f"task {k}" for k in data.task.tolist()])
    with pytest.raises(ValueError, match="data on the model's own tasks, in the same order"):
        model.model(other)
    with pytest.raises(ValueError, match="Call fit"):
        MultitaskModel().model(data)


def test_tasks_that_are_one_vector_have_no_density_of_their_own():
    model, _, _ = fitted(PooledTasks(), num_features=2)
    one = model.family().posterior
    assert torch.isfinite(one.log_prob(one.means[:, 0]))
    with pytest.raises(RuntimeError, match="no joint density"):
        model.weights.log_prob(model.weights.means[:, 0])


def test_the_guide_needs_a_fit():
    model, data = MultitaskModel(), make_data()
    model.build(data)
    with pytest.raises(RuntimeError, match="call fit"):
        model.guide(data)
