"""One text encoder, families of sentences and of words: fitted, asked in plain text, saved."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bmm_multitask_learning import (
    SVI,
    Bernoulli,
    Categorical,
    MultitaskModel,
    SharedGaussian,
    TaskData,
    fit,
    load,
)
from bmm_multitask_learning.backbones import Pooled, SentenceEncoder, Words
from bmm_multitask_learning.family import Family

TEXTS = ["a good film", "a bad film", "good", "bad , bad", "very good indeed", "not a bad one"]
LABELS = [1.0, 0.0, 1.0, 0.0, 1.0, 0.0]
NAMES = [["Anna", "sings"], ["we", "met", "Anna", "today"], ["they", "sing"]]
TAGS = [[1.0, 0.0, torch.nan, torch.nan], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, torch.nan, torch.nan]]


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    return SentenceEncoder.from_pretrained("all-MiniLM-L6-v2", pooling=None)


def families() -> dict[str, Family]:
    return {
        "mood": Family(
            SharedGaussian("isotropic"), Bernoulli(), reader=Pooled("mean", constant=True)
        ),
        "names": Family(SharedGaussian("isotropic"), Categorical(2), reader=Words(constant=True)),
    }


def data(encoder: SentenceEncoder) -> dict[str, TaskData]:
    return {
        "mood": TaskData(encoder.tokens(TEXTS), LABELS, ["film"] * 3 + ["food"] * 3),
        "names": TaskData(encoder.tokens(NAMES), TAGS, ["news", "news", "tweets"]),
    }


def test_a_frozen_encoder_in_closed_form(encoder, tmp_path):
    encoder.requires_grad_(False)
    model = MultitaskModel(backbone=encoder, families=families())
    result = fit(model, data(encoder), progress=False)
    assert result.engine.startswith("CoordinateAscent")
    mood = model.predict(TEXTS, "film", family="mood")
    assert ((mood.mean > 0.5) == (torch.tensor(LABELS) > 0.5).numpy()).all()
    names = model.predict(NAMES, "news", family="names")
    assert names.words.text.tolist() == [0, 0, 1, 1, 1, 1, 2, 2]
    assert names.mean[:, 1].argsort()[-2:].tolist() in ([0, 4], [4, 0])
    model.save(tmp_path)
    again = load(tmp_path)
    assert (again.predict(TEXTS, "film", family="mood").mean == mood.mean).all()
    assert (again.predict(NAMES, "news", family="names").mean == names.mean).all()


def test_training_the_last_layer(encoder):
    encoder.requires_grad_(False)
    encoder.blocks[-1].requires_grad_(True)
    model = MultitaskModel(backbone=encoder, families=families())
    before = next(encoder.blocks[-1].parameters()).detach().clone()
    result = fit(model, data(encoder), engine=SVI(steps=3, lr=1e-3, batch_size=2), progress=False)
    assert torch.isfinite(torch.tensor(result.history)).all()
    assert not torch.equal(before, next(encoder.blocks[-1].parameters()))
    encoder.requires_grad_(False)


def test_texts_need_a_text_encoder():
    model = MultitaskModel(backbone=nn.Identity())
    fit(model, TaskData(torch.eye(3), torch.ones(3), [0, 1, 0]), progress=False)
    with pytest.raises(TypeError, match="no text encoder"):
        model.predict(["good"], 0)
