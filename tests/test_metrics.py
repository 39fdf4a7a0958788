import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from sklearn.metrics import r2_score, roc_auc_score

from bmm_multitask_learning import metrics

NAN = float("nan")

# Three tasks of 3, 2 and 4 rows whose figures are worked out by hand in the tests below.
TASK = ["a", "a", "a", "b", "b", "c", "c", "c", "c"]
Y = [1.0, 2.0, 3.0, 10.0, 14.0, -1.0, 1.0, 1.0, -1.0]
MEAN = [1.5, 2.0, 2.5, 11.0, 12.0, 0.0, 0.0, 1.0, -1.0]
# SSE: a .25+0+.25 = .5;  b 1+4 = 5;  c 1+1+0+0 = 2;  SST around the task: a 2;  b 8;  c 4.


# Explained variance


def test_global_explained_variance_by_hand():
    total = sum((y - sum(Y) / 9) ** 2 for y in Y)
    assert metrics.explained_variance(Y, MEAN) == pytest.approx(1 - 7.5 / total)
    assert metrics.explained_variance(Y, MEAN, TASK) == pytest.approx(r2_score(Y, MEAN))


def test_within_explained_variance_by_hand():
    assert metrics.explained_variance(Y, MEAN, TASK, "within") == pytest.approx(1 - 7.5 / 14)


def test_taskmean_explained_variance_by_hand():
    expected = ((1 - 0.5 / 2) + (1 - 5 / 8) + (1 - 2 / 4)) / 3
    assert metrics.explained_variance(Y, MEAN, TASK, "taskmean") == pytest.approx(expected)


def test_each_tasks_own_mean_explains_nothing_within():
    own_mean = [2.0] * 3 + [12.0] * 2 + [0.0] * 4
    assert metrics.explained_variance(Y, own_mean, TASK, "within") == pytest.approx(0, abs=1e-12)
    assert metrics.explained_variance(Y, own_mean, TASK, "taskmean") == pytest.approx(0, abs=1e-12)
    assert metrics.explained_variance(Y, own_mean) > 0.9


@pytest.mark.parametrize("definition", ["global", "within", "taskmean"])
def test_explained_variance_ignores_rows_without_a_target(definition):
    y, mean, task = [*Y, NAN, NAN], [*MEAN, 77.0, NAN], [*TASK, "a", "never observed"]
    expected = metrics.explained_variance(Y, MEAN, TASK, definition)
    assert metrics.explained_variance(y, mean, task, definition) == pytest.approx(expected)


def test_taskmean_leaves_out_tasks_that_do_not_vary():
    y, mean, task = [*Y, 0.1, 0.1, 0.1, 5.0], [*MEAN, 0.2, 0.2, 0.2, 6.0], [*TASK, *"dddf"]
    expected = metrics.explained_variance(Y, MEAN, TASK, "taskmean")
    assert metrics.explained_variance(y, mean, task, "taskmean") == pytest.approx(expected)


@pytest.mark.parametrize("definition", ["global", "within", "taskmean"])
def test_explained_variance_of_constant_or_missing_targets_is_nan(definition):
    task = ["a", "b", "b"]
    assert np.isnan(metrics.explained_variance([3.0] * 3, [1.0, 2.0, 3.0], task, definition))
    assert np.isnan(metrics.explained_variance([NAN] * 3, [1.0, 2.0, 3.0], task, definition))


@pytest.mark.parametrize("definition", ["global", "within", "taskmean"])
def test_explained_variance_averages_outputs(definition):
    other = [*MEAN[::-1]]
    y = np.column_stack([Y, Y])
    y[4, 1] = NAN
    columns = [
        metrics.explained_variance(y[:, o], mean, TASK, definition)
        for o, mean in enumerate((MEAN, other))
    ]
    both = metrics.explained_variance(y, np.column_stack([MEAN, other]), TASK, definition)
    assert both == pytest.approx(np.mean(columns))
    assert columns[0] != pytest.approx(columns[1])


def test_explained_variance_is_the_same_for_tensors():
    y, mean = torch.tensor(Y, requires_grad=True), torch.tensor(MEAN, dtype=torch.bfloat16)
    task = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2])
    figure = metrics.explained_variance(y, mean, task, "within")
    assert isinstance(figure, float)
    assert figure == pytest.approx(1 - 7.5 / 14)


# Error, density, continuous ranked probability score


def test_rmse_by_hand():
    assert metrics.rmse([1.0, 2.0, NAN], [2.0, 4.0, 0.0]) == pytest.approx(np.sqrt(2.5))


def test_rmse_averages_outputs():
    y, mean = [[0.0, 0.0], [0.0, NAN]], [[1.0, 5.0], [1.0, 9.0]]
    assert metrics.rmse(y, mean) == pytest.approx((1 + 5) / 2)


def test_mean_log_predictive_density_is_an_average_of_observed_rows():
    log_prob = norm(1.0, 2.0).logpdf([0.0, 3.0])
    figure = metrics.mean_log_predictive_density([*log_prob, NAN])
    by_hand = np.mean([-0.5 * ((y - 1) / 2) ** 2 - np.log(2 * np.sqrt(2 * np.pi)) for y in (0, 3)])
    assert figure == pytest.approx(by_hand)
    assert metrics.mean_log_predictive_density([-np.inf, 0.0]) == -np.inf
    assert np.isnan(metrics.mean_log_predictive_density([NAN]))


def quadrature_crps(y, mean, std):
    """∫ (F(t) − [t ≥ y])² dt."""
    cdf = norm(mean, std).cdf
    below = quad(lambda t: cdf(t) ** 2, mean - 12 * std, y)[0]
    return below + quad(lambda t: (1 - cdf(t)) ** 2, y, mean + 12 * std)[0]


def test_crps_equals_its_integral():
    y, mean, std = [0.3, -2.0, 5.0, 1.0], [0.0, 1.0, 4.0, 1.0], [1.0, 0.7, 3.0, 0.2]
    expected = np.mean([quadrature_crps(*row) for row in zip(y, mean, std, strict=True)])
    assert metrics.crps(y, mean, std) == pytest.approx(expected, rel=1e-7)


def test_crps_of_a_point_is_its_absolute_error():
    assert metrics.crps([1.0, 5.0, NAN], [3.0, 4.0, 0.0], [0.0, 0.0, 1.0]) == pytest.approx(1.5)


def test_crps_is_smallest_for_the_true_spread(rng):
    y = rng.normal(0, 2, 4000)
    scores = [metrics.crps(y, 0 * y, 0 * y + std) for std in (1.0, 2.0, 4.0)]
    assert scores[1] < min(scores[0], scores[2])


def test_crps_from_samples_by_hand():
    # Over {0, 1, 5}: E|X − 2| = (2 + 1 + 3)/3; half the mean distance of pairs = (1 + 5 + 4)/3/2.
    assert metrics.crps_samples([2.0], [[5.0], [0.0], [1.0]]) == pytest.approx(2 - 10 / 6)


def test_crps_from_samples_is_unbiased(rng):
    y, mean, std = np.array([0.5, NAN, -1.0]), np.array([0.0, 0.0, 1.0]), np.array([1.0, 1.0, 2.0])
    figures = [metrics.crps_samples(y, rng.normal(mean, std, size=(2, 3))) for _ in range(20000)]
    # 4 standard errors: a false alarm in 16,000 seeds
    tolerance = 4 * np.std(figures) / np.sqrt(len(figures))
    assert np.mean(figures) == pytest.approx(metrics.crps(y, mean, std), abs=tolerance)


def test_crps_from_samples_takes_several_outputs(rng):
    y, draws = rng.normal(size=(5, 2)), rng.normal(size=(7, 5, 2))
    y[3, 1] = NAN
    columns = [metrics.crps_samples(y[:, o], draws[:, :, o]) for o in range(2)]
    expected = (5 * columns[0] + 4 * columns[1]) / 9
    assert metrics.crps_samples(y, draws) == pytest.approx(expected)


# Intervals


def test_interval_coverage_counts_ends_in_and_missing_targets_out():
    y = [0.0, 1.0, 2.0, NAN, -3.0]
    assert metrics.interval_coverage(y, [0.0] * 5, [1.0] * 5) == 0.5


def test_normal_intervals_cover_what_they_say(rng):
    y = rng.standard_normal(4000)
    half = norm.ppf(0.95) + 0 * y
    # 4 standard errors of a share of .9 among 4000
    assert metrics.interval_coverage(y, -half, half) == pytest.approx(0.9, abs=0.019)


def test_interval_width():
    assert metrics.interval_width([[0.0, NAN], [1.0, 2.0]], [[2.0, 9.0], [1.0, 6.0]]) == 2.0


# Probabilities


def test_binary_brier_by_hand():
    assert metrics.brier([1, 0, NAN, 1], [0.9, 0.2, 0.4, 0.5]) == pytest.approx(0.30 / 3)


def test_brier_of_one_class_only():
    assert metrics.brier([0, 0], [0.5, 0.1]) == pytest.approx(0.26 / 2)


def test_brier_of_several_binary_outputs_pools_them():
    assert metrics.brier([[1, 0], [NAN, 1]], [[0.9, 0.2], [0.4, 0.5]]) == pytest.approx(0.1)


def test_brier_of_classes_by_hand():
    p = [[0.2, 0.3, 0.5], [1.0, 0.0, 0.0], [0.1, 0.1, 0.8]]
    assert metrics.brier([2, 1, NAN], p) == pytest.approx((0.04 + 0.09 + 0.25 + 1 + 1) / 2)


def test_brier_of_classes_that_did_not_occur():
    p = np.float32([[0.2, 0.3, 0.5], [0.7, 0.1, 0.2]])
    assert metrics.brier([0, 0], p) == pytest.approx((0.64 + 0.34 + 0.09 + 0.05) / 2, rel=1e-6)


def test_calibration_error_by_hand():
    # Bins of width 1/3 of the larger probability: (1/3, 2/3] holds .6 (wrong) and .55 (right);
    # (2/3, 1] holds .9 (right), .8 (wrong) and 1 (right).
    y, p = [0, 0, 1, 1, 1, NAN], [0.6, 0.45, 0.9, 0.2, 1.0, 0.5]
    expected = (abs(1 - 1.15) + abs(2 - 2.7)) / 5
    assert metrics.expected_calibration_error(y, p, num_bins=3) == pytest.approx(expected)


def test_calibration_error_of_two_classes_is_that_of_their_probability(rng):
    p = rng.uniform(size=200)
    y = rng.uniform(size=200) < 0.5
    binary = metrics.expected_calibration_error(y, p)
    assert metrics.expected_calibration_error(y, np.column_stack([1 - p, p])) == binary


@pytest.mark.parametrize(("rows", "expected"), [(400, 0.046), (6400, 0.012)])
def test_calibration_error_of_perfect_probabilities(rng, rows, expected):
    p = rng.uniform(size=(40, rows))
    figures = [
        metrics.expected_calibration_error(rng.uniform(size=rows) < each, each) for each in p
    ]
    # the documented figures: which distribution of p they had is not known, so 15 %
    assert np.mean(figures) == pytest.approx(expected, rel=0.15)


def test_calibration_error_finds_overconfidence(rng):
    y = rng.uniform(size=2000) < 0.7
    # 4 standard errors of a share of .7 among 2000
    assert metrics.expected_calibration_error(y, [0.95] * 2000) == pytest.approx(0.25, abs=0.042)


def test_auc_is_scikit_learns(rng):
    y, score = rng.uniform(size=50) < 0.4, rng.normal(size=50)
    assert metrics.auc(y, score) == pytest.approx(roc_auc_score(y, score))


def test_auc_over_tasks_skips_tasks_of_one_class_and_counts_them():
    y = [0, 1, 0, 1, 1, 1, NAN]
    score = [0.1, 0.9, 0.8, 0.2, 0.5, 0.5, 0.0]
    task = ["x", "x", "y", "y", "z", "z", "z"]
    assert metrics.auc(y, score, task) == 0.5
    scores = metrics.by_task(metrics.auc, task, y, score)
    assert scores.tasks == ("x", "y", "z")
    np.testing.assert_array_equal(scores.values, [1.0, 0.0, NAN])
    assert scores.num_skipped == 1
    assert scores.mean == 0.5


@pytest.mark.parametrize(
    "metric", [metrics.auc, metrics.brier, metrics.expected_calibration_error, metrics.rmse]
)
def test_figure_of_nothing_observed_is_nan(metric):
    assert np.isnan(metric([NAN, NAN], [0.5, 0.5]))


# Task by task


def test_by_task_gives_each_tasks_figure_in_the_order_of_labels(rng):
    order = rng.permutation(9)
    scores = metrics.by_task(
        metrics.rmse, np.array(TASK)[order], np.array(Y)[order], torch.tensor(MEAN)[order]
    )
    assert scores.tasks == ("a", "b", "c")
    np.testing.assert_allclose(scores.values**2, [0.5 / 3, 5 / 2, 2 / 4])
    np.testing.assert_array_equal(scores.rows, [3, 2, 4])
    assert scores.mean == pytest.approx(np.mean(np.sqrt([0.5 / 3, 5 / 2, 2 / 4])))


def test_by_task_hands_options_and_tables_on():
    y, p = [1, 2, 0], [[0.0, 1.0, 0.0], [0.0, 0.4, 0.6], [0.8, 0.1, 0.1]]
    scores = metrics.by_task(metrics.expected_calibration_error, [7, 5, 7], y, p, num_bins=1)
    assert scores.tasks == (5, 7)
    np.testing.assert_allclose(scores.values, [0.4, 0.1])


def test_mean_over_tasks_that_are_all_skipped_is_nan():
    scores = metrics.by_task(metrics.auc, ["a", "b"], [0, 1], [0.5, 0.5])
    assert np.isnan(scores.mean)
    assert scores.num_skipped == 2


# Bad input

BAD = {
    "shape of mean": (
        lambda: metrics.rmse([1.0, 2.0], [1.0]),
        r"shaped like .*\(2,\); got \(1,\)",
    ),
    "NaN prediction": (
        lambda: metrics.rmse([1.0, 2.0], [1.0, NAN]),
        "mean must be finite.*1 of 2",
    ),
    "definition": (
        lambda: metrics.explained_variance(Y, MEAN, TASK, "median"),
        "'within' or 'taskmean', got 'median'",
    ),
    "no task": (
        lambda: metrics.explained_variance(Y, MEAN, definition="within"),
        "needs the task",
    ),
    "rows of task": (
        lambda: metrics.explained_variance(Y, MEAN, TASK[:4], "within"),
        r"task must be \(9,\).*shape \(4,\)",
    ),
    "negative std": (lambda: metrics.crps([1.0], [1.0], [-0.5]), "std must be >= 0.*-0.5"),
    "one draw": (lambda: metrics.crps_samples([1.0], [[1.0]]), r"at least 2 draws.*\(1, 1\)"),
    "draws transposed": (
        lambda: metrics.crps_samples([1.0, 2.0], [[1.0] * 3] * 2),
        r"\(S, 2\); got shape \(2, 3\)",
    ),
    "infinite draw": (
        lambda: metrics.crps_samples([1.0], [[1.0], [np.inf]]),
        "samples must be finite",
    ),
    "ends swapped": (lambda: metrics.interval_coverage([1.0], [2.0], [1.0]), "Swapped"),
    "logits": (lambda: metrics.brier([1, 0], [2.3, -1.0]), "Are these logits"),
    "sums": (lambda: metrics.brier([1], [[0.5, 0.1, 0.1]]), "sum to 1.*0.7 to 0.7"),
    "labels": (lambda: metrics.auc([1, 2], [0.5, 0.5]), r"0\.\.1; got 2"),
    "class out of range": (lambda: metrics.brier([3], [[0.5, 0.25, 0.25]]), r"0\.\.2; got 3"),
    "shape of probability": (
        lambda: metrics.brier([1, 0, 1], [[0.5, 0.5]]),
        r"\(3, C\).*\(1, 2\)",
    ),
    "bins": (lambda: metrics.expected_calibration_error([1], [1.0], num_bins=0), "num_bins"),
    "by_task rows": (
        lambda: metrics.by_task(metrics.rmse, ["a", "b"], [1.0, 2.0], [1.0]),
        r"2 as task has; array 1 after task has shape \(1,\)",
    ),
    "task table": (
        lambda: metrics.by_task(metrics.rmse, [["a"]], [1.0], [1.0]),
        "one label a row",
    ),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Ordered classes


def test_quadratic_weighted_kappa_is_squared_error_against_chance():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 5, 60)
    predicted = np.clip(y + rng.integers(-1, 2, 60), 0, 6)
    error = np.mean((y - predicted) ** 2.0)
    chance = np.mean((y[:, None] - predicted) ** 2.0)
    assert metrics.quadratic_weighted_kappa(y, predicted) == pytest.approx(1 - error / chance)
    shifted = metrics.quadratic_weighted_kappa(y + 2, predicted + 2)
    assert shifted == pytest.approx(1 - error / chance)


def test_quadratic_weighted_kappa_ignores_rows_without_a_target():
    y, predicted = [0.0, 2.0, 1.0, NAN], torch.tensor([0, 1, 1, 3])
    expected = metrics.quadratic_weighted_kappa(y[:3], predicted[:3])
    assert metrics.quadratic_weighted_kappa(y, predicted) == expected < 1
    assert np.isnan(metrics.quadratic_weighted_kappa([2.0, 2.0], [2.0, 2.0]))
    assert np.isnan(metrics.quadratic_weighted_kappa([NAN], [1.0]))


def test_quadratic_weighted_kappa_takes_whole_numbers():
    with pytest.raises(ValueError, match=r"whole numbers in 0\.\.2; got 0.5"):
        metrics.quadratic_weighted_kappa([0, 1], [0.5, 2])
    with pytest.raises(ValueError, match="got -1"):
        metrics.quadratic_weighted_kappa([-1, 1], [1, 1])
