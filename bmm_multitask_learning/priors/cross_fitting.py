"""How strong a structure is, chosen by rows that it was not found from."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from ..statistics import TaskStatistics


def whole_and_rests(
    parts: Sequence[TaskStatistics],
) -> tuple[TaskStatistics, list[TaskStatistics]]:
    r"""$\sum_g S_g$, and $\sum_{g \ne f} S_g$ for each part f.

    Args:
        parts: statistics $S_g$ of F disjoint parts of every task's rows, two or more.
    """
    rests = [[*parts[:f], *parts[f + 1 :]] for f in range(len(parts))]
    whole, *others = (functools.reduce(operator.add, some) for some in (parts, *rests))
    return whole, others


def smallest_as_good(scores: Tensor) -> int:
    r"""The first column that is less than one standard error worse than the best.

    Args:
        scores: (F, J) of J candidates in F folds, the simplest first.

    Example:
        >>> smallest_as_good(torch.tensor([[0.0, 3.0, 3.5], [0.0, 2.0, 2.5], [0.0, 4.0, 3.5]]))
        1
    """
    behind = scores[:, [int(scores.sum(0).argmax())]] - scores
    error = behind.std(0) * len(scores) ** 0.5
    return int((behind.sum(0) <= error).to(torch.int64).argmax())
