"""TaskCovariance: its limits, the signs that it finds, tasks outside the fit, its size."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bmm_multitask_learning import (
    CoordinateAscent,
    Gaussian,
    IndependentTasks,
    MultitaskModel,
    SharedGaussian,
    TaskCovariance,
    TaskData,
    datasets,
    fit,
    load,
)
from bmm_multitask_learning.priors.task_covariance import _best_correlation

from .asserts import losses_of_unrelated
from .cases import built_model, make_data
from .test_conformance import posterior_mean


def precision_of(covariance):
    """The hyperparameter at which the tasks have this covariance: Q Ω⁻¹ Q, Q² the mode."""
    values, vectors = np.linalg.eigh(0.5 * np.eye(len(covariance)) + 0.5)
    half = vectors * np.sqrt(values) @ vectors.T
    return half @ np.linalg.inv(covariance) @ half


def signed(num_rows=40, seed=0):
    """Tasks 0 and 1 alike, 2 opposite to them, 3 and 4 unrelated; D = 24."""
    rng = np.random.default_rng(seed)
    one, other, third = rng.standard_normal((3, 24))
    small = 0.3 * rng.standard_normal((5, 24))
    weights = np.stack([one, one, -one, other, third]) + small
    task = np.repeat(np.arange(5), num_rows)
    x = rng.standard_normal((len(task), 24))
    y = (x * weights[task]).sum(1) + 0.5 * rng.standard_normal(len(task))
    return TaskData(x, y, task), weights


def test_identity_reduces_to_independent_tasks():
    data = make_data()
    alone = posterior_mean(IndependentTasks(), data, {"precision": 2.0})
    eta = {"task_precision": precision_of(np.eye(3)), "correlation": 0.5, "precision": 2.0}
    found = posterior_mean(TaskCovariance("isotropic"), data, eta)
    torch.testing.assert_close(found.mean, alone.mean, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(found.covariance, alone.covariance, rtol=1e-7, atol=1e-9)


def test_a_constant_covariance_is_a_shared_centre():
    """cov(w_j, w_k) = s² + δ_jk Σ: the posterior of SharedGaussian, and its law of new tasks."""
    data = make_data()
    eta = {"centre_precision": 0.8, "precision": 2.0}
    shared = posterior_mean(SharedGaussian("isotropic"), data, eta)
    covariance = np.full((3, 3), 2.0 / 0.8) + np.eye(3)
    eta = {"task_precision": precision_of(covariance), "correlation": 0.5, "precision": 2.0}
    found = posterior_mean(TaskCovariance("isotropic"), data, eta)
    torch.testing.assert_close(found.mean, shared.mean, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(found.covariance, shared.covariance, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(found.log_normaliser, shared.log_normaliser, rtol=1e-9, atol=0)


def test_signs_of_correlations_are_found():
    data, _ = signed()
    model = MultitaskModel(TaskCovariance())
    fit(model, data, progress=False)
    correlation = model.relations().numpy()
    assert correlation[0, 1] > 0.7
    assert correlation[[0, 1], 2].max() < -0.6
    assert np.abs(correlation[:3, 3:]).max() < 0.6
    assert np.abs(correlation[3, 4]) < 0.6
    np.testing.assert_allclose(np.diag(correlation), 1.0)
    np.testing.assert_allclose(correlation, correlation.T)


def test_an_opposite_task_lends_its_rows():
    """Six rows for 24 weights: the error falls by a fifth against tasks alone."""
    data, weights = signed()
    few = data.rows((data.task != 2) | (torch.arange(len(data)) % 40 < 6))
    error = {}
    for prior in (IndependentTasks(), TaskCovariance("isotropic")):
        model = MultitaskModel(prior)
        fit(model, few, progress=False)
        error[type(prior)] = np.linalg.norm(model.weights.mean[2].numpy() - weights[2])
    assert error[TaskCovariance] < 0.8 * error[IndependentTasks]


def test_read_outs_multiply_to_the_covariance_of_the_weights():
    data = make_data(outputs=2)
    prior = built_model(TaskCovariance("full"), Gaussian(), data, seed=3).prior
    assert float(prior.task_covariance.diagonal().mean()) == pytest.approx(1.0)
    law = prior(prior.eta)
    tasks = law.task_tril @ law.task_tril.T
    features = law.scale_tril @ law.scale_tril.mT
    for o in range(2):
        torch.testing.assert_close(
            torch.kron(prior.task_covariance, prior.covariance_matrix[o]),
            torch.kron(tasks, features[o]),
        )
    torch.testing.assert_close(prior.task_correlation, prior.relations())


def test_new_tasks_lie_around_the_others():
    """As the prior at its mode says: mean β Σ w_k with β = 1 / (1 + K)."""
    data = make_data()
    model = built_model(TaskCovariance("isotropic"), Gaussian(), data)
    eta = {"task_precision": torch.eye(3).double(), "correlation": torch.tensor([0.5]).double()}
    eta |= {"precision": torch.ones(1).double()}
    posterior = posterior_mean(model.prior, data, eta)
    population = model.prior.population(model.prior.eta, posterior, None, 2)
    share = 1 / 4
    torch.testing.assert_close(population.mean, share * posterior.mean.sum(0).expand(2, -1))
    torch.testing.assert_close(population.mean[0], population.mean[1])
    # its own part: what a task differs from β Σ of the two others, 1 − 2 (.25 / (.5 + .5 · 2))
    own = population.roots.own[0, 0, 0].square().sum(-1)
    torch.testing.assert_close(own, torch.full((5,), 2 / 3).double())
    # and the uncertainty of β Σ w_k, which the tasks of the fit share
    common = share * posterior.roots.common.sum(0)[0, 0]
    torch.testing.assert_close(population.covariance[0], torch.diag(own) + common @ common.T)


def test_adapt_adds_a_row_of_relations_and_survives_saving(tmp_path):
    data = make_data(rows=(17, 12, 21))
    model = MultitaskModel(TaskCovariance("full"))
    fit(model, data, engine=CoordinateAscent(max_iter=5), progress=False)
    rng = np.random.default_rng(1)
    more = TaskData(rng.standard_normal((4, 5)), rng.standard_normal(4), ["new"] * 4)
    wider = model.adapt(more)
    relations = wider.relations()
    assert relations.shape == (4, 4)
    torch.testing.assert_close(relations[:3, :3], model.relations())
    assert (relations[3, :3] > 0).all()
    assert (relations[3, :3] < 1).all()
    wider.save(tmp_path)
    again = load(tmp_path)
    assert torch.equal(again.relations(), relations)
    x = data.x[:4].numpy()
    labels = [0, "new", 2, "new"]
    np.testing.assert_array_equal(again.predict(x, labels).std, wider.predict(x, labels).std)


def test_one_task_alone():
    data = make_data(rows=(9,))
    model = MultitaskModel(TaskCovariance())
    fit(model, data, progress=False)
    assert torch.equal(model.relations(), torch.ones(1, 1).double())
    assert torch.isfinite(model.weights.std).all()


def test_too_many_weights_are_refused():
    data = TaskData(np.zeros((601, 10)), np.zeros(601), np.arange(601))
    with pytest.raises(ValueError, match=r"601 tasks x 10 features = 6010 are more than 6000\."):
        fit(MultitaskModel(TaskCovariance()), data, progress=False)


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="covariance must be one of"):
        TaskCovariance("round")


def test_a_strength_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match='strength must be a positive number, or "auto"'):
        TaskCovariance(strength=0)


def test_the_correlation_maximises_its_part_of_the_bound():
    """E log N(W; 0, Ω ⊗ Σ) + log Beta(ρ; 3/2, 3/2), on a grid, with dense matrices."""
    generator = torch.Generator().manual_seed(0)
    W, M = (torch.randn(4, n, generator=generator, dtype=torch.float64) for n in (7, 9))
    W = W + 1.5 * torch.randn(7, generator=generator, dtype=torch.float64)
    square, precision = W @ W.T, M @ M.T / 9
    rho = _best_correlation(torch.tensor([0.3]).double(), precision, square, 7)

    def value(r):
        ones = torch.full((4, 4), r).double() + (1 - r) * torch.eye(4).double()
        values, vectors = torch.linalg.eigh(ones)
        half = vectors * values.sqrt() @ vectors.T
        omega = half @ torch.linalg.inv(precision) @ half
        fit = torch.linalg.solve(omega, square).trace()
        return -0.5 * (7 * torch.linalg.slogdet(omega).logabsdet + fit) + 0.5 * np.log(r - r * r)

    grid = np.linspace(0.001, 0.999, 999)
    best = grid[int(np.argmax([float(value(r)) for r in grid]))]
    assert 0.05 < best < 0.95
    assert float(rho) == pytest.approx(best, abs=1e-3)


def test_pairs_are_held_alike_where_nothing_tells_them_apart():
    """Exchangeable tasks and planted families: the strongest belief, and a weaker one."""
    rng = np.random.default_rng(0)
    task = np.repeat(np.arange(9), 12)
    x = rng.standard_normal((len(task), 4))
    weights = rng.standard_normal(4) + rng.standard_normal((9, 4))
    y = (x * weights[task]).sum(1) + 0.5 * rng.standard_normal(len(task))
    worth = []
    for data in (TaskData(x, y, task), datasets.make_mixing(seed=0)[0]):
        model = MultitaskModel(TaskCovariance())
        fit(model, data, progress=False)
        worth.append(float(model.prior.worth))
    assert worth[0] == 25
    assert worth[1] < 25


@pytest.mark.slow
def test_unrelated_tasks_lose_next_to_nothing():
    ratios = losses_of_unrelated(TaskCovariance)
    assert ratios.mean() < 1.01
    assert ratios.max() < 1.03
