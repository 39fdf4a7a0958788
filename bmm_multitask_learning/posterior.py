"""q(W): what is known of the task weights after seeing data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import final

import torch
from torch import Tensor

from .gaussian import Conditioned, DenseScale, Scale, condition_at
from .precision import LowRankFactor
from .roots import CentredRoots, Roots, RowRoots
from .statistics import RowBlocks, TaskStatistics
from .trees.roots import TreeRoots


@final
@dataclasses.dataclass(frozen=True)
class Centre:
    r"""The law of a centre m that tasks scatter around.

    Args:
        mean: (C, O, D).
        root: (C, O, D, S) of its covariance.
        scatter: gives $\sum_k E[(w_k - m)(w_k - m)^\top]$ as far as the prior's covariance needs
            it: (O, D, D), or its diagonal (O, D).
    """

    mean: Tensor
    root: Tensor
    scatter: Callable[[], Tensor] | None = None


@final
@dataclasses.dataclass(frozen=True)
class WeightPosterior:
    r"""A mixture of C Gaussians for each task's weights (C = 1 for a Gaussian posterior).

    In component c, $w_k = \mu_{kc} + R_{kc}\,\epsilon_k + B_{kc}\,\zeta$ with standard normal
    $\epsilon_k$ of the task's own and $\zeta$ shared by all tasks: tasks that learn from one
    uncertain centre are correlated a posteriori.

    Args:
        log_weights: (K, C) log responsibilities.
        means: (K, C, O, D) $\mu$.
        roots: $R$, `roots.own`, and $B$, `roots.common`.
        log_normaliser: scalar, $\log \int p(W \mid \eta) \prod_k t_k(w_k)\, dW$ of the statistics
            that made this posterior.
        effective: gives $\mathrm{tr}(A_k\,\mathrm{cov}(w_k))$ of those statistics, (K, C, O).
        shared: the law of the centre that $\zeta$ stands for, where the prior has one.
    """

    log_weights: Tensor
    means: Tensor
    roots: Roots | RowRoots | CentredRoots | TreeRoots
    log_normaliser: Tensor
    effective: Callable[[], Tensor] | None = None
    shared: Centre | None = None

    # ---- read-outs: the O axis is dropped where O = 1 -----------------------------------------

    @property
    def mean(self) -> Tensor:
        """Posterior mean of the weights, (K, O, D)."""
        return self._drop(torch.einsum("kc,kcod->kod", self.log_weights.exp(), self.means))

    @property
    def covariance(self) -> Tensor:
        """Posterior covariance of each task's weights, (K, O, D, D)."""
        weights = self.log_weights.exp()
        mean = torch.einsum("kc,kcod->kod", weights, self.means)
        deviation = self.means - mean[:, None]
        root = self.roots.whole
        within = root @ root.mT
        between = deviation[..., None] * deviation[..., None, :]
        covariance = torch.einsum("kc,kcode->kode", weights, within + between)
        return covariance[:, 0] if covariance.shape[1] == 1 else covariance

    @property
    def std(self) -> Tensor:
        """Posterior standard deviation of each weight, (K, O, D)."""
        weights = self.log_weights.exp()
        mean = torch.einsum("kc,kcod->kod", weights, self.means)
        square = self.roots.variance() + (self.means - mean[:, None]).square()
        return self._drop(torch.einsum("kc,kcod->kod", weights, square).sqrt())

    def sample(self, num_samples: int, *, seed: int = 0) -> Tensor:
        """Joint draws of all tasks' weights, (num_samples, K, O, D).

        Args:
            num_samples: number of draws.
            seed: the only source of randomness.
        """
        generator = torch.Generator(self.means.device).manual_seed(seed)
        return self._drop(self.draw(num_samples, generator))

    def draw(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Joint draws (num_samples, K, O, D) with the O axis kept."""
        component = torch.multinomial(
            self.log_weights.exp(), num_samples, replacement=True, generator=generator
        ).T
        return self.draw_components(component, generator)

    def draw_components(self, component: Tensor, generator: torch.Generator) -> Tensor:
        """Joint draws (n, K, O, D), each from the component (n, K) that is named for it."""
        own_root, common_root = self.roots.own, self.roots.common
        num_samples = len(component)
        K, _, O, D, R = own_root.shape
        if common_root.shape[-1]:
            # components that share a centre are draws of one joint posterior: one choice for all
            component = component[:, :1].expand(-1, K)
        task = torch.arange(K, device=component.device)
        own = self.means.new_empty(num_samples, K, O, R, 1).normal_(generator=generator)
        shared = self.means.new_empty(num_samples, 1, O, common_root.shape[-1], 1)
        shared = shared.normal_(generator=generator)
        draws = torch.empty(num_samples, K, O, D, dtype=own.dtype, device=own.device)
        step = max(1, 2**23 // (K * O * D * max(R, 1)))
        for at in (slice(i, i + step) for i in range(0, num_samples, step)):
            chosen = (task, component[at])
            draws[at] = (
                self.means[chosen]
                + (own_root[chosen] @ own[at])[..., 0]
                + (common_root[chosen] @ shared[at])[..., 0]
            )
        return draws

    def log_prob(self, weights: Tensor) -> Tensor:
        r"""Log density of weights (..., K, O, D), the O axis kept as in `draw`, (...).

        With $z_k = R_k^{-1}(w_k - \mu_k)$ and $\tilde B_k = R_k^{-1} B_k$, in each component

        $$\log q(W) = -\tfrac12 \sum_k |z_k|^2 + \tfrac12 |L^{-1} \sum_k \tilde B_k^\top z_k|^2
          - \sum_k \log|R_k| - \log|L| - \tfrac12 K O D \log 2\pi,$$
        $$LL^\top = I + \sum_k \tilde B_k^\top \tilde B_k.$$

        Raises:
            RuntimeError: where the weights of several tasks are one vector, which has no density.
        """
        own, common = self.roots.own, self.roots.common
        K, _, O, D, _ = own.shape
        if K == 1:  # what a single vector shares with all is its own
            own, common = torch.cat([own, common], -1), own[..., :0]
        if not own.shape[-1] and common.shape[-1] >= K * D:
            return self._joint_log_prob(weights, common)
        if own.shape[-1] < D:
            raise RuntimeError("tasks that share one weight vector have no joint density.")
        root = torch.linalg.qr(own.mT).R.mT  # the same covariance, triangular
        step = (weights[..., None, :, :] - self.means)[..., None]
        z = torch.linalg.solve_triangular(root, step, upper=False)[..., 0]  # (..., K, C, O, D)
        log_det = root.diagonal(dim1=-2, dim2=-1).abs().log().sum((-2, -1))
        each = -0.5 * z.square().sum((-2, -1)) - log_det - 0.5 * O * D * math.log(2 * math.pi)
        if not common.shape[-1]:
            return (each + self.log_weights).logsumexp(-1).sum(-1)
        white = torch.linalg.solve_triangular(root, common, upper=False)
        gram = torch.einsum("kcods,kcodt->cost", white, white)
        eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        factor = torch.linalg.cholesky(gram + eye)
        told = torch.einsum("kcods,...kcod->...cos", white, z)[..., None]
        told = torch.linalg.solve_triangular(factor, told, upper=False)
        gain = 0.5 * told.square().sum((-3, -2, -1))
        shared = factor.diagonal(dim1=-2, dim2=-1).log().sum((-2, -1))
        # components that share a centre are chosen for all tasks at once
        return (each.sum(-2) + gain - shared + self.log_weights[0]).logsumexp(-1)

    def _joint_log_prob(self, weights: Tensor, common: Tensor) -> Tensor:
        """Of tasks that have nothing but a common root, of full rank."""
        K, _, _, D, _ = common.shape
        joint = common.permute(1, 2, 0, 3, 4).flatten(2, 3)  # (C, O, K D, S)
        step = (weights[..., None, :, :] - self.means).movedim(-4, -2).flatten(-2)
        root = torch.linalg.qr(joint.mT).R.mT
        z = torch.linalg.solve_triangular(root, step[..., None], upper=False)[..., 0]
        log_det = root.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)
        each = -0.5 * (z.square().sum(-1) + K * D * math.log(2 * math.pi)) - log_det
        return (each.sum(-1) + self.log_weights[0]).logsumexp(-1)

    def interval(self, coverage: float = 0.9, *, num_samples: int = 4000, seed: int = 0) -> Tensor:
        """Central posterior interval of each weight, (K, O, D, 2): lower and upper.

        Exact for Gaussian posteriors; by quantiles of draws for mixtures.
        """
        tail = 0.5 * (1 - coverage)
        levels = self.means.new_tensor([tail, 1 - tail])
        if self.means.shape[1] == 1:
            z = torch.special.ndtri(levels)
            return self.mean[..., None] + self.std[..., None] * z
        return torch.quantile(self.sample(num_samples, seed=seed), levels, dim=0).movedim(0, -1)

    def _drop(self, value: Tensor) -> Tensor:
        return value[..., 0, :] if value.shape[-2] == 1 else value

    # ---- what engines and likelihoods ask -----------------------------------------------------

    def kl_to_prior(self, statistics: TaskStatistics) -> Tensor:
        r"""$KL(q(W) \| p(W\mid\eta)) = E_q[\log t(W)] - \log\int p(W\mid\eta)\,t(W)\,dW$.

        Args:
            statistics: the factors that made this posterior.
        """
        return self.expected_log_factor(statistics, self.own_trace()).sum() - self.log_normaliser

    def own_trace(self) -> Tensor:
        """What `effective` gives as (C, K, O), where the posterior was made by conditioning."""
        if self.effective is None:
            raise RuntimeError("this posterior was not made by conditioning on statistics.")
        return self.effective().movedim(1, 0)

    def trace(self, statistics: TaskStatistics) -> Tensor:
        r"""$\mathrm{tr}(A_k\,\mathrm{cov}(w_k))$ for any factors, (C, K, O)."""
        return statistics.trace_term(self.roots.whole.movedim(1, 0))

    def expected_log_factor(self, statistics: TaskStatistics, trace: Tensor) -> Tensor:
        r"""$E_q[\log t_k(w_k)]$ for each task and output, (K, O).

        Args:
            statistics: the factors t.
            trace: `trace(statistics)`, or `own_trace()` for the factors that made this posterior.
        """
        terms = statistics.log_factor(self.means.movedim(1, 0), trace)
        return torch.einsum("kc,cko->ko", self.log_weights.exp(), terms)

    def latent(self, phi: Tensor, blocks: RowBlocks) -> tuple[Tensor, Tensor]:
        r"""Mean and variance of $f_n = \phi_n^\top w_{task(n)}$ in each component.

        Args:
            phi: (N, D) features.
            blocks: which task each row belongs to.

        Returns:
            mean (N, C, O) and variance (N, C, O).
        """
        _, C, O, D = self.means.shape
        mean = phi.new_empty(len(phi), C, O)
        variance = torch.empty_like(mean)
        for at in blocks.chunks(C * O * D):
            x, task, valid = blocks.gather(phi, at), blocks.task[at], blocks.valid[at]
            row = blocks.index[at][valid]
            mean = mean.index_copy(
                0, row, torch.einsum("mbd,mcod->mbco", x, self.means[task])[valid]
            )
            spread = self.roots.latent_variance(x, task)  # (m, C, O, B)
            variance = variance.index_copy(0, row, spread.movedim(-1, 1)[valid])
        return mean, variance

    def centre(self) -> Centre:
        """The law of the centre that the tasks share."""
        if self.shared is None:
            raise RuntimeError("this posterior's tasks share no centre.")
        return self.shared

    # ---- as plain tensors, which are stored, stacked and moved ---------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """What `from_tensors` makes the same posterior of."""
        tensors = {
            "log_weights": self.log_weights,
            "means": self.means,
            "own": self.roots.own,
            "common": self.roots.common,
            "log_normaliser": self.log_normaliser,
        }
        if self.shared is not None:
            tensors |= {"centre_mean": self.shared.mean, "centre_root": self.shared.root}
        return tensors

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> WeightPosterior:
        """The inverse of `tensors`."""
        centre = None
        if "centre_mean" in tensors:
            centre = Centre(tensors["centre_mean"], tensors["centre_root"])
        return cls(
            tensors["log_weights"],
            tensors["means"],
            Roots(tensors["own"], tensors["common"]),
            tensors["log_normaliser"],
            shared=centre,
        )

    def select(self, task: Tensor | slice) -> WeightPosterior:
        """The posterior of some tasks."""
        return dataclasses.replace(
            self,
            log_weights=self.log_weights[task],
            means=self.means[task],
            roots=self.roots[task],
            effective=None,
        )

    def expand(self, num_tasks: int) -> WeightPosterior:
        """A posterior of one weight vector, as that of `num_tasks` tasks that share it."""
        return dataclasses.replace(
            self,
            log_weights=self.log_weights.expand(num_tasks, -1),
            means=self.means.expand(num_tasks, -1, -1, -1),
            roots=self.roots.expand(num_tasks),
            effective=None,
        )

    def moment_matched(self) -> WeightPosterior:
        """A Gaussian for each task with the mean and covariance of its mixture, none shared."""
        weights = self.log_weights.exp()
        mean = torch.einsum("kc,kcod->kod", weights, self.means)
        deviation = self.means - mean[:, None]
        root = self.roots.whole
        second = root @ root.mT + deviation[..., None] * deviation[..., None, :]
        covariance = torch.einsum("kc,kcode->kode", weights, second)
        return WeightPosterior(
            log_weights=mean.new_zeros(len(mean), 1),
            means=mean[:, None],
            roots=Roots.independent(torch.linalg.cholesky(covariance)[:, None]),
            log_normaliser=self.log_normaliser,
        )

    def condition(self, statistics: TaskStatistics) -> WeightPosterior:
        """The posterior after further rows, each task by itself, this posterior as prior.

        Args:
            statistics: factors of the further rows, one for each of the K tasks.
        """
        scale = DenseScale(self.roots.whole)
        return mixture_posterior(statistics, self.log_weights, self.means, scale)


def mixture_posterior(
    statistics: TaskStatistics, log_prior: Tensor, loc: Tensor, scale: Scale
) -> WeightPosterior:
    r"""Posterior under a mixture prior, the labels summed out.

    $r_{kc} \propto \pi_{kc} Z_{kc}$ with $Z_{kc} = \int N(w; m_{kc}, \Sigma_{kc})\,t_k(w)\,dw$.

    Args:
        statistics: factors with leading axes (K, O).
        log_prior: (K, C) $\log\pi$.
        loc: (K, C, O, D) or broadcastable.
        scale: roots that broadcast against (K, C, O, D, R).
    """
    loc = loc.expand(*log_prior.shape, *loc.shape[-2:])
    given = condition_at(
        statistics.precision[:, None], statistics.b[:, None], statistics.c[:, None], loc, scale
    )
    joint = log_prior + given.log_normaliser.sum(-1)  # over outputs
    log_evidence = joint.logsumexp(-1, keepdim=True)
    return WeightPosterior(
        log_weights=joint - log_evidence,
        means=loc + scale.apply(given.v[..., None])[..., 0],
        roots=_own_roots(scale, given),
        log_normaliser=log_evidence.sum(),
        effective=given.effective,
    )


def _own_roots(scale: Scale, given: Conditioned) -> Roots | RowRoots:
    if isinstance(given.inverse_factor, LowRankFactor):
        return RowRoots(scale.expand(*given.v.shape[:-1]), given.inverse_factor)
    return Roots.independent(scale.apply(given.inverse_factor.mT))
