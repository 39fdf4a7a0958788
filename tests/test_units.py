"""Standardised units, and the user's."""

from __future__ import annotations

import numpy as np

from bmm_multitask_learning import TaskData
from bmm_multitask_learning.units import Units, moments


def test_moments_leave_out_missing_values_and_zero_weights():
    value = np.array([[1.0, np.nan], [3.0, 5.0], [1e9, 7.0], [np.nan, 7.0]])
    mean, spread = moments(value, np.array([1.0, 1, 0, 2]), centred=True)
    np.testing.assert_allclose(mean, [[2, 19 / 3]])
    np.testing.assert_allclose(spread, [[1, np.sqrt(8) / 3]])
    mean, spread = moments(value[:2], None, centred=False)
    np.testing.assert_allclose(mean, [[0, 0]])
    np.testing.assert_allclose(spread, [[np.sqrt(5), 5]])


def test_moments_bear_extreme_scales_and_see_constants():
    value = np.column_stack([np.linspace(-1, 1, 9) * 1e200, np.full(9, 0.1), np.zeros(9)])
    mean, spread = moments(value, None, centred=True)
    np.testing.assert_allclose(spread[0, 0], 1e200 * np.linspace(-1, 1, 9).std())
    np.testing.assert_array_equal(spread[0, 1:], 0)
    np.testing.assert_allclose(mean, [[0, 0.1, 0]], atol=1e185)


def test_moments_by_group_lend_to_an_empty_one():
    value = np.array([[1.0], [3.0], [10.0], [30.0]])
    mean, spread = moments(value, None, centred=True, groups=(np.array([0, 0, 2, 2]), 3))
    np.testing.assert_allclose(mean[:, 0], [2, 11, 20])
    np.testing.assert_allclose(spread[:, 0], [1, np.sqrt(50.5), 10])


def test_weights_undo_the_units_of_every_output():
    rng = np.random.default_rng(0)
    units = Units(
        centre=np.array([3.0, -2.0, 7.0]),
        gain=np.array([0.5, 4.0, 0.0]),
        target_centre=np.array([[10.0, 20.0]]),
        target_scale=np.array([[2.0, 0.1]]),
    )
    w = rng.normal(size=(5, 4, 2, 4))  # draws, tasks, outputs, intercept and features
    slope, intercept = units.weights(w, intercept=True)
    x = rng.normal(size=3)
    z = np.append(1.0, units.features(x))
    np.testing.assert_allclose(slope @ x + intercept, [10, 20] + np.array([2, 0.1]) * (w @ z))
    y = np.array([[12.0, 20.2], [8.0, 19.9]])
    np.testing.assert_allclose(units.targets(y, np.array([0, 1])), [[1, 2], [-1, -1]])


def test_units_of_a_task_are_those_of_its_column():
    units = Units(np.zeros(1), np.ones(1), np.array([[1.0], [5.0]]), np.array([[2.0], [10.0]]))
    t = units.targets(np.array([3.0, 25.0, -1.0]), np.array([0, 1, 0]))
    np.testing.assert_allclose(t, [1, 2, -1])


def test_units_of_rows_standardise_them_after_a_constant():
    rng = np.random.default_rng(1)
    x = np.column_stack([rng.normal(7.0, 100.0, 30), np.full(30, 0.1), rng.normal(-3.0, 0.01, 30)])
    y = rng.normal(50.0, 8.0, (30, 2))
    y[4, 1] = np.nan
    task = np.array(["b", "a", "c"])[rng.integers(3, size=30)]
    weight = rng.uniform(0.5, 2.0, 30)
    data = TaskData(x, y, task, task_features={"a": [1.0], "b": [2.0], "c": [3.0]}, weight=weight)
    rows = Units.of(data).standardise(data)
    z, t = rows.x.numpy(), rows.y.numpy()
    np.testing.assert_array_equal(z[:, [0, 2]], [[1.0, 0.0]] * 30)
    for value in (z[:, 1], z[:, 3], t[:, 0], t[:, 1]):
        seen = ~np.isnan(value)
        mean = np.average(value[seen], weights=weight[seen])
        spread = np.average(np.square(value[seen]), weights=weight[seen])
        np.testing.assert_allclose([mean, spread], [0, 1], atol=1e-10)
    assert np.isnan(t[4, 1])
    assert rows.tasks == data.tasks
    np.testing.assert_array_equal(rows.task, data.task)
    np.testing.assert_array_equal(rows.task_features, data.task_features)
    np.testing.assert_array_equal(rows.weight, weight)


def test_units_may_leave_targets_or_features_as_they_are():
    data = TaskData([[1.0], [4.0]], [5.0, 9.0], ["a", "b"])
    kept = Units.of(data, targets=False)
    np.testing.assert_array_equal(kept.targets(data.y.numpy(), data.task.numpy()), [5, 9])
    kept = Units.of(data, features=False)
    np.testing.assert_array_equal(kept.features(data.x.numpy()), [[1], [4]])
