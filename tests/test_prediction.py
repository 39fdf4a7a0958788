"""Predictive distributions against Monte Carlo and dense conditioning; new tasks; adapt."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from bmm_multitask_learning import (
    NUTS,
    SVI,
    Bernoulli,
    Categorical,
    CoordinateAscent,
    Gaussian,
    MultitaskModel,
    Poisson,
    SharedGaussian,
    StudentT,
    TaskClustering,
    TaskData,
    fit,
)

from .asserts import clustered
from .cases import LIKELIHOODS, PRIORS, built_model, make_data
from .reference import dense_posterior


@pytest.fixture(scope="module")
def mixture():
    """A model whose predictions are mixtures of two well separated components."""
    data = clustered(num_tasks=12, rows=6)
    tasks = range(13)  # the last has one uninformative row
    x = torch.cat([data.x, torch.full((1, 3), 1e-3)])
    y = torch.cat([data.y, torch.zeros(1)])
    part = TaskData(x, y, [*data.task.tolist(), 12], tasks=tasks)
    model = MultitaskModel(TaskClustering(2))
    fit(model, part, progress=False)
    return model


def test_mixture_moments_and_quantiles_are_those_of_draws(mixture):
    x = np.array([[1.0, -0.5, 0.3], [0.2, 1.0, 0.0]])
    p = mixture.predict(x, 12)
    draws = p.sample(400_000, seed=1)
    assert draws.shape == (400_000, 2)
    error = p.std / 400_000**0.5
    assert (np.abs(draws.mean(0) - p.mean) < 5 * error).all()
    np.testing.assert_allclose(draws.std(0), p.std, rtol=0.01)
    for level in (0.05, 0.3, 0.5, 0.9):
        below = (draws <= p.quantile(level)).mean(0)
        np.testing.assert_allclose(below, level, atol=0.004)
    lower, upper = p.interval(0.8).T
    inside = ((draws > lower) & (draws < upper)).mean(0)
    np.testing.assert_allclose(inside, 0.8, atol=0.004)
    # and it is no Gaussian: mean ± 1.28 sd would be another interval
    assert np.abs(upper - (p.mean + 1.2816 * p.std)).max() > 0.1


def test_density_integrates_and_is_that_of_the_draws(mixture):
    x = np.array([[1.0, -0.5, 0.3]])
    p = mixture.predict(x, 12)
    grid = np.linspace(p.mean[0] - 12 * p.std[0], p.mean[0] + 12 * p.std[0], 8001)
    wide = mixture.predict(np.repeat(x, len(grid), 0), 12)
    density = np.exp(wide.log_prob(grid))
    step = grid[1] - grid[0]
    assert density.sum() * step == pytest.approx(1.0, abs=1e-4)
    assert (grid * density).sum() * step == pytest.approx(p.mean[0], abs=1e-3)
    cdf = np.cumsum(density) * step
    assert grid[np.searchsorted(cdf, 0.3)] == pytest.approx(p.quantile(0.3)[0], abs=2 * step)


def test_latent_std_is_std_without_noise():
    data = make_data()
    model = MultitaskModel()
    fit(model, data, progress=False)
    p = model.predict(data.x, data.task)
    noise = 1 / model.likelihood.eta["noise_level"]
    torch.testing.assert_close(p.std.square(), p.latent_std.square() + noise)
    variance = torch.einsum("nd,nde,ne->n", data.x, model.weights.covariance[data.task], data.x)
    torch.testing.assert_close(p.latent_std.square(), variance)
    torch.testing.assert_close(p.mean, (data.x * model.weights.mean[data.task]).sum(1))


def test_numpy_gives_numpy_and_tensors_give_tensors():
    data = make_data()
    model = MultitaskModel()
    fit(model, data, progress=False)
    one, two = model.predict(data.x, data.task), model.predict(data.x.numpy(), data.task.numpy())
    assert isinstance(one.mean, torch.Tensor)
    assert isinstance(one.known, torch.Tensor)
    for value in (two.mean, two.std, two.interval(), two.known, two.sample(2)):
        assert isinstance(value, np.ndarray)
    np.testing.assert_array_equal(one.mean, two.mean)
    assert one.interval(0.9).shape == (20, 2)
    np.testing.assert_array_equal(two.interval(0.5)[:, 1], two.quantile(0.75))


def test_several_outputs_keep_their_axis():
    data = make_data(outputs=2)
    model = MultitaskModel()
    fit(model, data, progress=False)
    p = model.predict(data.x, data.task)
    assert p.mean.shape == p.std.shape == p.quantile(0.2).shape == (20, 2)
    assert p.interval(0.9).shape == (20, 2, 2)
    assert p.sample(5).shape == (5, 20, 2)
    y = data.y.clone()
    y[3, 1] = torch.nan
    scores = p.log_prob(y)
    assert scores.shape == (20, 2)
    assert scores.isnan().sum() == 1
    normal = torch.distributions.Normal(p.mean, p.std)
    torch.testing.assert_close(p.log_prob(data.y), normal.log_prob(data.y))


@pytest.mark.parametrize("prior_name", ["independent", "shared-full", "clusters-full", "pooled"])
def test_unknown_tasks_are_wider_with_one_warning(prior_name):
    data = clustered(num_tasks=8, rows=30)._replace(task_features=None)
    model = MultitaskModel(PRIORS[prior_name]())
    fit(model, data, progress=False)
    labels = [0, 99, 1, 98, 99, 2]
    x = np.tile([[1.0, 0.5, -1.0]], (6, 1))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        p = model.predict(x, labels)
    assert [str(w.category.__name__) for w in seen] == ["UserWarning"]
    assert "2 task(s) outside the fit (99, 98)" in str(seen[0].message)
    np.testing.assert_array_equal(p.known, [True, False, True, False, False, True])
    if prior_name == "pooled":
        np.testing.assert_allclose(p.std, p.std[0])
    else:
        assert p.latent_std[[1, 3, 4]].min() > 2 * p.latent_std[[0, 2, 5]].max()
    assert p.mean[1] == p.mean[3] == p.mean[4]


def test_prediction_for_a_new_task_is_a_draw_from_the_population():
    """Over new tasks from the same population, 90 % intervals hold about 90 %."""
    rng = np.random.default_rng(0)
    K, D, n = 300, 2, 12
    weights = rng.standard_normal((K, D)) * [0.5, 1.0] + [1.0, -1.0]
    task = np.repeat(np.arange(K), n)
    x = rng.standard_normal((K * n, D))
    y = (x * weights[task]).sum(1) + 0.5 * rng.standard_normal(K * n)
    seen = task < 100
    model = MultitaskModel()
    fit(model, TaskData(x[seen], y[seen], task[seen]), progress=False)
    first = ~seen & (np.arange(K * n) % n == 0)  # one row of each new task: independent
    with pytest.warns(UserWarning, match="outside the fit"):
        p = model.predict(x[first], task[first])
    interval = p.interval(0.9)
    inside = (y[first] > interval[:, 0]) & (y[first] < interval[:, 1])
    # 200 Bernoulli(.9): sd .021, 3.5 of it
    assert abs(inside.mean() - 0.9) < 0.075


def test_intervals_of_known_tasks_cover():
    rng = np.random.default_rng(1)
    data = make_data(rows=(8,) * 150, num_features=3, seed=1)
    train, test = data.split(0.75, seed=0)
    del rng
    for engine in (CoordinateAscent(), SVI(steps=60)):
        model = MultitaskModel()
        fit(model, train, engine=engine, progress=False)
        interval = model.predict(test.x, test.task).interval(0.9)
        inside = (test.y > interval[:, 0]) & (test.y < interval[:, 1])
        # 300 rows, mildly dependent: 3.5 sd of .02
        assert abs(float(inside.double().mean()) - 0.9) < 0.07


# ---- classes ------------------------------------------------------------------------------


def test_probability_is_averaged_over_the_posterior():
    data = make_data("bernoulli", rows=(5, 6, 4), num_features=2)
    model = MultitaskModel(likelihood=Bernoulli())
    fit(model, data, progress=False)
    p = model.predict(data.x, data.task)
    draws = model.weights.sample(200_000, seed=3)[:, data.task]
    f = (draws * data.x).sum(-1)
    torch.testing.assert_close(p.mean, f.sigmoid().mean(0), atol=0.005, rtol=0)
    assert (p.mean - p.latent_mean.sigmoid()).abs().max() > 0.01  # the plug-in is another number
    low, high = p.interval(0.8).T
    expected = torch.stack([f[:, i].sigmoid().quantile(0.1) for i in range(15)])
    torch.testing.assert_close(low, expected, atol=0.01, rtol=0)
    assert ((low < p.mean) & (p.mean < high)).all()
    mass = p.log_prob(torch.ones(15)).exp() + p.log_prob(torch.zeros(15)).exp()
    torch.testing.assert_close(mass, torch.ones(15).double())
    torch.testing.assert_close(p.log_prob(torch.ones(15)).exp(), p.mean)
    assert set(p.sample(50).unique().tolist()) == {0.0, 1.0}


def test_class_probabilities_sum_to_one_and_are_averages():
    data = make_data("categorical", num_features=2)
    model = MultitaskModel(likelihood=Categorical(4))
    fit(model, data, progress=False)
    p = model.predict(data.x, data.task)
    assert p.mean.shape == (20, 4)
    torch.testing.assert_close(p.mean.sum(1), torch.ones(20).double())
    draws = model.weights.sample(100_000, seed=3)[:, data.task]  # (S, N, O, D)
    average = torch.einsum("snod,nd->sno", draws, data.x).softmax(-1).mean(0)
    torch.testing.assert_close(p.mean, average, atol=0.02, rtol=0)
    each = torch.stack([p.log_prob(torch.full((20,), float(c))).exp() for c in range(4)], 1)
    torch.testing.assert_close(each, p.mean)
    assert p.interval(0.5).shape == (20, 4, 2)
    assert p.sample(30).shape == (30, 20)


@pytest.mark.parametrize("likelihood", [Poisson(), StudentT()])
def test_quantiles_of_other_likelihoods(likelihood):
    data = make_data("bernoulli", rows=(12, 9, 14), num_features=2)
    model = MultitaskModel(likelihood=likelihood)
    fit(model, data, engine=SVI(steps=40), progress=False)
    p = model.predict(data.x[:3], data.task[:3])
    draws = p.sample(200_000)
    for level in (0.1, 0.5, 0.9):
        quantile = p.quantile(level)
        assert ((draws <= quantile + 1e-6).double().mean(0) >= level - 0.006).all()
        assert ((draws < quantile - 1e-6).double().mean(0) <= level + 0.006).all()


# ---- adapt --------------------------------------------------------------------------------


def fixed_model(prior, data):
    """A model at given hyperparameters, with its posterior of `data`."""
    model = built_model(prior, Gaussian(), data, seed=11)
    family = model.family()
    statistics = family.likelihood.statistics(
        family.likelihood.summarise(model.rows("tasks", data)), family.likelihood.eta
    )
    posterior = prior.condition(prior.reduce(statistics), prior.eta)
    prior.settle(prior.reduce(statistics), posterior)
    family.set_posterior(posterior)
    return model


@pytest.mark.parametrize(
    "name", ["independent", "shared-full", "shared-diagonal", "clusters-full"]
)
def test_adapt_to_more_rows_is_exact_conditioning(name):
    """The task's law given all its rows and the others', as in the dense joint Gaussian."""
    data = make_data()._replace(task_features=None)
    model = fixed_model(PRIORS[name](), data)
    more = make_data(rows=(0, 6, 0), seed=9)
    more = TaskData(more.x, more.y, more.task.numpy())
    adapted = model.adapt(more)
    whole = TaskData(
        torch.cat([data.x, more.x]), torch.cat([data.y, more.y]), [*data.task.tolist(), *[1] * 6]
    )
    expected = dense_posterior(model.prior, model.likelihood, whole)
    mean = expected.mean[0].reshape(3, 5)
    np.testing.assert_allclose(adapted.weights.mean[1], mean[1], rtol=1e-7, atol=1e-9)
    covariance = expected.covariance[0].reshape(3, 5, 3, 5)[1, :, 1]
    np.testing.assert_allclose(adapted.weights.covariance[1], covariance, rtol=1e-6, atol=1e-9)
    # the others keep their law: each task is updated by its own rows alone
    torch.testing.assert_close(adapted.weights.mean[[0, 2]], model.weights.mean[[0, 2]])
    assert adapted.family().rows_per_task[1] == model.family().rows_per_task[1] + 6


@pytest.mark.parametrize("name", ["shared-full", "shared-isotropic", "clusters-full"])
def test_adapt_to_a_new_task_is_exact_conditioning(name):
    data = make_data()._replace(task_features=None)
    model = fixed_model(PRIORS[name](), data)
    new = make_data(rows=(6,), seed=9)
    adapted = model.adapt(TaskData(new.x, new.y, ["new"] * 6))
    assert adapted.tasks == (0, 1, 2, "new")
    whole = TaskData(
        torch.cat([data.x, new.x]), torch.cat([data.y, new.y]), [*data.task.tolist(), *[3] * 6]
    )
    wider = built_model(PRIORS[name](), Gaussian(), whole)
    wider.prior.register_buffer("scatter", model.prior.scatter)
    wider.prior.set_eta(model.prior.eta)
    wider.likelihood.set_eta(model.likelihood.eta)
    expected = dense_posterior(wider.prior, wider.likelihood, whole)
    np.testing.assert_allclose(
        adapted.weights.mean[3], expected.mean[0].reshape(4, 5)[3], rtol=1e-7, atol=1e-9
    )
    covariance = expected.covariance[0].reshape(4, 5, 4, 5)[3, :, 3]
    np.testing.assert_allclose(adapted.weights.covariance[3], covariance, rtol=1e-6, atol=1e-9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert adapted.predict(new.x, "new").known.all()


@pytest.mark.parametrize("likelihood_name", LIKELIHOODS)
@pytest.mark.parametrize("prior_name", ["independent", "pooled", "shared-full", "clusters-full"])
def test_adapt_leaves_the_model_alone_and_learns(prior_name, likelihood_name):
    kind = likelihood_name.split("-")[0]
    data = make_data(kind, rows=(25, 20, 30), num_features=2)
    model = MultitaskModel(PRIORS[prior_name](), LIKELIHOODS[likelihood_name]())
    fit(model, data, engine=CoordinateAscent(max_iter=10), progress=False)
    before = {n: v.clone() for n, v in model.named_buffers() if v is not None}
    x = data.x.numpy()
    old = model.predict(x, data.task.numpy()).mean
    new = make_data(kind, rows=(25, 20, 30), num_features=2, seed=5)
    part = TaskData(new.x, new.y, np.array(["u", "v", "w"])[new.task.numpy()])
    adapted = model.adapt(part)
    for name, value in model.named_buffers():
        if value is not None:
            assert torch.equal(value, before[name]), name
    np.testing.assert_array_equal(model.predict(x, data.task.numpy()).mean, old)
    np.testing.assert_allclose(adapted.predict(x, data.task.numpy()).mean, old, rtol=1e-9)
    labels = [part.tasks[k] for k in part.task.tolist()]
    with pytest.warns(UserWarning, match="outside the fit"):
        ignorant = model.predict(new.x, labels).log_prob(new.y).mean()
    # pooled tasks learn too: each has a vector of its own from then on
    assert adapted.predict(new.x, labels).log_prob(new.y).mean() > ignorant
    again = adapted.adapt(part)
    assert again.tasks == adapted.tasks
    assert torch.isfinite(again.weights.std).all()
    assert len(again.explain_tasks()) == 6


def test_adapt_of_bernoulli_is_near_a_fit_of_all_rows():
    data = make_data("bernoulli", rows=(40, 50, 45, 40, 60), num_features=2)
    model = MultitaskModel(likelihood=Bernoulli())
    fit(model, data, progress=False)
    last = data.task == 4
    first = data.rows(~last).select_tasks([0, 1, 2, 3])
    smaller = MultitaskModel(likelihood=Bernoulli())
    fit(smaller, first, progress=False)
    part = data.rows(last).select_tasks([4])
    adapted = smaller.adapt(part)
    difference = (adapted.weights.mean[4] - model.weights.mean[4]) / model.weights.std[4]
    assert difference.abs().max() < 0.6


def test_predictions_average_over_nuts_draws():
    data = make_data(rows=(5, 4, 6, 3), num_features=2)
    model = MultitaskModel(SharedGaussian("isotropic"))
    fit(model, data, engine=NUTS(60, 40, max_tree_depth=4), progress=False)
    assert model.weights.means.shape[1] == 60
    with pytest.warns(UserWarning, match="outside the fit"):
        p = model.predict(data.x.numpy(), "new")
    assert np.isfinite(p.std).all()
    adapted = model.adapt(TaskData(data.x[:3], data.y[:3], ["new"] * 3))
    assert adapted.predict(data.x.numpy(), "new").latent_std.mean() < p.latent_std.mean()


def test_a_frames_own_array_is_taken():
    data = make_data()
    model = MultitaskModel()
    fit(model, data, progress=False)
    x = data.x.numpy().copy()
    x.flags.writeable = False  # as pandas gives it
    np.testing.assert_array_equal(model.predict(x, 0).mean, model.predict(data.x, 0).mean)
