"""LatentHierarchy under SVI: branch lengths by gradient, the tree sought anew between epochs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bmm_multitask_learning import (
    SVI,
    CoordinateAscent,
    Gaussian,
    LatentHierarchy,
    MultitaskModel,
    SharedGaussian,
    TaskData,
    datasets,
    fit,
)
from bmm_multitask_learning.backbones import MLP
from bmm_multitask_learning.engines.start import start_sites
from bmm_multitask_learning.engines.variational_program import VariationalProgram
from bmm_multitask_learning.trees import TaskTree
from bmm_multitask_learning.trees.task_tree import HeightsTransform, caterpillar

from .cases import built_model, make_data
from .trees import random_tree


def share_found(tree, truth):
    return len(set(tree.clades()) & truth.clades) / len(truth.clades)


def error(model, truth):
    return float(np.sqrt(np.square(model.weights.mean.numpy() - truth.weights).mean()))


def program_of(model, data):
    """The state of SVI before its first step."""
    model.build(data)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        sites = start_sites(model.family(), model.rows("tasks", data), generator, progress=False)
    return VariationalProgram(model, {"tasks": data}, {"tasks": sites})


# ---- heights ------------------------------------------------------------------------------


def test_heights_from_unconstrained_space_and_back():
    heights = torch.tensor([0.125, 0.125, 0.5, 1.0]).double()
    back = HeightsTransform()(HeightsTransform().inv(heights))
    steps = back.diff(prepend=back.new_zeros(1))
    assert (steps > 0).all()
    assert float(back[-1]) == 1.0
    torch.testing.assert_close(back, heights, rtol=0, atol=5e-4)
    for few in (torch.ones(0).double(), torch.ones(1).double()):
        assert torch.equal(HeightsTransform()(HeightsTransform().inv(few)), few)


@pytest.mark.parametrize("mixing", [0.6, 1.0])
def test_gradient_of_the_evidence_by_the_heights(mixing):
    data = make_data(rows=(7, 2, 11, 5, 3), num_features=2)
    model = built_model(LatentHierarchy("full", mixing=mixing), Gaussian(), data, seed=1)
    prior, likelihood = model.prior, model.likelihood
    statistics = likelihood.statistics(
        likelihood.summarise(model.rows("tasks", data)), likelihood.eta
    )
    tree = random_tree(5, seed=3)
    prior.register_buffer("merges", tree.merges)

    def evidence(u):
        prior.register_buffer("heights", HeightsTransform()(u))
        return prior.condition(statistics, prior.eta).log_normaliser

    assert torch.autograd.gradcheck(
        evidence, HeightsTransform().inv(tree.heights).requires_grad_()
    )


@pytest.mark.parametrize("share", ["weights", "covariance"])
def test_svi_moves_the_heights_of_the_merges(share):
    data, _ = datasets.make_tree(8, num_features=3, rows_per_task=(20, 30), seed=1)
    trees = []
    for steps in (1, 40):
        model = MultitaskModel(LatentHierarchy(share=share, mixing=0.8))
        result = fit(model, data, engine=SVI(steps=steps, lr=0.05), progress=False)
        assert result.jumps == ()
        trees.append(model.prior.tree)
    start, end = trees
    assert torch.equal(start.merges, end.merges)
    assert float((start.heights - end.heights).abs().max()) > 0.02
    assert (end.heights.diff() >= 0).all()
    assert float(end.heights[-1]) == 1.0
    assert not end.heights.requires_grad


def test_without_a_tree_the_heights_stand():
    data, _ = datasets.make_clusters(6, 1, rows_per_task=8, seed=1)
    heights = []
    for steps in (1, 20):
        model = MultitaskModel(LatentHierarchy(mixing=0.0))
        fit(model, data, engine=SVI(steps=steps, lr=0.1), progress=False)
        heights.append(model.prior.heights)
    torch.testing.assert_close(*heights)


# ---- the tree sought anew -----------------------------------------------------------------


def test_a_wrong_tree_is_replaced_and_the_jump_is_reported():
    data, truth = datasets.make_tree(16, num_features=12, seed=0)
    model = MultitaskModel(LatentHierarchy())
    program = program_of(model, data)
    prior, guide = model.prior, program.guides["tasks"]
    sought = prior.tree
    assert share_found(sought, truth) > 0.8
    wrong = caterpillar(16, sought.heights)
    prior.register_buffer("merges", wrong.merges)
    prior.register_buffer("heights", wrong.heights)
    guide.follow(prior)
    optimiser = program.optimiser(0.01, 0.0)
    ((before, after),) = program.renew({"tasks": data}, optimiser)
    assert after > before + 20
    assert prior.tree.clades().keys() == sought.clades().keys()
    torch.testing.assert_close(HeightsTransform()(guide.points[0]), prior.heights)


def test_a_tree_of_the_same_clades_keeps_its_heights():
    data, _ = datasets.make_tree(16, num_features=12, seed=0)
    program = program_of(MultitaskModel(LatentHierarchy()), data)
    prior, guide = program.network.prior, program.guides["tasks"]
    moved = prior.heights.square()
    prior.register_buffer("heights", moved)
    guide.follow(prior)
    assert program.renew({"tasks": data}, program.optimiser(0.01, 0.0)) == []
    torch.testing.assert_close(prior.heights, moved, rtol=1e-3, atol=1e-3)


def test_a_snapshot_keeps_the_tree():
    data, _ = datasets.make_tree(5, num_features=3, rows_per_task=(8, 12), seed=0)
    program = program_of(MultitaskModel(LatentHierarchy(mixing=0.7)), data)
    program.publish()
    state = program.snapshot()
    prior, guide = program.network.prior, program.guides["tasks"]
    before = prior.tree
    other = TaskTree(before.merges.flip(1), before.heights.square())
    prior.register_buffer("merges", other.merges)
    prior.register_buffer("heights", other.heights)
    guide.follow(prior)
    program.restore(state)
    program.publish()
    assert torch.equal(prior.merges, before.merges)
    assert torch.equal(prior.heights, before.heights)


@pytest.mark.slow
def test_engines_agree_on_a_small_planted_tree():
    """SVI's heights are its own: weights differ by a fraction of their posterior deviations."""
    data, _ = datasets.make_tree(8, num_features=4, rows_per_task=(8, 16), seed=203)
    means, deviations = [], []
    for engine in (CoordinateAscent(), SVI(steps=500)):
        model = MultitaskModel(LatentHierarchy(mixing=0.9))
        fit(model, data, engine=engine, progress=False)
        means.append(model.weights.mean)
        deviations.append(model.weights.std)
    apart = (means[0] - means[1]).abs() / deviations[0]
    assert float(apart.max()) < 0.8
    assert float(apart.mean()) < 0.25
    ratio = deviations[1] / deviations[0]
    assert 0.75 < float(ratio.min()) <= float(ratio.max()) < 1.15


@pytest.mark.slow
def test_a_planted_tree_is_found_from_minibatches():
    data, truth = datasets.make_tree(16, num_features=12, seed=203)
    model, shared = MultitaskModel(LatentHierarchy()), MultitaskModel(SharedGaussian("diagonal"))
    engine = SVI(steps=300, batch_size=300)
    result = fit(model, data, engine=engine, progress=False)
    fit(shared, data, progress=False)
    assert len(result.history) == 300
    assert share_found(model.prior.tree, truth) >= 0.85
    assert model.prior.mixing_weight >= 0.8
    assert error(model, truth) < 0.9 * error(shared, truth)


@pytest.mark.slow
def test_no_tree_comes_up_under_svi_among_exchangeable_tasks():
    data, truth = datasets.make_clusters(30, 1, rows_per_task=12, within=0.6, seed=2)
    model, shared = MultitaskModel(LatentHierarchy()), MultitaskModel(SharedGaussian("diagonal"))
    result = fit(model, data, engine=SVI(steps=300), progress=False)
    fit(shared, data, progress=False)
    assert model.prior.mixing_weight == 0
    assert result.jumps == ()
    assert error(model, truth) < 1.02 * error(shared, truth)


@pytest.mark.slow
def test_a_tree_that_a_backbone_has_outgrown_is_sought_anew():
    """In features that none of the inputs is: the tree of the end is nearer the planted one."""
    _, truth = datasets.make_tree(16, num_features=6, rows_per_task=(1, 1), seed=200)
    rng = np.random.default_rng(200)
    slopes, offsets = 1.5 * rng.standard_normal((3, 6)), rng.standard_normal(6)
    task = np.repeat(np.arange(16), 60)
    x = rng.standard_normal((len(task), 3))
    f = (np.tanh(x @ slopes + offsets) * truth.weights[task]).sum(1)
    data = TaskData(x, f + 0.3 * rng.standard_normal(len(f)), task)
    found = []
    for steps in (1, 400):
        model = MultitaskModel(LatentHierarchy(mixing=0.6), backbone=MLP(3, [16, 8], seed=200))
        result = fit(model, data, engine=SVI(steps=steps, lr=0.02), progress=False)
        found.append(share_found(model.prior.tree, truth))
    assert len(result.jumps) == 2
    assert found[1] > found[0] + 0.1
