"""Cumulative distribution functions, and the intervals of counts and heavy tails."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from bmm_multitask_learning import SVI, MultitaskModel, Poisson, StudentT, TaskData, fit
from bmm_multitask_learning.distributions import PoissonWithCdf, StudentTWithCdf


def test_poisson_cdf_is_scipys(dtype):
    rate = torch.tensor([0.1, 3.0, 40.0], dtype=dtype)
    count = torch.tensor([[-0.5], [0.0], [2.7], [39.0]], dtype=dtype)
    wanted = stats.poisson(rate.numpy()).cdf(count.numpy())
    np.testing.assert_allclose(PoissonWithCdf(rate).cdf(count), wanted, rtol=1e-5)


def test_student_t_cdf_is_scipys(dtype):
    loc, value = torch.tensor([0.0, -2.0], dtype=dtype), torch.linspace(-9, 9, 5, dtype=dtype)
    law = StudentTWithCdf(4.0, loc, torch.tensor(1.5, dtype=dtype))
    wanted = stats.t(4.0, loc.numpy(), 1.5).cdf(value.numpy()[:, None])
    np.testing.assert_allclose(law.cdf(value[:, None]), wanted, rtol=1e-5)


@pytest.mark.parametrize(("likelihood", "whole"), [(Poisson(), True), (StudentT(), False)])
def test_intervals_hold_what_they_promise_of_their_own_draws(likelihood, whole, rng):
    x, task = rng.normal(size=(60, 2)), np.arange(60) % 3
    latent = 1 + 0.5 * x[:, 0]
    y = rng.poisson(np.exp(latent)).astype(float) if whole else latent + rng.standard_t(4, 60)
    model = MultitaskModel(likelihood=likelihood)
    fit(model, TaskData(x, y, task), engine=SVI(steps=100), seed=0, progress=False)
    prediction = model.predict(x, task)
    lower, upper = prediction.interval(0.8).T
    draws = prediction.sample(2000, seed=1)
    held = ((lower <= draws) & (draws <= upper)).mean()
    if whole:  # at least as much as promised: counts come in steps
        assert 0.8 - 0.01 < held < 0.97
        np.testing.assert_array_equal(lower, np.round(lower))
        assert np.mean(draws < lower) < 0.1
    else:
        assert held == pytest.approx(0.8, abs=0.01)  # 120,000 draws: five standard deviations
