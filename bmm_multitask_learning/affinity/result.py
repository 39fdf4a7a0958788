"""What `task_affinity` returns: a matrix, a ranking of pairs, groups."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from typing import Literal, NamedTuple, TypeAlias, final

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import average
from scipy.spatial.distance import squareform

Array: TypeAlias = NDArray[np.float64]
Index: TypeAlias = NDArray[np.int64]
Kind: TypeAlias = Literal["evidence", "held-out", "lookahead", "gradient"]


class TaskPair(NamedTuple):
    """One entry of a matrix of affinities.

    helper: label of the task that helps.
    helped: label of the task that is helped; in a symmetric matrix each helps the other.
    affinity: the entry.
    """

    helper: Hashable
    helped: Hashable
    affinity: float


@final
@dataclasses.dataclass(frozen=True)
class TaskAffinity:
    """Which tasks help which.

    Args:
        matrix: (K, K), entry (i, j) what task i does for task j; NaN where that says nothing.
        kind: "evidence", nats that a pair gains; "held-out", nats that the held-out rows of j
            gain by the rows of i; "lookahead", share of the loss of j that a step on i takes
            away; "gradient", cosine. The first and the last are symmetric.
        tasks: K labels, or names of families.
        merges: (K - 1, 2) nodes that join, as in the first columns of SciPy's linkage, the nearest
            first; node K + i is made by row i.
        num_groups: number of groups at which joining stops to pay.
    """

    matrix: Array
    kind: Kind
    tasks: tuple[Hashable, ...]
    merges: Index
    num_groups: int

    @property
    def symmetric(self) -> bool:
        """Whether i does for j what j does for i."""
        return self.kind in ("evidence", "gradient")

    def ranking(self) -> list[TaskPair]:
        """Pairs of different tasks, the highest affinity first.

        Returns:
            K (K - 1) / 2 pairs where the matrix is symmetric, in the order of the tasks, else
            K (K - 1).
        """
        different = ~np.eye(len(self.tasks), dtype=bool)
        first, second = np.nonzero(np.triu(different) if self.symmetric else different)
        values = self.matrix[first, second]
        return [
            TaskPair(self.tasks[first[n]], self.tasks[second[n]], float(values[n]))
            for n in np.argsort(-values, kind="stable")
        ]

    def groups(self, num_groups: int | Literal["auto"] = "auto") -> Index:
        """The group of each task, (K,), numbered from 0 in the order of the tasks.

        Args:
            num_groups: between 1 and K; "auto" stops where joining no longer pays: for "evidence"
                at the number of groups with the largest posterior probability, else where the
                mean affinity between any two groups is 0 or less.

        Raises:
            ValueError: for a number that is not between 1 and K.
        """
        K = len(self.tasks)
        count = self.num_groups if num_groups == "auto" else num_groups
        if not 1 <= count <= K:
            raise ValueError(f'num_groups must be "auto" or lie in 1..{K}; got {num_groups!r}.')
        group = np.arange(K)
        for row, (left, right) in enumerate(self.merges[: K - count]):
            group[(group == left) | (group == right)] = K + row
        _, first, member = np.unique(group, return_index=True, return_inverse=True)
        place: Index = first.argsort().argsort()[member]
        return place


def average_linkage(matrix: Array) -> tuple[Index, int]:
    """Merges by mean affinity between groups, and the number of groups where it is 0 or less.

    Args:
        matrix: (K, K) affinities; the mean of both directions counts.
    """
    K = len(matrix)
    if K == 1:
        return np.empty((0, 2), dtype=np.int64), 1
    mutual = 0.5 * (matrix + matrix.T)
    top = float(mutual[~np.eye(K, dtype=bool)].max())
    distance = top - mutual
    np.fill_diagonal(distance, 0.0)
    tree = average(squareform(distance, checks=False))
    return tree[:, :2].astype(np.int64), K - int((tree[:, 2] < top).sum())
