"""LatentEncoder: the prior of the codes, its place in the bound, predictions over the codes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from bmm_multitask_learning import (
    SVI,
    Bernoulli,
    Categorical,
    CoordinateAscent,
    MultitaskClassifier,
    MultitaskModel,
    SharedGaussian,
    TaskData,
    VariationalWeighting,
    fit,
)
from bmm_multitask_learning.backbones import LatentEncoder

from .cases import make_data

NUM_TASKS, NUM_CLASSES, NUM_FEATURES = 3, 4, 2
# the second task has no row of class 2
TASK = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2])
GROUP = torch.tensor([0, 1, 2, 3, 0, 0, 1, 3, 3, 2, 1, 0, 0])


def law():
    """Laws of the codes of 13 rows, with a gradient."""
    generator = torch.Generator().manual_seed(0)
    loc, raw = torch.randn(2, len(TASK), NUM_FEATURES, generator=generator, dtype=torch.float64)
    return torch.distributions.Normal(loc.requires_grad_(), (0.3 * raw).exp().requires_grad_())


def encoder(seed=1):
    """An encoder whose mixing is not uniform."""
    made = LatentEncoder(5, NUM_FEATURES, num_tasks=NUM_TASKS)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        made.logits.normal_(generator=generator)
    return made


def classes_data(seed=0, rows=12):
    """Three tasks of three classes, their inputs shifted from task to task."""
    rng = np.random.default_rng(seed)
    task = np.repeat(np.arange(NUM_TASKS), rows)
    y = rng.integers(3, size=len(task))
    centre = 1.5 * rng.standard_normal((3, 5))
    x = centre[y] + 0.3 * rng.standard_normal((NUM_TASKS, 5))[task]
    return TaskData(x + rng.standard_normal(x.shape), y.astype(float), task)


def fitted(prior=None, steps=30, seed=0):
    data = classes_data()
    made = LatentEncoder(5, NUM_FEATURES, num_tasks=NUM_TASKS)
    model = MultitaskModel(prior or SharedGaussian("isotropic"), Categorical(3), backbone=made)
    result = fit(model, data, engine=SVI(steps=steps), seed=seed, progress=False)
    return model, data, result


# ---- the prior of the codes ---------------------------------------------------------------


def test_prior_has_the_mixture_moments_of_the_same_class():
    made, codes = encoder(), law()
    prior = made.prior(codes, GROUP, TASK)
    for n in range(len(TASK)):
        t, c = int(TASK[n]), int(GROUP[n])
        share, parts = [made.mixing[t, t]], [(torch.zeros(2).double(), torch.ones(2).double())]
        for i in range(NUM_TASKS):
            rows = (i == TASK) & (c == GROUP)
            if i != t and rows.any():
                share.append(made.mixing[t, i])
                mean = codes.mean[rows].mean(0)
                square = (codes.variance + codes.mean.square())[rows].mean(0)
                parts.append((mean, square - mean.square()))
        share = torch.stack(share) / torch.stack(share).sum()
        m = sum(a * mean for a, (mean, _) in zip(share, parts, strict=True))
        v = sum(a * (var + (mean - m) ** 2) for a, (mean, var) in zip(share, parts, strict=True))
        torch.testing.assert_close(prior.mean[n], m)
        torch.testing.assert_close(prior.variance[n], v)


def test_one_task_has_the_anchor():
    made = LatentEncoder(5, NUM_FEATURES, num_tasks=1)
    prior = made.prior(law(), GROUP, torch.zeros_like(TASK))
    torch.testing.assert_close(prior.mean, torch.zeros(13, 2).double())
    torch.testing.assert_close(prior.stddev, torch.ones(13, 2).double())


def test_other_tasks_codes_stand_still():
    made, codes = encoder(), law()
    prior = made.prior(codes, GROUP, TASK)
    assert not torch.autograd.grad(
        prior.mean.sum() + prior.stddev.sum(), codes.loc, allow_unused=True, retain_graph=True
    )[0]
    weight = torch.arange(13).double()
    made.divergence(codes, GROUP, TASK, weight).backward()
    assert made.logits.grad.abs().max() > 0
    assert codes.loc.grad[0].abs().max() == 0  # a row of weight 0
    assert codes.loc.grad[1:].abs().min() > 0


def test_divergence_counts_each_row_with_its_weight():
    made, codes = encoder(), law()
    prior = made.prior(codes, GROUP, TASK)
    ratio = prior.variance / codes.variance
    each = 0.5 * (ratio.log() + (1 + (codes.mean - prior.mean) ** 2 / codes.variance) / ratio - 1)
    weight = torch.arange(13).double()
    expected = (weight[:, None] * each).sum()
    torch.testing.assert_close(made.divergence(codes, GROUP, TASK, weight), expected)


# ---- in a fit -----------------------------------------------------------------------------


def test_codes_are_drawn_while_training_and_means_afterwards():
    made, x = encoder(), torch.ones(6, 5).double()
    made.train()
    assert not torch.equal(made(x), made(x))
    made.eval()
    torch.testing.assert_close(made(x)[:, 1:], made.law(x).mean)
    assert torch.equal(made(x)[:, 0], torch.ones(6).double())


def test_fit_trains_code_and_mixing():
    model, data, result = fitted()
    assert np.isfinite([result.bound, *result.history]).all()
    start = LatentEncoder(5, NUM_FEATURES, num_tasks=NUM_TASKS)
    for name, parameter in model.backbone.named_parameters():
        assert not torch.equal(parameter, dict(start.named_parameters())[name]), name
    chance = model.predict(data.x, data.task.tolist()).mean
    assert (chance.argmax(-1) == data.y).double().mean() > 0.6
    again, _, other = fitted()
    assert other.history == result.history
    assert torch.equal(again.backbone.mixing, model.backbone.mixing)


def test_bound_is_charged_for_the_codes():
    """The last steps' bound and the one reported are of the same codes, drawn anew."""
    _, _, result = fitted(steps=120)
    assert abs(result.bound - np.mean(result.history[-20:])) < 0.1 * abs(result.bound)


def test_predictions_average_over_the_codes():
    model, data, _ = fitted()
    x, task = data.x[:4], data.task[:4]
    with torch.no_grad():
        mean, variance = model.latent(model.weights, model.features(x, task), x, task)
        codes = model.backbone.law(x).sample((4000,))  # (S, N, D)
    W = model.weights.sample(4000, seed=1)[:, task]  # (S, N, O, D + 1)
    phi = torch.cat([torch.ones_like(codes[..., :1]), codes], -1)
    f = torch.einsum("snd,snod->sno", phi, W)
    # the mean of 4000 draws has an sd of .016, their variance one of .022 of itself
    torch.testing.assert_close(f.mean(0), mean[:, 0], rtol=0, atol=0.08 * float(f.std()))
    torch.testing.assert_close(f.var(0), variance[:, 0], rtol=0.15, atol=0)


@pytest.mark.parametrize("kind", ["gaussian", "bernoulli"])
def test_other_targets(kind):
    data = make_data(kind, rows=(7, 2, 11))
    likelihood = Bernoulli() if kind == "bernoulli" else None
    model = MultitaskModel(
        likelihood=likelihood, backbone=LatentEncoder(5, 2, num_tasks=3, hidden=[4])
    )
    result = fit(model, data, engine=SVI(steps=20, batch_size=8), progress=False)
    assert np.isfinite(result.history).all()


def test_estimators_take_it_as_it_is():
    data = classes_data()
    made = LatentEncoder(5, NUM_FEATURES, num_tasks=NUM_TASKS)
    estimator = MultitaskClassifier(backbone=made, engine=SVI(steps=5))
    x, y, task = (part.numpy() for part in (data.x, data.y, data.task))
    estimator.fit(x, y.astype(int), task=task)
    assert isinstance(estimator.model_.backbone, LatentEncoder)


@pytest.mark.slow
def test_both_mixings_stay_finite_and_apart_over_5000_steps():
    prior = VariationalWeighting(refreshes=1, strength=1, draws="gumbel")
    made = LatentEncoder(5, NUM_FEATURES, num_tasks=NUM_TASKS)
    model = MultitaskModel(prior, backbone=made)
    data = make_data(rows=(7, 2, 11))
    result = fit(model, data, engine=SVI(steps=5000), progress=False)
    assert np.isfinite(result.history).all()
    beta, share = model.backbone.mixing, model.prior.share
    assert torch.isfinite(beta).all()
    assert torch.isfinite(share).all()
    assert min(float(beta.min()), float(share.min())) > 1e-3
    assert (beta - share).abs().max() > 0.02
    assert float(model.backbone.law(data.x).stddev.detach().min()) > 1e-3


# ---- what it is not -----------------------------------------------------------------------


def test_closed_form_refuses():
    made = LatentEncoder(5, 2, num_tasks=NUM_TASKS)
    model = MultitaskModel(SharedGaussian(), Categorical(3), backbone=made)
    with pytest.raises(TypeError, match=r"draws no codes for a LatentEncoder; use SVI\(\)"):
        fit(model, classes_data(), engine=CoordinateAscent(), progress=False)


def test_a_law_that_would_go_unnoticed_is_refused():
    made = LatentEncoder(5, 2, num_tasks=NUM_TASKS)
    model = MultitaskModel(likelihood=Categorical(3), backbone=nn.Sequential(made))
    with pytest.raises(ValueError, match="must be the backbone itself"):
        fit(model, classes_data(), engine=SVI(steps=1), progress=False)


def test_other_numbers_of_tasks_are_refused():
    made = LatentEncoder(5, 2, num_tasks=7)
    model = MultitaskModel(likelihood=Categorical(3), backbone=made)
    with pytest.raises(ValueError, match=r"num_tasks=7; the data have 3"):
        fit(model, classes_data(), engine=SVI(steps=1), progress=False)


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="must be at least 1; got 5, 0 and 3"):
        LatentEncoder(5, 0, num_tasks=3)
