"""LatentHierarchy: its limits, its messages on larger trees, the trees and the weight it finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bmm_multitask_learning import (
    SVI,
    Bernoulli,
    CoordinateAscent,
    Gaussian,
    LatentHierarchy,
    MultitaskModel,
    Poisson,
    SharedGaussian,
    TaskData,
    datasets,
    fit,
)
from bmm_multitask_learning.backbones import MLP
from bmm_multitask_learning.posterior import WeightPosterior
from bmm_multitask_learning.priors import latent_hierarchy
from bmm_multitask_learning.sites import fold_statistics
from bmm_multitask_learning.statistics import TaskStatistics

from .cases import built_model, draw_eta, make_data
from .reference import dense_posterior
from .trees import random_tree


def conditioned(model, data):
    family = model.family()
    summary = family.likelihood.summarise(model.rows("tasks", data))
    statistics = family.likelihood.statistics(summary, family.likelihood.eta)
    return family.prior.condition(statistics, family.prior.eta)


def with_tree(prior, tree):
    prior.register_buffer("merges", tree.merges)
    prior.register_buffer("heights", tree.heights)


@pytest.mark.parametrize("covariance", ["full", "diagonal", "isotropic"])
def test_without_a_tree_it_is_the_shared_gaussian(covariance):
    data = make_data(rows=(7, 2, 11, 5), outputs=2)
    star = built_model(LatentHierarchy(covariance, mixing=0.0), Gaussian(), data, seed=2)
    shared = built_model(SharedGaussian(covariance), Gaussian(), data, seed=2)
    found, expected = (conditioned(model, data) for model in (star, shared))
    close = {"rtol": 1e-8, "atol": 1e-10}
    torch.testing.assert_close(found.log_normaliser, expected.log_normaliser, **close)
    torch.testing.assert_close(found.mean, expected.mean, **close)
    torch.testing.assert_close(found.covariance, expected.covariance, **close)
    torch.testing.assert_close(found.effective, expected.effective, **close)
    torch.testing.assert_close(found.roots.variance(), expected.roots.variance(), **close)
    star.prior.update(found)
    shared.prior.update(expected)
    for name, value in shared.prior.eta.items():
        torch.testing.assert_close(star.prior.eta[name], value, **close)


@pytest.mark.parametrize("mixing", [0.35, 1.0])
@pytest.mark.parametrize("num_tasks", [1, 2, 6])
def test_messages_are_the_dense_posterior(num_tasks, mixing):
    data = make_data(rows=(7, 2, 11, 1, 4, 9)[:num_tasks], num_features=3, seed=num_tasks)
    model = built_model(LatentHierarchy("full", mixing=mixing), Gaussian(), data, seed=3)
    with_tree(model.prior, random_tree(num_tasks, seed=5))
    expected = dense_posterior(model.prior, model.likelihood, data)
    posterior = conditioned(model, data)
    assert float(posterior.log_normaliser) == pytest.approx(expected.log_evidence, rel=1e-8)
    np.testing.assert_allclose(posterior.mean.flatten(), expected.mean[0], rtol=1e-7, atol=1e-9)
    common = posterior.roots.common[:, 0, 0].flatten(0, 1)
    own = torch.block_diag(*posterior.roots.own[:, 0, 0])
    joint = common @ common.T + own @ own.T
    np.testing.assert_allclose(joint, expected.covariance[0], rtol=1e-7, atol=1e-9)
    variance = posterior.roots.variance().flatten()
    np.testing.assert_allclose(variance, expected.covariance[0].diagonal(), rtol=1e-8)
    trace = posterior.trace(
        model.likelihood.statistics(
            model.likelihood.summarise(model.rows("tasks", data)), model.likelihood.eta
        )
    )
    torch.testing.assert_close(posterior.own_trace(), trace)


def test_variance_of_latents_is_that_of_the_weights():
    data = make_data(rows=(7, 2, 11, 5), num_features=3)
    model = built_model(LatentHierarchy(mixing=0.5), Gaussian(), data, seed=1)
    posterior = conditioned(model, data)
    rows = model.rows("tasks", data)
    _, variance = posterior.latent(rows.phi, rows.blocks)
    covariance = posterior.covariance[data.task]
    expected = torch.einsum("nd,nde,ne->n", rows.phi, covariance, rows.phi)
    torch.testing.assert_close(variance[:, 0, 0], expected)


def test_law_of_the_weights_is_that_of_the_evidence():
    """Factors so sharp that the evidence is the density of the weights."""
    data = make_data(rows=(1, 1, 1, 1, 1), num_features=3)
    prior = built_model(LatentHierarchy("full", mixing=0.4), Gaussian(), data, seed=2).prior
    with_tree(prior, random_tree(5, seed=1))
    W = prior(prior.eta).sample()
    sharp = 1e9
    statistics = TaskStatistics(
        A=sharp * torch.eye(3).double().expand(5, 1, 3, 3),
        b=sharp * W,
        c=-0.5 * sharp * W.square().sum(-1) + 1.5 * np.log(sharp / (2 * np.pi)),
        rows=torch.ones(5).double(),
    )
    found = prior.condition(statistics, prior.eta).log_normaliser
    assert float(found) == pytest.approx(float(prior(prior.eta).log_prob(W)), abs=1e-4)


def test_roots_of_many_columns_are_compressed():
    """What a stored posterior, with its own and common roots, says of each task by itself."""
    data = make_data(rows=(7, 2, 11, 5, 3), num_features=2)
    model = built_model(LatentHierarchy(mixing=0.5), Gaussian(), data, seed=1)
    posterior = conditioned(model, data)
    stored = WeightPosterior.from_tensors(posterior.tensors())
    assert stored.roots.common.shape[-1] == 8
    assert stored.roots.whole.shape[-1] == 2
    torch.testing.assert_close(stored.covariance, posterior.covariance)
    torch.testing.assert_close(stored.std, posterior.std)
    rows = model.rows("tasks", data)
    for found, expected in zip(
        stored.latent(rows.phi, rows.blocks),
        posterior.latent(rows.phi, rows.blocks),
        strict=True,
    ):
        torch.testing.assert_close(found, expected)


def test_a_posterior_that_no_memory_holds_is_refused(monkeypatch):
    monkeypatch.setattr(latent_hierarchy, "free_memory", lambda device: 1000)
    data = make_data(rows=(7, 2, 11))
    with pytest.raises(MemoryError, match="3 tasks x 1 outputs x 5 features along a tree"):
        fit(MultitaskModel(LatentHierarchy(mixing=0.5)), data, progress=False)


# ---- what it finds ------------------------------------------------------------------------


def error(model, truth):
    return float(np.sqrt(np.square(model.weights.mean.numpy() - truth.weights).mean()))


def test_planted_tree_is_found_and_used():
    data, truth = datasets.make_tree(seed=1)
    model, shared = MultitaskModel(LatentHierarchy()), MultitaskModel(SharedGaussian("diagonal"))
    for each in (model, shared):
        fit(each, data, progress=False)
    prior = model.prior
    right = set(prior.tree.clades()) & truth.clades
    assert len(right) >= 0.9 * len(truth.clades)
    assert prior.mixing_weight > 0.7
    true = torch.tensor([clade in truth.clades for clade in prior.tree.clades()[:-1]])
    assert prior.tree.support[:-1][true].mean() > 0.9
    assert ((prior.tree.support >= 0) & (prior.tree.support <= 1)).all()
    assert error(model, truth) < 0.85 * error(shared, truth)
    relations = model.relations()
    assert torch.equal(relations, relations.mT)
    assert (relations.diagonal() == 1).all()
    sibling = next(sorted(clade) for clade in truth.clades if len(clade) == 2)
    assert relations[sibling[0], sibling[1]] > relations[sibling[0]].median() + 0.2


def test_no_tree_among_exchangeable_tasks():
    data, _ = datasets.make_clusters(30, 1, rows_per_task=12, within=0.6, seed=2)
    model, shared = MultitaskModel(LatentHierarchy()), MultitaskModel(SharedGaussian("diagonal"))
    bounds = [fit(each, data, progress=False).bound for each in (model, shared)]
    assert model.prior.mixing_weight == 0
    assert bounds[0] == pytest.approx(bounds[1], rel=1e-8)
    torch.testing.assert_close(model.weights.mean, shared.weights.mean)
    assert torch.equal(model.relations(), torch.eye(30).double())


@pytest.mark.parametrize("likelihood", [Bernoulli, Poisson])
def test_the_tree_is_found_for_other_likelihoods(likelihood):
    """Two groups of tasks; Poisson goes by SVI, whose start finds the tree."""
    rng = np.random.default_rng(0)
    group = np.repeat([0, 1], 6)
    centre = np.array([[0.8, -0.8, 0.5], [-0.8, 0.8, -0.5]])
    weights = centre[group] + 0.2 * rng.standard_normal((12, 3))
    task = np.repeat(np.arange(12), 60)
    x = rng.standard_normal((len(task), 3))
    f = (x * weights[task]).sum(1)
    if likelihood is Bernoulli:
        y = (rng.random(len(f)) < 1 / (1 + np.exp(-2 * f))).astype(float)
    else:
        y = rng.poisson(np.exp(f)).astype(float)
    model = MultitaskModel(LatentHierarchy(), likelihood())
    engine = SVI(steps=20) if likelihood is Poisson else None
    fit(model, TaskData(x, y, task), engine=engine, progress=False)
    cut = model.prior.tree.cut(2)
    assert (cut == cut[0]).tolist() in ((group == 0).tolist(), (group == 1).tolist())
    assert model.prior.mixing_weight > 0


def test_the_tree_is_found_under_a_trainable_backbone():
    data, _ = datasets.make_tree(8, num_features=3, rows_per_task=(20, 30), seed=0)
    model = MultitaskModel(LatentHierarchy(mixing=0.5), backbone=MLP(3, [4], seed=1))
    fit(model, data, engine=CoordinateAscent(max_iter=5, backbone_steps=2), progress=False)
    assert model.prior.mixing_weight == 0.5
    merges = model.prior.merges.flatten().tolist()
    assert sorted(merges) == list(range(14))


def test_adapted_tasks_branch_off_at_the_centre():
    data, truth = datasets.make_tree(8, num_features=3, seed=0)
    model = MultitaskModel(LatentHierarchy(mixing=0.8))
    fit(model, data.select_tasks(range(6)), progress=False)
    more = model.adapt(data.select_tasks([6, 7]))
    relations = more.relations()
    assert relations.shape == (8, 8)
    assert torch.equal(relations[6:], torch.eye(8).double()[6:])
    torch.testing.assert_close(relations[:6, :6], model.relations())
    assert np.abs(more.weights.mean[6:].numpy() - truth.weights[6:]).max() < 0.5


# ---- folds --------------------------------------------------------------------------------


def test_folds_are_disjoint_parts_of_every_task():
    data = make_data(rows=(7, 2, 11))
    model = built_model(LatentHierarchy(), Gaussian(), data, seed=1)
    likelihood, rows = model.likelihood, model.rows("tasks", data)
    parts = fold_statistics(likelihood, rows, conditioned(model, data))
    assert torch.stack([part.rows for part in parts]).tolist() == [
        [2, 1, 3], [2, 1, 2], [1, 0, 2], [1, 0, 2], [1, 0, 2]
    ]  # fmt: skip
    whole = likelihood.statistics(likelihood.summarise(rows), likelihood.eta)
    for name in ("A", "b", "c"):
        total = sum(getattr(part, name) for part in parts)
        torch.testing.assert_close(total, getattr(whole, name))


def test_held_out_score_is_the_predictive_density_of_the_fold():
    """log Z(all) − log Z(others) at given η: the density of the fold's targets given the rest."""
    data = make_data(rows=(9, 6, 8), num_features=2)
    model = built_model(LatentHierarchy(mixing=0.5), Gaussian(), data, seed=1)
    prior, likelihood = model.prior, model.likelihood
    rows = model.rows("tasks", data)
    parts = fold_statistics(likelihood, rows, conditioned(model, data))
    others = parts[0] + parts[1] + parts[3] + parts[4]
    score = [prior.condition(s, prior.eta).log_normaliser for s in (others + parts[2], others)]
    kept = others.rows.sum() + parts[2].rows.sum()
    assert kept == len(data)
    number = np.array([int((data.task[:n] == data.task[n]).sum()) for n in range(len(data))])
    held_out = torch.as_tensor(number % 5 == 2)
    posterior = prior.condition(others, prior.eta)
    draws = posterior.sample(200_000, seed=0)[:, data.task[held_out]]
    f = (draws * data.x[held_out]).sum(-1)
    law = likelihood.conditional(f.T[..., None], data.task[held_out], likelihood.eta)
    log_p = law.log_prob(data.y[held_out, None, None])[..., 0].sum(0)
    expected = log_p.logsumexp(0) - np.log(len(log_p))
    assert float(score[0] - score[1]) == pytest.approx(float(expected), abs=0.05)


def test_eta_of_a_fit_is_left_alone_by_the_choice():
    data, _ = datasets.make_tree(6, num_features=3, seed=3)
    model = built_model(LatentHierarchy(), Gaussian(), data)
    prior = model.prior
    prior.set_eta(draw_eta(prior, 4))
    rows = model.rows("tasks", data)
    before = prior.eta
    with torch.no_grad():
        prior.refresh(
            0,
            conditioned(model, data),
            lambda: fold_statistics(model.likelihood, rows, conditioned(model, data)),
        )
    for name, value in before.items():
        assert torch.equal(prior.eta[name], value)
