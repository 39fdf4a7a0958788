"""A rooted binary tree whose leaves are tasks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Sequence
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.cluster.hierarchy import cophenet, fcluster
from scipy.spatial.distance import squareform
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.transforms import Transform

# Of K - 1 steps from height to height, in their mean: none starts at 0, where none could leave.
_LEAST_STEP = 1e-3


@final
@dataclasses.dataclass(frozen=True)
class TaskTree:
    r"""Who is how near to whom: K - 1 merges of K tasks, each at a height.

    Nodes are numbered as SciPy does: tasks 0..K-1, then the merges in their order, so that a
    child's number is below its parent's. Leaves have height 0 and the last merge, the root,
    height 1.

    Args:
        merges: (K - 1, 2) the two nodes that each merge joins.
        heights: (K - 1,) of the merges, not falling.
        probability: (K - 1,) posterior of the clade below each merge, where it is known.

    Example:
        >>> tree = TaskTree(torch.tensor([[0, 2], [1, 3]]), torch.tensor([0.25, 1.0]))
        >>> tree.newick(["maths", "music", "physics"])
        '(music:1,(maths:0.25,physics:0.25):0.75);'
        >>> tree.correlation()
        tensor([[1.0000, 0.0000, 0.7500],
                [0.0000, 1.0000, 0.0000],
                [0.7500, 0.0000, 1.0000]])
    """

    merges: Tensor
    heights: Tensor
    probability: Tensor | None = None

    @property
    def num_tasks(self) -> int:
        """K."""
        return len(self.merges) + 1

    def parents(self) -> Tensor:
        """(2K - 1,) parent of each node; the root's is 2K - 1, the centre above the tree."""
        K = self.num_tasks
        parents = self.merges.new_full((2 * K - 1,), 2 * K - 1)
        parents[self.merges.flatten()] = torch.arange(
            K, 2 * K - 1, device=parents.device
        ).repeat_interleave(2)
        return parents

    def lengths(self, mixing: float | Tensor = 1.0) -> Tensor:
        r"""(2K - 1,) length of the branch above each node, leaves at distance 1 from the centre.

        Pagel's $\lambda$ shortens inner branches and stretches those of the leaves:
        $\lambda (h_{\text{parent}} - h) + (1 - \lambda)[\text{leaf}]$.

        Args:
            mixing: $\lambda$ in [0, 1]; 0 is a star.
        """
        K = self.num_tasks
        top = self.heights.new_ones(1)
        height = torch.cat([self.heights.new_zeros(K), self.heights, top])
        leaf = height.new_zeros(2 * K - 1)
        leaf[:K] = 1.0
        return mixing * (height[self.parents()] - height[:-1]) + (1 - mixing) * leaf

    def correlation(self) -> Tensor:
        r"""(K, K) $1 - h_{jk}$ with $h_{jk}$ the height at which the tasks j and k meet."""
        if self.num_tasks == 1:
            return self.heights.new_ones(1, 1)
        return self.heights.new_tensor(1 - squareform(cophenet(self.linkage())))

    def linkage(self) -> NDArray[np.float64]:
        """(K - 1, 4) in the format of `scipy.cluster.hierarchy`."""
        sizes = np.ones(2 * self.num_tasks - 1)
        merges = self.merges.cpu().numpy()
        for i, (left, right) in enumerate(merges):
            sizes[self.num_tasks + i] = sizes[left] + sizes[right]
        heights = self.heights.cpu().numpy()
        return np.column_stack([merges, heights, sizes[self.num_tasks :]]).astype(np.float64)

    def clades(self) -> dict[frozenset[int], float]:
        """The tasks below each merge, in the order of the merges, and the clade's probability.

        The last clade holds all tasks. A probability that is not known is NaN.
        """
        below = [frozenset([k]) for k in range(self.num_tasks)]
        for left, right in self.merges.tolist():
            below.append(below[left] | below[right])
        known = self.heights.new_full(self.heights.shape, torch.nan)
        chances = known if self.probability is None else self.probability
        return dict(zip(below[self.num_tasks :], chances.tolist(), strict=True))

    def cut(self, num_groups: int) -> NDArray[np.int64]:
        """(K,) group of each task, 0.., when the tree is cut into `num_groups`.

        Raises:
            ValueError: for fewer than one group or more than there are tasks.
        """
        if not 1 <= num_groups <= self.num_tasks:
            raise ValueError(
                f"num_groups must lie in 1..{self.num_tasks}, the number of tasks; "
                f"got {num_groups}."
            )
        if self.num_tasks == 1:
            return np.zeros(1, dtype=np.int64)
        return (fcluster(self.linkage(), num_groups, "maxclust") - 1).astype(np.int64)

    def newick(self, names: Sequence[Hashable] | None = None) -> str:
        """The tree in Newick's format with branch lengths, and clades' probabilities where known.

        Args:
            names: (K,) of the tasks, such as `model.tasks`; their numbers by default.
        """
        shown = [_quoted(str(n)) for n in (range(self.num_tasks) if names is None else names)]
        lengths = self.lengths().tolist()
        labels = ["" if math.isnan(p) else f"{p:.6g}" for p in self.clades().values()]
        for (left, right), label in zip(self.merges.tolist(), labels, strict=True):
            pair = (f"{shown[node]}:{lengths[node]:.6g}" for node in (left, right))
            shown.append(f"({','.join(pair)}){label}")
        return f"{shown[-1]};"


def _quoted(name: str) -> str:
    """A name as Newick wants it: in quotes where it has a character with a meaning."""
    plain = name and not any(c in "()[]{}:;,'\" \t\n" for c in name)
    return name if plain else "'" + name.replace("'", "''") + "'"


def caterpillar(num_tasks: int, like: Tensor) -> TaskTree:
    """The tree that takes up one task after the other, at equal steps."""
    steps = torch.arange(1, num_tasks, device=like.device)
    before = torch.cat([steps.new_zeros(1), num_tasks + steps[:-1] - 1])[: len(steps)]
    return TaskTree(torch.stack([before, steps], 1), steps.to(like) / max(num_tasks - 1, 1))


@final
class HeightsTransform(Transform):
    r"""Heights of the merges of a tree from unconstrained u, their order kept.

    $$h_i = \sum_{j \le i} e^{u_j} \Big/ \sum_j e^{u_j}$$

    It has no Jacobian: u has one dimension more than the heights below the root's. The inverse
    lifts steps of less than a thousandth of their mean to that.

    Example:
        >>> HeightsTransform()(torch.tensor([0.0, 0.0, 0.0, 0.0]))
        tensor([0.2500, 0.5000, 0.7500, 1.0000])
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector

    def _call(self, x: Tensor) -> Tensor:
        total = x.softmax(-1).cumsum(-1)
        return total / total[-1:]  # the root at 1 to the last digit

    def _inverse(self, y: Tensor) -> Tensor:
        steps = y.diff(prepend=y.new_zeros(1))
        return steps.clamp(min=_LEAST_STEP / max(len(y), 1)).log()
