"""Task features in the mean of a prior: closed forms, planted effects, none, and errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bmm_multitask_learning import (
    NUTS,
    SVI,
    CoordinateAscent,
    Gaussian,
    LatentHierarchy,
    MultitaskModel,
    PooledTasks,
    SharedGaussian,
    TaskClustering,
    TaskData,
    TaskMean,
    datasets,
    fit,
    load,
)
from bmm_multitask_learning.trees.task_tree import HeightsTransform, caterpillar

from .cases import built_model, make_data
from .test_latent_hierarchy_svi import program_of


def planted(seed: int, *, effect: float, num_tasks: int = 40, num_features: int = 2):
    """Tasks whose weights follow features, 50 without rows: data, weights, f, slopes."""
    rng = np.random.default_rng([seed, num_tasks])
    K, D, n = num_tasks, 4, 12
    f = rng.standard_normal((K + 50, num_features))
    slopes = effect * rng.standard_normal((num_features, D))
    weights = rng.standard_normal(D) + f @ slopes + 0.4 * rng.standard_normal((K + 50, D))
    task = np.repeat(np.arange(K), n)
    x = rng.standard_normal((K * n, D))
    y = (x * weights[task]).sum(1) + 0.8 * rng.standard_normal(K * n)
    return TaskData(x, y, task, task_features=f[:K]), weights, f, slopes


def new_tasks(model: MultitaskModel, f: np.ndarray):
    part = model.family()
    features = torch.as_tensor(f)
    return model.prior.population(part.draws, part.posterior, features, len(features))


def error_of_new(prior, data: TaskData, weights: np.ndarray, f: np.ndarray) -> float:
    model = MultitaskModel(prior)
    fit(model, data, progress=False)
    K = data.num_tasks
    return float(np.sqrt(np.square(new_tasks(model, f[K:]).mean.numpy() - weights[K:]).mean()))


def test_is_the_dense_gaussian_at_fixed_hyperparameters():
    """Evidence and means of all tasks' weights at once, around M f_k."""
    data = make_data(rows=(4, 1, 6), num_features=2)
    model = built_model(TaskMean(SharedGaussian()), Gaussian(), data, seed=3)
    prior, eta = model.prior, model.prior.eta
    prior.register_buffer("size", torch.tensor([0.7, 1.4], dtype=torch.float64))
    statistics = model.likelihood.statistics(
        model.likelihood.summarise(model.rows("tasks", data)), model.likelihood.eta
    )
    found = prior.condition(statistics, eta)
    f = data.task_features
    f = (f - f.mean(0)) / f.std(0, correction=0)
    effect = prior.scatter.sqrt() * prior.size[:, None, None] * eta["slopes"]
    mean = torch.einsum("kf,fod->kod", f, effect).flatten()
    # moments of p(W | η) by its definition: Cov = 11ᵀ ⊗ S + I ⊗ Σ
    S = torch.diag(prior.prior.scatter[0] / eta["centre_precision"])
    between = torch.kron(torch.ones(3, 3).double(), S)
    covariance = between + torch.kron(torch.eye(3).double(), prior.prior.covariance_matrix[0])
    precision = torch.linalg.inv(covariance)
    A = torch.block_diag(*statistics.A[:, 0])
    b = statistics.b.flatten()
    whole = precision + A
    expected = torch.linalg.solve(whole, b + precision @ mean)
    torch.testing.assert_close(found.means.flatten(), expected)
    shift = b - A @ mean
    evidence = (
        statistics.c.sum()
        + b @ mean
        - 0.5 * mean @ A @ mean
        + 0.5 * shift @ torch.linalg.solve(whole, shift)
        - 0.5 * torch.linalg.slogdet(torch.eye(6).double() + covariance @ A).logabsdet
    )
    torch.testing.assert_close(found.log_normaliser, evidence)


def test_planted_effect_is_found_and_predicts_new_tasks():
    data, weights, f, slopes = planted(0, effect=1.0)
    model = MultitaskModel(TaskMean(SharedGaussian()))
    fit(model, data, progress=False)
    expected = slopes * f[: data.num_tasks].std(0)[:, None]
    # sd of a slope about .5 / sqrt(40) = .08
    np.testing.assert_allclose(model.prior.effect[:, 0], expected, atol=0.3)
    alone = error_of_new(SharedGaussian(), data, weights, f)
    # the tasks' own scatter is .4
    assert error_of_new(TaskMean(SharedGaussian()), data, weights, f) < 0.5 < 0.5 * alone


@pytest.mark.slow
def test_features_that_say_nothing_cost_next_to_nothing():
    ratios = []
    for seed in range(4):
        data, weights, f, _ = planted(seed, effect=0.0, num_tasks=30, num_features=3)
        prior = TaskMean(SharedGaussian())
        ratios.append(error_of_new(prior, data, weights, f))
        ratios[-1] /= error_of_new(SharedGaussian(), data, weights, f)
        assert prior.effect.square().mean().sqrt() < 0.1
    assert np.mean(ratios) < 1.03


def test_uncertain_slopes_widen_the_law_of_new_tasks_that_are_far():
    data, *_ = planted(1, effect=1.0, num_tasks=10)
    model = MultitaskModel(TaskMean(SharedGaussian()))
    fit(model, data, progress=False)
    near, far = new_tasks(model, np.array([[0.0, 0.0], [6.0, -6.0]])).std
    assert (far > near).all()


def test_nearly_agrees_with_one_cluster_with_a_task_dependent_mean():
    data, *_ = planted(2, effect=0.7)
    found = []
    for prior in (
        TaskMean(SharedGaussian("diagonal")),
        TaskClustering(1, task_mean=True, n_init=1),
    ):
        model = MultitaskModel(prior)
        fit(model, data, progress=False)
        found.append(model.weights.mean)
    assert (found[0] - found[1]).square().mean().sqrt() < 0.03


def test_bound_does_not_fall_within_a_climb():
    data, *_ = planted(3, effect=0.7, num_tasks=15)
    result = fit(MultitaskModel(TaskMean(SharedGaussian())), data, progress=False)
    assert result.jumps
    assert all(np.diff(result.history) >= -1e-8 * abs(result.bound))


def test_same_in_a_saved_model_for_new_tasks(tmp_path):
    data, _, f, _ = planted(4, effect=0.5, num_tasks=12)
    model = MultitaskModel(TaskMean(TaskClustering(2, gating=True, n_init=1)))
    fit(model, data, engine=CoordinateAscent(max_iter=5), progress=False)
    model.save(tmp_path / "model")
    again = load(tmp_path / "model")
    assert repr(again.prior) == repr(model.prior)
    for part in ("mean", "std"):
        before, after = (getattr(new_tasks(m, f[12:]), part) for m in (model, again))
        torch.testing.assert_close(before, after, rtol=0, atol=0)


def test_draws_of_the_slopes_spread_the_law_of_new_tasks():
    data, *_ = planted(5, effect=0.5, num_tasks=6, num_features=1)
    model = MultitaskModel(TaskMean(SharedGaussian("isotropic")))
    fit(model, data, engine=NUTS(num_samples=5, warmup_steps=5, max_tree_depth=3), progress=False)
    law = new_tasks(model, np.array([[0.0], [9.0]]))
    assert law.means.shape == (2, 5, 1, 4)
    assert (law.std[1] > law.std[0]).all()


def test_svi_goes_back_to_its_best_state():
    data, *_ = planted(6, effect=0.5, num_tasks=12)
    engine = SVI(steps=300, lr=0.2, patience=1, validation_fraction=0.2)
    model = MultitaskModel(TaskMean(SharedGaussian()))
    result = fit(model, data, engine=engine, progress=False)
    assert result.converged  # it stopped early, and took what validation had seen as best
    assert len(result.history) < 300
    assert model.predict(data.x[:3], data.tasks[0]).mean.shape == (3,)


def test_svi_moves_and_seeks_anew_a_tree_within():
    """As of a tree alone: of what the task features leave of the weights."""
    data, _ = datasets.make_tree(8, num_features=4, rows_per_task=(20, 30), seed=1)
    features = np.random.default_rng(1).standard_normal((8, 1))
    shifts = data.x[:, 0] * torch.from_numpy(features)[data.task, 0]
    data = data._replace(y=data.y + 2 * shifts, task_features=torch.from_numpy(features))
    model = MultitaskModel(TaskMean(LatentHierarchy(mixing=0.8)))
    program = program_of(model, data)
    tree, guide = model.prior.prior, program.guides["tasks"]
    sought = tree.tree
    for step in (0.0, 0.5):
        guide.points[0].data.add_(step)
        guide.place(model.prior)
        assert torch.equal(tree.heights, HeightsTransform()(guide.points[0]))
    tree.register_buffer("merges", caterpillar(8, sought.heights).merges)
    guide.follow(model.prior)
    ((before, after),) = program.renew({"tasks": data}, program.optimiser(0.01, 0.0))
    assert after > before
    assert tree.tree.clades().keys() == sought.clades().keys()
    fit(model, data, engine=SVI(steps=40, lr=0.05), progress=False)
    moved = tree.tree
    assert torch.equal(moved.merges, sought.merges)
    assert float((moved.heights - sought.heights).abs().max()) > 0.02


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="products of x with the task features"):
        TaskMean(PooledTasks())
    with pytest.raises(ValueError, match="one TaskMean"):
        TaskMean(TaskMean(SharedGaussian()))
    data, *_ = planted(6, effect=0.5, num_tasks=5)
    with pytest.raises(ValueError, match="the data have none"):
        fit(MultitaskModel(TaskMean(SharedGaussian())), data._replace(task_features=None))
    model = MultitaskModel(TaskMean(SharedGaussian()))
    fit(model, data, engine=CoordinateAscent(max_iter=2), progress=False)
    with (
        pytest.warns(UserWarning, match="outside the fit"),
        pytest.raises(ValueError, match=r"give task_features of shape \(1, 2\)"),
    ):
        model.predict(np.ones((1, 4)), "new")
