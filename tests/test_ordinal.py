"""Ordered classes: masses of the cumulative link, and what a fit finds of planted cut points."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch

from bmm_multitask_learning import (
    SVI,
    Bernoulli,
    CoordinateAscent,
    MultitaskClassifier,
    MultitaskModel,
    Ordinal,
    TaskData,
    fit,
    load,
)
from bmm_multitask_learning.likelihoods import Rows
from bmm_multitask_learning.sizes import Sizes

LINKS = {"logit": scipy.stats.logistic, "probit": scipy.stats.norm}


def built(num_classes, link="logit", shares=None):
    likelihood = Ordinal(num_classes, link)
    likelihood.build(Sizes(1, 1, 1), torch.zeros((), dtype=torch.float64))
    if shares is not None:
        likelihood.set_eta({"class_shares": torch.as_tensor(shares, dtype=torch.float64)})
    return likelihood


def rows_of(y, phi=None):
    y = torch.as_tensor(y).double()
    phi = y.new_ones(len(y), 1) if phi is None else phi
    return Rows.from_targets(phi, y, None, torch.zeros(len(y), dtype=torch.long), 1)


def masses(likelihood, f):
    return likelihood.probability(torch.as_tensor(f).double()[:, None], likelihood.eta).numpy()


def planted(num_tasks=8, rows=80, link="logit", seed=0):
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((num_tasks, 2)) * 0.4 + [1.5, -1.0]
    cuts = np.array([-1.5, 0.0, 2.0])
    task = np.repeat(np.arange(num_tasks), rows)
    x = rng.standard_normal((len(task), 2))
    latent = (x * weights[task]).sum(1) + LINKS[link].rvs(size=len(task), random_state=rng)
    y = (latent[:, None] > cuts).sum(1).astype(float)
    return TaskData(x, y, task), weights, cuts


# ---- the masses ---------------------------------------------------------------------------


@pytest.mark.parametrize("link", LINKS)
def test_masses_are_differences_of_scipys_distribution(link):
    likelihood = built(4, link, [0.1, 0.4, 0.3, 0.2])
    law, f = LINKS[link], np.array([-2.0, 0.0, 0.7, 3.0])
    cuts = law.ppf([0.1, 0.5, 0.8])
    np.testing.assert_allclose(likelihood.cut_points, cuts, atol=1e-12)
    ends = law.cdf(np.concatenate([[-np.inf], cuts, [np.inf]]) - f[:, None])
    np.testing.assert_allclose(masses(likelihood, f), np.diff(ends), rtol=1e-10)
    np.testing.assert_allclose(masses(likelihood, [0.0])[0], [0.1, 0.4, 0.3, 0.2])


@pytest.mark.parametrize("link", LINKS)
def test_tails_keep_their_digits(link):
    likelihood = built(4, link, [0.1, 0.4, 0.3, 0.2])
    law, f = LINKS[link], np.array([-30.0, 30.0])
    low, high = law.ppf([0.1, 0.5])
    rows = rows_of([1.0, 1.0])
    found = likelihood.log_prob(rows, torch.as_tensor(f)[:, None, None], likelihood.eta)[:, 0]
    # log( G(high − f) − G(low − f) ), each in the tail where SciPy has digits
    first = law.logsf(low + 30) + np.log1p(-np.exp(law.logsf(high + 30) - law.logsf(low + 30)))
    second = law.logcdf(high - 30) + np.log1p(
        -np.exp(law.logcdf(low - 30) - law.logcdf(high - 30))
    )
    np.testing.assert_allclose(found, [first, second], rtol=1e-10)


@pytest.mark.parametrize("link", LINKS)
def test_log_probability_has_finite_gradients_everywhere(link):
    likelihood = built(3, link, [1e-12, 1.0 - 2e-12, 1e-12])
    rows = rows_of([0.0, 1.0, 2.0, 0.0, 1.0, 2.0])
    f = torch.tensor([-1e3, -1e3, -1e3, 1e3, 1e3, 1e3]).double()[:, None, None].requires_grad_()
    shares = likelihood.class_shares.clone().requires_grad_()
    value = likelihood.log_prob(rows, f, {"class_shares": shares})
    slopes = torch.autograd.grad(value.sum(), (f, shares))
    assert all(torch.isfinite(slope).all() for slope in (value, *slopes))
    assert slopes[0][2] > 0 > slopes[0][3]  # towards the class that was seen


def test_masses_of_the_rows_class_are_those_of_the_law():
    likelihood = built(5, "probit", [0.3, 0.1, 0.2, 0.1, 0.3])
    y = torch.tensor([0.0, 4.0, 2.0])
    f = torch.tensor([[-1.0, 0.4], [0.3, 2.0], [1.1, -5.0]]).double()[..., None]
    rows = rows_of(y)
    law = likelihood.conditional(f, rows.task, likelihood.eta)
    assert law.probs.shape == (3, 2, 5)
    torch.testing.assert_close(likelihood.log_prob(rows, f, likelihood.eta), law.log_prob(rows.y))


@pytest.mark.parametrize("link", LINKS)
def test_two_classes_are_a_binary_likelihood(link):
    f = np.linspace(-4, 4, 9)
    likelihood = built(2, link)
    np.testing.assert_allclose(masses(likelihood, f)[:, 1], LINKS[link].cdf(f), rtol=1e-12)
    if link == "logit":
        rows, latent = rows_of(f > 1), torch.as_tensor(f)[:, None, None]
        expected = Bernoulli().log_prob(rows, latent, {})
        torch.testing.assert_close(likelihood.log_prob(rows, latent, likelihood.eta), expected)


def test_classes_in_reverse_are_the_latents_negative():
    forth = built(4, "probit", [0.1, 0.4, 0.3, 0.2])
    back = built(4, "probit", [0.2, 0.3, 0.4, 0.1])
    f = np.array([-1.3, 0.2, 6.0])
    np.testing.assert_allclose(masses(forth, f), masses(back, -f)[:, ::-1], rtol=1e-12)


@pytest.mark.parametrize("link", LINKS)
def test_cut_points_have_the_law_that_the_docstring_says(link):
    """Each share of classes below a cut is uniform for two classes, Beta(1, 2) for three."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = [built(3, link, built(3, link).hyperprior()["class_shares"]) for _ in range(400)]
    cuts = torch.stack([draw.cut_points for draw in draws]).numpy()
    assert (cuts[:, 0] < cuts[:, 1]).all()
    below = LINKS[link].cdf(cuts[:, 0])
    assert scipy.stats.kstest(below, scipy.stats.beta(1, 2).cdf).pvalue > 0.001


# ---- fits ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted():
    data, weights, cuts = planted()
    model = MultitaskModel(likelihood=Ordinal(4))
    result = fit(model, data, engine=SVI(steps=60), progress=False)
    return model, data, weights, cuts, result


def test_planted_cut_points_and_weights_are_found(fitted):
    model, _, weights, cuts, result = fitted
    # a cut's standard error is about 2 / √640 = .08
    np.testing.assert_allclose(model.likelihood.cut_points, cuts, atol=0.4)
    z = (model.weights.mean.numpy() - weights) / model.weights.std.numpy()
    assert 0.3 < np.mean(z**2) < 2.2  # 16 standard scores: their mean square is 1 with sd .35
    assert np.isfinite(result.bound)


@pytest.mark.slow
@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("seed", [1, 2])
def test_cut_points_of_both_links_are_found(link, seed):
    data, weights, cuts = planted(20, 60, link=link, seed=seed)
    model = MultitaskModel(likelihood=Ordinal(4, link))
    fit(model, data, engine=SVI(steps=150), progress=False)
    np.testing.assert_allclose(model.likelihood.cut_points, cuts, atol=0.35)
    z = (model.weights.mean.numpy() - weights) / model.weights.std.numpy()
    assert 0.5 < np.mean(z**2) < 1.8  # 40 standard scores: sd .22


def test_predictions_are_probabilities_of_the_classes(fitted):
    model, data, *_ = fitted
    p = model.predict(data.x.numpy(), data.task.numpy())
    few = model.predict(data.x.numpy()[:30], data.task.numpy()[:30])
    assert p.mean.shape == p.std.shape == (640, 4)
    np.testing.assert_allclose(p.mean.sum(1), 1)
    inside = few.interval(0.9)
    assert inside.shape == (30, 4, 2)
    assert ((inside >= 0) & (inside <= 1)).all()
    assert (inside[..., 0] <= inside[..., 1]).all()
    # calibrated on its own rows: the classes' shares, each with sd below .02
    shares = np.bincount(data.y.numpy().astype(int)) / 640
    np.testing.assert_allclose(p.mean.mean(0), shares, atol=0.05)
    every = np.stack([p.log_prob(np.full(640, float(c))) for c in range(4)], 1)
    np.testing.assert_allclose(np.exp(every), p.mean, rtol=1e-6)
    draws = p.sample(500)
    assert draws.shape == (500, 640)
    np.testing.assert_allclose((draws == 2).mean(0), p.mean[:, 2], atol=5 * 0.5 / 500**0.5)
    missing = p.log_prob(np.where(np.arange(640) == 3, np.nan, 0.0))
    assert np.isnan(missing).tolist() == (np.arange(640) == 3).tolist()


def test_intervals_of_two_classes_are_those_of_bernoulli():
    """The same latents: quantiles by draws against those by bisection."""
    data, *_ = planted()
    data = data._replace(y=(data.y > 1).to(data.y))
    binary = MultitaskModel(likelihood=Bernoulli())
    fit(binary, data, progress=False)
    ordered = MultitaskModel(binary.prior, Ordinal(2))
    ordered.build(data)
    part = ordered.family()
    part.set_posterior(binary.family().posterior)
    x, task = data.x.numpy()[:40], data.task.numpy()[:40]
    found, expected = (m.predict(x, task) for m in (ordered, binary))
    np.testing.assert_allclose(found.mean[:, 1], expected.mean, rtol=1e-6)
    np.testing.assert_allclose(found.interval(0.8)[:, 1], expected.interval(0.8), atol=0.03)


def test_a_later_fit_does_not_change_an_earlier_prediction():
    data, *_ = planted(3, 10)
    model = MultitaskModel(likelihood=Ordinal(4))
    fit(model, data, engine=SVI(steps=2), progress=False)
    p = model.predict(data.x, [0] * 30)
    before = p.interval()
    fit(model, data._replace(y=3 - data.y), engine=SVI(steps=2), progress=False)
    assert torch.equal(p.interval(), before)


def test_saved_and_loaded_predictions_are_equal(fitted, tmp_path):
    model, data, *_ = fitted
    model.save(tmp_path / "model")
    again = load(tmp_path / "model")
    assert repr(again.likelihood) == "Ordinal(num_classes=4, link='logit')"
    found, expected = (m.predict(data.x[:9], 0) for m in (again, model))
    assert torch.equal(found.mean, expected.mean)
    assert torch.equal(found.interval(), expected.interval())


def test_new_tasks_are_placed_by_their_rows(fitted):
    model, data, weights, *_ = fitted
    part = data.rows(data.task == 2)
    other = TaskData(-part.x, 3 - part.y, ["new"] * part.num_rows)
    x = torch.eye(2, dtype=torch.float64)
    known = model.adapt(other).predict(x, "new")
    assert (known.latent_std < 0.6).all()
    assert known.latent_mean.sign().tolist() == np.sign(weights[2]).tolist()


def test_missing_targets_are_as_if_they_were_not_there():
    data, *_ = planted(3, 20)
    y = data.y.clone()
    y[::3] = torch.nan
    found = []
    for part in (data._replace(y=y), data.rows(~y.isnan())):
        model = MultitaskModel(likelihood=Ordinal(4, "probit"))
        fit(model, part, engine=SVI(steps=5), progress=False)
        found.append((model.weights.mean, model.likelihood.cut_points))
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_units_of_features_do_not_matter(scale):
    data, *_ = planted(3, 30)
    start = []
    for x in (data.x, scale * data.x, torch.cat([data.x, 0 * data.x], 1)):
        likelihood = built(4)
        likelihood.initialise(rows_of(data.y, x))
        start.append(likelihood.cut_points)
    torch.testing.assert_close(start[1], start[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(start[2], start[0], rtol=1e-4, atol=1e-6)


def test_the_start_does_not_fit_few_rows_exactly():
    """60 features without meaning: a row's class is as likely as its share, or somewhat more."""
    rng = np.random.default_rng(0)
    y, x = np.arange(30) % 3, torch.as_tensor(rng.standard_normal((30, 60)))
    likelihood = built(3)
    likelihood.initialise(rows_of(y, x))
    assert likelihood.cut_points.abs().max() < 1.3  # ±.7 for latents of 0


def test_a_class_without_rows_keeps_some_probability():
    x, task = np.random.default_rng(0).standard_normal((12, 2)), [0] * 11 + [1]
    model = MultitaskModel(likelihood=Ordinal(5))
    fit(model, TaskData(x, [1.0, 3.0, 4.0] * 4, task), engine=SVI(steps=20), progress=False)
    assert (model.likelihood.cut_points.diff() > 0).all()
    assert (model.predict(x, task).mean > 0).all()


def test_one_class_only_is_predicted_with_doubt():
    model = MultitaskModel(likelihood=Ordinal(3))
    x = np.random.default_rng(0).standard_normal((12, 2))
    fit(model, TaskData(x, np.ones(12), [0] * 12), engine=SVI(steps=20), progress=False)
    mean = model.predict(x, 0).mean
    assert (mean[:, 1] > 0.5).all()
    assert (mean[:, [0, 2]] > 0.005).all()


# ---- the estimator, and errors ------------------------------------------------------------


def test_the_estimator_takes_ordered_classes():
    data, *_ = planted(4, 60)
    x, y, task = data.x.numpy(), data.y.numpy() + 1, data.task.numpy()
    estimator = MultitaskClassifier(likelihood=Ordinal(4), engine=SVI(steps=20))
    estimator.fit(x, y, task=task)
    chance = estimator.predict_proba(x, task=task)
    assert chance.shape == (240, 4)
    np.testing.assert_allclose(chance.sum(1), 1)
    assert set(estimator.predict(x, task=task)) <= {1.0, 2.0, 3.0, 4.0}
    assert estimator.score(x, y, task=task) > 0.5
    with pytest.raises(ValueError, match=r"4 classes and the likelihood Ordinal\(3\)"):
        MultitaskClassifier(likelihood=Ordinal(3)).fit(x, y, task=task)
    words = np.array(["low", "middle", "high", "top"])[data.y.long()]
    with pytest.raises(ValueError, match=r"whose order is the alphabet's.*Number"):
        MultitaskClassifier(likelihood=Ordinal(4)).fit(x, words, task=task)


def labelled(y):
    x = np.random.default_rng(0).standard_normal((len(y), 2))
    model = MultitaskModel(likelihood=Ordinal(3))
    return fit(model, TaskData(x, y, [0] * len(y)), engine=SVI(steps=1), progress=False)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Ordinal(1), "at least 2; got 1"),
        (lambda: Ordinal(3, "cloglog"), "got 'cloglog'"),
        (lambda: labelled([1.0, 2.0, 3.0]), r"0\.\.2 in their order; got 3"),
        (lambda: labelled([-1.0, 0.0, 1.0]), "got -1"),
        (lambda: labelled([0.5, 0.0, 1.0]), "got 0.5"),
        (lambda: labelled(np.eye(3)), r"y of shape \(N,\); got \(3, 3\)"),
    ],
)
def test_what_is_no_ordered_class(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_there_is_no_closed_form():
    data, *_ = planted(3, 10)
    with pytest.raises(TypeError, match="no closed form for Ordinal; use engine=SVI"):
        fit(MultitaskModel(likelihood=Ordinal(4)), data, engine=CoordinateAscent())
