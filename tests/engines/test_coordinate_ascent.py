"""Closed form: what it reports never falls, and ends where the gradient is zero."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from bmm_multitask_learning import CoordinateAscent, Gaussian, MultitaskModel, PooledTasks, fit
from bmm_multitask_learning.backbones import MLP
from bmm_multitask_learning.engines.coordinate_ascent import Ascent

from ..cases import LIKELIHOODS, PRIORS, make_data

ALL = list(itertools.product(PRIORS, LIKELIHOODS))
# bounds converge slowly, those of clusters slowest: of two classes one prior that reads task
# features is enough, of four the simplest of each other method
QUICK = ("shared-isotropic", "hierarchy-isotropic", "sparse", "covariance-isotropic")
SLOW = {pair for pair in ALL if pair[1] == "categorical" and pair[0] not in QUICK}
SLOW |= {("clusters-task-mean", "bernoulli"), ("clusters-gating-task-mean", "bernoulli")}
# what `TaskPrior.refresh` moves: tests/test_task_mean.py
BETWEEN_CLIMBS = {"slopes"}
SOME_SLOW = [pytest.param(*pair, marks=[pytest.mark.slow] * (pair in SLOW)) for pair in ALL]


def started(prior_name, likelihood_name, *, rows=(7, 2, 11, 5), seed=0):
    """The state of a fit after the first start, before any step."""
    data = make_data(likelihood_name.split("-")[0], rows=rows, num_features=3, seed=seed)
    model = MultitaskModel(PRIORS[prior_name](), LIKELIHOODS[likelihood_name]())
    model.build(data)
    family = model.family()
    rows = model.rows("tasks", data)
    family.likelihood.initialise(rows)
    ascent = Ascent(family, rows)
    family.prior.initialise(ascent.statistics(), torch.Generator().manual_seed(seed), 0)
    return ascent


def assert_never_falls(history):
    history = np.asarray(history)
    assert len(history) > 2
    assert np.isfinite(history).all()
    fall = -np.diff(history) / np.maximum(1.0, np.abs(history[:-1]))
    assert fall.max() <= 1e-8, f"fell by {fall.max():.2g} at iteration {fall.argmax() + 1}"


@pytest.mark.parametrize(("prior_name", "likelihood_name"), SOME_SLOW)
def test_bound_never_falls(prior_name, likelihood_name):
    data = make_data(likelihood_name.split("-")[0], rows=(7, 2, 11, 5), num_features=3)
    model = MultitaskModel(PRIORS[prior_name](), LIKELIHOODS[likelihood_name]())
    engine = CoordinateAscent(max_iter=25, tol=1e-13)
    assert_never_falls(fit(model, data, engine=engine, progress=False).history)


@pytest.mark.parametrize(("prior_name", "likelihood_name"), ALL)
def test_each_update_alone_does_not_lower_the_bound(prior_name, likelihood_name):
    ascent = started(prior_name, likelihood_name)
    family = ascent.family
    for _ in range(6):
        posterior = ascent.posterior()
        before = float(ascent.bound(posterior))
        family.prior.update(posterior)
        posterior = ascent.posterior()
        between = float(ascent.bound(posterior))
        assert between >= before - 1e-8 * abs(before), "the prior's update lowers the bound"
        ascent.summary = family.likelihood.update(
            ascent.summary, family.prior.expand(posterior, ascent.factors())
        )
        after = float(ascent.bound(ascent.posterior()))
        assert after >= between - 1e-8 * abs(between), "the likelihood's update lowers the bound"


@pytest.mark.parametrize(("prior_name", "likelihood_name"), SOME_SLOW)
def test_gradient_is_zero_where_it_stops(prior_name, likelihood_name):
    """d log p(D, η) / d(unconstrained η) by autograd: independent of every M-step formula.

    The local parameters of a bound are at their optimum, so that they add nothing to it.
    """
    ascent = started(prior_name, likelihood_name)
    prior, likelihood = ascent.family.prior, ascent.family.likelihood
    start = gradient(ascent)
    for _ in range(400):
        before = ascent.step()
        ascent.cycle(before)
        found = gradient(ascent)
        if largest(found) < 1e-5:
            break
    # nats per unit of a log scale; at the start it is of the order of 1
    for name, value in found.items():
        assert value.abs().max() < 2e-3, f"{name}: {value.abs().max():.2g}"
    assert largest(start) > 0.02
    assert set(found) == (set(prior.transforms) | set(likelihood.transforms)) - BETWEEN_CLIMBS


def largest(gradients):
    return max(float(value.abs().max()) for value in gradients.values())


def gradient(ascent):
    prior, likelihood = ascent.family.prior, ascent.family.likelihood
    modules = (prior, likelihood)
    free = [
        {n: m.transforms[n].inv(v).detach().requires_grad_() for n, v in m.eta.items()}
        for m in modules
    ]
    eta, theta = (
        {n: m.transforms[n](v) for n, v in part.items()}
        for m, part in zip(modules, free, strict=True)
    )
    statistics = prior.reduce(likelihood.statistics(ascent.summary, theta))
    value = prior.condition(statistics, eta).log_normaliser
    value = value + prior.log_hyperprior(eta) + likelihood.log_hyperprior(theta)
    named = {n: v for n, v in (free[0] | free[1]).items() if n not in BETWEEN_CLIMBS}
    return dict(zip(named, torch.autograd.grad(value, list(named.values())), strict=True))


@pytest.mark.parametrize("prior_name", ["shared-full", "clusters-diagonal"])
@pytest.mark.parametrize("likelihood_name", ["gaussian", "bernoulli"])
def test_bound_never_falls_with_a_trainable_backbone(prior_name, likelihood_name):
    data = make_data(likelihood_name, rows=(17, 12, 21, 15), num_features=3)
    backbone = MLP(3, [4], seed=1)
    before = backbone.layers[0].weight.detach().clone()
    model = MultitaskModel(PRIORS[prior_name](), LIKELIHOODS[likelihood_name](), backbone=backbone)
    engine = CoordinateAscent(max_iter=12, tol=1e-10, backbone_steps=3)
    result = fit(model, data, engine=engine, progress=False)
    assert_never_falls(result.history)
    assert not torch.equal(backbone.layers[0].weight.detach(), before)


def test_it_reports_convergence_from_the_bound():
    data = make_data(rows=(20, 30))
    model = MultitaskModel()
    loose = fit(model, data, engine=CoordinateAscent(max_iter=200, tol=1e-3), progress=False)
    tight = fit(model, data, engine=CoordinateAscent(max_iter=2000, tol=1e-10), progress=False)
    short = fit(model, data, engine=CoordinateAscent(max_iter=1, tol=1e-14), progress=False)
    assert loose.converged
    assert tight.converged
    assert not short.converged
    assert len(short.history) < len(loose.history) < len(tight.history)
    assert short.bound <= loose.bound <= tight.bound
    assert tight.bound == tight.history[-1]


@pytest.mark.parametrize(
    ("likelihood_name", "tolerance"), [("gaussian", 1e-6), ("bernoulli", 1e-4)]
)
def test_reported_bound_is_log_evidence_plus_hyperprior(likelihood_name, tolerance):
    data = make_data(likelihood_name, rows=(20, 30))
    model = MultitaskModel(likelihood=LIKELIHOODS[likelihood_name]())
    result = fit(model, data, progress=False, engine=CoordinateAscent(tol=1e-12, max_iter=5000))
    prior, likelihood = model.prior, model.likelihood
    hyper = prior.log_hyperprior(prior.eta) + likelihood.log_hyperprior(likelihood.eta)
    value = model.log_evidence(data).value + float(hyper)
    assert result.bound == pytest.approx(value, abs=tolerance)


def test_acceleration_reaches_what_plain_em_reaches():
    fast = started("shared-full", "gaussian")
    slow = started("shared-full", "gaussian")
    for _ in range(1500):
        plain = slow.step()
    best = fast.step()
    cycles = 0
    while cycles < 200:
        best = fast.cycle(best)[-1]
        cycles += 1
        if best >= plain - 1e-6:
            break
    assert best >= plain - 1e-6
    assert cycles < 150


def test_pooled_agrees_with_bayesian_ridge():
    """MacKay's evidence: scikit-learn's BayesianRidge, whose hyperpriors are flat here."""
    from sklearn.linear_model import BayesianRidge

    data = make_data(rows=(150, 120, 130), spread=0.0)
    model = MultitaskModel(PooledTasks())
    fit(model, data, progress=False, engine=CoordinateAscent(tol=1e-12))
    other = BayesianRidge(
        fit_intercept=False, alpha_1=0, alpha_2=0, lambda_1=0, lambda_2=0, tol=1e-10, max_iter=3000
    ).fit(data.x.numpy(), data.y.numpy())
    # the weak hyperpriors are worth about one row and one weight
    np.testing.assert_allclose(model.weights.mean[0], other.coef_, atol=0.005)
    np.testing.assert_allclose(model.likelihood.eta["noise_level"][0], other.alpha_, rtol=0.02)


def test_multiple_starts_keep_the_best():
    data = make_data(rows=(6,) * 12, num_features=2, spread=1.5, seed=3)
    bounds = {}
    for n_init in (1, 5):
        model = MultitaskModel(PRIORS["clusters-full"]())
        model.prior.n_init = n_init
        bounds[n_init] = fit(model, data, progress=False).bound
    assert bounds[5] >= bounds[1] - 1e-9


def test_gaussian_noise_of_exactly_linear_targets_stays_finite():
    data = make_data(noise=0.0, spread=0.0, rows=(30, 20))
    model = MultitaskModel(likelihood=Gaussian("task"))
    result = fit(model, data, progress=False)
    assert np.isfinite(result.bound)
    assert torch.isfinite(model.weights.std).all()
