r"""A tree of tasks by agglomeration of what their rows say of their weights.

Two nodes whose weights are known as $N(\mu_l, V_l)$ and $N(\mu_r, V_r)$, at heights $t_l$ and
$t_r$, and which met at height h, differ by

$$\mu_l - \mu_r \sim N\big(0,\; V_l + V_r + (2h - t_l - t_r) I\big).$$

The pair with the lowest posterior mean of h is merged first, at that height, and sends on
$V^{-1} = \sum_c (V_c + (h - t_c) I)^{-1}$: what is uncertain of a task's weights is not taken for
difference. Of equal heights the pair of the lowest places in memory is merged. Tasks without rows
join at the root.

References:
    Teh, Daumé and Roy, Bayesian agglomerative clustering with coalescents (2007), whose greedy
    searches take the mode of h.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ..gaussian import DiagonalScale
from ..statistics import TaskStatistics
from .quick_search import QuickSearch
from .task_tree import TaskTree

Array = NDArray[np.float64]

# h above the higher child, log-uniform, in units of the variance between tasks
_GRID = np.geomspace(0.02, 2.0, 16)
# Prior variance, in the same units, of directions that a task's rows do not see.
_VAGUE = 100.0
# More tasks than this are compared by two numbers a pair; see `quick_search`.
_MANY = 300
# Pairs for which a node's whole covariance is used; the others see its diagonal.
_CANDIDATES = 20


def find_tree(statistics: TaskStatistics, scale: DiagonalScale) -> TaskTree:
    r"""The tree of K tasks; $O(K^2 D + K D^3)$ time, from 301 tasks on by `QuickSearch`.

    Args:
        statistics: of the tasks.
        scale: standard deviations (O, D) of weights between tasks, the unit of the search.
    """
    root = scale.std[..., None]
    A = statistics.A * root * root.mT
    identity = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    # information form: rows that see few directions leave A singular
    factor = torch.linalg.cholesky(A + identity / _VAGUE)
    covariance = torch.cholesky_inverse(factor)
    b = (statistics.b * scale.std)[..., None]
    mean = (covariance @ b)[..., 0]
    seen = (A.diagonal(dim1=-2, dim2=-1).sum((1, 2)) > 0).cpu().numpy()
    seen[0] |= not seen.any()
    known = (mean.double().cpu().numpy()[seen], covariance.double().cpu().numpy()[seen])
    search = QuickSearch(*known) if seen.sum() > _MANY else _Search(*known)
    merges, heights = _with_blank(*search.run(), seen)
    return TaskTree(torch.as_tensor(merges, device=b.device), torch.as_tensor(heights).to(b))


def _with_blank(
    merges: NDArray[np.int64], heights: Array, seen: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], Array]:
    """A tree of the tasks that were seen, the others joined to its root, at height 1."""
    K, inner = len(seen), len(merges)
    known, blank = np.flatnonzero(seen), np.flatnonzero(~seen)
    number = np.concatenate([known, K + np.arange(inner)])
    top = np.concatenate([number[-1:], K + inner + np.arange(len(blank))])[: len(blank)]
    joined = np.sort(np.stack([blank, top], 1), 1)
    heights = np.concatenate([heights / heights[-1:], np.ones(len(blank))])
    return np.concatenate([number[merges], joined]), heights


class _Search:
    """Nodes in K places; a merged node takes the place of its first child."""

    def __init__(self, mean: Array, covariance: Array) -> None:
        self.mean = mean  # (K, O, D)
        self.covariance = covariance  # (K, O, D, D)
        self.height = np.zeros(len(mean))

    def run(self) -> tuple[NDArray[np.int64], Array]:
        """Merges (K - 1, 2) and heights (K - 1,), not falling."""
        K = len(self.mean)
        table = np.full((K, K), np.inf)
        for k in range(1, K):
            self._enter(table, k, np.arange(k))
        nearest = table.argmin(1)
        lowest = table.min(1)
        alive, node = np.ones(K, dtype=bool), np.arange(K)
        merges, heights = np.empty((K - 1, 2), dtype=np.int64), np.empty(K - 1)
        for step in range(K - 1):
            i = int(lowest.argmin())
            i, j = sorted((i, int(nearest[i])))
            heights[step] = max(table[i, j], self.height.max())
            merges[step] = sorted((node[i], node[j]))
            self._merge(i, j, heights[step])
            node[i] = K + step
            alive[j] = False
            table[[i, j]] = table[:, [i, j]] = np.inf
            others = np.flatnonzero(alive & (np.arange(K) != i))
            self._enter(table, i, others)
            # whose nearest was merged looks anew; the others look at the new node alone
            stale = (nearest == i) | (nearest == j)
            stale[[i, j]] = True
            nearest[stale] = table[stale].argmin(1)
            lowest[stale] = table[stale].min(1)
            closer = table[:, i] < lowest
            nearest[closer], lowest[closer] = i, table[closer, i]
        return merges, heights

    def _enter(self, table: Array, i: int, others: NDArray[np.int64]) -> None:
        """Heights at which node i meets others: by diagonals, and by all for the nearest."""
        if not len(others):
            return
        variance = self.covariance.diagonal(axis1=-2, axis2=-1)
        difference = self.mean[i] - self.mean[others]
        found = self._meet(i, others, np.square(difference), variance[i] + variance[others])
        near = np.argsort(found, kind="stable")[:_CANDIDATES]
        value, vector = np.linalg.eigh(self.covariance[i] + self.covariance[others[near]])
        rotated = np.einsum("poij,poi->poj", vector, difference[near])
        found[near] = self._meet(i, others[near], np.square(rotated), value)
        table[i, others] = table[others, i] = found

    def _meet(self, i: int, others: NDArray[np.int64], square: Array, variance: Array) -> Array:
        """E[h | μ_l − μ_r], (P,), of independent differences (P, O, D)."""
        t, s = self.height[i], self.height[others]
        base = np.maximum(t, s)
        # S(h) = V_l + V_r + (2h − t_l − t_r) I
        least = variance + (2 * base - t - s)[:, None, None]
        total = least[..., None] + 2 * _GRID
        log_p = -0.5 * (np.log(total) + square[..., None] / total).sum((1, 2))
        p = np.exp(log_p - log_p.max(1, keepdims=True))
        return np.asarray(base + (p @ _GRID) / p.sum(1))

    def _merge(self, i: int, j: int, height: float) -> None:
        """The message of the node above i and j, in the place of i."""
        identity = np.eye(self.mean.shape[-1])
        left = self.covariance[i] + (height - self.height[i]) * identity
        right = self.covariance[j] + (height - self.height[j]) * identity
        gain = np.linalg.solve(left + right, left).swapaxes(-2, -1)
        merged = gain @ right
        self.covariance[i] = 0.5 * (merged + merged.swapaxes(-2, -1))
        self.mean[i] += (gain @ (self.mean[j] - self.mean[i])[..., None])[..., 0]
        self.height[i] = height
