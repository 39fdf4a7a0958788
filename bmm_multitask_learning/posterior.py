"""q(W): what is known of the task weights after seeing data."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from .gaussian import Conditioned, DenseScale, Scale, condition
from .statistics import RowBlocks, TaskStatistics


@dataclasses.dataclass(frozen=True)
class WeightPosterior:
    r"""A mixture of C Gaussians for each task's weights (C = 1 for a Gaussian posterior).

    In component c, $w_k = \mu_{kc} + R_{kc}\,\epsilon_k + B_{kc}\,\zeta$ with standard normal
    $\epsilon_k$ of the task's own and $\zeta$ shared by all tasks: tasks that learn from one
    uncertain centre are correlated a posteriori.

    Args:
        log_weights: (K, C) log responsibilities.
        means: (K, C, O, D) $\mu$.
        roots: (K, C, O, D, R) $R$.
        commons: (K, C, O, D, S) $B$; S = 0 where tasks are independent given the hyperparameters.
        log_normaliser: scalar, $\log \int p(W \mid \eta) \prod_k t_k(w_k)\, dW$ of the statistics
            that made this posterior.
        centre_mean, centre_root: (C, O, D) and (C, O, D, S), the law of the centre that $\zeta$
            stands for, where the prior has one.
    """

    log_weights: Tensor
    means: Tensor
    roots: Tensor
    commons: Tensor
    log_normaliser: Tensor
    centre_mean: Tensor | None = None
    centre_root: Tensor | None = None

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
        within = self.roots @ self.roots.mT + self.commons @ self.commons.mT
        between = deviation[..., None] * deviation[..., None, :]
        covariance = torch.einsum("kc,kcode->kode", weights, within + between)
        return covariance[:, 0] if covariance.shape[1] == 1 else covariance

    @property
    def std(self) -> Tensor:
        """Posterior standard deviation of each weight, (K, O, D)."""
        weights = self.log_weights.exp()
        mean = torch.einsum("kc,kcod->kod", weights, self.means)
        square = self.component_variance() + (self.means - mean[:, None]).square()
        return self._drop(torch.einsum("kc,kcod->kod", weights, square).sqrt())

    def component_variance(self) -> Tensor:
        """Variance of each weight in each component, (K, C, O, D)."""
        return self.roots.square().sum(-1) + self.commons.square().sum(-1)

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
        K, _, O, D, R = self.roots.shape
        component = torch.multinomial(
            self.log_weights.exp(), num_samples, replacement=True, generator=generator
        ).T  # (n, K)
        if self.commons.shape[-1]:
            # components that share a centre are draws of one joint posterior: one choice for all
            component = component[:, :1].expand(-1, K)
        task = torch.arange(K, device=component.device)
        own = self.means.new_empty(num_samples, K, O, R, 1).normal_(generator=generator)
        shared = self.means.new_empty(num_samples, 1, O, self.commons.shape[-1], 1)
        shared = shared.normal_(generator=generator)
        draws = torch.empty(num_samples, K, O, D, dtype=own.dtype, device=own.device)
        step = max(1, 2**23 // (K * O * D * max(R, 1)))
        for at in (slice(i, i + step) for i in range(0, num_samples, step)):
            chosen = (task, component[at])
            draws[at] = (
                self.means[chosen]
                + (self.roots[chosen] @ own[at])[..., 0]
                + (self.commons[chosen] @ shared[at])[..., 0]
            )
        return draws

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
        return self.expected_log_factor(statistics).sum() - self.log_normaliser

    def expected_log_factor(self, statistics: TaskStatistics) -> Tensor:
        r"""$E_q[\log t_k(w_k)]$ for each task and output, (K, O)."""
        mean, root, common = (t.movedim(1, 0) for t in (self.means, self.roots, self.commons))
        terms = statistics.log_factor(mean, root) - 0.5 * statistics.trace_term(common)
        return torch.einsum("kc,cko->ko", self.log_weights.exp(), terms)

    def latent(self, phi: Tensor, blocks: RowBlocks) -> tuple[Tensor, Tensor]:
        r"""Mean and variance of $f_n = \phi_n^\top w_{task(n)}$ in each component.

        Args:
            phi: (N, D) features.
            blocks: which task each row belongs to.

        Returns:
            mean (N, C, O) and variance (N, C, O).
        """
        _, C, O, _, _ = self.roots.shape
        root = torch.cat([self.roots, self.commons], -1)
        mean = phi.new_empty(len(phi), C, O)
        variance = torch.empty_like(mean)
        for at in blocks.chunks(C * O * root.shape[-1]):
            x, task, valid = blocks.gather(phi, at), blocks.task[at], blocks.valid[at]
            row = blocks.index[at][valid]
            mean = mean.index_copy(
                0, row, torch.einsum("mbd,mcod->mbco", x, self.means[task])[valid]
            )
            spread = (x[:, None, None] @ root[task]).square().sum(-1)  # (m, C, O, B)
            variance = variance.index_copy(0, row, spread.movedim(-1, 1)[valid])
        return mean, variance

    def centre(self) -> tuple[Tensor, Tensor]:
        """Mean (C, O, D) and root (C, O, D, S) of the law of the centre that the tasks share."""
        if self.centre_mean is None or self.centre_root is None:
            raise RuntimeError("this posterior's tasks share no centre.")
        return self.centre_mean, self.centre_root

    def select(self, task: Tensor | slice) -> WeightPosterior:
        """The posterior of some tasks."""
        return dataclasses.replace(
            self,
            log_weights=self.log_weights[task],
            means=self.means[task],
            roots=self.roots[task],
            commons=self.commons[task],
        )

    def expand(self, num_tasks: int) -> WeightPosterior:
        """A posterior of one weight vector, as that of `num_tasks` tasks that share it."""
        tensors = (self.log_weights, self.means, self.roots, self.commons)
        log_weights, means, roots, commons = (t.expand(num_tasks, *t.shape[1:]) for t in tensors)
        return dataclasses.replace(
            self, log_weights=log_weights, means=means, roots=roots, commons=commons
        )

    def condition(self, statistics: TaskStatistics) -> WeightPosterior:
        """The posterior after further rows, each task by itself, this posterior as prior.

        Args:
            statistics: factors of the further rows, one for each of the K tasks.
        """
        root = torch.cat([self.roots, self.commons], -1)
        return mixture_posterior(statistics, self.log_weights, self.means, DenseScale(root))


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
    given: Conditioned = condition(
        statistics.A[:, None], statistics.b[:, None], statistics.c[:, None], loc, scale
    )
    joint = log_prior + given.log_normaliser.sum(-1)  # over outputs
    log_evidence = joint.logsumexp(-1, keepdim=True)
    mean = loc + scale.apply(given.v[..., None])[..., 0]
    root = scale.apply(given.inverse_factor.mT)
    return WeightPosterior(
        joint - log_evidence, mean, root, mean.new_zeros(*mean.shape, 0), log_evidence.sum()
    )
