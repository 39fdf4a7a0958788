r"""Task clustering and gating, after Bakker and Heskes.

$$z_k \sim \mathrm{Categorical}(\pi_k), \qquad w_k \mid z_k = c \sim N(M_c f_k, \Sigma_c), \qquad
  \pi_{kc} \propto e^{U_c^\top f_k}$$

with task features $f_k = (1, \dots)$; without gating $\pi_k = \pi \sim \mathrm{Dirichlet}(1)$, and
without a task-dependent mean $M_c f_k = m_c$. Labels and weights are summed and integrated out:
EM on the evidence, whose M-steps carry the term of each hyperprior.

What differs from the paper: every hyperparameter has a proper weak prior (its M-steps are maximum
likelihood, and a cluster of one task has no finite optimum); $\Sigma_c$ may be diagonal or
isotropic; the number of clusters can be chosen; the hidden layer is the model's backbone.

References:
    Bakker and Heskes, Task clustering and gating for Bayesian multitask learning, JMLR 4:83-99
    (2003): section 2 for the models (b), (c), (d).
"""

from __future__ import annotations

import math
from typing import Literal, final

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from sklearn.cluster import KMeans
from torch import Tensor
from torch.distributions import Distribution

from ..distributions import GaussianMixture
from ..gaussian import DiagonalScale, Scale
from ..hyperparameters import Eta
from ..posterior import WeightPosterior, mixture_posterior
from ..roots import Roots
from ..statistics import TaskStatistics
from .covariance import covariance_form
from .gating import fit_gate, gate_charge
from .task_prior import TaskPrior, standardised

# m_c ~ N(0, 10 Ψ): a signal of up to ten times the noise's variance, in every feature alike
_CENTRE_VARIANCE = 10.0
# U ~ N(0, 1) on standardised task features: odds ratios up to about e² a standard deviation
_GATE_VARIANCE = 1.0
_MAX_CLUSTERS = 8


@final
class TaskClustering(TaskPrior):
    r"""Tasks fall into clusters, each with a centre and a covariance of its own.

    $p(w_k) = \sum_c \pi_{kc} N(w_k; m_c, \Sigma_c)$.

    Args:
        num_clusters: C, or "auto": from 1 upwards as long as the evidence, less what the
            hyperparameters cost (see `complexity`), rises.
        gating: the cluster's probability depends on the task features,
            $\pi_{kc} \propto e^{U_c^\top f_k}$.
        task_mean: the centre depends on the task features, $m_{kc} = M_c f_k$.
        covariance: "full", "diagonal" or "isotropic" $\Sigma_c$. Full takes many tasks a cluster:
            with few, "auto" finds fewer clusters than there are.
        n_init: starts by k-means on each task's ridge weights; the best is kept.

    Raises:
        ValueError: for fewer than one cluster or start, or more clusters than tasks; for gating or
            a task-dependent mean without task features.

    Example:
        >>> from bmm_multitask_learning import MultitaskModel, TaskClustering, datasets, fit
        >>> data, truth = datasets.make_clusters(num_tasks=24, num_clusters=2, seed=0)
        >>> model = MultitaskModel(prior=TaskClustering(num_clusters=2, n_init=1))
        >>> result = fit(model, data, progress=False)
        >>> model.prior.responsibilities.shape
        torch.Size([24, 2])

    References:
        Bakker and Heskes (2003), section 2.
    """

    design: Tensor
    centre: Tensor
    proportion: Tensor
    gate: Tensor
    responsibilities: Tensor

    def __init__(
        self,
        num_clusters: int | Literal["auto"] = "auto",
        *,
        gating: bool = False,
        task_mean: bool = False,
        covariance: Literal["full", "diagonal", "isotropic"] = "diagonal",
        n_init: int = 3,
    ) -> None:
        super().__init__()
        if num_clusters != "auto" and (not isinstance(num_clusters, int) or num_clusters < 1):
            raise ValueError(
                'num_clusters must be a whole number of at least 1, or "auto"; '
                f"got {num_clusters!r}."
            )
        if n_init < 1:
            raise ValueError(f"n_init must be at least 1; got {n_init}.")
        self.num_clusters = num_clusters
        self.gating = gating
        self.task_mean = task_mean
        self.covariance = covariance
        self.n_init = n_init
        self.form = covariance_form(covariance)

    # ---- generative half ----------------------------------------------------------------------

    def register_hyperparameters(self, like: Tensor) -> None:
        sizes = self.sizes
        if (self.gating or self.task_mean) and not sizes.num_task_features:
            raise ValueError(
                "gating and task_mean read task features, and the data have none. Give "
                "TaskData(..., task_features=) of shape (K, F), or set both to False."
            )
        C = 1 if self.num_clusters == "auto" else self.num_clusters
        if sizes.num_tasks < C:
            raise ValueError(
                f"num_clusters={C} is more than the {sizes.num_tasks} tasks. Use fewer clusters, "
                'or num_clusters="auto".'
            )
        self._register(C, like)

    def _register(self, C: int, like: Tensor) -> None:
        sizes = self.sizes
        F = sizes.num_task_features
        self.register_buffer("design", self._design(like, self.task_features, sizes.num_tasks))
        columns = F + 1 if self.task_mean else 1
        shape = (C, columns, sizes.num_outputs, sizes.num_features)
        self.register_buffer("centre", like.new_zeros(shape))
        for name, value in self.form.mode(self._scatters(C)).items():
            self.register_buffer(name, value)
        gate = like.new_zeros(C, F + 1) if self.gating else like.new_full((C,), 1 / C)
        self.register_buffer("gate" if self.gating else "proportion", gate)
        self.register_buffer("responsibilities", like.new_full((sizes.num_tasks, C), 1 / C))

    def _scatters(self, num_clusters: int) -> Tensor:
        """Ψ for each cluster, (C, O, D)."""
        return self.scatter.expand(num_clusters, -1, -1)

    def _design(self, like: Tensor, features: Tensor | None, num_tasks: int) -> Tensor:
        """(K, 1 + F) a constant and the task features, standardised over the tasks of the fit."""
        ones = like.new_ones(num_tasks, 1)
        if features is None or self.task_features is None:
            return ones
        return torch.cat([ones, standardised(features, self.task_features)], -1)

    def hyperprior(self) -> Eta:
        spread = (_CENTRE_VARIANCE * self.scatter).sqrt().expand_as(self.centre)
        eta = {"centre": pyro.sample("centre", dist.Normal(0.0, spread).to_event(4))}
        eta |= self.form.hyperprior(self._scatters(len(self.centre)))
        if self.gating:
            law = dist.Normal(0.0, torch.full_like(self.gate, math.sqrt(_GATE_VARIANCE))).to_event(
                2
            )
            eta["gate"] = pyro.sample("gate", law)
        else:
            law = dist.Dirichlet(torch.ones_like(self.proportion))
            eta["proportion"] = pyro.sample("proportion", law)
        return eta

    def forward(self, eta: Eta) -> Distribution:
        loc = self._loc(eta, self.design)
        root = self._scale(eta).root
        component = dist.MultivariateNormal(loc, scale_tril=root.expand(*loc.shape, -1))
        mixing = dist.Categorical(logits=self._log_prior(eta, self.design))
        return GaussianMixture(mixing, component.to_event(1)).to_event(1)

    def _loc(self, eta: Eta, design: Tensor) -> Tensor:
        """Prior means (K, C, O, D)."""
        used = design if self.task_mean else design[:, :1]
        return torch.einsum("kf,cfod->kcod", used, eta["centre"])

    def _log_prior(self, eta: Eta, design: Tensor) -> Tensor:
        """Log π_kc, (..., K, C)."""
        if self.gating:
            return (design @ eta["gate"].mT).log_softmax(-1)
        proportion = eta["proportion"].log()[..., None, :]
        return proportion.expand(*proportion.shape[:-2], len(design), -1)

    def _scale(self, eta: Eta) -> Scale:
        return self.form.scale(eta, self.sizes.num_features)

    # ---- closed-form half ---------------------------------------------------------------------

    def initialise(
        self, statistics: TaskStatistics, generator: torch.Generator, start: int
    ) -> None:
        super().initialise(statistics, generator, start)
        self.register_buffer("scatter", self.form.reference(self.scatter))
        C = start // self.n_init + 1 if self.num_clusters == "auto" else self.num_clusters
        self._register(C, self.scatter)
        # k-means on each task's ridge weights, in units of the prior's scale
        std = (_CENTRE_VARIANCE * self.scatter).sqrt()
        zero = std.new_zeros(self.sizes.num_tasks, 1)
        loc = std.new_zeros(1, 1, *std.shape)
        ridge = mixture_posterior(statistics, zero, loc, DiagonalScale(std))
        white = (ridge.mean.reshape(self.sizes.num_tasks, -1) / std.flatten()).cpu().numpy()
        seed = int(torch.randint(2**31 - 1, (), generator=generator))
        distinct = len(np.unique(white, axis=0))
        labels = KMeans(min(C, distinct), n_init=1, random_state=seed).fit_predict(white)
        hard = torch.nn.functional.one_hot(torch.as_tensor(labels, device=std.device).long(), C)
        self.update(_relabel(ridge, hard.to(std.dtype)))

    def more_starts(self, scores: list[float]) -> bool:
        if self.num_clusters != "auto":
            return len(scores) < self.n_init
        if len(scores) % self.n_init:
            return True
        best = [max(scores[i : i + self.n_init]) for i in range(0, len(scores), self.n_init)]
        stalled = len(best) >= 2 and best[-1] <= max(best[:-1])
        return not stalled and len(best) < min(_MAX_CLUSTERS, self.sizes.num_tasks)

    def complexity(self) -> float:
        r"""What Laplace's method charges for $\hat\eta$, so that numbers of clusters compare.

        $$\log p(D) \approx \log p(D, \hat\eta) - \log p(\eta_0)
          - \tfrac12 \log |H H_0^{-1}| + \log C!$$
        with $\eta_0$ the mode of the hyperprior, $H_0$ its curvature there and $H$ that of the
        posterior, taken block by block as if the tasks' weights were known. The evidence at
        fitted hyperparameters always favours more clusters. With a fixed number there is
        nothing to charge.
        """
        if self.num_clusters != "auto":
            return 0.0
        C, D = len(self.centre), self.sizes.num_features
        counts = self.responsibilities.sum(0)
        mode = {**self.eta, "centre": torch.zeros_like(self.centre)}
        mode |= self.form.mode(self._scatters(C))
        charge = self.form.charge(counts[:, None].expand(-1, self.sizes.num_outputs), D).sum()
        charge = charge + self._centre_charge()
        if self.gating:
            mode["gate"] = torch.zeros_like(self.gate)
            charge = charge + gate_charge(self.design, self.gate, _GATE_VARIANCE)
        else:
            # Σ_c K_c log π_c against the same with π integrated out: exact for known labels
            plugged = torch.special.xlogy(counts, counts / counts.sum()).sum()
            integrated = torch.lgamma(1 + counts).sum() - torch.lgamma(counts.sum() + C)
            integrated = integrated + math.lgamma(C)  # log p(π), which the last line takes away
            charge = charge + plugged - integrated
        return float(self.log_hyperprior(mode) + charge) - math.lgamma(C + 1)

    def _centre_charge(self) -> Tensor:
        r"""$\tfrac12 \sum_c \log |I + G_c \otimes (L_c^\top S^{-1} L_c)^{-1}|$."""
        gram, ridge = self._centre_system(self.responsibilities)
        columns = torch.linalg.eigvalsh(gram).clamp(min=0)[:, None, :, None]
        features = torch.linalg.eigvalsh(ridge)[:, :, None, :]
        return 0.5 * torch.log1p(columns / features).sum()

    def _centre_system(self, r: Tensor) -> tuple[Tensor, Tensor]:
        """Σ_k r f fᵀ (C, F, F), and the centre's prior in units of Σ_c, Lᵀ S⁻¹ L (C, O, D, D)."""
        used = self.design if self.task_mean else self.design[:, :1]
        half = self._scale(self.eta).root / (_CENTRE_VARIANCE * self.scatter).sqrt()[..., None]
        return torch.einsum("kc,kf,kg->cfg", r, used, used), half.mT @ half

    def condition(self, statistics: TaskStatistics, eta: Eta) -> WeightPosterior:
        # r_kc ∝ π_kc P(D_k | c),  w_k | c ~ N(Q⁻¹R, Q⁻¹)
        return mixture_posterior(
            statistics,
            self._log_prior(eta, self.design),
            self._loc(eta, self.design),
            self._scale(eta),
        )

    def update(self, posterior: WeightPosterior) -> None:
        r = posterior.log_weights.exp()  # (K, C)
        eta: Eta = {"centre": self._centres(posterior, r)}
        deviation = posterior.means - self._loc(eta, self.design)
        # S_c = Σ_k r_kc [ C_kc + (Â_kc − m_c)(Â_kc − m_c)ᵀ ]
        half = r.sqrt()[..., None, None, None]
        outer = self.form.outer(half * posterior.roots.own) + self.form.outer(
            half * deviation[..., None]
        )
        counts = r.sum(0)[:, None].expand(-1, self.sizes.num_outputs)
        eta |= self.form.update(self.eta, outer, counts, self._scatters(len(counts)))
        if self.gating:
            eta["gate"] = fit_gate(self.design, r, self.gate, _GATE_VARIANCE)
        else:
            # an empty cluster keeps a share that its logarithm can bear
            share = r.mean(0).clamp(min=1e-10)
            eta["proportion"] = share / share.sum()
        self.register_buffer("responsibilities", r.detach())
        self.set_eta(eta)

    def _centres(self, posterior: WeightPosterior, r: Tensor) -> Tensor:
        """Mode of the centres given the present covariances, (C, 1 or 1 + F, O, D).

        For one column of the design:
        m_c = (Λ_c Σ_k r_kc + S⁻¹)⁻¹ Λ_c Σ_k r_kc Â_kc,  S = 10 Ψ; block matrices for more columns.
        """
        used = self.design if self.task_mean else self.design[:, :1]
        F, D = used.shape[1], self.sizes.num_features
        root = self._scale(self.eta).root  # (C, O, D, D)
        # whitened by L_c: [ G_c ⊗ I + I ⊗ Lᵀ S⁻¹ L ] vec(M̃) = vec(Σ r f (L⁻¹ Â)ᵀ)
        gram, ridge = self._centre_system(r)
        moment = torch.einsum("kc,kf,kcod->codf", r, used, posterior.means)
        white = torch.linalg.solve_triangular(root, moment, upper=False)
        # the ridge's eigenvectors split the system into D systems of F equations
        values, vectors = torch.linalg.eigh(ridge)
        rotated = vectors.mT @ white  # (C, O, D, F)
        identity = torch.eye(F, dtype=root.dtype, device=root.device)
        system = gram[:, None, None] + values[..., None, None] * identity
        solution = torch.linalg.solve(system, rotated[..., None])[..., 0]
        centre = root @ (vectors @ solution)
        return centre.permute(0, 3, 1, 2).reshape(len(root), F, -1, D)

    def settle(self, statistics: TaskStatistics, posterior: WeightPosterior) -> None:
        super().settle(statistics, posterior)
        self.register_buffer("responsibilities", posterior.log_weights.exp())

    def grow(
        self, information: Tensor, posterior: WeightPosterior, newcomers: WeightPosterior | None
    ) -> None:
        super().grow(information, posterior, newcomers)
        self.register_buffer("responsibilities", posterior.log_weights.exp())

    def population(
        self, eta: Eta, posterior: WeightPosterior, task_features: Tensor | None, num_tasks: int
    ) -> WeightPosterior:
        if (self.gating or self.task_mean) and task_features is None:
            raise ValueError(
                "the prior reads task features (gating or task_mean): give task_features of shape "
                f"({num_tasks}, {self.sizes.num_task_features}) for the new tasks."
            )
        design = self._design(self.scatter, task_features, num_tasks)
        log_weights = self._log_prior(eta, design)
        if eta["centre"].ndim > self.centre.ndim:  # draws (S, ...): a mixture of S C components
            log_weights = log_weights.transpose(0, 1).flatten(1) - math.log(len(log_weights))
            per_cluster = ("centre", *self.form.mode(self.scatter))
            eta = {name: eta[name].flatten(0, 1) for name in per_cluster}
        means = self._loc(eta, design)
        root = self._scale(eta).root
        return WeightPosterior(
            log_weights=log_weights,
            means=means,
            roots=Roots.independent(root.expand(*means.shape, -1)),
            log_normaliser=means.new_zeros(()),
        )

    def relations(self) -> Tensor:
        r"""Probability that two tasks share a cluster, $\sum_c r_{jc} r_{kc}$, (K, K)."""
        together = self.responsibilities @ self.responsibilities.mT
        return together.fill_diagonal_(1.0)


def _relabel(posterior: WeightPosterior, r: Tensor) -> WeightPosterior:
    """A one-component posterior, the same in each of C components of responsibilities r (K, C)."""
    C = r.shape[1]
    return WeightPosterior(
        log_weights=r.log(),
        means=posterior.means.expand(-1, C, -1, -1),
        roots=Roots.independent(posterior.roots.own.expand(-1, C, -1, -1, -1)),
        log_normaliser=posterior.log_normaliser,
    )
