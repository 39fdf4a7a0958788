"""to_arviz: named draws whose summaries are the posterior's."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
import torch

from bmm_multitask_learning import (
    NUTS,
    Bernoulli,
    Categorical,
    Family,
    Gaussian,
    MultitaskModel,
    PooledTasks,
    SharedGaussian,
    TaskClustering,
    TaskData,
    fit,
)

from .cases import make_data

az = pytest.importorskip("arviz")

NAMES = np.array(["north", "south", "west"])


def fitted(prior=None, kind="gaussian", likelihood=None, engine=None, **sizes):
    data = make_data(kind, **sizes)
    data = TaskData(
        data.x,
        data.y,
        NAMES[data.task.numpy()],
        feature_names=[f"x{d}" for d in range(data.x.shape[1])],
    )
    model = MultitaskModel(prior, likelihood)
    fit(model, data, engine=engine, progress=False)
    return model, data


@pytest.fixture(scope="module")
def exported():
    model, data = fitted(rows=(30, 24, 40), num_features=2)
    return model, data, model.to_arviz(data, num_samples=4000)


def test_summary_is_the_posterior(exported):
    model, _, found = exported
    table = az.summary(found, var_names=["weights"], kind="stats", round_to="none")
    mean, std = model.weights.mean.flatten().numpy(), model.weights.std.flatten().numpy()
    assert table.index[1] == "weights[north, x1]"
    # 6 means of 4000 draws: false alarm below 1e-3
    assert (np.abs(table["mean"].to_numpy() - mean) < 4 * std / 4000**0.5).all()
    np.testing.assert_allclose(table["sd"].to_numpy(), std, rtol=0.06)


def test_what_is_left_out_one_by_one_is_close_to_what_is_left_out_in_truth(exported):
    """PSIS-LOO against fits without the row, hyperparameters and noise as they are."""
    model, data, found = exported
    loo = az.loo(found, pointwise=True)
    values = np.asarray(loo.loo_i if hasattr(loo, "loo_i") else loo.elpd_i)
    prior, likelihood = model.prior, model.likelihood
    for row in (0, 17, 60):
        others = np.arange(len(data)) != row
        rows = model.rows("tasks", data.rows(others))
        statistics = likelihood.statistics(likelihood.summarise(rows), likelihood.eta)
        posterior = prior.condition(statistics, prior.eta)
        task = int(data.task[row])
        f = float(data.x[row] @ posterior.mean[task])
        variance = float(data.x[row] @ posterior.covariance[task] @ data.x[row])
        noise = 1 / float(likelihood.get_buffer("noise_level"))
        exact = torch.distributions.Normal(f, (variance + noise) ** 0.5).log_prob(data.y[row])
        assert values[row] == pytest.approx(float(exact), abs=0.05)


def test_rows_and_their_groups(exported):
    model, data, found = exported
    assert found["log_likelihood"]["y"].dims == ("chain", "draw", "row")
    assert found["posterior"]["weights"].dims == ("chain", "draw", "task", "feature")
    np.testing.assert_array_equal(found["observed_data"]["y"], data.y)
    np.testing.assert_array_equal(
        NAMES[found["constant_data"]["task_of_row"]], np.array(data.tasks)[data.task]
    )
    draws = found["posterior_predictive"]["y"].to_numpy()[0]
    p = model.predict(data.x.numpy(), np.array(data.tasks)[data.task])
    # 94 rows, 4000 draws each: false alarm below 1e-3
    assert (np.abs(draws.mean(0) - p.mean) < 5 * p.std / 4000**0.5).all()
    np.testing.assert_allclose(draws.std(0), p.std, rtol=0.07)
    level = found["constant_data"]["noise_level"].to_numpy()
    assert level == model.likelihood.get_buffer("noise_level").numpy()


def test_log_likelihood_is_that_of_the_weights_drawn(exported):
    model, data, found = exported
    weights = found["posterior"]["weights"].to_numpy()[0]
    f = np.einsum("nd,snd->sn", data.x.numpy(), weights[:, data.task.numpy()])
    std = float(model.likelihood.get_buffer("noise_level")) ** -0.5
    by_hand = torch.distributions.Normal(torch.as_tensor(f), std).log_prob(data.y)
    np.testing.assert_allclose(found["log_likelihood"]["y"].to_numpy()[0], by_hand, rtol=1e-10)


def test_rows_without_a_target_have_no_entry():
    model, data = fitted()
    y = data.y.clone()
    y[3:5] = torch.nan
    labels = NAMES[data.task.numpy()]
    found = model.to_arviz(TaskData(data.x, y, labels), num_samples=7)
    rows = found["log_likelihood"]["row"].to_numpy().tolist()
    assert rows == [n for n in range(20) if n not in (3, 4)]
    assert found["log_likelihood"]["y"].shape == (1, 7, 18)
    assert found["posterior"]["feature"].to_numpy().tolist() == list(range(5))  # no names here


def test_without_data_there_are_weights_alone():
    model, _ = fitted()
    found = model.to_arviz(num_samples=6, seed=2)
    assert found["posterior"]["weights"].shape == (1, 6, 3, 5)
    assert not hasattr(found, "observed_data")
    again = model.to_arviz(num_samples=6, seed=2)
    other = model.to_arviz(num_samples=6, seed=3)
    assert (found["posterior"]["weights"] == again["posterior"]["weights"]).all()
    assert (found["posterior"]["weights"] != other["posterior"]["weights"]).all()


@pytest.mark.parametrize(
    ("kind", "likelihood", "shape"),
    [("bernoulli", Bernoulli, (3, 5)), ("categorical", lambda: Categorical(4), (3, 4, 5))],
)
def test_classes(kind, likelihood, shape):
    model, data = fitted(SharedGaussian("isotropic"), kind, likelihood())
    found = model.to_arviz(data, num_samples=300)
    assert found["posterior"]["weights"].shape == (1, 300, *shape)
    drawn = found["posterior_predictive"]["y"].to_numpy()
    assert drawn.shape == (1, 300, 20)
    assert set(np.unique(drawn)) <= set(range(4))
    p = model.predict(data.x.numpy(), NAMES[data.task.numpy()]).mean
    chance = p if p.ndim == 1 else p[:, 2]
    share = (drawn[0] == (1 if p.ndim == 1 else 2)).mean(0)
    assert np.abs(share - chance).max() < 5 * 0.5 / 300**0.5


def test_several_targets_have_one_likelihood_a_row():
    model, data = fitted(SharedGaussian("diagonal"), likelihood=Gaussian(), outputs=2)
    found = model.to_arviz(data, num_samples=8)
    assert found["posterior_predictive"]["y"].dims == ("chain", "draw", "row", "target")
    assert found["posterior"]["weights"].dims == ("chain", "draw", "task", "output", "feature")
    assert found["log_likelihood"]["y_row"].shape == (1, 8, 20)


@pytest.mark.parametrize("prior", [PooledTasks(), TaskClustering(2, n_init=1)])
def test_other_priors(prior):
    model, data = fitted(prior, num_features=2)
    draws = model.to_arviz(data, num_samples=2000)["posterior"]["weights"].to_numpy()[0]
    spread = model.weights.std.numpy()
    error = np.abs(draws.mean(0) - model.weights.mean.numpy())
    assert (error < 5 * spread / 2000**0.5).all()
    same = (draws == draws[:, :1]).all()
    assert same == isinstance(prior, PooledTasks)


def test_draws_of_nuts_keep_their_hyperparameters():
    model, data = fitted(
        SharedGaussian("isotropic"),
        engine=NUTS(num_samples=9, warmup_steps=8, max_tree_depth=3),
        num_features=2,
    )
    found = model.to_arviz(data, num_samples=9)
    kept = model.family().kept_draws
    assert kept
    for site, value in kept.items():
        np.testing.assert_array_equal(found["posterior"][site].to_numpy()[0], value)
        assert site not in found["constant_data"]


def test_a_family_by_name():
    families = {"a": Family(SharedGaussian()), "b": Family(PooledTasks(), Bernoulli())}
    model = MultitaskModel(families=families)
    data = {"a": make_data(), "b": make_data("bernoulli", rows=(6, 4, 5, 3))}
    fit(model, data, progress=False)
    found = model.to_arviz(data["b"], num_samples=5, family="b")
    assert found["posterior"]["weights"].shape == (1, 5, 4, 5)
    with pytest.raises(ValueError, match="say which with family"):
        model.to_arviz()


def test_from_version_1_on_groups_come_in_one_dict(monkeypatch):
    model, data = fitted()
    module = types.ModuleType("arviz")
    module.__version__ = "1.3.0"
    module.from_dict = lambda data, *, coords, dims: (data, coords, dims)
    monkeypatch.setitem(sys.modules, "arviz", module)
    groups, coords, dims = model.to_arviz(data, num_samples=6)
    assert set(groups) == {
        *("posterior", "posterior_predictive", "log_likelihood", "observed_data"),
        "constant_data",
    }
    for group, name in (("posterior", "weights"), ("observed_data", "y")):
        sizes = [len(coords[dim]) for dim in dims[name]]
        assert list(groups[group][name].shape)[-len(sizes) :] == sizes


def test_errors_say_what_to_do(monkeypatch):
    model, data = fitted()
    with pytest.raises(ValueError, match="num_samples must be at least 1; got 0"):
        model.to_arviz(num_samples=0)
    other = TaskData(data.x, data.y, ["east"] * len(data))
    with pytest.raises(ValueError, match="task outside the fit, 'east'"):
        model.to_arviz(other)
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(ImportError, match=r"bmm-multitask-learning\[arviz\]"):
        model.to_arviz()
