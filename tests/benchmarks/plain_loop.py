"""The bound of `SVI` with `TaskClustering` and `Gaussian`, written by hand in PyTorch alone.

Same guide, same hyperpriors, same gradient: one step on all rows is the yardstick for a step of
the library. Covariances are isotropic. The expected log likelihood is summed over rows, or taken
from sums over rows made once, as the library does for Gaussian noise.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Dirichlet, Gamma, Normal, biject_to, constraints

CENTRE_VARIANCE = 10.0


class PlainLoop:
    """A mixture of Gaussians over the weights of tasks with equally many rows.

    Args:
        x: (K, n, D), y: (K, n).
        centre: (C, D) at the start; precision, proportion: (C,); noise: precision, scalar.
        scatter, noise_scatter: of the hyperpriors, scalars.
        by_rows: whether E_q[log p(y | W)] is summed row by row.
        lr: Adam's learning rate.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        centre: Tensor,
        precision: Tensor,
        proportion: Tensor,
        noise: Tensor,
        scatter: Tensor,
        noise_scatter: Tensor,
        *,
        by_rows: bool,
        lr: float = 0.01,
    ) -> None:
        self.x, self.y, self.by_rows = x, y, by_rows
        self.simplex = biject_to(constraints.simplex)
        start = (centre, precision.log(), self.simplex.inv(proportion), noise.log())
        self.loc = [value.clone().requires_grad_() for value in start]
        self.log_scale = [
            torch.full_like(value, math.log(0.05)).requires_grad_() for value in start
        ]
        self.gram, self.moment = x.mT @ x, torch.einsum("knd,kn->kd", x, y)
        self.square = y.square().sum(-1)
        self.site_noise = noise.clone()
        self.centre_law = Normal(0.0, (CENTRE_VARIANCE * scatter).sqrt(), validate_args=False)
        self.precision_law = Gamma(scatter.new_tensor(1.5), 0.5 * scatter, validate_args=False)
        self.noise_law = Gamma(noise.new_tensor(1.5), 0.5 * noise_scatter, validate_args=False)
        self.weight_law = Dirichlet(torch.ones_like(proportion), validate_args=False)
        self.identity = torch.eye(x.shape[-1], dtype=x.dtype)
        self.optimiser = torch.optim.AdamW([*self.loc, *self.log_scale], lr=lr, weight_decay=0.0)

    def loss(self) -> Tensor:
        """Minus the bound, at one draw of the hyperparameters."""
        noise_free = [torch.randn_like(loc) for loc in self.loc]
        z = [
            loc + scale.exp() * eps
            for loc, scale, eps in zip(self.loc, self.log_scale, noise_free, strict=True)
        ]
        centre, precision, noise = z[0], z[1].exp(), z[3].exp()
        proportion = self.simplex(z[2])
        # log p(η) − log q(η), Jacobians included
        bound = self.centre_law.log_prob(centre).sum()
        bound = bound + self.precision_law.log_prob(precision).sum() + z[1].sum()
        bound = bound + self.noise_law.log_prob(noise) + z[3]
        bound = bound + self.weight_law.log_prob(proportion)
        bound = bound + self.simplex.log_abs_det_jacobian(z[2], proportion)
        for scale, eps in zip(self.log_scale, noise_free, strict=True):
            bound = bound + (scale + 0.5 * eps.square() + 0.5 * math.log(2 * math.pi)).sum()
        # q(W, z | η) ∝ p(W, z | η) times the sites; its normaliser
        A, b = self.site_noise * self.gram, self.site_noise * self.moment
        root = precision.rsqrt()[:, None].expand_as(centre)
        factor = torch.linalg.cholesky(
            self.identity + root[:, :, None] * A[:, None] * root[:, None, :]
        )  # (K, C, D, D)
        residual = root * (b[:, None] - (A[:, None] @ centre[..., None])[..., 0])
        inverse = torch.linalg.solve_triangular(
            factor, self.identity.expand_as(factor), upper=False
        )
        half = (inverse @ residual[..., None])[..., 0]
        mean = centre + root * (inverse.mT @ half[..., None])[..., 0]
        joint = (
            proportion.log()
            + 0.5 * half.square().sum(-1)
            - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            + torch.einsum("kd,cd->kc", b, centre)
            - 0.5 * torch.einsum("cd,kde,ce->kc", centre, A, centre)
        )
        log_normaliser = joint.logsumexp(-1)
        r = (joint - log_normaliser[:, None]).exp()
        spread = inverse * root[:, None]  # (K, C, D, D): covariance is spreadᵀ spread
        # E_q[bᵀw − ½ wᵀAw] of each task and cluster
        quadratic = torch.einsum("kcd,kde,kce->kc", mean, A, mean)
        trace = ((spread @ A[:, None]) * spread).sum((-2, -1))
        sites = torch.einsum("kcd,kd->kc", mean, b) - 0.5 * (quadratic + trace)
        if self.by_rows:
            f = torch.einsum("knd,kcd->kcn", self.x, mean)
            variance = (spread @ self.x[:, None].mT).square().sum(-2)  # (K, C, n)
            error = ((self.y[:, None] - f).square() + variance).sum(-1)
        else:  # the sites at unit noise are the statistics
            error = self.square[:, None] - (2 / self.site_noise) * sites
        count = self.x.shape[1]
        likelihood = 0.5 * (count * (noise.log() - math.log(2 * math.pi)) - noise * error)
        bound = bound + log_normaliser.sum()
        bound = bound + (r * (likelihood - sites)).sum()
        self.drawn_noise = noise.detach()
        return -bound

    def step(self) -> None:
        """One gradient step, and the sites follow."""
        self.optimiser.zero_grad()
        self.loss().backward()
        self.optimiser.step()
        self.site_noise = self.drawn_noise
