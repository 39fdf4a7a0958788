"""Long fits by SVI: checkpoints, callbacks, accumulation, mixed precision, rates."""

from __future__ import annotations

import builtins
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from bmm_multitask_learning import (
    SVI,
    Bernoulli,
    Family,
    LatentHierarchy,
    MultitaskModel,
    Poisson,
    SharedGaussian,
    TaskData,
    fit,
)
from bmm_multitask_learning.backbones import MLP
from bmm_multitask_learning.engines import Callback, Checkpoint, TensorBoard, Unfreezing
from bmm_multitask_learning.engines.variational_program import VariationalProgram, joined

from ..cases import make_data


class Killed(Exception):
    pass


class KillAt(Callback):
    """A stop from outside, at some step."""

    def __init__(self, step):
        self.at = step

    def on_step(self, training):
        if training.step == self.at:
            raise Killed


def backbone(dropout=0.0, dtype=torch.float64, width=4):
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(2, width, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(width, 2, generator=generator))
        layer.bias.zero_()
    return nn.Sequential(layer, nn.Tanh(), nn.Dropout(dropout))


def small(rows=(9, 4, 12), **keywords):
    return make_data(rows=rows, num_features=2, **keywords)


def two_families():
    families = {"real": Family(), "counts": Family(SharedGaussian("isotropic"), Poisson())}
    return MultitaskModel(backbone=backbone(), families=families)


RUNS = {
    "batches": (MultitaskModel, small, {"steps": 20, "batch_size": 7}, (3, 14)),
    "dropout": (
        lambda: MultitaskModel(backbone=backbone(0.3)),
        small,
        {"steps": 20, "batch_size": 6, "accumulate": 2, "num_particles": 2},
        (5, 16),
    ),
    "validation": (
        lambda: MultitaskModel(backbone=backbone()),
        small,
        # the score falls from the second check on: the best state is the first's
        {"steps": 250, "lr": 0.2, "validation_fraction": 0.3, "patience": 1, "batch_size": 4},
        (60, 99),
    ),
    "families": (
        two_families,
        lambda: {"real": small(), "counts": make_data("bernoulli", rows=(5, 6), num_features=2)},
        {"steps": 20, "batch_size": 4, "backbone_lr": 1e-3, "weight_decay": 0.1},
        (4, 15),
    ),
    "tree": (
        lambda: MultitaskModel(LatentHierarchy("isotropic", mixing=0.6)),
        lambda: small((9, 4, 12, 6)),
        {"steps": 110},
        (30, 60),
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_fit_that_was_stopped_twice_ends_with_the_bits_of_one_that_never_was(name, tmp_path):
    make, data, settings, stops = RUNS[name]
    whole = make()
    expected = fit(whole, data(), engine=SVI(**settings), progress=False)
    assert expected.converged == (name == "validation")
    for stop in stops:
        # every 4 steps: some steps are made twice
        engine = SVI(
            **settings, checkpoint=Checkpoint(tmp_path, every=4), callbacks=[KillAt(stop)]
        )
        with pytest.raises(Killed):
            fit(make(), data(), engine=engine, progress=False)
    engine = SVI(**settings, checkpoint=Checkpoint(tmp_path, every=4))
    parts = make()
    result = fit(parts, data(), engine=engine, progress=False)
    assert result.history == expected.history
    assert result.jumps == expected.jumps
    assert (result.bound, result.converged) == (expected.bound, expected.converged)
    assert_same_tensors(parts, whole)


def assert_same_tensors(model, other):
    found, expected = (
        dict(m.named_parameters()) | dict(m.named_buffers()) for m in (model, other)
    )
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_a_stopped_fit_goes_on_in_the_same_process_and_a_whole_one_ends_at_once(tmp_path):
    data = small()
    settings = {"steps": 12, "batch_size": 7, "checkpoint": Checkpoint(tmp_path, every=3)}
    model = MultitaskModel(backbone=backbone())
    with pytest.raises(Killed):
        fit(model, data, engine=SVI(**settings, callbacks=[KillAt(7)]), progress=False)
    seen = []

    class Steps(Callback):
        def on_start(self, training):
            seen.append(training.step)

        def on_step(self, training):
            seen.append(training.step)

    result = fit(model, data, engine=SVI(**settings, callbacks=[Steps()]), progress=False)
    assert seen == [6, 7, 8, 9, 10, 11, 12]
    again = MultitaskModel(backbone=backbone())
    assert fit(again, data, engine=SVI(**settings), progress=False).bound == result.bound
    assert_same_tensors(again, model)


def test_a_checkpoint_of_another_fit_is_refused(tmp_path):
    data = small()
    checkpoint = Checkpoint(tmp_path, every=1)
    settings = {"steps": 2, "checkpoint": checkpoint}
    fit(MultitaskModel(), data, engine=SVI(**settings), progress=False)

    def refused(match, model=None, rows=data, seed=0, **changed):
        engine = SVI(**(settings | changed))
        with pytest.raises(ValueError, match=match) as error:
            fit(model or MultitaskModel(), rows, engine=engine, seed=seed, progress=False)
        assert "is of another fit" in str(error.value)
        assert "another folder, or remove the file" in str(error.value)

    y = data.y.clone()
    y[0] += 1e-12
    refused("the data of family 'tasks' are others", rows=TaskData(data.x, y, data.task))
    refused("it had lr=0.01, this one has lr=0.02", lr=0.02)
    refused("it had steps=2, this one has steps=3", steps=3)
    refused("the seed is another", seed=1)
    refused("the model has other priors", model=MultitaskModel(SharedGaussian("isotropic")))
    refused("the model has other priors", model=MultitaskModel(backbone=backbone()))
    fit(MultitaskModel(), data, engine=SVI(**settings, callbacks=[Callback()]), progress=False)


def test_a_checkpoint_with_other_groups_of_parameters_is_refused(tmp_path):
    def halves(rate):
        return lambda network: [{"params": [network[0].weight], "lr": rate}]

    settings = {"steps": 2, "checkpoint": Checkpoint(tmp_path, every=1)}
    for rate in (1e-3, 2e-3):
        model = MultitaskModel(backbone=backbone())
        engine = SVI(**settings, backbone_lr=halves(rate))
        if rate == 1e-3:
            fit(model, small(), engine=engine, progress=False)
        else:
            with pytest.raises(ValueError, match=r"this fit's have .*0.002"):
                fit(model, small(), engine=engine, progress=False)


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    file = tmp_path / "checkpoint.safetensors"
    engine = SVI(steps=2, checkpoint=Checkpoint(tmp_path, every=1))
    fit(MultitaskModel(), small(), engine=engine, progress=False)
    content = file.read_bytes()
    with safe_open(file, framework="pt") as stored:
        header = json.loads(stored.metadata()["fit"])
    assert header["values"]["step"] == 2
    for broken in (content[: len(content) // 2], b"something"):
        file.write_bytes(broken)
        with pytest.raises(ValueError, match="truncated or no checkpoint"):
            fit(MultitaskModel(), small(), engine=engine, progress=False)
    save_file({"a": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match="Remove it to start anew"):
        fit(MultitaskModel(), small(), engine=engine, progress=False)


# ---- callbacks ------------------------------------------------------------------------------


def test_callbacks_are_called_in_their_order_and_may_stop():
    calls = []

    class Recorder(Callback):
        def on_start(self, training):
            calls.append(("start", training.step))

        def on_step(self, training):
            calls.append(("step", training.step, training.bound))
            if training.step == 53:
                training.stop()

        def on_check(self, training, score):
            calls.append(("check", training.step, score))

        def on_end(self, training):
            calls.append(("end", training.step))

    result = fit(
        MultitaskModel(), small(), engine=SVI(steps=80, callbacks=[Recorder()]), progress=False
    )
    assert calls[0] == ("start", 0)
    assert calls[-1] == ("end", 53)
    assert [c[2] for c in calls if c[0] == "step"] == list(result.history)
    (check,) = (c for c in calls if c[0] == "check")
    assert check[1] == 50
    assert check[2] == pytest.approx(sum(result.history[:50]) / 50)
    assert not result.converged


def test_callbacks_change_nothing():
    plain, watched = MultitaskModel(), MultitaskModel()
    fit(plain, small(), engine=SVI(steps=10), progress=False)
    fit(watched, small(), engine=SVI(steps=10, callbacks=[Callback()]), progress=False)
    assert_same_tensors(watched, plain)


@pytest.mark.filterwarnings("default")  # of TensorBoard's own dependencies
def test_tensorboard_has_bound_rates_and_scores(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    engine = SVI(steps=60, lr=0.02, callbacks=[TensorBoard(tmp_path, every=20)])
    result = fit(MultitaskModel(), small(), engine=engine, progress=False)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    bound = events.Scalars("bound")
    assert [event.step for event in bound] == [20, 40, 60]
    assert bound[1].value == pytest.approx(result.history[39], rel=1e-5)
    assert events.Scalars("lr/0")[0].value < 0.02
    assert [event.step for event in events.Scalars("score")] == [50, 60]


def test_tensorboard_says_what_to_install(monkeypatch, tmp_path):
    real = builtins.__import__

    def missing(name, *rest, **keywords):
        if name.startswith("torch.utils.tensorboard"):
            raise ImportError(name)
        return real(name, *rest, **keywords)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match="pip install tensorboard"):
        TensorBoard(tmp_path).on_start(None)
    with pytest.raises(ValueError, match="every must be at least 1; got 0"):
        TensorBoard(tmp_path, every=0)


def test_unfreezing_trains_each_stage_from_its_step_on():
    network = MLP(2, [4, 3], seed=0)
    first, second = network.layers[0], network.layers[2]
    start = {m: m.weight.detach().clone() for m in (first, second)}
    moved = []

    class Watch(Callback):
        def on_step(self, training):
            moved.append([not torch.equal(m.weight, start[m]) for m in (first, second)])

    unfreezing = Unfreezing({2: [second], 5: [first]})
    engine = SVI(steps=7, callbacks=[unfreezing, Watch()])
    fit(MultitaskModel(backbone=network), small(), engine=engine, progress=False)
    assert moved == [[False, False]] * 2 + [[False, True]] * 3 + [[True, True]] * 2
    stopped = SVI(steps=7, callbacks=[unfreezing, KillAt(1)])
    with pytest.raises(Killed):
        fit(MultitaskModel(backbone=network), small(), engine=stopped, progress=False)
    assert all(p.requires_grad for p in network.parameters())


def test_unfreezing_goes_on_from_a_checkpoint_as_if_never_stopped(tmp_path):
    def run(callbacks, **keywords):
        model = MultitaskModel(backbone=MLP(2, [4, 3], seed=0))
        stages = Unfreezing({2: [model.backbone.layers[2]], 6: [model.backbone.layers[0]]})
        engine = SVI(steps=9, callbacks=[stages, *callbacks], **keywords)
        return model, fit(model, small(), engine=engine, progress=False)

    whole, expected = run([])
    checkpoint = Checkpoint(tmp_path, every=4)
    with pytest.raises(Killed):
        run([KillAt(5)], checkpoint=checkpoint)
    parts, result = run([], checkpoint=checkpoint)
    assert result.history == expected.history
    assert_same_tensors(parts, whole)


def test_unfreezing_needs_something_to_train():
    with pytest.raises(ValueError, match="got 0 such after 10 steps"):
        Unfreezing({10: [nn.Tanh()]})


# ---- accumulation ---------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", [None, Bernoulli])
def test_accumulated_batches_are_one_batch_of_their_joint_size(likelihood):
    """All 24 rows as 3 batches of 8 or one of 24, in the same shuffled order."""
    kind = "gaussian" if likelihood is None else "bernoulli"
    data = make_data(kind, rows=(9, 4, 11), num_features=2)
    models = {}
    for size, accumulate in ((24, 1), (8, 3), (8, 1)):
        model = MultitaskModel(
            likelihood=None if likelihood is None else likelihood(), backbone=backbone()
        )
        engine = SVI(steps=12, lr=0.02, batch_size=size, accumulate=accumulate, num_particles=2)
        result = fit(model, data, engine=engine, progress=False)
        models[size, accumulate] = model, torch.tensor(result.history)
    (joint, history), (parts, its), (single, _) = models.values()
    torch.testing.assert_close(its, history, rtol=1e-9, atol=1e-9)
    weight, other, without = (m.backbone[0].weight for m in (joint, parts, single))
    torch.testing.assert_close(other, weight, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(parts.weights.mean, joint.weights.mean, rtol=1e-7, atol=1e-8)
    assert not torch.allclose(without, weight, rtol=1e-4)


# ---- rates and precision --------------------------------------------------------------------


def moved(**settings):
    """How far one step takes each parameter of the backbone: Adam's first is its rate."""
    model = MultitaskModel(backbone=backbone())
    before = [p.detach().clone() for p in model.backbone.parameters()]
    fit(model, small(), engine=SVI(steps=1, **settings), progress=False)
    pairs = zip(model.backbone.parameters(), before, strict=True)
    return [float((p.detach() - b).abs().max()) for p, b in pairs]


def test_the_backbone_has_a_rate_of_its_own_or_one_for_each_layer():
    def by_layer(network):
        return [{"params": [network[0].bias], "lr": 1e-5}]

    assert moved(lr=0.01) == pytest.approx([0.01, 0.01], rel=1e-3)
    assert moved(lr=0.01, backbone_lr=1e-4) == pytest.approx([1e-4, 1e-4], rel=1e-3)
    # what the function leaves out has lr
    assert moved(lr=0.01, backbone_lr=by_layer) == pytest.approx([0.01, 1e-5], rel=1e-3)


def test_every_rate_falls_to_a_hundredth_along_a_cosine():
    rates = []

    class Rates(Callback):
        def on_step(self, training):
            rates.append([group["lr"] for group in training.optimiser.param_groups])

    engine = SVI(steps=40, lr=0.02, backbone_lr=1e-4, callbacks=[Rates()])
    fit(MultitaskModel(backbone=backbone()), small(), engine=engine, progress=False)
    assert rates[0] == [0.02, 1e-4]
    assert rates[20] == pytest.approx([0.02 * 0.505, 1e-4 * 0.505])
    assert rates[39][1] / 1e-4 == pytest.approx(rates[39][0] / 0.02)
    assert 0.01 < rates[39][0] / 0.02 < 0.013


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_is_of_the_backbone_alone(precision):
    data = small().to(dtype=torch.float32)
    seen = set()

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = backbone(dtype=torch.float32)

        def forward(self, x):
            h = self.network(x)
            seen.add((torch.is_grad_enabled(), h.dtype))
            return h

    models, bounds = {}, {}
    for setting in (None, precision):
        model = models[setting] = MultitaskModel(backbone=Watched())
        seen.clear()
        engine = SVI(steps=30, precision=setting)
        result = fit(model, data, engine=engine, progress=False)
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(setting, torch.float32)
        assert seen == {(True, half), (False, torch.float32)}
        bounds[setting] = torch.tensor(result.history)
        assert torch.isfinite(bounds[setting]).all()
        assert model.backbone.network[0].weight.dtype == torch.float32
        assert model.weights.mean.dtype == torch.float64
    exact, mixed = (m.backbone.network[0].weight for m in models.values())
    # trained alike, up to the 8 or 11 bits of the features, and to the steps in which fp16 looks
    # for a scale
    atol = {"bf16": 0.05, "fp16": 0.3}[precision]
    torch.testing.assert_close(mixed, exact, rtol=0.0, atol=atol)
    torch.testing.assert_close(bounds[precision][0], bounds[None][0], rtol=0.0, atol=0.1)
    assert not torch.equal(mixed, exact)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"accumulate": 0}, "accumulate must be at least 1; got 0"),
        ({"accumulate": 2}, "batch_size=None is all rows"),
        ({"backbone_lr": 0.0}, "backbone_lr must be positive and finite; got 0.0"),
        ({"precision": "int8"}, "precision must be 'bf16', 'fp16' or None; got 'int8'"),
    ],
)
def test_settings_that_make_no_sense(settings, match):
    with pytest.raises(ValueError, match=match):
        SVI(**settings)
    with pytest.raises(ValueError, match="every must be at least 1; got 0"):
        Checkpoint("folder", every=0)


def test_mixed_precision_of_doubles_is_refused():
    engine = SVI(steps=1, precision="bf16")
    with pytest.raises(ValueError, match=r"float32 parameters to train; got \['torch.float64'\]"):
        fit(MultitaskModel(backbone=backbone()), small(), engine=engine, progress=False)
    with pytest.raises(ValueError, match="got nothing to train"):
        fit(MultitaskModel(), small(), engine=engine, progress=False)


# ---- one pass for all families --------------------------------------------------------------


class Counting(nn.Module):
    """Embeds tokens (N, 2, L), padding included as zeros; counts its passes."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = nn.Parameter(torch.randn(5, 3, generator=generator, dtype=torch.float64))
        self.passes = 0

    def forward(self, x):
        self.passes += 1
        ids = x[:, 0].long()
        return (self.table[ids.clamp(min=0)] * (ids >= 0)[..., None]).sum(1)


def test_families_with_texts_of_different_length_share_one_pass():
    generator = torch.Generator().manual_seed(1)
    shapes = {"short": (7, 3), "long": (9, 6)}
    data = {}
    for name, (rows, length) in shapes.items():
        ids = torch.randint(5, (rows, length), generator=generator, dtype=torch.int32)
        x = torch.stack([ids, torch.zeros_like(ids)], 1)
        y = torch.randn(rows, generator=generator, dtype=torch.float64)
        data[name] = TaskData(x, y, [0, 1] * (rows // 2) + [0])
    model = MultitaskModel(backbone=Counting(), families={n: Family() for n in shapes})
    model.build(data)
    sites = {
        n: f.likelihood.statistics(
            f.likelihood.summarise(model.rows(n, data[n])),
            {"noise_level": torch.ones(1, dtype=torch.float64)},
        )
        for n, f in model.families.items()
    }
    program = VariationalProgram(model, data, sites)
    before = model.backbone.passes
    program.load(data)
    assert model.backbone.passes == before + 1
    for name, part in data.items():
        torch.testing.assert_close(program.batch[name].phi, model.backbone(part.x))
    x = joined([part.x for part in data.values()])
    assert x.shape == (16, 2, 6)
    assert (x[:7, :, 3:] == -1).all()
