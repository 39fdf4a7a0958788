"""Choosing by held-out rows: what is as good as the best."""

from __future__ import annotations

import pytest
import torch

from bmm_multitask_learning.priors.cross_fitting import (
    smallest_as_good,
    whole_and_rests,
)
from bmm_multitask_learning.statistics import TaskStatistics


def scores(*gains, spread):
    """Five folds: means of the gains of candidates over the first, all off by the same draws."""
    off = spread * torch.tensor([-1.0, 1.0, -0.5, 0.5, 0.0])
    first = torch.tensor([3.0, -7.0, 0.0, 1.0, 2.0])
    columns = [first] + [first + gain + off for gain in gains]
    return torch.stack(columns, 1)


def test_the_best_must_be_better_by_its_standard_error():
    """Of a sum of five: sqrt(5) times the deviation of a fold."""
    error = 5**0.5 * float(torch.tensor([-1.0, 1.0, -0.5, 0.5, 0.0]).std())
    assert smallest_as_good(scores(1.01 * error / 5, spread=1.0)) == 1
    assert smallest_as_good(scores(0.99 * error / 5, spread=1.0)) == 0
    assert smallest_as_good(scores(-1.0, -2.0, spread=0.0)) == 0


def test_differences_are_paired():
    """What a fold gives to all candidates is no error of their difference."""
    table = scores(0.4, 0.9, spread=1.0)
    shifted = table + torch.tensor([100.0, -50.0, 3.0, 0.0, 7.0])[:, None]
    assert smallest_as_good(table) == smallest_as_good(shifted) == 2


@pytest.mark.parametrize("count", [2, 5])
def test_the_rest_of_each_part_and_the_whole(count):
    generator = torch.Generator().manual_seed(count)
    A, b = (torch.rand(count, 3, 1, *size, generator=generator) for size in ((2, 2), (2,)))
    rows = torch.arange(count)[:, None] + torch.ones(3)
    parts = [TaskStatistics(A[f], b[f], b[f, ..., 0], rows[f]) for f in range(count)]
    whole, rests = whole_and_rests(parts)
    torch.testing.assert_close(whole.A, A.sum(0))
    assert len(rests) == count
    for part, rest in zip(parts, rests, strict=True):
        together = part + rest
        torch.testing.assert_close(together.b, whole.b)
        torch.testing.assert_close(together.rows, whole.rows)
