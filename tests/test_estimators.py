"""MultitaskRegressor and MultitaskClassifier, as users and as scikit-learn's tools meet them."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import BayesianRidge, LogisticRegression
from sklearn.model_selection import GridSearchCV, KFold, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from bmm_multitask_learning import (
    SVI,
    Bernoulli,
    Categorical,
    CoordinateAscent,
    Gaussian,
    IndependentTasks,
    LeaveTasksOut,
    MultitaskClassifier,
    MultitaskModel,
    MultitaskRegressor,
    PooledTasks,
    SharedGaussian,
    StudentT,
    TaskClustering,
    TaskData,
    fit,
)
from bmm_multitask_learning.backbones import MLP

K, D, ROWS = 6, 3, 11
N = K * ROWS
TASK = np.repeat([f"school {k}" for k in range(K)], ROWS)


@pytest.fixture
def x(rng):
    """Features on scales of their own."""
    return rng.normal(size=(N, D)) * [1, 10, 0.1] + [0, 100, 5]


@pytest.fixture
def signal(rng, x):
    slope = (rng.normal(size=(K, D)) + 2) / [1, 10, 0.1]
    centred = x - [0, 100, 5]
    return (centred * np.repeat(slope, ROWS, 0)).sum(1) + np.repeat(rng.normal(size=K), ROWS)


@pytest.fixture
def y(rng, signal):
    return 1000 + signal + 0.3 * rng.normal(size=N)


@pytest.fixture
def labels(rng, signal):
    return np.where(signal + rng.logistic(size=N) > 0, "yes", "no")


@pytest.fixture
def routing() -> Iterator[None]:
    with sklearn.config_context(enable_metadata_routing=True):
        yield


# ---- scikit-learn's own checks: none is expected to fail ------------------------------------


# few iterations: the checks ask how estimators behave, not how well the bound has converged
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@parametrize_with_checks(
    [
        MultitaskRegressor(engine=CoordinateAscent(max_iter=20)),
        MultitaskClassifier(engine=CoordinateAscent(max_iter=5)),
    ],
    expected_failed_checks=lambda estimator: {},
    xfail_strict=True,
)
def test_scikit_learn_checks(estimator, check):
    check(estimator)


# ---- units ----------------------------------------------------------------------------------


def test_equals_the_core_on_standardised_data(x, y):
    z = (x - x.mean(0)) / x.std(0)
    z = np.column_stack([np.ones(N), z])
    model = MultitaskModel(
        prior=SharedGaussian(covariance="diagonal"), likelihood=Gaussian("task")
    )
    fit(model, TaskData(z, (y - y.mean()) / y.std(), TASK), progress=False)
    expected = model.predict(z, TASK)
    estimator = MultitaskRegressor(SharedGaussian(covariance="diagonal"), Gaussian("task"))
    mean, std = estimator.fit(x, y, task=TASK).predict(x, TASK, return_std=True)
    np.testing.assert_allclose(mean, y.mean() + y.std() * expected.mean, rtol=1e-10)
    np.testing.assert_allclose(std, y.std() * expected.std, rtol=1e-8)
    interval = estimator.predict_interval(x, TASK, coverage=0.8)
    np.testing.assert_allclose(interval, y.mean() + y.std() * expected.interval(0.8), rtol=1e-9)
    density = estimator.predict_dist(x, TASK).log_prob(y)
    t = (y - y.mean()) / y.std()
    np.testing.assert_allclose(density, expected.log_prob(t) - np.log(y.std()), rtol=1e-7)
    draws = estimator.predict_dist(x, TASK).sample(7, seed=3)
    np.testing.assert_allclose(draws, y.mean() + y.std() * expected.sample(7, seed=3))
    latent = estimator.predict_dist(x, TASK).latent_std
    np.testing.assert_allclose(latent, y.std() * expected.latent_std, rtol=1e-8)


@pytest.mark.parametrize(("of_x", "of_y"), [(1e8, 1), (1e-8, 1), (1, 1e8), (1, 1e-8), (-3, 7)])
def test_other_units_are_the_same_fit(x, y, of_x, of_y):
    one = MultitaskRegressor().fit(x, y, task=TASK)
    other = MultitaskRegressor().fit(x * of_x, y * of_y, task=TASK)
    for read in ("predict", "predict_interval", "predict_quantiles"):
        expected = getattr(one, read)(x, TASK)
        found = getattr(other, read)(x * of_x, TASK) / of_y
        np.testing.assert_allclose(found, expected, rtol=1e-9)
    np.testing.assert_allclose(other.coef_, one.coef_ * of_y / of_x, rtol=1e-6)
    np.testing.assert_allclose(other.intercept_, one.intercept_ * of_y, rtol=1e-6)
    np.testing.assert_allclose(other.relations_, one.relations_, rtol=1e-6)


def test_coefficients_are_in_the_users_units(x, y, labels):
    regressor = MultitaskRegressor().fit(x, y, task=TASK)
    assert regressor.coef_.shape == (K, D)
    assert regressor.intercept_.shape == (K,)
    linear = (x * np.repeat(regressor.coef_, ROWS, 0)).sum(1)
    linear = linear + np.repeat(regressor.intercept_, ROWS)
    np.testing.assert_allclose(regressor.predict(x, TASK), linear)
    classifier = MultitaskClassifier().fit(x, labels, task=TASK)
    linear = (x * np.repeat(classifier.coef_, ROWS, 0)).sum(1)
    linear = linear + np.repeat(classifier.intercept_, ROWS)
    np.testing.assert_allclose(classifier.predict_dist(x, TASK).latent_mean, linear)


def test_draws_of_the_coefficients(x, y):
    estimator = MultitaskRegressor().fit(x, y, task=TASK)
    slope, intercept = estimator.sample_posterior(4000, seed=1)
    assert slope.shape == (4000, K, D)
    assert intercept.shape == (4000, K)
    f = (x * np.repeat(slope, ROWS, 1)).sum(-1) + np.repeat(intercept, ROWS, 1)
    prediction = estimator.predict_dist(x, TASK)
    np.testing.assert_allclose(f.std(0), prediction.latent_std, rtol=0.1)
    error = 5 * prediction.latent_std / np.sqrt(4000)
    assert (np.abs(f.mean(0) - prediction.mean) < error).all()


def test_without_an_intercept_nothing_is_centred(x, y):
    estimator = MultitaskRegressor(fit_intercept=False).fit(x, y, task=TASK)
    np.testing.assert_array_equal(estimator.intercept_, 0)
    np.testing.assert_allclose(estimator.predict(0 * x, TASK), 0, atol=1e-9)
    own = np.column_stack([np.ones(N), x - x.mean(0)])  # a constant column of the user's is kept
    assert MultitaskRegressor(fit_intercept=False).fit(own, y, task=TASK).coef_[0, 0] > 900


def test_without_standardising_the_model_sees_the_users_units(x, y):
    z, t = (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()
    plain = MultitaskRegressor(standardize=False).fit(z, t, task=TASK)
    kind = MultitaskRegressor().fit(z, t, task=TASK)
    np.testing.assert_allclose(plain.predict(z, TASK), kind.predict(z, TASK), rtol=1e-7)
    np.testing.assert_allclose(plain.coef_, plain.model_.weights.mean[:, 1:])


@pytest.mark.parametrize("prior", [IndependentTasks(), PooledTasks()])
def test_one_task_is_bayesian_ridge(rng, prior):
    z = StandardScaler().fit_transform(rng.normal(size=(40, 5)))
    t = z @ [1, -2, 0.5, 0, 0] + 0.7 * rng.normal(size=40) + 3
    ridge = BayesianRidge(max_iter=2000, tol=1e-10).fit(z, t)
    mean, std = MultitaskRegressor(prior).fit(z, t).predict(z, return_std=True)
    expected, spread = ridge.predict(z, return_std=True)
    np.testing.assert_allclose(mean, expected, atol=0.02 * t.std())
    np.testing.assert_allclose(std, spread, rtol=0.05)


def test_one_task_classifies_as_logistic_regression(rng):
    z = rng.normal(size=(300, 2))
    target = rng.random(300) < 1 / (1 + np.exp(-z @ [1.5, -1]))
    ours = MultitaskClassifier().fit(z, target).predict_proba(z)[:, 1]
    theirs = LogisticRegression(C=10).fit(z, target).predict_proba(z)[:, 1]
    np.testing.assert_allclose(ours, theirs, atol=0.05)


def test_constant_and_duplicate_columns_are_harmless(x, y):
    plain = MultitaskRegressor().fit(x, y, task=TASK)
    more = np.column_stack([x, np.full(N, 0.1), np.full(N, 1e12), x[:, 0]])
    estimator = MultitaskRegressor().fit(more, y, task=TASK)
    np.testing.assert_array_equal(estimator.coef_[:, D : D + 2], 0)
    np.testing.assert_allclose(
        estimator.predict(more, TASK), plain.predict(x, TASK), atol=0.05 * y.std()
    )
    moved = more.copy()
    moved[:, D : D + 2] += 1e3  # nothing is known of what a constant column does
    np.testing.assert_array_equal(estimator.predict(moved, TASK), estimator.predict(more, TASK))


# ---- tasks ----------------------------------------------------------------------------------


def test_columns_are_tasks_with_units_of_their_own(rng):
    x = rng.normal(size=(17, 2))
    y = np.stack([x @ [1, 2], x @ [1.1, 1.9], x @ [0.9, 2]], 1) + 0.1 * rng.normal(size=(17, 3))
    y[2:9, 1] = np.nan
    other = y * [1, 1e6, 1e-6] + [0, 5, 0]
    one, two = (MultitaskRegressor().fit(x, table) for table in (y, other))
    np.testing.assert_array_equal(one.tasks_, [0, 1, 2])
    np.testing.assert_allclose(two.predict(x), one.predict(x) * [1, 1e6, 1e-6] + [0, 5, 0])
    assert one.predict_interval(x).shape == (17, 3, 2)
    assert one.predict_quantiles(x, levels=(0.1, 0.2, 0.5, 0.9)).shape == (17, 3, 4)
    prediction = two.predict_dist(x)
    assert prediction.sample(4).shape == (4, 17, 3)
    assert prediction.known.shape == (17, 3)
    np.testing.assert_array_equal(np.isnan(prediction.log_prob(other)), np.isnan(other))
    by_name = two.predict_dist(x, task=1)
    np.testing.assert_allclose(by_name.mean, prediction.mean[:, 1])
    np.testing.assert_allclose(by_name.log_prob(other[:, 1]), prediction.log_prob(other)[:, 1])
    assert one.score(x, y) == pytest.approx(two.score(x, other))
    assert one.score(x, y) > 0.98
    np.testing.assert_allclose(
        two.coef_ @ x.T + two.intercept_[:, None], two.predict(x).T, rtol=1e-8
    )


def test_columns_of_a_frame_name_the_tasks(rng):
    x = pd.DataFrame(rng.normal(size=(9, 2)), columns=["age", "dose"])
    y = pd.DataFrame(rng.normal(size=(9, 3)), columns=["lung", "liver", "heart"])
    estimator = MultitaskRegressor().fit(x, y)
    np.testing.assert_array_equal(estimator.tasks_, ["lung", "liver", "heart"])
    np.testing.assert_array_equal(estimator.feature_names_in_, ["age", "dose"])
    np.testing.assert_allclose(estimator.predict(x, "liver"), estimator.predict(x)[:, 1])
    with pytest.raises(ValueError, match="feature names should match"):
        estimator.predict(x.rename(columns={"dose": "sex"}))
    with pytest.raises(ValueError, match="'skin' is not one of the fit's targets"):
        estimator.predict(x, "skin")


def test_several_outputs_of_each_task(x, y):
    both = np.stack([y, 5 - 1e-3 * y], 1)
    estimator = MultitaskRegressor().fit(x, both, task=TASK)
    assert estimator.coef_.shape == (K, 2, D)
    assert estimator.intercept_.shape == (K, 2)
    assert estimator.predict_interval(x, TASK).shape == (N, 2, 2)
    one = MultitaskRegressor().fit(x, both[:, 1], task=TASK)
    np.testing.assert_allclose(estimator.predict(x, TASK)[:, 1], one.predict(x, TASK), rtol=2e-4)


LABELS = {
    "strings": ["oak", "ash", "yew", "elm"],
    "strings of numbers": ["9", "10", "08", "-1"],
    "integers": [9, 10, 8, -1],
    "a categorical with an order of its own": pd.Categorical(
        ["oak", "ash", "yew", "elm"], categories=["yew", "oak", "elm", "ash"]
    ),
}


@pytest.mark.parametrize("names", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("make", [MultitaskRegressor, MultitaskClassifier])
def test_tasks_stand_in_the_order_of_task_data_whatever_the_order_of_rows(rng, make, names):
    x = rng.normal(size=(20, 2))
    task = np.asarray(pd.Series(names).iloc[np.tile([2, 0, 3, 1], 5)])
    # no two tasks alike, and classes that appear in another order than theirs
    number = rng.normal(size=20) + 10 * pd.factorize(task)[0]
    y = number if make is MultitaskRegressor else np.where(number > 15, "a", "b")
    features = dict(zip(list(names), rng.normal(size=(4, 1)), strict=True))
    order = rng.permutation(20)
    prior, known = SharedGaussian("isotropic"), TaskData(x, np.zeros(20), task).tasks
    one = make(prior).fit(x, y, task, features)
    two = make(prior).fit(x[order], y[order], task[order], features)
    assert tuple(one.tasks_) == tuple(two.tasks_) == known == tuple(sorted(set(task)))
    np.testing.assert_allclose(one.intercept_, two.intercept_, rtol=1e-6)
    if make is MultitaskClassifier:
        assert list(one.classes_) == list(two.classes_) == ["a", "b"]
    # row k of a read-out is what predict says of that label
    for k, label in enumerate(known):
        line = one.coef_[k] @ x.T + one.intercept_[k]
        np.testing.assert_allclose(one.predict_dist(x, label).latent_mean, line, rtol=1e-8)


def test_unseen_task_gets_the_population_and_one_warning(x, y):
    estimator = MultitaskRegressor().fit(x, y, task=TASK)
    with pytest.warns(UserWarning, match="1 task\\(s\\) outside the fit") as caught:
        mean, std = estimator.predict(x, "never seen", return_std=True)
    assert len(caught) == 1
    assert mean.shape == (N,)
    assert (std > estimator.predict(x, TASK, return_std=True)[1]).all()


def test_adapt_learns_a_new_task_and_leaves_the_others(x, y):
    old = np.arange(N) < N - ROWS
    estimator = MultitaskRegressor().fit(x[old], y[old], task=TASK[old])
    before = estimator.predict(x[old], TASK[old])
    adapted = estimator.adapt(x[~old], y[~old], task=TASK[~old])
    assert adapted.tasks_[-1] == TASK[-1]
    assert len(estimator.tasks_) == K - 1
    assert adapted.coef_.shape == (K, D)
    np.testing.assert_array_equal(estimator.predict(x[old], TASK[old]), before)
    np.testing.assert_allclose(adapted.predict(x[old], TASK[old]), before)
    error = adapted.predict(x[~old], TASK[~old]) - y[~old]
    assert np.sqrt(np.mean(error**2)) < 0.5


def test_adapt_columns_of_a_table(rng):
    x = rng.normal(size=(21, 2))
    y = np.stack([x @ [1, 2], 1e3 * (x @ [1, -2])], 1) + rng.normal(size=(21, 2)) * [0.1, 100]
    estimator = MultitaskRegressor().fit(x[:6], y[:6])
    adapted = estimator.adapt(x[6:], y[6:])
    both = MultitaskRegressor().fit(x, y)
    np.testing.assert_allclose(adapted.predict(x), both.predict(x), atol=300)
    assert np.abs(adapted.coef_ - [[1, 2], [1e3, -2e3]]).max() < 100


def test_adapt_in_another_form_is_refused(x, y):
    estimator = MultitaskRegressor().fit(x, y, task=TASK)
    with pytest.raises(ValueError, match="the fit had task="):
        estimator.adapt(x, np.stack([y, y], 1))
    with pytest.raises(ValueError, match="say which task each row belongs to"):
        estimator.adapt(x, y)


def test_task_features_as_frame_by_label(x, y, rng):
    features = pd.DataFrame(rng.normal(size=(K, 2)), index=sorted(set(TASK)))
    prior = TaskClustering(num_clusters=2, gating=True, n_init=1)
    estimator = MultitaskRegressor(prior).fit(x, y, task=TASK, task_features=features)
    new = pd.DataFrame([[0.0, 1.0]], index=["new"])
    with pytest.warns(UserWarning, match="outside the fit"):
        assert estimator.predict(x[:4], "new", task_features=new).shape == (4,)


def test_tasks_of_one_row_or_one_class(x, y, labels):
    keep = np.r_[0, ROWS:N]
    estimator = MultitaskRegressor().fit(x[keep], y[keep], task=TASK[keep])
    assert np.isfinite(estimator.predict(x, TASK)).all()
    labels = labels.copy()
    labels[:ROWS] = "yes"
    classifier = MultitaskClassifier().fit(x, labels, task=TASK)
    assert (classifier.predict(x[:ROWS], TASK[:ROWS]) == "yes").all()
    assert (classifier.predict_proba(x[:ROWS], TASK[:ROWS]) < 1).all()


def test_more_features_than_rows(rng):
    wide = rng.normal(size=(14, 37))
    target = wide[:, :3].sum(1)
    estimator = MultitaskRegressor(SharedGaussian("isotropic")).fit(wide, target, task=[0, 1] * 7)
    assert np.isfinite(estimator.predict(wide, [0, 1] * 7)).all()
    assert estimator.coef_.shape == (2, 37)


def test_weights_are_repeated_rows(x, y):
    weight = np.arange(N) % 3
    repeated = np.repeat(np.arange(N), weight)
    one = MultitaskRegressor().fit(x, y, task=TASK, sample_weight=weight)
    two = MultitaskRegressor().fit(x[repeated], y[repeated], task=TASK[repeated])
    np.testing.assert_allclose(one.predict(x, TASK), two.predict(x, TASK), rtol=1e-8)


# ---- classes --------------------------------------------------------------------------------


def test_classes_keep_their_labels(x, labels):
    classifier = MultitaskClassifier().fit(x, labels, task=TASK)
    np.testing.assert_array_equal(classifier.classes_, ["no", "yes"])
    assert isinstance(classifier.model_.likelihood, Bernoulli)
    probability = classifier.predict_proba(x, TASK)
    np.testing.assert_allclose(probability.sum(1), 1)
    np.testing.assert_allclose(np.exp(classifier.predict_log_proba(x, TASK)), probability)
    odds = np.log(probability[:, 1] / probability[:, 0])
    np.testing.assert_allclose(classifier.decision_function(x, TASK), odds)
    predicted = classifier.predict(x, TASK)
    np.testing.assert_array_equal(predicted == "yes", probability[:, 1] > 0.5)
    assert classifier.score(x, labels, TASK) == np.mean(predicted == labels)
    assert classifier.score(x, labels, TASK) > 0.7
    assert classifier.score(x, labels, TASK, sample_weight=predicted == labels) == 1


def test_labels_not_observed_are_left_out(x, labels):
    some = labels.astype(object)
    some[::5] = None
    seen = np.array([label is not None for label in some])
    one = MultitaskClassifier().fit(x, some, task=TASK)
    two = MultitaskClassifier(standardize=False).fit(
        ((x - x.mean(0)) / x.std(0))[seen], labels[seen], task=TASK[seen]
    )
    z = (x - x.mean(0)) / x.std(0)
    np.testing.assert_allclose(one.predict_proba(x, TASK), two.predict_proba(z, TASK), rtol=1e-6)
    assert one.score(x, some, TASK) == one.score(x[seen], labels[seen], TASK[seen])


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_more_classes_take_a_categorical(x, signal):
    grade = np.digitize(signal, [-1, 1]) * 10
    classifier = MultitaskClassifier(engine=CoordinateAscent(max_iter=50))
    classifier.fit(x, grade, task=TASK)
    np.testing.assert_array_equal(classifier.classes_, [0, 10, 20])
    assert classifier.coef_.shape == (K, 3, D)
    assert classifier.predict_proba(x, TASK).shape == (N, 3)
    assert classifier.decision_function(x, TASK).shape == (N, 3)
    assert classifier.predict_interval(x, TASK).shape == (N, 3, 2)
    assert classifier.score(x, grade, TASK) > 0.85
    table = np.stack([grade[:26], grade[40:], grade[:26]], 1).astype(float)
    table[0, 0] = np.nan
    classifier.fit(x[:26], table)
    assert classifier.predict(x[:26]).shape == (26, 3)
    assert [p.shape for p in classifier.predict_proba(x[:26])] == [(26, 3)] * 3
    assert classifier.score(x[:26], table) > 0.5


def test_class_errors_say_what_to_do(x, labels, y):
    with pytest.raises(ValueError, match="at least 2 classes; got 1 class"):
        MultitaskClassifier().fit(x, np.full(N, "yes"), task=TASK)
    with pytest.raises(ValueError, match="2 classes and the likelihood Categorical\\(4\\)"):
        MultitaskClassifier(likelihood=Categorical(4)).fit(x, labels, task=TASK)
    with pytest.raises(ValueError, match="Bernoulli is for 2 classes; y has 3"):
        MultitaskClassifier(likelihood=Bernoulli()).fit(x, np.arange(N) % 3, task=TASK)
    with pytest.raises(ValueError, match="Gaussian is no likelihood of classes"):
        MultitaskClassifier(likelihood=Gaussian()).fit(x, labels, task=TASK)
    with pytest.raises(ValueError, match="Unknown label type: continuous"):
        MultitaskClassifier().fit(x, y, task=TASK)
    classifier = MultitaskClassifier().fit(x, labels, task=TASK)
    with pytest.raises(ValueError, match="classes of the fit, \\['no', 'yes'\\]; got 'maybe'"):
        classifier.adapt(x[:1], ["maybe"], task=["new"])
    with pytest.raises(ValueError, match="at least one observed class"):
        classifier.fit(x, np.full(N, None), task=TASK)


# ---- errors ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "kind"),
    [("prior", "TaskPrior"), ("likelihood", "Likelihood"), ("backbone", "Module")],
)
@pytest.mark.parametrize("value", ["shared", SharedGaussian])
def test_parts_of_another_type_are_named(x, y, argument, kind, value):
    with pytest.raises(TypeError, match=f"{argument} must be a {kind} object or None; got"):
        MultitaskRegressor(**{argument: value}).fit(x, y)


def test_errors_say_what_to_do(x, y):
    with pytest.raises(ValueError, match="Bernoulli is a likelihood of classes"):
        MultitaskRegressor(likelihood=Bernoulli()).fit(x, y)
    with pytest.raises(ValueError, match="only NaN"):
        MultitaskRegressor().fit(x, np.full(N, np.nan))
    with pytest.raises(ValueError, match=r"dtype must be one of \['float32', 'float64'\]"):
        MultitaskRegressor(dtype="half").fit(x, y)
    with pytest.raises(TypeError, match="integer or string labels; got floats"):
        MultitaskRegressor().fit(x, y, task=np.zeros(N))
    with pytest.raises(ValueError, match="one label per row"):
        MultitaskRegressor().fit(x, y, task=TASK[:-1])
    with pytest.raises(NotFittedError, match="not fitted yet"):
        MultitaskRegressor().predict(x)
    estimator = MultitaskRegressor().fit(x, y, task=TASK)
    with pytest.raises(ValueError, match="the fit had 6 tasks: say which task"):
        estimator.predict(x)
    with pytest.raises(ValueError, match="got 5 labels"):
        estimator.predict(x, TASK[:5])
    with pytest.raises(ValueError, match=r"y must have shape \(66,\); got \(66, 1\)"):
        estimator.score(x, y[:, None], TASK)
    with pytest.raises(ValueError, match="Input X contains NaN"):
        estimator.predict(x * np.nan, TASK)


def test_a_bound_that_still_rises_is_a_warning(x, y):
    with pytest.warns(ConvergenceWarning, match="still rising after max_iter=1 iterations"):
        MultitaskRegressor(engine=CoordinateAscent(max_iter=1)).fit(x, y, task=TASK)


# ---- scikit-learn's tools -------------------------------------------------------------------


def test_fit_copies_what_it_is_given(x, y):
    prior, likelihood, backbone = SharedGaussian(), Gaussian(), MLP(D, [4])
    start = backbone.layers[0].weight.detach().clone()
    engine = SVI(steps=3)
    estimator = MultitaskRegressor(prior, likelihood, backbone=backbone, engine=engine)
    estimator.fit(x, y, task=TASK)
    assert not dict(prior.named_buffers())
    assert not dict(likelihood.named_buffers())
    assert torch.equal(backbone.layers[0].weight, start)
    assert estimator.model_.prior is not prior
    first = estimator.predict(x, TASK)
    np.testing.assert_array_equal(estimator.fit(x, y, task=TASK).predict(x, TASK), first)
    other = MultitaskRegressor(backbone=MLP(D, [4]), engine=engine, random_state=1)
    assert not np.array_equal(other.fit(x, y, task=TASK).predict(x, TASK), first)


def test_clone_and_parameters_of_the_prior():
    estimator = MultitaskRegressor(TaskClustering(num_clusters=3, n_init=2), Gaussian("task"))
    twin = clone(estimator)
    assert twin.prior is not estimator.prior
    assert twin.prior.get_params() == estimator.prior.get_params()
    assert twin.get_params()["likelihood__noise"] == "task"
    twin.set_params(prior__num_clusters=5, prior__covariance="diagonal")
    assert twin.prior.num_clusters == 5
    assert twin.prior.n_init == 2
    assert type(twin.prior.form).__name__ == "DiagonalCovariance"
    assert estimator.prior.num_clusters == 3
    assert "num_clusters=5" in repr(twin)
    with pytest.raises(ValueError, match="num_clusters must be"):
        twin.set_params(prior__num_clusters=0)
    assert twin.prior.num_clusters == 5
    with pytest.raises(ValueError, match="TaskClustering has no parameter 'clusters'; it has"):
        twin.set_params(prior__clusters=2)


@pytest.mark.parametrize("prior", [IndependentTasks(), PooledTasks(), SharedGaussian("isotropic")])
@pytest.mark.parametrize("likelihood", [Bernoulli(), Categorical(4), StudentT(df=5), Gaussian()])
def test_every_prior_and_likelihood_can_be_cloned(prior, likelihood):
    for module in (prior, likelihood):
        twin = clone(module)
        assert type(twin) is type(module)
        assert twin.get_params() == module.get_params()


def test_set_params_of_a_fitted_prior_starts_anew(x, y):
    estimator = MultitaskRegressor(SharedGaussian()).fit(x, y, task=TASK)
    prior = estimator.model_.prior.set_params(covariance="diagonal")
    assert not dict(prior.named_buffers())
    model = MultitaskModel(prior=prior)
    fit(model, TaskData(x - x.mean(0), y - y.mean(), TASK), progress=False)
    assert prior.eta["precision"].shape == (1, D)


@pytest.mark.parametrize(
    "grid",
    [
        {"prior__num_clusters": [1, 2, 3]},
        {"prior": [TaskClustering(1, n_init=1), TaskClustering(2, n_init=1)]},
    ],
)
@pytest.mark.usefixtures("routing")
def test_grid_search_over_the_prior(rng, grid):
    # two clusters of tasks with opposite slopes
    x = rng.normal(size=(N, 2))
    slope = np.where(np.arange(K) < K // 2, 3.0, -3.0)
    y = x @ [1, 1] * np.repeat(slope, ROWS) + rng.normal(size=N)
    estimator = MultitaskRegressor(TaskClustering(1, n_init=1))
    estimator.set_fit_request(task=True).set_score_request(task=True)
    search = GridSearchCV(estimator, grid, cv=KFold(3, shuffle=True, random_state=0))
    search.fit(x, y, task=TASK)
    assert search.best_estimator_.prior.num_clusters in (2, 3)
    assert search.score(x, y, task=TASK) > 0.9
    assert not np.isnan(search.cv_results_["mean_test_score"]).any()


@pytest.mark.usefixtures("routing")
def test_tasks_are_routed_through_pipelines_and_cross_validation(x, y):
    estimator = MultitaskRegressor().set_fit_request(task=True)
    estimator.set_predict_request(task=True).set_score_request(task=True)
    pipe = make_pipeline(FunctionTransformer(lambda x: x[:, ::-1]), estimator)
    folds = KFold(3, shuffle=True, random_state=0)
    scores = cross_validate(pipe, x, y, cv=folds, params={"task": TASK})["test_score"]
    assert (scores > 0.8).all()
    pipe.fit(x, y, task=TASK)
    np.testing.assert_allclose(
        pipe.predict(x, task=TASK),
        MultitaskRegressor().fit(x, y, task=TASK).predict(x, TASK),
        rtol=1e-8,
    )


@pytest.mark.usefixtures("routing")
def test_leave_tasks_out(rng):
    x = rng.normal(size=(N, D))
    slope = [3, -2, 1] + 0.3 * rng.normal(size=(K, D))
    y = (x * np.repeat(slope, ROWS, 0)).sum(1)
    estimator = MultitaskRegressor().set_fit_request(task=True).set_score_request(task=True)
    splitter = LeaveTasksOut(3, random_state=0)
    with pytest.warns(UserWarning, match="2 task\\(s\\) outside the fit") as caught:
        found = cross_validate(estimator, x, y, cv=splitter, params={"task": TASK, "groups": TASK})
    assert len(caught) == 3  # one a fold
    assert (found["test_score"] > 0.9).all()


@pytest.mark.parametrize("estimator", [MultitaskRegressor(), MultitaskClassifier()])
def test_pickles_predict_the_same(x, y, labels, estimator):
    target = labels if isinstance(estimator, MultitaskClassifier) else y
    fitted = clone(estimator).fit(x, target, task=TASK)
    copied = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(copied.predict(x, TASK), fitted.predict(x, TASK))
    np.testing.assert_array_equal(copied.relations_, fitted.relations_)


def test_silent_by_default(x, y, capfd):
    MultitaskRegressor().fit(x, y, task=TASK)
    assert capfd.readouterr() == ("", "")


# ---- backbones and other likelihoods --------------------------------------------------------


def test_a_backbone_gets_an_intercept_and_standardised_inputs(x, y):
    torch.manual_seed(0)
    backbone = torch.nn.Linear(D, 4)  # float32, without a constant feature
    estimator = MultitaskRegressor(backbone=backbone, engine=SVI(steps=30))
    estimator.fit(x, y, task=TASK)
    assert estimator.model_.weights.mean.shape == (K, 5)
    assert estimator.score(x, y, TASK) > 0.95
    with pytest.raises(AttributeError, match="weights belong to the backbone's features"):
        _ = estimator.coef_
    constant = MultitaskRegressor(backbone=MLP(D, [4]), engine=SVI(steps=3)).fit(x, y, task=TASK)
    assert constant.model_.weights.mean.shape == (K, 5)  # an MLP brings its own constant


def test_inputs_of_several_axes_reach_the_backbone_as_they_are(x, y):
    pairs = np.stack([x / 100, -x / 100], 1)
    torch.manual_seed(0)
    backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2 * D, 4))
    estimator = MultitaskRegressor(backbone=backbone, engine=SVI(steps=3))
    assert estimator.fit(pairs, y, task=TASK).predict(pairs, TASK).shape == (N,)
    with pytest.raises(ValueError, match="dim 3"):
        MultitaskRegressor().fit(pairs, y, task=TASK)


def test_heavy_tails_are_undone_too(x, y):
    small = SVI(steps=20)
    one = MultitaskRegressor(likelihood=StudentT(), engine=small).fit(x, y, task=TASK)
    other = MultitaskRegressor(likelihood=StudentT(), engine=small).fit(x, 1e4 * y, task=TASK)
    mean, std = one.predict(x, TASK, return_std=True)
    np.testing.assert_allclose(other.predict(x, TASK), 1e4 * mean, rtol=1e-6)
    np.testing.assert_allclose(other.predict(x, TASK, return_std=True)[1], 1e4 * std, rtol=1e-4)


def test_single_precision(x, y):
    estimator = MultitaskRegressor(dtype="float32").fit(x, y, task=TASK)
    assert estimator.model_.weights.mean.dtype == torch.float32
    exact = MultitaskRegressor().fit(x, y, task=TASK)
    np.testing.assert_allclose(
        estimator.predict(x, TASK), exact.predict(x, TASK), atol=1e-2 * y.std()
    )


def test_lists_and_frames_are_arrays_too(x, y):
    expected = MultitaskRegressor().fit(x, y, task=TASK).predict(x, TASK)
    lists = MultitaskRegressor().fit(x.tolist(), y.tolist(), task=TASK.tolist())
    np.testing.assert_array_equal(lists.predict(x.tolist(), TASK.tolist()), expected)
    frame = pd.DataFrame(x, columns=["a", "b", "c"])
    columns = MultitaskRegressor().fit(frame, pd.Series(y), task=pd.Series(TASK, dtype="category"))
    np.testing.assert_array_equal(columns.predict(frame, pd.Series(TASK)), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("estimator", [MultitaskRegressor(), MultitaskClassifier()])
def test_cuda_gives_the_cpus_numbers(x, y, labels, estimator):
    target = labels if isinstance(estimator, MultitaskClassifier) else y
    cpu = clone(estimator).fit(x, target, task=TASK)
    cuda = clone(estimator).set_params(device="cuda").fit(x, target, task=TASK)
    expected = cpu.predict_interval(x, TASK)
    np.testing.assert_allclose(cuda.predict_interval(x, TASK), expected, rtol=1e-6)
    np.testing.assert_allclose(cuda.coef_, cpu.coef_, rtol=1e-5)
    np.testing.assert_allclose(cuda.relations_, cpu.relations_, rtol=1e-5, atol=1e-9)
    adapted = cuda.adapt(x[:5], target[:5], task=["new"] * 5)
    assert adapted.predict(x, "new").shape == (N,)
