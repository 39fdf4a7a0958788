"""Trees for tests, and their covariance by brute force."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from bmm_multitask_learning.trees import TaskTree


def random_tree(num_tasks: int, seed: int = 0) -> TaskTree:
    """Pairs merged at random, at heights that rise to 1."""
    rng = np.random.default_rng(seed)
    alive, merges = list(range(num_tasks)), []
    for node in range(num_tasks, 2 * num_tasks - 1):
        pair = sorted(rng.choice(alive, 2, replace=False).tolist())
        alive = [n for n in alive if n not in pair] + [node]
        merges.append(pair)
    heights = np.sort(rng.uniform(0.05, 1.0, num_tasks - 1))
    heights[-1:] = 1.0
    table = torch.tensor(merges, dtype=torch.long).reshape(-1, 2)
    return TaskTree(table, torch.as_tensor(heights))


def shared_length(tree: TaskTree, lengths: torch.Tensor) -> np.ndarray:
    """Length of the path from the centre that two tasks share, by walking both paths."""
    parents, length = tree.parents().tolist(), lengths.tolist()

    def path(node: int) -> list[int]:
        return [] if node == len(parents) else [node, *path(parents[node])]

    paths = [set(path(k)) for k in range(tree.num_tasks)]
    shared = np.zeros((tree.num_tasks, tree.num_tasks))
    for j, k in itertools.product(range(tree.num_tasks), repeat=2):
        shared[j, k] = sum(length[node] for node in paths[j] & paths[k])
    return shared


def ranked_trees(num_tasks: int) -> list[list[tuple[int, int]]]:
    """All sequences of merges of `num_tasks` tasks, nodes numbered as in `TaskTree`."""

    def further(alive: tuple[int, ...], node: int) -> list[list[tuple[int, int]]]:
        if len(alive) == 1:
            return [[]]
        return [
            [pair, *rest]
            for pair in itertools.combinations(alive, 2)
            for rest in further((*(n for n in alive if n not in pair), node), node + 1)
        ]

    return further(tuple(range(num_tasks)), num_tasks)
