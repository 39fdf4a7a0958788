"""Vectors at the leaves of a tree along which they diffused."""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.types import _size

NO_SAMPLES = torch.Size()


class _Generation(NamedTuple):
    """Merges whose children all stand in earlier generations.

    node: (n,) numbers of the merges' nodes.
    left, right: (n,) numbers of their children.
    """

    node: Tensor
    left: Tensor
    right: Tensor


class BrownianTree(TorchDistribution):
    r"""Brownian motion down a rooted binary tree, its start and inner nodes integrated out.

    $m \sim N(0, S)$ at the start, and $x_i \mid x_p \sim N(x_p, t_i \Sigma)$ along each branch.
    The K leaves have the covariance $\mathbb 1 \mathbb 1^\top \otimes S + C \otimes \Sigma$ with
    $C_{jk}$ the length of the path that j and k share. The density comes from K - 1 independent
    contrasts of the children of each merge, $O(K D^2)$:

    $$c_i = \mu_l - \mu_r \sim N(0, s_i\Sigma), \quad s_i = v_l + t_l + v_r + t_r, \quad
      \mu_i = \frac{(v_r + t_r)\mu_l + (v_l + t_l)\mu_r}{s_i}, \quad
      v_i = \frac{(v_l + t_l)(v_r + t_r)}{s_i}.$$

    Merges are batched by generation: as many steps as the tree is deep.

    Args:
        merges: (K - 1, 2) children of the nodes K..2K-2, numbered below their parents, as in
            SciPy's linkage.
        lengths: (2K - 1,) length $t_i \ge 0$ of the branch above each node; the last is that from
            the start to the root. Two siblings must not both be at distance 0 from each other.
        centre_variance: (O, D) diagonal of $S$.
        scale_tril: (O, D, D) Cholesky factor of $\Sigma$.

    The event has shape (K, O, D); the O outputs are independent.

    References:
        Felsenstein, Maximum-likelihood estimation of evolutionary trees from continuous characters
        (1973).

    Example:
        >>> merges = torch.tensor([[0, 1], [2, 3]])
        >>> law = BrownianTree(merges, torch.ones(5), torch.ones(1, 4), torch.eye(4)[None])
        >>> law.sample().shape
        torch.Size([3, 1, 4])
        >>> law.shared_length()
        tensor([[3., 2., 1.],
                [2., 3., 1.],
                [1., 1., 2.]])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "centre_variance": constraints.independent(constraints.positive, 2),
        "scale_tril": constraints.independent(constraints.lower_cholesky, 1),
    }
    support = constraints.independent(constraints.real, 3)
    has_rsample = True

    def __init__(
        self,
        merges: Tensor,
        lengths: Tensor,
        centre_variance: Tensor,
        scale_tril: Tensor,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.lengths = lengths
        self.centre_variance = centre_variance
        self.scale_tril = scale_tril
        self._generations = _generations(merges)
        event = torch.Size((len(merges) + 1, *centre_variance.shape[-2:]))
        super().__init__(centre_variance.shape[:-2], event, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        return self.centre_variance.new_zeros(self.batch_shape + self.event_shape)

    def shared_length(self) -> Tensor:
        """C, (K, K): length of the path from the start that two leaves share."""
        steps = self._descend(self.lengths.sqrt().diag()[..., None])
        return steps[..., 0].mT @ steps[..., 0]

    def rsample(self, sample_shape: _size = NO_SAMPLES) -> Tensor:
        shape = self._extended_shape(sample_shape)
        start = self.scale_tril.new_empty((*shape[:-3], 1, *shape[-2:])).normal_()
        steps = self.scale_tril.new_empty((*shape[:-3], len(self.lengths), *shape[-2:])).normal_()
        steps = steps * self.lengths.sqrt()[:, None, None]
        white = self._descend(steps.flatten(-2)).unflatten(-1, shape[-2:])
        own = (self.scale_tril.unsqueeze(-4) @ white[..., None])[..., 0]
        return start * self.centre_variance.sqrt().unsqueeze(-3) + own

    def _descend(self, steps: Tensor) -> Tensor:
        """Sum of the steps (..., 2K - 1, E) on each leaf's path, (..., K, E)."""
        place = steps.clone()
        for node, left, right in reversed(self._generations):
            for child in (left, right):
                place[..., child, :] += place[..., node, :]
        return place[..., : self.event_shape[0], :]

    def log_prob(self, value: Tensor) -> Tensor:
        count, size = self.event_shape[0], value.shape[-1]
        factor = self.scale_tril
        # in coordinates where Σ = I
        mean = torch.linalg.solve_triangular(factor.unsqueeze(-4), value[..., None], upper=False)[
            ..., 0
        ]
        variance = torch.zeros_like(self.lengths[:count])
        order = torch.arange(2 * count - 1, device=mean.device)
        total = -count * factor.diagonal(dim1=-2, dim2=-1).log().sum((-2, -1))
        for node, left, right in self._generations:
            order[node] = len(variance) + torch.arange(len(node), device=mean.device)
            l, r = order[left], order[right]
            from_left = variance[l] + self.lengths[left]
            from_right = variance[r] + self.lengths[right]
            s = from_left + from_right
            contrast = mean[..., l, :, :] - mean[..., r, :, :]
            total = total + _log_normal(contrast, s).sum((-2, -1))
            share = (from_left / s)[:, None, None]
            merged = mean[..., l, :, :] - share * contrast
            mean = torch.cat([mean, merged], -3)
            variance = torch.cat([variance, from_left * from_right / s])
        # μ ~ N(0, L⁻¹ S L⁻ᵀ + (v + t) I)
        half = torch.linalg.solve_triangular(
            factor, torch.diag_embed(self.centre_variance.sqrt()), upper=False
        )
        identity = torch.eye(size, dtype=factor.dtype, device=factor.device)
        covariance = half @ half.mT + (variance[-1] + self.lengths[-1]) * identity
        at_root = torch.distributions.MultivariateNormal(
            torch.zeros_like(mean[..., -1, :, :]), covariance, validate_args=False
        ).log_prob(mean[..., -1, :, :])
        return total + at_root.sum(-1)


def _log_normal(x: Tensor, variance: Tensor) -> Tensor:
    """Log N(x; 0, variance I) of x (..., n, O, D) with variance (n,), as (..., n, O)."""
    v = variance[:, None]
    return -0.5 * (x.square().sum(-1) / v + x.shape[-1] * (2 * math.pi * v).log())


def _generations(merges: Tensor) -> tuple[_Generation, ...]:
    K = len(merges) + 1
    age = [0] * (2 * K - 1)
    for i, (left, right) in enumerate(merges.tolist()):
        age[K + i] = 1 + max(age[left], age[right])
    ages = torch.tensor(age[K:], dtype=torch.long, device=merges.device)
    generations = []
    for g in range(1, max(age, default=0) + 1):
        at = (ages == g).nonzero()[:, 0]
        generations.append(_Generation(K + at, merges[at, 0], merges[at, 1]))
    return tuple(generations)
