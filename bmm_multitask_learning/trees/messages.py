r"""Gaussian factors on the leaves of a tree along which weights diffuse: two passes, exact.

$$x_i \mid x_{p(i)} \sim N(x_{p(i)}, t_i I)$$
from a centre down to the tasks, in coordinates where $\Sigma = I$. Upwards, each node tells its
parent what the factors below say; downwards, each node is conditioned on its parent. Nodes at the
same depth are one batch: $O(K D^3)$ in all, in as many batches as the tree is deep.

References:
    Felsenstein, Maximum-likelihood estimation of evolutionary trees from continuous characters
    (1973), for exact leaves. Pearl, Probabilistic reasoning in intelligent systems (1988).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..gaussian import Conditioned, DiagonalScale, condition
from ..precision import formed
from .task_tree import TaskTree


class Level(NamedTuple):
    """The nodes at one depth: n leaves, then m inner nodes.

    node: (n + m,) their numbers in the tree; those of leaves are their tasks.
    task: (n,) tasks of the leaves.
    parent: (n + m,) place of each node's parent among the inner nodes of the level above.
    length: (n + m,) of the branch to the parent.
    num_parents: inner nodes of the level above.
    """

    node: Tensor
    task: Tensor
    parent: Tensor
    length: Tensor
    num_parents: int


def make_levels(tree: TaskTree, mixing: Tensor) -> tuple[Level, ...]:
    """The nodes of a tree by depth below the centre, where the root stands.

    Args:
        tree: of K tasks.
        mixing: Pagel's λ; at 0 all inner nodes stand at the centre, and leaves are one level.
    """
    K = tree.num_tasks
    lengths, parents = tree.lengths(mixing), tree.parents().tolist()
    centre, root = 2 * K - 1, 2 * K - 2
    at_centre = range(K, centre) if not bool(mixing) else range(max(root, K), centre)
    depth = [0] * (2 * K)
    for node in reversed(range(centre)):  # parents have higher numbers
        depth[node] = 0 if node in at_centre else depth[parents[node]] + 1
    place, num_parents = dict.fromkeys((*at_centre, centre), 0), 1
    depths = np.array(depth[:centre])
    levels = []
    for d in range(1, depths.max() + 1):
        nodes = np.flatnonzero(depths == d).tolist()  # leaves have the lower numbers
        inner = [node for node in nodes if node >= K]
        index = torch.tensor(nodes, device=lengths.device)
        parent_place = torch.tensor([place[parents[n]] for n in nodes], device=lengths.device)
        task = index[: len(nodes) - len(inner)]
        levels.append(Level(index, task, parent_place, lengths[index], num_parents))
        place, num_parents = {node: i for i, node in enumerate(inner)}, len(inner)
    return tuple(levels)


class Message(NamedTuple):
    r"""What the nodes of one level tell their parents, $\exp(h^\top x - \tfrac12 x^\top P x)$.

    given: the nodes conditioned on a parent at 0, in units of $\sqrt{t}$.
    gain: $C = (I + tP_i)^{-1}$, by which a node follows its parent.
    precision: $P = P_i C$, which is $(I - C) / t$.
    linear: $h = C h_i$.
    """

    given: Conditioned
    gain: Tensor
    precision: Tensor
    linear: Tensor


class Upward(NamedTuple):
    """All messages, and what they come to at the centre.

    messages: by level, from the centre downwards.
    precision, linear: (O, D, D) and (O, D) of the factor at the centre.
    log_normaliser: scalar, of the messages.
    """

    messages: tuple[Message, ...]
    precision: Tensor
    linear: Tensor
    log_normaliser: Tensor


def pass_upward(levels: tuple[Level, ...], A: Tensor, b: Tensor) -> Upward:
    r"""Messages from the leaves to the centre.

    Args:
        levels: of the tree.
        A, b: (K, O, D, D) and (K, O, D), the leaves' factors $b^\top x - \tfrac12 x^\top A x$.
    """
    precision, linear = A[:0], b[:0]
    zero = b.new_zeros(())
    messages, total = [], []
    for level in reversed(levels):
        P = torch.cat([A[level.task], precision])
        h = torch.cat([b[level.task], linear])
        t = level.length[:, None, None]
        given = condition(P, h, zero, DiagonalScale(t.sqrt().expand_as(h)))
        inverse = formed(given.inverse_factor)
        C = inverse.mT @ inverse
        # ∫ N(x; y, t I) exp(hᵀx − ½ xᵀPx) dx ∝ exp((C h)ᵀy − ½ yᵀ(P C) y)
        message = Message(given, C, P @ C, (C @ h[..., None])[..., 0])
        messages.append(message)
        total.append(given.log_normaliser.sum())
        above = (level.num_parents, *P.shape[1:])
        precision = P.new_zeros(above).index_add(0, level.parent, message.precision)
        linear = h.new_zeros(above[:-1]).index_add(0, level.parent, message.linear)
    return Upward(tuple(reversed(messages)), precision[0], linear[0], torch.stack(total).sum())


class Step(NamedTuple):
    r"""One level given the one above: $x_i \mid x_p \sim N(C x_p + tCh_i,\; RR^\top)$.

    gain: (n + m, O, D, D) C.
    root: (n + m, O, D, D) R.
    """

    gain: Tensor
    root: Tensor


class Downward(NamedTuple):
    r"""The law of the leaves given all factors.

    steps: by level, from the centre downwards.
    nodes: by level, (n + m, O, D) means of its nodes.
    mean: (K, O, D).
    covariance: (K, O, D, D).
    effective: (K, O) $\mathrm{tr}(A_k\,\mathrm{cov}(x_k))$.
    scatter: (O, D, D) $E[(X - \mathbb 1 m^\top)^\top R^{-1} (X - \mathbb 1 m^\top)]$ with R the
        covariance of the K leaves around the centre m.
    """

    steps: tuple[Step, ...]
    nodes: tuple[Tensor, ...]
    mean: Tensor
    covariance: Tensor
    effective: Tensor
    scatter: Tensor


def pass_downward(
    levels: tuple[Level, ...], upward: Upward, mean: Tensor, root: Tensor
) -> Downward:
    """The nodes level by level, each given its parent.

    Args:
        levels: of the tree.
        upward: the messages.
        mean: (O, D) of the centre, given all factors.
        root: (O, D, D) of the centre's covariance.
    """
    identity = torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device)
    m, V = mean[None], (root @ root.mT)[None]
    steps, nodes, covariances, effective, scatters = [], [], [], [], []
    for level, message in zip(levels, upward.messages, strict=True):
        n, t, C, P = len(level.task), level.length[:, None, None], message.gain, message.precision
        m, V = m[level.parent], V[level.parent]
        # x_i − x_p = t u + √t U⁻ᵀ ε  with  u = h − P x_p
        u = message.linear - (P @ m[..., None])[..., 0]
        PVP = P @ V @ P
        spread = t[..., None] * (u[..., None] * u[..., None, :] + PVP) + C
        # Σ_i E[(x_i − x_p)(x_i − x_p)ᵀ] / t_i over all branches, less I for each inner node
        scatters.append(spread.sum(0) - (len(level.length) - n) * identity)
        # tr(A (t C + C V C)) with t A C = I − C and A C = P
        CV = C @ V
        shared = (P[:n] * CV[:n]).sum((-2, -1))
        effective.append(message.given.effective()[:n] + shared)
        m, V = m + t * u, CV @ C + t[..., None] * C
        steps.append(Step(C, t.sqrt()[..., None] * formed(message.given.inverse_factor).mT))
        nodes.append(m)
        covariances.append(V[:n])
        m, V = m[n:], V[n:]
    order = torch.cat([level.task for level in levels]).argsort()
    leaves = [m[: len(level.task)] for level, m in zip(levels, nodes, strict=True)]
    return Downward(
        tuple(steps),
        tuple(nodes),
        torch.cat(leaves)[order],
        torch.cat(covariances)[order],
        torch.cat(effective)[order],
        torch.stack(scatters).sum(0),
    )
