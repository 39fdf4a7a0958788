"""Families that read a shared backbone in their own way: sentences, words, columns of tasks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bmm_multitask_learning import (
    SVI,
    Bernoulli,
    Categorical,
    CoordinateAscent,
    Gaussian,
    MultitaskModel,
    SharedGaussian,
    TaskData,
    fit,
)
from bmm_multitask_learning.family import Family
from bmm_multitask_learning.places import joined

N, W, D, V = 60, 5, 3, 11


class Embedding(nn.Module):
    """States (N, W, D) of tokens (N, 1, W), -1 for none."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.table = nn.Parameter(torch.randn(V, D, generator=generator, dtype=torch.float64))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.table[x[:, 0].clamp(min=0)]


class EachWord(nn.Module):
    def forward(self, h: Tensor, x: Tensor, task: Tensor) -> Tensor:
        return h.masked_fill((x[:, 0] < 0)[..., None], torch.nan)


class Mean(nn.Module):
    def forward(self, h: Tensor, x: Tensor, task: Tensor) -> Tensor:
        there = (x[:, 0] >= 0).to(h)[..., None]
        return (h * there).sum(1) / there.sum(1)


class OwnColumn(nn.Module):
    """h (N, J, D): the column of each row's task, the mean of all for others."""

    def forward(self, h: Tensor, x: Tensor, task: Tensor) -> Tensor:
        own = h[torch.arange(len(h)), task.clamp(max=h.shape[1] - 1)]
        return torch.where((task < h.shape[1])[:, None], own, h.mean(1))


def texts(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokens (N, 1, W), tags (N, W), sentence targets (N,), tasks (N,)."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(V, (N, W), generator=generator)
    length = torch.randint(1, W + 1, (N,), generator=generator)
    there = torch.arange(W) < length[:, None]
    ids = ids.masked_fill(~there, -1)
    tags = (ids % 2).double().masked_fill(~there, torch.nan)
    target = torch.where(there, ids, 0).sum(1) / length
    return ids[:, None].int(), tags, target.double(), torch.randint(4, (N,), generator=generator)


def frozen() -> Embedding:
    return Embedding().requires_grad_(False)


def test_tokens_stay_integers_and_targets_do_not():
    x, tags, _, task = texts()
    data = TaskData(x, tags, task)
    assert data.x.dtype == torch.int32
    assert data.y.dtype == torch.float64
    assert data.to(dtype=torch.float32).x.dtype == torch.int32
    assert data.to(dtype=torch.float32).y.dtype == torch.float32


def test_words_are_rows():
    """A family of words equals a plain one whose rows are the words."""
    x, tags, _, task = texts()
    tags[3, 0] = torch.nan  # a word without label
    backbone = frozen()
    model = MultitaskModel(
        backbone=backbone, families={"tags": Family(likelihood=Bernoulli(), reader=EachWord())}
    )
    result = fit(model, {"tags": TaskData(x, tags, task)}, progress=False)
    there = ~tags.isnan()
    flat = MultitaskModel(likelihood=Bernoulli())
    rows = task[:, None].expand(N, W)[there]
    phi = backbone(x)[there]
    plain = fit(flat, TaskData(phi, tags[there], rows), progress=False)
    assert result.bound == pytest.approx(plain.bound, rel=1e-10)
    torch.testing.assert_close(model.weights.mean, flat.weights.mean)
    assert model["tags"].rows_per_task == flat.family().rows_per_task
    prediction = model.predict(x, task, family="tags")
    words = prediction.words
    assert torch.equal(x[:, 0][words.text, words.place] >= 0, torch.ones(len(words.text)).bool())
    assert len(words.text) == int((x >= 0).sum())
    expected = flat.predict(phi, rows)
    seen = there[words.text, words.place]
    torch.testing.assert_close(prediction.mean[seen], expected.mean)
    log_prob = prediction.log_prob(tags[:, :4])  # labels of the first words only
    assert torch.equal(log_prob.isnan(), ~seen | (words.place == 4))
    torch.testing.assert_close(
        log_prob[seen & (words.place < 4)], expected.log_prob(tags[there])[(words.place < 4)[seen]]
    )


def test_a_label_beyond_the_last_word_is_refused():
    x, tags, _, task = texts()
    row = int((x[:, 0, 4] < 0).nonzero()[0])
    tags[row, 4] = 1.0
    model = MultitaskModel(
        backbone=frozen(), families={"tags": Family(likelihood=Bernoulli(), reader=EachWord())}
    )
    with pytest.raises(ValueError, match=f"label for word 4 of row {row}, which has"):
        fit(model, {"tags": TaskData(x, tags, task)}, progress=False)


def mixed(trained: bool = False) -> tuple[MultitaskModel, dict[str, TaskData]]:
    x, tags, target, task = texts()
    model = MultitaskModel(
        backbone=Embedding().requires_grad_(trained),
        families={
            "tags": Family(SharedGaussian("isotropic"), Categorical(2), reader=EachWord()),
            "size": Family(SharedGaussian("isotropic"), Gaussian(), reader=Mean()),
        },
    )
    data = {"tags": TaskData(x, tags, task), "size": TaskData(x[:40], target[:40], task[:40])}
    return model, data


def test_families_share_a_pass_of_the_backbone():
    model, data = mixed()
    fit(model, data, engine=CoordinateAscent(max_iter=20), progress=False)
    x = data["tags"].x
    model.backbone.calls = 0
    both = model.predict_all(x, {"tags": 0, "size": 2})
    assert model.backbone.calls == 1
    for name, task in (("tags", 0), ("size", 2)):
        alone = model.predict(x, task, family=name)
        torch.testing.assert_close(both[name].mean, alone.mean)


@pytest.mark.parametrize("batch_size", [None, 16])
def test_svi_trains_a_backbone_for_words_and_sentences(batch_size):
    model, data = mixed(trained=True)
    start = model.backbone.table.detach().clone()
    engine = SVI(steps=60, batch_size=batch_size, validation_fraction=0.2, patience=50)
    result = fit(model, data, engine=engine, progress=False)
    assert not torch.equal(start, model.backbone.table)
    assert torch.isfinite(torch.tensor(result.history)).all()
    tags = data["tags"]
    prediction = model.predict(tags.x, tags.task.tolist(), family="tags")
    truth = tags.y[prediction.words.text, prediction.words.place]
    assert (prediction.mean.argmax(1) == truth).double().mean() > 0.9


def test_a_reader_sees_the_task():
    """Columns of a backbone, one for each task: the same as features masked by task."""
    generator = torch.Generator().manual_seed(3)
    K, J = 3, 3
    x = torch.randn(N, J, D, generator=generator, dtype=torch.float64)
    task = torch.randint(K, (N,), generator=generator)
    y = x[torch.arange(N), task].sum(1) + 0.1 * torch.randn(N, generator=generator)
    model = MultitaskModel(families={"own": Family(reader=OwnColumn())})
    fit(model, {"own": TaskData(x, y, task)}, progress=False)
    plain = MultitaskModel()
    fit(plain, TaskData(x[torch.arange(N), task], y, task), progress=False)
    torch.testing.assert_close(model.weights.mean, plain.weights.mean)
    # at one input the tasks' features differ: so do contrast and ranking
    difference = model.contrast(0, 1, x[:1]).mean
    values = [model.predict(x[:1], k).latent_mean for k in (0, 1)]
    assert difference.item() == pytest.approx((values[0] - values[1]).item(), abs=0.1)
    assert model.ranking(x[:1]).shape == (K, K)
    with pytest.warns(UserWarning, match="outside the fit"):
        new = model.predict(x, "new")
    assert new.mean.shape == (N,)


def test_a_reader_s_parameters_are_trained():
    x, _, target, task = texts()
    reader = nn.ModuleDict({"scale": nn.Linear(D, D, dtype=torch.float64)})

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = reader

        def forward(self, h: Tensor, x: Tensor, task: Tensor) -> Tensor:
            return self.inner["scale"](Mean()(h, x, task))

    model = MultitaskModel(backbone=frozen(), families={"size": Family(reader=Scaled())})
    before = reader["scale"].weight.detach().clone()
    result = fit(model, {"size": TaskData(x, target, task)}, engine=SVI(steps=20), progress=False)
    assert result.engine == "SVI"
    assert not torch.equal(before, reader["scale"].weight)
    after = reader["scale"].weight.detach().clone()
    result = fit(
        model,
        {"size": TaskData(x, target, task)},
        engine=CoordinateAscent(max_iter=3),
        progress=False,
    )
    assert not torch.equal(after, reader["scale"].weight)


def test_states_without_a_reader_are_refused():
    x, tags, _, task = texts()
    with pytest.raises(ValueError, match="reader="):
        fit(MultitaskModel(backbone=frozen()), TaskData(x, tags, task), progress=False)


def test_texts_of_several_families_are_padded_by_no_token():
    long, short = torch.ones(1, 2, 5, dtype=torch.int32), torch.ones(2, 2, 3, dtype=torch.int32)
    x = joined([short, long])
    assert x.shape == (3, 2, 5)
    assert (x[:2, :, 3:] == -1).all()
    assert (x[:2, :, :3] == 1).all()
    assert torch.equal(x[2:], long)
