"""`bmm-mtl benchmark`: what it measures, writes, keeps and says."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from scipy.stats import norm
from sklearn.linear_model import LinearRegression
from typer.testing import CliRunner, Result

from bmm_multitask_learning import Gaussian, SparseBayesian, benchmarks, cli
from bmm_multitask_learning.benchmarks import (
    Forecast,
    Metric,
    Problem,
    Protocol,
    Rows,
    Split,
    features,
    library,
    peers,
    sampled,
    scores,
)
from bmm_multitask_learning.benchmarks.landmine import with_all_classes
from bmm_multitask_learning.benchmarks.office import one_of_each_first
from bmm_multitask_learning.benchmarks.protocol import cannot, draws
from bmm_multitask_learning.benchmarks.tables import page
from bmm_multitask_learning.engines import NonFiniteBoundError

K = 3
KEYS = ("RMSE", "log_density", "coverage", "width", "found", "seconds")


def problem(split: Split) -> Problem:
    """y = 2 x + task, of 4 rows a task; size is the noise of the test rows."""
    rng = np.random.default_rng(split.seed)

    def rows(count: int, noise: float) -> Rows:
        task = np.repeat(np.arange(K), count)
        x = features.with_constant(rng.standard_normal((len(task), 1)))
        return Rows(x, 2 * x[:, 1] + task + noise * rng.standard_normal(len(task)), task)

    return Problem(rows(4, 0.0), rows(50, float(split.size)), K)


def zeros(problem: Problem) -> Forecast:
    n = len(problem.test.y)
    return Forecast(np.zeros(n), np.full(n, -1.0), np.tile([-1.0, 1.0], (n, 1)), {"found": 7.0})


def runaway(problem: Problem) -> Forecast:
    raise NonFiniteBoundError("the bound is infinite")


@pytest.fixture
def calls() -> Counter:
    return Counter()


@pytest.fixture
def fake(calls) -> Protocol:
    """Two sizes, three seeds, five methods."""

    def counted(method):
        def forecast(problem):
            calls[method.__name__] += 1
            return method(problem)

        return forecast

    exact = peers.each(LinearRegression)
    exact.__name__ = "exact"
    return Protocol(
        name="fake",
        text="A protocol\nof two lines.",
        splits=draws(("0.5", "2"), 3),
        methods={
            "Exact (per task)": counted(exact),
            "Exact (pooled)": peers.all_as_one(LinearRegression),
            "Zeros": counted(zeros),
            "Runaway": runaway,
            "Lasso": cannot("needs shared inputs"),
        },
        prepare=problem,
        score=scores.numeric,
        metrics=(
            Metric("RMSE", "RMSE", 2),
            Metric("RMSE", "worst", 2, worst=True),
            *scores.SPREAD,
            Metric("found", "found", 0),
            scores.SECONDS,
        ),
        reference="Zeros",
        compared=("RMSE",),
        some={"Exact (pooled)": draws(("0.5", "2"), 1)},
        quick_splits=draws(("2",), 1),
        quick_methods=("Zeros",),
    )


def written(folder: Path) -> tuple[pd.DataFrame, dict, str]:
    rows = pd.read_csv(folder / "fake.csv", dtype={"size": str})
    return rows, json.loads((folder / "fake.json").read_text()), (folder / "fake.md").read_text()


def measured(protocol: Protocol, folder: Path, **options) -> tuple[pd.DataFrame, dict, str]:
    benchmarks.Results(protocol, folder).measure(protocol.runs(**options))
    return written(folder)


# ---- what is run


def test_slow_methods_get_some_splits(fake):
    runs = Counter((method, split.size) for split, method in fake.runs())
    assert runs["Exact (pooled)", "0.5"] == runs["Exact (pooled)", "2"] == 1
    assert runs["Zeros", "0.5"] == runs["Zeros", "2"] == 3
    assert (Split("2", 0), "Exact (pooled)") in fake.runs()


def test_methods_are_named_with_or_without_their_variant(fake):
    named = {method for _, method in fake.runs(only=("Exact",))}
    assert named == {"Exact (per task)", "Exact (pooled)"}
    assert {m for _, m in fake.runs(only=("Exact (pooled)", "Zeros"))} == {
        "Exact (pooled)",
        "Zeros",
    }
    with pytest.raises(ValueError, match="fake has no method 'Exac'; it has Exact \\(per task\\)"):
        fake.runs(only=("Exac",))


def test_quick_is_small(fake):
    assert fake.runs(quick=True) == [(Split("2", 0), "Zeros")]
    assert fake.runs(quick=True, only=("Exact (per task)",)) == [
        (Split("2", 0), "Exact (per task)")
    ]


def test_figures_are_those_of_the_test_rows(fake):
    figures = fake.run(Split("0.5", 1), "Exact (per task)")
    assert figures["RMSE"] == pytest.approx(0.5, rel=0.15)  # 150 rows: 2.6 sd
    assert "coverage" not in figures
    figures = fake.run(Split("2", 1), "Zeros")
    y = problem(Split("2", 1)).test.y
    assert figures["coverage"] == np.mean(np.abs(y) <= 1)
    assert (figures["width"], figures["log_density"], figures["found"]) == (2, -1, 7)


def test_what_a_method_cannot_do_it_says(fake):
    assert fake.run(Split("2", 0), "Lasso") == {"note": "needs shared inputs"}
    assert fake.run(Split("2", 0), "Runaway") == {"note": "failed: NonFiniteBoundError"}


def test_other_errors_are_not_hidden(fake):
    broken = dataclasses.replace(fake, methods={"broken": lambda problem: 1 / 0})
    with pytest.raises(ZeroDivisionError):
        broken.run(Split("2", 0), "broken")


# ---- what is written


def test_rows_protocol_and_tables_are_written(fake, tmp_path):
    rows, facts, text = measured(fake, tmp_path / "new")
    assert len(rows) == len(fake.runs()) == 26
    assert rows["size"].tolist() == sorted(rows["size"])
    assert rows.note.notna().sum() == 12
    assert facts["protocol"] == "A protocol of two lines."
    assert facts["seeds"] == {"0.5": [0, 1, 2], "2": [0, 1, 2]}
    assert str(Path.home()) not in json.dumps(facts)
    assert "| 0.5 | Lasso | 0 | needs shared inputs |" in text
    assert "| 2 | Runaway | 0 | failed: NonFiniteBoundError |" in text
    assert text.startswith("A protocol\nof two lines.")


def test_tables_hold_means_spreads_and_differences(fake):
    rows = pd.DataFrame(
        [
            ("2", 0, "Zeros", 1.0),
            ("2", 0, "Exact (per task)", 1.5),
            ("2", 1, "Zeros", 3.0),
            ("2", 1, "Exact (per task)", 2.5),
            ("2", 2, "Zeros", 2.0),
            ("2", 2, "Exact (per task)", 3.5),
        ],
        columns=["size", "seed", "method", "RMSE"],
    ).reindex(columns=["size", "seed", "method", *KEYS, "note"])
    text = page(fake, rows)
    assert "| 2 | Zeros | 3 | 2.00 ± 1.00 | 3.00 | – |" in text
    # differences .5, -.5, 1.5: mean .5, sd 1, standard error 1/√3
    assert "| 2 | Exact (per task) | +0.500 ± 0.577 | 2 of 3 |" in text
    assert "| 2 | Zeros | +" not in text


def test_a_single_size_has_no_column(fake):
    one = dataclasses.replace(fake, metrics=(Metric("RMSE", "RMSE"),))
    rows = pd.DataFrame(
        {"size": [""], "seed": [0], "method": ["Zeros"], "RMSE": [1.0], "note": [None]}
    )
    assert "| method | splits | RMSE |\n| --- | --- | --- |\n| Zeros | 1 | 1.000 |" in page(
        one, rows
    )


# ---- what is kept


def test_an_interrupted_run_goes_on(fake, tmp_path, calls):
    def stop(problem):
        if calls["zeros"] == 2:
            raise KeyboardInterrupt
        return fake.methods["Zeros"](problem)

    stopped = dataclasses.replace(fake, methods={**fake.methods, "Zeros": stop})
    with pytest.raises(KeyboardInterrupt):
        measured(stopped, tmp_path)
    assert (calls["exact"], calls["zeros"]) == (3, 2)
    left = pd.read_csv(tmp_path / "fake.csv", dtype={"size": str})
    assert left.method.value_counts()[["Exact (per task)", "Zeros"]].tolist() == [3, 2]
    rows, *_ = measured(fake, tmp_path)
    assert (calls["exact"], calls["zeros"]) == (6, 6)
    assert len(rows) == 26
    pd.testing.assert_frame_equal(
        rows.iloc[: len(left)].dropna(axis=1, how="all"),
        left.dropna(axis=1, how="all"),
        check_dtype=False,
    )


def test_quick_rows_are_part_of_the_whole(fake, tmp_path, calls):
    rows, *_ = measured(fake, tmp_path, quick=True)
    assert (len(rows), calls["zeros"]) == (1, 1)
    rows, *_ = measured(fake, tmp_path)
    assert (len(rows), calls["zeros"]) == (26, 6)


def test_a_second_run_measures_nothing_but_what_has_no_figures(fake, tmp_path, calls):
    first, facts, text = measured(fake, tmp_path)
    again, same, page_again = measured(fake, tmp_path)
    assert calls["zeros"] == 6
    pd.testing.assert_frame_equal(first, again)
    assert (facts, text) == (same, page_again)


@pytest.mark.parametrize(
    "change", [{"text": "Another protocol."}, {"splits": draws(("0.5", "2"), 2)}]
)
def test_another_protocol_starts_over(fake, tmp_path, calls, change):
    measured(fake, tmp_path)
    other = dataclasses.replace(fake, **change)
    rows, *_ = measured(other, tmp_path)
    assert len(rows) == len(other.runs())
    assert calls["zeros"] == 6 + len(other.splits)


def test_a_method_more_keeps_the_others(fake, tmp_path, calls):
    measured(fake, tmp_path)
    more = dataclasses.replace(fake, methods={"More": zeros, **fake.methods})
    rows, *_ = measured(more, tmp_path)
    assert len(rows) == 32
    assert calls["zeros"] == 6
    assert rows.method[0] == "More"


# ---- the command


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(each) for each in arguments])


def test_the_command_writes_and_prints_tables(fake, tmp_path, monkeypatch):
    monkeypatch.setitem(cli.BENCHMARKS, "fake", fake)
    done = run("benchmark", "fake", "--quick", "--out", tmp_path, "--methods", "Zeros, Lasso")
    assert done.exit_code == 0, done.output
    rows, *_ = written(tmp_path)
    assert rows.method.tolist() == ["Zeros", "Lasso"]
    assert "| Lasso | 0 | needs shared inputs" in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("schools",), "there is no benchmark 'schools'; there are school, landmine"),
        (("planted", "--methods", "Ridge"), "planted has no method 'Ridge'; it has"),
    ],
)
def test_the_command_names_what_it_has(arguments, message, tmp_path, monkeypatch):
    monkeypatch.setattr(cli.ERR, "width", 1000)
    done = run("benchmark", *arguments, "--out", tmp_path)
    assert done.exit_code == 2
    assert message in done.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", cli.BENCHMARKS)
def test_protocols_hold_together(name):
    protocol = cli.BENCHMARKS[name]
    assert protocol.name == name
    assert protocol.reference in protocol.methods
    assert protocol.reference in protocol.quick_methods
    assert set(protocol.quick_methods) | set(protocol.some) <= set(protocol.methods)
    assert set(protocol.quick_splits) <= set(protocol.splits)
    assert {split for some in protocol.some.values() for split in some} <= set(protocol.splits)
    assert set(protocol.compared) <= {metric.key for metric in protocol.metrics}
    assert len(set(protocol.splits)) == len(protocol.splits)
    assert all("," not in method for method in protocol.methods)  # they separate --methods


def test_rows_of_each_class_are_drawn():
    rng = np.random.default_rng(0)
    task = np.repeat(np.arange(2), 40)
    y = (np.arange(80) % 20 == 0).astype(float)
    chosen = with_all_classes(Rows(np.ones((80, 1)), y, task), 5, rng)
    for k in range(2):
        assert chosen[task == k].sum() == 5
        assert set(y[chosen & (task == k)]) == {0.0, 1.0}


def test_one_row_of_each_class_comes_first():
    rng = np.random.default_rng(0)
    task = np.repeat(np.arange(2), 60)
    y = np.tile(np.repeat(np.arange(4.0), [1, 2, 3, 54]), 2)
    chosen = one_of_each_first(Rows(np.ones((120, 1)), y, task), np.array([4, 9]), rng)
    assert [chosen[task == k].sum() for k in range(2)] == [4, 9]
    assert [len(set(y[chosen & (task == k)])) for k in range(2)] == [4, 4]


def test_features_are_made_ready_by_train_rows_alone():
    rng = np.random.default_rng(0)
    scale = np.array([100.0, 1.0, 0.0])
    train, test = (
        Rows(5 + scale * rng.standard_normal((n, 3)), np.zeros(n), np.zeros(n, int))
        for n in (30, 7)
    )
    ready = features.standardised(train, test, 1)
    np.testing.assert_allclose(ready.train.x[:, 0], 1)
    np.testing.assert_allclose(ready.train.x[:, 1:].mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(ready.train.x[:, 1:].std(0), [1, 1, 0], atol=1e-12)
    np.testing.assert_allclose(
        ready.test.x[:, 1], (test.x[:, 0] - train.x[:, 0].mean()) / train.x[:, 0].std()
    )
    axes = features.principal(train, test, 1, 2)
    assert axes.test.x.shape == (7, 3)
    assert axes.train.x[:, 1:].var(0).mean() == pytest.approx(1)
    assert abs(np.corrcoef(axes.test.x[:, 1], test.x[:, 0])[0, 1]) > 0.999


def test_classes_that_a_task_lacks_have_a_probability():
    """Two rows of one class: half a row each for the two others."""
    train = Rows(np.ones((2, 1)), np.array([1.0, 1.0]), np.zeros(2, int))
    table = peers._probabilities(train, train, 1.0, 3)
    np.testing.assert_allclose(table, np.tile([0.5, 2, 0.5], (2, 1)) / 3)


def test_lasso_of_several_tasks_needs_shared_inputs():
    rng = np.random.default_rng(0)
    x, task = rng.standard_normal((12, 3)), np.repeat(np.arange(2), 12)
    y = np.concatenate([3 * x[:, 1], -2 * x[:, 1]]) + 0.01 * rng.standard_normal(24)
    shared = Rows(np.tile(x, (2, 1)), y, task)
    new = Rows(np.eye(3)[[1, 1, 0]], np.zeros(3), np.array([0, 1, 1]))
    [lasso] = peers.multitask_lasso().values()
    mean = lasso(Problem(shared, new, 2)).mean
    np.testing.assert_allclose(mean, [3, -2, 0], atol=0.1)
    other = shared._replace(x=rng.standard_normal((24, 3)))
    with pytest.raises(Exception, match="needs shared inputs"):
        lasso(Problem(other, new, 2))


def test_a_peer_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gpytorch", None)
    [gp] = peers.coregionalisation().values()
    with pytest.raises(Exception, match="GPyTorch is not installed"):
        gp(problem(Split("0.5", 0)))


def test_coregionalisation_predicts_with_its_noise():
    pytest.importorskip("gpytorch", reason="a peer of the benchmarks, in the group bench")
    [gp] = peers.coregionalisation().values()
    forecast = gp(problem(Split("0.5", 0)))
    lower, upper = forecast.interval.T
    np.testing.assert_allclose((lower + upper) / 2, forecast.mean)
    assert scores.numeric(problem(Split("0.5", 0)), forecast)["RMSE"] < 0.7


def test_features_that_are_found_leave_the_constant_out():
    """y = 2 x + task: of the constant and x, x alone counts."""
    small = problem(Split("0.5", 0))
    assert small.train.x.shape[1] == 2
    forecast = library.forecast(SparseBayesian(), Gaussian(), small)
    assert forecast.found == {"found": 1.0}


def test_sampled_model_says_what_it_cannot_do(monkeypatch):
    [nuts] = sampled.hierarchical().values()
    small = problem(Split("0.5", 0))
    with pytest.raises(Exception, match="more than 4000 weights"):
        nuts(small._replace(num_tasks=2001))
    monkeypatch.setitem(sys.modules, "numpyro", None)
    with pytest.raises(Exception, match="NumPyro is not installed"):
        nuts(small)


def test_predictions_of_draws_are_their_mixture():
    """Slopes of 1 and 3 with noise of 1/2 and 1/4; targets of deviation 2."""
    train = Rows(np.ones((2, 1)), np.array([-2.0, 2.0]), np.zeros(2, int))
    test = Rows(np.ones((1, 1)), np.array([3.0]), np.zeros(1, int))
    draws = {"weights": np.array([[[1.0]], [[3.0]]]), "noise": np.array([0.5, 0.25])}
    forecast = sampled._numbers(Problem(train, test, 1), draws)
    assert forecast.mean == pytest.approx([4.0])
    density = 0.5 * (norm.pdf(3, 2, 1.0) + norm.pdf(3, 6, 0.5))
    assert forecast.log_prob == pytest.approx([np.log(density)])
    probability = sampled._classes(Problem(train, test._replace(y=np.ones(1)), 1), draws)
    assert probability.mean == pytest.approx([expit([1.0, 3.0]).mean()])
    assert probability.log_prob == pytest.approx(np.log(probability.mean))


@pytest.mark.slow
def test_planted_truth_quickly(tmp_path):
    done = run("benchmark", "planted", "--quick", "--out", tmp_path)
    assert done.exit_code == 0, done.output
    rows = pd.read_csv(tmp_path / "planted.csv").set_index(["size", "method"]).sort_index()
    assert (rows.recovered["4 clusters", "TaskClustering"] >= 0.95).all()
    assert (rows.recovered["mixing", "VariationalWeighting"] >= 0.75).all()
    assert rows.loc["4 clusters"].error.groupby("method").mean().idxmin() == "TaskClustering"
    assert rows.coverage.between(0.8, 0.95).all()
