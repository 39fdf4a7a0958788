"""MultitaskModel, fit, insight, hyperparameters and statistics: the parts around the priors."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch

from bmm_multitask_learning import (
    Bernoulli,
    CoordinateAscent,
    Family,
    Gaussian,
    MultitaskModel,
    SharedGaussian,
    TaskClustering,
    TaskData,
    fit,
)
from bmm_multitask_learning.hyperparameters import pack, unpack
from bmm_multitask_learning.likelihoods import Rows
from bmm_multitask_learning.statistics import RowBlocks, TaskStatistics, task_sum

from .asserts import clustered
from .cases import LIKELIHOODS, PRIORS, built_model, draw_eta, make_data


@pytest.fixture(scope="module")
def fitted():
    data = make_data(rows=(30, 3, 12), num_features=2)
    data = TaskData(data.x, data.y, np.array(["big", "small", "middle"])[data.task.numpy()])
    model = MultitaskModel()
    fit(model, data, progress=False)
    return model, data


# ---- fit ----------------------------------------------------------------------------------


def test_fit_reports_what_it_took_and_how_long():
    result = fit(MultitaskModel(), make_data(), progress=False)
    assert result.engine.startswith("CoordinateAscent (chosen: closed form")
    assert result.seconds > 0
    assert result.bound == result.history[-1]


def test_fit_is_silent_without_progress(capfd):
    fit(MultitaskModel(), make_data(), progress=False)
    assert capfd.readouterr() == ("", "")
    fit(MultitaskModel(), make_data(), progress=True)
    assert "closed form" in capfd.readouterr().err


def test_fit_restarts_unless_told_to_go_on():
    data = make_data(rows=(20, 15))
    model = MultitaskModel()
    once = CoordinateAscent(max_iter=1)
    first = fit(model, data, engine=once, progress=False).bound
    assert fit(model, data, engine=once, progress=False).bound == first
    other = make_data(rows=(5, 6, 7), num_features=3)
    fit(model, other, engine=once, progress=False)
    assert model.weights.mean.shape == (3, 3)


def test_nothing_of_the_users_is_changed():
    x, y, task = np.ones((6, 2)), np.arange(6.0), np.array([0, 1] * 3)
    before = x.copy(), y.copy(), task.copy()
    data = TaskData(x, y, task)
    fit(MultitaskModel(), data, progress=False)
    for value, old in zip((x, y, task), before, strict=True):
        np.testing.assert_array_equal(value, old)


def test_two_models_live_side_by_side():
    data, other = make_data(seed=1), make_data(seed=2)
    one = MultitaskModel()
    fit(one, data, progress=False)
    alone = one.weights.mean.clone()
    two = MultitaskModel(likelihood=Gaussian("task"))
    fit(two, other, progress=False)
    assert torch.equal(one.weights.mean, alone)


@pytest.mark.parametrize("name", PRIORS)
def test_models_can_be_copied_and_pickled(name):
    data = make_data()
    model = MultitaskModel(PRIORS[name]())
    fit(model, data, engine=CoordinateAscent(max_iter=2), progress=False)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other.weights.mean, model.weights.mean)
        p, q = (m.predict(data.x, data.task) for m in (model, other))
        assert torch.equal(p.std, q.std)


# ---- read-outs ----------------------------------------------------------------------------


def test_contrast_is_the_difference_of_two_tasks(fitted):
    model, _ = fitted
    found = model.contrast("big", "small")
    assert found.mean.shape == (2,)
    weights = model.weights
    np.testing.assert_allclose(found.mean, weights.mean[0] - weights.mean[2], atol=0.1)
    # tasks that share a centre: less uncertain than if they were independent, or equal to it
    alone = (weights.covariance[0] + weights.covariance[2]).diagonal().sqrt().numpy()
    assert (found.std <= alone * 1.05).all()
    x = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    at = model.contrast("big", "small", x)
    assert at.mean.shape == at.std.shape == at.probability.shape == (3,)
    np.testing.assert_allclose(at.mean[:2], found.mean)
    np.testing.assert_allclose(at.mean[2], found.mean.sum())
    interval = at.interval(0.8)
    assert interval.shape == (3, 2)
    inside = (at.draws > interval[:, 0]) & (at.draws < interval[:, 1])
    np.testing.assert_allclose(inside.mean(0), 0.8, atol=0.01)
    other = model.contrast("small", "big", x).probability  # 4000 draws of its own: sd .008
    np.testing.assert_allclose(at.probability, 1 - other, atol=0.04)


def test_ranks_are_a_doubly_stochastic_table(fitted):
    model, _ = fitted
    table = model.ranking(np.array([[1.0, 0.5]]), seed=3)
    assert table.shape == (3, 3)
    np.testing.assert_allclose(table.sum(0), 1.0)
    np.testing.assert_allclose(table.sum(1), 1.0)
    f = (model.weights.mean @ torch.tensor([1.0, 0.5]).double()).numpy()
    order = np.argsort(-f)
    assert table[order[0], 0] > table[order[2], 0]
    np.testing.assert_array_equal(table, model.ranking(np.array([[1.0, 0.5]]), seed=3))
    assert not np.array_equal(table, model.ranking(np.array([[1.0, 0.5]]), seed=4))


def test_small_tasks_borrow_more(fitted):
    model, _ = fitted
    table = {row.task: row for row in model.explain_tasks()}
    assert {row.rows for row in table.values()} == {30, 3, 12}
    share = [table[name].shrinkage for name in ("small", "middle", "big")]
    assert share[0] > share[1] > share[2]
    assert all(0 <= s <= 1 for s in share)
    for row in table.values():
        expected = row.rows * row.shrinkage / (1 - row.shrinkage)
        assert row.rows_borrowed == pytest.approx(expected)
        assert row.task not in row.borrowed_from


def test_clusters_borrow_from_their_own():
    data = clustered()
    model = MultitaskModel(TaskClustering(2))
    fit(model, data, progress=False)
    for row in model.explain_tasks():
        assert len(row.borrowed_from) == 3
        assert {task % 2 for task in row.borrowed_from} == {row.task % 2}


def test_posterior_interval_covers_as_much_as_it_says(fitted):
    model, _ = fitted
    interval = model.weights.interval(0.8)
    assert interval.shape == (3, 2, 2)
    draws = model.weights.sample(20_000, seed=1)
    inside = ((draws > interval[..., 0]) & (draws < interval[..., 1])).double().mean(0)
    torch.testing.assert_close(inside, torch.full((3, 2), 0.8).double(), atol=0.015, rtol=0)
    assert torch.equal(model.weights.sample(3, seed=5), model.weights.sample(3, seed=5))


def test_interval_of_a_mixture_comes_from_its_quantiles():
    data = clustered(num_tasks=12, rows=1)
    model = MultitaskModel(TaskClustering(2))
    fit(model, data, progress=False)
    posterior = model.weights
    assert posterior.log_weights.shape == (12, 2)
    interval = posterior.interval(0.9)
    draws = posterior.sample(20_000, seed=9)
    inside = ((draws >= interval[..., 0]) & (draws <= interval[..., 1])).double().mean(0)
    assert (inside - 0.9).abs().max() < 0.03
    torch.testing.assert_close(draws.mean(0), posterior.mean, atol=0.08, rtol=0)
    torch.testing.assert_close(draws.std(0), posterior.std, rtol=0.05, atol=0.01)


def test_outputs_axis_is_kept_where_there_are_several():
    data = make_data(outputs=2)
    model = MultitaskModel()
    fit(model, data, engine=CoordinateAscent(max_iter=2), progress=False)
    weights = model.weights
    assert weights.mean.shape == weights.std.shape == (3, 2, 5)
    assert weights.covariance.shape == (3, 2, 5, 5)
    assert weights.sample(4).shape == (4, 3, 2, 5)
    assert weights.interval(0.5).shape == (3, 2, 5, 2)
    assert model.contrast(0, 1).mean.shape == (2, 5)
    assert model.contrast(0, 1, np.ones((4, 5))).mean.shape == (4, 2)


def test_families_are_reached_by_name():
    model = MultitaskModel(families={"a": Family(), "b": Family(SharedGaussian("diagonal"))})
    assert model["b"].prior.covariance == "diagonal"
    assert isinstance(model.family("a").likelihood, Gaussian)
    with pytest.raises(ValueError, match="say which"):
        _ = model.prior


# ---- hyperparameters ----------------------------------------------------------------------


@pytest.mark.parametrize("prior_name", PRIORS)
def test_hyperparameters_pack_and_unpack(prior_name):
    model = built_model(PRIORS[prior_name](), Gaussian("task"), make_data(), seed=3)
    for module in (model.prior, model.likelihood):
        eta = module.eta
        vector = pack(eta, module.transforms)
        assert vector.ndim == 1
        for name, value in unpack(vector, eta, module.transforms).items():
            torch.testing.assert_close(value, eta[name])


@pytest.mark.parametrize("prior_name", PRIORS)
def test_log_hyperprior_is_the_density_of_its_own_draws(prior_name):
    """Finite at draws, and sensitive to every site."""
    model = built_model(PRIORS[prior_name](), Gaussian(), make_data(), seed=3)
    prior = model.prior
    value = prior.log_hyperprior(prior.eta)
    assert value.shape == ()
    assert torch.isfinite(value)
    other = draw_eta(prior, 99)
    for name in prior.eta:
        changed = prior.log_hyperprior({**prior.eta, name: other[name]})
        flat = name == "proportion"  # a flat Dirichlet
        assert bool(changed != value) != flat


def test_an_unknown_hyperparameter_is_refused():
    model = built_model(SharedGaussian(), Gaussian(), make_data())
    with pytest.raises(AttributeError, match="precison"):
        model.prior.set_eta({"precison": torch.ones(1)})


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_likelihoods_name_their_sites_as_their_buffers(name):
    data = make_data(name.split("-")[0])
    model = built_model(SharedGaussian(), LIKELIHOODS[name](), data)
    assert set(model.likelihood.eta) == set(model.likelihood.transforms)


# ---- statistics ---------------------------------------------------------------------------


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("chunk", [1, 2**20])
@pytest.mark.parametrize("block_size", [1, 3, 256])
def test_blocks_sum_over_the_rows_of_each_task(block_size, chunk, ordered, monkeypatch):
    monkeypatch.setattr("bmm_multitask_learning.statistics._CHUNK_ELEMENTS", chunk)
    generator = torch.Generator().manual_seed(0)
    task = torch.tensor([2, 0, 0, 3, 2, 2, 2, 0, 2])  # tasks 1 and 4 have no rows
    task = task.sort().values if ordered else task
    phi = torch.randn(9, 4, generator=generator).double().requires_grad_()
    weight = torch.rand(9, 3, generator=generator).double()
    target = torch.randn(9, 2, generator=generator).double()
    blocks = RowBlocks.from_tasks(task, 5, block_size)
    square, linear = blocks.moments(phi, weight, target)
    plain, again = blocks.moments(phi, None, target)
    member = torch.nn.functional.one_hot(task, 5).double()
    expected = torch.einsum("nk,no,nd,ne->kode", member, weight, phi, phi)
    torch.testing.assert_close(square, expected)
    torch.testing.assert_close(plain, torch.einsum("nk,nd,ne->kde", member, phi, phi)[:, None])
    torch.testing.assert_close(linear, torch.einsum("nk,np,nd->kpd", member, target, phi))
    assert torch.equal(again, linear)
    torch.testing.assert_close(
        *(torch.autograd.grad(A.square().sum(), phi)[0] for A in (square, expected))
    )
    torch.testing.assert_close(task_sum(weight, task, 5), member.mT @ weight)
    assert torch.equal(blocks.index[blocks.valid].sort().values, torch.arange(9))


def test_blocks_of_no_rows_sum_to_zero():
    blocks = RowBlocks.from_tasks(torch.zeros(0, dtype=torch.long), 5, 256)
    phi = torch.zeros(0, 4).double()
    square, linear = blocks.moments(phi, phi[:, :3], phi[:, :2])
    assert torch.equal(square, torch.zeros(5, 3, 4, 4).double())
    assert torch.equal(linear, torch.zeros(5, 2, 4).double())


def test_blocks_are_no_longer_than_the_largest_task_needs():
    blocks = RowBlocks.from_tasks(torch.arange(3).repeat_interleave(300), 3, 256)
    assert blocks.index.shape == (6, 150)
    assert blocks.valid.all()


@pytest.mark.parametrize(
    ("weights", "shared"), [("one", True), ("by row", True), ("not observed", False)]
)
def test_gaussian_moments_are_those_of_the_observed_targets(weights, shared):
    generator = torch.Generator().manual_seed(0)
    task = torch.tensor([2, 0, 0, 3, 2, 2, 2, 0, 2])
    phi = torch.randn(9, 4, generator=generator).double()
    y = torch.randn(9, 3, generator=generator).double()
    given = torch.rand(9, generator=generator).double() if weights == "by row" else None
    if weights == "not observed":
        y[0, 1] = y[3, 2] = torch.nan  # row 3 is all of task 3
    moments = Gaussian().summarise(Rows.from_targets(phi, y, given, task, 5))
    member = torch.nn.functional.one_hot(task, 5).double()
    omega = (~y.isnan()).double() * (1.0 if given is None else given[:, None])
    r = y.nan_to_num()
    A = torch.einsum("nk,no,nd,ne->kode", member, omega, phi, phi)
    assert moments.factor.A.shape == (5, 1 if shared else 3, 4, 4)
    torch.testing.assert_close(moments.factor.A.expand_as(A), A)
    b = torch.einsum("nk,no,nd->kod", member, omega * r, phi)
    torch.testing.assert_close(moments.factor.b, b)
    torch.testing.assert_close(moments.factor.c, -0.5 * member.mT @ (omega * r.square()))
    torch.testing.assert_close(moments.count, member.mT @ omega)
    torch.testing.assert_close(moments.factor.rows, member.mT @ omega.mean(-1))


def test_expected_log_factor_is_that_of_draws():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(2, 1, 3, 3, generator=generator).double()
    statistics = TaskStatistics(
        precision=root @ root.mT,
        b=torch.randn(2, 1, 3, generator=generator).double(),
        c=torch.randn(2, 1, generator=generator).double(),
        rows=torch.ones(2).double(),
    )
    mean = torch.randn(2, 1, 3, generator=generator).double()
    scale = 0.3 * torch.randn(2, 1, 3, 2, generator=generator).double()
    w = mean + (scale @ torch.randn(100_000, 2, 1, 2, 1, generator=generator).double())[..., 0]
    quadratic = torch.einsum("skod,kode,skoe->sko", w, statistics.A, w)
    values = statistics.c + (statistics.b * w).sum(-1) - 0.5 * quadratic
    found = statistics.log_factor(mean, statistics.trace_term(scale))
    assert ((found - values.mean(0)).abs() < 5 * values.std(0) / 100_000**0.5).all()


def test_evidence_of_a_bound_says_so():
    data = make_data("bernoulli")
    model = MultitaskModel(likelihood=Bernoulli())
    fit(model, data, progress=False)
    assert model.log_evidence(data).kind == "bound"
