"""Trees of tasks: what they say, diffusion along them, how they are found."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.cluster.hierarchy
import scipy.stats
import torch

from bmm_multitask_learning import datasets
from bmm_multitask_learning.distributions import BrownianTree, ExchangeableGaussian
from bmm_multitask_learning.gaussian import DiagonalScale
from bmm_multitask_learning.statistics import TaskStatistics
from bmm_multitask_learning.trees import TaskTree
from bmm_multitask_learning.trees.messages import make_levels
from bmm_multitask_learning.trees.quick_search import QuickSearch
from bmm_multitask_learning.trees.search import find_tree
from bmm_multitask_learning.trees.task_tree import caterpillar

from .trees import random_tree, shared_length

# ---- the tree itself ----------------------------------------------------------------------


@pytest.mark.parametrize("mixing", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("num_tasks", [1, 2, 6])
def test_lengths_give_the_mixed_correlation(num_tasks, mixing):
    tree = random_tree(num_tasks)
    shared = shared_length(tree, tree.lengths(mixing))
    expected = mixing * tree.correlation() + (1 - mixing) * torch.eye(num_tasks)
    np.testing.assert_allclose(shared, expected, atol=1e-12)


def test_linkage_is_scipys():
    rng = np.random.default_rng(0)
    linkage = scipy.cluster.hierarchy.linkage(rng.standard_normal((7, 2)), "average")
    linkage[:, 2] /= linkage[-1, 2]
    tree = TaskTree(
        torch.as_tensor(linkage[:, :2].astype(np.int64)), torch.as_tensor(linkage[:, 2])
    )
    np.testing.assert_array_equal(tree.linkage(), linkage)
    assert scipy.cluster.hierarchy.is_valid_linkage(tree.linkage())
    assert [len(c) for c in tree.clades()] == linkage[:, 3].tolist()
    assert len(set(tree.cut(3).tolist())) == 3


def test_cut_follows_the_clades():
    tree = random_tree(8, seed=3)
    left, right = tree.merges[-1].tolist()
    clades = list(tree.clades())
    sides = [{left} if left < 8 else clades[left - 8], clades[right - 8]]
    groups = tree.cut(2)
    assert {frozenset(np.flatnonzero(groups == g).tolist()) for g in (0, 1)} == {
        frozenset(side) for side in sides
    }
    with pytest.raises(ValueError, match=r"num_groups must lie in 1\.\.8, .* got 9"):
        tree.cut(9)


def test_newick_quotes_names():
    tree = TaskTree(torch.tensor([[0, 1]]), torch.tensor([1.0]))
    assert tree.newick(["a b", "it's"]) == "('a b':1,'it''s':1);"
    assert random_tree(1).newick(["only"]) == "only;"


def test_clades_carry_their_probabilities():
    merges, heights = torch.tensor([[0, 1], [2, 3]]), torch.tensor([0.5, 1.0])
    assert all(math.isnan(p) for p in TaskTree(merges, heights).clades().values())
    tree = TaskTree(merges, heights, torch.tensor([0.75, 1.0]))
    assert tree.clades() == {frozenset([0, 1]): 0.75, frozenset([0, 1, 2]): 1.0}
    assert tree.newick("abc") == "(c:1,(a:0.5,b:0.5)0.75:0.5)1;"


def test_the_root_stands_at_the_centre():
    """At λ = 0 all inner nodes do; else every one but the root has a place of its own."""
    tree = random_tree(9)
    (star,) = make_levels(tree, torch.tensor(0.0))
    assert sorted(star.task.tolist()) == list(range(9))
    assert (star.length == 1).all()
    levels = make_levels(tree, torch.tensor(0.5).double())
    nodes = torch.cat([level.node for level in levels])
    assert sorted(nodes.tolist()) == list(range(16))
    lengths = torch.cat([level.length for level in levels])
    assert torch.equal(lengths, tree.lengths(0.5)[nodes])
    assert len(make_levels(caterpillar(9, tree.heights), torch.tensor(1.0))) == 8


# ---- diffusion ----------------------------------------------------------------------------


def brownian(num_tasks, *, outputs=2, features=3, seed=0, lengths=None):
    tree = random_tree(num_tasks, seed)
    rng = torch.Generator().manual_seed(seed)
    if lengths is None:
        lengths = torch.rand(2 * num_tasks - 1, generator=rng).double() + 0.1
    variance = torch.rand(outputs, features, generator=rng).double() + 0.5
    root = torch.randn(outputs, features, features, generator=rng).double().tril(-1)
    root = root + torch.diag_embed(torch.rand(outputs, features, generator=rng).double() + 0.5)
    return tree, BrownianTree(tree.merges, lengths, variance, root)


def dense_log_prob(law, shared, value):
    K, O, D = law.event_shape
    total = 0.0
    for o in range(O):
        root, start = law.scale_tril[o].numpy(), np.diag(law.centre_variance[o].numpy())
        covariance = np.kron(np.ones((K, K)), start) + np.kron(shared, root @ root.T)
        dense = scipy.stats.multivariate_normal(np.zeros(K * D), covariance)
        total = total + dense.logpdf(value[..., o, :].reshape(*value.shape[:-3], K * D))
    return total


@pytest.mark.parametrize("num_tasks", [1, 2, 5, 7])
def test_brownian_log_prob_is_the_dense_one(num_tasks):
    tree, law = brownian(num_tasks, seed=num_tasks)
    value = torch.randn(4, num_tasks, 2, 3, generator=torch.Generator().manual_seed(9)).double()
    shared = shared_length(tree, law.lengths)
    np.testing.assert_allclose(law.shared_length(), shared, atol=1e-12)
    expected = dense_log_prob(law, shared, value.numpy())
    np.testing.assert_allclose(law.log_prob(value), expected, rtol=1e-8)


def test_brownian_branches_of_length_zero():
    """Inner branches and the leaf of one of two siblings may have none."""
    tree = random_tree(6, seed=2)
    lengths = torch.rand(11, generator=torch.Generator().manual_seed(1)).double() + 0.1
    lengths[6:] = 0.0
    lengths[tree.merges[0, 0]] = 0.0
    _, law = brownian(6, seed=2, lengths=lengths)
    value = torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(9)).double()
    expected = dense_log_prob(law, shared_length(tree, lengths), value.numpy())
    assert float(law.log_prob(value)) == pytest.approx(float(expected), rel=1e-8)


def test_a_star_is_exchangeable():
    tree = random_tree(5, seed=4)
    _, law = brownian(5, seed=4, lengths=tree.lengths(0.0))
    other = ExchangeableGaussian(5, law.centre_variance, law.scale_tril)
    value = torch.randn(3, 5, 2, 3, generator=torch.Generator().manual_seed(9)).double()
    torch.testing.assert_close(law.log_prob(value), other.log_prob(value))


def test_brownian_samples_have_its_covariance():
    _, law = brownian(4, outputs=1, features=2, seed=5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = law.sample((200_000,))[..., 0, :].flatten(1).numpy()
    root = law.scale_tril[0].numpy()
    expected = np.kron(np.ones((4, 4)), np.diag(law.centre_variance[0].numpy()))
    expected = expected + np.kron(law.shared_length().numpy(), root @ root.T)
    scale = np.sqrt(np.diagonal(expected))
    # Monte Carlo error of a correlation is .0022: 6 of it, false alarm below 1e-7
    difference = (np.cov(draws.T) - expected) / np.outer(scale, scale)
    assert np.abs(difference).max() < 0.014


def test_brownian_batches_of_scales():
    _, law = brownian(3)
    batch = BrownianTree(
        torch.tensor([[0, 1], [2, 3]]),
        law.lengths,
        law.centre_variance.expand(4, -1, -1),
        law.scale_tril.expand(4, -1, -1, -1),
    )
    draws = batch.sample((6,))
    assert draws.shape == (6, 4, 3, 2, 3)
    assert batch.log_prob(draws).shape == (6, 4)


# ---- search -------------------------------------------------------------------------------


def leaves(tree, rows=4000.0, *, features=40, outputs=1, seed=0):
    """Factors of tasks whose weights diffused along a tree and are known well."""
    lengths = tree.lengths()
    shape = torch.ones(outputs, features).double()
    law = BrownianTree(tree.merges, lengths, shape, torch.diag_embed(shape))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        W = law.sample()
    A = rows * torch.eye(features).double().expand(len(W), 1, -1, -1)
    return TaskStatistics(A, rows * W, torch.zeros(W.shape[:2]), torch.full((len(W),), rows))


def even_tree():
    """Eight tasks, merges far apart in height."""
    merges = [[0, 5], [2, 7], [1, 3], [4, 6], [8, 9], [10, 11], [12, 13]]
    heights = torch.tensor([0.08, 0.1, 0.12, 0.14, 0.3, 0.4, 1.0]).double()
    return TaskTree(torch.tensor(merges), heights)


@pytest.mark.parametrize("outputs", [1, 3])
def test_a_tree_of_known_weights_is_found(outputs):
    tree = even_tree()
    statistics = leaves(tree, outputs=outputs)
    found = find_tree(statistics, DiagonalScale(torch.ones(outputs, 40).double()))
    assert set(found.clades()) == set(tree.clades())
    assert found.heights[-1] == 1
    assert (found.heights.diff() >= 0).all()
    assert (found.correlation() - tree.correlation()).abs().max() < 0.25


def test_a_tree_is_the_same_in_other_units():
    statistics = leaves(even_tree(), rows=30.0)
    unit = torch.logspace(-2, 2, 40).double()
    other = TaskStatistics(
        statistics.A / unit[:, None] / unit, statistics.b / unit, statistics.c, statistics.rows
    )
    first = find_tree(statistics, DiagonalScale(torch.ones(1, 40).double()))
    second = find_tree(other, DiagonalScale(unit[None]))
    assert torch.equal(first.merges, second.merges)
    torch.testing.assert_close(first.heights, second.heights)


def test_what_rows_do_not_say_is_no_difference():
    """Two tasks as far from a third: the one whose distance is uncertain meets it first."""
    A = 100 * torch.eye(4).double().expand(3, 1, -1, -1).clone()
    A[2, 0, 0, 0] = 0.5
    means = torch.zeros(3, 1, 4, 1).double()
    means[1, 0, 0] = 1.5
    means[2, 0, 0] = -1.6  # further than the other
    b = (A @ means)[..., 0]
    statistics = TaskStatistics(A, b, torch.zeros(3, 1), torch.ones(3))
    found = find_tree(statistics, DiagonalScale(torch.ones(1, 4).double()))
    assert found.merges[0].tolist() == [0, 2]


@pytest.mark.parametrize("empty", [[3], [0, 7], [0, 1, 2, 3, 4, 5, 7], list(range(8))])
def test_tasks_without_rows_meet_the_others_at_the_root(empty):
    statistics = leaves(even_tree())
    rest = [k for k in range(8) if k not in empty]
    part = TaskStatistics(
        *(t[rest] for t in (statistics.A, statistics.b, statistics.c, statistics.rows))
    )
    statistics.A[empty] = 0.0
    statistics.b[empty] = 0.0
    scale = DiagonalScale(torch.ones(1, 40).double())
    found = find_tree(statistics, scale)
    correlation = found.correlation()
    assert torch.equal(correlation[empty], torch.eye(8).double()[empty])
    assert len(list(found.clades())[-1]) == 8
    if rest:
        expected = find_tree(part, scale).correlation()
        torch.testing.assert_close(correlation[rest][:, rest], expected)


def test_more_tasks_than_candidates():
    """Pairs outside the shortlist are compared by the diagonals of their covariances."""
    tree = random_tree(50, seed=1)
    heights = torch.linspace(0.05, 1.0, 49).double() ** 2
    tree = TaskTree(tree.merges, heights)
    found = find_tree(leaves(tree, features=80), DiagonalScale(torch.ones(1, 80).double()))
    right = set(found.clades()) & set(tree.clades())
    assert len(right) >= 0.7 * 49


@pytest.mark.parametrize("num_tasks", [1, 2])
def test_smallest_trees(num_tasks):
    statistics = leaves(random_tree(num_tasks), features=3)
    found = find_tree(statistics, DiagonalScale(torch.ones(1, 3).double()))
    assert found.num_tasks == num_tasks
    assert found.correlation().shape == (num_tasks, num_tasks)


def test_identical_tasks_make_a_tree():
    statistics = leaves(random_tree(1), features=3)
    same = TaskStatistics(
        *(t.expand(5, *t.shape[1:]) for t in (statistics.A, statistics.b, statistics.c)),
        statistics.rows.expand(5),
    )
    found = find_tree(same, DiagonalScale(torch.ones(1, 3).double()))
    assert torch.isfinite(found.heights).all()
    assert len(list(found.clades())[-1]) == 5


def planted_leaves(seed, *, num_tasks=32, num_features=24):
    """Posterior means and covariances of the tasks of `make_tree`, as the searches take them."""
    data, truth = datasets.make_tree(num_tasks, num_features=num_features, seed=seed)
    unit = truth.weights.std()
    x, y, task = data.x.numpy() * unit, data.y.numpy().ravel(), data.task.numpy()
    means, covariances = [], []
    for k in range(num_tasks):
        rows = x[task == k]
        precision = rows.T @ rows / truth.noise**2 + 0.01 * np.eye(num_features)
        covariances.append(np.linalg.inv(precision))
        means.append(covariances[-1] @ rows.T @ y[task == k] / truth.noise**2)
    return np.array(means)[:, None], np.array(covariances)[:, None], truth


def test_the_quick_search_is_better_than_average_linkage():
    """The share of planted clades over four seeds; the search for few tasks finds about .98."""
    shares = []
    for seed in range(4):
        mean, covariance, truth = planted_leaves(seed)
        merges, heights = QuickSearch(mean, covariance).run()
        assert (np.diff(heights) >= 0).all()
        linkage = scipy.cluster.hierarchy.average(mean[:, 0])
        joined = [merges, linkage[:, :2].astype(int)]
        trees = [TaskTree(torch.as_tensor(m), torch.as_tensor(heights)) for m in joined]
        shares.append([len(truth.clades & set(t.clades())) / len(truth.clades) for t in trees])
    quick, plain = np.mean(shares, 0)
    assert quick >= 0.9
    assert quick >= plain + 0.03


def test_the_quick_search_takes_nearest_neighbours_as_brute_force_does():
    """With what rows say equal in all tasks, each merge is that of the smallest estimate."""
    rng = np.random.default_rng(0)
    mean = rng.standard_normal((40, 2, 5))
    covariance = np.tile(0.1 * np.eye(5), (40, 2, 1, 1))
    merges, heights = QuickSearch(mean.copy(), covariance).run()
    search = QuickSearch(mean.copy(), covariance)
    alive, node, top = list(range(40)), list(range(40)), 0.0
    for step in range(39):
        table = {}
        for i, j in itertools.combinations(alive, 2):
            table[i, j] = search._meet(slice(i, i + 1))[0, j]
        (i, j), least = min(table.items(), key=lambda item: item[1])
        top = max(top, float(least))
        assert merges[step].tolist() == sorted((node[i], node[j]))
        assert heights[step] == pytest.approx(top, rel=1e-9)
        search._merge(i, j, top)
        alive.remove(j)
        node[i] = 40 + step


def test_many_tasks_take_the_quick_search():
    tree = random_tree(301, seed=1)
    heights = torch.linspace(0.02, 1.0, 300).double() ** 2
    tree = TaskTree(tree.merges, heights)
    statistics = leaves(tree, features=60)
    found = find_tree(statistics, DiagonalScale(torch.ones(1, 60).double()))
    assert len(set(found.clades()) & set(tree.clades())) >= 0.6 * 300
    same = TaskStatistics(
        *(t[:1].expand(301, *t.shape[1:]) for t in (statistics.A, statistics.b, statistics.c)),
        statistics.rows,
    )
    found = find_tree(same, DiagonalScale(torch.ones(1, 60).double()))
    assert torch.isfinite(found.heights).all()
    assert len(list(found.clades())[-1]) == 301
