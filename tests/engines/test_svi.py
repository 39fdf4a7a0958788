"""SVI: unbiased minibatches, trainable backbones, families, other likelihoods, failures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pyro import poutine
from torch import nn

from bmm_multitask_learning import (
    SVI,
    Bernoulli,
    CoordinateAscent,
    Family,
    Gaussian,
    MultitaskModel,
    Poisson,
    PooledTasks,
    SharedGaussian,
    StudentT,
    TaskData,
    fit,
)
from bmm_multitask_learning.backbones import MLP
from bmm_multitask_learning.engines import NonFiniteBoundError
from bmm_multitask_learning.engines.start import start_sites
from bmm_multitask_learning.engines.variational_program import VariationalProgram
from bmm_multitask_learning.sites import expected_log_prob, latent_moments

from .. import asserts
from ..cases import LIKELIHOODS, PRIORS, make_data


def nonlinear(seed, rows_per_task=60):
    """8 tasks that share the hidden features sin(2x₁) and x₂², and a different mix of them."""
    rng = np.random.default_rng(seed)
    task = np.repeat(np.arange(8), rows_per_task)
    x = rng.uniform(-1.5, 1.5, (len(task), 2))
    hidden = np.column_stack([np.sin(2 * x[:, 0]), x[:, 1] ** 2 - 0.75])
    weights = rng.standard_normal((8, 2)) * 0.5 + [1.5, -1.0]
    y = (hidden * weights[task]).sum(1) + 0.2 * rng.standard_normal(len(task))
    return TaskData(x, y, task)


def squared_error(model, data):
    labels = [data.tasks[k] for k in data.task.tolist()]
    return float((model.predict(data.x, labels).mean - data.y).square().mean())


# ---- minibatches ----------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [25, 26])
def test_one_batch_of_all_rows_is_all_rows(batch_size):
    asserts.assert_minibatch_unbiased(SharedGaussian, "gaussian", Gaussian, batch_size)


@pytest.mark.parametrize("prior_name", ["pooled", "shared-full", "clusters-full"])
@pytest.mark.parametrize("likelihood_name", ["gaussian", "gaussian-task"])
def test_statistics_stand_for_rows_in_the_bound(prior_name, likelihood_name):
    """Value, and gradient with respect to the backbone, are those of E_q[log p(y)] row by row."""
    data = make_data(rows=(7, 2, 11, 5), num_features=3, outputs=2)
    y = data.y.clone()
    y[3, 1] = y[8, 0] = torch.nan
    data = TaskData(data.x, y, data.task, weight=torch.linspace(0.5, 2.0, 25).double())
    backbone = nn.Linear(3, 6).double()
    model = MultitaskModel(PRIORS[prior_name](), LIKELIHOODS[likelihood_name](), backbone=backbone)
    model.build(data)
    family, generator = model.family(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        sites = start_sites(family, model.rows("tasks", data), generator, progress=False)
    program = VariationalProgram(model, {"tasks": data}, {"tasks": sites})
    program.load({"tasks": data})
    theta = {n: 1.5 * value for n, value in family.likelihood.eta.items()}
    by_statistics = program._expected_log_likelihood("tasks", family.posterior, theta)
    rows = program.batch["tasks"]
    moments = latent_moments(family.weights, rows)
    by_row = expected_log_prob(family.likelihood, rows, *moments, theta).sum()
    torch.testing.assert_close(by_statistics, by_row, rtol=1e-10, atol=0.0)
    found, expected = (
        torch.autograd.grad(value, backbone.weight, retain_graph=True)[0]
        for value in (by_statistics, by_row)
    )
    assert float(expected.abs().max()) > 1
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_minibatches_lead_where_all_rows_lead():
    data = make_data(rows=(60, 50, 40, 70), num_features=3)
    whole, parts = MultitaskModel(), MultitaskModel()
    fit(whole, data, engine=SVI(steps=200), progress=False)
    fit(parts, data, engine=SVI(steps=300, batch_size=32), progress=False)
    difference = (whole.weights.mean - parts.weights.mean) / whole.weights.std
    assert difference.abs().max() < 0.5
    assert (whole.weights.std / parts.weights.std).log().abs().max() < 0.15


@pytest.mark.parametrize("batch_size", [1, 4, 1000])
def test_batches_of_any_size(batch_size):
    """Single rows, batches that miss tasks, and batches larger than the data."""
    data = make_data(rows=(3, 1, 6), num_features=2)
    model = MultitaskModel()
    result = fit(model, data, engine=SVI(steps=30, batch_size=batch_size), progress=False)
    assert len(result.history) == 30
    assert np.isfinite(result.bound)
    assert torch.isfinite(model.predict(data.x, [0] * 10).std).all()


def test_svi_ends_near_the_closed_form():
    data = make_data(rows=(40, 30, 50, 20), num_features=3)
    svi, em = MultitaskModel(), MultitaskModel()
    result = fit(svi, data, engine=SVI(steps=150), progress=False)
    fit(em, data, engine=CoordinateAscent(), progress=False)
    assert np.mean(result.history[-30:]) > np.mean(result.history[:30]) - 0.5
    # EM takes the mode of the hyperparameters and SVI the centre of q(η): half an sd at 20 rows
    difference = (svi.weights.mean - em.weights.mean) / em.weights.std
    assert difference.abs().max() < 0.5


# ---- backbones and families -----------------------------------------------------------------


def test_mlp_beats_linear_features():
    train, test = nonlinear(0).split(0.5, seed=0)
    linear = MultitaskModel()
    fit(linear, train, progress=False)
    deep = MultitaskModel(backbone=MLP(2, [12], seed=0))
    result = fit(deep, train, engine=SVI(steps=300, lr=0.05), progress=False)
    assert squared_error(deep, test) < 0.35 * squared_error(linear, test)
    assert np.mean(result.history[-50:]) > np.mean(result.history[:50]) + 50


def test_fit_takes_svi_for_a_trainable_backbone_and_says_why():
    data = make_data(rows=(6, 7), num_features=2)
    model = MultitaskModel(backbone=MLP(2, [3]))
    result = fit(model, data, engine=SVI(steps=2), progress=False)
    assert result.engine == "SVI"
    from bmm_multitask_learning.fitting import choose_engine

    engine, reason = choose_engine(model)
    assert isinstance(engine, SVI)
    assert "backbone has parameters" in reason


def test_families_of_different_outputs_share_one_backbone():
    first = nonlinear(1, 25)
    second = nonlinear(2, 20)
    binary = TaskData(second.x, (second.y > 0).double(), [f"b{k}" for k in second.task.tolist()])
    counts = make_data("bernoulli", rows=(12, 9, 14), num_features=2)
    model = MultitaskModel(
        backbone=MLP(2, [8], seed=0),
        families={
            "real": Family(),
            "binary": Family(PooledTasks(), Bernoulli()),
            "counts": Family(SharedGaussian("isotropic"), Poisson()),
        },
    )
    before = model.backbone.layers[0].weight.detach().clone()
    data = {"counts": counts, "real": first, "binary": binary}
    for batch_size in (None, 16):
        result = fit(
            model, data, engine=SVI(steps=60, lr=0.04, batch_size=batch_size), progress=False
        )
        assert np.isfinite(result.bound)
    assert not torch.equal(before, model.backbone.layers[0].weight)
    real = model.predict(first.x, first.task, family="real")
    assert float((real.mean - first.y).square().mean()) < 0.5 * float(first.y.var())
    chance = model.predict(binary.x, "b1", family="binary").mean
    assert ((chance > 0) & (chance < 1)).all()
    assert model["counts"].weights.mean.shape == (3, 9)
    with pytest.raises(ValueError, match="say which with family="):
        model.predict(first.x, 0)


def test_several_families_of_closed_form_add_their_bounds():
    one, two = make_data(rows=(9, 8)), make_data("bernoulli", rows=(5, 6, 7), num_features=3)
    both = MultitaskModel(families={"a": Family(), "b": Family(likelihood=Bernoulli())})
    total = fit(both, {"b": two, "a": one}, progress=False)
    alone = [
        fit(MultitaskModel(), one, progress=False).bound,
        fit(MultitaskModel(likelihood=Bernoulli()), two, progress=False).bound,
    ]
    assert total.bound == pytest.approx(sum(alone), rel=1e-9)


def test_a_frozen_backbone_is_left_alone():
    backbone = MLP(2, [4], seed=2).requires_grad_(False)
    before = {n: p.clone() for n, p in backbone.state_dict().items()}
    data = make_data(rows=(8, 9), num_features=2)
    fit(MultitaskModel(backbone=backbone), data, engine=SVI(steps=20), progress=False)
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, before[name])


# ---- likelihoods without closed form --------------------------------------------------------


def test_poisson_recovers_rates():
    rng = np.random.default_rng(0)
    K, n = 10, 60
    weights = rng.standard_normal((K, 2)) * 0.3 + [0.8, -0.5]
    task = np.repeat(np.arange(K), n)
    x = np.column_stack([np.ones(K * n), rng.standard_normal(K * n)])
    y = rng.poisson(np.exp((x * weights[task]).sum(1))).astype(float)
    model = MultitaskModel(likelihood=Poisson())
    result = fit(model, TaskData(x, y, task), engine=SVI(steps=300), progress=False)
    z = (model.weights.mean.numpy() - weights) / model.weights.std.numpy()
    # 20 standard scores: their mean square is 1 with sd .32
    assert 0.3 < np.mean(z**2) < 2.2
    assert np.abs(model.weights.mean.numpy() - weights).max() < 0.35
    assert result.engine == "SVI"


def test_student_t_is_not_moved_by_outliers():
    rng = np.random.default_rng(1)
    K, n = 8, 40
    weights = rng.standard_normal((K, 3)) * 0.3 + [1.0, -1.0, 0.5]
    task = np.repeat(np.arange(K), n)
    x = rng.standard_normal((K * n, 3))
    y = (x * weights[task]).sum(1) + 0.3 * rng.standard_normal(K * n)
    y[::20] += 15.0
    data = TaskData(x, y, task)
    robust, plain = MultitaskModel(likelihood=StudentT(df=3.0)), MultitaskModel()
    fit(robust, data, engine=SVI(steps=300, lr=0.05), progress=False)
    fit(plain, data, progress=False)
    error = [float(np.abs(m.weights.mean.numpy() - weights).mean()) for m in (robust, plain)]
    assert error[0] < 0.12
    assert error[0] < 0.4 * error[1]
    scale = float(robust.likelihood.eta["noise_precision"].rsqrt())
    assert 0.15 < scale < 0.45


def test_fit_takes_svi_where_there_is_no_closed_form_and_says_why():
    from bmm_multitask_learning.fitting import choose_engine

    engine, reason = choose_engine(MultitaskModel(likelihood=Poisson()))
    assert isinstance(engine, SVI)
    assert "Poisson has no closed form" in reason
    assert isinstance(choose_engine(MultitaskModel())[0], CoordinateAscent)


# ---- stopping and failing -------------------------------------------------------------------


class Broken(nn.Module):
    """Features that become NaN after some passes."""

    def __init__(self, good_passes):
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.left = good_passes

    def forward(self, x):
        self.left -= 1
        return x * self.scale * (1.0 if self.left >= 0 else torch.nan)


@pytest.mark.parametrize("likelihood", [Gaussian(), Bernoulli(), Poisson()])
def test_a_bound_that_is_not_finite_stops_the_fit_with_advice(likelihood):
    data = make_data("bernoulli", rows=(8, 9), num_features=2)
    model = MultitaskModel(likelihood=likelihood, backbone=Broken(20))
    with pytest.raises(
        NonFiniteBoundError, match=r"at step 1\d; first at: features of tasks. Try a smaller lr"
    ):
        fit(model, data, engine=SVI(steps=200), progress=False)


def test_a_learning_rate_that_breaks_the_fit_is_named():
    data = make_data(rows=(8, 9), num_features=2)
    with pytest.raises(NonFiniteBoundError, match="smaller lr"):
        fit(MultitaskModel(), data, engine=SVI(steps=200, lr=1e6), progress=False)


def test_early_stopping_by_the_bound():
    data = make_data(rows=(20, 25), num_features=2)
    result = fit(MultitaskModel(), data, engine=SVI(steps=3000, patience=2), progress=False)
    assert result.converged
    assert len(result.history) < 3000
    never = fit(MultitaskModel(), data, engine=SVI(steps=100), progress=False)
    assert not never.converged


def test_early_stopping_by_held_out_rows_keeps_the_best_state():
    data = nonlinear(3, 12)
    model = MultitaskModel(backbone=MLP(2, [40, 40], seed=0))
    engine = SVI(steps=1500, lr=0.05, validation_fraction=0.3, patience=3)
    result = fit(model, data, engine=engine, progress=False)
    assert result.converged
    assert len(result.history) < 1500
    assert np.isfinite(result.bound)


def test_weight_decay_shrinks_the_backbone():
    data = nonlinear(4, 10)
    size = {}
    for decay in (0.0, 5.0):
        model = MultitaskModel(backbone=MLP(2, [10], seed=0))
        fit(model, data, engine=SVI(steps=100, lr=0.02, weight_decay=decay), progress=False)
        size[decay] = sum(float(p.detach().square().sum()) for p in model.backbone.parameters())
    assert size[5.0] < 0.5 * size[0.0]


def test_more_particles_make_the_bound_quieter():
    data = make_data(rows=(10, 12), num_features=2)
    spread = {}
    for particles in (1, 12):
        engine = SVI(steps=60, lr=1e-6, num_particles=particles)
        history = fit(MultitaskModel(), data, engine=engine, progress=False).history
        spread[particles] = np.std(history[5:])
    assert spread[12] < 0.6 * spread[1]


def test_hyperparameters_of_the_guide_do_not_collapse():
    """The trap: at few rows a task, tasks differ, and their covariance must not go to zero."""
    data = make_data(rows=(4,) * 30, num_features=2, spread=1.0, seed=2)
    for likelihood in (Gaussian(), StudentT()):
        model = MultitaskModel(SharedGaussian("isotropic"), likelihood)
        fit(model, data, engine=SVI(steps=200, lr=0.04), progress=False)
        covariance = model.prior.covariance_matrix[0].diagonal()
        assert (covariance > 0.4).all()
        assert (covariance < 2.5).all()


# ---- a prior with a generative half only ----------------------------------------------------


def test_conditioning_in_the_guide_sees_every_site_once():
    data = make_data(rows=(5, 6), num_features=2)
    model = MultitaskModel()
    model.build(data)
    sites = start_sites(
        model.family(), model.rows("tasks", data), torch.Generator().manual_seed(0), progress=False
    )
    program = VariationalProgram(model, {"tasks": data}, {"tasks": sites})
    program.load({"tasks": data})
    with torch.random.fork_rng():
        guide = poutine.trace(program.guide).get_trace()
        reached = poutine.trace(poutine.replay(program.model, trace=guide)).get_trace()
    hidden = set(guide.stochastic_nodes)
    assert hidden == set(reached.stochastic_nodes)
    assert hidden == {
        "tasks/centre_precision",
        "tasks/precision",
        "tasks/level",
        "tasks/noise_level",
    }
