"""How the posterior of weights that diffused along a tree spreads."""

from __future__ import annotations

import dataclasses
import functools
from typing import final

import torch
from torch import Tensor

from ..gaussian import Scale
from ..roots import Roots
from ..sizes import Sizes, free_memory
from .messages import Level, Step

# Matrices of shape (K, O, D, K D) alive at once at the end of a fit.
_COPIES = 3


@final
@dataclasses.dataclass(frozen=True)
class TreeRoots:
    r"""The roots of tasks at the leaves of a tree below one uncertain centre.

    A leaf's own is what is left given its parent; common is all that the inner nodes drew,
    D columns for each of them, the centre's first. Neither is formed before it is asked for: the
    common roots take $O(K^2 D^2)$ memory.

    Args:
        scale: $L$, of the diffusion, with leading axis (O,).
        covariance: (K, O, D, D) of each task's weights, whitened by L.
        centre: (O, D, D) root of the centre's covariance, whitened by L.
        levels: of the tree.
        steps: of each level given the one above.
    """

    scale: Scale
    covariance: Tensor
    centre: Tensor
    levels: tuple[Level, ...]
    steps: tuple[Step, ...]

    @functools.cached_property
    def _order(self) -> Tensor:
        return torch.cat([level.task for level in self.levels]).argsort()

    @functools.cached_property
    def own(self) -> Tensor:
        """(K, 1, O, D, D) of the task alone."""
        leaves = [s.root[: len(l.task)] for s, l in zip(self.steps, self.levels, strict=True)]
        return self.scale.apply(torch.cat(leaves)[self._order])[:, None]

    @functools.cached_property
    def common(self) -> Tensor:
        """(K, 1, O, D, M D) of what the M inner nodes drew."""
        size = self.centre.shape[-1]
        columns = size * (1 + sum(len(l.length) - len(l.task) for l in self.levels))
        above = self.centre[None]  # (m, O, D, columns so far)
        leaves = []
        for level, step in zip(self.levels, self.steps, strict=True):
            n = len(level.task)
            root = step.gain @ above[level.parent]
            leaves.append(_widen(root[:n], columns))
            # each inner node's own draw has columns of its own
            inner = step.root[n:]
            each = torch.eye(len(inner), dtype=inner.dtype, device=inner.device)
            drawn = torch.einsum("modr,mn->modnr", inner, each).flatten(-2)
            above = torch.cat([root[n:], drawn], -1)
        return self.scale.apply(torch.cat(leaves)[self._order])[:, None]

    @functools.cached_property
    def whole(self) -> Tensor:
        """(K, 1, O, D, D) root of each task's covariance, own and common together."""
        return self.scale.apply(torch.linalg.cholesky(self.covariance))[:, None]

    def __getitem__(self, task: Tensor | slice) -> Roots:
        return Roots(self.own[task], self.common[task])

    def expand(self, num_tasks: int) -> Roots:
        """See `Roots`."""
        return Roots(self.own, self.common).expand(num_tasks)

    def variance(self) -> Tensor:
        """Variance of each weight, (K, 1, O, D)."""
        root = self.scale.root
        return torch.einsum("odr,kors,ods->kod", root, self.covariance, root)[:, None]

    def latent_variance(self, x: Tensor, task: Tensor) -> Tensor:
        """Variance of $x^T w_{task}$ for x of shape (M, B, D), as (M, 1, O, B)."""
        white = self.scale.adjoint(x.mT[:, None])  # (M, O, D, B)
        return ((self.covariance[task] @ white) * white).sum(-2)[:, None]


def check_memory(sizes: Sizes, like: Tensor) -> None:
    """Refuse what the joint posterior along a tree cannot hold.

    Args:
        sizes: K, O and D.
        like: gives dtype and device.

    Raises:
        MemoryError: if its copies do not fit into what is free.
    """
    K, O, D = sizes.num_tasks, sizes.num_outputs, sizes.num_features
    needed, free = _COPIES * K**2 * O * D**2 * like.element_size(), free_memory(like.device)
    if needed > free:
        raise MemoryError(
            f"the joint posterior of {K} tasks x {O} outputs x {D} features along a tree "
            f"needs about {needed / 2**30:.1f} GiB; {free / 2**30:.1f} GiB free on "
            f"{like.device}. Reduce the features first (PCA), fit fewer tasks at once, or use "
            "SharedGaussian."
        )


def _widen(root: Tensor, columns: int) -> Tensor:
    return torch.nn.functional.pad(root, (0, columns - root.shape[-1]))
