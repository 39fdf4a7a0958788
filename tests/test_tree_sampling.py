"""The posterior over trees: against enumeration, against its prior, and on planted trees."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from bmm_multitask_learning.trees.factors import Factor
from bmm_multitask_learning.trees.places import (
    Genealogy,
    factors_at_ends,
    spread_places,
)
from bmm_multitask_learning.trees.sampling import (
    TreeSampler,
    prior_probability,
    weighed,
)

from .trees import random_tree, ranked_trees


def scalar_factors(y, precision):
    """Factors of K tasks of one weight, seen O times as y (K, O) with noise."""
    y = torch.as_tensor(y)[..., None]
    shape = (*y.shape, 1)
    constant = -0.5 * precision * y.square()[..., 0] + 0.5 * np.log(precision / (2 * np.pi))
    return Factor(constant, precision * y, torch.full(shape, precision).double())


def centre_factor(precision, outputs, size=1):
    identity = torch.eye(size).double().expand(1, outputs, -1, -1)
    constant = torch.full((1, outputs), 0.5 * size * np.log(precision)).double()
    return Factor(constant, torch.zeros(1, outputs, size).double(), precision * identity)


def enumerated(y, noise, centre, mixing, points=16):
    """Clade probabilities over all ranked trees and a grid of heights, by dense Gaussians."""
    K, O = y.shape
    axis = (np.arange(points) + 0.5) / points
    cube = np.array(list(itertools.product(axis, repeat=K - 1)))
    heights = np.sort(cube, axis=1)
    totals: dict[frozenset[int], float] = {}
    norm = 0.0
    for merges in ranked_trees(K):
        below = [frozenset([k]) for k in range(K)]
        covariance = np.tile(np.eye(K), (len(heights), 1, 1))
        for step, (left, right) in enumerate(merges):
            for j, k in itertools.product(below[left], below[right]):
                covariance[:, j, k] = covariance[:, k, j] = mixing * (1 - heights[:, step])
            below.append(below[left] | below[right])
        total = covariance + 1 / centre + np.eye(K) / noise
        solved = np.linalg.solve(total, np.broadcast_to(y, (len(heights), K, O)))
        quadratic = np.einsum("ko,hko->h", y, solved)
        evidence = np.exp(-0.5 * quadratic - 0.5 * O * np.linalg.slogdet(total)[1]).sum()
        norm += evidence
        for clade in below[K:]:
            totals[clade] = totals.get(clade, 0.0) + evidence
    return {clade: value / norm for clade, value in totals.items()}


@pytest.mark.slow
@pytest.mark.parametrize("num_tasks", [3, 4])
def test_clades_have_the_probability_of_enumeration(num_tasks):
    rng = np.random.default_rng(num_tasks)
    outputs, noise, centre, mixing = 6, 8.0, 2.0, 0.9
    y = rng.standard_normal((num_tasks, outputs))
    y[1] = 0.8 * y[0] + 0.5 * y[1]
    exact = enumerated(y, noise, centre, mixing)
    leaves, prior = scalar_factors(y, noise), centre_factor(centre, outputs)
    sampler = TreeSampler(random_tree(num_tasks), leaves, prior, mixing, rng)
    counts, moves = dict.fromkeys(exact, 0), 4000
    for step in range(moves):
        sampler.move(step % (2 * num_tasks - 1))
        for clade in sampler.clades():
            tasks = frozenset(k for k in range(num_tasks) if clade >> k & 1)
            counts[tasks] += 1
    assert max(v for c, v in exact.items() if len(c) < num_tasks) > 0.5
    for clade, probability in exact.items():
        # neighbouring draws are nearly independent; .03 is 3 to 4 standard errors
        assert counts[clade] / moves == pytest.approx(probability, abs=0.03), clade


@pytest.mark.slow
def test_without_rows_clades_have_their_prior_probability():
    K = 5
    leaves = scalar_factors(np.zeros((K, 1)), 1.0)
    blank = Factor.blank(K, leaves)
    rng = np.random.default_rng(0)
    sampler = TreeSampler(random_tree(K), blank, centre_factor(1.0, 1), 0.8, rng)
    moves, sizes = 3000, np.zeros(K + 1)
    heights = []
    for step in range(moves):
        sampler.move(step % (2 * K - 1))
        for clade in sampler.clades():
            sizes[clade.bit_count()] += 1
        heights.append(sampler.tree.height[K:].mean())
    for n in range(2, K + 1):
        number = len(list(itertools.combinations(range(K), n)))
        assert sizes[n] / moves / number == pytest.approx(prior_probability(n, K), abs=0.02)
    assert np.mean(heights) == pytest.approx(0.5, abs=0.03)


def test_a_star_leaves_clades_at_their_prior_probability():
    tree = random_tree(6, seed=1)
    leaves, centre = scalar_factors(np.ones((6, 1)), 3.0), centre_factor(1.0, 1)
    rng = np.random.default_rng(0)
    found = weighed(tree, leaves, centre, 0.0, sweeps=3, rng=rng, progress=False).clades()
    assert found == {c: prior_probability(len(c), 6) for c in tree.clades()}
    assert list(found.values())[-1] == 1.0


def test_a_tree_taken_apart_is_put_together_again():
    tree = random_tree(7, seed=2)
    for node in range(13):
        apart = Genealogy(tree)
        joint = apart.parent[node]
        if joint == -1:
            continue
        height = float(apart.height[joint])
        sibling = apart.prune(node)
        assert joint not in {*apart.parent[:node], *apart.parent[node + 1 :]} - {joint}
        apart.graft(node, sibling, height)
        whole = Genealogy(tree)
        assert apart.parent == whole.parent
        assert {n: set(c) for n, c in apart.children.items()} == {
            n: set(c) for n, c in whole.children.items()
        }
        np.testing.assert_array_equal(apart.height, whole.height)


@pytest.mark.parametrize("mixing", [0.4, 1.0])
@pytest.mark.parametrize("num_tasks", [1, 2, 6])
def test_every_place_knows_the_evidence(num_tasks, mixing):
    """What is known at any place integrates to log p(D), up to a constant: that of the rows."""
    rng = torch.Generator().manual_seed(1)
    square = torch.randn(num_tasks, 2, 3, 2, generator=rng).double()  # of rank 2 in 3 features
    A = square @ square.mT
    linear = (A @ torch.randn(num_tasks, 2, 3, 1, generator=rng).double())[..., 0]
    leaves = Factor(torch.zeros(num_tasks, 2).double(), linear, A)
    tree = Genealogy(random_tree(num_tasks, seed=3))
    ends = factors_at_ends(tree, leaves, centre_factor(2.0, 2, 3), mixing, 2 * num_tasks - 2, [])
    places, share = spread_places(tree, 3)
    values = places.factor(tree, ends, mixing).log_integral()
    torch.testing.assert_close(values, values[:1].expand_as(values))
    assert share.sum() == pytest.approx(1.0)
    assert (places.height > tree.height[places.branch]).all()


@pytest.mark.slow
def test_probabilities_of_clades_are_calibrated():
    """Trees and weights drawn from the prior: clades with probability p are true in p of cases."""
    K, outputs, mixing, noise = 8, 12, 1.0, 20.0
    rng = np.random.default_rng(5)
    stated, true = [], []
    for seed in range(25):
        start = random_tree(K, seed=1000 + seed)
        blank = Factor.blank(K, scalar_factors(np.zeros((K, outputs)), 1.0))
        centre = centre_factor(1.0, outputs)
        # a chain without rows draws from the prior
        sampler = TreeSampler(start, blank, centre, mixing, rng)
        for node in range(2 * K - 1):
            sampler.move(node)
        truth = sampler.clades()
        weights = descend(sampler.tree, mixing, outputs, rng)
        y = weights + rng.standard_normal(weights.shape) / noise**0.5
        sampler = TreeSampler(start, scalar_factors(y, noise), centre, mixing, rng)
        counts: dict[int, int] = {}
        for step in range(20 * (2 * K - 1)):
            sampler.move(step % (2 * K - 1))
            if step >= 4 * (2 * K - 1):
                for clade in sampler.clades():
                    counts[clade] = counts.get(clade, 0) + 1
        for clade, count in counts.items():
            if clade != 2**K - 1:
                stated.append(count / (16 * (2 * K - 1)))
                true.append(clade in truth)
    stated, true = np.array(stated), np.array(true)
    for low, high in ((0.02, 0.2), (0.2, 0.5), (0.5, 0.8), (0.8, 1.01)):
        at = (stated >= low) & (stated < high)
        assert at.sum() > 12
        assert true[at].mean() == pytest.approx(stated[at].mean(), abs=0.12)


def descend(tree, mixing, outputs, rng):
    """Weights (K, O) of one feature, down a tree from a centre of variance 1."""
    K = tree.num_tasks
    centre = rng.standard_normal(outputs)
    place = np.zeros((2 * K - 1, outputs))
    root = next(n for n, p in enumerate(tree.parent) if p == -1)
    waiting = [root]
    while waiting:
        node = waiting.pop()
        above = centre if tree.parent[node] == -1 else place[tree.parent[node]]
        length = mixing * (tree.top(node) - tree.height[node]) + (1 - mixing) * (node < K)
        place[node] = above + length**0.5 * rng.standard_normal(outputs)
        waiting += tree.children.get(node, ())
    return place[:K]
