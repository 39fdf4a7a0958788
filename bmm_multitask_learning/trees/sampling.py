r"""How sure the clades of a tree are: trees drawn from their posterior.

A priori pairs are joined at random, as in Kingman's coalescent, at K - 1 heights that are
independent and uniform on (0, 1), in their order. So, with the rest of the tree given, a subtree
hangs anywhere above its own height with equal probability per length of branch. Trees have the
posterior

$$p(\text{tree} \mid D, \eta) \propto p(D \mid \text{tree}, \eta)\, p(\text{tree})$$

with the weights integrated out. One move prunes a subtree, draws places for it from that prior,
and takes one of them, or its old place, with probability in proportion to the evidence there:
messages through the rest of the tree give all of them at once. This leaves the posterior
invariant.

References:
    Daumé III (2009), section 3.1, and Teh, Daumé and Roy (2007), who sample trees by sequential
    Monte Carlo from the coalescent, with its exponential waiting times.
    Andrieu, Lee and Vihola, Uniform ergodicity of the iterated conditional SMC and geometric
    ergodicity of particle Gibbs samplers (2018), for choosing among fresh draws and the old one.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from math import comb

import numpy as np
import torch
from tqdm import tqdm

from .factors import Factor
from .places import CENTRE, Genealogy, Places, draw_places, factors_at_ends
from .task_tree import TaskTree

# Of the sweeps, what is left out at the start.
_BURN_IN = 0.2
_LEAST_PLACES = 16


class TreeSampler:
    """A Markov chain of trees.

    Args:
        tree: where it starts.
        leaves: factors (K, ...) of the tasks' rows, whitened by Σ.
        centre: factor (1, ...) of the centre's prior, likewise.
        mixing: λ.
        rng: the only source of randomness.
    """

    def __init__(
        self,
        tree: TaskTree,
        leaves: Factor,
        centre: Factor,
        mixing: float,
        rng: np.random.Generator,
    ) -> None:
        self.tree = Genealogy(tree)
        self.leaves = leaves
        self.centre = centre
        self.mixing = mixing
        self.rng = rng

    def move(self, node: int) -> None:
        """Prune a node, and hang it where the evidence says, or where it was."""
        tree, joint = self.tree, self.tree.parent[node]
        if joint == CENTRE:
            return
        height = float(tree.height[joint])
        sibling = tree.prune(node)
        root, below = self._split(sibling, node)
        ends = factors_at_ends(tree, self.leaves, self.centre, self.mixing, root, [node])
        count = max(_LEAST_PLACES, tree.num_tasks)
        drawn = draw_places(tree, below, float(tree.height[node]), count, self.rng)
        places = Places(np.append(drawn.branch, sibling), np.append(drawn.height, height))
        length = self.mixing * (places.height - tree.height[node])
        length = length + (1 - self.mixing) * (node < tree.num_tasks)
        own = ends.lower[torch.full((count + 1,), node)]
        own = own.along(torch.as_tensor(length).to(own.linear))
        joined = places.factor(tree, ends, self.mixing) + own
        chance = joined.log_integral().softmax(0).numpy()
        at = int(self.rng.choice(count + 1, p=chance / chance.sum()))
        tree.graft(node, int(places.branch[at]), float(places.height[at]))

    def _split(self, sibling: int, node: int) -> tuple[int, list[int]]:
        """The root of the tree that is left, and its nodes."""
        root = sibling
        while self.tree.parent[root] != CENTRE:
            root = self.tree.parent[root]
        inner = [n for level in self.tree.depths([root]) for n in level]
        below = [child for n in inner for child in self.tree.children[n]]
        return root, [root, *below]

    def count(self, sweeps: int, *, progress: bool) -> Counter[int]:
        """How often each clade is met; a sweep moves every node once."""
        counts: Counter[int] = Counter()
        for sweep in tqdm(range(sweeps), disable=not progress, desc="trees", unit="sweep"):
            for node in self.rng.permutation(len(self.tree.parent)).tolist():
                self.move(node)
                if sweep >= int(_BURN_IN * sweeps):
                    counts.update(self.clades())
        return counts

    def clades(self) -> set[int]:
        """The tasks below each inner node, as the bits of a number."""
        below = {k: 1 << k for k in range(self.tree.num_tasks)}
        (root,) = (n for n, parent in enumerate(self.tree.parent) if parent == CENTRE)
        order = [n for level in self.tree.depths([root]) for n in level]
        for n in reversed(order):
            left, right = self.tree.children[n]
            below[n] = below[left] | below[right]
        return {below[n] for n in order}


def weighed(
    tree: TaskTree,
    leaves: Factor,
    centre: Factor,
    mixing: float,
    *,
    sweeps: int,
    rng: np.random.Generator,
    progress: bool,
) -> TaskTree:
    r"""A tree with the posterior probability of each of its clades.

    $O(K^2 D^3)$ a sweep: each of 2K - 1 nodes is pruned once. The first fifth of the sweeps is
    left out. Where $\lambda = 0$ the rows say nothing of the tree, and the prior is returned.

    Args:
        tree: whose clades; the chain starts there.
        leaves: factors (K, ...) of the tasks' rows, whitened by Σ.
        centre: factor (1, ...) of the centre's prior, likewise.
        mixing: λ.
        sweeps: at least 1.
        rng: the only source of randomness.
        progress: whether to show a progress bar.

    Raises:
        ValueError: for `sweeps` below 1.
    """
    if sweeps < 1:
        raise ValueError(f"sweeps must be at least 1; got {sweeps}.")
    asked = [sum(1 << k for k in clade) for clade in tree.clades()]
    if mixing == 0:
        found = [prior_probability(bits.bit_count(), tree.num_tasks) for bits in asked]
    else:
        sampler = TreeSampler(tree, leaves, centre, mixing, rng)
        counts = sampler.count(sweeps, progress=progress)
        found = [counts[bits] / counts.total() * (tree.num_tasks - 1) for bits in asked]
    return dataclasses.replace(tree, probability=tree.heights.new_tensor(found))


def prior_probability(size: int, num_tasks: int) -> float:
    r"""$\frac{2K}{n(n+1)} \big/ \binom{K}{n}$: that n given tasks of K are a clade, 1 for n = K.

    Example:
        >>> round(prior_probability(2, 3), 4)
        0.3333
    """
    if size == num_tasks:
        return 1.0
    return 2 * num_tasks / (size * (size + 1) * comb(num_tasks, size))
