"""What of an encoder trains: freezing, layer-wise rates, adapters; features kept; saved models."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from bmm_multitask_learning import SVI, MultitaskModel, SharedGaussian, TaskData, fit, load
from bmm_multitask_learning.backbones import (
    CachedFeatures,
    SentenceEncoder,
    TransformerEncoder,
    WithConstant,
    heads_only,
    layerwise_groups,
    lora,
    train_top,
)
from bmm_multitask_learning.engines import Callback, Unfreezing

from .small_encoder import TEXTS, small

Y = [1.0, -2.0, 0.5, 0.0]


def mine() -> TransformerEncoder:
    return TransformerEncoder.from_texts(TEXTS, vocab_size=300, width=12, layers=3, max_length=20)


ENCODERS = {"sentence": small, "transformer": mine}


def trained(encoder: nn.Module) -> set[str]:
    return {name for name, p in encoder.named_parameters() if p.requires_grad}


def blocks_of(names: set[str]) -> set[int]:
    return {int(part) for name in names for part in name.split(".") if part.isdigit()}


# ---- freezing --------------------------------------------------------------------------------


@pytest.mark.parametrize("make", ENCODERS.values(), ids=ENCODERS)
def test_the_top_trains_and_the_rest_does_not(make):
    encoder = make()
    everything = trained(encoder)
    train_top(encoder, 1)
    assert blocks_of(trained(encoder)) == {2}
    assert not any("embeddings" in name for name in trained(encoder))
    train_top(encoder, 2)
    assert blocks_of(trained(encoder)) == {1, 2}
    train_top(encoder, 3)
    assert trained(encoder) == everything
    train_top(encoder, 0)
    assert trained(encoder) == set()
    with pytest.raises(ValueError, match="has 3 blocks; asked to train the last 4"):
        train_top(encoder, 4)


def test_attention_pooling_trains_with_the_top():
    encoder = small(pooling="attention")
    train_top(encoder, 1)
    assert "pool.query" in trained(encoder)


def test_layers_within_a_backbone_and_backbones_without():
    backbone = WithConstant(small())
    train_top(backbone, 1)
    assert blocks_of(trained(backbone)) == {2}
    assert len(layerwise_groups(backbone, 0.1)) == 4
    with pytest.raises(TypeError, match="Linear has none"):
        train_top(nn.Linear(2, 2), 1)


def test_svi_unfreezes_block_by_block_at_falling_rates():
    encoder = small(pooling="attention")
    train_top(encoder, 2)
    start = {n: p.detach().clone() for n, p in encoder.named_parameters()}
    moved = []

    class Watch(Callback):
        def on_step(self, training):
            changed = {n for n, p in encoder.named_parameters() if not torch.equal(p, start[n])}
            moved.append(blocks_of(changed))

    schedule = Unfreezing({2: [encoder.blocks[-1]], 4: [encoder.blocks[-2]]})
    rates = functools.partial(layerwise_groups, lr=1e-3, decay=0.5)
    engine = SVI(steps=6, callbacks=[schedule, Watch()], backbone_lr=rates)
    model = MultitaskModel(prior=SharedGaussian("isotropic"), backbone=encoder)
    fit(
        model,
        TaskData(encoder.tokens(TEXTS), Y, ["a", "b", "a", "b"]),
        engine=engine,
        progress=False,
    )
    assert moved == [set(), set(), {2}, {2}, {1, 2}, {1, 2}]


@pytest.mark.parametrize("make", ENCODERS.values(), ids=ENCODERS)
def test_rates_fall_with_depth(make):
    encoder = make()
    groups = layerwise_groups(encoder, 0.1, decay=0.5)
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert len(rate) == len(list(encoder.parameters()))
    for name, parameter in encoder.named_parameters():
        [block] = blocks_of({name}) or [None]
        if block is not None:
            assert rate[id(parameter)] == pytest.approx(0.1 * 0.5 ** (3 - block))
        elif "embeddings" in name:
            assert rate[id(parameter)] == pytest.approx(0.1 / 16)
        else:
            assert rate[id(parameter)] == 0.1
    with pytest.raises(ValueError, match=r"decay in \(0, 1\]"):
        layerwise_groups(encoder, 0.1, decay=1.5)


# ---- adapters --------------------------------------------------------------------------------


def test_adapters_start_at_the_encoder_and_alone_train():
    pytest.importorskip("peft")
    state = torch.get_rng_state()
    encoder = lora(small(pooling="attention"), rank=2)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(encoder.encode(TEXTS), small().encode(TEXTS))
    adapters = {name for name in trained(encoder) if "lora_" in name}
    assert trained(encoder) == adapters | {"pool.query"}
    frozen = {n: p.detach().clone() for n, p in encoder.named_parameters() if n not in adapters}
    optimiser = torch.optim.Adam([p for p in encoder.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        encoder(encoder.tokens(TEXTS))[:, 0].sum().backward()
        optimiser.step()
    assert not torch.allclose(encoder.encode(TEXTS), small().encode(TEXTS), atol=1e-3)
    after = dict(encoder.named_parameters())
    assert all(torch.equal(after[n], p) for n, p in frozen.items() if n != "pool.query")


def test_adapters_refuse_what_they_cannot():
    pytest.importorskip("peft")
    with pytest.raises(ValueError, match="rank must be at least 1; got 0"):
        lora(small(), rank=0)
    encoder = lora(small(), rank=2, targets=["query"])
    with pytest.raises(ValueError, match="has adapters already"):
        lora(encoder)
    with pytest.raises(ValueError, match="to train instead of its blocks"):
        train_top(encoder, 1)


# ---- features kept ---------------------------------------------------------------------------


class Counted:
    """How many rows an encoder was asked for."""

    def __init__(self, encoder: SentenceEncoder) -> None:
        self.rows = 0
        encoder.register_forward_pre_hook(self._count)

    def _count(self, module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        self.rows += len(inputs[0])


@pytest.mark.parametrize("pooling", ["mean", None])
@pytest.mark.parametrize("on_disk", [False, True])
def test_each_distinct_row_is_encoded_once(pooling, on_disk, tmp_path):
    encoder = small(pooling=pooling)
    expected = small(pooling=pooling)
    counted = Counted(encoder)
    cached = CachedFeatures(encoder, tmp_path if on_disk else None)
    x = encoder.tokens([TEXTS[0], TEXTS[1], TEXTS[0], TEXTS[2]])
    for _ in range(2):
        torch.testing.assert_close(cached(x), expected(x).detach(), atol=1e-6, rtol=1e-5)
        assert counted.rows == 3
    wider = nn.functional.pad(x[1:], (0, 4), value=-1)
    torch.testing.assert_close(cached(wider), expected(wider).detach(), atol=1e-6, rtol=1e-5)
    assert (counted.rows, cached.num_kept) == (3, 3)
    x = encoder.tokens(TEXTS)
    torch.testing.assert_close(cached(x), expected(x).detach(), atol=1e-6, rtol=1e-5)
    assert (counted.rows, cached.num_kept) == (4, 4)


def test_a_changed_weight_forgets(tmp_path):
    encoder = small()
    counted, cached = Counted(encoder), CachedFeatures(encoder, tmp_path)
    x = encoder.tokens(TEXTS)
    first = cached(x)
    weight = encoder.blocks[0].output.dense.weight
    before = weight[0, 0].clone()
    with torch.no_grad():
        weight[0, 0] = 1.0
    second = cached(x)
    assert counted.rows == 8
    assert not torch.equal(first, second)
    with torch.no_grad():
        weight[0, 0] = before
    assert torch.equal(cached(x), first)
    assert counted.rows == 8  # they were still in the folder


def test_a_folder_serves_the_next_process_and_survives_a_stop(tmp_path):
    x = small().tokens(TEXTS)
    expected = CachedFeatures(small(), tmp_path)(x)
    encoder = small()
    counted = Counted(encoder)
    assert torch.equal(CachedFeatures(encoder, tmp_path)(x), expected)
    assert counted.rows == 0
    [index] = tmp_path.glob("*.index")
    [values] = tmp_path.glob("*.features")
    # stopped while it wrote: a last entry that is not whole, and features that no entry names
    index.write_bytes(index.read_bytes()[:-5])
    values.write_bytes(values.read_bytes() + b"12345")
    assert torch.equal(CachedFeatures(encoder, tmp_path)(x), expected)
    assert counted.rows == 1
    assert torch.equal(CachedFeatures(encoder, tmp_path)(x), expected)
    assert counted.rows == 1


def test_other_arguments_are_another_encoder(tmp_path):
    x = small().tokens(TEXTS)
    CachedFeatures(small(), tmp_path)(x)
    unit = CachedFeatures(small(normalise=True), tmp_path)(x)
    torch.testing.assert_close(unit.norm(dim=-1), torch.ones(4))


def test_an_encoder_that_is_kept_does_not_train():
    encoder = small()
    cached = CachedFeatures(encoder).train()
    assert trained(encoder) == set()
    assert not encoder.trunk.training
    x = encoder.tokens(TEXTS)
    encoder.requires_grad_(True)
    with pytest.raises(ValueError, match=r"of a frozen encoder alone; 'trunk\."):
        cached(x)


# ---- saved models ----------------------------------------------------------------------------

BACKBONES = {
    "sentence": lambda: heads_only(small(pooling="attention", normalise=True)),
    "adapters": lambda: heads_only(lora(small(), rank=2)),
    "own": lambda: heads_only(mine()),
    "constant": lambda: heads_only(WithConstant(small())),
    "cached": lambda: WithConstant(CachedFeatures(mine())),
}


@pytest.mark.parametrize("make", BACKBONES.values(), ids=BACKBONES)
def test_a_saved_model_has_its_encoder(make, tmp_path):
    """Weights, which are not of the seed; tokens, settings and what is frozen."""
    backbone = make()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.1)
    model = MultitaskModel(prior=SharedGaussian("isotropic"), backbone=backbone)
    texts = small().tokens(TEXTS)
    result = fit(model, TaskData(texts, Y, ["a", "b", "a", "b"]), progress=False)
    assert result.engine.startswith("CoordinateAscent")
    model.save(tmp_path)
    again = load(tmp_path)
    assert trained(again.backbone) == set()
    for x in (texts, TEXTS):
        old, new = model.predict(x, "a"), again.predict(x, "a")
        # what was kept may have been computed in another batch, whose rounding differs
        close = 0 if find_cache(backbone) is None else 1e-6
        torch.testing.assert_close(old.mean, new.mean, atol=close, rtol=close)
        torch.testing.assert_close(old.std, new.std, atol=close, rtol=close)


def find_cache(backbone: nn.Module) -> CachedFeatures | None:
    return next((m for m in backbone.modules() if isinstance(m, CachedFeatures)), None)


def test_an_encoder_that_trained_is_loaded_to_train_on(tmp_path):
    encoder = lora(small(), rank=2)
    model = MultitaskModel(prior=SharedGaussian("isotropic"), backbone=encoder)
    data = TaskData(encoder.tokens(TEXTS), Y, ["a", "b", "a", "b"])
    fit(model, data, engine=SVI(steps=3), progress=False)
    model.save(tmp_path)
    again = load(tmp_path)
    assert trained(again.backbone) == trained(encoder)
    assert (model.predict(TEXTS, "b").mean == again.predict(TEXTS, "b").mean).all()
