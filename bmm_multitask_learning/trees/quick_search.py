r"""The search of `search` for many tasks, each pair compared by two numbers.

In the eigenvectors of the tasks' mean covariance, which they share nearly, direction d counts by
$\omega_d = 1 / (\bar v_d + h_0)$: what rows see badly weighs little. With
$\Delta^2 = \sum_d \omega_d (\mu_l - \mu_r)_d^2$, $u_k = \sum_d \omega_d V_{k,dd}$ and
$n = \sum_d \omega_d$, nodes at heights t that met at height h have
$E \Delta^2 = u_l + u_r + n(2h - t_l - t_r)$. So h is estimated with variance about
$\sigma^2 = (u_l + u_r + 2 n h_0)^2 \sum_d \omega_d^2 / (2 n^4)$, and

$$\hat h = \frac{\tau^2 \cdot \tfrac{1}{2n}\big(\Delta^2 - u_l - u_r + n (t_l + t_r)\big)
  + \sigma^2 h_0}{\tau^2 + \sigma^2}$$

stands for its posterior mean: pairs of which little is known meet at the prior's height, not at 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Prior mean and variance of h, in units of the variance between tasks.
_MEAN, _VARIANCE = 0.5, 0.25
_BLOCK = 256


class QuickSearch:
    """Nodes in K places; a merged node takes the place of its first child. O(K² D) time.

    Args:
        mean: (K, O, D) of the tasks' weights.
        covariance: (K, O, D, D).
    """

    def __init__(self, mean: Array, covariance: Array) -> None:
        value, vector = np.linalg.eigh(covariance.mean(0))  # (O, D), (O, D, D)
        share = 1 / (value + _MEAN)
        rotated = np.einsum("koi,oij->koj", mean, vector)
        own = np.einsum("oij,koil,olj->koj", vector, covariance, vector, optimize=True)
        self.place = (rotated * np.sqrt(share)).reshape(len(mean), -1)
        self.place -= self.place.mean(0)  # digits: what all have in common
        self.spread = (own * share).sum((1, 2))
        self.size = float(share.sum())
        self.noise = float(np.square(share).sum()) / (2 * self.size**4)
        self.square = np.square(self.place).sum(1)
        self.height = np.zeros(len(mean))

    def run(self) -> tuple[NDArray[np.int64], Array]:
        """Merges (K - 1, 2) and heights (K - 1,), not falling."""
        K = len(self.place)
        table = np.concatenate(
            [self._meet(slice(s, min(s + _BLOCK, K))) for s in range(0, K, _BLOCK)]
        )
        np.fill_diagonal(table, np.inf)
        nearest = table.argmin(1)
        lowest = table[np.arange(K), nearest]
        alive, node = np.ones(K, dtype=bool), np.arange(K)
        merges, heights = np.empty((K - 1, 2), dtype=np.int64), np.empty(K - 1)
        top = 0.0
        for step in range(K - 1):
            i = int(lowest.argmin())
            i, j = sorted((i, int(nearest[i])))
            top = heights[step] = max(float(table[i, j]), top)
            merges[step] = sorted((node[i], node[j]))
            self._merge(i, j, top)
            node[i] = K + step
            alive[j] = False
            found = self._meet(slice(i, i + 1))[0]
            found[~alive] = np.inf
            found[i] = np.inf
            table[j] = table[:, j] = np.inf
            table[i] = table[:, i] = found
            lowest[j] = np.inf
            # whose nearest was merged looks anew; the others look at the new node alone
            stale = alive & ((nearest == i) | (nearest == j))
            stale[i] = True
            rows = np.flatnonzero(stale)
            nearest[rows] = table[rows].argmin(1)
            lowest[rows] = table[rows, nearest[rows]]
            closer = np.flatnonzero(found < lowest)
            nearest[closer], lowest[closer] = i, found[closer]
        return merges, heights

    def _meet(self, rows: slice) -> Array:
        """(R, K) posterior mean heights at which nodes meet all others."""
        distance = self.place[rows] @ self.place.T
        distance *= -2
        distance += self.square[rows, None]
        distance += self.square
        spread = self.spread[rows, None] + self.spread
        moved = self.height[rows, None] + self.height
        estimate = (distance - spread) / (2 * self.size) + 0.5 * moved
        variance = self.noise * np.square(spread + 2 * self.size * _MEAN)
        return np.asarray((_VARIANCE * estimate + variance * _MEAN) / (_VARIANCE + variance))

    def _merge(self, i: int, j: int, height: float) -> None:
        """The message of the node above i and j, in the place of i."""
        left = self.spread[i] + self.size * (height - self.height[i])
        right = self.spread[j] + self.size * (height - self.height[j])
        total = left + right
        share = 0.5 if total <= 0 else right / total
        self.place[i] = share * self.place[i] + (1 - share) * self.place[j]
        self.spread[i] = share * left
        self.square[i] = float(np.square(self.place[i]).sum())
        self.height[i] = height
