"""What the pictures hold: arrows, bars, labels, limits, and the figures in their legends."""

import importlib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.quiver import Quiver
from scipy.stats import norm

import bmm_multitask_learning
from bmm_multitask_learning import metrics, plots
from bmm_multitask_learning.trees.task_tree import TaskTree, caterpillar

SIZES = (1, 65, 1000)


@pytest.fixture(autouse=True)
def closed_figures() -> Iterator[None]:
    backend = mpl.get_backend()
    plt.switch_backend("Agg")
    plt.close("all")  # what other tests left open is not this one's
    yield
    plt.close("all")
    plt.switch_backend(backend)


@pytest.fixture
def ax() -> Axes:
    return Figure(figsize=(7, 5), layout="constrained").subplots()


def legend_texts(ax: Axes) -> list[str]:
    legend = ax.get_legend()
    return [] if legend is None else [text.get_text() for text in legend.get_texts()]


def tick_texts(labels: list[mpl.text.Text]) -> list[str]:
    return [label.get_text() for label in labels]


def arrows(ax: Axes) -> Quiver:
    return next(part for part in ax.collections if isinstance(part, Quiver))


def lines_of(ax: Axes) -> list[mpl.collections.LineCollection]:
    return [part for part in ax.collections if isinstance(part, mpl.collections.LineCollection)]


def dots_of(ax: Axes) -> list[mpl.collections.PathCollection]:
    return [part for part in ax.collections if isinstance(part, mpl.collections.PathCollection)]


def school_like(num_tasks: int) -> dict[str, np.ndarray]:
    """Weights of tasks in up to three clusters, and estimates of them from few rows."""
    rng = np.random.default_rng(num_tasks)
    clusters = min(3, num_tasks)
    assignment = np.arange(num_tasks) % clusters
    centres = np.array([[0.0, 0.3], [0.9, 0.6], [-0.7, 0.9]])[:clusters]
    fitted = centres[assignment] + 0.1 * rng.normal(size=(num_tasks, 2))
    own = fitted + 0.3 * rng.normal(size=(num_tasks, 2))
    sharp = np.exp(-4 * ((own[:, None] - centres) ** 2).sum(-1))
    return {
        "own": own,
        "fitted": fitted,
        "centres": centres,
        "assignment": assignment,
        "responsibilities": sharp / sharp.sum(1, keepdims=True),
    }


def drawings(num_tasks: int) -> dict[str, Callable[..., Axes]]:
    """Every function with its arrays bound, at one size."""
    made = school_like(num_tasks)
    names = [f"school {index}" for index in range(num_tasks)]
    share = made["responsibilities"]
    mean, half = made["fitted"][:, 0], 0.2 + 0.1 * share[:, 0]
    ends = (mean, mean - half, mean + half)
    grouped = {"centres": made["centres"], "assignment": made["assignment"]}
    return {
        "shrinkage": partial(plots.shrinkage, made["own"], made["fitted"], tasks=names, **grouped),
        "relations": partial(plots.relations, share @ share.T, tasks=names),
        "mixing": partial(plots.mixing, share @ share.T / num_tasks, tasks=names, least=0.02),
        "responsibilities": partial(plots.responsibilities, share, tasks=names),
        "tree": partial(plots.tree, caterpillar(num_tasks, torch.ones(())), tasks=names),
        "relevance": partial(plots.relevance, share[:, 0], groups=names),
        "patterns": partial(plots.patterns, share.T - 0.3, tasks=names),
        "forest": partial(plots.forest, *ends, tasks=names, reference=0.0),
        "predictions": partial(plots.predictions, made["own"][:, 0], *ends, task=names),
        "coverage": partial(
            plots.coverage, made["own"][:, 0], lambda level: norm.interval(level, mean, 0.3)
        ),
        "reliability": partial(plots.reliability, made["assignment"] > 0, share[:, 0]),
        "bound": partial(plots.bound, -np.exp(-0.5 * np.arange(num_tasks)) - 7.0),
    }


@pytest.mark.parametrize("num_tasks", SIZES)
@pytest.mark.parametrize("name", list(drawings(2)))
def test_every_picture_draws_at_every_size_within_its_figure(
    name: str, num_tasks: int, ax: Axes
) -> None:
    before = dict(mpl.rcParams)
    assert drawings(num_tasks)[name](ax=ax) is ax
    figure = ax.figure
    figure.draw_without_rendering()
    assert figure.get_tightbbox().width <= figure.get_size_inches()[0] + 0.02
    assert figure.get_tightbbox().height <= figure.get_size_inches()[1] + 0.02
    assert len(ax.get_xticklabels()) <= 70
    assert len(ax.get_yticklabels()) <= 70
    assert ax.get_xlabel() or tick_texts(ax.get_xticklabels())
    assert plt.get_fignums() == []
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("name", list(drawings(2)))
def test_without_axis_a_new_figure_is_made(name: str) -> None:
    ax = drawings(2)[name]()
    assert ax.figure.number in plt.get_fignums()


@pytest.mark.parametrize("name", list(drawings(2)))
def test_tick_labels_do_not_overlap(name: str, ax: Axes) -> None:
    drawings(65)[name](ax=ax)
    ax.figure.draw_without_rendering()
    for labels in (ax.get_xticklabels(), ax.get_yticklabels()):
        boxes = [label.get_window_extent() for label in labels if label.get_text()]
        for first, second in pairwise(boxes):
            overlap = min(first.x1, second.x1) - max(first.x0, second.x0)
            beside = min(first.y1, second.y1) - max(first.y0, second.y0)
            # A pixel of shared leading is no overlap of letters.
            assert min(overlap, beside) <= 1.5


def test_tensors_and_arrays_draw_the_same(ax: Axes) -> None:
    made = school_like(7)
    plots.shrinkage(made["own"], made["fitted"], assignment=made["assignment"], ax=ax)
    other = Figure().subplots()
    leaf = torch.tensor(made["own"], requires_grad=True)
    plots.shrinkage(
        leaf, torch.tensor(made["fitted"]), assignment=torch.tensor(made["assignment"]), ax=other
    )
    np.testing.assert_array_equal(arrows(ax).get_offsets(), arrows(other).get_offsets())


def test_dark_style_turns_ink_light() -> None:
    with mpl.rc_context({"axes.facecolor": "black", "text.color": "white"}):
        dark = plots.bound([-3.0, -1.0], ax=Figure().subplots())
        light = Figure().subplots()
    light.set_facecolor("white")
    plots.bound([-3.0, -1.0], ax=light)
    brightness = [
        np.mean(mpl.colors.to_rgb(ax.get_xticklabels()[0].get_color())) for ax in (dark, light)
    ]
    assert brightness[0] > 0.7
    assert brightness[1] < 0.3


# shrinkage


def test_shrinkage_draws_an_arrow_for_each_task_from_own_to_fitted(ax: Axes) -> None:
    own = np.array([[0.0, 0.0], [1.0, 2.0], [3.0, 1.0]])
    fitted = np.array([[0.5, 0.4], [1.2, 1.5], [2.0, 1.0]])
    plots.shrinkage(own, fitted, names=("intercept [points]", "slope"), ax=ax)
    quiver = arrows(ax)
    np.testing.assert_array_equal(quiver.get_offsets(), own)
    np.testing.assert_allclose(np.column_stack([quiver.U, quiver.V]), fitted - own)
    np.testing.assert_array_equal(dots_of(ax)[1].get_offsets(), fitted)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("intercept [points]", "slope")
    assert legend_texts(ax) == ["own rows alone", "posterior mean"]


def test_shrinkage_colours_and_counts_clusters_and_marks_their_centres(ax: Axes) -> None:
    made = school_like(8)
    plots.shrinkage(
        made["own"], made["fitted"], centres=made["centres"], assignment=made["assignment"], ax=ax
    )
    texts = legend_texts(ax)
    assert texts[2:] == [
        "cluster centres",
        "cluster 1: 3 tasks",
        "cluster 2: 3 tasks",
        "cluster 3: 2 tasks",
    ]
    centres = dots_of(ax)[-1]
    np.testing.assert_array_equal(centres.get_offsets(), made["centres"])
    of_tasks = dots_of(ax)[1].get_facecolors()
    of_centres = centres.get_facecolors()
    np.testing.assert_allclose(of_tasks, of_centres[made["assignment"]])
    assert len(np.unique(of_centres, axis=0)) == 3


def test_shrinkage_limits_ignore_wild_own_estimates_and_say_so(ax: Axes) -> None:
    made = school_like(65)
    own = made["own"].copy()
    own[4], own[9], own[11] = (900.0, -400.0), (-80.0, 3000.0), np.nan
    plots.shrinkage(own, made["fitted"], ax=ax)
    assert ax.get_xlim()[1] < 5
    assert ax.get_ylim()[1] < 5
    left, right = ax.get_xlim()
    assert left < made["fitted"][:, 0].min() < made["fitted"][:, 0].max() < right
    outside = np.sum(
        (own[:, 0] < left) | (own[:, 0] > right) | (own[:, 1] < ax.get_ylim()[0])
        | (own[:, 1] > ax.get_ylim()[1])
    )  # fmt: skip
    assert ax.get_xlabel() == (
        f"first weight\n({outside} own estimates outside the picture, "
        "1 task without an own estimate)"
    )
    assert len(arrows(ax).get_offsets()) == 64
    assert len(dots_of(ax)[1].get_offsets()) == 65


def test_shrinkage_keeps_fitted_weights_when_no_own_estimate_exists(ax: Axes) -> None:
    plots.shrinkage(np.full((3, 2), np.nan), np.arange(6.0).reshape(3, 2), ax=ax)
    assert ax.get_xlim()[0] < 0 < 4 < ax.get_xlim()[1]


@pytest.mark.parametrize("num_tasks", [65, 1000])
def test_shrinkage_names_a_dozen_tasks_at_most_and_none_over_another(
    num_tasks: int, ax: Axes
) -> None:
    drawings(num_tasks)["shrinkage"](ax=ax)
    boxes = [text.get_window_extent() for text in ax.texts]
    assert 3 <= len(boxes) <= 12
    assert not any(
        box.overlaps(other) for place, box in enumerate(boxes) for other in boxes[:place]
    )


# relations and responsibilities


def test_relations_are_ordered_by_cluster_with_a_frame_around_each(ax: Axes) -> None:
    clusters = np.array([1, 0, 1, 2, 0])
    matrix = (clusters[:, None] == clusters).astype(float)
    plots.relations(matrix, tasks=list("abcde"), clusters=clusters, label="same", ax=ax)
    shown = ax.images[0].get_array()
    expected = np.zeros((5, 5))
    for start, stop in ((0, 2), (2, 4), (4, 5)):
        expected[start:stop, start:stop] = 1
    np.testing.assert_array_equal(shown, expected)
    rows = tick_texts(ax.get_yticklabels())
    assert [set(rows[:2]), set(rows[2:4]), set(rows[4:])] == [{"b", "e"}, {"a", "c"}, {"d"}]
    assert rows == tick_texts(ax.get_xticklabels())
    frames = [(patch.get_x(), patch.get_width()) for patch in ax.patches]
    assert frames == [(-0.5, 2), (1.5, 2), (3.5, 1)]
    assert [text.get_text() for text in ax.texts] == [
        "cluster 1 (2)",
        "cluster 2 (2)",
        "cluster 3 (1)",
    ]
    assert ax.images[0].colorbar.ax.get_ylabel() == "same"


def test_relations_without_clusters_put_relatives_side_by_side(ax: Axes) -> None:
    rng = np.random.default_rng(3)
    hidden = rng.permutation(np.repeat(np.arange(4), 9))
    matrix = (hidden[:, None] == hidden) + 0.05 * rng.random((36, 36))
    plots.relations(matrix, tasks=hidden, ax=ax)
    shown = ax.images[0].get_array()
    assert np.all(np.abs(np.diff(shown > 0.5, axis=1)).sum(1) <= 2)


@pytest.mark.parametrize(
    ("matrix", "limits"),
    [
        ([[0.0, 0.3], [0.1, 0.0]], (0.0, 0.3)),
        ([[1.0, -0.4], [-0.4, 1.0]], (-1.0, 1.0)),
        ([[0.0, 0.0], [0.0, 0.0]], (0.0, 1.0)),
        ([[2.0, np.nan], [np.nan, 1.0]], (0.0, 2.0)),
    ],
)
def test_relations_scale_starts_at_zero_or_is_centred_there(
    matrix: list[list[float]], limits: tuple[float, float], ax: Axes
) -> None:
    plots.relations(matrix, ax=ax)
    assert ax.images[0].get_clim() == limits


def test_relations_thin_names_at_65_and_drop_them_at_1000() -> None:
    few, many = (Figure(figsize=(7, 5)).subplots() for _ in range(2))
    drawings(65)["relations"](ax=few)
    shown = len(few.get_yticklabels())
    assert 20 <= shown < 65
    drawings(1000)["relations"](ax=many)
    assert len(many.get_yticklabels()) == 0
    assert many.get_xlabel() == "1,000 tasks, in the same order as the rows"


def test_responsibilities_are_one_bar_a_task_sorted_by_cluster_and_certainty(ax: Axes) -> None:
    share = np.array([[0.3, 0.6, 0.1], [0.8, 0.1, 0.1], [0.0, 0.9, 0.1], [0.95, 0.05, 0.0]])
    plots.responsibilities(share, tasks=["w", "x", "y", "z"], ax=ax)
    assert tick_texts(ax.get_xticklabels()) == ["z", "x", "y", "w"]
    ordered = share[[3, 1, 2, 0]]
    assert len(ax.collections) == 3
    base = np.zeros(4)
    for cluster, bars in enumerate(ax.collections):
        corners = np.array([path.vertices[:4, 1] for path in bars.get_paths()])
        np.testing.assert_allclose(corners.min(1), base, atol=1e-12)
        base = base + ordered[:, cluster]
        np.testing.assert_allclose(corners.max(1), base)
    assert legend_texts(ax) == ["cluster 1: 2 tasks", "cluster 2: 2 tasks", "cluster 3: 0 tasks"]


def test_patterns_stand_along_their_principal_axes_whatever_their_rotation() -> None:
    rng = np.random.default_rng(0)
    loading = np.array([[3.0], [1.0]]) * np.linalg.qr(rng.normal(size=(5, 2)))[0].T
    turn = np.linalg.qr(rng.normal(size=(2, 2)))[0]
    shown = []
    for values in (loading, turn @ loading):
        axes = plots.patterns(values, tasks=list("abcde"), ax=Figure().subplots())
        shown.append(np.asarray(axes.images[0].get_array()))
        assert tick_texts(axes.get_yticklabels()) == ["pattern 1, 90 %", "pattern 2, 10 %"]
        order = [ord(name) - ord("a") for name in tick_texts(axes.get_xticklabels())]
        np.testing.assert_allclose(np.abs(shown[-1]), np.abs(loading[:, order]))
    np.testing.assert_allclose(shown[0], shown[1])
    assert (np.diff(shown[0][0]) <= 0).all()
    assert shown[0][0].max() == np.abs(shown[0][0]).max()


def test_no_patterns_are_drawn_as_nothing(ax: Axes) -> None:
    plots.patterns(np.zeros((2, 3)), ax=ax)
    assert not np.asarray(ax.images[0].get_array()).any()
    assert ax.images[0].get_clim() == (-1, 1)


def test_relevance_falls_from_left_to_right_and_zero_stays_on_the_axis(ax: Axes) -> None:
    plots.relevance([0.2, 5.0, 0.0, 1e-3], groups=["w", "x", "y", "z"], ax=ax)
    assert tick_texts(ax.get_xticklabels()) == ["x", "w", "z", "y"]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [5.0, 0.2, 1e-3, 5e-8])
    assert ax.get_yscale() == "log"


def test_mixing_points_from_lender_to_borrower_and_leaves_small_weights_out(ax: Axes) -> None:
    """Task 1 lends 0.9 to task 0 and nothing comes back; the 0.1 is too little to draw."""
    weights = [[0.0, 0.9, 0.1], [0.0, 0.0, 0.0], [0.0, 0.4, 0.0]]
    plots.mixing(weights, tasks=["a", "b", "c"], least=0.2, ax=ax)
    (curves,) = lines_of(ax)
    place = dict(zip("abc", np.asarray(dots_of(ax)[0].get_offsets()), strict=True))
    np.testing.assert_allclose(curves.get_linewidths(), [5 * 0.9, 5 * 0.4])
    for path, borrower in zip(curves.get_paths(), "ac", strict=True):
        start, end = path.vertices[0], path.vertices[-1]
        np.testing.assert_allclose(start, place["b"])
        assert np.linalg.norm(end - place[borrower]) < 0.3
    sizes = dots_of(ax)[0].get_sizes()
    assert sizes[1] > sizes[2] > sizes[0]
    assert ax.get_xlabel() == "3 tasks; weights from 0.2 on, 93 % of the whole"


def test_responsibilities_of_a_thousand_tasks_are_rasterised_bars(ax: Axes) -> None:
    drawings(1000)["responsibilities"](ax=ax)
    assert [len(bars.get_paths()) for bars in ax.collections] == [1000] * 3
    assert all(bars.get_rasterized() for bars in ax.collections)


# calibration


def test_calibration_draws_the_curve_sorted_with_its_binomial_band(ax: Axes) -> None:
    plots.calibration([0.9, 0.5], [0.93, 0.48], counts=200, label="mixture", ax=ax)
    np.testing.assert_array_equal(ax.lines[-1].get_xydata(), [[0.5, 0.48], [0.9, 0.93]])
    band = ax.collections[0].get_paths()[0].vertices
    at_half = band[np.isclose(band[:, 0], 0.5), 1]
    # 95 % of Binomial(200, 1/2) lie in 86..114.
    assert (at_half.min(), at_half.max()) == (86 / 200, 114 / 200)
    assert legend_texts(ax) == ["95 % of calibrated models", "mixture"]


def test_calibration_called_again_adds_a_curve_only(ax: Axes) -> None:
    plots.calibration([0.2, 0.8], [0.1, 0.9], counts=[50, 60], label="first", ax=ax)
    plots.calibration([0.2, 0.8], [0.2, np.nan], counts=[50, 60], label="second", ax=ax)
    assert len(ax.collections) == 1
    assert legend_texts(ax) == ["95 % of calibrated models", "first", "second"]
    assert ax.lines[-1].get_color() != ax.lines[-2].get_color()
    np.testing.assert_array_equal(ax.lines[-1].get_xydata(), [[0.2, 0.2]])


@pytest.mark.parametrize("as_tuple", [True, False])
def test_coverage_counts_targets_inside_and_ignores_missing_ones(
    as_tuple: bool,
    ax: Axes,
) -> None:
    y = np.array([0.5, 1.5, 2.5, np.nan, -3.5])

    def interval(level: float) -> tuple[np.ndarray, np.ndarray] | np.ndarray:
        ends = np.full(5, -4 * level), np.full(5, 4 * level)
        return ends if as_tuple else np.stack(ends, -1)

    plots.coverage(y, interval, levels=[0.25, 0.5, 0.9], ax=ax)
    np.testing.assert_allclose(ax.lines[-1].get_ydata(), [0.25, 0.5, 1.0])
    assert legend_texts(ax)[-1] == "90 % intervals hold 100.0 %"
    assert ax.get_ylabel() == "share of 4 rows inside"


def test_reliability_gap_is_the_calibration_error_of_the_metrics(ax: Axes) -> None:
    rng = np.random.default_rng(5)
    logits = rng.normal(size=(300, 4))
    probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    y = rng.integers(4, size=300)
    plots.reliability(y, probability, ax=ax)
    error = metrics.expected_calibration_error(y, probability)
    assert legend_texts(ax)[-1] == f"mean gap to the diagonal {error:.3f}"
    assert ax.get_xlabel() == "probability of the most probable class"


def test_reliability_bins_rows_and_counts_them_at_the_foot(ax: Axes) -> None:
    y = [0, 1, 1, 1, np.nan, 1, 0, 0]
    # One half lies in the lower bin: bins are closed on the right.
    probability = torch.tensor([0.1, 0.3, 0.5, 0.9, 0.9, 1.0, 0.8, 0.7])
    plots.reliability(y, probability, bins=2, ax=ax)
    np.testing.assert_allclose(ax.lines[-1].get_xydata(), [[0.3, 2 / 3], [0.85, 0.5]], rtol=1e-6)
    heights = [bar.get_height() for bar in ax.patches]
    assert heights == pytest.approx([3 / 4 / 6, 1 / 6])
    assert tick_texts(ax.child_axes[0].get_yticklabels()) == ["0", "4"]


# bound


def test_bound_shows_improvements_on_a_logarithmic_scale(ax: Axes) -> None:
    values = [-100.0, -10.0, -1.0, -0.9]
    plots.bound(values, ax=ax)
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), np.column_stack([range(1, 5), values]))
    inset = ax.child_axes[0]
    assert inset.get_yscale() == "log"
    np.testing.assert_allclose(inset.lines[0].get_ydata(), [90, 9, 0.1])
    assert ax.texts[0].get_text() == "\N{MINUS SIGN}0.90"
    assert legend_texts(ax) == []


def test_bound_marks_a_fall(ax: Axes) -> None:
    plots.bound([-9.0, -5.0, -6.0, -4.0, -3.0, -2.0], ax=ax)
    assert legend_texts(ax) == ["fell (1 time)"]
    assert ax.lines[-1].get_xydata().tolist() == [[3.0, -6.0]]


def test_noisy_bound_gets_a_running_mean_and_robust_limits(ax: Axes) -> None:
    rng = np.random.default_rng(0)
    history = -50 + rng.normal(size=400)
    history[:10] = -1e6
    plots.bound(torch.tensor(history), ax=ax)
    assert legend_texts(ax) == ["each step", "mean of 20 steps"]
    assert ax.get_ylim()[0] > -60
    assert ax.child_axes == []
    middle = ax.lines[1].get_ydata()
    np.testing.assert_allclose(middle[200], history[200:220].mean())


# predictions and forest


def test_predictions_tell_rows_inside_from_rows_outside(ax: Axes) -> None:
    y = np.array([1.0, 5.0, np.nan, 2.0])
    mean = np.array([1.2, 3.0, 0.0, 2.1])
    plots.predictions(y, mean, mean - 1, mean + 1, ax=ax)
    inside, outside = dots_of(ax)
    np.testing.assert_array_equal(inside.get_offsets(), [[1.2, 1.0], [2.1, 2.0]])
    np.testing.assert_array_equal(outside.get_offsets(), [[3.0, 5.0]])
    np.testing.assert_allclose(lines_of(ax)[0].get_segments()[1], [[3.0, 2.0], [3.0, 4.0]])
    assert legend_texts(ax) == ["inside the interval: 2 of 3 rows (66.7 %)", "outside: 1"]


def test_predictions_colour_few_tasks_and_sum_up_many() -> None:
    few, many = Figure().subplots(), Figure().subplots()
    y = np.arange(36.0)
    lower, upper = y - 1, np.where(np.arange(36) % 12 == 0, y - 0.5, y + 1)
    plots.predictions(y, y, lower, upper, task=np.repeat(["a", "b", "c"], 12), ax=few)
    assert legend_texts(few)[2:] == ["a", "b", "c"]
    colours = dots_of(few)[0].get_facecolors()
    assert len(np.unique(colours, axis=0)) == 3
    plots.predictions(y, y, lower, upper, task=torch.arange(36) % 12, ax=many)
    assert legend_texts(many)[1] == "by task: 0 % to 100 % inside (12 tasks)"


def test_predictions_of_many_rows_are_rasterised(ax: Axes) -> None:
    y = np.random.default_rng(1).normal(size=4059)
    plots.predictions(y, 0.5 * y, 0.5 * y - 1, 0.5 * y + 1, ax=ax)
    assert all(part.get_rasterized() for part in ax.collections)


def test_forest_ranks_tasks_and_colours_those_told_apart(ax: Axes) -> None:
    mean = np.array([0.4, -0.3, 0.0, 0.1])
    half = np.array([0.1, 0.1, 0.2, 0.05])
    plots.forest(
        mean, mean - half, mean + half, tasks=["a", "b", "c", "d"], reference=0.0,
        label="effect [points]", ax=ax,
    )  # fmt: skip
    assert tick_texts(ax.get_xticklabels()) == ["b", "c", "d", "a"]
    assert ax.get_ylabel() == "effect [points]"
    assert legend_texts(ax) == [
        "above 0: 2 tasks",
        "not told apart from 0: 1 task",
        "below 0: 1 task",
    ]
    above, middle, below = lines_of(ax)
    np.testing.assert_allclose(
        above.get_segments(), [[[3, 0.05], [3, 0.15]], [[4, 0.3], [4, 0.5]]]
    )
    np.testing.assert_allclose(middle.get_segments(), [[[2, -0.2], [2, 0.2]]])
    np.testing.assert_allclose(below.get_segments(), [[[1, -0.4], [1, -0.2]]])


def test_forest_names_all_of_65_and_the_ends_of_1000() -> None:
    few = drawings(65)["forest"]()
    assert len(few.get_xticklabels()) == 65
    assert len(few.texts) == 0
    many = drawings(1000)["forest"]()
    mean = school_like(1000)["fitted"][:, 0]
    order = [f"school {index}" for index in np.argsort(mean)]
    assert many.texts[0].get_text() == (
        f"highest: {order[-1]}, {order[-2]}, {order[-3]}\nlowest: {', '.join(order[:3])}"
    )
    assert many.get_xlabel() == "rank among 1,000 tasks"
    assert sum(len(lines.get_segments()) for lines in lines_of(many)) == 1000


def test_forest_without_reference_has_one_colour_and_no_legend(ax: Axes) -> None:
    plots.forest([2.0, 1.0, 3.0], [1.0, 0.0, 2.0], [3.0, 2.0, 4.0], ax=ax)
    assert legend_texts(ax) == []
    assert len(lines_of(ax)) == 1
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[1, 1], [2, 2], [3, 3]])
    assert ax.get_xlabel() == "rank among 3 tasks"


def test_colours_differ_up_to_24_clusters(ax: Axes) -> None:
    plots.responsibilities(np.eye(24), ax=ax)
    assert len({tuple(bars.get_facecolor()[0]) for bars in ax.collections}) == 24


# errors

SQUARE = np.eye(3)
PAIR = np.zeros((3, 2))
ROW = np.zeros(3)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: plots.shrinkage(SQUARE, PAIR), r"own must have shape \(K, 2\); got \(3, 3\)"),
        (lambda: plots.shrinkage(PAIR, PAIR[:2]), r"fitted must have shape \(3, 2\)"),
        (lambda: plots.shrinkage(PAIR, PAIR + np.nan), "fitted must be finite"),
        (lambda: plots.shrinkage(PAIR[:0], PAIR[:0]), "own must not be empty"),
        (lambda: plots.shrinkage(PAIR, PAIR, assignment=[0, 1]), r"assignment must have shape"),
        (lambda: plots.shrinkage(PAIR, PAIR, assignment=[0, 0.5, 1]), "must hold integers"),
        (
            lambda: plots.shrinkage(PAIR, PAIR, assignment=[0, 1, 2], centres=PAIR[:2]),
            r"assignment must lie in 0\.\.1, as centres has 2 rows; got 2",
        ),
        (lambda: plots.shrinkage(PAIR, PAIR, names=("a",)), "names must hold 2 names"),
        (lambda: plots.shrinkage(PAIR, PAIR, tasks=("a",)), "tasks must hold 3 names"),
        (lambda: plots.relations(PAIR), r"matrix must be square.*got \(3, 2\)"),
        (lambda: plots.relations(SQUARE, clusters=[0, -1, 0]), "clusters must hold integers"),
        (lambda: plots.mixing(PAIR), r"matrix must be square, tasks by tasks; got \(3, 2\)"),
        (lambda: plots.mixing(-SQUARE - 1), "finite weights that are not negative.*relations"),
        (lambda: plots.mixing(SQUARE, least=0), "least must be positive; got 0"),
        (lambda: plots.mixing(SQUARE, tasks="ab"), "tasks must hold 3 names"),
        (lambda: plots.responsibilities(2 * SQUARE), "rows that sum to 1.*sums to 2"),
        (lambda: plots.responsibilities(ROW), r"responsibilities must have shape \(K, C\)"),
        (lambda: plots.relevance(-ROW - 1), "relevance must be finite and non-negative"),
        (lambda: plots.relevance(ROW, groups="ab"), "groups must hold 3 names"),
        (lambda: plots.patterns(ROW[None] * np.nan), "loading must be finite"),
        (lambda: plots.patterns(ROW[None], tasks="ab"), "tasks must hold 3 names"),
        (lambda: plots.calibration([50, 90], [48, 93]), "nominal must lie between 0 and 1"),
        (lambda: plots.calibration([0.5], [0.5], counts=0), "counts must be at least 1"),
        (lambda: plots.coverage(ROW, lambda _: PAIR, levels=[1.0]), "levels must lie between"),
        (lambda: plots.coverage(ROW, lambda _: SQUARE), r"interval must have shape \(3, 2\)"),
        (lambda: plots.coverage(ROW + np.nan, lambda _: PAIR), "y has no observed target"),
        (lambda: plots.reliability([0, 1, 2], ROW), r"y must hold labels 0\.\.1"),
        (lambda: plots.reliability(ROW, ROW - 4), "pass probabilities, not logits"),
        (lambda: plots.reliability(ROW, ROW, bins=0), "bins must be at least 1"),
        (lambda: plots.reliability(ROW + np.nan, ROW), "y has no observed label"),
        (lambda: plots.bound([1.0, np.nan]), "history must be finite; got nan at iteration 2"),
        (lambda: plots.predictions(ROW, ROW, ROW + 1, ROW), "got 1 > 0 at row 0"),
        (lambda: plots.predictions(ROW, ROW, ROW, ROW, task="ab"), "task must hold 3 names"),
        (lambda: plots.predictions(ROW * np.nan, ROW, ROW, ROW), "y has no observed target"),
        (lambda: plots.forest(ROW, ROW[:2], ROW), r"lower must have shape \(3,\)"),
        (lambda: plots.forest(ROW, ROW, ROW + np.inf), "must be finite"),
    ],
)
def test_errors_say_what_was_expected_and_what_was_got(
    call: Callable[[], Axes], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        call()
    assert plt.get_fignums() == []


def test_without_matplotlib_the_first_picture_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    for name in [name for name in sys.modules if name.startswith(plots.__name__)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(bmm_multitask_learning, "plots", plots)  # put back afterwards
    bare = importlib.import_module(plots.__name__)
    with pytest.raises(ImportError, match=r"pip install 'bmm-multitask-learning\[plots\]'"):
        bare.forest(ROW, ROW, ROW)


# ---- tree


def test_branches_meet_at_the_distance_of_the_tasks(ax: Axes) -> None:
    found = TaskTree(torch.tensor([[0, 2], [1, 3]]), torch.tensor([0.25, 1.0]))
    plots.tree(found, tasks=["a", "b", "c"], mixing=0.8, ax=ax)
    names = tick_texts(ax.get_yticklabels())
    (branches,) = lines_of(ax)
    first, last = (path.vertices for path in branches.get_paths())
    assert first[:, 0] == pytest.approx([0.0, 0.4, 0.4, 0.0])  # 1 - .8 (1 - .25)
    assert {names[int(place)] for place in first[[0, -1], 1]} == {"a", "c"}
    assert last[:, 0] == pytest.approx([0.0, 1.0, 1.0, 0.4])
    with pytest.raises(ValueError, match="tasks must hold 3 names"):
        plots.tree(found, tasks=["a"], ax=ax)


def test_probabilities_of_clades_stand_at_their_merges(ax: Axes) -> None:
    merges, heights = torch.tensor([[0, 2], [1, 3]]), torch.tensor([0.25, 1.0])
    plots.tree(TaskTree(merges, heights, torch.tensor([0.83, 1.0])), ax=ax)
    (label,) = ax.texts  # that of all tasks says nothing
    assert label.get_text() == "83"
    assert label.xy == pytest.approx((0.25, 1.5))
    other = Figure().subplots()
    plots.tree(TaskTree(merges, heights), ax=other)
    assert not other.texts


def test_weights_stand_at_the_leaves(ax: Axes) -> None:
    found = TaskTree(torch.tensor([[0, 2], [1, 3]]), torch.tensor([0.25, 1.0]))
    weights = np.array([[2.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])
    plots.tree(found, tasks=["a", "b", "c"], weights=weights, features=["slope", "x"], ax=ax)
    first, second = dots_of(ax)
    names = tick_texts(ax.get_yticklabels())
    shades = zip(first.get_offsets(), first.get_array(), strict=True)
    at = {names[int(y)]: shade for (_, y), shade in shades}
    assert at == {"a": 1.0, "b": -0.5, "c": 0.5}
    assert (second.get_array() == 0).all()
    assert [text.get_text() for text in ax.texts] == ["slope", "x"]
    assert ax.get_xlim()[1] < min(second.get_offsets()[:, 0])
    with pytest.raises(ValueError, match=r"each of 3 tasks, or for each of 5 nodes; got .*\(2, 2"):
        plots.tree(found, weights=weights[:2], ax=ax)
    with pytest.raises(ValueError, match="features must hold 2 names"):
        plots.tree(found, weights=weights, features=["slope"], ax=ax)


def test_weights_run_along_the_branches(ax: Axes) -> None:
    """From the merge's to the task's, in even steps, one line a feature above the other."""
    found = TaskTree(torch.tensor([[0, 2], [1, 3]]), torch.tensor([0.25, 1.0]))
    weights = np.array([[2.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [-2.0, 4.0], [0.0, 0.0]])
    plots.tree(found, weights=weights, ax=ax)
    _, edge, first, second = lines_of(ax)
    assert len(edge.get_paths()) == 4  # the root has no branch
    shade = first.get_array().reshape(4, -1)
    np.testing.assert_allclose(-np.diff(shade[0]), 2 / shade.shape[1])  # from 1 to -1
    ends = [path.vertices for path in first.get_paths()]
    assert ends[0][0] == pytest.approx([0.0, edge.get_paths()[0].vertices[0, 1]])
    assert ends[shade.shape[1] - 1][1, 0] == pytest.approx(0.25)
    half = 0.5 * (shade[0, 0] - shade[0, 1])
    assert shade[0, 0] == pytest.approx(1 - half)
    above, below = (line.get_transform().transform([0.0, 0.0])[1] for line in (first, second))
    assert above > below
    assert second.get_array().reshape(4, -1)[3, 0] > 0.9
