"""The server: what it answers, what it refuses, and that joining requests changes nothing."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from bmm_multitask_learning import (
    Categorical,
    Gaussian,
    MultitaskModel,
    SharedGaussian,
    TaskClustering,
    TaskData,
    cli,
    datasets,
    fit,
    load,
)
from bmm_multitask_learning.backbones import (
    TransformerEncoder,
    WithConstant,
    Words,
    find_text_encoder,
    heads_only,
)
from bmm_multitask_learning.family import Family

pytest.importorskip("fastapi", reason="needs the extra serve")
httpx = pytest.importorskip("httpx")

from fastapi.testclient import TestClient  # noqa: E402  # after the check that it is there

from bmm_multitask_learning.serving import create_app  # noqa: E402
from bmm_multitask_learning.serving.batching import Batcher  # noqa: E402
from bmm_multitask_learning.serving.service import Service, read_folder  # noqa: E402

JSON = {"content-type": "application/json"}
ODD = "class of pupil: µ"  # a column's name may be any text


def frame() -> pd.DataFrame:
    """Rows of 7 schools with 3 features, one of them a fact about the school."""
    data, _ = datasets.make_clusters(num_tasks=7, num_features=3, rows_per_task=11, seed=3)
    x, y, task = (part.numpy() for part in (data.x, data.y, data.task))
    table = pd.DataFrame(100 * x + 7, columns=["hours", ODD, "model_x"])
    table["school"] = [f"{k:02d}" for k in task]
    table["size"] = 10.0 * task
    table["score"] = 50 + 8 * y
    table["grade"] = np.where(y < -1, "low", np.where(y < 1, "middle", "high"))
    return table


def row(table: pd.DataFrame, number: int, **changed: object) -> dict[str, object]:
    names = ["school", "hours", ODD, "model_x"]
    return json.loads(table[names].iloc[number].to_json()) | changed


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return frame()


@pytest.fixture(scope="module")
def folders(table, tmp_path_factory) -> dict[str, Path]:
    """Models that `bmm-mtl fit` wrote: of a number, of classes, and one that reads a fact."""
    home = tmp_path_factory.mktemp("tables")
    table.to_csv(home / "data.csv", index=False)
    roles = ("fit", home / "data.csv", "--task", "school", "--features", f"hours,{ODD},model_x")
    kinds = {
        "score": ("--target", "score"),
        "grade": ("--target", "grade"),
        "gated": ("--target", "score", "--prior", "clustering", "--clusters", "2"),
    }
    for name, options in kinds.items():
        facts = ("--task-features", "size") if name == "gated" else ()
        done = CliRunner().invoke(
            cli.app, [*map(str, roles), *options, *facts, "--out", str(home / name)]
        )
        assert done.exit_code == 0, done.output
    return {name: home / name for name in kinds}


@pytest.fixture(scope="module")
def score(folders) -> TestClient:
    return TestClient(create_app(folders["score"], max_rows=50, max_bytes=20_000))


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    """Two families on one MLP-free model: numbers of tasks 0.., and classes without names."""
    folder = tmp_path_factory.mktemp("raw")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 4))
    task = np.arange(60) % 5
    classes = TaskData(x[:40], (x[:40, 0] > 0) + 1.0 * (x[:40, 1] > 0), task[:40] % 3)
    model = MultitaskModel(
        families={
            "height": Family(SharedGaussian(), Gaussian()),
            "kind": Family(TaskClustering(2, n_init=1), Categorical(3)),
        }
    )
    data = {"height": TaskData(x, x @ [1.0, 2.0, 0.0, -1.0] + task, task), "kind": classes}
    fit(model, data, progress=False)
    model.save(folder)
    return folder


def post(client: TestClient, rows: list, family: str = "tasks", **more: object):
    return client.post(f"/predict/{family}", json={"rows": rows} | more)


def predictions(client: TestClient, rows: list, family: str = "tasks", **more: object) -> list:
    answer = post(client, rows, family, **more)
    assert answer.status_code == 200, answer.text
    return answer.json()["predictions"]


# ---- answers -----------------------------------------------------------------------------------


def test_a_table_is_answered_as_bmm_mtl_predict_writes_it(folders, score, table, tmp_path):
    table.to_csv(tmp_path / "data.csv", index=False)
    arguments = ["predict", folders["score"], tmp_path / "data.csv", "--coverage", 0.8]
    out = tmp_path / "predictions.csv"
    done = CliRunner().invoke(cli.app, [str(each) for each in [*arguments, "--out", out]])
    assert done.exit_code == 0, done.output
    written = pd.read_csv(out)
    rows = [row(table, number) for number in range(20)]
    found = pd.DataFrame(predictions(score, rows, coverage=0.8))
    assert list(found) == ["mean", "std", "lower", "upper", "known"]
    assert found["known"].all()
    names = ["mean", "std", "lower", "upper"]
    np.testing.assert_allclose(found[names], written[names][:20])


def test_classes_have_their_names_and_add_up(folders, table):
    client = TestClient(create_app(folders["grade"]))
    found = predictions(client, [row(table, number) for number in range(77)])
    assert set(found[0]["probability"]) == {"low", "middle", "high"}
    sums = [sum(each["probability"].values()) for each in found]
    np.testing.assert_allclose(sums, 1.0)
    best = [max(each["probability"], key=each["probability"].get) for each in found]
    assert best == [each["predicted"] for each in found]
    assert np.mean([g == b for g, b in zip(table["grade"], best, strict=True)]) > 0.6


def test_a_model_without_a_table_takes_its_features(raw):
    client, model = TestClient(create_app(raw)), load(raw)
    x = np.random.default_rng(1).normal(size=(3, 4))
    rows = [{"task": k, "features": f.tolist()} for k, f in zip([0, 4, 9], x, strict=True)]
    found = predictions(client, rows, "height")
    with pytest.warns(UserWarning, match="outside the fit"):
        wanted = model.predict(x, [0, 4, 9], family="height")
    np.testing.assert_allclose([each["mean"] for each in found], wanted.mean)
    np.testing.assert_allclose([each["std"] for each in found], wanted.std)
    assert [each["known"] for each in found] == [True, True, False]
    found = predictions(client, rows[:1], "kind")
    [chance] = model.predict(x[:1], 0, family="kind").mean
    np.testing.assert_allclose(list(found[0]["probability"].values()), chance)
    assert list(found[0]["probability"]) == ["0", "1", "2"]


def test_classes_json_names_classes(raw, tmp_path):
    for file in raw.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "classes.json").write_text(json.dumps({"kind": ["none", "one", "both"]}))
    client = TestClient(create_app(tmp_path))
    [found] = predictions(client, [{"task": 0, "features": [1.0, 1.0, 0.0, 0.0]}], "kind")
    assert list(found["probability"]) == ["none", "one", "both"]
    (tmp_path / "classes.json").write_text(json.dumps({"kind": ["none", "both"]}))
    with pytest.raises(ValueError, match="2 names of classes are given where the model has 3"):
        create_app(tmp_path)
    (tmp_path / "classes.json").write_text(json.dumps({"sort": ["a"]}))
    with pytest.raises(ValueError, match=r"must name families of the model, \['height', 'kind'\]"):
        create_app(tmp_path)


def test_unknown_tasks_get_the_population_all_the_same(score, table):
    known, *unknown = predictions(
        score, [row(table, 0), *(row(table, 0, school=s) for s in ("new", "newer", 7))]
    )
    assert known["known"]
    assert not any(each["known"] for each in unknown)
    assert unknown[0] == unknown[1] == unknown[2]
    assert unknown[0]["std"] > known["std"]


def test_labels_may_be_numbers_where_the_table_has_numbers(raw, tmp_path, table):
    numbered = table.assign(school=table["school"].astype(int))
    numbered.to_csv(tmp_path / "data.csv", index=False)
    roles = ["--task", "school", "--target", "score", "--features", "hours,model_x", "--out"]
    call = ["fit", str(tmp_path / "data.csv"), *roles, str(tmp_path / "model")]
    assert CliRunner().invoke(cli.app, call).exit_code == 0
    client = TestClient(create_app(tmp_path / "model"))
    features = {"hours": 1.0, "model_x": 2}
    first, second = predictions(client, [{"school": label} | features for label in (3, "3")])
    assert first == second
    assert first["known"]


def test_facts_about_unknown_tasks_are_read_row_by_row(folders, table):
    client = TestClient(create_app(folders["gated"]))
    rows = [row(table, 0, school="new", size=size) for size in (0.0, 60.0)]
    small, large = predictions(client, rows)  # as two requests joined in a pass may have them
    assert small["mean"] != large["mean"]
    assert [small, large] == [predictions(client, [each])[0] for each in rows]


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    """Reviews of two kinds of product through a small encoder."""
    folder = tmp_path_factory.mktemp("texts")
    said = ["good film", "bad film", "a good and long film", "bad, bad sound", "good sound"] * 4
    encoder = heads_only(TransformerEncoder.from_texts(said, vocab_size=300, width=8))
    model = MultitaskModel(backbone=WithConstant(encoder))
    y = np.array([1.0, -1.0, 1.0, -1.0, 1.0] * 4)
    fit(model, TaskData(encoder.tokens(said), y, ["film", "sound"] * 10), progress=False)
    model.save(folder)
    return folder


def test_texts_are_read_by_the_saved_encoder(texts):
    client, model = TestClient(create_app(texts)), load(texts)
    said = ["good", "a bad and long and bad film", ""]
    found = predictions(client, [{"task": "film", "text": text} for text in said])
    x = model.backbone.backbone.tokens(said)
    wanted = model.predict(x, "film").mean.tolist()
    np.testing.assert_allclose([each["mean"] for each in found], wanted, rtol=1e-5)


@pytest.fixture(scope="module")
def tagged(tmp_path_factory) -> Path:
    """Names in sentences of two kinds: a family of words, with the names of its tags."""
    folder = tmp_path_factory.mktemp("tagged")
    words = [["Ada", "Lovelace", "wrote", "it"], ["we", "met", "Ada"], ["Ada", "met", "us"]] * 5
    tags = [["B-PER", "I-PER", "O", "O"], ["O", "O", "B-PER"], ["B-PER", "O", "O"]] * 5
    encoder = heads_only(
        TransformerEncoder.from_texts(
            [" ".join(each) for each in words], vocab_size=300, width=16, pooling=None
        )
    )
    y, names = datasets.tag_targets(tags)
    family = Family(SharedGaussian("isotropic"), Categorical(3), reader=Words(constant=True))
    model = MultitaskModel(backbone=encoder, families={"names": family})
    fit(model, {"names": TaskData(encoder.tokens(words), y, ["a", "b", "a"] * 5)}, progress=False)
    model.save(folder)
    (folder / "classes.json").write_text(json.dumps({"names": names}))
    return folder


def test_words_get_tags_and_entities(tagged):
    client, model = TestClient(create_app(tagged)), load(tagged)
    rows = [
        {"task": "a", "words": ["we", "met", "Ada", "Lovelace"]},
        {"task": "c", "words": ["it"]},
        {"task": "b", "words": ["Ada", "met", "us"]},
    ]
    first, second, third = predictions(client, rows, "names")
    assert [first["known"], second["known"], third["known"]] == [True, False, True]
    assert third["tags"] == ["B-PER", "O", "O"]
    assert third["entities"] == [{"type": "PER", "start": 0, "end": 1, "text": "Ada"}]
    assert [len(each["tags"]) for each in (first, second, third)] == [4, 1, 3]
    x = find_text_encoder(model.backbone).tokens([rows[2]["words"]])
    chance = model.predict(x, "b", family="names").mean
    np.testing.assert_allclose(third["probability"], chance[[0, 1, 2], [1, 0, 0]], rtol=1e-5)
    together = predictions(client, rows[2:], "names")
    np.testing.assert_allclose(together[0]["probability"], third["probability"], rtol=1e-5)


def test_a_sentence_of_too_many_words_is_refused(tagged):
    client = TestClient(create_app(tagged))
    answer = post(client, [{"task": "a", "words": ["Ada"] * 127}], "names")
    assert answer.status_code == 422
    assert "split the sentence" in answer.json()["detail"][0]["msg"]


# ---- refusals ----------------------------------------------------------------------------------

WRONG = {
    "unknown column": ({"pupils": 3}, "pupils", "Extra inputs are not permitted"),
    "text for a number": ({"hours": "12"}, "hours", "valid number"),
    "yes for a number": ({"hours": True}, "hours", "valid number"),
    "no number": ({"hours": None}, "hours", "valid number"),
    "NaN": ({"hours": float("nan")}, "hours", "finite number"),
    "infinite": ({ODD: float("-inf")}, ODD, "finite number"),
    "astronomic": ({"hours": 1e200}, "hours", "less than or equal to 1"),
    "no label": ({"school": None}, "school", "valid string"),
    "a fraction as label": ({"school": 1.5}, "school", "valid"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_row_is_refused_with_its_place(case, score, table):
    change, name, message = WRONG[case]
    body = json.dumps({"rows": [row(table, 0), row(table, 1, **change)]})
    answer = score.post("/predict/tasks", content=body, headers=JSON)
    assert answer.status_code == 422
    problem = answer.json()["detail"][0]
    assert problem["loc"][:4] == ["body", "rows", 1, name]
    assert message in problem["msg"]


def test_half_a_character_is_refused_and_can_be_told(score, texts, table):
    body = json.dumps({"rows": [row(table, 1) | {"\ud800": 1}]})
    assert score.post("/predict/tasks", content=body, headers=JSON).status_code == 422
    body = json.dumps({"rows": [{"task": "film", "text": "good \ud800"}]})
    answer = TestClient(create_app(texts)).post("/predict/tasks", content=body, headers=JSON)
    assert answer.status_code == 422
    assert "surrogates not allowed" in answer.json()["detail"][0]["msg"]


def test_a_missing_column_is_named(score, table):
    short = row(table, 0)
    del short["hours"]
    [problem] = post(score, [short]).json()["detail"]
    assert problem == {"loc": ["body", "rows", 0, "hours"], "msg": "Field required"}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("{", "JSON"),
        ("[]", "valid dictionary"),
        ('{"rows": []}', "at least 1 item"),
        ('{"rows": [], "coverage": 1}', "less than or equal to 0.999"),
        ('{"rows": [], "cover": 0.5}', "Extra inputs"),
    ],
)
def test_a_wrong_body_is_refused(body, message, score):
    answer = score.post("/predict/tasks", content=body, headers=JSON)
    assert answer.status_code == 422
    assert any(message in each["msg"] for each in answer.json()["detail"])


def test_limits_of_rows_and_bytes(score, table):
    rows = [row(table, 0)]
    assert len(predictions(score, 50 * rows)) == 50
    answer = post(score, 51 * rows)
    assert answer.status_code == 422
    assert "at most 50 items" in answer.json()["detail"][0]["msg"]
    long = json.dumps({"rows": rows}) + " " * 20_000
    answer = score.post("/predict/tasks", content=long)
    assert answer.status_code == 413
    assert "more than 20000 bytes: send fewer rows" in answer.json()["detail"]
    halves = iter([long[:10_000].encode(), long[10_000:].encode()])  # of unannounced length
    assert score.post("/predict/tasks", content=halves).status_code == 413
    fits = iter([b'{"rows": ', json.dumps(rows).encode() + b"}"])
    assert score.post("/predict/tasks", content=fits, headers=JSON).status_code == 200


def test_unknown_families_and_methods(score, raw):
    answer = TestClient(create_app(raw)).post("/predict/weight", json={})
    assert answer.status_code == 404
    assert answer.json()["detail"] == (
        "there is no family 'weight'; there are ['height', 'kind']."
    )
    assert score.get("/predict/tasks").status_code == 405


def test_features_of_the_wrong_number_are_refused(raw):
    client = TestClient(create_app(raw))
    answer = post(client, [{"task": 0, "features": [1.0, 2.0, 3.0]}], "height")
    assert answer.status_code == 422
    assert "at least 4 items" in answer.json()["detail"][0]["msg"]


def test_a_prediction_that_is_not_finite_is_refused(tmp_path):
    x = np.random.default_rng(0).normal(size=(20, 2)) * 1e-90
    model = MultitaskModel()
    fit(model, TaskData(x, 1e90 * x[:, 0], ["a", "b"] * 10), progress=False)
    model.weights.mean  # noqa: B018  # finite
    posterior = model.family().posterior
    model.family().register_buffer("posterior_means", posterior.means + 1e300)
    model.save(tmp_path)
    client = TestClient(create_app(tmp_path))
    answer = post(client, [{"task": "a", "features": [1e99, 1e99]}])
    assert answer.status_code == 422
    assert "not finite" in answer.json()["detail"][0]["msg"]


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config\.json in"):
        create_app(tmp_path)


def test_without_the_extra_its_name_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    for name in ("serving", "serving.app"):
        monkeypatch.delitem(sys.modules, f"bmm_multitask_learning.{name}")
    with pytest.raises(ImportError, match=r"serving needs uvicorn.*\[serve\]"):
        import bmm_multitask_learning.serving  # noqa: F401  # the import is what fails


# ---- facts -------------------------------------------------------------------------------------


def test_health_tasks_and_relations(raw):
    client, model = TestClient(create_app(raw)), load(raw)
    health = client.get("/health").json()
    assert health["status"] == "ok"
    assert health["families"] == ["height", "kind"]
    tasks = client.get("/tasks").json()
    assert tasks["height"] == [{"task": k, "rows": 12} for k in range(5)]
    assert [each["rows"] for each in tasks["kind"]] == list(model["kind"].rows_per_task)
    found = client.get("/relations").json()["kind"]
    assert found["prior"] == "TaskClustering"
    assert found["tasks"] == [0, 1, 2]
    np.testing.assert_allclose(found["relations"], model["kind"].prior.relations())


def test_the_description_has_an_example_that_is_answered(score, raw, texts, table):
    for client in (score, TestClient(create_app(raw)), TestClient(create_app(texts))):
        described = client.get("/openapi.json").json()
        rows = {
            name: schema["examples"][0]
            for name, schema in described["components"]["schemas"].items()
            if name.endswith("Row")
        }
        paths = [path for path in described["paths"] if path.startswith("/predict/")]
        assert len(rows) == len(paths)
        for path in paths:
            name = f"{path.rpartition('/')[2].capitalize()}Row"
            assert client.post(path, json={"rows": [rows[name]]}).status_code == 200
    limit = score.get("/openapi.json").json()["components"]["schemas"]["TasksRequest"]
    assert limit["properties"]["rows"]["maxItems"] == 50
    assert rows["TasksRow"]["task"] == "film"


# ---- together ----------------------------------------------------------------------------------


def test_concurrent_requests_share_passes_and_get_their_own_answers(folders, table, monkeypatch):
    passes, answer_of = [], Service.answer

    def counted(service: Service, requests: list) -> list:
        passes.append(len(requests))
        return answer_of(service, requests)

    [service] = read_folder(folders["score"], max_rows=64)
    queries = [
        {"rows": [row(table, (i + j) % 77) for j in range(1 + i % 5)], "coverage": 0.5 + i / 100}
        for i in range(40)
    ]
    alone = [
        service.answer([service.request.model_validate(query)])[0]["predictions"]
        for query in queries
    ]

    monkeypatch.setattr(Service, "answer", counted)
    app = create_app(folders["score"], max_rows=64)

    async def together() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            calls = (client.post("/predict/tasks", json=query) for query in queries)
            return await asyncio.gather(*calls)

    answers = asyncio.run(together())
    assert sum(passes) == 40
    assert len(passes) < 20
    for answer, wanted in zip(answers, alone, strict=True):
        assert answer.status_code == 200
        found = answer.json()["predictions"]
        names = ("mean", "std", "lower", "upper")
        pairs = [[[each[n] for n in names] for each in part] for part in (found, wanted)]
        np.testing.assert_allclose(*pairs, rtol=1e-9)


def test_passes_take_what_waits_up_to_their_size():
    passes = []

    def answer(queries: list[int]) -> list[int]:
        passes.append(queries)
        return [10 * query for query in queries]

    async def main() -> list[int]:
        batcher = Batcher(answer, max_size=4)
        calls = (batcher(i, size=size) for i, size in enumerate([1, 2, 2, 9, 1]))
        return await asyncio.gather(*calls)

    assert asyncio.run(main()) == [0, 10, 20, 30, 40]
    assert passes == [[0, 1], [2], [3], [4]]


def test_what_fails_is_told_to_its_own_query_alone():
    def answer(queries: list[int]) -> list[int]:
        if 3 in queries:
            raise ValueError("no threes")
        return queries

    async def main() -> list[int | BaseException]:
        batcher = Batcher(answer, max_size=100)
        calls = (batcher(i, size=1) for i in range(5))
        return await asyncio.gather(*calls, return_exceptions=True)

    found = asyncio.run(main())
    assert [str(each) for each in found] == ["0", "1", "2", "no threes", "4"]


def test_a_client_that_goes_away_holds_nobody_up():
    async def main() -> int:
        batcher = Batcher(lambda queries: queries, max_size=100, window=0.01)
        gone = asyncio.create_task(batcher(1, size=1))
        stays = asyncio.create_task(batcher(2, size=1))
        await asyncio.sleep(0)
        gone.cancel()
        return await stays

    assert asyncio.run(main()) == 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["score", "grade", "raw", "texts", "tagged"])
def test_nothing_that_the_description_allows_or_forbids_breaks_it(
    kind, folders, raw, texts, tagged
):
    schemathesis = pytest.importorskip("schemathesis")
    hypothesis = pytest.importorskip("hypothesis")
    checks = pytest.importorskip("schemathesis.specs.openapi.checks")
    # how many tokens a sentence has no description can say
    excluded = [checks.positive_data_acceptance] if kind == "tagged" else []
    folder = {"raw": raw, "texts": texts, "tagged": tagged, **folders}[kind]
    bounded = hypothesis.settings(
        max_examples=25,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the fuzzing library
        schema = schemathesis.openapi.from_asgi("/openapi.json", create_app(folder, max_rows=20))
        modes = schemathesis.GenerationMode
        for found in schema.get_all_operations():
            operation = found.ok()
            wrong = [modes.NEGATIVE] if operation.method == "post" else []
            for mode in [modes.POSITIVE, *wrong]:

                @bounded
                @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
                def check(case):
                    case.call_and_validate(excluded_checks=excluded)

                check()


@pytest.mark.slow
def test_a_real_server_answers_many_clients_over_http(folders, table):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = "from bmm_multitask_learning.cli import app; app()"
    call = [sys.executable, "-c", program, "serve", str(folders["score"]), "--port", str(port)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(call, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for(url, server)
            rows = [row(table, number) for number in range(77)]
            with httpx.Client(base_url=url) as client:
                whole = client.post("/predict/tasks", json={"rows": rows}).json()["predictions"]

                def ask(number: int) -> float:
                    body = {"rows": [rows[number % 77]]}
                    answer = client.post("/predict/tasks", json=body, timeout=60)
                    assert answer.status_code == 200
                    return answer.json()["predictions"][0]["mean"]

                with ThreadPoolExecutor(16) as pool:
                    found = list(pool.map(ask, range(160)))
            wanted = [whole[number % 77]["mean"] for number in range(160)]
            np.testing.assert_allclose(found, wanted, rtol=1e-9)
        finally:
            server.terminate()
            said = server.stdout.read()
    assert re.search("Serving .*score; stop with Ctrl-C", said.replace("\n", ""))


def wait_for(url: str, server: subprocess.Popen[str], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert server.poll() is None, server.stdout.read()
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise TimeoutError(f"no answer at {url}")
