"""Evidence and posteriors at given hyperparameters, against dense Gaussians over all rows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from bmm_multitask_learning import Gaussian, TaskData

from .cases import PRIORS, built_model, make_data
from .reference import dense_posterior


def conditioned(model, data):
    """q(W) at the model's hyperparameters, in closed form."""
    family = model.family()
    summary = family.likelihood.summarise(model.rows("tasks", data))
    statistics = family.prior.reduce(family.likelihood.statistics(summary, family.likelihood.eta))
    return family.prior.expand(family.prior.condition(statistics, family.prior.eta))


@pytest.fixture(params=PRIORS)
def prior(request):
    return PRIORS[request.param]()


@pytest.mark.parametrize("noise", ["shared", "task"])
@pytest.mark.parametrize("seed", [1, 2])
def test_evidence_is_that_of_the_dense_gaussian(prior, noise, seed):
    data = make_data(seed=seed)
    model = built_model(prior, Gaussian(noise), data, seed=seed)
    expected = dense_posterior(prior, model.likelihood, data).log_evidence
    evidence = model.log_evidence(data)
    assert evidence.kind == "evidence"
    assert evidence.value == pytest.approx(expected, rel=1e-8)


def test_evidence_of_two_outputs_with_missing_targets(prior):
    data = make_data(outputs=2)
    y = data.y.clone()
    y[::3, 0] = torch.nan
    y[1::4, 1] = torch.nan
    data = data._replace(y=y)
    model = built_model(prior, Gaussian("task"), data, seed=3)
    expected = dense_posterior(prior, model.likelihood, data)
    assert model.log_evidence(data).value == pytest.approx(expected.log_evidence, rel=1e-8)
    mean = conditioned(model, data).mean.movedim(1, 0).flatten(1)
    np.testing.assert_allclose(mean, expected.mean, rtol=1e-7, atol=1e-9)


def test_row_weights_are_repeated_rows(prior):
    data = make_data()
    repeats = torch.arange(len(data)) % 3
    weighted = data._replace(weight=repeats.double())
    repeated = data.rows(torch.repeat_interleave(torch.arange(len(data)), repeats))
    model = built_model(prior, Gaussian(), data, seed=4)
    value = model.log_evidence(weighted).value
    assert value == pytest.approx(model.log_evidence(repeated).value, rel=1e-10)
    expected = dense_posterior(prior, model.likelihood, weighted).log_evidence
    assert value == pytest.approx(expected, rel=1e-8)


def test_posterior_mean_and_covariance_are_the_dense_ones(prior):
    data = make_data()
    model = built_model(prior, Gaussian(), data, seed=5)
    expected = dense_posterior(prior, model.likelihood, data)
    posterior = conditioned(model, data)
    K, D = posterior.mean.shape
    np.testing.assert_allclose(posterior.mean.flatten(), expected.mean[0], rtol=1e-7, atol=1e-9)
    blocks = expected.covariance[0].reshape(K, D, K, D)[np.arange(K), :, np.arange(K)]
    np.testing.assert_allclose(posterior.covariance, blocks, rtol=1e-7, atol=1e-9)
    std = np.sqrt(np.diagonal(expected.covariance[0])).reshape(K, D)
    np.testing.assert_allclose(posterior.std, std, rtol=1e-7)


def test_covariance_between_tasks_is_the_dense_one(prior):
    data = make_data()
    model = built_model(prior, Gaussian(), data, seed=6)
    posterior = conditioned(model, data)
    K, D = posterior.mean.shape
    common = posterior.roots.common[:, 0, 0]  # (K, D, S): what tasks share
    expected = dense_posterior(prior, model.likelihood, data).covariance[0].reshape(K, D, K, D)
    for j, k in [(0, 1), (0, 2), (2, 1)]:
        between = common[j] @ common[k].T if posterior.means.shape[1] == 1 else torch.zeros(D, D)
        np.testing.assert_allclose(between, expected[j, :, k], rtol=1e-7, atol=1e-9)


def test_draws_have_the_covariance_between_tasks():
    data = make_data(num_features=2)
    model = built_model(PRIORS["shared-full"](), Gaussian(), data, seed=7)
    expected = dense_posterior(model.prior, model.likelihood, data)
    draws = conditioned(model, data).sample(200_000, seed=1).flatten(1).numpy()
    scale = np.sqrt(np.diagonal(expected.covariance[0]))
    # Monte Carlo error of a correlation is .0022: 6 of it, false alarm below 1e-7
    difference = (np.cov(draws.T) - expected.covariance[0]) / np.outer(scale, scale)
    assert np.abs(difference).max() < 0.014
    assert np.abs((draws.mean(0) - expected.mean[0]) / scale).max() < 0.014


def test_a_task_without_rows_has_the_populations_law():
    data = make_data()
    empty = TaskData(data.x, data.y, data.task.numpy(), tasks=range(4))
    model = built_model(PRIORS["shared-full"](), Gaussian(), empty, seed=8)
    posterior = conditioned(model, empty)
    population = model.prior.population(model.prior.eta, posterior, None, 1)
    np.testing.assert_allclose(posterior.mean[3], population.mean[0], rtol=1e-9)
    np.testing.assert_allclose(posterior.covariance[3], population.covariance[0], rtol=1e-9)


def test_many_independent_tasks_of_one_gaussian_are_summed():
    """Evidence of independent tasks is the sum of the evidences of each alone."""
    data = make_data()
    model = built_model(PRIORS["independent"](), Gaussian(), data, seed=9)
    total = model.log_evidence(data).value
    alone = 0.0
    for k in range(3):
        rows = data.rows(data.task == k)
        alone += model.log_evidence(rows).value
    assert total == pytest.approx(alone, rel=1e-10)


def test_evidence_asks_for_the_models_own_tasks():
    data = make_data()
    model = built_model(PRIORS["shared-full"](), Gaussian(), data, seed=1)
    with pytest.raises(ValueError, match="own tasks"):
        model.log_evidence(data.select_tasks([0, 1]))


def test_statistics_of_parts_add_up():
    data = make_data()
    model = built_model(PRIORS["shared-full"](), Gaussian(), data, seed=2)
    likelihood = model.likelihood

    def statistics(part):
        return likelihood.statistics(
            likelihood.summarise(model.rows("tasks", part)), likelihood.eta
        )

    whole = statistics(data)
    parts = statistics(data.rows(slice(0, 6))) + statistics(data.rows(slice(6, None)))
    for field in dataclasses.fields(whole):
        torch.testing.assert_close(getattr(whole, field.name), getattr(parts, field.name))
