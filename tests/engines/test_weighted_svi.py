"""SVI with a weighting of families and a sampler of rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bmm_multitask_learning import (
    SVI,
    Bernoulli,
    Family,
    MultitaskModel,
    PooledTasks,
    SharedGaussian,
    TaskData,
    fit,
)
from bmm_multitask_learning.backbones import MLP
from bmm_multitask_learning.data import Annealed, Batch, Resampled, RoundRobin, Sampler
from bmm_multitask_learning.engines import Callback, Checkpoint, NonFiniteBoundError
from bmm_multitask_learning.weighting import (
    Aggregated,
    DynamicWeightAverage,
    FixedWeights,
    LossWeighting,
    UncertaintyWeighting,
    VariationalLossWeighting,
)

from ..cases import make_data


def opposed(rows: int = 60, seed: int = 0) -> dict[str, TaskData]:
    """Two families of classes that want different features of the same inputs."""
    rng = np.random.default_rng(seed)
    data = {}
    for j, (name, n) in enumerate((("first", rows), ("second", 2 * rows))):
        x = rng.normal(size=(n, 4))
        noise = 0.3 * rng.normal(size=n)
        label = x[:, 2 * j] * x[:, 2 * j + 1] + noise > 0  # no line parts them
        task = [f"{name} {k}" for k in rng.integers(2, size=n)]
        data[name] = TaskData(x, label.astype(float), task)
    return data


def two_heads(width: int = 3) -> MultitaskModel:
    return MultitaskModel(
        backbone=MLP(4, [width], seed=1),
        families={
            "first": Family(PooledTasks(), Bernoulli()),
            "second": Family(SharedGaussian("isotropic"), Bernoulli()),
        },
    )


def log_loss(model: MultitaskModel, data: dict[str, TaskData], name: str) -> float:
    part = data[name]
    labels = [part.tasks[k] for k in part.task.tolist()]
    return -float(model.predict(part.x, labels, family=name).log_prob(part.y).mean())


def test_weights_by_targets_are_no_weights():
    """Means weighed by the number of their targets are the bound: the same fit."""
    data, found = opposed(), []
    for weighting in (None, FixedWeights([0.06, 0.12])):
        model = two_heads()
        result = fit(model, data, engine=SVI(steps=40, weighting=weighting), progress=False)
        found.append((model["second"].weights.mean, torch.tensor(result.history)))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-3)


@pytest.mark.slow
def test_the_backbone_follows_the_heavier_family():
    data, losses = opposed(150), {}
    for name, weights in (("first", [1.0, 0.01]), ("second", [0.01, 1.0])):
        model = two_heads()
        engine = SVI(steps=150, lr=0.05, weighting=FixedWeights(weights))
        fit(model, data, engine=engine, progress=False)
        losses[name] = {family: log_loss(model, data, family) for family in data}
    assert losses["first"]["first"] < 0.8 * losses["second"]["first"]
    assert losses["second"]["second"] < 0.8 * losses["first"]["second"]


@pytest.mark.parametrize(
    "weighting",
    [
        UncertaintyWeighting(["cross_entropy", "cross_entropy"]),
        VariationalLossWeighting(["cross_entropy", "cross_entropy"], [60, 120]),
        DynamicWeightAverage(2, period=3),
    ],
    ids=lambda weighting: type(weighting).__name__,
)
def test_what_is_learned_is_in_the_result_and_not_in_the_engine(weighting: LossWeighting):
    before = {name: value.clone() for name, value in weighting.state_dict().items()}
    engine = SVI(steps=12, batch_size=20, lr=0.05, weighting=weighting)
    results = [fit(two_heads(), opposed(), engine=engine, progress=False) for _ in range(2)]
    for name, value in weighting.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)
    first, second = (result.weighting for result in results)
    losses = torch.tensor([0.4, 0.6])
    assert torch.equal(first.weights(losses), second.weights(losses))
    assert not torch.equal(first.weights(losses), weighting.weights(losses))
    assert results[0].history == results[1].history


def test_the_precision_of_a_family_is_that_of_its_bound():
    """All rows, weights learned last: λ = ν / mean negative bound of the family."""
    weighting = VariationalLossWeighting(2 * ["cross_entropy"], [60, 120])
    result = fit(two_heads(), opposed(), engine=SVI(steps=9, weighting=weighting), progress=False)
    means = result.weighting.mean_loss
    assert float(means @ torch.tensor([60.0, 120.0]).double()) == pytest.approx(
        -result.history[-1]
    )
    torch.testing.assert_close(result.weighting.precision, 0.5 / means)


def test_an_aggregator_moves_backbone_and_heads():
    aggregation = pytest.importorskip("torchjd.aggregation")
    data, model = opposed(150), two_heads()
    before = model.backbone.layers[0].weight.detach().clone()
    engine = SVI(steps=60, lr=0.05, weighting=Aggregated(aggregation.MGDA()))
    result = fit(model, data, engine=engine, progress=False)
    assert np.mean(result.history[-10:]) > np.mean(result.history[:10]) + 3
    assert not torch.equal(before, model.backbone.layers[0].weight)


class Killed(Exception):
    pass


class KillAt(Callback):
    def __init__(self, step: int) -> None:
        self.at = step

    def on_step(self, training):
        if training.step == self.at:
            raise Killed


@pytest.mark.parametrize("kind", [UncertaintyWeighting, VariationalLossWeighting])
def test_a_stopped_fit_goes_on_with_what_its_weighting_knew(kind, tmp_path):
    kinds = ["cross_entropy", "cross_entropy"]
    weighting = kind(kinds, *([[60, 120]] if kind is VariationalLossWeighting else []))
    settings = {"steps": 14, "batch_size": 25, "accumulate": 2, "lr": 0.05}
    settings |= {"weighting": weighting, "sampler": Annealed(20)}
    expected = fit(two_heads(), opposed(), engine=SVI(**settings), progress=False)
    settings["checkpoint"] = Checkpoint(tmp_path, every=3)
    engine = SVI(**settings, callbacks=[KillAt(8)])
    with pytest.raises(Killed):
        fit(two_heads(), opposed(), engine=engine, progress=False)
    result = fit(two_heads(), opposed(), engine=SVI(**settings), progress=False)
    assert result.history == expected.history
    first, second = (r.weighting.state_dict() for r in (result, expected))
    assert all(torch.equal(first[name], second[name]) for name in first)
    for name, other in (("sampler", Annealed(9)), ("weighting", FixedWeights([1.0, 2.0]))):
        engine = SVI(**(settings | {name: other}))
        with pytest.raises(ValueError, match=f"is of another fit: it had {name}="):
            fit(two_heads(), opposed(), engine=engine, progress=False)


def test_accumulated_batches_weigh_as_one_batch_of_their_joint_size():
    """Fixed weights, all rows in two halves: the sum of halves moves Adam as the mean does."""
    found = []
    for settings in ({"batch_size": 60}, {"batch_size": 30, "accumulate": 2}):
        model, weighting = two_heads(), FixedWeights([1.0, 2.0])
        engine = SVI(steps=6, weighting=weighting, sampler=Halves(), **settings)
        fit(model, opposed(), engine=engine, progress=False)
        found.append(model.backbone.layers[0].weight.detach())
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


class Halves(Sampler):
    """The rows in their order, again and again, so that no draw tells batches apart."""

    def shares(self, counts, step):
        return counts / counts.sum()

    def batches(self, rows, batch_size, generator, step):
        for index in torch.split(rows.order[:60], batch_size):
            yield Batch(index, rows.like.new_full((len(index),), len(rows.order) / len(index)))


def test_a_bound_that_is_not_finite_is_named():
    data = opposed()
    model = two_heads()
    engine = SVI(steps=60, lr=1e30, weighting=FixedWeights([1.0, 1.0]))
    with pytest.raises(NonFiniteBoundError, match="became infinite or NaN at step"):
        fit(model, data, engine=engine, progress=False)


def test_a_density_above_one_tells_no_precision():
    data = make_data(rows=(30, 20), num_features=2)
    data = TaskData(data.x, 1e-3 * data.y, data.task)
    engine = SVI(steps=5, weighting=VariationalLossWeighting(["squared"], [50]))
    with pytest.raises(ValueError, match="A log density can be negative: it has its own noise"):
        fit(MultitaskModel(), data, engine=engine, progress=False)


@pytest.fixture(scope="module")
def all_rows() -> tuple[MultitaskModel, TaskData]:
    model, data = MultitaskModel(), make_data(rows=(60, 50, 12, 70), num_features=3)
    fit(model, data, engine=SVI(steps=100), progress=False)
    return model, data


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [Annealed(50), RoundRobin(), Resampled("over")])
def test_any_sampler_leads_where_all_rows_lead(sampler, all_rows):
    whole, data = all_rows
    parts = MultitaskModel()
    engine = SVI(steps=200, batch_size=32, sampler=sampler)
    fit(parts, data, engine=engine, progress=False)
    difference = (whole.weights.mean - parts.weights.mean) / whole.weights.std
    assert difference.abs().max() < 0.6
    assert (whole.weights.std / parts.weights.std).log().abs().max() < 0.2


def test_a_sampler_is_told_how_far_it_is():
    """The number of the batch goes on across epochs."""
    seen: list[int] = []

    class Told(Sampler):
        def shares(self, counts, step):
            seen.append(step)
            return counts / counts.sum()

    data = make_data(rows=(8, 5, 6), num_features=2)
    fit(MultitaskModel(), data, engine=SVI(steps=5, batch_size=9, sampler=Told()), progress=False)
    assert seen == list(range(6))  # two epochs of 3 batches, each drawn as a whole


def test_settings_that_make_no_sense():
    with pytest.raises(ValueError, match="give batch_size= as well; got None"):
        SVI(sampler=RoundRobin())
    with pytest.raises(ValueError, match="scaled losses of fp16; take 'bf16'"):
        SVI(weighting=FixedWeights([1.0]), precision="fp16")
