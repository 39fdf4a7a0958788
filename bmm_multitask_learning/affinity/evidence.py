r"""What a group of tasks gains in evidence when it is taken to share a centre.

The tasks' weights have the law of the fit each, $w_k \sim N(0, T)$, $T = S + \Sigma$; within a
group any two are correlated by $\rho$, because they share a centre:
$$w_k = L\,(\mu + u_k), \quad LL^\top = T, \quad \mu \sim N(0, \rho I), \quad
  u_k \sim N(0, (1 - \rho) I).$$

With w integrated out, task k says $\log t_k(\mu) = o_k + h_k^\top\mu - \tfrac12 \mu^\top M_k \mu$
of the centre, so that
$$\log P(D_G \mid \rho) = \sum_{k \in G} o_k + \tfrac\rho2\,|P^{-1/2} h_G|^2
  - \tfrac12 \log |P|, \qquad P = I + \rho M_G,$$
with $h_G$ and $M_G$ summed over the group. How alike the tasks of a group are is not known: $\rho$
is integrated over a uniform law. $\log P(D_k)$ is the same at every $\rho$, and at $\rho = 0$
nothing is gained.

References:
    Lindley and Smith, Bayes estimates for the linear model (1972), for the exchangeable weights.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..gaussian import DenseScale, condition
from ..precision import LowRankFactor
from ..statistics import TaskStatistics
from .result import Array, Index

# Nodes of the integral over the correlation.
CORRELATIONS = (0.1, 0.3, 0.5, 0.7, 0.9)
# A chunk of pairs holds at most this many matrix entries (2**22 doubles are 32 MiB).
_CHUNK_ELEMENTS = 2**22
_PARTS = ("own", "linear", "precision")


@final
@dataclasses.dataclass(frozen=True)
class CentreFactors:
    r"""What n groups of tasks say of their centres, at each of R correlations.

    Args:
        correlation: (R,) $\rho$.
        own: (n, R) $o$.
        linear: (n, R, O, D) $h$.
        precision: (n, R, O, D, D) $M$.
    """

    correlation: Tensor
    own: Tensor
    linear: Tensor
    precision: Tensor

    @classmethod
    def of_tasks(
        cls, statistics: TaskStatistics, root: Tensor, correlation: Sequence[float] = CORRELATIONS
    ) -> CentreFactors:
        r"""Each task by itself.

        Args:
            statistics: of K tasks.
            root: (O, D, D) $L$.
            correlation: R values in [0, 1).
        """
        rho = root.new_tensor(correlation)
        unique = (1 - rho)[:, None, None]
        scale = DenseScale(unique.sqrt()[..., None] * root)
        given = condition(
            statistics.precision[:, None], statistics.b[:, None], statistics.c[:, None], scale
        )
        # u = √(1−ρ) v:  h = v̂ / √(1−ρ),  M = (I − C̃) / (1 − ρ)
        return cls(
            rho,
            given.log_normaliser.sum(-1),
            given.v / unique.sqrt(),
            _reduction(given.inverse_factor) / unique[..., None],
        )

    def __len__(self) -> int:
        return len(self.own)

    def __getitem__(self, at: Tensor | slice) -> CentreFactors:
        return CentreFactors(self.correlation, *(getattr(self, name)[at] for name in _PARTS))

    def __add__(self, other: CentreFactors) -> CentreFactors:
        """Each group joined with one of the other's."""
        return CentreFactors(
            self.correlation,
            self.own + other.own,
            self.linear + other.linear,
            self.precision + other.precision,
        )

    def log_evidence(self) -> Tensor:
        r"""$\log P(D_G)$ of each group, (n,): $\rho$ integrated over its nodes."""
        rho = self.correlation[:, None, None, None]
        # P = I + ρ M
        total = rho * self.precision
        total.diagonal(dim1=-2, dim2=-1).add_(1)
        factor = torch.linalg.cholesky(total)
        half = torch.linalg.solve_triangular(factor, self.linear[..., None], upper=False)[..., 0]
        # ½ ρ |P^{-1/2} h|² − ½ log|P|
        square = 0.5 * self.correlation[:, None] * half.square().sum(-1)
        gain = (square - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)).sum(-1)
        return (self.own + gain).logsumexp(-1) - math.log(len(self.correlation))

    def pieces(self) -> int:
        """How many groups make a chunk."""
        return max(1, _CHUNK_ELEMENTS // self.precision[0].numel())


def pair_gains(
    first: CentreFactors, second: CentreFactors, pairs: tuple[Tensor, Tensor], *, progress: bool
) -> Tensor:
    r"""$\log P(D_i, D_j) - \log P(D_i) - \log P(D_j)$ of pairs of tasks, (n,).

    Args:
        first, second: what the rows of the K tasks say in the first and the second place.
        pairs: (n,) indices i and (n,) indices j.
        progress: whether to show a progress bar.
    """
    alone = [torch.cat([part.log_evidence() for part in _chunks(f)]) for f in (first, second)]
    gains = []
    indices = zip(*(index.split(first.pieces()) for index in pairs), strict=True)
    total = math.ceil(len(pairs[0]) / first.pieces())
    for i, j in tqdm(indices, total=total, disable=not progress, desc="pairs", delay=2):
        together = (first[i] + second[j]).log_evidence()
        gains.append(together - alone[0][i] - alone[1][j])
    return torch.cat([*gains, alone[0][:0]])


def _chunks(factors: CentreFactors) -> Iterator[CentreFactors]:
    step = factors.pieces()
    return (factors[slice(start, start + step)] for start in range(0, len(factors), step))


def agglomerate(factors: CentreFactors, gains: Array, *, progress: bool) -> tuple[Index, int]:
    r"""Join, one after the other, the two groups that gain most; and where it stops to pay.

    The posterior probability of a partition into C groups is proportional to its evidence over
    $S(K, C)$, the number of such partitions: each C has the same prior probability. Pairs that
    gain by chance do not outweigh how many there were to choose from.

    Args:
        factors: of the K tasks.
        gains: (K, K) of every pair.
        progress: whether to show a progress bar.

    Returns:
        merges (K - 1, 2), and the number of groups of the most probable partition on the way.
    """
    K = len(factors)
    nodes = [factors[slice(k, k + 1)] for k in range(K)]
    evidence = [float(node.log_evidence()) for node in nodes]
    table = np.full((2 * K - 1, 2 * K - 1), -np.inf)
    table[:K, :K] = np.where(np.tri(K, dtype=bool), -np.inf, gains)
    alive = list(range(K))
    merges = np.empty((K - 1, 2), dtype=np.int64)
    total = np.zeros(K)  # evidence over that of K single tasks, by merges
    for row in tqdm(range(K - 1), disable=not progress, desc="groups", delay=2):
        left, right = map(int, np.unravel_index(table.argmax(), table.shape))
        merges[row] = left, right
        total[row + 1] = total[row] + table[left, right]
        evidence.append(evidence[left] + evidence[right] + table[left, right])
        nodes.append(nodes[left] + nodes[right])
        table[[left, right]] = table[:, [left, right]] = -np.inf
        alive = [node for node in alive if node not in (left, right)]
        for start in range(0, len(alive), factors.pieces()):
            at = alive[start : start + factors.pieces()]
            joined = _concatenate([nodes[node] for node in at]) + nodes[-1]
            apart = np.array([evidence[node] for node in at]) + evidence[-1]
            table[at, K + row] = joined.log_evidence().cpu().numpy() - apart
        alive.append(K + row)
    score = total - log_partitions(K)[::-1]
    return merges, K - int(score.argmax())


def _reduction(inverse: Tensor | LowRankFactor) -> Tensor:
    r"""$I - U^{-\top} U^{-1}$, (..., D, D)."""
    if isinstance(inverse, LowRankFactor):
        return inverse.right.mT @ inverse.right
    negative = -(inverse.mT @ inverse)
    negative.diagonal(dim1=-2, dim2=-1).add_(1)
    return negative


def _concatenate(factors: list[CentreFactors]) -> CentreFactors:
    parts = [torch.cat([getattr(f, name) for f in factors]) for name in _PARTS]
    return CentreFactors(factors[0].correlation, *parts)


def log_partitions(size: int) -> Array:
    r"""$\log S(K, C)$ for C = 1..K: ways to part K tasks into C groups, Stirling's numbers.

    Example:
        >>> np.exp(log_partitions(4)).round()
        array([1., 7., 6., 1.])
    """
    logs = np.array([0.0])
    for _ in range(size - 1):
        # S(n, C) = S(n − 1, C − 1) + C S(n − 1, C)
        same = np.append(logs + np.log(np.arange(1, len(logs) + 1)), -np.inf)
        logs = np.logaddexp(np.append(-np.inf, logs), same)
    return logs
