"""Roots that are formed only when asked for say what formed ones say."""

import pytest
import torch

from bmm_multitask_learning import Gaussian, LatentHierarchy, SharedGaussian
from bmm_multitask_learning.roots import Roots

from .cases import built_model, make_data


@pytest.mark.parametrize("prior", [SharedGaussian("full"), LatentHierarchy(mixing=0.5)])
def test_lazy_roots_equal_the_formed_ones(prior):
    data = make_data(outputs=2)
    model = built_model(prior, Gaussian(), data, seed=1)
    summary = model.family().likelihood.summarise(model.rows("tasks", data))
    statistics = model.family().likelihood.statistics(summary, model.family().likelihood.eta)
    roots = model.prior.condition(statistics, model.prior.eta).roots
    formed = Roots(roots.own, roots.common)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 6, formed.own.shape[-2], generator=generator, dtype=torch.float64)
    task = torch.tensor([0, 2, 1, 1, 2])
    assert float(formed.common.abs().min(-1).values.max()) > 0
    torch.testing.assert_close(roots.variance(), formed.variance())
    torch.testing.assert_close(roots.latent_variance(x, task), formed.latent_variance(x, task))
    torch.testing.assert_close(roots.whole @ roots.whole.mT, formed.whole @ formed.whole.mT)
