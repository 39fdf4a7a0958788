r"""How the features of one group covary: $\Omega_g$, with an inverse Wishart prior."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import final

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
    r"""Precisions $\Omega_g^{-1} \sim \mathrm{Wishart}(D_g + 2, I)$ of groups of features.

    The prior has its mode at the identity and is worth one task. Groups of one size s are one
    hyperparameter, "shape_s" (G_s, s, s); a group of one feature has none, because $\gamma_g$ is
    its scale.

    Args:
        blocks: for each hyperparameter the features (G_s, s) of its groups.
        num_features: D.
    """

    blocks: Mapping[str, Tensor]
    num_features: int

    @classmethod
    def of(cls, group: Tensor) -> WithinGroups:
        """For features whose groups are `group` (D,)."""
        count = torch.bincount(group)
        order = group.argsort(stable=True)
        start = count.cumsum(0) - count
        sizes = sorted({size for size in count.tolist() if size > 1})
        places = {s: start[count == s, None] + torch.arange(s).to(start) for s in sizes}
        return cls({f"shape_{s}": order[place] for s, place in places.items()}, len(group))

    @classmethod
    def diagonal(cls, group: Tensor) -> WithinGroups:
        """Features that are independent given the precision of their group."""
        return cls({}, len(group))

    def mode(self, like: Tensor) -> Eta:
        """Identities."""
        return {
            name: identity(index.shape[1], like).repeat(len(index), 1, 1)
            for name, index in self.blocks.items()
        }

    def hyperprior(self, like: Tensor) -> Eta:
        """Sample every precision."""
        ones = {name: like.new_ones(index.shape) for name, index in self.blocks.items()}
        return {
            name: pyro.sample(name, joint(Wishart(unit.sum(-1) + 2, unit)))
            for name, unit in ones.items()
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
        lead = next((part.shape[:-3] for part in parts.values()), torch.Size())
        size = (*lead, self.num_features, self.num_features)
        whole = identity(self.num_features, like).expand(size).clone()
        for name, index in self.blocks.items():
            whole[..., index[:, :, None], index[:, None, :]] = parts[name]
        return whole

    def outer(self, root: Tensor) -> Tensor:
        r"""$\sum \text{root}\,\text{root}^\top$ of (n, O, D, J): (D, D), or its diagonal (D,)."""
        if self.blocks:
            return torch.einsum("nodj,noej->de", root, root)
        return root.square().sum((0, 1, 3))

    def update(self, eta: Eta, total: Tensor, level: Tensor, count: Tensor) -> Eta:
        r"""$\Omega_g = (I + \gamma_g S_{gg} / \tau) / (1 + n)$: the mode given the rest.

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
