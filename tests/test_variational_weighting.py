"""VariationalWeighting: the four forms of its prior, its references, whom it borrows from."""

from __future__ import annotations

import numpy as np
import pyro
import pytest
import torch

from bmm_multitask_learning import (
    NUTS,
    SVI,
    CoordinateAscent,
    IndependentTasks,
    MultitaskModel,
    SharedGaussian,
    TaskData,
    VariationalWeighting,
    datasets,
    fit,
    load,
)
from bmm_multitask_learning.backbones import MLP
from bmm_multitask_learning.engines.guides import HyperGuide
from bmm_multitask_learning.likelihoods import Poisson
from bmm_multitask_learning.priors.mixtures import (
    exact,
    log_linear,
    moment_matched,
    weighted_sum,
)

from .asserts import losses_of_unrelated
from .cases import LIKELIHOODS, make_data
from .engines.test_coordinate_ascent import assert_never_falls
from .test_conformance import posterior_mean

MIXTURES = ("moment_matched", "log_linear", "exact", "weighted_sum")


def fixed(mixture="moment_matched", refreshes=1):
    """With nothing to choose: as often as asked for, and each weight learned."""
    return VariationalWeighting(mixture, refreshes=refreshes, strength=1.0)


@pytest.fixture(params=MIXTURES)
def mixture(request):
    return request.param


# ---- the four forms -----------------------------------------------------------------------


def three_references():
    """Means -2, 0, 2 of variance 1, weights of one third; the second feature has other numbers."""
    loc = torch.tensor([[-2.0, 1.0], [0.0, 1.0], [2.0, 4.0]]).double()[None, :, None]
    variance = torch.tensor([[1.0, 0.5], [1.0, 2.0], [1.0, 0.5]]).double()[None, :, None]
    return torch.full((1, 3), 1 / 3).double(), loc, variance


def test_moments_are_those_of_the_mixture():
    share, loc, variance = three_references()
    law = moment_matched(share, loc, variance)
    torch.testing.assert_close(law.loc, torch.tensor([[[[0.0, 2.0]]]]).double())
    # 1 + 8 / 3, which the released code has as 1 / 3;  1 + 2
    torch.testing.assert_close(law.variance, torch.tensor([[[[11 / 3, 3.0]]]]).double())


def test_weighted_sum_is_the_released_code():
    law = weighted_sum(*three_references())
    torch.testing.assert_close(law.loc, torch.tensor([[[[0.0, 2.0]]]]).double())
    torch.testing.assert_close(law.variance, torch.tensor([[[[1 / 3, 1 / 3]]]]).double())


def test_log_linear_is_the_normalised_geometric_mean():
    share, loc, variance = three_references()
    law = log_linear(share, loc, variance)
    grid = torch.linspace(-9, 11, 4001).double()[:, None]
    parts = torch.distributions.Normal(loc[0, :, 0, None], variance[0, :, 0, None].sqrt())
    pooled = (share[0][:, None, None] * parts.log_prob(grid)).sum(0).exp()  # (4001, D)
    pooled = pooled / pooled.sum(0)
    mean = (pooled * grid).sum(0)
    torch.testing.assert_close(law.loc[0, 0, 0], mean, rtol=1e-5, atol=1e-6)  # a grid of .005
    torch.testing.assert_close(
        law.variance[0, 0, 0], (pooled * (grid - mean) ** 2).sum(0), rtol=1e-5, atol=1e-6
    )


def test_exact_is_the_mixture_itself():
    share, loc, variance = three_references()
    law = exact(share, loc, variance)
    torch.testing.assert_close(law.log_weights.exp(), share)
    assert law.loc is loc
    assert law.variance is variance


# ---- the surrogate ------------------------------------------------------------------------


def test_without_references_it_is_independent_tasks():
    data = make_data(rows=(7, 2, 11))
    alone = posterior_mean(IndependentTasks(), data, {"precision": 2.0})
    first = posterior_mean(VariationalWeighting(), data, {"precision": 2.0})
    torch.testing.assert_close(first.mean, alone.mean, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(first.covariance, alone.covariance, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("likelihood_name", LIKELIHOODS)
def test_surrogate_never_falls_while_the_references_stand(mixture, likelihood_name):
    data = make_data(likelihood_name.split("-")[0], rows=(7, 2, 11, 5), num_features=3)
    model = MultitaskModel(fixed(mixture), LIKELIHOODS[likelihood_name]())
    engine = CoordinateAscent(max_iter=10, tol=1e-13)
    assert_never_falls(fit(model, data, engine=engine, progress=False).history)


def test_mixing_is_a_mode(mixture):
    """Other weights near those found have a lower surrogate."""
    data, _ = datasets.make_mixing(num_families=2, leaders=1, followers=2, seed=1)
    model = MultitaskModel(fixed(mixture))
    fit(model, data, engine=CoordinateAscent(tol=1e-9), progress=False)
    prior = model.prior

    def value(eta):
        return model.log_evidence(data).value + float(prior.log_hyperprior(eta))

    best, share = value(prior.eta), prior.share.clone()
    for seed in range(6):
        noise = torch.randn(share.shape, generator=torch.Generator().manual_seed(seed))
        moved = (share.log() + 0.2 * noise).softmax(-1)
        prior.set_eta({"share": moved})
        assert value(prior.eta) < best + 1e-6


@pytest.mark.slow
def test_the_sum_of_laws_loses_its_uncertainty_with_refreshes():
    """Where the moments of the mixture keep it."""
    data, _ = datasets.make_mixing(num_families=2, leaders=1, followers=2, seed=2)
    spread = {}
    for name in ("moment_matched", "weighted_sum"):
        for refreshes in (1, 3):
            model = MultitaskModel(fixed(name, refreshes))
            fit(model, data, progress=False)
            spread[name, refreshes] = float(model.weights.std.mean())
    assert spread["moment_matched", 3] > 0.95 * spread["moment_matched", 1]
    assert spread["weighted_sum", 3] < 0.8 * spread["moment_matched", 3]


def test_uncertainty_does_not_shrink_with_refreshes():
    """In one population, where each refresh was a step of EM from far above."""
    rng = np.random.default_rng(202)
    K, D, n = 40, 5, 9
    weights = 2 * rng.standard_normal(D) + 0.4 * rng.standard_normal((K, D))
    task = np.repeat(np.arange(K), n)
    x = rng.standard_normal((K * n, D))
    y = (x * weights[task]).sum(1) + rng.standard_normal(K * n)
    spread, score = [], []
    for prior in (
        SharedGaussian("isotropic"),
        *(VariationalWeighting(strength=100, refreshes=r) for r in (1, 3)),
    ):
        model = MultitaskModel(prior)
        fit(model, TaskData(x, y, task), progress=False)
        spread.append(float(model.weights.std.mean()))
        score.append(np.square((model.weights.mean.numpy() - weights) / spread[-1]).mean())
    population, once, often = spread
    assert often >= once > 0.95 * population
    assert once < 1.2 * population  # posteriors of tasks alone make it 1.4
    # the mean square of 200 scores is 1 with sd .1
    assert max(abs(value - 1) for value in score) < 0.4


@pytest.mark.slow
def test_uncertainty_on_school(data_home):
    if not (data_home / "school" / "school_malsar.mat").is_file():
        pytest.skip(f"no school/school_malsar.mat in {data_home}")
    raw = datasets.fetch_school(data_home=data_home)
    train, _ = raw.split(0.75, seed=200)
    x, y = train.x.numpy(), train.y.numpy()
    std = x.std(0)
    x = np.column_stack([np.ones(len(x)), (x - x.mean(0)) / np.where(std > 0, std, 1)])
    data = TaskData(x, y - y.mean(), train.task.numpy())
    spread = []
    for prior in (
        SharedGaussian("isotropic"),
        VariationalWeighting(strength=100),
        VariationalWeighting(strength=100, refreshes=3),
    ):
        model = MultitaskModel(prior)
        fit(model, data, progress=False)
        spread.append(float(model.weights.std.mean()))
        if prior.get_params().get("refreshes") == "auto":
            assert int(prior.planned) == 1
    assert spread[1] > 0.9 * spread[0]
    assert spread[2] > 0.95 * spread[1]


@pytest.mark.parametrize("seed", range(3))
def test_weight_falls_on_the_own_family(seed):
    data, truth = datasets.make_mixing(seed=seed)
    model = MultitaskModel(VariationalWeighting())
    fit(model, data, progress=False)
    mixing = model.relations().numpy()
    np.testing.assert_allclose(mixing.sum(1), 1.0)
    assert np.abs(np.diag(mixing)).max() == 0
    inside = (mixing * (truth.families[:, None] == truth.families)).sum(1)
    assert inside.mean() > 0.8
    follower = truth.mixing.sum(1) > 0
    alone = MultitaskModel(IndependentTasks())
    fit(alone, data, progress=False)
    error = [np.abs(m.weights.mean.numpy() - truth.weights)[follower] for m in (model, alone)]
    assert error[0].mean() < 0.9 * error[1].mean()


def test_one_task_is_left_with_the_anchor():
    data = make_data(rows=(9,))
    found = {}
    for prior in (IndependentTasks(), VariationalWeighting()):
        model = MultitaskModel(prior)
        fit(model, data, engine=CoordinateAscent(tol=1e-10), progress=False)
        found[type(prior)] = model
    weighted = found[VariationalWeighting]
    assert torch.equal(weighted.prior.anchor_weight, torch.ones(1).double())
    assert torch.equal(weighted.prior.mixing, torch.zeros(1, 1).double())
    mean = found[IndependentTasks].weights.mean
    torch.testing.assert_close(weighted.weights.mean, mean, rtol=1e-3, atol=1e-3)


def test_alike_tasks_share_one_weight():
    """Families tell their members apart; exchangeable tasks do not."""
    rng = np.random.default_rng(0)
    task = np.repeat(np.arange(9), 12)
    x = rng.standard_normal((len(task), 4))
    weights = rng.standard_normal(4) + 0.2 * rng.standard_normal((9, 4))
    y = (x * weights[task]).sum(1) + 0.5 * rng.standard_normal(len(task))
    strengths = []
    for data in (TaskData(x, y, task), datasets.make_mixing(seed=0)[0]):
        model = MultitaskModel(VariationalWeighting())
        fit(model, data, progress=False)
        assert int(model.prior.planned) >= 1
        strengths.append(float(model.prior.worth))
    assert strengths == [100, 1]


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "features"), [(10, 6), (20, 24)])
def test_unrelated_tasks_lose_next_to_nothing(rows, features):
    ratios = losses_of_unrelated(VariationalWeighting, rows=rows, features=features)
    assert ratios.mean() < 1.01
    assert ratios.max() < 1.08


def test_tasks_that_are_left_alone_borrow_from_nobody():
    rng = np.random.default_rng(200)
    task = np.repeat(np.arange(6), 10)
    x = rng.standard_normal((60, 4))
    y = (x * rng.standard_normal((6, 4))[task]).sum(1) + 0.5 * rng.standard_normal(60)
    model = MultitaskModel(VariationalWeighting())
    fit(model, TaskData(x, y, task), progress=False)
    assert int(model.prior.planned) == 0
    assert torch.equal(model.prior.anchor_weight, torch.ones(6).double())
    assert torch.equal(model.relations(), torch.zeros(6, 6).double())


@pytest.mark.slow
@pytest.mark.parametrize("draws", ["gaussian", "gumbel"])
def test_weights_stay_finite_over_5000_steps(draws):
    data, _ = datasets.make_mixing(num_families=2, leaders=1, followers=2, seed=1)
    model = MultitaskModel(VariationalWeighting(refreshes=1, strength=1, draws=draws))
    result = fit(model, data, engine=SVI(steps=5000), progress=False)
    assert np.isfinite(result.history).all()
    assert torch.isfinite(model.prior.share).all()
    assert float(model.prior.share.min()) > 1e-3  # its Dirichlet prior keeps it off the corners


# ---- Gumbel-softmax draws -----------------------------------------------------------------


def gumbel_guide(draws="gumbel"):
    """The guide of six tasks' weights, and the share from which it starts."""
    data, _ = datasets.make_mixing(num_families=2, leaders=1, followers=2, seed=1)
    model = MultitaskModel(VariationalWeighting(refreshes=1, strength=1, draws=draws))
    fit(model, data, progress=False)
    return HyperGuide(model.prior), model.prior.share


def test_temperature_falls_from_one_to_one_half():
    model = MultitaskModel(VariationalWeighting(draws="gumbel"))
    model.build(make_data())
    guide = HyperGuide(model.prior)
    found = []
    for done in (0.0, 0.25, 0.5, 0.99):
        guide.anneal(done)
        found.append(guide.temperature)
    np.testing.assert_allclose(found, [1.0, 0.5**0.5, 0.5, 0.5])


def test_draws_are_gumbel_softmax():
    """The largest weight falls on task i with its probability, and is larger when it is cold."""
    guide, share = gumbel_guide()
    largest = {}
    for done in (0.0, 1.0):
        guide.anneal(done)
        with torch.random.fork_rng(), pyro.validation_enabled(), torch.no_grad():
            torch.manual_seed(0)
            draws = torch.stack([guide()["share"] for _ in range(2000)])
        torch.testing.assert_close(draws.sum(-1), torch.ones(2000, 6).double())
        often = torch.nn.functional.one_hot(draws.argmax(-1), 6).double().mean(0)
        # sd of a frequency is at most .011
        torch.testing.assert_close(often, share, rtol=0, atol=0.05)
        largest[done] = float(draws.amax(-1).mean())
    assert largest[1.0] > largest[0.0] + 0.05
    torch.testing.assert_close(guide.median()["share"], share)


def test_gumbel_draws_learn_their_logits_and_use_the_mean_afterwards():
    data, truth = datasets.make_mixing(num_families=2, leaders=1, followers=2, seed=3)
    model = MultitaskModel(VariationalWeighting(refreshes=1, strength=1, draws="gumbel"))
    fit(model, data, progress=False)
    before = model.prior.share
    fit(model, data, engine=SVI(steps=60), progress=False)
    share = model.prior.share
    torch.testing.assert_close(share.sum(-1), torch.ones(6).double())
    assert (share - before).abs().max() > 0.02
    assert float(share.min()) > 0.002
    inside = (model.relations().numpy() * (truth.families[:, None] == truth.families)).sum(1)
    assert inside.mean() > 0.6  # 2 of 5 others by chance


def test_draws_are_nothing_to_the_closed_form():
    found = [gumbel_guide(draws)[1] for draws in ("gaussian", "gumbel")]
    assert torch.equal(*found)


# ---- engines, new tasks -------------------------------------------------------------------


def test_svi_stays_near_the_closed_form():
    """SVI integrates the hyperparameters whose mode the closed form takes."""
    data, _ = datasets.make_mixing(num_families=2, leaders=1, followers=2, seed=3)
    found = []
    for engine in (CoordinateAscent(), SVI(steps=150)):
        model = MultitaskModel(fixed())
        fit(model, data, engine=engine, progress=False)
        found.append(model.weights)
    away = (found[1].mean - found[0].mean) / found[0].std
    assert away.abs().mean() < 0.3
    assert away.abs().max() < 1.0
    assert (found[1].std / found[0].std - 1).abs().mean() < 0.3


def test_references_are_made_for_a_likelihood_without_closed_form():
    data = make_data(rows=(9, 4, 12))
    data = data._replace(y=data.y.exp().round())
    model = MultitaskModel(fixed(), Poisson())
    fit(model, data, engine=SVI(steps=5), progress=False)
    assert model.prior.reference_mean.shape == (3, 1, 5)
    assert torch.isfinite(model.weights.std).all()


def test_references_are_made_with_a_trainable_backbone():
    data = make_data(rows=(17, 12, 21), num_features=2)
    model = MultitaskModel(fixed(), backbone=MLP(2, [3], seed=0))
    fit(model, data, engine=CoordinateAscent(max_iter=60, tol=1e-3), progress=False)
    assert model.prior.reference_mean.shape == (3, 1, 4)


def test_adapt_adds_a_task_that_borrows_from_all(tmp_path):
    data = make_data(rows=(17, 12, 21))
    model = MultitaskModel(fixed())
    fit(model, data, progress=False)
    rng = np.random.default_rng(1)
    wider = model.adapt(TaskData(rng.standard_normal((4, 5)), rng.standard_normal(4), ["new"] * 4))
    relations = wider.relations()
    torch.testing.assert_close(relations[:3, :3], model.relations())
    torch.testing.assert_close(relations[3], torch.tensor([1, 1, 1, 0.0]).double() / 3)
    assert (relations[:3, 3] == 0).all()
    wider.save(tmp_path)
    again = load(tmp_path)
    assert torch.equal(again.relations(), relations)
    labels = [0, "new", 2, "new"]
    x = data.x[:4].numpy()
    np.testing.assert_array_equal(again.predict(x, labels).std, wider.predict(x, labels).std)


# ---- what it is not -----------------------------------------------------------------------


def test_its_evidence_is_a_surrogate():
    data = make_data()
    model = MultitaskModel(VariationalWeighting())
    fit(model, data, engine=CoordinateAscent(max_iter=3), progress=False)
    assert model.log_evidence(data).kind == "surrogate"


def test_nuts_refuses():
    with pytest.raises(TypeError, match=r"VariationalWeighting reads posteriors"):
        fit(MultitaskModel(VariationalWeighting()), make_data(), engine=NUTS(), progress=False)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"mixture must be one of \['exact', 'log_linear'"):
        VariationalWeighting("harmonic")
    with pytest.raises(ValueError, match='refreshes must be at least 1, or "auto"'):
        VariationalWeighting(refreshes=0)
    with pytest.raises(ValueError, match='draws must be "gaussian" or "gumbel"'):
        VariationalWeighting(draws="exponential")
    with pytest.raises(ValueError, match="strength must be a positive number"):
        VariationalWeighting(strength=0)
    with pytest.raises(ValueError, match='covariance must be "diagonal", as references'):
        VariationalWeighting(covariance="full")
