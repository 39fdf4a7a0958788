"""The generalized inverse Gaussian against mpmath, SciPy and automatic differentiation."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import scipy.stats
import torch

from bmm_multitask_learning.distributions import GIG, GeneralizedInverseGaussian

ORDERS = [-1e6, -2.5, -1e-6, 0.0, 0.5, 30.0, 1e6]
ARGUMENTS = [1e-6, 0.3, 20.0, 1e3]  # mpmath takes minutes beyond


def law_of(order, chi, phi):
    return GeneralizedInverseGaussian(
        *(torch.tensor(v, dtype=torch.float64) for v in (order, chi, phi))
    )


def bessel(order, argument):
    return mpmath.besselk(mpmath.mpf(order), argument)


@pytest.mark.parametrize("ratio", [1e-3, 1.0, 50.0])
@pytest.mark.parametrize("order", ORDERS)
def test_normaliser_and_moments_are_those_of_mpmath(order, ratio):
    with mpmath.workdps(40):
        for z in ARGUMENTS:
            chi, phi = z * ratio, z / ratio
            law = law_of(order, chi, phi)
            root = mpmath.sqrt(mpmath.mpf(chi) * mpmath.mpf(phi))
            scale = mpmath.sqrt(mpmath.mpf(chi) / mpmath.mpf(phi))
            below, at, above = (bessel(order + step, root) for step in (-1, 0, 1))
            normaliser = mpmath.log(2 * at) + order * mpmath.log(scale)
            assert float(law.log_normaliser) == pytest.approx(
                float(normaliser), rel=1e-12, abs=1e-11
            )
            assert float(law.mean) == pytest.approx(float(scale * above / at), rel=1e-10)
            reciprocal = float(below / at / scale)
            assert float(law.mean_reciprocal) == pytest.approx(reciprocal, rel=1e-10)


@pytest.mark.parametrize("order", [-1e4, -0.5, 0.0, 3.0, 1e6])
def test_a_large_argument_follows_the_uniform_expansion(order):
    """K_ω(z) ~ √(π / 2s) e^−ωη with s = √(ω² + z²): corrections of order 1/s."""
    z = 1e6
    law = law_of(order, z, z)
    s = np.hypot(order, z)
    eta = s - order * np.arcsinh(order / z)
    expected = np.log(2) + 0.5 * np.log(np.pi / (2 * s)) - eta
    assert float(law.log_normaliser) == pytest.approx(expected, abs=1e-6)
    assert float(law.mean) == pytest.approx((order + s) / z, rel=3e-6)


@pytest.mark.parametrize("order", [0.7, 4.0])
def test_limits_are_gamma_and_inverse_gamma(order):
    x = torch.linspace(0.1, 5.0, 7, dtype=torch.float64)
    gamma = law_of(order, 0.0, 3.0)
    other = torch.distributions.Gamma(*torch.tensor([order, 1.5], dtype=torch.float64))
    torch.testing.assert_close(gamma.log_prob(x), other.log_prob(x))
    torch.testing.assert_close(gamma.mean, other.mean)
    torch.testing.assert_close(gamma.variance, other.variance)
    torch.testing.assert_close(gamma.entropy(), other.entropy())
    inverse = law_of(-order, 3.0, 0.0)
    theirs = scipy.stats.invgamma(order, scale=1.5)
    np.testing.assert_allclose(inverse.log_prob(x), theirs.logpdf(x.numpy()))
    assert float(inverse.entropy()) == pytest.approx(theirs.entropy())
    assert float(inverse.mean) == pytest.approx(theirs.mean())
    assert float(inverse.mean_log) == pytest.approx(-float(gamma.mean_log))
    near = law_of(order, 1e-12, 3.0)  # the limit is reached without a jump
    torch.testing.assert_close(near.log_normaliser, gamma.log_normaliser, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("named", "theirs"),
    [
        (GIG.gamma(2.0, 1.5), scipy.stats.gamma(2.0, scale=1 / 1.5)),
        (GIG.inverse_gamma(3.0, 1.5), scipy.stats.invgamma(3.0, scale=1.5)),
        (GIG.inverse_gaussian(2.0, 1.5), scipy.stats.invgauss(2.0 / 1.5, scale=1.5)),
    ],
)
def test_named_members(named, theirs):
    x = torch.tensor([0.4, 2.2], dtype=torch.float64)
    np.testing.assert_allclose(law_of(*named).log_prob(x), theirs.logpdf(x.numpy()))


def test_jeffreys_is_flat_in_the_logarithm_up_to_its_width():
    law = law_of(*GIG.jeffreys(1e4))
    x = torch.logspace(-2, 2, 5, dtype=torch.float64)
    height = law.log_prob(x) + x.log()
    assert (height - height[2]).abs().max() < 0.01
    beyond = law.log_prob(torch.tensor([1e-6, 1e6])) + torch.tensor([1e-6, 1e6]).log()
    assert (beyond < height[2] - 40).all()


@pytest.mark.parametrize(("order", "chi", "phi"), [(0.7, 0.3, 2.0), (-30.0, 4.0, 0.01)])
def test_gradients_of_moments(order, chi, phi):
    start = torch.tensor([order, chi, phi], dtype=torch.float64, requires_grad=True)

    def moments(parameters):
        law = GeneralizedInverseGaussian(*parameters)
        return torch.stack([law.log_normaliser, law.mean.log(), law.mean_log, law.entropy()])

    assert torch.autograd.gradcheck(moments, start)
    (gradient,) = torch.autograd.grad(moments(start)[0], start)
    law = GeneralizedInverseGaussian(*start.detach())
    expected = torch.stack([law.mean_log, -0.5 * law.mean_reciprocal, -0.5 * law.mean])
    torch.testing.assert_close(gradient, expected)


def test_mode_is_where_the_density_is_flat():
    law = law_of([3.0, 0.4, -2.0], [0.5, 0.5, 3.0], [2.0, 1.0, 0.0])
    mode = law.mode.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(law.log_prob(mode).sum(), mode)
    assert gradient.abs().max() < 1e-9


@pytest.mark.parametrize(
    ("order", "chi", "phi"),
    [(0.7, 0.3, 2.0), (-3.0, 1e-2, 0.1), (0.0, 1e-4, 1e-4), (50.0, 1.0, 1.0), (-2.0, 3.0, 0.0)],
)
def test_draws_follow_the_law(order, chi, phi):
    law = law_of(order, chi, phi)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        draws = law.sample((8_000,)).numpy()
    if phi:
        theirs = scipy.stats.geninvgauss(order, (chi * phi) ** 0.5, scale=(chi / phi) ** 0.5)
    else:
        theirs = scipy.stats.invgamma(-order, scale=chi / 2)
    assert scipy.stats.kstest(draws, theirs.cdf).pvalue > 1e-3


def test_batches_expand():
    law = law_of([[0.5], [2.0]], [0.3, 0.2, 0.0], 1.0)
    assert law.batch_shape == (2, 3)
    wide = law.expand((4, 2, 3))
    draws = wide.sample((5,))
    assert draws.shape == (5, 4, 2, 3)
    torch.testing.assert_close(wide.log_prob(draws), law.log_prob(draws))
    assert wide.mean.shape == (4, 2, 3)


@pytest.mark.parametrize("parameters", [(0.0, 0.0, 0.0), (-1.0, 0.0, 1.0), (1.0, 1.0, 0.0)])
def test_what_is_no_law_is_refused(parameters):
    with pytest.raises(ValueError, match="order > 0 where chi = 0"):
        GeneralizedInverseGaussian(
            *(torch.tensor(v, dtype=torch.float64) for v in parameters), validate_args=True
        )


def test_it_is_the_posterior_of_a_precision():
    """n values of sum of squares S: order and φ grow by n/2 and S, and the evidence follows."""
    prior, S, n = law_of(0.5, 0.2, 1.5), 2.4, 3
    posterior = law_of(0.5 + n / 2, 0.2, 1.5 + S)
    for value in (0.3, 4.0):
        gamma = torch.tensor(value, dtype=torch.float64)
        likelihood = 0.5 * n * gamma.log() - 0.5 * S * gamma
        evidence = posterior.log_normaliser - prior.log_normaliser
        found = prior.log_prob(gamma) + likelihood - evidence
        torch.testing.assert_close(found, posterior.log_prob(gamma))
