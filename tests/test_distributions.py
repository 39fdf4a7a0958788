"""Distributions against torch, SciPy, dense Gaussians and automatic differentiation."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from torch.distributions import biject_to

from bmm_multitask_learning.distributions import (
    ExchangeableGaussian,
    GaussianMixture,
    LogCholeskyTransform,
    MatrixNormal,
    SphericalCauchy,
    Wishart,
)
from bmm_multitask_learning.likelihoods import Gaussian

from .cases import PRIORS, built_model, make_data
from .posterior_gaussian import PosteriorGaussian


def positive_definite(size, seed=0):
    root = torch.randn(size, size + 2, generator=torch.Generator().manual_seed(seed)).double()
    return root @ root.T / size


@pytest.mark.parametrize(("df", "size"), [(5.0, 3), (3.5, 2), (9.0, 4)])
def test_wishart_log_prob(df, size):
    scatter = torch.rand(size, generator=torch.Generator().manual_seed(1)).double() + 0.5
    value = positive_definite(size)
    found = Wishart(torch.tensor(df).double(), scatter).log_prob(value)
    other = scipy.stats.wishart(df, np.diag(1 / scatter.numpy())).logpdf(value.numpy())
    assert float(found) == pytest.approx(float(other), rel=1e-10)
    theirs = torch.distributions.Wishart(
        torch.tensor(df).double(), covariance_matrix=torch.diag(1 / scatter)
    )
    torch.testing.assert_close(found, theirs.log_prob(value))


def test_wishart_batches_and_expands():
    law = Wishart(torch.tensor([5.0, 6.0]), torch.ones(2, 3))
    assert law.batch_shape == (2,)
    assert law.event_shape == (3, 3)
    wider = law.expand((4, 2))
    draw = wider.sample((7,))
    assert draw.shape == (7, 4, 2, 3, 3)
    assert wider.log_prob(draw).shape == (7, 4, 2)


def test_wishart_samples_have_its_moments():
    scatter = torch.tensor([0.5, 2.0, 1.0]).double()
    law = Wishart(torch.tensor(6.0).double(), scatter)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = law.sample((200_000,))
    torch.testing.assert_close(law.mean, torch.diag(6.0 / scatter))
    # var(Λ_ij) = ν (V_ij² + V_ii V_jj): standard errors of the mean, 5 of them
    V = torch.diag(1 / scatter)
    variance = 6.0 * (V.square() + V.diagonal()[:, None] * V.diagonal())
    assert ((draws.mean(0) - law.mean).abs() < 5 * (variance / 200_000).sqrt()).all()
    torch.testing.assert_close(draws.var(0), variance, rtol=0.03, atol=0)


def test_wishart_mode_is_worth_one_task():
    """ν = D + 2: the mode after K scatters S is (Ψ + S) / (K + 1)."""
    scatter, K = torch.tensor([0.5, 2.0, 1.0]).double(), 7
    S = K * positive_definite(3)
    mode = torch.linalg.inv((torch.diag(scatter) + S) / (K + 1)).requires_grad_()
    law = Wishart(torch.tensor(5.0).double(), scatter)
    data = 0.5 * K * torch.logdet(mode) - 0.5 * (S * mode).sum()
    (gradient,) = torch.autograd.grad(law.log_prob(mode) + data, mode)
    assert (gradient + gradient.T).abs().max() < 1e-9


@pytest.mark.parametrize("size", [1, 2, 4])
def test_log_cholesky_round_trip(size):
    transform = LogCholeskyTransform()
    x = torch.randn(3, size * (size + 1) // 2, generator=torch.Generator().manual_seed(0)).double()
    y = transform(x)
    assert y.shape == (3, size, size) == transform.forward_shape(x.shape)
    assert transform.inverse_shape(y.shape) == x.shape
    torch.testing.assert_close(transform.inv(y), x)
    value = positive_definite(size)
    torch.testing.assert_close(transform(transform.inv(value)), value)
    law = Wishart(torch.tensor(size + 2.0), torch.ones(size))
    assert isinstance(biject_to(law.support), LogCholeskyTransform)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_log_cholesky_jacobian_is_that_of_automatic_differentiation(size):
    transform = LogCholeskyTransform()
    x = torch.randn(size * (size + 1) // 2, generator=torch.Generator().manual_seed(2)).double()
    row, column = torch.tril_indices(size, size)
    jacobian = torch.autograd.functional.jacobian(lambda v: transform(v)[row, column], x)
    expected = torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(transform.log_abs_det_jacobian(x, transform(x)), expected)


def exchangeable(K=3, O=2, D=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    variance = torch.rand(O, D, generator=generator).double() + 0.3
    covariance = torch.stack([positive_definite(D, seed + o) for o in range(O)])
    law = ExchangeableGaussian(K, variance, torch.linalg.cholesky(covariance))
    joint = [
        np.kron(np.ones((K, K)), np.diag(variance[o])) + np.kron(np.eye(K), covariance[o])
        for o in range(O)
    ]
    return law, joint


@pytest.mark.parametrize("K", [1, 2, 5])
def test_exchangeable_gaussian_is_the_dense_one(K):
    law, joint = exchangeable(K)
    W = torch.randn(6, K, 2, 4, generator=torch.Generator().manual_seed(3)).double()
    expected = sum(
        scipy.stats.multivariate_normal(np.zeros(4 * K), joint[o]).logpdf(
            W[:, :, o].reshape(6, -1).numpy()
        )
        for o in range(2)
    )
    np.testing.assert_allclose(law.log_prob(W), expected, rtol=1e-10)


def test_exchangeable_gaussian_samples_have_its_covariance():
    law, joint = exchangeable(K=2, O=1, D=3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = law.sample((200_000,)).flatten(1).numpy()
    scale = np.sqrt(np.diag(joint[0]))
    difference = (np.cov(draws.T) - joint[0]) / np.outer(scale, scale)
    assert np.abs(difference).max() < 0.014  # 6 standard errors
    assert law.mean.shape == (2, 1, 3)


def test_matrix_normal_is_the_dense_gaussian():
    rng = torch.Generator().manual_seed(0)
    tasks = torch.randn(3, 3, generator=rng).double().tril(-1) + torch.eye(3) * 0.7
    features = torch.randn(2, 4, 4, generator=rng).double().tril(-1) + torch.eye(4) * 1.3
    law = MatrixNormal(tasks, features)
    W = torch.randn(5, 3, 2, 4, generator=rng).double()
    expected = torch.zeros(5).double()
    for o in range(2):
        root = torch.kron(tasks, features[o])
        dense = torch.distributions.MultivariateNormal(torch.zeros(12).double(), root @ root.T)
        expected += dense.log_prob(W[:, :, o].flatten(1))
        variance = (root @ root.T).diagonal().reshape(3, 4)
        torch.testing.assert_close(law.variance[:, o], variance)
    torch.testing.assert_close(law.log_prob(W), expected)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        draws = law.sample((100_000,))[:, :, 1].flatten(1)
    root = torch.kron(tasks, features[1])
    scale = law.variance[:, 1].flatten().sqrt()
    # standard error of a correlation is at most .0045: 6 of it
    difference = (torch.cov(draws.T) - root @ root.T) / torch.outer(scale, scale)
    assert difference.abs().max() < 0.027


@pytest.mark.parametrize("name", PRIORS)
def test_density_of_the_posterior_is_that_of_its_moments(name):
    """log q(W) = log p(W) + log t(W) − log Z, against the posterior's own Gaussian or mixture."""
    data = make_data(num_features=2)
    model = built_model(PRIORS[name](), Gaussian(), data, seed=4)
    prior, likelihood = model.prior, model.likelihood
    statistics = prior.reduce(
        likelihood.statistics(likelihood.summarise(model.rows("tasks", data)), likelihood.eta)
    )
    posterior = prior.condition(statistics, prior.eta)
    q = PosteriorGaussian(posterior, statistics, prior(prior.eta))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        W = q.sample()
    M, C = posterior.means.shape[:2]
    root = torch.cat([posterior.roots.own, posterior.roots.common], -1)
    if name.startswith("covariance"):
        common = posterior.roots.common[:, 0, 0].flatten(0, 1)
        law = torch.distributions.MultivariateNormal(posterior.means.flatten(), common @ common.T)
        expected = law.log_prob(W.flatten())
    elif posterior.roots.common.shape[-1]:
        blocks = torch.block_diag(*posterior.roots.own[:, 0, 0])
        common = posterior.roots.common[:, 0, 0].flatten(0, 1)
        covariance = blocks @ blocks.T + common @ common.T
        law = torch.distributions.MultivariateNormal(posterior.means.flatten(), covariance)
        expected = law.log_prob(W.flatten())
    else:
        law = torch.distributions.MultivariateNormal(
            posterior.means[:, :, 0], (root @ root.mT)[:, :, 0]
        )
        each = law.log_prob(W) + posterior.log_weights  # (M, C)
        expected = each.logsumexp(1).sum()
    torch.testing.assert_close(q.log_prob(W), expected, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(posterior.log_prob(W), expected, rtol=1e-7, atol=1e-7)
    assert tuple(posterior.log_weights.shape) == (M, C)


@pytest.mark.parametrize("name", ["shared-full", "independent", "pooled", "clusters-full"])
def test_divergence_from_the_prior_is_that_of_draws(name):
    data = make_data(num_features=2)
    model = built_model(PRIORS[name](), Gaussian(), data, seed=4)
    prior, likelihood = model.prior, model.likelihood
    statistics = prior.reduce(
        likelihood.statistics(likelihood.summarise(model.rows("tasks", data)), likelihood.eta)
    )
    law = prior(prior.eta)
    posterior = prior.condition(statistics, prior.eta)
    q = PosteriorGaussian(posterior, statistics, law)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ratio = torch.stack([q.log_prob(W) - law.log_prob(W) for W in q.sample((2000,))])
    exact = posterior.kl_to_prior(statistics)
    assert float(exact) > 0
    assert abs(float(ratio.mean() - exact)) < 5 * float(ratio.std()) / 2000**0.5


def test_a_mixture_of_gaussians_has_the_whole_space_as_support():
    component = torch.distributions.Independent(
        torch.distributions.Normal(torch.zeros(5, 3, 2, 4), 1.0), 2
    )
    law = GaussianMixture(torch.distributions.Categorical(logits=torch.zeros(5, 3)), component)
    assert law.batch_shape == (5,)
    assert law.event_shape == (2, 4)
    assert biject_to(law.to_event(1).support)(torch.ones(5, 2, 4)).shape == (5, 2, 4)
    assert law.expand((6, 5)).log_prob(torch.zeros(2, 4)).shape == (6, 5)


def test_spherical_cauchy_is_a_multivariate_student_t():
    law = SphericalCauchy(torch.zeros(5, 3, dtype=torch.float64))
    theirs = scipy.stats.multivariate_t(np.zeros(3), 3 * np.eye(3), df=1)
    value = 2 * torch.randn(7, 5, 3, generator=torch.Generator().manual_seed(0)).double()
    np.testing.assert_allclose(law.log_prob(value), theirs.logpdf(value.numpy()))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = law.expand((4_000, 5)).sample()[:, 1]
    theirs = scipy.stats.cauchy(scale=np.sqrt(3))  # each entry
    assert scipy.stats.kstest(draws[:, 2].numpy(), theirs.cdf).pvalue > 1e-3
