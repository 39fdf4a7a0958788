"""Several labels a row, some of them missing: every read-out has an axis for them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bmm_multitask_learning import (
    SVI,
    Bernoulli,
    IndependentTasks,
    MultitaskModel,
    SharedGaussian,
    TaskData,
    compare,
    fit,
    metrics,
)

NUM_TASKS, ROWS, NUM_FEATURES, NUM_LABELS = 4, 60, 5, 3


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    centre = 1.5 * rng.standard_normal((1, NUM_LABELS, NUM_FEATURES))
    weights = centre + 0.3 * rng.standard_normal((NUM_TASKS, NUM_LABELS, NUM_FEATURES))
    task = np.repeat([f"task {k}" for k in range(NUM_TASKS)], ROWS)
    x = rng.standard_normal((len(task), NUM_FEATURES))
    f = np.einsum("nd,nod->no", x, weights[np.repeat(range(NUM_TASKS), ROWS)])
    y = (rng.random(f.shape) < 1 / (1 + np.exp(-f))).astype(float)
    y[rng.random(y.shape) < 0.3] = np.nan
    y[0] = np.nan
    y[-ROWS:, 2] = np.nan  # the last task has no row with the last label
    return TaskData(x, y, task)


@pytest.fixture(scope="module")
def model(data):
    model = MultitaskModel(likelihood=Bernoulli())
    fit(model, data, progress=False)
    return model


def predicted(model, data):
    return model.predict(data.x.numpy(), [data.tasks[k] for k in data.task])


def test_predictions_have_an_axis_for_labels(model, data):
    p, y = predicted(model, data), data.y.numpy()
    assert p.mean.shape == p.std.shape == p.latent_std.shape == (240, 3)
    lower, upper = np.moveaxis(p.interval(0.8), -1, 0)
    assert lower.shape == (240, 3)
    middle = p.quantile(0.5)
    assert ((lower < middle) & (middle < upper)).all()
    assert p.sample(2).shape == (2, 240, 3)
    log_prob = p.log_prob(y)
    np.testing.assert_allclose(
        log_prob, np.log(np.where(y == 1, p.mean, np.where(y == 0, 1 - p.mean, np.nan)))
    )


def test_a_label_that_a_task_never_shows_is_predicted_from_other_tasks(model, data):
    rows = data.task == NUM_TASKS - 1
    p = model.predict(data.x[rows], data.tasks[-1])
    others = model.predict(data.x[rows], data.tasks[0])
    shown = p.latent_std[:, :2].mean(0) / others.latent_std[:, :2].mean(0)
    unseen = p.latent_std[:, 2].mean() / others.latent_std[:, 2].mean()
    assert unseen > 1.1 * shown.max()
    assert torch.corrcoef(torch.stack([p.latent_mean[:, 2], others.latent_mean[:, 2]]))[0, 1] > 0.7


def test_metrics_leave_missing_labels_out(model, data):
    mean, y = predicted(model, data).mean, data.y.numpy()
    seen = ~np.isnan(y)
    for metric in (metrics.brier, metrics.auc, metrics.expected_calibration_error):
        assert metric(y, mean) == pytest.approx(metric(y[seen], mean[seen]))
    assert metrics.auc(y, mean) > 0.8
    by_task = metrics.by_task(metrics.brier, data.task, y, mean)
    assert by_task.values.shape == (4,)
    assert np.isfinite(by_task.values).all()


def test_missing_labels_are_as_if_the_labels_were_apart(data):
    """A diagonal prior and one label at a time: the same posterior as of all of them together."""
    together = MultitaskModel(IndependentTasks(), Bernoulli())
    fit(together, data, progress=False)
    for o in range(NUM_LABELS):
        seen = ~data.y[:, o].isnan()
        part = TaskData(
            data.x[seen],
            data.y[seen, o],
            [data.tasks[k] for k in data.task[seen]],
            tasks=data.tasks,
        )
        alone = MultitaskModel(IndependentTasks(), Bernoulli())
        fit(alone, part, progress=False)
        torch.testing.assert_close(
            together.weights.mean[:, o], alone.weights.mean, atol=0.02, rtol=0.02
        )


def test_a_new_task_learns_from_rows_with_some_labels(model, data):
    part = data.rows(data.task == 1)
    y = part.y.clone()
    y[:, 0] = torch.nan
    adapted = model.adapt(TaskData(part.x, y, ["new"] * len(y)))
    p = adapted.predict(data.x[:50], "new")
    assert p.mean.shape == (50, 3)
    ratio = p.latent_std.mean(0) / model.predict(data.x[:50], "task 1").latent_std.mean(0)
    assert ratio[0] > 1.1 * ratio[1:].max()


def test_priors_are_compared_on_observed_labels(data):
    priors = {"shared": SharedGaussian(), "independent": IndependentTasks()}
    found = compare(data, priors, likelihood=Bernoulli(), num_folds=2, progress=False)
    assert [each.name for each in found.contenders] == ["shared", "independent"]
    assert 0.1 < found.contenders[0].error < 0.35
    assert found.num_rows == int((~data.y.isnan()).any(1).sum())


def test_svi_takes_missing_labels(data):
    model = MultitaskModel(likelihood=Bernoulli())
    engine = SVI(steps=30, batch_size=32, validation_fraction=0.2)
    result = fit(model, data, engine=engine, progress=False)
    assert np.isfinite(result.bound)
    assert metrics.auc(data.y.numpy(), predicted(model, data).mean) > 0.8
