"""The amortised classifier: one network gives what rows say of the weights of every class."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bmm_multitask_learning import (
    SVI,
    Bernoulli,
    Categorical,
    CoordinateAscent,
    IndependentTasks,
    MultitaskModel,
    TaskData,
    TaskMean,
    VariationalWeighting,
    fit,
    load,
)
from bmm_multitask_learning.fitting import choose_engine
from bmm_multitask_learning.likelihoods import Rows
from bmm_multitask_learning.priors.amortised import AmortisedClassifier

from .cases import make_data


def amortised(width=16):
    """With nothing to choose."""
    return VariationalWeighting(refreshes=1, strength=1.0, amortised=width)


def planted_classes(seed, rows=(40, 40, 12, 12, 12), families=2, num_features=5, num_classes=3):
    """Tasks in families, of the same classes; in each the small tasks are blends of the large."""
    rng = np.random.default_rng(seed)
    means = 1.5 * rng.standard_normal((families, 1, num_classes, num_features))
    led = means + 0.3 * rng.standard_normal((families, 2, num_classes, num_features))
    share = rng.dirichlet(np.ones(2), size=(families, 3))
    weights = np.concatenate([led, np.einsum("fml,flod->fmod", share, led)], 1)
    weights = weights.reshape(-1, num_classes, num_features)

    def draw(count):
        task = np.repeat(np.arange(len(weights)), count)
        x = rng.standard_normal((len(task), num_features))
        f = np.einsum("nd,nod->no", x, weights[task])
        return x, (f + rng.gumbel(size=f.shape)).argmax(1).astype(float), task

    return TaskData(*draw(np.tile(rows, families))), draw(300)


@pytest.fixture(scope="module")
def fitted():
    """Four tasks of four classes, the third without rows of the first class."""
    data = make_data("categorical", rows=(14, 9, 12, 11))
    y = data.y.clone()
    y[(data.task == 2) & (y == 0)] = torch.nan
    data = data._replace(y=y)
    model = MultitaskModel(amortised(), Categorical(4))
    fit(model, data, engine=SVI(steps=30), progress=False)
    return model, data


# ---- class means and the network ----------------------------------------------------------


def test_class_means_are_those_of_the_weighted_observed_rows():
    x = torch.tensor([[1.0, 2], [3, 4], [5, 6], [7, 9], [0, 1]]).double()
    y = torch.tensor([0.0, 0, 2, torch.nan, 2]).double()
    weight = torch.tensor([1.0, 3, 2, 5, 1]).double()
    rows = Rows.from_targets(x, y, weight, torch.tensor([0, 0, 0, 0, 1]), 2)
    mean, count = Categorical(3).class_means(rows)
    assert count.tolist() == [[4, 0, 2], [0, 0, 1]]
    assert mean[0].tolist() == [[2.5, 3.5], [0, 0], [5, 6]]
    assert mean[1].tolist() == [[0, 0], [0, 0], [0, 1]]


def a_network(seed=0, num_features=3):
    """With heads that say something."""
    network = AmortisedClassifier(num_features, 7, torch.zeros(()).double())
    generator = torch.Generator().manual_seed(seed)
    network.reset(generator)
    with torch.no_grad():
        network.loc.normal_(generator=generator)
        network.log_scale.normal_(0, 0.3, generator=generator)
    return network


def test_one_network_for_all_tasks_and_classes():
    """The same class mean gives the same factor wherever it stands, n times that of one row."""
    network, scatter = a_network(), torch.ones(2, 3).double()
    h = torch.tensor([0.3, -1.0, 2.0]).double()
    mean = h.expand(4, 2, 3)
    count = torch.tensor([[1.0, 1], [1, 5], [1, 1], [0, 1]]).double()
    factor = network(mean, count, scatter)
    one = factor.b[0, 0]
    assert one.abs().min() > 0
    torch.testing.assert_close(factor.b, count[..., None] * one)
    torch.testing.assert_close(factor.A, count[..., None, None] * factor.A[0, 0])
    assert torch.equal(factor.rows, count.sum(-1))
    other = network(2 * mean, count, scatter)
    assert (other.b[0, 0] / one - 1).abs().max() > 0.01


def test_a_fresh_network_knows_nothing_and_is_as_sure_as_rows_are():
    network, scatter = AmortisedClassifier(3, 7, torch.zeros(()).double()), torch.ones(2, 3)
    network.reset(torch.Generator().manual_seed(0))
    factor = network(torch.ones(1, 2, 3).double(), torch.full((1, 2), 6.0), scatter.double())
    assert factor.b.abs().max() == 0
    torch.testing.assert_close(factor.A[0, 0], 2 * torch.eye(3).double())  # n / D


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_units_of_the_features_do_not_matter(scale):
    """Weights of features in other units are those weights in other units."""
    network, count = a_network(), torch.full((2, 4), 3.0).double()
    mean = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(1)).double()
    scatter = torch.tensor([0.5, 1.0, 2.0]).double().expand(4, 3)
    once, again = network(mean, count, scatter), network(scale * mean, count, scatter / scale**2)
    torch.testing.assert_close(again.b / scale, once.b)
    torch.testing.assert_close(again.A / scale**2, once.A)


# ---- fits ---------------------------------------------------------------------------------


def scores(model, test):
    x, y, task = test
    return float(np.mean(model.predict(x, task).log_prob(y)))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [200, 201])
def test_it_comes_near_a_factor_for_each_task_and_class(seed):
    """Of what plain weighting gains on tasks alone, in log density, at most a third is lost."""
    data, test = planted_classes(seed)
    found = {}
    for name, prior, engine in (
        ("alone", IndependentTasks(), None),
        ("plain", VariationalWeighting(refreshes=1, strength=1.0), SVI(steps=300)),
        ("amortised", amortised(), SVI(steps=300)),
    ):
        model = MultitaskModel(prior, Categorical(3))
        fit(model, data, engine=engine, progress=False)
        found[name] = scores(model, test)
    lost = found["plain"] - found["amortised"]
    assert lost < 0.33 * (found["plain"] - found["alone"])


@pytest.mark.slow
def test_it_stays_finite_over_1000_steps():
    data, _ = planted_classes(200, rows=(12, 12, 5, 5, 5), families=1)
    model = MultitaskModel(amortised(), Categorical(3))
    result = fit(model, data, engine=SVI(steps=1000, lr=0.03), progress=False)
    assert np.isfinite(result.history).all()
    assert torch.isfinite(model.weights.std).all()
    assert np.mean(result.history[-100:]) > np.mean(result.history[:100])


def test_q_is_the_prior_times_what_the_network_gives(fitted):
    model, data = fitted
    prior = model.prior
    rows = model.rows("tasks", data)
    mean, count = model.likelihood.class_means(rows)
    with torch.no_grad():
        factor = prior.classifier(mean, count, prior.scatter)
        expected = prior.condition(factor, prior.eta)
    torch.testing.assert_close(model.weights.mean, expected.mean)
    torch.testing.assert_close(model.weights.std, expected.std)
    covariance = expected.covariance
    off = covariance - torch.diag_embed(covariance.diagonal(dim1=-2, dim2=-1))
    assert off.abs().max() < 1e-12  # a diagonal Gaussian, as in the paper


def test_a_class_without_rows_has_the_law_of_the_prior(fitted):
    model, _ = fitted
    law = model.prior(model.prior.eta)
    torch.testing.assert_close(model.weights.mean[2, 0], law.mean[2, 0])
    torch.testing.assert_close(model.weights.std[2, 0].square(), law.variance[2, 0])
    assert (model.weights.std[2, 1].square() < law.variance[2, 1]).all()


def test_training_moves_the_network_by_the_bound(fitted):
    model, data = fitted
    assert model.prior.classifier.loc.abs().max() > 0.01
    model = MultitaskModel(amortised(), Categorical(4))
    result = fit(model, data, engine=SVI(steps=200), progress=False)
    assert np.mean(result.history[-20:]) > np.mean(result.history[:20]) + 1


def test_minibatches_make_class_means_of_their_own():
    data = make_data("categorical", rows=(17, 12, 21))
    model = MultitaskModel(amortised(), Categorical(4))
    result = fit(model, data, engine=SVI(steps=20, batch_size=20), progress=False)
    assert np.isfinite(result.history).all()
    mean, count = model.likelihood.class_means(model.rows("tasks", data))
    with torch.no_grad():  # afterwards those of all rows
        factor = model.prior.classifier(mean, count, model.prior.scatter)
        expected = model.prior.condition(factor, model.prior.eta)
    torch.testing.assert_close(model.weights.mean, expected.mean)


def test_the_seed_draws_the_network():
    data = make_data("categorical", rows=(7, 5, 9))
    hidden = []
    for seed in (0, 0, 1):
        model = MultitaskModel(amortised(), Categorical(4))
        fit(model, data, engine=SVI(steps=2), seed=seed, progress=False)
        hidden.append(model.prior.classifier.hidden.detach())
    assert torch.equal(hidden[0], hidden[1])
    assert (hidden[0] - hidden[2]).abs().max() > 0.1


# ---- new tasks, keeping -------------------------------------------------------------------


def test_a_new_task_has_the_weights_of_the_network_at_once(fitted):
    model, _ = fitted
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((6, 5)), np.array([0.0, 0, 1, 3, 3, 3])
    wider = model.adapt(TaskData(x, y, ["new"] * 6))
    rows = Rows.from_targets(
        torch.from_numpy(x), torch.from_numpy(y), None, torch.zeros(6, dtype=torch.int64), 1
    )
    prior = model.prior
    with torch.no_grad():
        factor = prior.classifier(*model.likelihood.class_means(rows), prior.scatter)
    population = prior.population(prior.eta, model.family().posterior, None, 1)
    expected = population.condition(factor)
    torch.testing.assert_close(wider.weights.mean[4], expected.mean[0])
    torch.testing.assert_close(wider.weights.std[4], expected.std[0])
    torch.testing.assert_close(wider.weights.mean[4, 2], population.mean[0, 2])  # no rows
    assert torch.equal(wider.weights.mean[:4], model.weights.mean)


def test_it_is_kept(fitted, tmp_path):
    model, data = fitted
    model.save(tmp_path)
    again = load(tmp_path)
    assert again.prior.amortised == 16
    assert torch.equal(again.prior.classifier.loc, model.prior.classifier.loc)
    x, labels = data.x[:4].numpy(), [0, 2, 1, 3]
    np.testing.assert_array_equal(again.predict(x, labels).mean, model.predict(x, labels).mean)
    new = TaskData(data.x[:5], torch.tensor([0.0, 1, 1, 3, 2]), ["new"] * 5)
    torch.testing.assert_close(again.adapt(new).weights.mean, model.adapt(new).weights.mean)


# ---- what it is not -----------------------------------------------------------------------


def test_the_closed_form_refuses_and_fit_takes_svi():
    model = MultitaskModel(amortised(), Categorical(4))
    engine, reason = choose_engine(model)
    assert isinstance(engine, SVI)
    assert reason == " (chosen: the amortised classifier is trained)"
    with pytest.raises(TypeError, match=r"CoordinateAscent trains no amortised.*use SVI\(\)"):
        fit(model, make_data("categorical"), engine=CoordinateAscent(), progress=False)


def test_targets_must_be_classes():
    with pytest.raises(ValueError, match=r"Bernoulli targets do not have.*Categorical"):
        MultitaskModel(amortised(), Bernoulli()).build(make_data("bernoulli"))


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="amortised must be a width of at least 1, or None"):
        VariationalWeighting(amortised=0)
    with pytest.raises(ValueError, match=r"network of VariationalWeighting would not see it"):
        TaskMean(amortised())
