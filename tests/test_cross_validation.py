"""compare: priors ranked by what they predict for rows that they have not seen."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from bmm_multitask_learning import (
    SVI,
    Bernoulli,
    IndependentTasks,
    MultitaskModel,
    PooledTasks,
    SharedGaussian,
    TaskClustering,
    TaskData,
    compare,
    fit,
)
from bmm_multitask_learning.backbones import MLP
from bmm_multitask_learning.cross_validation import candidates
from bmm_multitask_learning.data import LeaveTasksOut
from bmm_multitask_learning.report import write_report
from bmm_multitask_learning.units import Units

from .asserts import clustered
from .cases import make_data

THREE = {
    "alone": IndependentTasks(),
    "one": PooledTasks(),
    "many": SharedGaussian("isotropic"),
}


@pytest.fixture(scope="module")
def data():
    return make_data(rows=(9, 4, 12, 7, 8, 6), num_features=3, spread=0.4)


@pytest.fixture(scope="module")
def comparison(data):
    return compare(data, THREE, num_folds=3)


def test_densities_are_those_of_fits_by_hand(data, comparison):
    """The whole protocol again: folds, units, fit, prediction, the change of variables."""
    density, task = {name: [] for name in THREE}, []
    for train, test in data.folds(3, seed=0):
        units = Units.of(train)
        x = units.features(test.x.numpy(), intercept=True)
        t = units.targets(test.y.numpy(), test.task.numpy())
        for name, prior in THREE.items():
            model = MultitaskModel(copy.deepcopy(prior))
            fit(model, units.standardise(train), progress=False)
            log_t = model.predict(x, test.task.numpy()).log_prob(t)
            density[name].append(log_t - np.log(units.target_scale[0, 0]))
        task.append(test.task.numpy())
    rows, task = {n: np.concatenate(parts) for n, parts in density.items()}, np.concatenate(task)
    ranked = sorted(THREE, key=lambda name: -rows[name].mean())
    assert [c.name for c in comparison.contenders] == ranked
    for c in comparison.contenders:
        assert c.log_density == pytest.approx(rows[c.name].mean(), abs=1e-10)
        row = rows[c.name] - rows[ranked[0]]
        sums = np.array([(row[task == k] - row.mean()).sum() for k in range(6)])
        assert c.difference == pytest.approx(row.mean(), abs=1e-10)
        assert c.standard_error == pytest.approx(np.sqrt(6 / 5 * (sums**2).sum()) / 46, abs=1e-10)
        assert c.seconds > 0
    assert (comparison.num_rows, comparison.num_tasks) == (46, 6)


def test_error_and_coverage_are_those_of_predictions_by_hand(data, comparison):
    square, inside = [], []
    for train, test in data.folds(3, seed=0):
        units = Units.of(train)
        model = MultitaskModel(PooledTasks())
        fit(model, units.standardise(train), progress=False)
        x = units.features(test.x.numpy(), intercept=True)
        p = model.predict(x, test.task.numpy())
        t = units.targets(test.y.numpy(), test.task.numpy())
        square.append((units.target_scale[0, 0] * (p.mean - t)) ** 2)
        inside.append((p.interval(0.9)[:, 0] <= t) & (t <= p.interval(0.9)[:, 1]))
    one = next(c for c in comparison.contenders if c.name == "one")
    assert one.error == pytest.approx(np.concatenate(square).mean() ** 0.5)
    assert one.coverage == pytest.approx(np.concatenate(inside).mean())


def test_whole_tasks_held_out_are_predicted_as_new_ones(data):
    """By a fit that has no such task, from the population."""
    splitter = LeaveTasksOut(3, random_state=0)
    found = compare(data, {"many": SharedGaussian("isotropic")}, splitter=splitter)
    density = []
    for train, test in splitter.split(data.x, groups=data.task.numpy()):
        kept = data.rows(train).select_tasks(np.unique(data.task[train]))
        units = Units.of(kept)
        model = MultitaskModel(SharedGaussian("isotropic"))
        fit(model, units.standardise(kept), progress=False)
        rows = data.rows(test)
        with pytest.warns(UserWarning, match="outside the fit"):
            p = model.predict(units.features(rows.x.numpy(), intercept=True), rows.task.numpy())
        assert not p.known.any()
        t = units.targets(rows.y.numpy(), rows.task.numpy())
        density.append(p.log_prob(t) - np.log(units.target_scale[0, 0]))
    assert found.contenders[0].log_density == pytest.approx(np.concatenate(density).mean())
    assert (found.num_rows, found.num_tasks) == (46, 6)


def test_gates_read_the_features_of_tasks_held_out():
    """Two clusters that the features tell apart: without them a new task may be in either."""
    data = clustered(num_tasks=16)
    priors = {"blind": TaskClustering(2, n_init=1), "gated": TaskClustering(2, gating=True)}
    found = compare(data, priors, splitter=LeaveTasksOut(4, random_state=0))
    assert found.best == "gated"
    assert found.contenders[1].difference < -0.2


def test_a_backbone_makes_features_of_inputs_of_any_shape():
    rng = np.random.default_rng(0)
    x, task = rng.standard_normal((60, 2, 3)), np.arange(60) % 5
    y = x[:, 0, 1] - x[:, 1, 2] + 0.1 * rng.standard_normal(60)
    backbone = torch.nn.Flatten()
    found = compare(TaskData(x, y, task), {"one": PooledTasks()}, backbone=backbone, num_folds=2)
    flat = TaskData(x.reshape(60, 6), y, task)
    same = compare(flat, {"one": PooledTasks()}, backbone=torch.nn.Identity(), num_folds=2)
    plain = compare(flat, {"one": PooledTasks()}, num_folds=2)
    assert same.contenders[0].log_density == pytest.approx(plain.contenders[0].log_density)
    assert found.contenders[0].error < 0.2
    assert found.contenders[0].error != same.contenders[0].error  # these were standardised


def test_a_backbone_is_trained_on_each_fold_anew():
    data = make_data(rows=(9, 7, 8), num_features=2)
    backbone = MLP(2, [3], seed=0)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    compare(data, {"one": PooledTasks()}, backbone=backbone, engine=SVI(steps=5), num_folds=2)
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_planted_kind_of_tasks_wins():
    related = make_data(rows=(8,) * 12, num_features=4, spread=0.3)
    assert compare(related, THREE, num_folds=2).best == "many"
    copies = make_data(rows=(8,) * 12, num_features=4, spread=0.0)
    found = compare(copies, THREE, num_folds=2)
    assert found.best != "alone"
    assert {c.name: c for c in found.contenders}["alone"].difference < -0.02


def test_targets_in_other_units_change_densities_by_the_units_alone(data, comparison):
    other = compare(TaskData(data.x, 100 * data.y + 7, data.task), THREE, num_folds=3)
    for one, two in zip(comparison.contenders, other.contenders, strict=True):
        assert two.name == one.name
        assert two.log_density == pytest.approx(one.log_density - math.log(100), abs=1e-6)
        assert two.difference == pytest.approx(one.difference, abs=1e-6)


def test_rows_without_a_target_are_not_scored(data, comparison):
    x, y = np.concatenate([data.x, np.ones((3, 3))]), np.concatenate([data.y, [np.nan] * 3])
    extended = TaskData(x, y, [*data.task.tolist(), 0, 2, 2])
    assert compare(extended, THREE, num_folds=3).num_rows == comparison.num_rows == 46


def test_a_prior_that_cannot_be_fitted_is_a_row_with_the_reason(data):
    plain = TaskData(data.x, data.y, data.task)
    found = compare(
        plain, {"gated": TaskClustering(2, gating=True), "one": PooledTasks()}, num_folds=2
    )
    assert found.best == "one"
    last = found.contenders[-1]
    assert last.name == "gated"
    assert "task_features" in last.failure
    assert math.isnan(last.log_density)
    assert "failed: " in str(found)
    lost = compare(plain, {"gated": TaskClustering(2, gating=True)}, num_folds=2)
    with pytest.raises(RuntimeError, match="no prior could be fitted; gated: "):
        _ = lost.best
    with pytest.raises(ValueError, match="two priors"):
        lost.plot()


def test_classes_and_the_users_priors_are_left_alone():
    data = make_data("bernoulli", rows=(9, 7, 8), num_features=2)
    prior, likelihood = SharedGaussian("isotropic"), Bernoulli()
    before = repr(prior), dict(prior.named_buffers())
    found = compare(data, {"many": prior, "one": PooledTasks()}, likelihood, num_folds=2)
    assert all(-1.0 < c.log_density < 0.0 for c in found.contenders)  # nats of a coin, or so
    assert all(0.0 < c.error < 0.6 and math.isnan(c.coverage) for c in found.contenders)
    assert (repr(prior), dict(prior.named_buffers())) == before
    assert not likelihood.state_dict()


def test_one_seed_one_ranking(data, comparison):
    again = compare(data, THREE, num_folds=3)
    assert [(c.name, c.log_density) for c in again.contenders] == [
        (c.name, c.log_density) for c in comparison.contenders
    ]
    other = compare(data, THREE, num_folds=3, seed=1)
    assert other.contenders[0].log_density != comparison.contenders[0].log_density


def test_by_itself_every_prior_that_can_run(data):
    assert list(candidates(TaskData(data.x, data.y, data.task))) == [
        *("IndependentTasks", "PooledTasks", "SharedGaussian", "TaskClustering"),
        *("LatentHierarchy", "SparseBayesian"),
    ]
    assert list(candidates(data))[-1] == "TaskClustering, gating"  # it has task features
    names = {c.name for c in compare(data, num_folds=2).contenders if not c.failure}
    assert names == set(candidates(data))


def test_table_and_text(comparison):
    pandas = pytest.importorskip("pandas")
    table = comparison.table
    assert isinstance(table, pandas.DataFrame)
    assert table.index[0] == comparison.best
    assert table["difference"].iloc[0] == 0
    text = str(comparison).splitlines()
    assert text[1].startswith(comparison.best)
    assert text[-1] == "Nats a row, 46 held-out rows of 6 tasks."


def test_picture_shows_the_others_behind_the_best(comparison):
    figure = pytest.importorskip("matplotlib.figure")
    ax = comparison.plot(figure.Figure().subplots())
    names = [tick.get_text() for tick in ax.get_xticklabels()]
    assert names == [c.name for c in reversed(comparison.contenders[1:])]
    assert comparison.best in ax.get_ylabel()


def test_parts_of_a_report(comparison, tmp_path):
    pytest.importorskip("matplotlib")
    table = comparison.summary()
    assert [row[0] for row in table.rows] == [c.name for c in comparison.contenders]
    page = write_report(
        tmp_path / "page.html",
        title="Priors",
        summary="One.",
        sections=[table, comparison.picture()],
    )
    text = page.read_text(encoding="utf-8")
    assert f"What each prior loses against {comparison.best}" in text
    assert "46 held-out rows of 6 tasks." in text


def test_one_task_has_no_standard_error():
    data = make_data(rows=(12,), num_features=2)
    found = compare(data, {"one": PooledTasks(), "many": SharedGaussian()}, num_folds=2)
    assert math.isnan(found.contenders[1].standard_error)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_folds": 1}, "num_folds must lie between 2 and the number of rows, 46; got 1"),
        ({"num_folds": 47}, "got 47"),
        ({"priors": {}}, "at least one prior"),
    ],
)
def test_what_cannot_be_compared_is_refused(data, change, message):
    with pytest.raises(ValueError, match=message):
        compare(data, **{"priors": THREE, **change})


def test_data_without_targets_or_features_are_refused():
    with pytest.raises(ValueError, match="needs observed targets"):
        compare(TaskData(np.ones((4, 2)), [np.nan] * 4, [0, 0, 1, 1]))
    with pytest.raises(ValueError, match=r"features \(N, D\); got inputs of shape \(4, 2, 3\)"):
        compare(TaskData(np.ones((4, 2, 3)), np.ones(4), [0, 0, 1, 1]))
