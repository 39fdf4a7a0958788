"""One frame, several families: which rows, tasks and inputs each of them gets."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bmm_multitask_learning import (
    Bernoulli,
    Family,
    Gaussian,
    MultitaskModel,
    TaskData,
    families_from_frame,
    fit,
)

pd = pytest.importorskip("pandas")
NAN = float("nan")

FRAME = pd.DataFrame(
    {
        "text": ["a b", "c", None, "d e f", "g"],
        "hours": [1.0, 2.0, 3.0, 4.0, 5.0],
        "books": [0, 1, 0, 1, 1],
        "domain": ["x", "y", "x", "x", None],
        "label": [1.0, 0.0, NAN, NAN, NAN],
        "corpus": ["p", None, None, "q", "q"],
        "kind": [NAN, NAN, NAN, 2.0, 0.0],
        "size": [0.5, NAN, NAN, NAN, 0.1],
        "weight": [1.0, 2.0, NAN, NAN, NAN],
    }
)
ROLES = {
    "mood": {"target": "label", "task": "domain", "weight": "weight"},
    "topic": {"target": ["kind", "size"], "task": "corpus", "tasks": ["q", "p"]},
}


class Letters:
    """Tokens: the number of each word's first letter."""

    def __init__(self):
        self.calls = []

    def tokens(self, texts):
        self.calls.append(list(texts))
        x = torch.full((len(texts), 2, 4), -1, dtype=torch.int32)
        for n, text in enumerate(texts):
            for w, word in enumerate(text.split()):
                x[n, 0, w], x[n, 1, w] = ord(word[0]) - ord("a"), w
        return x


def test_each_family_has_the_rows_with_its_labels():
    data = families_from_frame(FRAME, ROLES, ["hours", "books"])
    mood, topic = data["mood"], data["topic"]
    assert mood.y.tolist() == [1, 0]
    assert mood.x.tolist() == [[1, 0], [2, 1]]
    assert [mood.tasks[k] for k in mood.task] == ["x", "y"]
    assert mood.weight.tolist() == [1, 2]
    assert mood.feature_names == ("hours", "books")
    assert topic.tasks == ("q", "p")
    assert topic.task.tolist() == [1, 0, 0]
    np.testing.assert_array_equal(topic.y, [[NAN, 0.5], [2, NAN], [0, 0.1]])
    assert topic.x[:, 0].tolist() == [1, 4, 5]
    assert topic.target_names == ("kind", "size")


def test_features_are_what_no_family_names():
    assert families_from_frame(FRAME, ROLES)["topic"].feature_names == ("hours", "books")


def test_the_index_of_the_frame_does_not_matter():
    moved = FRAME.set_axis([7, 7, 3, 1, 0])
    data = families_from_frame(moved, ROLES, ["hours"])
    assert data["topic"].x[:, 0].tolist() == [1, 4, 5]


def test_texts_become_tokens_once():
    encoder = Letters()
    data = families_from_frame(FRAME, ROLES, text="text", encoder=encoder)
    assert encoder.calls == [["a b", "c", "d e f", "g"]]  # the row without a label needs no text
    assert data["mood"].x.dtype == torch.int32
    assert data["mood"].y.dtype == torch.float64
    assert data["mood"].x[:, 0].tolist() == [[0, 1, -1, -1], [2, -1, -1, -1]]
    assert data["topic"].x[:, 0, 0].tolist() == [0, 3, 6]
    assert data["topic"].x[:, 1].tolist()[1] == [0, 1, 2, -1]


def test_task_features_come_from_columns():
    df = FRAME.assign(length=FRAME["domain"].map({"x": 3.0, "y": 4.0}))
    roles = {"mood": {"target": "label", "task": "domain", "task_features": ["length"]}}
    data = families_from_frame(df, roles, ["hours"])
    assert data["mood"].task_features.tolist() == [[3], [4]]
    with pytest.raises(ValueError, match="numeric column"):
        families_from_frame(df[["domain", "label", "length"]], roles)


def test_a_model_of_both_families_is_fitted():
    rng = np.random.default_rng(0)
    x, half = rng.standard_normal((60, 2)), np.arange(60) % 2 == 0
    df = pd.DataFrame(x, columns=["a", "b"])
    df["shop"], df["school"] = rng.integers(3, size=60), rng.integers(4, size=60)
    df["good"] = np.where(half, x[:, 0] > 0, NAN)
    df["mark"] = np.where(half & (np.arange(60) > 9), NAN, 3 * x[:, 1])
    roles = {
        "reviews": {"target": "good", "task": "shop"},
        "marks": {"target": "mark", "task": "school"},
    }
    data = families_from_frame(df, roles, ["a", "b"])
    assert [len(part) for part in data.values()] == [30, 35]
    model = MultitaskModel(
        families={
            "reviews": Family(likelihood=Bernoulli()),
            "marks": Family(likelihood=Gaussian()),
        }
    )
    fit(model, data, progress=False)
    found = model.predict(x, df["school"].to_numpy(), family="marks").mean
    np.testing.assert_allclose(found, 3 * x[:, 1], atol=0.3)


MOOD = {"target": "label", "task": "domain"}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (({"mood": MOOD}, ["hours"], "text"), ValueError, "both text=.*and encoder="),
        (({"mood": MOOD}, ["hours"], "text", Letters()), ValueError, "not both; got 'text'"),
        (({"mood": MOOD}, None, "txt", Letters()), KeyError, "'txt'.*Did you mean 'text'"),
        (({},), ValueError, "at least one family"),
        (({"mood": {"target": "label"}},), ValueError, r"'mood' must have.*got \['target'\]"),
        (({"mood": {**MOOD, "wieght": "weight"}},), ValueError, "'wieght'"),
        (({"mood": {**MOOD, "target": "lable"}},), KeyError, "no column 'lable'"),
        (
            ({"mood": {**MOOD, "task": "corpus"}}, ["hours"]),
            ValueError,
            "family 'mood': task must",
        ),
        (({"mood": {**MOOD, "target": "text"}}, ["hours"]), TypeError, "family 'mood': y must"),
        (({"mood": MOOD}, ["label"]), ValueError, "must not hold the target"),
    ],
)
def test_what_does_not_fit(arguments, error, message):
    roles, features, text, encoder = (*arguments, None, None, None)[:4]
    with pytest.raises(error, match=message):
        families_from_frame(FRAME, roles, features, text=text, encoder=encoder)


def test_a_family_without_labels():
    with pytest.raises(ValueError, match="family 'mood' must have a label in some row; got none"):
        families_from_frame(FRAME.iloc[2:], {"mood": MOOD}, ["hours"])
    with pytest.raises(TypeError, match="must be a pandas DataFrame; got TaskData"):
        families_from_frame(TaskData([[1.0]], [1.0], [0]), {"mood": MOOD})
