r"""How the features of one group covary: $\Omega_g$, with an inverse Wishart prior."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import final

import numpy as np
import numpy.typing as npt
import pyro
import torch
from torch import Tensor

from ..distributions import Wishart
from ..hyperparameters import Eta
from .covariance import FullCovariance, identity, joint

_FORM = FullCovariance()


@final
@dataclasses.dataclass(frozen=True)
class WithinGroups:
    r"""Groups: precisions $\Omega_g^{-1} \sim \mathrm{Wishart}(2D_g + 1, (D_gI)^{-1})$.

    The prior has its mode at the identity and is worth $D_g$ tasks. Groups of one size s are one
    hyperparameter, "shape_s" (G_s, s, s); a group of one feature has none, because $\gamma_g$ is
    its scale.

    Args:
        blocks: for each hyperparameter the features (G_s, s) of its groups.
        place: (D, D) where an entry of the block diagonal stands: 0 and 1, then all entries of
            the hyperparameters in turn.
    """

    blocks: Mapping[str, Tensor]
    place: Tensor

    @classmethod
    def of(cls, group: Tensor) -> WithinGroups:
        """For features whose groups are `group` (D,)."""
        count = torch.bincount(group)
        order = group.argsort(stable=True)
        start = count.cumsum(0) - count
        sizes = sorted({size for size in count.tolist() if size > 1})
        blocks: dict[str, Tensor] = {}
        place, used = torch.eye(len(group)).to(group), 2
        for size in sizes:
            index = order[start[count == size, None] + torch.arange(size).to(start)]
            entry = used + torch.arange(index.numel() * size).to(place)
            place[index[:, :, None], index[:, None]] = entry.reshape(*index.shape, size)
            blocks[f"shape_{size}"] = index
            used += len(entry)
        return cls(blocks, place)

    @classmethod
    def diagonal(cls, group: Tensor) -> WithinGroups:
        """Features that are independent given the precision of their group."""
        return cls({}, torch.eye(len(group)).to(group))

    def mode(self, like: Tensor) -> Eta:
        """Identities."""
        return {
            name: identity(index.shape[1], like).repeat(len(index), 1, 1)
            for name, index in self.blocks.items()
        }

    def hyperprior(self, like: Tensor) -> Eta:
        """Sample every precision."""
        sizes = {
            name: like.new_full(index.shape, index.shape[1]) for name, index in self.blocks.items()
        }
        return {
            name: pyro.sample(name, joint(Wishart(2 * worth[..., 0] + 1, worth)))
            for name, worth in sizes.items()
        }

    def precision(self, eta: Eta, like: Tensor) -> Tensor:
        r"""$\mathrm{blockdiag}(\Omega_g^{-1})$, (..., D, D); the identity elsewhere."""
        return self._placed({name: eta[name] for name in self.blocks}, like)

    def root(self, eta: Eta, like: Tensor) -> Tensor:
        r"""A square root of $\mathrm{blockdiag}(\Omega_g)$, (..., D, D)."""
        parts = {}
        for name, index in self.blocks.items():
            shape = {"precision": eta[name], "level": torch.ones_like(eta[name][..., 0, 0])}
            parts[name] = _FORM.scale(shape, index.shape[1]).root
        return self._placed(parts, like)

    def _placed(self, parts: Eta, like: Tensor) -> Tensor:
        # gathered, not written in place, so that it may run under vmap
        first = next(iter(parts.values()), like)
        lead = first.shape[:-3] if parts else torch.Size()
        constants = torch.arange(2).to(first).expand(*lead, 2)
        flat = [parts[name].flatten(-3) for name in self.blocks]
        return torch.cat([constants, *flat], -1)[..., self.place]

    def outer(self, root: Tensor) -> Tensor:
        r"""$\sum \text{root}\,\text{root}^\top$ of (n, O, D, J): (D, D), or its diagonal (D,)."""
        if self.blocks:
            return torch.einsum("nodj,noej->de", root, root)
        return root.square().sum((0, 1, 3))

    def update(self, eta: Eta, total: Tensor, level: Tensor, count: Tensor) -> Eta:
        r"""$\Omega_g = (D_gI + \gamma_g S_{gg} / \tau) / (D_g + n)$: the mode given the rest.

        Args:
            eta: present values.
            total: $S$, (D, D), of `outer`.
            level: (D,) $\gamma_{g(d)} / \tau$.
            count: scalar, n of the vectors in S.
        """
        new = {}
        for name, index in self.blocks.items():
            outer = total[index[:, :, None], index[:, None, :]]
            shape = {"precision": eta[name], "level": level[index[:, 0]]}
            unit = torch.ones_like(index, dtype=total.dtype)
            new[name] = _FORM.update(shape, outer, count.expand(len(index)), unit)["precision"]
        return new

    def squares(self, eta: Eta, total: Tensor) -> Tensor:
        r"""(D,) whose sum over a group's features is $\mathrm{tr}(\Omega_g^{-1} S_{gg})$."""
        return (self.precision(eta, total) * total).sum(-1) if self.blocks else total


def group_codes(
    groups: Sequence[int] | npt.NDArray[np.integer] | Tensor,
) -> npt.NDArray[np.int64]:
    """Groups numbered 0..G-1 in sorted order."""
    values = np.asarray(groups)
    if values.ndim != 1 or values.dtype.kind not in "iu" or len(values) == 0:
        raise ValueError(
            f"groups must be a (D,) array of whole numbers, one for each feature; got {groups!r}."
        )
    return np.unique(values, return_inverse=True)[1].astype(np.int64)
