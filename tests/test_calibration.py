"""Every prior's closed form is calibrated at fixed hyperparameters, and a wrong one is found out.

Of all p-values of a test of this file, the smallest times their number must exceed .01: a right
posterior fails one run in a hundred under other seeds.
"""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch

from bmm_multitask_learning.roots import Roots

from . import calibration
from .cases import PRIORS

pytestmark = pytest.mark.slow

LEVEL = 0.01
MIXTURES = [name for name in PRIORS if name.startswith("clusters")]
GAUSSIANS = [name for name in PRIORS if name not in MIXTURES]
# whose tasks, at the hyperparameters that are drawn, are strongly correlated a posteriori
RELATED = ["shared-diagonal", "hierarchy-full"]


@functools.cache
def simulations(prior_name):
    return calibration.simulate(PRIORS[prior_name](), 1000)


def spoiled(prior_name, change):
    return [each._replace(posterior=change(each.posterior)) for each in simulations(prior_name)]


def narrow(posterior):
    """Variances times 0.7."""
    own, common = (0.7**0.5 * root for root in (posterior.roots.own, posterior.roots.common))
    return dataclasses.replace(posterior, roots=Roots(own, common))


def apart(posterior):
    """The same law of each task, and tasks independent."""
    return dataclasses.replace(posterior, roots=Roots.independent(posterior.roots.whole))


def shifted(posterior):
    """Means half a standard deviation too high."""
    std = posterior.roots.variance().sqrt()
    return dataclasses.replace(posterior, means=posterior.means + 0.5 * std)


def undecided(posterior):
    """Each component as probable as the other, whatever the rows say."""
    even = torch.zeros_like(posterior.log_weights).log_softmax(-1)
    return dataclasses.replace(posterior, log_weights=even)


@pytest.mark.parametrize("prior_name", PRIORS)
def test_truth_ranks_anywhere_among_posterior_draws(prior_name):
    p = calibration.uniformity(calibration.ranks(simulations(prior_name)))
    assert p.shape == (5,)
    assert p.min() > LEVEL / (len(p) * len(PRIORS))


@pytest.mark.parametrize("prior_name", GAUSSIANS)
def test_truth_is_white_in_units_of_a_gaussian_posterior(prior_name):
    p = calibration.whiteness(simulations(prior_name))
    assert p.shape == (2,)
    assert p.min() > LEVEL / (len(p) * len(GAUSSIANS))


def test_labels_of_the_clusters_are_uncertain():
    """Otherwise nothing above would test how they are summed out."""
    for name in MIXTURES:
        shares = torch.stack([each.posterior.log_weights.exp() for each in simulations(name)])
        assert float((shares.amin(-1) > 0.1).double().mean()) > 0.1, name


@pytest.mark.parametrize("prior_name", PRIORS)
@pytest.mark.parametrize("wrong", [narrow, shifted])
def test_ranks_show_a_wrong_posterior(prior_name, wrong):
    p = calibration.uniformity(calibration.ranks(spoiled(prior_name, wrong)))
    assert p.min() < 1e-6


@pytest.mark.parametrize("prior_name", RELATED)
def test_ranks_show_tasks_that_forget_each_other(prior_name):
    p = calibration.uniformity(calibration.ranks(spoiled(prior_name, apart)))
    assert p.min() < 1e-6


@pytest.mark.parametrize("prior_name", MIXTURES)
def test_ranks_show_labels_that_forget_the_rows(prior_name):
    p = calibration.uniformity(calibration.ranks(spoiled(prior_name, undecided)))
    assert p.min() < 1e-6


@pytest.mark.parametrize("wrong", [narrow, shifted, apart])
@pytest.mark.parametrize("prior_name", RELATED)
def test_whiteness_shows_a_wrong_posterior(prior_name, wrong):
    assert calibration.whiteness(spoiled(prior_name, wrong)).min() < 1e-6
