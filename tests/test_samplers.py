"""Samplers: what each draws, and that its scales leave sums over rows unbiased."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bmm_multitask_learning import TaskData
from bmm_multitask_learning.data import (
    Annealed,
    Batch,
    Proportional,
    Resampled,
    RoundRobin,
    Sampler,
    Tempered,
)

COUNTS = (3, 0, 11, 1, 7)
N = sum(COUNTS)
SAMPLERS = {
    "proportional": Proportional(),
    "tempered": Tempered(0.4),
    "uniform": Tempered(0.0),
    "annealed": Annealed(3, start=0.9, end=0.1),
    "round robin": RoundRobin(),
    "over": Resampled("over"),
    "under": Resampled("under"),
}


@pytest.fixture
def data() -> TaskData:
    task = np.random.default_rng(3).permutation(np.repeat(range(5), COUNTS))
    return TaskData(np.arange(float(N))[:, None], np.zeros(N), task, tasks=range(5))


def epoch_of(data: TaskData, size: int, sampler: Sampler, seed: int = 0) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    return list(data.batches(size, generator=generator, sampling=sampler))


@pytest.mark.parametrize("name", SAMPLERS)
def test_sums_of_batches_are_unbiased(name: str, data: TaskData) -> None:
    loss = torch.from_numpy(np.random.default_rng(5).normal(2.0, 3.0, size=N))
    generator = torch.Generator().manual_seed(1)
    epochs = torch.tensor(
        [
            [
                float(batch.scale @ loss[batch.index])
                # 8 batches: two cycles of the four tasks that have rows
                for batch in list(data.batches(3, generator=generator, sampling=SAMPLERS[name]))[
                    :8
                ]
            ]
            for _ in range(400)
        ]
    )
    means = epochs.mean(1)  # batches of one epoch are not independent
    error = float(means.mean() - loss.sum())
    spread = float(means.std()) / len(means) ** 0.5
    # five standard errors: a false alarm in two million seeds
    assert abs(error) < 5 * spread + 1e-9


@pytest.mark.parametrize("name", SAMPLERS)
def test_scales_undo_the_shares_exactly(name: str, data: TaskData) -> None:
    # B p_k s = n_k for every row of a task with rows; of round robin over a cycle of four batches
    sampler, counts = SAMPLERS[name], data.rows_per_task
    cycle = 4 if name == "round robin" else 1
    for step, batch in enumerate(epoch_of(data, 4, sampler)):
        p = sampler.shares(counts, step)
        task = data.task[batch.index]
        assert float(p.sum()) == pytest.approx(1)
        assert float(p[1]) == 0
        np.testing.assert_allclose(len(task) * p[task] * batch.scale, cycle * counts[task])


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_seed_is_the_only_source_of_draws(name: str, data: TaskData) -> None:
    state = torch.random.get_rng_state()
    first, again, other = (
        torch.cat([batch.index for batch in epoch_of(data, 4, SAMPLERS[name], seed)]).tolist()
        for seed in (0, 0, 1)
    )
    assert first == again != other
    assert torch.equal(state, torch.random.get_rng_state())


def test_annealed_goes_from_rows_to_tasks() -> None:
    counts, sampler = torch.tensor([1, 0, 16]), Annealed(10, start=1.0, end=0.5)
    for step, t in ((0, 1.0), (4, 0.8), (10, 0.5), (99, 0.5)):
        expected = torch.tensor([1.0, 0.0, 16.0**t]).double() / (1 + 16.0**t)
        torch.testing.assert_close(sampler.shares(counts, step), expected)


def test_annealed_goes_on_where_the_last_epoch_ended(data: TaskData) -> None:
    sampler, counts = Annealed(5), data.rows_per_task
    [batch] = data.batches(N, generator=torch.Generator(), sampling=sampler, step=5)
    task = data.task[batch.index]
    torch.testing.assert_close(batch.scale, counts[task].double() / (N * 0.25))
    assert len(set(counts[task].tolist())) > 2


def test_round_robin_takes_tasks_in_turn(data: TaskData) -> None:
    generator = torch.Generator().manual_seed(0)
    tasks = [
        data.task[batch.index].unique().tolist()
        for batch in data.batches(3, generator=generator, sampling=RoundRobin(), step=2)
    ]
    assert tasks == [[3], [4], [0], [2], [3], [4], [0], [2]]


def test_oversampling_repeats_rows_evenly(data: TaskData) -> None:
    epoch = epoch_of(data, 5, Resampled("over"))
    rows = torch.cat([batch.index for batch in epoch])
    assert [len(batch.index) for batch in epoch] == [5] * 8 + [4]  # 4 tasks of 11 rows
    times = torch.bincount(rows, minlength=N)
    for k, n in enumerate(COUNTS):
        own = times[data.task == k]
        assert own.sum() == (11 if n else 0)
        assert not n or (own.min() == 11 // n and own.max() == -(-11 // n))


def test_undersampling_takes_a_new_part_of_large_tasks(data: TaskData) -> None:
    epochs = [
        torch.cat([b.index for b in epoch_of(data, 2, Resampled("under"), s)]) for s in (0, 1)
    ]
    for rows in epochs:
        assert data.task[rows].sort().values.tolist() == [0, 2, 3, 4]
    assert set(epochs[0].tolist()) != set(epochs[1].tolist())


def test_every_row_is_as_likely_to_be_left_out(data: TaskData) -> None:
    generator = torch.Generator().manual_seed(4)
    rows = torch.cat(
        [
            batch.index
            for _ in range(2000)
            for batch in data.batches(N, generator=generator, sampling=Resampled("under"))
        ]
    )
    share = torch.bincount(rows, minlength=N) / 2000
    p = 1.0 / data.rows_per_task[data.task]
    # five standard deviations of a share, for 22 rows: a false alarm in 80,000 seeds
    assert bool((abs(share - p) <= 5 * (p * (1 - p) / 2000).sqrt() + 1e-12).all())


def test_a_task_of_one_row_and_batches_of_one(data: TaskData) -> None:
    one = data.select_tasks([3])
    for sampler in SAMPLERS.values():
        [batch] = epoch_of(one, 1, sampler)
        assert batch.index.tolist() == [0]
        assert batch.scale.tolist() == [1.0]


def test_float32_rows_get_float32_scales(data: TaskData) -> None:
    half = data.to(dtype=torch.float32)
    for sampler in SAMPLERS.values():
        assert epoch_of(half, 4, sampler)[0].scale.dtype == torch.float32


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Tempered(1.5), r"temperature must lie in \[0, 1\]; got 1.5"),
        (lambda: Annealed(9, start=-0.1), r"start must lie in \[0, 1\]; got -0.1"),
        (lambda: Annealed(9, end=float("nan")), r"end must lie in \[0, 1\]; got nan"),
        (lambda: Annealed(0), "steps must be at least 1; got 0"),
        (lambda: Resampled("both"), 'to must be "over" or "under"; got .both'),
    ],
)
def test_bad_arguments_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
