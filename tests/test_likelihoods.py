"""Bounds below the truth and tight where they should be; expectations; checks of targets."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from scipy.integrate import dblquad, quad

from bmm_multitask_learning import (
    Bernoulli,
    Categorical,
    Gaussian,
    IndependentTasks,
    Ordinal,
    Poisson,
    StudentT,
)
from bmm_multitask_learning.engines.coordinate_ascent import Ascent
from bmm_multitask_learning.likelihoods import Likelihood, Rows
from bmm_multitask_learning.likelihoods.bernoulli import logistic_constant, polya_gamma_mean
from bmm_multitask_learning.sizes import Sizes

from .cases import LIKELIHOODS, built_model, make_data


def rows_of(y, D=1, K=1):
    y = torch.as_tensor(y).double()
    generator = torch.Generator().manual_seed(0)
    phi = torch.randn(len(y), D, generator=generator).double()
    return Rows.from_targets(phi, y, None, torch.zeros(len(y), dtype=torch.long), K)


def built(likelihood, outputs=1):
    likelihood.build(Sizes(1, 1, outputs), torch.zeros((), dtype=torch.float64))
    return likelihood


# ---- the logistic bound -------------------------------------------------------------------


def test_polya_gamma_mean_has_known_values():
    xi = torch.tensor([0.0, 1e-5, 1.0, -2.0, 50.0]).double()
    expected = [0.25, 0.25, math.tanh(0.5) / 2, math.tanh(1.0) / 4, 0.01]
    np.testing.assert_allclose(polya_gamma_mean(xi), expected, rtol=1e-9)


def test_polya_gamma_mean_is_smooth_across_its_series():
    xi = torch.tensor([0.99e-4, 1.01e-4]).double()
    assert (polya_gamma_mean(xi).diff().abs() < 1e-9).all()


@pytest.mark.parametrize("xi", [0.0, 0.3, 2.5, 9.0])
def test_logistic_bound_touches_at_xi_and_lies_below_elsewhere(xi):
    f = torch.linspace(-12, 12, 4001).double()
    xi = torch.tensor(xi).double()

    def bound(f):
        return 0.5 * f - 0.5 * polya_gamma_mean(xi) * f.square() + logistic_constant(xi)

    truth = torch.nn.functional.logsigmoid
    assert (bound(f) <= truth(f) + 1e-12).all()
    for at in (xi, -xi):
        torch.testing.assert_close(bound(at), truth(at))


def converged_bound(likelihood, data, precision, steps=400):
    model = built_model(IndependentTasks(), likelihood, data)
    model.prior.set_eta({"precision": torch.full_like(model.prior.eta["precision"], precision)})
    ascent = Ascent(model.family(), model.rows("tasks", data))
    for _ in range(steps):
        posterior = ascent.posterior()
        ascent.summary = likelihood.update(ascent.summary, posterior)
    return float(posterior.log_normaliser)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_bernoulli_bound_is_below_the_evidence_by_quadrature(seed):
    data = make_data("bernoulli", rows=(12,), num_features=1, seed=seed)
    x, sign = data.x[:, 0].numpy(), 2 * data.y.numpy() - 1

    def joint(w):
        return np.exp(-np.log1p(np.exp(-sign * x * w)).sum()) * scipy.stats.norm.pdf(w)

    evidence = math.log(quad(joint, -12, 12, epsabs=1e-14)[0])
    bound = converged_bound(Bernoulli(), data, 1.0)
    assert bound <= evidence
    assert evidence - bound < 0.15


def test_bernoulli_bound_in_two_dimensions():
    data = make_data("bernoulli", rows=(9,), num_features=2)
    x, sign = data.x.numpy(), 2 * data.y.numpy() - 1

    def joint(v, u):
        logit = sign * (x @ [u, v])
        log_prior = -0.5 * (u * u + v * v) - math.log(2 * math.pi)
        return math.exp(-np.logaddexp(0, -logit).sum() + log_prior)

    evidence = math.log(dblquad(joint, -7, 7, -7, 7, epsabs=1e-9)[0])
    bound = converged_bound(Bernoulli(), data, 1.0)
    assert bound <= evidence
    assert evidence - bound < 0.3


def test_bernoulli_bound_of_rows_without_information_is_exact():
    """At x = 0 every label has probability 1/2, and the bound is n log ½."""
    data = make_data("bernoulli", rows=(8,), num_features=2)
    blank = data.with_x(data.x * 0)
    assert converged_bound(Bernoulli(), blank, 1.0) == pytest.approx(8 * math.log(0.5), rel=1e-9)


def test_categorical_bound_lies_below_the_evidence():
    """Two classes: the evidence by quadrature over both classes' weights."""
    data = make_data("bernoulli", rows=(10,), num_features=1)
    x, y = data.x[:, 0].numpy(), data.y.numpy()

    def joint(v, u):
        f = np.stack([u * x, v * x], 1)
        log_lik = (f[np.arange(10), y.astype(int)] - np.logaddexp(f[:, 0], f[:, 1])).sum()
        return math.exp(log_lik - 0.5 * (u * u + v * v) - math.log(2 * math.pi))

    evidence = math.log(dblquad(joint, -7, 7, -7, 7, epsabs=1e-9)[0])
    bound = converged_bound(Categorical(2), data, 1.0)
    assert bound <= evidence
    # loose, as its docstring says: log 2 a row at the least
    assert 10 * math.log(2) < evidence - bound < 10 * 0.8


@pytest.mark.parametrize("num_classes", [2, 3, 5])
def test_categorical_bound_of_rows_without_information(num_classes):
    """At x = 0 the truth is n log 1/O; Bouchard's bound is below it by a known number."""
    data = make_data("bernoulli", rows=(7,), num_features=2)
    blank = data.with_x(data.x * 0)
    bound = converged_bound(Categorical(num_classes), blank, 1.0)
    truth = 7 * math.log(1 / num_classes)
    # min over α of α + O log(1 + e^{−α}) against log O
    alpha = np.linspace(-5, 5, 100_001)
    best = (alpha + num_classes * np.logaddexp(0, -alpha)).min()
    assert bound == pytest.approx(-7 * best, rel=1e-6)
    assert bound <= truth


# ---- expectations -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("likelihood", "y"),
    [
        (Gaussian(), [0.3, -1.0, 2.0]),
        (Bernoulli(), [0.0, 1.0, 1.0]),
        (Poisson(), [0.0, 2.0, 5.0]),
        (StudentT(df=3.0), [0.3, -1.0, 9.0]),
        (Ordinal(4), [0.0, 2.0, 3.0]),
        (Ordinal(4, "probit"), [3.0, 1.0, 0.0]),
    ],
)
def test_expected_log_likelihood_is_that_of_quadrature(likelihood, y):
    likelihood = built(likelihood)
    rows = rows_of(y)
    mean = torch.tensor([0.4, -0.2, 1.0]).double()[:, None, None]
    variance = torch.tensor([0.5, 0.1, 1.3]).double()[:, None, None]
    theta = likelihood.eta
    found = likelihood.expected_log_prob(rows, mean, variance, theta)
    assert found.shape == (3, 1)
    for n in range(3):
        sd = float(variance[n].sqrt())

        def value(f, n=n, sd=sd):
            latents = torch.full((3, 1, 1), f).double()
            density = scipy.stats.norm.pdf(f, float(mean[n]), sd)
            return float(likelihood.log_prob(rows, latents, theta)[n, 0]) * density

        m = float(mean[n])
        expected = quad(value, m - 9 * sd, m + 9 * sd, limit=200)[0]
        assert float(found[n, 0]) == pytest.approx(expected, rel=2e-4, abs=1e-5)


def test_expected_log_likelihood_of_classes_is_that_of_draws():
    likelihood = built(Categorical(3), 3)
    rows = rows_of([0.0, 2.0])
    mean = torch.tensor([[[0.5, -1.0, 0.2]], [[0.0, 1.0, 0.3]]]).double()
    variance = torch.tensor([[[0.5, 0.2, 1.0]], [[1.0, 0.1, 0.3]]]).double()
    found = likelihood.expected_log_prob(rows, mean, variance, {})
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 200_000, 3, generator=generator).double()
    values = likelihood.log_prob(rows, mean + variance.sqrt() * noise, {})
    # 256 quasi-random points: their error is of the order of a hundredth
    torch.testing.assert_close(found[:, 0], values.mean(1), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("likelihood", "law"),
    [
        (Poisson(), lambda f: scipy.stats.poisson(np.exp(f))),
        (Bernoulli(), lambda f: scipy.stats.bernoulli(1 / (1 + np.exp(-f)))),
    ],
)
def test_discrete_likelihoods_are_scipys(likelihood, law):
    f = np.array([-1.0, 0.0, 0.7])
    y = np.array([0.0, 1.0, 1.0])
    found = built(likelihood).log_prob(rows_of(y), torch.as_tensor(f)[:, None, None], {})
    np.testing.assert_allclose(found[:, 0], law(f).logpmf(y))


def test_continuous_likelihoods_are_scipys():
    f, y = np.array([-1.0, 0.0, 0.7]), np.array([0.3, -2.0, 5.0])
    latents = torch.as_tensor(f)[:, None, None]
    student = built(StudentT(df=5.0))
    theta = {"noise_precision": torch.tensor([4.0]).double()}
    found = student.log_prob(rows_of(y), latents, theta)
    np.testing.assert_allclose(found[:, 0], scipy.stats.t(5.0, f, 0.5).logpdf(y))
    gaussian = built(Gaussian())
    found = gaussian.log_prob(rows_of(y), latents, {"noise_level": torch.tensor([4.0]).double()})
    np.testing.assert_allclose(found[:, 0], scipy.stats.norm(f, 0.5).logpdf(y))


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_missing_targets_are_as_if_they_were_not_there(name):
    kind = name.split("-")[0]
    data = make_data(kind)
    y = data.y.clone()
    y[::3] = torch.nan
    bounds = []
    for part in (data._replace(y=y), data.rows(~y.isnan())):
        model = built_model(IndependentTasks(), LIKELIHOODS[name](), part, seed=2)
        bounds.append(model.log_evidence(part).value)
    assert bounds[0] == pytest.approx(bounds[1], rel=1e-9)


def test_first_latents_are_near_the_mass_of_each_row():
    rows = rows_of([2.0, 3.0, 40.0])
    for likelihood in (Poisson(), StudentT()):
        latent = built(likelihood).first_latent(rows)
        assert latent.shape == (3, 1)
        values = likelihood.log_prob(rows, latent[:, None], likelihood.eta)
        for shift in (-3.0, 3.0):
            other = likelihood.log_prob(rows, latent[:, None] + shift, likelihood.eta)
            assert (values > other).all()
    assert isinstance(Bernoulli(), Likelihood)
    assert (built(Bernoulli()).first_latent(rows) == 0).all()


# ---- noise --------------------------------------------------------------------------------


def test_noise_of_each_task_is_found():
    from bmm_multitask_learning import MultitaskModel, TaskData, fit

    rng = np.random.default_rng(0)
    K, n, sigma = 5, 120, np.array([0.2, 0.5, 1.0, 2.0, 0.3])
    task = np.repeat(np.arange(K), n)
    x = rng.standard_normal((K * n, 2))
    y = x @ [1.0, -1.0] + sigma[task] * rng.standard_normal(K * n)
    model = MultitaskModel(likelihood=Gaussian("task"))
    fit(model, TaskData(x, y, task), progress=False)
    found = model.likelihood.eta["noise_precision"][:, 0].rsqrt().numpy()
    np.testing.assert_allclose(found, sigma, rtol=0.25)  # 4 of 1/√(2n)
    level = float(model.likelihood.eta["noise_level"]) ** -0.5
    assert found.min() < level < found.max()
