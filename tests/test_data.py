"""`TaskData`: what goes in comes out, splits and batches keep their law, bad input is named."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, cross_validate
from torch.testing import assert_close

from bmm_multitask_learning.data import Batch, LeaveTasksOut, TaskData

N, D, F, O = 7, 3, 2, 4
LABELS = ["b", "a", "c", "a", "b", "a", "a"]  # a: 4, b: 2, c: 1
NAN, INF = float("nan"), float("inf")


@pytest.fixture
def x(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(N, D))


@pytest.fixture
def y(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=N)


@pytest.fixture
def data(x: np.ndarray, y: np.ndarray) -> TaskData:
    return TaskData(
        x,
        y,
        LABELS,
        task_features=np.arange(6.0).reshape(3, F),
        weight=np.arange(N) + 1.0,
        feature_names=["p", "q", "r"],
        target_names=["mark"],
        task_feature_names=["size", "mean"],
    )


@pytest.fixture
def frame(x: np.ndarray, y: np.ndarray) -> pd.DataFrame:
    df = pd.DataFrame(x, columns=["p", "q", "r"])
    df["mark"], df["school"] = y, LABELS
    df["size"] = df["school"].map({"a": 4, "b": 2, "c": 1})
    df["sex"] = ["f", "m"] * 3 + ["f"]
    df["w"] = np.arange(N) + 1
    return df


def make(**changes: Any) -> TaskData:
    """Valid arguments but for the changes."""
    arguments = {"x": np.ones((N, D)), "y": np.arange(N), "task": LABELS} | changes
    return TaskData(**arguments)


# What goes in


def test_attributes(data: TaskData, x: np.ndarray, y: np.ndarray) -> None:
    assert_close(data.x, torch.from_numpy(x))
    assert_close(data.y, torch.from_numpy(y))
    assert data.task.tolist() == [1, 0, 2, 0, 1, 0, 0]
    assert data.tasks == ("a", "b", "c")
    assert (len(data), data.num_rows, data.num_tasks, data.num_outputs) == (N, N, 3, 1)
    assert data.num_task_features == F
    assert data.feature_names == ("p", "q", "r")
    assert data.target_names == ("mark",)
    assert data.task_feature_names == ("size", "mean")
    assert data.device == torch.device("cpu")


def test_order_offsets_and_counts(data: TaskData) -> None:
    assert data.rows_per_task.tolist() == [4, 2, 1]
    assert data.order.tolist() == [1, 3, 5, 6, 0, 4, 2]
    assert data.offsets.tolist() == [0, 4, 6, 7]
    by_task = data.rows(data.order)
    assert by_task.order.tolist() == list(range(N))


def test_repr_is_one_informative_line(data: TaskData) -> None:
    assert repr(data) == (
        "TaskData(7 rows, 3 tasks, 1 to 4 rows a task, 3 features, 1 output, weighted, "
        "2 task features, torch.float64 on cpu)"
    )
    images = TaskData(torch.ones(2, 3, 5), [NAN, 1.0], [0, 1])
    assert repr(images) == (
        "TaskData(2 rows, 2 tasks, 1 row a task, inputs of shape (3, 5), 1 output, "
        "1 target not observed, torch.float32 on cpu)"
    )


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (torch.ones(N, D, dtype=torch.float32), torch.float32),
        (torch.ones(N, D, dtype=torch.float16), torch.float16),
        (torch.ones(N, D, dtype=torch.int32), torch.float64),
        (np.ones((N, D), dtype=np.float32), torch.float64),
        (np.ones((N, D), dtype=bool), torch.float64),
        (np.ones((N, D), dtype=object), torch.float64),
        ([[1] * D] * N, torch.float64),
        (pd.DataFrame(np.ones((N, D), dtype=np.int8)), torch.float64),
    ],
    ids=str,
)
def test_dtype_of_x_rules_every_float(given: Any, kept: torch.dtype) -> None:
    data = make(x=given, y=torch.ones(N), weight=[1] * N, task_features=[[1]] * 3)
    assert data.weight is not None
    assert data.task_features is not None
    assert {data.x.dtype, data.y.dtype, data.weight.dtype, data.task_features.dtype} == {kept}
    assert data.task.dtype == torch.int64


def test_targets_keep_their_shape() -> None:
    assert make(y=np.ones((N, 1))).y.shape == (N, 1)
    many = make(y=np.ones((N, O)))
    assert many.num_outputs == O
    assert many.observed.shape == (N, O)


def test_missing_targets_are_kept_and_masked() -> None:
    y = pd.Series([1, None, 3, 4, 5, None, 7], dtype="Float64", name="mark")
    data = make(y=y)
    assert data.observed.tolist() == [True, False, True, True, True, False, True]
    assert data.target_names == ("mark",)
    assert make(y=[None] * 6 + [1]).observed.sum() == 1


def test_read_only_and_reversed_arrays_are_taken() -> None:
    x = np.ones((N, D))
    x.flags.writeable = False
    assert make(x=x).x.shape == (N, D)
    y = np.arange(N)[::-1]
    assert make(y=y.astype(float)).y.tolist() == y.tolist()


@pytest.mark.parametrize(
    "labels",
    [
        np.array(LABELS),
        np.array(LABELS, dtype=object),
        pd.Series(LABELS),
        pd.Series(LABELS, dtype="category"),
        pd.Series(LABELS, dtype="string"),
        pd.Index(LABELS),
        tuple(LABELS),
        [np.str_(label) for label in LABELS],
    ],
    ids=lambda value: f"{type(value).__name__}",
)
def test_string_labels_of_every_container(labels: Any) -> None:
    data = make(task=labels)
    assert data.tasks == ("a", "b", "c")
    assert {type(label) for label in data.tasks} == {str}
    assert data.task.tolist() == [1, 0, 2, 0, 1, 0, 0]
    assert data.index_of(labels).tolist() == data.task.tolist()


@pytest.mark.parametrize(
    "labels",
    [
        [30, 10, 50, 10, 30, 10, 10],
        np.array([30, 10, 50, 10, 30, 10, 10], dtype=np.uint8),
        torch.tensor([30, 10, 50, 10, 30, 10, 10]),
        pd.Series([30, 10, 50, 10, 30, 10, 10], dtype="Int64"),
        pd.Series([30, 10, 50, 10, 30, 10, 10], dtype="category"),
    ],
    ids=lambda value: f"{type(value).__name__}",
)
def test_integer_labels_of_every_container(labels: Any) -> None:
    data = make(task=labels)
    assert data.tasks == (10, 30, 50)
    assert {type(label) for label in data.tasks} == {int}
    assert data.task.tolist() == [1, 0, 2, 0, 1, 0, 0]


def test_tasks_keep_their_order_and_may_be_empty() -> None:
    data = make(tasks=["c", "z", "b", "a"])
    assert data.tasks == ("c", "z", "b", "a")
    assert data.rows_per_task.tolist() == [1, 0, 2, 4]
    integers = make(task=[2, 9, 4, 9, 2, 9, 9], tasks=[9, 4, 2, 7])
    assert integers.rows_per_task.tolist() == [4, 1, 2, 0]


def test_index_of(data: TaskData) -> None:
    assert data.index_of(["c", "never seen", "a"]).tolist() == [2, -1, 0]
    assert data.index_of("b").tolist() == [1]
    assert data.index_of(["a", "b"][1:]).tolist() == [1]
    assert data.index_of([3, 1]).tolist() == [-1, -1]
    assert data.index_of([]).tolist() == []
    integers = make(task=[2, 9, 4, 9, 2, 9, 9], tasks=[9, 4, 2])
    assert integers.index_of(torch.tensor([4, 1, 2, 100])).tolist() == [1, -1, 2, -1]
    for one in (9, np.int64(9), torch.tensor(9), np.array(9)):
        assert integers.index_of(one).tolist() == [0]


@pytest.mark.parametrize(
    "given",
    [
        [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]],
        {"c": [5, 6], "a": np.array([1, 2]), "b": torch.tensor([3, 4]), "other": [0, 0]},
        pd.DataFrame({"u": [5, 9, 3, 1], "v": [6, 9, 4, 2]}, index=["c", "other", "b", "a"]),
    ],
    ids=["array", "mapping", "frame"],
)
def test_task_features_follow_the_tasks(given: Any) -> None:
    data = make(task_features=given)
    assert data.task_features is not None
    assert data.task_features.tolist() == [[1, 2], [3, 4], [5, 6]]
    expected = ("u", "v") if isinstance(given, pd.DataFrame) else None
    assert data.task_feature_names == expected


def test_scalars_by_task_are_one_feature() -> None:
    assert make(task_features={"a": 1, "b": 2, "c": 3}).num_task_features == 1


# Other ways in


def test_from_frame_keeps_strings_and_names(frame: pd.DataFrame) -> None:
    data = TaskData.from_frame(
        frame, target="mark", task="school", task_features=["size"], weight="w"
    )
    assert data.tasks == ("a", "b", "c")
    assert data.feature_names == ("p", "q", "r")
    assert data.target_names == ("mark",)
    assert data.task_feature_names == ("size",)
    assert data.task_features is not None
    assert data.task_features.tolist() == [[4], [2], [1]]
    assert data.weight is not None
    assert data.weight.tolist() == frame["w"].tolist()
    assert data.y.shape == (N,)


def test_from_frame_with_chosen_columns(frame: pd.DataFrame) -> None:
    table = pd.DataFrame({"size": [1, 2, 4]}, index=["c", "b", "a"])
    frame.index = pd.Index([0] * N)  # labels of rows play no part
    data = TaskData.from_frame(
        frame,
        target=["mark", "w"],
        task="school",
        features=["r", "p"],
        task_features=table,
        tasks=["b", "a", "c"],
    )
    assert data.feature_names == ("r", "p")
    assert data.y.shape == (N, 2)
    assert data.tasks == ("b", "a", "c")
    assert data.task_features is not None
    assert data.task_features.tolist() == [[2], [4], [1]]
    again = TaskData.from_frame(frame, "mark", "school", ["p"], task_features=["size"])
    assert again.task_features is not None
    assert again.task_features.tolist() == [[4], [2], [1]]


def test_from_multioutput_leaves_missing_entries_out(x: np.ndarray) -> None:
    Y = np.arange(N * 3.0).reshape(N, 3)
    Y[[0, 4], 1] = NAN
    data = TaskData.from_multioutput(x, Y, weight=np.arange(N))
    assert data.tasks == (0, 1, 2)
    assert data.rows_per_task.tolist() == [N, N - 2, N]
    row, column = data.y.long() // 3, data.y.long() % 3
    assert_close(data.x, torch.from_numpy(x)[row])
    assert data.task.tolist() == column.tolist()
    assert data.weight is not None
    assert data.weight.tolist() == row.tolist()
    assert data.order.tolist() == list(range(len(data)))


def test_from_multioutput_names(x: np.ndarray) -> None:
    Y = pd.DataFrame({"z": [1.0] * N, "a": [NAN] * N})
    data = TaskData.from_multioutput(pd.DataFrame(x, columns=["p", "q", "r"]), Y)
    assert data.tasks == ("z", "a")
    assert data.rows_per_task.tolist() == [N, 0]
    assert data.feature_names == ("p", "q", "r")
    assert TaskData.from_multioutput(x, Y, tasks=[5, 4]).tasks == (5, 4)


def test_from_dict(x: np.ndarray, y: np.ndarray) -> None:
    data = TaskData.from_dict(
        {"z": (x[:5], y[:5]), "a": (x[5:], y[5:])}, task_features={"a": [1.0], "z": [2.0]}
    )
    assert data.tasks == ("z", "a")
    assert data.rows_per_task.tolist() == [5, 2]
    assert_close(data.x, torch.from_numpy(x))
    assert_close(data.y, torch.from_numpy(y))
    assert data.task_features is not None
    assert data.task_features.tolist() == [[2], [1]]


def test_concat_unites_tasks(data: TaskData) -> None:
    first, second = data.select_tasks(["c", "a"]), data.select_tasks(["b", "a"])
    joined = TaskData.concat([first, second])
    assert joined.tasks == ("c", "a", "b")
    assert joined.rows_per_task.tolist() == [1, 8, 2]
    assert joined.task_features is not None
    assert joined.task_features.tolist() == [[4, 5], [0, 1], [2, 3]]
    assert_close(joined.x, torch.cat([first.x, second.x]))
    assert joined.feature_names == data.feature_names


def test_concat_gives_unweighted_rows_weight_one() -> None:
    weighted, plain = make(weight=[2.0] * N), make()
    joined = TaskData.concat([weighted, plain])
    assert joined.weight is not None
    assert joined.weight.tolist() == [2.0] * N + [1.0] * N
    assert TaskData.concat([plain, plain]).weight is None


# Parts of it


@pytest.mark.parametrize(
    "index",
    [[5, 0], np.array([5, 0]), torch.tensor([5, 0])],
    ids=["list", "array", "tensor"],
)
def test_rows_keep_all_tasks(data: TaskData, index: Any) -> None:
    part = data.rows(index)
    assert part.tasks == data.tasks
    assert part.rows_per_task.tolist() == [1, 1, 0]
    assert part.task.tolist() == [0, 1]
    assert_close(part.x, data.x[[5, 0]])
    assert part.weight is not None
    assert part.weight.tolist() == [6.0, 1.0]
    assert part.order.tolist() == [0, 1]
    assert data.rows_per_task.tolist() == [4, 2, 1]


def test_rows_by_mask_slice_and_nothing(data: TaskData) -> None:
    assert_close(data.rows(data.y > 0).y, data.y[data.y > 0])
    assert_close(data.rows((data.y > 0).tolist()).y, data.y[data.y > 0])
    assert_close(data.rows(slice(1, None, 2)).y, data.y[1::2])
    assert_close(data.rows([-1]).y, data.y[-1:])
    nothing = data.rows([])
    assert len(nothing) == 0
    assert nothing.offsets.tolist() == [0, 0, 0, 0]


def test_select_tasks_shrinks_and_orders(data: TaskData) -> None:
    part = data.select_tasks(["c", "a"])
    assert part.tasks == ("c", "a")
    assert part.task.tolist() == [1, 0, 1, 1, 1]
    assert_close(part.x, data.x[[1, 2, 3, 5, 6]])
    assert part.task_features is not None
    assert part.task_features.tolist() == [[4, 5], [0, 1]]
    assert data.select_tasks("b").num_rows == 2


def test_with_x_changes_inputs_only(data: TaskData) -> None:
    new = data.with_x(torch.ones(N, 5, dtype=torch.float32), feature_names=list("vwxyz"))
    assert new.x.shape == (N, 5)
    assert new.y.dtype == torch.float32
    assert new.tasks == data.tasks
    assert new.feature_names == tuple("vwxyz")
    assert data.with_x(data.x).feature_names is None
    assert data.x.shape == (N, D)


def test_with_x_keeps_the_gradient(data: TaskData) -> None:
    scale = torch.ones(D, dtype=torch.float64, requires_grad=True)
    data.with_x(data.x * scale).x.sum().backward()
    assert_close(scale.grad, data.x.sum(0))


def test_to_moves_every_tensor(data: TaskData) -> None:
    half = data.to(dtype=torch.float32)
    assert half.weight is not None
    assert half.task_features is not None
    floats = {half.x.dtype, half.y.dtype, half.weight.dtype, half.task_features.dtype}
    assert floats == {torch.float32}
    assert half.task.dtype == torch.int64
    meta = data.to("meta")
    assert {meta.x.device.type, meta.task.device.type, meta.y.device.type} == {"meta"}
    assert data.to().x is data.x


@pytest.mark.gpu
def test_everything_works_on_cuda(data: TaskData) -> None:
    moved = data.to("cuda")
    train, test = moved.split(0.5, seed=0)
    assert train.device.type == test.rows_per_task.device.type == "cuda"
    assert_close(train.x.cpu(), data.split(0.5, seed=0)[0].x)
    assert moved.index_of(["c"]).device.type == "cuda"
    assert moved.select_tasks(["c", "a"]).task.tolist() == [1, 0, 1, 1, 1]
    for sampling in (1.0, 0.5):
        for place in ("cpu", "cuda"):
            epoch = moved.batches(3, generator=torch.Generator(place), sampling=sampling)
            assert {batch.index.device.type for batch in epoch} == {"cuda"}


# Splits


def test_split_is_the_published_protocol(rng: np.random.Generator) -> None:
    task = rng.integers(0, 11, size=200)
    data = TaskData(np.arange(200.0)[:, None], np.zeros(200), task, tasks=list(range(13)))
    for seed in (0, 3):
        expected, generator = [], np.random.default_rng(seed)
        for k in range(13):
            rows = generator.permutation(np.flatnonzero(task == k))
            expected.append(rows[: int(0.75 * len(rows))])
        train, test = data.split(seed=seed)
        assert train.x[:, 0].tolist() == np.sort(np.concatenate(expected)).tolist()
        both = torch.cat([train.x, test.x])[:, 0]
        assert both.sort().values.tolist() == list(range(200))
        assert train.tasks == test.tasks == data.tasks


def test_split_keeps_a_train_row_of_every_task(data: TaskData) -> None:
    train, test = data.split(0.1, seed=0)
    assert train.rows_per_task.tolist() == [1, 1, 1]
    assert test.rows_per_task.tolist() == [3, 1, 0]


def test_split_fraction_is_not_short_of_a_row_by_rounding() -> None:
    data = TaskData(np.ones((100, 1)), np.ones(100), np.zeros(100, dtype=int))
    assert len(data.split(0.29, seed=0)[0]) == 29  # .29 * 100 = 28.999999999999996


def test_split_of_many_tasks_is_fast() -> None:
    task = np.repeat(np.arange(100_000), 2)
    data = TaskData(np.ones((len(task), 1)), np.ones(len(task)), task)
    start = time.perf_counter()
    train, _ = data.split(0.5, seed=0)
    assert time.perf_counter() - start < 10  # 1 s measured; room for a busy machine
    assert bool((train.rows_per_task == 1).all())


def test_folds_hold_each_row_once_and_each_task_evenly() -> None:
    rows = (7, 1, 12, 2, 0, 1, 1, 1)
    data = TaskData(
        torch.arange(25.0)[:, None], torch.zeros(25), np.repeat(range(8), rows), tasks=range(8)
    )
    seen = []
    for train, test in data.folds(4, seed=0):
        assert train.tasks == test.tasks == data.tasks
        assert sorted([*train.x[:, 0].tolist(), *test.x[:, 0].tolist()]) == list(range(25))
        most = [-(-n // 4) for n in rows]
        assert all(
            n // 4 <= got <= m
            for n, got, m in zip(rows, test.rows_per_task.tolist(), most, strict=True)
        )
        seen += test.x[:, 0].tolist()
    assert sorted(seen) == list(range(25))


def test_folds_follow_the_seed() -> None:
    data = TaskData(torch.arange(30.0)[:, None], torch.zeros(30), [0] * 11 + [1] * 19)
    first, again, other = (next(iter(data.folds(3, seed=s)))[1].x for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert first.shape != other.shape or not torch.equal(first, other)


def test_folds_of_small_tasks_are_of_one_size() -> None:
    data = TaskData(torch.zeros(400, 1), torch.zeros(400), range(400))
    sizes = [test.num_rows for _, test in data.folds(4, seed=0)]
    assert 70 < min(sizes) <= max(sizes) < 130


@pytest.mark.parametrize("number", [1, 5])
def test_folds_out_of_range_are_refused(number: int) -> None:
    data = TaskData(torch.zeros(4, 1), torch.zeros(4), [0, 0, 1, 1])
    with pytest.raises(ValueError, match=f"between 2 and the number of rows, 4; got {number}"):
        data.folds(number, seed=0)


def test_split_tasks_parts_whole_tasks() -> None:
    task = np.repeat(np.arange(10), 3)
    data = TaskData(np.ones((30, 1)), task, task, task_features=np.arange(10.0)[:, None])
    train, test = data.split_tasks(0.3, seed=1)
    assert test.num_tasks == 3
    assert sorted([*train.tasks, *test.tasks]) == list(range(10))
    for part in (train, test):
        assert part.task_features is not None
        assert part.y.tolist() == np.repeat(part.tasks, 3).tolist()
        assert part.task_features[:, 0].tolist() == list(part.tasks)
    assert data.split_tasks(0.3, seed=1)[1].tasks == test.tasks
    assert len({data.split_tasks(0.3, seed=seed)[1].tasks for seed in range(5)}) > 1
    assert data.split_tasks(0.01, seed=0)[1].num_tasks == 1


# Batches


def epoch_of(data: TaskData, size: int, sampling: Any, seed: int = 0) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    return list(data.batches(size, generator=generator, sampling=sampling))


def test_proportional_epoch_is_a_shuffled_pass(data: TaskData) -> None:
    epoch = epoch_of(data, 3, "proportional")
    assert [len(batch.index) for batch in epoch] == [3, 3, 1]
    assert sorted(torch.cat([batch.index for batch in epoch]).tolist()) == list(range(N))
    assert_close(epoch[0].scale, torch.full((3,), N / 3, dtype=torch.float64))
    assert_close(epoch[2].scale, torch.full((1,), float(N), dtype=torch.float64))
    assert [b.index.tolist() for b in epoch] == [b.index.tolist() for b in epoch_of(data, 3, 1.0)]
    orders = {tuple(epoch_of(data, N, 1.0, seed)[0].index.tolist()) for seed in range(4)}
    assert len(orders) > 1


def test_a_batch_is_never_larger_than_the_data(data: TaskData) -> None:
    assert [len(batch.index) for batch in epoch_of(data, 100, "proportional")] == [N]
    assert [len(batch.index) for batch in epoch_of(data, 100, "uniform")] == [N]


@pytest.mark.parametrize("sampling", ["proportional", "uniform", 0.0, 0.3, 1.0])
def test_batch_sums_are_unbiased(sampling: Any) -> None:
    # Tasks of 0, 1, 3 and 20 rows; each row's loss a value of its own.
    task = np.array([3] * 20 + [1] + [2] * 3)
    rng = np.random.default_rng(5)
    loss = torch.from_numpy(rng.normal(2.0, 3.0, size=24))
    data = TaskData(np.ones((24, 1)), np.ones(24), task, tasks=[0, 1, 2, 3])
    generator = torch.Generator().manual_seed(1)
    sums = torch.tensor(
        [
            float(batch.scale @ loss[batch.index])
            for _ in range(800)
            for batch in data.batches(5, generator=generator, sampling=sampling)
        ]
    )
    error = sums.mean() - loss.sum()
    # five standard errors: a false alarm in two million seeds
    assert abs(float(error)) < 5 * float(sums.std()) / len(sums) ** 0.5


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_tasks_are_drawn_by_their_tempered_share(temperature: float) -> None:
    counts = np.array([1, 0, 4, 16, 0])
    task = np.repeat(np.arange(5), counts)
    data = TaskData(np.ones((21, 1)), np.ones(21), task, tasks=list(range(5)))
    generator = torch.Generator().manual_seed(2)
    drawn = torch.cat(
        [
            batch.index
            for _ in range(1500)
            for batch in data.batches(4, generator=generator, sampling=temperature)
        ]
    )
    p = np.where(counts > 0, counts.astype(float) ** temperature, 0)
    p = np.repeat(p / p.sum() / counts.clip(1), counts)  # of each row
    share = np.bincount(drawn.numpy(), minlength=21) / len(drawn)
    assert np.all(np.abs(share - p) < 5 * np.sqrt(p * (1 - p) / len(drawn)))


def test_scale_is_exact_in_expectation() -> None:
    # Σ_n P(row n in a place of the batch) · B · scale_n = number of rows, without sampling error
    counts = torch.tensor([1, 3, 20])
    data = TaskData(np.ones((24, 1)), np.ones(24), np.repeat([0, 1, 2], counts))
    p = counts**0.3 / (counts**0.3).sum()
    for batch in epoch_of(data, 5, 0.3):
        k = data.task[batch.index]
        assert_close(5 * batch.scale * p[k] / counts[k], torch.ones(5, dtype=torch.float64))


# Cross-validation over tasks


def test_leave_tasks_out_in_cross_validation(rng: np.random.Generator) -> None:
    task = np.repeat([f"t{k}" for k in range(12)], 5)
    X, y = rng.normal(size=(60, D)), rng.normal(size=60)
    splitter = LeaveTasksOut(4, random_state=0)
    assert splitter.get_n_splits() == 4
    held_out = []
    for train, test in splitter.split(X, y, groups=task):
        assert not set(task[train]) & set(task[test])
        held_out += sorted(set(task[test]))
    assert sorted(held_out) == sorted(set(task))
    scores = cross_validate(Ridge(), X, y, groups=task, cv=splitter)["test_score"]
    assert len(scores) == 4
    search = GridSearchCV(Ridge(), {"alpha": [0.1, 10.0]}, cv=splitter)
    search.fit(X, y, groups=task)
    assert set(search.best_params_) == {"alpha"}
    assert repr(splitter) == "LeaveTasksOut(n_splits=4, random_state=0, shuffle=True)"


def test_leave_tasks_out_follows_its_seed() -> None:
    task = np.repeat(np.arange(12), 2)

    def folds(**options: Any) -> list[list[int]]:
        splitter = LeaveTasksOut(3, **options)
        return [test.tolist() for _, test in splitter.split(task, groups=task)]

    assert folds(random_state=1) == folds(random_state=1)
    assert folds(random_state=1) != folds(random_state=2)
    assert folds(shuffle=False) == folds(shuffle=False)


# Bad input: each case says what was expected, what was got and what to do

X = np.ones((N, D))


def bad(value: float) -> np.ndarray:
    x = X.copy()
    x[4, 1] = x[6, 2] = value
    return x


ARGUMENTS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "nan in x": (
        {"x": bad(NAN)},
        ValueError,
        r"x must be finite; got 2 NaN and 0 infinite values, first at row 4, column 1\. Drop",
    ),
    "inf in x": ({"x": bad(-INF)}, ValueError, r"got 0 NaN and 2 infinite values, first at row 4"),
    "nan in a named column": (
        {"x": pd.DataFrame(bad(NAN), columns=["p", "q", "r"])},
        ValueError,
        r"row 4, column 1 \('q'\)",
    ),
    "nan in an image": ({"x": bad(NAN)[..., None]}, ValueError, r"row 4, position \(1, 0\)"),
    "one axis": ({"x": np.ones(N)}, ValueError, r"got \(7,\)\. For one feature pass x\[:, None\]"),
    "no axis": ({"x": 3.0}, ValueError, r"x must have shape \(N, D\) or more axes; got \(\)"),
    "no rows": (
        {"x": np.ones((0, D)), "y": [], "task": []},
        ValueError,
        "x must have at least one row; got none",
    ),
    "no features": ({"x": np.ones((N, 0))}, ValueError, "at least one feature; got shape"),
    "strings": (
        {"x": ["text"] * N},
        TypeError,
        "x must hold real numbers; got values of type .U4",
    ),
    "digits as strings": ({"x": np.full((N, D), "1.5")}, TypeError, "first .*'1.5'.*Encode"),
    "objects": ({"x": [[object()]] * N}, TypeError, "x must hold real numbers; got .* object"),
    "strings among objects": (
        {"x": np.full((N, D), "1", dtype=object)},
        TypeError,
        "x must hold real numbers; got values of type object, the first '1'",
    ),
    "complex x": ({"x": X + 1j}, TypeError, "x must hold real numbers; got .* complex128"),
    "complex tensor": (
        {"x": torch.ones(N, D, dtype=torch.complex64)},
        TypeError,
        "x must hold real numbers; got torch.complex64",
    ),
    "ragged x": ({"x": [[1.0], [1.0, 2.0]]}, ValueError, "got rows of different length"),
    "sparse x": (
        {"x": sparse.csr_array(X)},
        TypeError,
        r"got a sparse matrix. Pass x.toarray\(\)",
    ),
    "text columns": (
        {"x": pd.DataFrame({"p": [1] * N, "sex": ["f"] * N})},
        TypeError,
        r"non-numeric columns \['sex'\]\. Encode",
    ),
    "short y": ({"y": np.ones(5)}, ValueError, "y must have one entry per row of x, N = 7; got 5"),
    "y of three axes": ({"y": np.ones((N, 2, 2))}, ValueError, r"y must have shape \(N,\) or"),
    "y without outputs": ({"y": np.ones((N, 0))}, ValueError, r"\(N, O\); got \(7, 0\)"),
    "inf in y": (
        {"y": [1.0] * 6 + [INF]},
        ValueError,
        "y must be finite or NaN; got 1 infinite values, first at row 6. Mark",
    ),
    "classes as strings": ({"y": ["yes"] * N}, TypeError, "Encode .* MultitaskClassifier"),
    "short task": ({"task": ["a"]}, ValueError, "one label per row of x, N = 7; got 1"),
    "float task": (
        {"task": np.arange(N) / 2},
        TypeError,
        r"task must hold integer or string labels; got floats, e.g. 0.0. Cast .*astype\(int\)",
    ),
    "float tensor task": ({"task": torch.ones(N)}, TypeError, "got floats, e.g. 1.0"),
    "nan task": (
        {"task": [1.0, NAN, 2.0, NAN, 1.0, 1.0, 1.0]},
        ValueError,
        "task must have a label in every row; got 2 missing .* first at row 1. Drop",
    ),
    "missing strings": (
        {"task": pd.Series([*LABELS[:6], None], dtype="str")},
        ValueError,
        "got 1 missing .* first at row 6",
    ),
    "none task": ({"task": [*LABELS[:6], None]}, ValueError, "got 1 missing"),
    "missing integers": (
        {"task": pd.Series([1, None, 1, 1, 1, 1, 1], dtype="Int64")},
        ValueError,
        "got 1 missing .* first at row 1",
    ),
    "mixed task": ({"task": [1, *LABELS[1:]]}, TypeError, "labels of one kind.*got int, str"),
    "tuples": ({"task": [(1, 2)] * N}, TypeError, "labels of one kind.*got tuple"),
    "dates": (
        {"task": pd.Series(pd.date_range("2020", periods=N))},
        TypeError,
        "labels of one kind.*got datetime",
    ),
    "column of labels": ({"task": np.ones((N, 1), int)}, ValueError, r"shape \(7, 1\)\. .*ravel"),
    "one label": ({"task": "a"}, ValueError, r"one label per row, shape \(N,\); got shape \(\)"),
    "label outside tasks": (
        {"tasks": ["a", "b"]},
        ValueError,
        r"labels of the K = 2 tasks \('a', 'b'\); got 'c' at row 2. Add it",
    ),
    "labels of another kind": ({"tasks": [1, 2]}, ValueError, r"tasks \(1, 2\); got 'b' at row 0"),
    "a task twice": ({"tasks": ["a", "b", "c", "b"]}, ValueError, "once; got 'b' more than once"),
    "no tasks": ({"tasks": []}, ValueError, "tasks must name at least one task; got none"),
    "float tasks": ({"tasks": [0.5, 1.5]}, TypeError, "tasks must hold integer or string labels"),
    "short weight": ({"weight": [1.0]}, ValueError, "weight must have one entry per row"),
    "weights of two axes": ({"weight": X}, ValueError, r"weight must have shape \(N,\); got"),
    "negative weight": (
        {"weight": [1, 1, 1, -2, 1, 1, 1]},
        ValueError,
        "weight must not be negative; got -2 at row 3",
    ),
    "nan weight": ({"weight": [NAN] * N}, ValueError, "weight must be finite; got 7 NaN"),
    "two task features rows": (
        {"task_features": np.ones((2, F))},
        ValueError,
        r"shape \(K, F\) with K = 3 tasks; got \(2, 2\). Give one row per task",
    ),
    "task features of one axis": ({"task_features": [1, 2, 3]}, ValueError, r"got \(3,\)"),
    "nan task features": (
        {"task_features": [[1], [NAN], [2]]},
        ValueError,
        "task_features must be finite; got 1 NaN .* row 1, column 0",
    ),
    "task features by label": (
        {"task_features": {"a": [1], "c": [2]}},
        ValueError,
        "a row for each of the K = 3 tasks; got none for 1 of them, first 'b'",
    ),
    "task features frame": (
        {"task_features": pd.DataFrame({"u": [1.0]}, index=["b"])},
        ValueError,
        "got none for 2 of them, first 'a'",
    ),
    "task features twice": (
        {"task_features": pd.DataFrame({"u": [1.0] * 4}, index=[*"abca"])},
        ValueError,
        "one row per task; got a label twice",
    ),
    "text task features": ({"task_features": [["x"]] * 3}, TypeError, "indicator columns"),
    "names too few": ({"feature_names": ["p"]}, ValueError, "feature_names must have 3 names"),
    "names as string": ({"feature_names": "pqr"}, TypeError, "list of 3 names; got the string"),
    "target names": ({"target_names": ["a", "b"]}, ValueError, "target_names must have 1 names"),
    "task feature names": (
        {"task_feature_names": ["u"]},
        ValueError,
        "task_feature_names must have 0 names; got 1",
    ),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_bad_arguments(case: str) -> None:
    changes, error, message = ARGUMENTS[case]
    with pytest.raises(error, match=message):
        make(**changes)


FRAMES: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "missing target": (
        {"target": "marks"},
        KeyError,
        r"no column 'marks'; its columns are \['p', .*\]\. Did you mean 'mark'",
    ),
    "missing task": ({"task": "zzz"}, KeyError, r"no column 'zzz'; its columns are .*'w'\]\."),
    "missing feature": ({"features": ["p", "k"]}, KeyError, "no column 'k'"),
    "missing weight": ({"weight": "weight"}, KeyError, "no column 'weight'"),
    "missing task feature": ({"task_features": ["sise"]}, KeyError, "Did you mean 'size'"),
    "missing task of task feature": (
        {"task": "schol", "task_features": ["size"]},
        KeyError,
        "no column 'schol'.*Did you mean 'school'",
    ),
    "text feature": (
        {"features": ["p", "sex"]},
        TypeError,
        r"non-numeric \['sex'\]\. .*get_dummies\(df, columns=\['sex'\]\)",
    ),
    "text target": ({"target": "sex"}, TypeError, "y must hold real numbers; got .*Encode"),
    "target among features": (
        {"features": ["p", "mark"]},
        ValueError,
        r"must not hold the target; got \['mark'\]",
    ),
    "features as string": ({"features": "p"}, TypeError, "features must be a list of columns"),
    "task features as string": (
        {"task_features": "size"},
        TypeError,
        "task_features must be a list of columns",
    ),
    "varying task feature": (
        {"task_features": ["size", "p"]},
        ValueError,
        "constant within a task; got 'p' with several values in task '[ab]'",
    ),
    "float task": ({"task": "p"}, TypeError, "task must hold integer or string labels"),
    "no numeric columns": (
        {"target": ["p", "q", "r", "mark", "size", "w"]},
        ValueError,
        "must have a numeric column besides",
    ),
}


@pytest.mark.parametrize("case", FRAMES)
def test_bad_frames(case: str, frame: pd.DataFrame) -> None:
    changes, error, message = FRAMES[case]
    with pytest.raises(error, match=message):
        TaskData.from_frame(**({"df": frame, "target": "mark", "task": "school"} | changes))


def test_bad_frame_types(frame: pd.DataFrame) -> None:
    with pytest.raises(TypeError, match="df must be a pandas DataFrame; got dict"):
        TaskData.from_frame({"p": [1]}, "mark", "school")
    with pytest.raises(ValueError, match="unique column names; got 'p' more than once"):
        TaskData.from_frame(frame.rename(columns={"q": "p"}), "mark", "school")
    with pytest.raises(ValueError, match="at least one row"):
        TaskData.from_frame(frame.iloc[:0], "mark", "school")


CALLS: dict[str, tuple[Callable[[TaskData], Any], type[Exception], str]] = {
    "multioutput of one axis": (
        lambda d: TaskData.from_multioutput(d.x, d.y),
        ValueError,
        r"Y must have shape \(N, K\).*got \(7,\)",
    ),
    "multioutput of nan": (
        lambda d: TaskData.from_multioutput(d.x, np.full((N, 2), NAN)),
        ValueError,
        "at least one observed entry; got only NaN",
    ),
    "multioutput tasks": (
        lambda d: TaskData.from_multioutput(d.x, np.ones((N, 2)), tasks=["a"]),
        ValueError,
        "tasks must name the K = 2 columns of Y; got 1",
    ),
    "empty dict": (lambda _: TaskData.from_dict({}), ValueError, "at least one task; got none"),
    "empty table": (
        lambda d: TaskData.from_dict({"a": (d.x, d.y), "b": (d.x[:0], d.y[:0])}),
        ValueError,
        "task 'b': x must have at least one row",
    ),
    "another width": (
        lambda d: TaskData.from_dict({"a": (d.x, d.y), "b": (d.x[:, :2], d.y)}),
        ValueError,
        r"task 'b': x and y must have rows of shape \(3,\) and \(\).*got \(2,\) and \(\)",
    ),
    "no pair": (
        lambda d: TaskData.from_dict({"a": (d.x, d.y), "b": (d.x,)}),
        TypeError,
        r"task 'b': expected a pair \(x, y\); got tuple",
    ),
    "text in a table": (
        lambda d: TaskData.from_dict({"a": (d.x, ["u"] * N)}),
        TypeError,
        "task 'a': y must hold real numbers",
    ),
    "concat of nothing": (lambda _: TaskData.concat([]), ValueError, "at least one TaskData"),
    "concat of widths": (
        lambda _: TaskData.concat([make(), make(x=np.ones((N, 2)))]),
        ValueError,
        r"rows of one shape; got x \(7, 2\) and y \(7,\) in part 1",
    ),
    "concat of names": (
        lambda d: TaskData.concat([d, d.with_x(d.x, feature_names=[*"pqs"])]),
        ValueError,
        r"parts must agree in feature_names; got .*'p', 'q', 'r'",
    ),
    "concat of shapes": (
        lambda _: TaskData.concat([make(), make(y=np.ones((N, 1)))]),
        ValueError,
        r"rows of one shape; got x \(7, 3\) and y \(7, 1\) in part 1",
    ),
    "concat of task features": (
        lambda _: TaskData.concat([make(task_features=[[1]] * 3), make(task_features=[[2]] * 3)]),
        ValueError,
        "agree in the task_features of a task; got two rows for 'a'",
    ),
    "concat of some task features": (
        lambda _: TaskData.concat([make(task_features=[[1]] * 3), make()]),
        ValueError,
        "all have task_features or none; part 1 has none",
    ),
    "mask too short": (
        lambda d: d.rows([True, False]),
        ValueError,
        r"a mask of rows must have shape \(N,\) = \(7,\); got \(2,\)",
    ),
    "float rows": (lambda d: d.rows([0.0]), ValueError, "index must be .* got torch.float"),
    "rows of two axes": (lambda d: d.rows([[0]]), ValueError, r"index must be .*shape \(1, 1\)"),
    "row too far": (lambda d: d.rows([0, 9]), IndexError, "rows 0..6; got 9"),
    "unknown task": (
        lambda d: d.select_tasks(["a", "zz"]),
        ValueError,
        r"labels must be among the K = 3 tasks \('a', 'b', 'c'\); got 'zz'",
    ),
    "unknown single task": (
        lambda d: d.select_tasks(3),
        ValueError,
        r"among the K = 3 tasks .*; got 3",
    ),
    "task selected twice": (lambda d: d.select_tasks(["a", "a"]), ValueError, "or a repeat"),
    "no task selected": (lambda d: d.select_tasks([]), ValueError, "at least one task"),
    "float label": (lambda d: d.index_of([0.5]), TypeError, "integer or string labels"),
    "other rows": (lambda d: d.with_x(d.x[1:]), ValueError, "the N = 7 rows of before; got 6"),
    "other rows nan": (lambda d: d.with_x(d.x * NAN), ValueError, "x must be finite; got 21 NaN"),
    "split of all": (lambda d: d.split(1.0, seed=0), ValueError, "between 0 and 1; got 1.0"),
    "split of nan": (lambda d: d.split(NAN, seed=0), ValueError, "train_fraction .* got nan"),
    "split of tasks": (lambda d: d.split_tasks(0, seed=0), ValueError, "test_fraction .* got 0"),
    "split of one task": (
        lambda d: d.select_tasks("a").split_tasks(seed=0),
        ValueError,
        "at least 2 tasks; got 1",
    ),
    "batch size": (
        lambda d: d.batches(0, generator=torch.Generator()),
        ValueError,
        "batch_size must be at least 1; got 0",
    ),
    "batches of nothing": (
        lambda d: d.rows([]).batches(2, generator=torch.Generator()),
        ValueError,
        "batches needs at least one row",
    ),
    "sampling name": (
        lambda d: d.batches(2, generator=torch.Generator(), sampling="equal"),
        ValueError,
        '"proportional", "uniform", a temperature .* or a Sampler; got .equal',
    ),
    "sampling range": (
        lambda d: d.batches(2, generator=torch.Generator(), sampling=1.5),
        ValueError,
        "temperature in .*got 1.5",
    ),
    "integer dtype": (
        lambda d: d.to(dtype=torch.int64),
        ValueError,
        "dtype must be a floating dtype; got torch.int64",
    ),
    "splitter without groups": (
        lambda d: next(LeaveTasksOut(2).split(d.x)),
        ValueError,
        "needs the task of each row as groups; got none. Pass groups=task",
    ),
}


@pytest.mark.parametrize("case", CALLS)
def test_bad_calls(case: str, data: TaskData) -> None:
    call, error, message = CALLS[case]
    with pytest.raises(error, match=message):
        call(data)
