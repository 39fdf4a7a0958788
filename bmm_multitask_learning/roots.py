"""How a Gaussian posterior of all tasks' weights spreads: what is a task's own, what is shared."""

from __future__ import annotations

import dataclasses
import functools
from typing import final

import torch
from torch import Tensor

from .gaussian import Scale
from .precision import LowRankFactor, concatenated, formed


@final
@dataclasses.dataclass(frozen=True)
class Roots:
    r"""$w_k = \mu_k + R_k\,\epsilon_k + B_k\,\zeta$ with standard normal $\epsilon_k$, $\zeta$.

    Args:
        own: (K, C, O, D, R) $R$, of the task alone.
        common: (K, C, O, D, S) $B$, of what all tasks share; S = 0 where they are independent.
    """

    own: Tensor
    common: Tensor

    @classmethod
    def independent(cls, own: Tensor) -> Roots:
        """Nothing shared."""
        return cls(own, own[..., :0])

    def __getitem__(self, task: Tensor | slice) -> Roots:
        return Roots(self.own[task], self.common[task])

    def expand(self, num_tasks: int) -> Roots:
        """The roots of one weight vector, as those of `num_tasks` tasks that share it."""
        return Roots(*(t.expand(num_tasks, *t.shape[1:]) for t in (self.own, self.common)))

    def variance(self) -> Tensor:
        """Variance of each weight, (K, C, O, D)."""
        return self.own.square().sum(-1) + self.common.square().sum(-1)

    @functools.cached_property
    def whole(self) -> Tensor:
        """(K, C, O, D, at most 2D) root of each task's covariance, own and common together."""
        root = torch.cat([self.own, self.common], -1)
        if root.shape[-1] <= 2 * root.shape[-2]:
            return root
        return torch.linalg.qr(root.mT).R.mT  # B Bᵀ = Rᵀ Qᵀ Q R

    def latent_variance(self, x: Tensor, task: Tensor) -> Tensor:
        """Variance of $x^T w_{task}$ for x of shape (M, B, D), as (M, C, O, B)."""
        return (x[:, None, None] @ self.whole[task]).square().sum(-1)


@final
@dataclasses.dataclass(frozen=True)
class RowRoots:
    r"""The roots $R_k = L_k U_k^{-\top}$ of tasks by themselves that have few rows.

    They are formed only when asked for.

    Args:
        scale: $L$, with leading axes (K, C, O).
        inverse: (K, C, O, R, R) $U_k^{-1}$.
    """

    scale: Scale
    inverse: LowRankFactor

    @functools.cached_property
    def own(self) -> Tensor:
        """(K, C, O, D, R) of the task alone."""
        return self.scale.apply(self.inverse.mT.dense())

    @property
    def whole(self) -> Tensor:
        """See `Roots`."""
        return self.own

    @property
    def common(self) -> Tensor:
        """(K, C, O, D, 0): nothing."""
        return self.own[..., :0]

    def __getitem__(self, task: Tensor | slice) -> RowRoots:
        return RowRoots(self.scale[task], self.inverse[task])

    def expand(self, num_tasks: int) -> Roots:
        """See `Roots`."""
        return Roots.independent(self.own).expand(num_tasks)

    def variance(self) -> Tensor:
        """Variance of each weight, (K, C, O, D)."""
        return self.own.square().sum(-1)

    def latent_variance(self, x: Tensor, task: Tensor) -> Tensor:
        """Variance of $x^T w_{task}$ for x of shape (M, B, D), as (M, C, O, B)."""
        part = self[task]
        white = part.scale.adjoint(x.mT[:, None, None])  # (M, C, O, R, B)
        return (part.inverse @ white).square().sum(-2)


@final
@dataclasses.dataclass(frozen=True)
class CentredRoots:
    r"""The roots of tasks that scatter around what they share: R patterns, each as much as V says.

    $$R_k = L U_k^{-\top}, \qquad B_k = L U_k^{-\top} U_k^{-1} \sum_r V_{kr} Q_r;$$
    neither is formed before it is asked for. One pattern and V = 1 is a centre of all tasks.

    Args:
        scale: $L$, of the scatter around the patterns, with leading axis (O,).
        parts: (K, O, D, D) $U_k^{-1}$ in pieces of consecutive tasks.
        loading: (K, R) $V$.
        patterns: (O, R, D, S) $Q$: the root of the patterns' covariance, whitened by L.
    """

    scale: Scale
    parts: tuple[Tensor | LowRankFactor, ...]
    loading: Tensor
    patterns: Tensor

    @functools.cached_property
    def inverse(self) -> Tensor | LowRankFactor:
        """(K, O, D, D) $U_k^{-1}$."""
        return concatenated(self.parts)

    @functools.cached_property
    def own(self) -> Tensor:
        """(K, 1, O, D, D) of the task alone."""
        return self.scale.apply(formed(self.inverse.mT))[:, None]

    @functools.cached_property
    def common(self) -> Tensor:
        """(K, 1, O, D, S) of what all tasks share."""
        mixed = torch.einsum("kr,ords->kods", self.loading, self.patterns)
        return self.scale.apply(self.inverse.mT @ (self.inverse @ mixed))[:, None]

    @functools.cached_property
    def whole(self) -> Tensor:
        """See `Roots`."""
        return Roots(self.own, self.common).whole

    def __getitem__(self, task: Tensor | slice) -> CentredRoots:
        return dataclasses.replace(self, parts=(self.inverse[task],), loading=self.loading[task])

    def expand(self, num_tasks: int) -> Roots:
        """See `Roots`."""
        return Roots(self.own, self.common).expand(num_tasks)

    def variance(self) -> Tensor:
        """Variance of each weight, (K, 1, O, D)."""
        return self.own.square().sum(-1) + self.common.square().sum(-1)

    def latent_variance(self, x: Tensor, task: Tensor) -> Tensor:
        """Variance of $x^T w_{task}$ for x of shape (M, B, D), as (M, 1, O, B)."""
        inverse = self.inverse[task]
        own = inverse @ self.scale.adjoint(x.mT[:, None])  # (M, O, D, B)
        # one product for all tasks, which have the patterns in common
        told = self.loading[task, None, :, None, None] * (inverse.mT @ own)[:, :, None]
        common = torch.einsum("ords,mordb->mosb", self.patterns, told)
        return (own.square().sum(-2) + common.square().sum(-2))[:, None]
