"""LatentHierarchy(share="covariance"): scales along a tree; what each step of its fit does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from bmm_multitask_learning import (
    NUTS,
    SVI,
    Bernoulli,
    CoordinateAscent,
    Gaussian,
    LatentHierarchy,
    MultitaskModel,
    SharedGaussian,
    TaskData,
    datasets,
    fit,
)

from . import asserts
from .cases import built_model, make_data


def families(seed, *, num_tasks=48, num_features=8, rows=20):
    """Two families of tasks whose weights have sizes of their own and share nothing else."""
    rng = np.random.default_rng(seed)
    label = np.arange(num_tasks) % 2
    log_scale = 1.5 * rng.standard_normal((2, num_features))[label] - 1.0
    log_scale = log_scale + 0.2 * rng.standard_normal((num_tasks, num_features))
    weights = np.exp(log_scale) * rng.standard_normal((num_tasks, num_features))
    task = np.repeat(np.arange(num_tasks), rows)
    x = rng.standard_normal((len(task), num_features))
    y = (x * weights[task]).sum(1) + rng.standard_normal(len(task))
    return TaskData(x, y, task, tasks=range(num_tasks)), weights, log_scale, label


def drawn(rows=(7, 2, 11), *, num_features=3, outputs=1, mixing=0.6, seed=3):
    """A built model with a draw of η, its data and their statistics."""
    data = make_data(rows=rows, num_features=num_features, outputs=outputs)
    prior = LatentHierarchy(share="covariance", mixing=mixing)
    model = built_model(prior, Gaussian(), data, seed=seed)
    likelihood = model.likelihood
    summary = likelihood.summarise(model.rows("tasks", data))
    return model, data, likelihood.statistics(summary, likelihood.eta)


def test_evidence_is_the_dense_one():
    model, data, statistics = drawn()
    prior, eta = model.prior, model.prior.eta
    total = 0.0
    for k in range(3):
        std = (prior.scatter[0].sqrt() * eta["log_scale"][k, 0].exp()).numpy()
        correlation = np.linalg.inv(eta["correlation_precision"][0].numpy())
        x = data.x[data.task == k].numpy()
        covariance = x @ (correlation * np.outer(std, std)) @ x.T
        covariance += np.eye(len(x)) / float(model.likelihood.eta["noise_level"])
        law = multivariate_normal(np.zeros(len(x)), covariance)
        total += law.logpdf(data.y[data.task == k, 0].numpy())
    assert float(prior.condition(statistics, eta).log_normaliser) == pytest.approx(total, rel=1e-8)


def test_laplace_factors_have_the_gradient_and_fishers_information():
    """By automatic differentiation, and ½ tr(G ∂K G ∂K) with K the covariance of the weights."""
    model, _, statistics = drawn(outputs=2)
    prior, eta = model.prior, model.prior.eta
    free = eta["log_scale"].clone().requires_grad_()
    value = prior.condition(statistics, {**eta, "log_scale": free}).log_normaliser
    (gradient,) = torch.autograd.grad(value, free)
    factors = prior.diffusion.leaves(statistics, eta, prior.scatter)
    z = eta["log_scale"]
    torch.testing.assert_close(factors.b - (factors.A @ z[..., None])[..., 0], gradient)
    for k in range(3):
        std = prior.scatter[1].sqrt() * z[k, 1].exp()
        K = torch.linalg.inv(eta["correlation_precision"][1]) * std * std[:, None]
        A = statistics.A[k].expand(2, -1, -1)[1]
        G = A @ torch.linalg.inv(torch.eye(3).double() + K @ A)
        units = torch.eye(3).double()
        changes = [unit[:, None] * K + K * unit for unit in units]
        expected = torch.tensor(
            [[0.5 * torch.trace(G @ a @ G @ b) for b in changes] for a in changes]
        )
        torch.testing.assert_close(factors.A[k, 1], expected, rtol=1e-6, atol=1e-9)


def test_an_update_does_not_lower_the_joint_density():
    model, _, statistics = drawn((9, 4, 12, 7))
    prior = model.prior
    values = []
    for _ in range(8):
        posterior = prior.condition(statistics, prior.eta)
        values.append(float(posterior.log_normaliser + prior.log_hyperprior(prior.eta)))
        prior.update(posterior)
    assert (np.diff(values) > -1e-9 * abs(values[0])).all()
    assert values[-1] > values[0] + 0.1


def test_the_law_of_the_weights_given_scales():
    asserts.assert_event_shape(lambda: LatentHierarchy(share="covariance", mixing=0.7), 4)
    asserts.assert_log_prob_integrates(lambda: LatentHierarchy(share="covariance", mixing=0.7))


def test_a_fit_is_that_of_permuted_tasks_and_survives_saving(tmp_path):
    make = lambda: LatentHierarchy(share="covariance", mixing=0.5)  # noqa: E731
    asserts.assert_task_permutation_equivariant(make, Gaussian())
    data = make_data()
    asserts.assert_save_load_same_prediction(make, Gaussian, data, tmp_path)


@pytest.mark.parametrize("likelihood", [Gaussian, Bernoulli])
@pytest.mark.parametrize(
    "engine",
    [
        CoordinateAscent(max_iter=4),
        SVI(steps=4, batch_size=8),
        NUTS(num_samples=3, warmup_steps=3, max_tree_depth=2),
    ],
    ids=lambda engine: type(engine).__name__,
)
def test_every_engine_fits_it(engine, likelihood):
    data = make_data("bernoulli", num_features=2)
    make = lambda: LatentHierarchy(share="covariance", mixing=0.5)  # noqa: E731
    asserts.assert_deterministic_given_seed(make, likelihood, data, engine)


@pytest.mark.slow
def test_planted_scales_are_found_and_used():
    from sklearn.metrics import adjusted_rand_score

    data, weights, log_scale, label = families(3)
    model = MultitaskModel(LatentHierarchy(share="covariance"))
    shared = MultitaskModel(SharedGaussian("diagonal"))
    for each in (model, shared):
        fit(each, data, progress=False)
    prior = model.prior
    found = prior.log_standard_deviation[:, 0].numpy()
    assert np.corrcoef(found.ravel(), log_scale.ravel())[0, 1] > 0.75
    assert prior.mixing_weight > 0
    assert adjusted_rand_score(label, prior.tree.cut(2)) > 0.5
    errors = [np.linalg.norm(m.weights.mean.numpy() - weights) for m in (model, shared)]
    assert errors[0] < 0.95 * errors[1]


@pytest.mark.slow
def test_new_tasks_take_the_scales_of_their_place():
    """Without rows wide and around zero; with rows, near least squares where these say much."""
    data, weights, _, _ = families(4, num_tasks=20, rows=40)
    model = MultitaskModel(LatentHierarchy(share="covariance", mixing=0.8))
    fit(model, data.select_tasks(range(18)), progress=False)
    with pytest.warns(UserWarning, match="outside the fit"):
        p = model.predict(np.eye(8), 18)
    assert np.abs(p.mean).max() < 1e-9
    more = model.adapt(data.select_tasks([18, 19]))
    assert np.abs(more.weights.mean[18:].numpy() - weights[18:]).max() < 0.8
    assert more.relations().shape == (20, 20)
    clades = model.prior.weigh_clades(2, progress=False).clades()
    assert all(0 <= p <= 1 for p in clades.values())


def test_standard_deviations_are_those_of_the_weights():
    model, _, _ = drawn(outputs=2)
    prior = model.prior
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = prior(prior.eta).sample((40_000,))
    # the standard error of a log standard deviation is .0035
    torch.testing.assert_close(draws.std(0).log(), prior.log_standard_deviation, atol=0.02, rtol=0)


def test_shared_weights_have_no_log_standard_deviations_of_their_own():
    data, _ = datasets.make_tree(4, num_features=2, seed=0)
    model = MultitaskModel(LatentHierarchy(mixing=0.0))
    fit(model, data, progress=False)
    with pytest.raises(TypeError, match=r'covariance"\) has; this prior shares weights'):
        _ = model.prior.log_standard_deviation


@pytest.mark.parametrize("share", ["scales", None])
def test_an_unknown_share_is_refused(share):
    with pytest.raises(ValueError, match='share must be "weights" or "covariance"; got'):
        LatentHierarchy(share=share)


@pytest.mark.parametrize("unit", [1e-8, 1e8])
def test_scales_do_not_depend_on_units(unit):
    """Features in other units, one of them constant: the same fit, in these units."""
    data = asserts.clustered()
    x = data.x.clone()
    x[:, 2] = 1.0
    found = []
    for factor in (1.0, unit):
        model = MultitaskModel(LatentHierarchy(share="covariance", mixing=0.5))
        fit(model, data.with_x(x * factor), engine=CoordinateAscent(max_iter=5), progress=False)
        found.append(model.weights.mean * factor)
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)


def test_tasks_of_one_row_and_fewer_rows_than_features():
    rng = np.random.default_rng(0)
    task = np.arange(6)
    y = rng.standard_normal(6)
    y[3] = np.nan  # a task of which nothing is observed
    model = MultitaskModel(LatentHierarchy(share="covariance", mixing=0.5))
    result = fit(model, TaskData(rng.standard_normal((6, 4)), y, task), progress=False)
    assert np.isfinite(result.bound)
    assert torch.isfinite(model.weights.std).all()
    assert torch.isfinite(model.prior.log_standard_deviation).all()


def test_nodes_are_log_standard_deviations():
    """Those of the tasks are near what is fitted, those of the merges within its range."""
    data, *_ = families(1, num_tasks=12, num_features=3, rows=200)
    model = MultitaskModel(LatentHierarchy(share="covariance", mixing=0.9))
    fit(model, data, progress=False)
    prior = model.prior
    nodes, fitted = prior.nodes, prior.log_standard_deviation
    assert nodes.shape == (23, 1, 3)
    assert float((nodes[:12] - fitted).abs().max()) < 0.3
    low, high = fitted.amin(0), fitted.amax(0)
    assert ((nodes[12:] > low) & (nodes[12:] < high)).all()
