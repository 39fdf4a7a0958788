"""What users get wrong: each case has a message that says what was expected and what to do.

Then what looks wrong and must work: one row, constant columns, fewer rows than
features, one class.
"""

from __future__ import annotations

import os

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from bmm_multitask_learning import (
    NUTS,
    SVI,
    Bernoulli,
    Categorical,
    CoordinateAscent,
    Family,
    Gaussian,
    IndependentTasks,
    LatentHierarchy,
    MultitaskModel,
    Poisson,
    PooledTasks,
    SharedGaussian,
    StudentT,
    TaskClustering,
    TaskData,
    fit,
    load,
)
from bmm_multitask_learning.backbones import MLP

from .cases import EVERY_PRIOR, make_data

X = np.random.default_rng(0).standard_normal((12, 3))
Y = X @ [1.0, -1.0, 0.5]
TASK = np.repeat(["a", "b", "c"], 4)


def data(**change):
    return TaskData(**{"x": X, "y": Y, "task": TASK, **change})


def fitted(**change):
    model = MultitaskModel(**change)
    fit(model, data(), engine=CoordinateAscent(max_iter=2), progress=False)
    return model


def fit_labels(likelihood, y):
    fit(MultitaskModel(likelihood=likelihood), data(y=y), progress=False)


def fit_engine(engine, **change):
    fit(MultitaskModel(**change), data(), engine=engine, progress=False)


def with_entry(array, value):
    changed = np.array(array, dtype=float)
    changed.flat[4] = value
    return changed


FRAME = pd.DataFrame({"school": TASK, "score": Y, "hours": X[:, 0], "kind": ["x", "y"] * 6})
WRONG_WIDTH = MLP(5, [4])
HOT = np.eye(2)[[0, 1] * 6]

CASES = {
    # data
    "x with one axis": (lambda: data(x=X[:, 0]), ValueError, r"shape \(N, D\).*x\[:, None\]"),
    "x of other length than y": (lambda: data(x=X[:8]), ValueError, "y must have"),
    "y of three axes": (lambda: data(y=Y.reshape(12, 1, 1)), ValueError, "y must have"),
    "task of other length": (lambda: data(task=TASK[:9]), ValueError, "one label per row"),
    "task of two axes": (lambda: data(task=TASK[:, None]), ValueError, "task"),
    "NaN in x": (lambda: data(x=with_entry(X, np.nan)), ValueError, "x must be finite.*1 NaN"),
    "infinity in x": (lambda: data(x=with_entry(X, np.inf)), ValueError, "1 infinite.*row 1"),
    "infinity in y": (lambda: data(y=with_entry(Y, -np.inf)), ValueError, "y must be finite"),
    "NaN in task": (lambda: data(task=[np.nan] * 12), ValueError, "label in every row"),
    "missing task": (lambda: data(task=[None] * 12), ValueError, "12 missing"),
    "float task": (lambda: data(task=np.linspace(0, 1, 12)), TypeError, "float"),
    "no rows": (lambda: data(x=X[:0], y=Y[:0], task=TASK[:0]), ValueError, "at least one row"),
    "no features": (lambda: data(x=X[:, :0]), ValueError, "at least one feature"),
    "text in x": (lambda: data(x=np.full((12, 2), "x")), TypeError, "x must hold real numbers"),
    "complex x": (lambda: data(x=X * 1j), TypeError, "x must hold real numbers"),
    "ragged x": (lambda: data(x=[[1.0], [1.0, 2.0]]), ValueError, "rows of different length"),
    "frame with text column": (lambda: data(x=FRAME[["hours", "kind"]]), TypeError, "'kind'"),
    "unknown column": (
        lambda: TaskData.from_frame(FRAME, target="scor", task="school"),
        KeyError,
        "Did you mean 'score'",
    ),
    "label outside tasks": (lambda: data(tasks=["a", "b"]), ValueError, "labels of the K = 2"),
    "label twice in tasks": (lambda: data(tasks=["a", "b", "c", "a"]), ValueError, "tasks"),
    "too few task features": (
        lambda: data(task_features=np.ones((2, 2))),
        ValueError,
        r"shape \(K, F\) with K = 3",
    ),
    "NaN in task features": (
        lambda: data(task_features=np.full((3, 1), np.nan)),
        ValueError,
        "task_features must be finite",
    ),
    "negative weight": (lambda: data(weight=-np.ones(12)), ValueError, "weight"),
    "Y without observed entry": (
        lambda: TaskData.from_multioutput(X, np.full((12, 2), np.nan)),
        ValueError,
        "at least one observed",
    ),
    # labels that a likelihood cannot take
    "signs for Bernoulli": (
        lambda: fit_labels(Bernoulli(), np.sign(Y)),
        ValueError,
        "must be 0 or 1.*got -1",
    ),
    "scores for Bernoulli": (lambda: fit_labels(Bernoulli(), Y), ValueError, "must be 0 or 1"),
    "classes counted from one": (
        lambda: fit_labels(Categorical(3), [1, 2, 3] * 4),
        ValueError,
        r"0\.\.2; got 3",
    ),
    "half a class": (lambda: fit_labels(Categorical(2), [0.5] * 12), ValueError, "got 0.5"),
    "one-hot classes": (lambda: fit_labels(Categorical(2), HOT), ValueError, "class numbers"),
    "negative count": (lambda: fit_labels(Poisson(), [-1] * 12), ValueError, "counts"),
    # hyperparameters
    "one class": (lambda: Categorical(1), ValueError, "at least 2; got 1"),
    "noise by name": (lambda: Gaussian(noise="each"), ValueError, "got 'each'"),
    "two degrees of freedom": (lambda: StudentT(df=2.0), ValueError, "above 2"),
    "NaN degrees of freedom": (lambda: StudentT(df=float("nan")), ValueError, "got nan"),
    "covariance by name": (
        lambda: SharedGaussian("ful"),
        ValueError,
        r"\['diagonal', 'full', 'isotropic'\]; got 'ful'",
    ),
    "no clusters": (lambda: TaskClustering(0), ValueError, 'at least 1, or "auto"; got 0'),
    "clusters by name": (lambda: TaskClustering("many"), ValueError, "got 'many'"),
    "half a cluster": (lambda: TaskClustering(1.5), ValueError, "got 1.5"),
    "no start": (lambda: TaskClustering(2, n_init=0), ValueError, "n_init.*got 0"),
    "more clusters than tasks": (
        lambda: fit(MultitaskModel(TaskClustering(4)), data(), progress=False),
        ValueError,
        "num_clusters=4 is more than the 3 tasks",
    ),
    "gating without task features": (
        lambda: fit(MultitaskModel(TaskClustering(2, gating=True)), data(), progress=False),
        ValueError,
        "task features, and the data have none",
    ),
    "mixing above one": (lambda: LatentHierarchy(mixing=1.5), ValueError, '"auto"; got 1.5'),
    "mixing by name": (lambda: LatentHierarchy(mixing="half"), ValueError, "got 'half'"),
    # engines
    "no iterations": (lambda: CoordinateAscent(max_iter=0), ValueError, "max_iter.*got 0"),
    "negative tolerance": (lambda: CoordinateAscent(tol=-1), ValueError, "tol.*got -1"),
    "NaN tolerance": (lambda: CoordinateAscent(tol=float("nan")), ValueError, "got nan"),
    "NaN learning rate": (lambda: SVI(lr=float("nan")), ValueError, "lr.*got nan"),
    "infinite learning rate": (lambda: SVI(lr=float("inf")), ValueError, "lr.*got inf"),
    "no steps": (lambda: SVI(steps=0), ValueError, "steps.*got 0"),
    "no particles": (lambda: SVI(num_particles=0), ValueError, "num_particles.*got 0"),
    "empty batches": (lambda: SVI(batch_size=0), ValueError, "batch_size.*got 0"),
    "all rows held out": (lambda: SVI(validation_fraction=1.0), ValueError, "validation_fraction"),
    "no patience": (lambda: SVI(patience=0), ValueError, "patience.*got 0"),
    "negative weight decay": (lambda: SVI(weight_decay=-1.0), ValueError, "weight_decay.*got -1"),
    "no draws": (lambda: NUTS(num_samples=0), ValueError, "num_samples.*got 0"),
    "closed form of counts": (
        lambda: fit_engine(CoordinateAscent(), likelihood=StudentT()),
        TypeError,
        "no closed form for StudentT; use engine=SVI",
    ),
    "NUTS of a backbone": (
        lambda: fit_engine(NUTS(), backbone=MLP(3, [2])),
        TypeError,
        "not a backbone: freeze",
    ),
    "no such device": (
        lambda: fit(MultitaskModel(), data(), device="no device", progress=False),
        RuntimeError,
        "device",
    ),
    # models
    "families and a prior": (
        lambda: MultitaskModel(PooledTasks(), families={"a": Family()}),
        ValueError,
        "not both",
    ),
    "no families": (lambda: MultitaskModel(families={}), ValueError, "at least one Family"),
    "data of another family": (
        lambda: fit(MultitaskModel(families={"a": Family()}), {"b": data()}, progress=False),
        ValueError,
        r"\['a'\]; got \['b'\]",
    ),
    "one table for families": (
        lambda: fit(MultitaskModel(families={"a": Family()}), data(), progress=False),
        ValueError,
        "dict of TaskData",
    ),
    "family that is not there": (lambda: fitted()["b"], KeyError, "no family 'b'"),
    "backbone of the wrong width": (
        lambda: fit(MultitaskModel(backbone=WRONG_WIDTH), data(), progress=False),
        ValueError,
        r"MLP failed on inputs of shape \(2, 3\).*width equal 3",
    ),
    "backbone with three axes": (
        lambda: fit(MultitaskModel(backbone=nn.Unflatten(1, (3, 1))), data(), progress=False),
        ValueError,
        "Flatten or pool",
    ),
    "MLP without layers": (lambda: MLP(3, []), ValueError, "at least one layer"),
    "MLP with an unknown activation": (
        lambda: MLP(3, [2], activation="swish"),
        ValueError,
        "got 'swish'",
    ),
    # read-outs
    "weights before the fit": (lambda: MultitaskModel().weights, RuntimeError, "call fit"),
    "prediction before the fit": (
        lambda: MultitaskModel().predict(X, "a"),
        RuntimeError,
        "call fit",
    ),
    "one row without its axis": (lambda: fitted().predict(X[0], "a"), ValueError, r"x\[None, :\]"),
    "too many features": (
        lambda: fitted().predict(np.ones((2, 4)), "a"),
        ValueError,
        "3 features, as in the fit; got 4",
    ),
    "prediction for NaN": (
        lambda: fitted().predict(with_entry(X, np.nan), "a"),
        ValueError,
        "Impute or drop",
    ),
    "prediction for no rows": (lambda: fitted().predict(X[:0], "a"), ValueError, "no rows"),
    "labels of other length": (
        lambda: fitted().predict(X, ["a", "b"]),
        ValueError,
        "12 labels, one for each row of x; got 2",
    ),
    "coverage of 90": (
        lambda: fitted().predict(X, "a").interval(90),
        ValueError,
        "between 0 and 1; got 90",
    ),
    "quantile of one": (
        lambda: fitted().predict(X, "a").quantile(1.0),
        ValueError,
        "between 0 and 1; got 1",
    ),
    "contrast with a stranger": (lambda: fitted().contrast("a", "z"), KeyError, "'z' is not one"),
    "ranking at two inputs": (lambda: fitted().ranking(X[:2]), ValueError, "got 2 rows"),
    "evidence of other tasks": (
        lambda: fitted().log_evidence(data().select_tasks(["a"])),
        ValueError,
        "1 tasks where the model has 3",
    ),
    "adapt to other labels": (
        lambda: adapted_labels(),
        ValueError,
        "must be 0 or 1.*got 0.5",
    ),
    "adapt to other features": (
        lambda: fitted().adapt(data(x=X[:, :2])),
        ValueError,
        "3 features, as in the fit; got 2",
    ),
    "load from nowhere": (lambda: load("no/such/folder"), FileNotFoundError, "no/such/folder"),
}


def adapted_labels():
    model = MultitaskModel(likelihood=Bernoulli())
    fit(model, data(y=(Y > 0).astype(float)), progress=False)
    model.adapt(data(y=np.full(12, 0.5)))


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_said(case):
    call, error, message = CASES[case]
    with pytest.raises(error, match=message):
        call()


def test_there_are_enough_cases():
    assert len(CASES) >= 40


def test_memory_is_refused_before_it_is_allocated(monkeypatch):
    pages = {"SC_AVPHYS_PAGES": 1, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(os, "sysconf", lambda name: pages[name])
    wide = TaskData(np.ones((4, 40)), np.ones(4), [0, 0, 1, 1])
    with pytest.raises(MemoryError, match=r"2 tasks x 1 outputs x 40 x 40 .* Reduce the features"):
        fit(MultitaskModel(), wide, progress=False)


def test_gating_needs_features_of_new_tasks():
    model = MultitaskModel(TaskClustering(2, gating=True))
    part = data(task_features=np.array([[0.0], [1.0], [2.0]]))
    fit(model, part, progress=False)
    with (
        pytest.warns(UserWarning, match="outside the fit"),
        pytest.raises(ValueError, match=r"task_features of shape \(1, 1\)"),
    ):
        model.predict(X, "new")
    with (
        pytest.warns(UserWarning, match="outside the fit"),
        pytest.raises(ValueError, match=r"must have shape \(1, 1\).*got \(1, 3\)"),
    ):
        model.predict(X, "new", task_features=np.ones((1, 3)))
    with (
        pytest.warns(UserWarning, match="outside the fit"),
        pytest.raises(ValueError, match="no row for the new task 'new'"),
    ):
        model.predict(X, "new", task_features={"old": [1.0]})


# ---- what must work -----------------------------------------------------------------------


def assert_sensible(model, part, limit):
    """Finite predictions, no wilder than `limit` times the targets' size."""
    x = part.x.numpy()
    labels = [part.tasks[k] for k in part.task.tolist()]
    p = model.predict(x, labels)
    assert np.isfinite(p.mean).all()
    assert np.isfinite(p.std).all()
    assert (p.std > 0).all()
    assert np.isfinite(p.interval(0.9)).all()
    assert np.isfinite(p.log_prob(part.y.numpy())[~np.isnan(part.y.numpy())]).all()
    scale = np.nanmax(np.abs(part.y.numpy()))
    assert np.abs(p.mean).max() <= (limit * scale if scale else 1e-6)
    assert torch.isfinite(model.weights.mean).all()
    assert torch.isfinite(model.relations()).all()


ODD = {
    "one row": lambda: TaskData([[1.0, 2.0]], [3.0], ["a"]),
    "one row a task": lambda: TaskData(X[:3], Y[:3], ["a", "b", "c"]),
    "one task": lambda: TaskData(X, Y, ["a"] * 12),
    "one feature": lambda: TaskData(X[:, :1], Y, TASK),
    "constant columns": lambda: TaskData(np.hstack([X, np.ones((12, 2))]), Y, TASK),
    "columns of zeros": lambda: TaskData(np.hstack([X, np.zeros((12, 2))]), Y, TASK),
    "duplicate columns": lambda: TaskData(np.hstack([X, X]), Y, TASK),
    "all columns zero": lambda: TaskData(np.zeros((12, 2)), Y, TASK),
    "fewer rows than features": lambda: TaskData(
        np.random.default_rng(1).standard_normal((12, 30)), Y, TASK
    ),
    "huge features": lambda: TaskData(X * 1e8, Y, TASK),
    "tiny features": lambda: TaskData(X * 1e-8, Y, TASK),
    "huge targets": lambda: TaskData(X, Y * 1e8, TASK),
    "tiny targets": lambda: TaskData(X, Y * 1e-8, TASK),
    "features of very different size": lambda: TaskData(X * [1e-8, 1.0, 1e8], Y, TASK),
    "constant targets": lambda: TaskData(X, np.full(12, 3.0), TASK),
    "targets of zeros": lambda: TaskData(X, np.zeros(12), TASK),
    "missing targets": lambda: TaskData(X, np.where(np.arange(12) % 2, Y, np.nan), TASK),
    "a task without observed targets": lambda: TaskData(X, np.where(TASK == "b", np.nan, Y), TASK),
    "a task without rows": lambda: TaskData(X, Y, TASK, tasks=["a", "b", "c", "d"]),
    "rows of weight zero": lambda: TaskData(X, Y, TASK, weight=np.arange(12) % 2),
    "integers": lambda: TaskData((X * 3).astype(int), (Y * 3).astype(int), TASK),
}
SIMPLE = [
    *("independent", "pooled", "shared-full", "shared-isotropic", "sparse", "clusters-1"),
    *("hierarchy-diagonal", "hierarchy-auto", "covariance-diagonal", "weighting"),
]


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", SIMPLE)
def test_odd_data_give_sensible_predictions(name, odd):
    part = ODD[odd]()
    prior = TaskClustering(1) if name == "clusters-1" else EVERY_PRIOR[name]()
    model = MultitaskModel(prior)
    result = fit(model, part, progress=False)
    assert np.isfinite(result.bound)
    assert_sensible(model, part, limit=4.0)


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_units_do_not_change_predictions(scale):
    plain, scaled = MultitaskModel(), MultitaskModel()
    noisy = Y + 0.1 * np.random.default_rng(2).standard_normal(12)
    fit(plain, data(y=noisy), progress=False)
    fit(scaled, data(x=X * scale, y=noisy / scale), progress=False)
    expected = plain.predict(X, TASK)
    found = scaled.predict(X * scale, TASK)
    np.testing.assert_allclose(found.mean * scale, expected.mean, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.std * scale, expected.std, rtol=1e-3)


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("name", SIMPLE)
def test_one_class_only_is_predicted_with_doubt(name, value):
    prior = TaskClustering(1) if name == "clusters-1" else EVERY_PRIOR[name]()
    model = MultitaskModel(prior, Bernoulli())
    x = np.hstack([np.ones((12, 1)), X])
    fit(model, TaskData(x, np.full(12, value), TASK), progress=False)
    mean = model.predict(x, TASK).mean
    assert (np.abs(mean - value) < 0.5).all()
    assert ((mean > 0) & (mean < 1)).all()


def test_a_class_without_rows_keeps_some_probability():
    model = MultitaskModel(likelihood=Categorical(4))
    fit(model, data(y=[0, 1, 3] * 4), progress=False)
    mean = model.predict(X, TASK).mean
    np.testing.assert_allclose(mean.sum(1), 1.0)
    assert (mean > 0).all()


@pytest.mark.parametrize(
    ("likelihood", "y"),
    [
        (StudentT(), np.full(12, 3.0)),
        (StudentT(), np.zeros(12)),
        (Poisson(), np.zeros(12)),
        (Poisson(), np.full(12, 2000.0)),
        (Gaussian("task"), np.full(12, 3.0)),
    ],
)
def test_odd_targets_by_svi(likelihood, y):
    model = MultitaskModel(likelihood=likelihood)
    result = fit(model, data(y=y), engine=SVI(steps=40), progress=False)
    assert np.isfinite(result.bound)
    p = model.predict(X, TASK)
    assert np.isfinite(p.mean).all()
    assert (p.std >= 0).all()


def test_svi_takes_odd_data():
    for odd in ("one row", "columns of zeros", "a task without rows", "missing targets"):
        part = ODD[odd]()
        model = MultitaskModel(IndependentTasks())
        fit(model, part, engine=SVI(steps=20, batch_size=4), progress=False)
        assert torch.isfinite(model.weights.std).all()


def test_float32_data_are_taken():
    part = make_data()
    single = part.with_x(part.x.float())
    assert single.x.dtype == torch.float32
    model, other = MultitaskModel(), MultitaskModel()
    fit(model, single, progress=False)
    fit(other, part, progress=False)
    torch.testing.assert_close(model.weights.mean, other.weights.mean, rtol=1e-3, atol=1e-3)
