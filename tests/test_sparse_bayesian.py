"""What is special to the sparse prior: groups, the low rank, relevance, planted truth."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import MultiTaskLassoCV, RidgeCV

from bmm_multitask_learning import (
    NUTS,
    SVI,
    Bernoulli,
    CoordinateAscent,
    Gaussian,
    IndependentTasks,
    MultitaskModel,
    MultitaskRegressor,
    SparseBayesian,
    TaskData,
    datasets,
    fit,
    load,
)
from bmm_multitask_learning.distributions import GIG, GeneralizedInverseGaussian
from bmm_multitask_learning.engines.coordinate_ascent import Ascent
from bmm_multitask_learning.gaussian import condition_at

from .cases import built_model, make_data
from .reference import dense_posterior

GROUPS = [4, 7, 4, 0, 7]  # sizes 2, 2 and 1, out of order
LAWS = {
    "gamma": GIG.gamma(1.5, 0.5),
    "inverse gamma": GIG.inverse_gamma(1.0, 0.5),
    "inverse Gaussian": GIG.inverse_gaussian(0.7, 0.4),
    "Jeffreys": GIG.jeffreys(100.0),
}
FORMS = [{}, {"covariance": "full"}, {"factorised": True}]


def built(groups=GROUPS, *, rank=3, seed=1, outputs=None, **form):
    """A model with hyperparameters drawn from their prior, and its data."""
    data = make_data(seed=seed, outputs=outputs)
    prior = SparseBayesian(groups, rank, GIG(0.5, 0.3, 0.8), **form)
    return built_model(prior, Gaussian("task"), data, seed=seed), data


def conditioned(model, data):
    family = model.family()
    summary = family.likelihood.summarise(model.rows("tasks", data))
    statistics = family.likelihood.statistics(summary, family.likelihood.eta)
    return family.prior.condition(statistics, family.prior.eta)


# ---- the closed form ----------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 1, 2, 4])
@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_evidence_with_groups_is_that_of_the_dense_gaussian(rank, outputs, covariance):
    model, data = built(rank=rank, seed=rank, outputs=outputs, covariance=covariance)
    expected = dense_posterior(model.prior, model.likelihood, data)
    assert model.log_evidence(data).value == pytest.approx(expected.log_evidence, rel=1e-8)
    posterior = conditioned(model, data)
    means = posterior.means[:, 0].movedim(1, 0).flatten(1)
    np.testing.assert_allclose(means, expected.mean, rtol=1e-7, atol=1e-9)


def test_groups_share_a_precision():
    model, _ = built()
    precision = model.prior._variance(model.prior.eta)[0] / model.prior.scatter[0]
    assert model.prior.precision.shape == (3,)  # in the order 0, 4, 7
    expected = 1 / (model.prior.level * model.prior.precision[[1, 2, 1, 0, 2]])
    torch.testing.assert_close(precision, expected)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_bound_rises_to_where_its_gradient_is_zero(law, form):
    """EM with the terms of each hyperprior ends at a stationary point of log p(D, η)."""
    data = make_data(rows=(9, 6, 12, 7))
    model = MultitaskModel(SparseBayesian(GROUPS, rank=2, hyperprior=LAWS[law], **form))
    engine = CoordinateAscent(max_iter=2000, tol=1e-13)
    history = np.array(fit(model, data, engine=engine, progress=False).history)
    assert (np.diff(history) >= -1e-8 * np.abs(history[1:])).all()
    prior, likelihood = model.prior, model.likelihood
    summary = likelihood.summarise(model.rows("tasks", data))
    statistics = likelihood.statistics(summary, likelihood.eta)
    eta = {name: value.clone().requires_grad_() for name, value in prior.eta.items()}
    log_joint = prior.condition(statistics, eta).log_normaliser + prior.log_hyperprior(eta)
    gradients = torch.autograd.grad(log_joint, list(eta.values()))
    for (name, value), gradient in zip(eta.items(), gradients, strict=True):
        # of positive numbers and matrices by their logarithm
        at = value.detach()
        steps = gradient @ at if at.ndim == 3 else gradient * at.abs()
        steps = gradient if name == "loading" else steps
        assert steps.abs().max() < 2e-3, name


@pytest.mark.parametrize("outputs", [1, 2])
def test_factorised_is_the_best_of_weights_and_patterns_apart(outputs):
    """By brute force: exact means, the blocks of the joint precision, and a lower bound."""
    model, data = built(rank=2, outputs=outputs, factorised=True)
    prior, eta = model.prior, model.prior.eta
    family = model.family()
    summary = family.likelihood.summarise(model.rows("tasks", data))
    statistics = family.likelihood.statistics(summary, family.likelihood.eta)
    posterior = prior.condition(statistics, eta)
    prior.factorised = False
    exact = prior.condition(statistics, eta)
    torch.testing.assert_close(posterior.mean, exact.mean)
    torch.testing.assert_close(posterior.centre().mean, exact.centre().mean)
    V, gap = eta["loading"].numpy(), 0.0
    for o in range(outputs):
        S = np.diag(prior._variance(eta)[o].numpy())
        A = statistics.A[:, min(o, statistics.A.shape[1] - 1)].numpy()
        own = [np.linalg.inv(np.linalg.inv(S) + A[k]) for k in range(3)]
        patterns = np.kron(np.linalg.inv(np.eye(2) + V @ V.T), S)
        square = [root @ root.mT for root in posterior.roots.whole[:, 0, o]]
        np.testing.assert_allclose(torch.stack(square), own, rtol=1e-7, atol=1e-12)
        root = posterior.centre().root[0, o]
        np.testing.assert_allclose(root @ root.mT, patterns, rtol=1e-7, atol=1e-12)
        whole = exact.centre().root[0, o]
        gap += np.linalg.slogdet(patterns)[1] - 2 * np.linalg.slogdet(whole.numpy())[1]
    assert gap < 0
    assert model.log_evidence(data).kind == "bound"
    difference = float(posterior.log_normaliser - exact.log_normaliser)
    assert difference == pytest.approx(0.5 * gap, rel=1e-9)


@pytest.mark.parametrize("rank", [0, 1, 3])
@pytest.mark.parametrize("rows", [4, 30])
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("outputs", [1, 2])
def test_tasks_with_the_same_inputs_take_one_eigendecomposition(rank, rows, form, outputs):
    """Noise a task, N < D and N > D: the same posterior as by a factor for each task."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((rows, 7)), rng.standard_normal((4 * rows, outputs))
    data = TaskData(np.tile(x, (4, 1)), y, np.repeat(np.arange(4), rows))
    prior = SparseBayesian([0, 1, 1, 0, 2, 2, 2], rank, GIG(0.5, 0.3, 0.8), **form)
    model = built_model(prior, Gaussian("task"), data, seed=2)
    with torch.no_grad():
        quick = conditioned(model, data)
    each = conditioned(model, data)
    assert each.roots.own[0, 0, 0].triu(1).any()
    assert not torch.allclose(each.roots.own, quick.roots.own)  # another root, of the same matrix
    close = {"rtol": 1e-8, "atol": 1e-10}
    for name in ("mean", "covariance", "log_normaliser"):
        torch.testing.assert_close(getattr(quick, name), getattr(each, name), **close)
    torch.testing.assert_close(quick.own_trace(), each.own_trace(), **close)
    for root in (lambda p: p.centre().root, lambda p: p.roots.common):
        found, expected = (root(p) @ root(p).mT for p in (quick, each))
        torch.testing.assert_close(found, expected, **close)
    torch.testing.assert_close(quick.centre().mean, each.centre().mean, **close)
    # weights and patterns together
    found, expected = (p.roots.common[:, 0] @ p.centre().root[0].mT for p in (quick, each))
    torch.testing.assert_close(found, expected, **close)


def test_a_bound_that_is_rounding_is_not_climbed_to(monkeypatch):
    """An extrapolation to weights of 1e19 times the data's: the evidence there comes out > 0."""
    data = make_data("bernoulli", rows=(9, 6, 12, 7), num_features=40)
    model = built_model(SparseBayesian(), Bernoulli(), data, seed=1)
    ascent = Ascent(model.family(), model.rows("tasks", data))
    prior = model.prior

    def far(vector=None):
        prior.set_eta({**prior.eta, "level": torch.full_like(prior.level, 1e-38)})

    with torch.no_grad():
        prior.initialise(ascent.statistics(), torch.Generator(), 0)
        before = ascent.step()
        plain = ascent.snapshot()
        far()
        assert float(ascent.posterior().log_normaliser) > 0  # of a log probability
        ascent.restore(plain)
        monkeypatch.setattr(ascent, "move_to", far)
        reached = ascent.cycle(before)
        assert len(reached) == 2
        assert before <= reached[0] <= reached[1] <= ascent.step() < 0


def test_the_scale_of_the_hyperprior_is_the_level():
    """GIG(ω, cχ, φ/c) at precisions c times as large is GIG(ω, χ, φ) at a level so much lower."""
    model, data = built(rank=2)
    prior, eta = model.prior, model.prior.eta
    other = SparseBayesian(GROUPS, 2, GIG(0.5, 4 * 0.3, 0.8 / 4))
    other = built_model(other, Gaussian("task"), data, seed=1).prior
    moved = {**eta, "precision": 4 * eta["precision"], "level": eta["level"] / 4}
    torch.testing.assert_close(other._variance(moved), prior._variance(eta))

    def density(prior, eta):
        law = GeneralizedInverseGaussian(*prior._mixing())
        return (law.log_prob(eta["precision"]) + eta["precision"].log()).sum()

    torch.testing.assert_close(density(other, moved), density(prior, eta))


def test_order_of_features_and_names_of_groups_do_not_matter():
    data = make_data()
    order = np.array([3, 0, 4, 2, 1])
    found = []
    for groups, part in (
        (GROUPS, data),
        ((np.array(GROUPS) * 10 - 3)[order], data.with_x(data.x[:, order])),
    ):
        model = MultitaskModel(SparseBayesian(groups, rank=2))
        fit(model, part, engine=CoordinateAscent(max_iter=4), progress=False)
        found.append(model)
    torch.testing.assert_close(found[1].weights.mean, found[0].weights.mean[:, order])
    torch.testing.assert_close(found[1].prior.relevance, found[0].prior.relevance)


def test_a_task_outside_the_fit_has_a_typical_row_of_loadings():
    """w = Σ_r v_r z_r + e, v of the mean and covariance of the rows of V: first two moments."""
    model, data = built(rank=2, outputs=2)
    prior = model.prior
    posterior = conditioned(model, data)
    law = prior.population(prior.eta, posterior, None, 4)
    assert law.means.shape == (4, 1, 2, 5)
    V = prior.loading.numpy()
    typical, spread = V.mean(1), np.cov(V, bias=True)
    centre = posterior.centre()
    z = centre.mean[0].unflatten(-1, (2, 5)).numpy()  # (O, R, D)
    root = centre.root[0].unflatten(1, (2, 5)).numpy()
    joint = np.einsum("ordj,osej->orsde", root, root)
    second = typical[:, None] * typical + spread
    expected = np.einsum("rs,orsde->ode", second, joint)
    expected += np.einsum("rs,ord,ose->ode", spread, z, z)
    expected += np.stack([np.diag(part) for part in prior._variance(prior.eta).numpy()])
    np.testing.assert_allclose(law.means[2, 0], np.einsum("r,ord->od", typical, z))
    np.testing.assert_allclose(law.covariance[3], expected, rtol=1e-9, atol=1e-12)


# ---- read-outs ----------------------------------------------------------------------------


def test_relevance_is_the_mean_square_of_a_groups_weights():
    data = make_data()
    model = MultitaskModel(SparseBayesian(GROUPS, rank=2))
    fit(model, data, engine=CoordinateAscent(max_iter=3), progress=False)
    draws = model.weights.sample(40_000, seed=1) / model.prior.scatter[0].sqrt()
    for g, columns in enumerate([[3], [0, 2], [1, 4]]):
        square = float(draws[..., columns].square().mean())
        assert float(model.prior.relevance[g]) == pytest.approx(square, rel=0.02)


def test_task_covariance_is_that_of_the_prior():
    model, _ = built(rank=2)
    prior = model.prior
    law = prior(prior.eta)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        W = law.sample((100_000,))[:, :, 0] * prior.precision[1].sqrt()  # group 4: features 0, 2
    white = (W / prior.scatter[0].sqrt())[..., [0, 2]]
    found = torch.einsum("skd,sjd->kj", white, white) / white[:, 0].numel()
    std = prior.task_covariance.diagonal().sqrt()
    error = (found - prior.task_covariance) / std / std[:, None]
    assert error.abs().max() < 0.02  # 6 standard errors
    correlation = prior.task_covariance / std / std[:, None]
    torch.testing.assert_close(prior.relations(), correlation.abs())


def test_tasks_are_added_to_the_read_outs_by_adapt():
    data = make_data(rows=(9, 6, 12, 7))
    model = MultitaskModel(SparseBayesian(GROUPS))
    fit(model, data.select_tasks([0, 1, 2]), progress=False)
    adapted = model.adapt(data.select_tasks([3]))
    relations = adapted.relations()
    assert relations.shape == (4, 4)
    torch.testing.assert_close(relations[:3, :3], model.relations())
    assert adapted.prior.relevance.shape == (3,)
    assert (adapted.prior.relevance != model.prior.relevance).all()


def test_relevance_averages_over_draws_of_the_hyperparameters():
    """NUTS leaves a mixture; `adapt` computes the relevance of all of it."""
    data = make_data(rows=(9, 6, 12, 7), num_features=3)
    model = MultitaskModel(SparseBayesian([0, 1, 1]))
    engine = NUTS(num_samples=8, warmup_steps=5, max_tree_depth=3)
    fit(model, data.select_tasks([0, 1, 2]), engine=engine, progress=False)
    adapted = model.adapt(data.select_tasks([3]))
    weights = adapted.weights
    square = (weights.mean.square() + weights.std.square()) / adapted.prior.scatter
    expected = torch.stack([square[:, 0].mean(), square[:, 1:].mean()])
    torch.testing.assert_close(adapted.prior.relevance, expected)


@pytest.mark.parametrize("engine", [SVI(steps=20), NUTS(num_samples=6, warmup_steps=5)], ids=str)
@pytest.mark.parametrize("form", [*FORMS[1:], {"rank": 0}], ids=str)
def test_every_form_serves_every_engine(engine, form):
    data = make_data(rows=(9, 6, 12, 7))
    model = MultitaskModel(SparseBayesian(GROUPS, **form))
    fit(model, data, engine=engine, progress=False)
    assert torch.isfinite(model.weights.mean).all()
    with pytest.warns(UserWarning, match="outside the fit"):
        fresh = model.predict(data.x[:4], task="new")
    assert (fresh.std > 0).all()


def test_a_planted_correlation_within_a_group_is_found():
    """40 tasks, two groups of 3 features, those of the first correlated by .9."""
    rng = np.random.default_rng(0)
    within = np.array([[1, 0.9, 0.9], [0.9, 1, 0.9], [0.9, 0.9, 1]])
    weights = np.hstack(
        [
            rng.multivariate_normal(np.zeros(3), within, 40),
            rng.standard_normal((40, 3)),
        ]
    )
    task = np.repeat(np.arange(40), 3)
    x = rng.standard_normal((120, 6))
    y = (x * weights[task]).sum(1) + 0.5 * rng.standard_normal(120)
    data, error, found = TaskData(x, y, task), {}, {}
    for form in ("diagonal", "full"):
        model = MultitaskModel(SparseBayesian([0, 0, 0, 1, 1, 1], covariance=form))
        fit(model, data, progress=False)
        error[form] = np.mean((model.weights.mean.numpy() - weights) ** 2)
        found[form] = model.prior
    assert error["full"] < 0.75 * error["diagonal"]
    correlated, free = torch.linalg.inv(found["full"].shape_3)
    assert correlated[0, 1] / (correlated[0, 0] * correlated[1, 1]).sqrt() > 0.6
    assert abs(free[0, 1]) / (free[0, 0] * free[1, 1]).sqrt() < 0.5


def test_patterns_that_are_not_worth_their_charge_are_left_out():
    """Tasks without anything in common keep no pattern; a planted rank of 2 is kept under 3."""
    apart, truth = datasets.make_sparse(8, own=2.0, noise=1.0, num_active=4, seed=1)
    weights = np.random.default_rng(0).standard_normal(truth.weights.shape)
    weights = weights * truth.active[truth.groups]
    y = np.einsum("nd,nd->n", apart.x.numpy(), weights[apart.task.numpy()])
    model = MultitaskModel(SparseBayesian(truth.groups, rank=2))
    fit(model, apart._replace(y=torch.as_tensor(y + 0.3)), progress=False)
    assert not model.prior.loading.any()
    torch.testing.assert_close(model.relations(), torch.eye(8, dtype=torch.float64))
    data, truth = datasets.make_sparse(12, 40, own=0.1, num_active=4, seed=0)
    model = MultitaskModel(SparseBayesian(truth.groups, rank=3))
    fit(model, data, progress=False)
    assert model.prior.loading.any(1).sum() == 2


def test_the_charge_is_the_curvature_in_the_loadings():
    """½ Σ_k log|I + H_k/α_0|, H_k by differentiating task k's own evidence, patterns at ẑ."""
    model, data = built(rank=2, outputs=2)
    prior, eta = model.prior, model.prior.eta
    posterior = conditioned(model, data)
    z = posterior.centre().mean[0].unflatten(1, (2, 5))  # (O, R, D)
    family = model.family()
    summary = family.likelihood.summarise(model.rows("tasks", data))
    statistics = family.likelihood.statistics(summary, family.likelihood.eta)
    scale = prior._scale(eta)
    expected = 0.0
    for k in range(3):

        def evidence(v, k=k):
            loc = torch.einsum("r,ord->od", v, z)
            return condition_at(
                statistics.A[k], statistics.b[k], statistics.c[k], loc, scale
            ).log_normaliser.sum()

        H = -torch.autograd.functional.hessian(evidence, eta["loading"][:, k])
        expected += 0.5 * float(torch.logdet(torch.eye(2) + H * 3 / 4))
    prior.update(posterior)
    assert prior.complexity() == pytest.approx(expected, rel=1e-9)


def test_a_fresh_object_takes_a_state_dict():
    model, _ = built()
    fresh, _ = built(seed=2)
    fresh.load_state_dict(model.state_dict())
    for name, value in model.prior.eta.items():
        assert torch.equal(fresh.prior.eta[name], value)


# ---- planted truth ------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_planted_groups_are_found(seed):
    """8 groups of 1, 2, 3 and 7 features, 2 of them active, 20 rows for 26 features."""
    data, truth = datasets.make_sparse(seed=seed)
    model = MultitaskModel(SparseBayesian(truth.groups, rank=2))
    fit(model, data, progress=False)
    relevance = model.prior.relevance.numpy()
    assert relevance[truth.active].min() >= 50 * relevance[~truth.active].max()
    x, Y = data.x[:20].numpy(), data.y.reshape(5, 20).T.numpy()

    def error(weights):
        return np.sqrt(np.mean((weights - truth.weights) ** 2))

    found = error(model.weights.mean.numpy())
    least_squares = (np.linalg.pinv(x) @ Y).T
    assert not np.allclose(model.weights.mean, least_squares, atol=0.1)
    assert found <= 0.25 * error(least_squares)
    for peer in (RidgeCV(np.logspace(-4, 4, 30), fit_intercept=False), _lasso()):
        assert found < error(peer.fit(x, Y).coef_)


def _lasso():
    return MultiTaskLassoCV(fit_intercept=False, cv=5)


@pytest.mark.parametrize("seed", range(4))
def test_a_planted_rank_survives(seed):
    data, truth = datasets.make_sparse(12, rows=40, rank=2, own=0.1, num_active=4, seed=seed)
    model = MultitaskModel(SparseBayesian(truth.groups, rank=2))
    fit(model, data, progress=False)
    own, planted = model.prior.loading.numpy(), truth.loading.T
    assert np.linalg.svd(own, compute_uv=False)[1] > 1.0
    # the planted columns lie in the span of those found
    basis = np.linalg.qr(own.T)[0]
    residual = planted.T - basis @ (basis.T @ planted.T)
    assert np.linalg.norm(residual) < 0.3 * np.linalg.norm(planted)


@pytest.mark.parametrize(("groups", "price"), [([0] * 26, 1.03), (None, 1.1)])
def test_what_sparsity_costs_where_nothing_is_sparse_or_shared(groups, price):
    """RMSE over that of independent tasks: nothing for one group, some for 26 unneeded ones."""
    errors = {"sparse": [], "independent": []}
    for seed in range(3):
        data, truth = datasets.make_sparse(
            6, 30, group_sizes=[26], num_active=1, noise=1.0, shared_inputs=False, seed=seed
        )
        rng = np.random.default_rng(100 + seed)
        weights = rng.standard_normal(truth.weights.shape)
        noise = rng.standard_normal(data.num_rows)
        y = np.einsum("nd,nd->n", data.x.numpy(), weights[data.task.numpy()]) + noise
        part = data._replace(y=torch.as_tensor(y))
        for name, prior in (
            ("sparse", SparseBayesian(groups)),
            ("independent", IndependentTasks()),
        ):
            model = MultitaskModel(prior)
            fit(model, part, progress=False)
            errors[name].append(np.mean((model.weights.mean.numpy() - weights) ** 2))
    assert np.sqrt(np.mean(errors["sparse"]) / np.mean(errors["independent"])) < price


# ---- settings -----------------------------------------------------------------------------


def test_an_estimators_intercept_is_a_group_before_the_others():
    data = make_data(rows=(20, 15, 18))
    x, y, task = data.x.numpy(), data.y.numpy(), data.task.numpy()
    estimator = MultitaskRegressor(SparseBayesian(np.array(GROUPS)))
    prior = clone(estimator).fit(x, y, task=task).model_.prior
    assert prior.group.tolist() == [0, 2, 3, 2, 1, 3]
    assert prior.relevance.shape == (4,)


@pytest.mark.parametrize("law", LAWS)
def test_a_hyperprior_is_kept_under_its_name(law, tmp_path):
    """The argument has the name of a method: clone, set_params, repr and load know both."""
    prior = SparseBayesian(GROUPS, hyperprior=LAWS[law], covariance="full")
    twin = clone(prior)
    assert twin.get_params()["hyperprior"] == LAWS[law]
    assert f"hyperprior={LAWS[law]!r}" in repr(twin)
    assert twin.set_params(hyperprior=(0.5, 0.1, 1e-4)).precision_law == (0.5, 0.1, 1e-4)
    model = MultitaskModel(prior)
    fit(model, make_data(), engine=CoordinateAscent(max_iter=2), progress=False)
    model.save(tmp_path)
    again = load(tmp_path).prior
    assert tuple(again.get_params()["hyperprior"]) == LAWS[law]
    for name, value in prior.eta.items():
        assert torch.equal(again.eta[name], value)
    assert torch.isfinite(again.log_hyperprior(again.eta))


def test_groups_of_any_kind_of_array_are_saved(tmp_path):
    data = make_data()
    for number, groups in enumerate((GROUPS, np.array(GROUPS), torch.tensor(GROUPS))):
        model = MultitaskModel(SparseBayesian(groups))
        fit(model, data, engine=CoordinateAscent(max_iter=2), progress=False)
        model.save(tmp_path / str(number))
        config = json.loads((tmp_path / str(number) / "config.json").read_text())
        assert config["families"]["tasks"]["prior"]["arguments"]["groups"] == GROUPS
        again = load(tmp_path / str(number))
        assert torch.equal(again.prior.relevance, model.prior.relevance)
        assert torch.equal(again.prior.group, model.prior.group)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": -1}, "rank must be at least 0; got -1"),
        ({"groups": [0.5, 1.0]}, "whole numbers, one for each feature"),
        ({"groups": [[0, 1]]}, "whole numbers, one for each feature"),
        ({"hyperprior": (0.5, 0.0, 1.0)}, "order >= 1 where chi = 0"),
        ({"hyperprior": (1.0, 1.0, 0.0)}, "order < 0 where phi = 0"),
        ({"hyperprior": (1.0, -1.0, 1.0)}, "chi >= 0"),
        ({"covariance": "block"}, '"diagonal" or "full"; got .block'),
    ],
)
def test_settings_that_make_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        SparseBayesian(**arguments)


def test_groups_must_fit_the_features():
    model = MultitaskModel(SparseBayesian([0, 1, 1]))
    with pytest.raises(ValueError, match="3 features their group; the model has 5"):
        fit(model, make_data(), progress=False)
