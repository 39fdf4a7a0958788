"""LatentHierarchy: its limits, its messages on larger trees, the trees and the weight it finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bmm_multitask_learning import (
    NUTS,
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
    load,
)
from bmm_multitask_learning.backbones import MLP
from bmm_multitask_learning.posterior import WeightPosterior
from bmm_multitask_learning.sites import fold_statistics
from bmm_multitask_learning.statistics import TaskStatistics
from bmm_multitask_learning.trees import roots

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
    torch.testing.assert_close(found.effective(), expected.effective(), **close)
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


def test_merges_of_equal_height_are_one():
    """Branches of length 0 between them carry what they are told as it is."""
    data = make_data(rows=(7, 2, 11, 1, 4, 9), num_features=3, seed=6)
    model = built_model(LatentHierarchy("full", mixing=1.0), Gaussian(), data, seed=3)
    with_tree(model.prior, random_tree(6, seed=5))
    heights = torch.tensor([0.25, 0.25, 0.5, 1.0, 1.0]).double()
    model.prior.register_buffer("heights", heights)
    expected = dense_posterior(model.prior, model.likelihood, data)
    posterior = conditioned(model, data)
    assert float(posterior.log_normaliser) == pytest.approx(expected.log_evidence, rel=1e-8)
    np.testing.assert_allclose(posterior.mean.flatten(), expected.mean[0], rtol=1e-7, atol=1e-9)
    variance = posterior.roots.variance().flatten()
    np.testing.assert_allclose(variance, expected.covariance[0].diagonal(), rtol=1e-8)


def test_variance_of_latents_is_that_of_the_weights():
    data = make_data(rows=(7, 2, 11, 5), num_features=3)
    model = built_model(LatentHierarchy(mixing=0.5), Gaussian(), data, seed=1)
    posterior = conditioned(model, data)
    rows = model.rows("tasks", data)
    _, variance = posterior.latent(rows.phi, rows.blocks)
    covariance = posterior.covariance[data.task]
    expected = torch.einsum("nd,nde,ne->n", rows.phi, covariance, rows.phi)
    torch.testing.assert_close(variance[:, 0, 0], expected)


@pytest.mark.parametrize("mixing", [0.0, 0.6])
@pytest.mark.parametrize("num_tasks", [1, 2, 5])
def test_means_at_the_nodes_are_the_dense_ones(num_tasks, mixing):
    """Leaves' joint law with the place of each node: cov(w_k, x_i) is that of what they share."""
    data = make_data(rows=(7, 2, 11, 1, 4)[:num_tasks], num_features=3, outputs=2)
    model = built_model(LatentHierarchy("full", mixing=mixing), Gaussian(), data, seed=3)
    prior, likelihood = model.prior, model.likelihood
    tree = random_tree(num_tasks, seed=5)
    with_tree(prior, tree)
    rows = model.rows("tasks", data)
    statistics = likelihood.statistics(likelihood.summarise(rows), likelihood.eta)
    posterior = prior.condition(statistics, prior.eta)
    prior.settle(statistics, posterior)
    nodes = prior.nodes
    assert nodes.shape == (2 * num_tasks - 1, 2, 3)
    torch.testing.assert_close(nodes[:num_tasks], posterior.mean)
    own = mixing * tree.correlation() + (1 - mixing) * torch.eye(num_tasks)
    for node, below in enumerate(tree.clades(), start=num_tasks):
        height = float(tree.heights[node - num_tasks])
        lowest = torch.tensor([k in below for k in range(num_tasks)])
        first = min(below)
        # with a task below, what the node has; with another, what that shares with those below
        shared = torch.where(lowest, mixing * (1 - height), own[first])
        for o in range(2):
            centre = torch.diag(prior.scatter[o] / prior.centre_precision[o])
            cross = torch.kron(shared[None], prior.covariance_matrix[o]) + centre.repeat(
                1, num_tasks
            )
            joint = torch.kron(own, prior.covariance_matrix[o]) + centre.repeat(
                num_tasks, num_tasks
            )
            A = torch.block_diag(*statistics.A.expand(-1, 2, 3, 3)[:, o])
            gain = torch.linalg.solve(torch.eye(len(A)) + A @ joint, statistics.b[:, o].flatten())
            torch.testing.assert_close(nodes[node, o], cross @ gain, rtol=1e-7, atol=1e-9)


def test_law_of_the_weights_is_that_of_the_evidence():
    """Factors so sharp that the evidence is the density of the weights."""
    data = make_data(rows=(1, 1, 1, 1, 1), num_features=3)
    prior = built_model(LatentHierarchy("full", mixing=0.4), Gaussian(), data, seed=2).prior
    with_tree(prior, random_tree(5, seed=1))
    W = prior(prior.eta).sample()
    sharp = 1e9
    statistics = TaskStatistics(
        precision=sharp * torch.eye(3).double().expand(5, 1, 3, 3),
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
    monkeypatch.setattr(roots, "free_memory", lambda device: 1000)
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


@pytest.mark.slow
def test_true_clades_are_more_probable():
    """Trees unlike the prior's: what is stated is cautious there, and tells true from false."""
    stated, true = [], []
    for seed in range(3):
        data, truth = datasets.make_tree(16, num_features=12, rows_per_task=(15, 60), seed=seed)
        model = MultitaskModel(LatentHierarchy(mixing=0.9))
        fit(model, data, progress=False)
        clades = model.prior.weigh_clades(6, seed=seed, progress=False).clades()
        stated += list(clades.values())[:-1]
        true += [clade in truth.clades for clade in clades][:-1]
    stated, true = np.array(stated), np.array(true)
    assert stated[true].mean() > stated[~true].mean() + 0.3
    assert true[stated > 0.6].mean() > 0.9


def test_clades_are_weighed_with_the_seed_alone():
    data, _ = datasets.make_tree(6, num_features=3, rows_per_task=(5, 9), seed=3)
    model = MultitaskModel(LatentHierarchy(mixing=0.8))
    fit(model, data, progress=False)
    first, again, other = (
        model.prior.weigh_clades(4, seed=seed, progress=False).clades() for seed in (1, 1, 2)
    )
    assert first == again != other
    with pytest.raises(ValueError, match="sweeps must be at least 1; got 0"):
        model.prior.weigh_clades(0)


def test_the_bound_jumps_where_the_tree_comes_in_and_the_jump_is_reported():
    data, _ = datasets.make_tree(16, num_features=12, seed=0)
    model, shared = MultitaskModel(LatentHierarchy()), MultitaskModel(SharedGaussian("diagonal"))
    result, star = (fit(each, data, progress=False) for each in (model, shared))
    assert model.prior.mixing_weight > 0
    ((before, after),) = result.jumps
    assert before == pytest.approx(star.bound, abs=0.01)
    assert after == result.history[0]
    rises = np.diff(result.history)
    assert (rises >= -1e-8 * abs(result.bound)).all()
    assert fit(MultitaskModel(LatentHierarchy(mixing=0.0)), data, progress=False).jumps == ()


@pytest.mark.parametrize("num_tasks", [1, 2])
def test_clades_of_the_smallest_trees(num_tasks):
    data, _ = datasets.make_tree(4, num_features=2, rows_per_task=(5, 9), seed=3)
    model = MultitaskModel(LatentHierarchy(mixing=0.8))
    fit(model, data.select_tasks(range(num_tasks)), progress=False)
    clades = model.prior.weigh_clades(3, progress=False).clades()
    assert list(clades.values()) == [1.0] * (num_tasks - 1)
    new = data.select_tasks([3])
    assert model.adapt(new).relations().shape == (num_tasks + 1, num_tasks + 1)


def test_a_saved_model_weighs_and_places_as_before(tmp_path):
    data, _ = datasets.make_tree(6, num_features=3, rows_per_task=(5, 9), seed=3)
    model = MultitaskModel(LatentHierarchy(mixing=0.8))
    fit(model, data.select_tasks(range(5)), progress=False)
    more = model.adapt(data.select_tasks([5]))
    more.save(tmp_path / "model")
    again = load(tmp_path / "model")
    assert torch.equal(again.relations(), more.relations())
    first, second = (
        m.prior.weigh_clades(2, seed=1, progress=False).clades() for m in (more, again)
    )
    assert first == second
    further = TaskData(data.x[:3], data.y[:3], ["further"] * 3)
    means = [m.adapt(further).weights.mean[-1] for m in (more, again)]
    assert torch.equal(*means)


# ---- new tasks ----------------------------------------------------------------------------


def test_a_new_task_stands_anywhere_and_is_drawn_to_its_family():
    """With the rows of a copy of task 2: related to task 2 and its clade above all others."""
    data, _ = datasets.make_tree(8, num_features=6, rows_per_task=(60, 90), seed=0)
    model = MultitaskModel(LatentHierarchy(mixing=0.9))
    fit(model, data, progress=False)
    copy = data.rows(data.task == 2)
    new = TaskData(copy.x, copy.y, ["new"] * len(copy))
    more = model.adapt(new)
    relations = more.relations()
    assert relations.shape == (9, 9)
    assert torch.equal(relations, relations.mT)
    torch.testing.assert_close(relations[:8, :8], model.relations())
    assert int(relations[8, :8].argmax()) == 2
    assert relations[8, 2] > relations[8, :8].median() + 0.3
    again = more.adapt(TaskData(copy.x, copy.y, ["other"] * len(copy)))
    torch.testing.assert_close(again.relations()[9, :8], relations[8, :8])
    assert again.relations()[8, 9] == 0


@pytest.mark.parametrize("num_tasks", [1, 3])
def test_the_law_of_a_new_task_is_the_dense_one_at_every_place(num_tasks):
    data = make_data(rows=(7, 2, 5)[:num_tasks], num_features=2)
    model = built_model(LatentHierarchy("full", mixing=0.7), Gaussian(), data, seed=3)
    prior, likelihood = model.prior, model.likelihood
    with_tree(prior, random_tree(num_tasks, seed=5))
    summary = likelihood.summarise(model.rows("tasks", data))
    statistics = likelihood.statistics(summary, likelihood.eta)
    posterior = prior.condition(statistics, prior.eta)
    prior.settle(statistics, posterior)
    law, between = prior.population(prior.eta, posterior, None, 1), prior._newcomer().correlation
    assert law.means.shape[1] == 3 * (2 * num_tasks - 2 + (num_tasks == 1))
    centre = torch.diag(prior.scatter[0] / prior.centre_precision[0])
    tree = 0.7 * prior.tree.correlation() + 0.3 * torch.eye(num_tasks)
    for place in range(len(between)):
        tasks = torch.eye(num_tasks + 1).double()
        tasks[:-1, :-1] = tree
        tasks[-1, :-1] = tasks[:-1, -1] = between[place]
        own = torch.kron(tasks, prior.covariance_matrix[0])
        joint = own + torch.kron(torch.ones_like(tasks), centre)
        precision = torch.linalg.inv(joint)
        precision[:-2, :-2] += torch.block_diag(*statistics.A[:, 0])
        covariance = torch.linalg.inv(precision)
        mean = covariance[:, :-2] @ statistics.b[:, 0].flatten()
        torch.testing.assert_close(law.means[0, place, 0], mean[-2:])
        root = law.roots.own[0, place, 0]
        torch.testing.assert_close(root @ root.mT, covariance[-2:, -2:])


def test_new_tasks_without_a_tree_come_from_the_population():
    data, _ = datasets.make_tree(7, num_features=3, seed=0)
    star, shared = (
        MultitaskModel(p) for p in (LatentHierarchy(mixing=0.0), SharedGaussian("diagonal"))
    )
    found = []
    for model in (star, shared):
        fit(model, data.select_tasks(range(6)), progress=False)
        found.append(model.adapt(data.select_tasks([6])).weights)
    torch.testing.assert_close(found[0].mean, found[1].mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[0].std, found[1].std, rtol=1e-3, atol=1e-5)


def test_a_new_task_of_a_planted_family_is_predicted_better_than_from_one_population():
    """Eight rows in 24 features, on average over four new tasks; errors of the weights."""
    data, truth = datasets.make_tree(seed=2)
    seen, new = data.select_tasks(range(28)), data.select_tasks([28, 29, 30, 31])
    few = new.rows(np.concatenate([np.flatnonzero(new.task == k)[:8] for k in range(4)]))
    errors = []
    for prior in (LatentHierarchy(), SharedGaussian("diagonal")):
        model = MultitaskModel(prior)
        fit(model, seen, progress=False)
        mean = model.adapt(few).weights.mean[28:].numpy()
        errors.append(np.linalg.norm(mean - truth.weights[28:]))
    assert errors[0] < 0.9 * errors[1]


def test_a_new_task_without_rows_is_predicted_wider_than_one_with_rows():
    data, _ = datasets.make_tree(8, num_features=3, seed=0)
    model = MultitaskModel(LatentHierarchy(mixing=0.8))
    fit(model, data.select_tasks(range(7)), progress=False)
    new = data.select_tasks([7])
    with pytest.warns(UserWarning, match="outside the fit"):
        before = model.predict(new.x.numpy(), 7)
    after = model.adapt(new.rows(np.arange(4))).predict(new.x.numpy(), 7)
    assert after.std.mean() < before.std.mean()
    assert model.relations().shape == (7, 7)


def test_new_tasks_by_svi_and_nuts():
    """They stand in the tree at the one value of η that the prior keeps."""
    data, _ = datasets.make_tree(5, num_features=2, rows_per_task=(8, 12), seed=1)
    for engine in (SVI(steps=3), NUTS(num_samples=3, warmup_steps=3, max_tree_depth=2)):
        model = MultitaskModel(LatentHierarchy(mixing=0.8))
        fit(model, data.select_tasks(range(4)), engine=engine, progress=False)
        more = model.adapt(data.select_tasks([4]))
        assert torch.isfinite(more.weights.mean).all()
        assert (more.relations()[4, :4] > 0).all()


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
