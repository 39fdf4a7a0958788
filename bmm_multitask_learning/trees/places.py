r"""Where in a tree a further task or subtree may stand, and what the tree says of weights there.

At height h on the branch above node i the weights x have two factors: what the tasks below i say,
and what all others say, the centre's law included. Their product is the law of x given all rows,
and integrates to the evidence wherever it is taken.

Heights are in [0, 1], the centre at 1. A branch from height a up to b has length
$\lambda (b - a)$, and a leaf's $1 - \lambda$ more (Pagel).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .factors import Factor
from .task_tree import TaskTree

CENTRE = -1
# Places on each branch that a new task may take.
_POINTS = 3


class Genealogy:
    """A tree that can be taken apart: nodes numbered as in `TaskTree`, in any order of height.

    parent: (2K - 1,) list of nodes; CENTRE above the root.
    children: of each inner node.
    height: (2K - 1,) array.
    """

    def __init__(self, tree: TaskTree) -> None:
        K = tree.num_tasks
        self.num_tasks = K
        self.parent = [CENTRE if p == 2 * K - 1 else p for p in tree.parents().tolist()]
        self.children: dict[int, tuple[int, int]] = {
            K + i: (left, right) for i, (left, right) in enumerate(tree.merges.tolist())
        }
        self.height = np.concatenate([np.zeros(K), tree.heights.double().cpu().numpy()])

    def top(self, node: int) -> float:
        """Height of the upper end of the branch above a node."""
        return 1.0 if self.parent[node] == CENTRE else float(self.height[self.parent[node]])

    def prune(self, node: int) -> int:
        """Take a node that is not the root, and its parent, out; returns the sibling."""
        joint = self.parent[node]
        left, right = self.children[joint]
        sibling = right if left == node else left
        self._hang(sibling, self.parent[joint], joint)
        return sibling

    def graft(self, node: int, branch: int, height: float) -> None:
        """Hang a pruned node and its parent into the branch above `branch`."""
        joint = self.parent[node]
        self._hang(joint, self.parent[branch], branch)
        self.parent[branch] = joint
        self.children[joint] = (branch, node)
        self.height[joint] = height

    def _hang(self, node: int, parent: int, instead: int) -> None:
        self.parent[node] = parent
        if parent != CENTRE:
            left, right = self.children[parent]
            self.children[parent] = (node, right) if left == instead else (left, node)

    def generations(self, roots: list[int]) -> list[list[int]]:
        """Inner nodes below `roots`, all of whose children stand in earlier lists."""
        order = [node for level in self.depths(roots) for node in level]
        age = dict.fromkeys(range(self.num_tasks), 0)
        lists: list[list[int]] = []
        for node in reversed(order):
            left, right = self.children[node]
            age[node] = 1 + max(age[left], age[right])
            if age[node] > len(lists):
                lists.append([])
            lists[age[node] - 1].append(node)
        return lists

    def depths(self, roots: list[int]) -> list[list[int]]:
        """Inner nodes at and below `roots`, by their distance from them."""
        level, levels = [r for r in roots if r in self.children], []
        while level:
            levels.append(level)
            below = (child for node in level for child in self.children[node])
            level = [child for child in below if child in self.children]
        return levels


class Ends(NamedTuple):
    """Factors at both ends of the branch above each node, (2K - 1, ...).

    lower: what the tasks below the node say, at the node.
    upper: what all others say, at its parent.
    """

    lower: Factor
    upper: Factor


def factors_at_ends(
    tree: Genealogy, leaves: Factor, centre: Factor, mixing: float, root: int, loose: list[int]
) -> Ends:
    """Pass messages up and down a tree; O(K D³).

    Args:
        tree: of K tasks.
        leaves: of the tasks' rows, (K, ...).
        centre: of the centre's prior, (1, ...).
        mixing: λ.
        root: of the tree.
        loose: root of a subtree that was pruned, whose `lower` is wanted too; or none.
    """
    K, count = tree.num_tasks, len(tree.parent)
    lower, upper = Factor.blank(count, leaves), Factor.blank(count, leaves)
    told = Factor.blank(count, leaves)
    lower[:K] = leaves
    length = torch.as_tensor(branch_lengths(tree, mixing)).to(leaves.linear)
    told[:K] = leaves.along(length[:K])
    for nodes in tree.generations([root, *loose]):
        left, right = (list(side) for side in zip(*map(tree.children.get, nodes), strict=True))
        lower[nodes] = told[left] + told[right]
        told[nodes] = lower[nodes].along(length[nodes])
    upper[[root]] = centre
    for nodes in tree.depths([root]):
        left, right = (list(side) for side in zip(*map(tree.children.get, nodes), strict=True))
        above = upper[nodes].along(length[nodes])
        upper[left] = above + told[right]
        upper[right] = above + told[left]
    return Ends(lower, upper)


def branch_lengths(tree: Genealogy, mixing: float) -> NDArray[np.float64]:
    """(2K - 1,) as `TaskTree.lengths`."""
    parent = np.array(tree.parent)
    top = np.where(parent == CENTRE, 1.0, tree.height[parent])
    length = mixing * (top - tree.height)
    length[: tree.num_tasks] += 1 - mixing
    return length


class Places(NamedTuple):
    """Points on branches: `branch` (n,) the nodes below them, `height` (n,)."""

    branch: NDArray[np.int64]
    height: NDArray[np.float64]

    def factor(self, tree: Genealogy, ends: Ends, mixing: float) -> Factor:
        """All that is known of the weights at each place."""
        like = ends.lower.linear
        leaf = self.branch < tree.num_tasks
        below = mixing * (self.height - tree.height[self.branch]) + (1 - mixing) * leaf
        above = mixing * (np.array([tree.top(i) for i in self.branch]) - self.height)
        at = torch.as_tensor(self.branch, device=like.device)
        low, high = (torch.as_tensor(t).to(like) for t in (below, above))
        return ends.lower[at].along(low) + ends.upper[at].along(high)


def draw_places(
    tree: Genealogy, nodes: list[int], lowest: float, count: int, rng: np.random.Generator
) -> Places:
    """Places uniform over the length of the branches above `nodes`, from `lowest` on."""
    start = np.maximum(tree.height[nodes], lowest)
    length = np.maximum(np.array([tree.top(i) for i in nodes]) - start, 0.0)
    edge = np.concatenate([[0.0], length.cumsum()])
    drawn = rng.uniform(0.0, edge[-1], count)
    which = np.minimum(np.searchsorted(edge, drawn, side="right") - 1, len(nodes) - 1)
    return Places(np.array(nodes)[which], start[which] + drawn - edge[which])


def spread_places(tree: Genealogy, points: int) -> tuple[Places, NDArray[np.float64]]:
    """Midpoints of equal parts of every branch, and each part's share of the whole length."""
    nodes = np.arange(len(tree.parent))
    length = np.array([tree.top(i) for i in nodes.tolist()]) - tree.height
    step = np.outer(length, (np.arange(points) + 0.5) / points)
    places = Places(np.repeat(nodes, points), (tree.height[:, None] + step).flatten())
    share = np.repeat(length, points)
    kept = share > 0
    return Places(places.branch[kept], places.height[kept]), share[kept] / share.sum()


class Newcomer(NamedTuple):
    """The law of a task that hangs somewhere in a tree, nothing else known of it.

    share: (n,) prior probability of each place.
    mean, covariance: (n, O, D) and (n, O, D, D) of its weights there.
    correlation: (n, K) of its weights with those of the tasks in the tree, around the centre.
    """

    share: Tensor
    mean: Tensor
    covariance: Tensor
    correlation: Tensor


def newcomer(task_tree: TaskTree, leaves: Factor, centre: Factor, mixing: float) -> Newcomer:
    """Hang one more task into a tree: every branch may be its place, by its length.

    Args:
        task_tree: of K tasks.
        leaves: of the tasks' rows, (K, ...).
        centre: of the centre's prior, (1, ...).
        mixing: λ.
    """
    tree = Genealogy(task_tree)
    ends = factors_at_ends(tree, leaves, centre, mixing, len(tree.parent) - 1, [])
    places, share = spread_places(tree, _POINTS)
    mean, covariance = places.factor(tree, ends, mixing).law()
    own = torch.as_tensor(mixing * places.height + 1 - mixing).to(mean)
    identity = torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device)
    return Newcomer(
        torch.as_tensor(share).to(mean),
        mean,
        covariance + own[:, None, None, None] * identity,
        mixing * (1 - torch.as_tensor(_meeting(tree, places)).to(mean)),
    )


def _meeting(tree: Genealogy, places: Places) -> NDArray[np.float64]:
    """(n, K) height at which a task that hangs at each place meets those of the tree."""
    meets = np.ones((len(tree.parent), tree.num_tasks))  # those below a node: the node's height
    below = {k: [k] for k in range(tree.num_tasks)}
    for nodes in tree.generations([len(tree.parent) - 1]):
        for node in nodes:
            left, right = tree.children[node]
            below[node] = below[left] + below[right]
    for nodes in tree.depths([len(tree.parent) - 1]):
        for node in nodes:
            for child in tree.children[node]:
                meets[child] = meets[node]
                meets[child, below[node]] = tree.height[node]
    height = meets[places.branch]
    for i, branch in enumerate(places.branch.tolist()):
        height[i, below[branch]] = places.height[i]
    return height
