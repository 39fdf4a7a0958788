r"""Sparse groups of features and a low-rank covariance of tasks, after Archambeau, Guo and Zoeter.

$$\gamma_g \sim \mathrm{GIG}(\omega, \chi, \varphi), \quad
  z_r \sim N(0, S), \quad w_k \mid z \sim N\Big(\sum_r V_{kr} z_r,\; S\Big), \quad
  S_{dd} = \tau \Psi_d / \gamma_{g(d)}$$

so that $W \sim N(0, \Sigma \otimes S)$ with $\Sigma = VV^\top + I$. One precision $\gamma_g$ a
group of features, which all tasks share, switches the group on or off. W and z are integrated out
together whenever $\eta = (V, \gamma, \tau)$ moves.

With `covariance="full"` the features of a group covary too:
$S = \tau\,\Psi^{1/2}\,\mathrm{blockdiag}(\Omega_g / \gamma_g)\,\Psi^{1/2}$.

What differs from the paper: there every factor has a q of its own, under which the low rank may
die; here V, $\gamma$, $\Omega$ and $\tau$ are MAP under the exact evidence (under the bound of
q(W) q(z) where `factorised`). $\tau$ scales S alone: in $\Sigma$ it is not identified beside
$\gamma$. V's prior has heavy tails.

References:
    Archambeau, Guo and Zoeter, Sparse Bayesian multi-task learning, NIPS 24 (2011).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, final

import numpy as np
import numpy.typing as npt
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ..distributions import GIG, GeneralizedInverseGaussian, MatrixNormal, SphericalCauchy
from ..gaussian import DenseScale, DiagonalScale, Scale
from ..hyperparameters import Eta
from ..posterior import Centre, WeightPosterior, mixture_posterior
from ..roots import Roots
from ..statistics import TaskStatistics
from .covariance import correlation, identity, joint
from .patterns import condition_patterns
from .task_prior import TaskPrior
from .within_groups import WithinGroups, group_codes

_DENSE_AT_A_TENTH = GIG(order=0.5, chi=0.1, phi=1e-4)


@final
class SparseBayesian(TaskPrior):
    r"""Few groups of features matter, the same ones for all tasks, and tasks covary with low rank.

    $W \sim N(0, \Sigma \otimes \tau\,\mathrm{diag}(\Psi_d/\gamma_{g(d)}))$ with
    $\Sigma = VV^\top + I$ over tasks. $\Psi$ is the variance of each weight at which the signal is
    as large as the noise.

    Args:
        groups: (D,) whole numbers that give each feature its group; None: a group a feature. With
            one number less than the model has features, the first feature, an estimator's
            intercept, is a group of its own before the others.
        rank: R, columns of V: how many patterns of weights the tasks share, at most. Each has K
            numbers that are fitted; those that are not worth their `complexity` are 0. Without
            any, tasks share which features matter and nothing else. Targets of the same rows
            whose noise goes together can show a pattern that is the noise's: compare `rank=0`.
        hyperprior: law of each precision $\gamma_g$, a `GIG` or its three numbers
            $(\omega, \chi, \varphi)$: `GIG.gamma(shape, rate)` makes weights a matrix Student-t,
            `GIG.inverse_gamma` a matrix Laplace, `GIG.jeffreys()` ARD. The default is densest at
            0.1 and has a tail up to 10000, so that a group can be switched off;
            `GIG.gamma(1.5, 0.5)` holds all groups near one size. The scale of $\gamma$, by which
            $\chi$ and $\varphi$ could be fitted, is $\tau$, which is.
        covariance: "diagonal", or "full" for a matrix $\Omega_g$ within each group of several
            features, $\Omega_g^{-1} \sim \mathrm{Wishart}(2D_g + 1, (D_gI)^{-1})$.
        factorised: whether the closed form keeps weights and patterns apart, q(W) q(z), as the
            paper does, in place of integrating out both together. For comparison.

    Raises:
        ValueError: for groups that are no whole numbers or do not fit the features, a rank below
            0, another `covariance`, or a `hyperprior` that is no law.

    Example:
        >>> from bmm_multitask_learning import MultitaskModel, SparseBayesian, datasets, fit
        >>> data, truth = datasets.make_clusters(num_tasks=9, num_clusters=1, seed=0)
        >>> model = MultitaskModel(prior=SparseBayesian(groups=[0, 0, 0, 1, 1, 2], rank=1))
        >>> result = fit(model, data, progress=False)
        >>> model.prior.relevance.shape
        torch.Size([3])

    References:
        Archambeau, Guo and Zoeter (2011).
    """

    attributes: ClassVar[Mapping[str, str]] = {"hyperprior": "precision_law"}

    group: Tensor
    loading: Tensor
    precision: Tensor
    level: Tensor
    relevance: Tensor
    loading_information: Tensor

    def __init__(
        self,
        groups: Sequence[int] | npt.NDArray[np.integer] | Tensor | None = None,
        rank: int = 1,
        hyperprior: Sequence[float] = _DENSE_AT_A_TENTH,
        *,
        covariance: Literal["diagonal", "full"] = "diagonal",
        factorised: bool = False,
    ) -> None:
        super().__init__()
        if rank < 0:
            raise ValueError(f"rank must be at least 0; got {rank}.")
        if covariance not in ("diagonal", "full"):
            raise ValueError(f'covariance must be "diagonal" or "full"; got {covariance!r}.')
        self.groups = groups
        self.rank = rank
        self.precision_law = hyperprior
        self.covariance = covariance
        self.factorised = factorised
        self.exact = not factorised
        self._law = _checked(hyperprior)
        self._codes = None if groups is None else group_codes(groups)

    # ---- generative half ----------------------------------------------------------------------

    def register_hyperparameters(self, like: Tensor) -> None:
        K, D = self.sizes.num_tasks, self.sizes.num_features
        codes = np.arange(D) if self._codes is None else self._codes
        if len(codes) == D - 1:
            codes = np.concatenate([[0], 1 + codes])
        if len(codes) != D:
            raise ValueError(
                f"groups gives {len(codes)} features their group; the model has {D}. Give one "
                "number for each column of x."
            )
        group = torch.from_numpy(codes).to(like.device)
        num_groups = int(codes.max()) + 1
        self.register_buffer("group", group)
        self.register_buffer("loading", like.new_zeros(self.rank, K))
        self.register_buffer("precision", like.new_ones(num_groups))
        self.register_buffer("level", like.new_ones(1))
        self.register_buffer("relevance", like.new_ones(num_groups))
        self.register_buffer("loading_information", like.new_zeros(K, self.rank, self.rank))
        form = WithinGroups.of if self.covariance == "full" else WithinGroups.diagonal
        self._within = form(group)
        for name, value in self._within.mode(like).items():
            self.register_buffer(name, value)

    def hyperprior(self) -> Eta:
        half = torch.full_like(self.level, 0.5 * self.sizes.num_features)
        law = GeneralizedInverseGaussian(*self._mixing()).expand(self.precision.shape)
        eta = {
            "precision": pyro.sample("precision", joint(law)),
            "level": pyro.sample("level", dist.Gamma(1 + half, half).to_event(1)),
        }
        if self.rank:
            eta["loading"] = pyro.sample("loading", joint(SphericalCauchy(self.loading)))
        return {**eta, **self._within.hyperprior(self.level)}

    def forward(self, eta: Eta) -> MatrixNormal:
        return MatrixNormal(
            torch.linalg.cholesky(_task_law(self._loading(eta))), self._scale(eta).root
        )

    def _loading(self, eta: Eta) -> Tensor:
        """(..., R, K); with rank 0 it is no hyperparameter."""
        return eta["loading"] if self.rank else self.loading

    def _mixing(self) -> tuple[Tensor, Tensor, Tensor]:
        """ω, χ and φ, scalars."""
        order, chi, phi = (self.precision.new_tensor(value) for value in self._law)
        return order, chi, phi

    def _variance(self, eta: Eta) -> Tensor:
        """S without Ω, the diagonal of the covariance of a task's own part, (..., O, D)."""
        precision = (eta["level"] * eta["precision"])[..., self.group]
        return self.scatter / precision[..., None, :]

    def _scale(self, eta: Eta) -> Scale:
        """A square root of S."""
        std = self._variance(eta).sqrt()
        if not self._within.blocks:
            return DiagonalScale(std)
        return DenseScale(std[..., None] * self._within.root(eta, std)[..., None, :, :])

    # ---- closed-form half ---------------------------------------------------------------------

    def initialise(
        self, statistics: TaskStatistics, generator: torch.Generator, start: int
    ) -> None:
        super().initialise(statistics, generator, start)
        # V from an SVD of each task's ridge weights, in units of the prior's scale
        std = self.scatter.sqrt()
        zero = std.new_zeros(self.sizes.num_tasks, 1)
        ridge = mixture_posterior(statistics, zero, torch.zeros_like(std), DiagonalScale(std))
        white = (ridge.means[:, 0] / std).flatten(1)  # (K, O D)
        left, size, _ = torch.linalg.svd(white, full_matrices=False)
        used = min(self.rank - start, len(size))
        loading = torch.zeros_like(self.loading)
        # the rest is the tasks' own, or a sixteenth of the whole where nothing is left
        own = (size[used:].square().sum() + size.square().sum() / 16) / len(white)
        own = own.clamp(min=torch.finfo(own.dtype).tiny)
        loading[:used] = (left[:, :used] * size[:used]).mT / own.sqrt()
        ones = torch.ones_like(self.precision)
        shapes = self._within.mode(ones)
        self.set_eta({"loading": loading, "precision": ones, "level": ones[:1], **shapes})

    def more_starts(self, scores: list[float]) -> bool:
        # a pattern less each time, until that is worse: a pattern that starts at 0 stays there
        return not scores or (len(scores) <= self.rank and scores[-1] == max(scores))

    def complexity(self) -> float:
        r"""What Laplace's method charges for V, so that numbers of patterns compare.

        $\tfrac12 \sum_k \log|I + H_k / \alpha_0|$ with $H_k$ the curvature of task k's evidence in
        its R loadings, the patterns at their mean, and $\alpha_0 = (K + 1)/K$ that of the prior
        at its mode, zero, where there is nothing to charge.
        """
        K = self.sizes.num_tasks
        curvature = identity(self.rank, self.level) + self.loading_information * K / (K + 1)
        return 0.5 * float(torch.logdet(curvature).sum())

    def condition(self, statistics: TaskStatistics, eta: Eta) -> WeightPosterior:
        scale = self._scale(eta)
        known = condition_patterns(
            statistics, scale, self._loading(eta).mT, factorised=self.factorised
        )
        # z in the weights' units, each pattern by itself
        z = scale.apply(known.patterns.movedim(1, 0)).movedim(0, 1).flatten(1, 2)[None]
        return WeightPosterior(
            log_weights=known.mean.new_zeros(len(known.mean), 1),
            means=scale.apply(known.mean[..., None])[:, None, ..., 0],
            roots=known.roots,
            log_normaliser=known.log_normaliser,
            effective=lambda: known.effective()[:, None],
            shared=Centre(z[..., -1], z[..., :-1]),
        )

    def update(self, posterior: WeightPosterior) -> None:
        K, O, D = posterior.means[:, 0].shape
        R = self.rank
        centre = posterior.centre()
        psi = self.scatter.sqrt()[..., None]
        # mean and root beside each other: E[x xᵀ] is the sum of squares of columns, in units of Ψ
        z = torch.cat([centre.root, centre.mean[..., None]], -1)[0].unflatten(1, (R, D))
        z = z / psi[:, None]  # (O, R, D, J)
        own, common = posterior.roots.own[:, 0] / psi, posterior.roots.common[:, 0]
        w = torch.cat([common, posterior.means[:, 0, ..., None]], -1) / psi  # (K, O, D, J)
        # α_r = (K + 1) / (K + ‖V_r‖²),  V = E[W S⁻¹ Zᵀ] ( E[Z S⁻¹ Zᵀ] + diag α )⁻¹
        within, scaled = self._within, (self.level * self.precision)[self.group]
        weighed = scaled[:, None] * (within.precision(self.eta, z) @ z)
        alpha = (K + 1) / (K + self.loading.square().sum(-1))
        gram = torch.einsum("ordj,osdj->rs", weighed, z) + torch.diag(alpha)
        cross = torch.einsum("ordj,kodj->rk", weighed, w)
        loading = torch.cholesky_solve(cross, torch.linalg.cholesky(gram))
        # H_k = ẑᵀ ( S⁻¹ − S⁻¹ C_k S⁻¹ ) ẑ,  C_k the covariance of what is the task's own
        at = weighed[..., -1]
        known = torch.einsum("kodi,ord->kori", own, at)
        information = torch.einsum("ord,osd->rs", at, z[..., -1])
        information = information - torch.einsum("kori,kosi->krs", known, known)
        self.register_buffer("loading_information", information)
        # S_d = Σ_k E[(w_k − V_k z)²] + Σ_r E[z_r²]
        rest = w - torch.einsum("rk,ordj->kodj", loading, z)
        total = within.outer(rest) + within.outer(own) + within.outer(z.movedim(1, 0))
        # Ω_g | rest, a matrix of O (K + R) vectors
        shapes = within.update(self.eta, total, scaled, total.new_tensor(O * (K + R)))
        square = self._per_group(within.squares(shapes, total))
        count = O * (K + R) * torch.bincount(self.group).to(square)
        # γ_g | rest ~ GIG(ω + n_g/2, χ, φ + ℓ S_g): its mode
        order, chi, phi = self._mixing()
        law = GeneralizedInverseGaussian(
            order + 0.5 * count, chi, phi + self.level * square, validate_args=False
        )
        # ℓ = ( D + n ) / ( D + Σ_g γ_g S_g )
        level = (D + count.sum()) / (D + (law.mode * square).sum(-1, keepdim=True))
        self.set_eta({"loading": loading, "precision": law.mode, "level": level, **shapes})

    def _per_group(self, value: Tensor) -> Tensor:
        """Sums (G,) of values (D,) of the features."""
        return torch.zeros_like(self.precision).index_add(0, self.group, value)

    def settle(self, statistics: TaskStatistics, posterior: WeightPosterior) -> None:
        super().settle(statistics, posterior)
        self._keep_relevance(posterior)

    def grow(
        self, information: Tensor, posterior: WeightPosterior, newcomers: WeightPosterior | None
    ) -> None:
        super().grow(information, posterior, newcomers)
        self._keep_relevance(posterior)
        added = len(information) - self.loading.shape[1]
        typical = self.loading.mean(-1, keepdim=True).expand(-1, added)
        self.register_buffer("loading", torch.cat([self.loading, typical], -1))

    def _keep_relevance(self, posterior: WeightPosterior) -> None:
        # E‖W_g‖² / (K O D_g), each weight in units of Ψ
        square = posterior.means.square() + posterior.roots.variance()
        square = torch.einsum("kc,kcod->kod", posterior.log_weights.exp(), square)
        average = self._per_group((square / self.scatter).mean((0, 1)))
        self.register_buffer("relevance", average / torch.bincount(self.group))

    def population(
        self, eta: Eta, posterior: WeightPosterior, task_features: Tensor | None, num_tasks: int
    ) -> WeightPosterior:
        # w_new = Σ_r v_r z_r + e:  v has the mean and covariance of the rows of V
        D = self.sizes.num_features
        centre = posterior.centre()
        own_root = self._scale(eta).root.expand(len(centre.mean), -1, -1, -1)  # (C, O, D, D)
        V = self._loading(eta).expand(len(centre.mean), self.rank, -1)
        z = centre.mean.unflatten(-1, (self.rank, D))  # (C, O, R, D)
        root = centre.root.unflatten(2, (self.rank, D))  # (C, O, R, D, R D)
        typical = V.mean(-1)
        deviation = (V - typical[..., None]) / V.shape[-1] ** 0.5
        # any root of the covariance does; R columns rather than K
        spread = torch.linalg.qr(deviation.mT, mode="r").R.mT  # (C, R, min(R, K))
        mean = torch.einsum("cr,cord->cod", typical, z)
        common = torch.einsum("cr,cordj->codj", typical, root)
        own = torch.cat(
            [
                own_root,
                torch.einsum("crs,cord->cods", spread, z),
                torch.einsum("crs,cordj->codsj", spread, root).flatten(-2),
            ],
            -1,
        )
        return WeightPosterior(
            log_weights=mean.new_zeros(num_tasks, len(mean)).log_softmax(-1),
            means=mean.expand(num_tasks, *mean.shape),
            roots=Roots(own[None], common[None]).expand(num_tasks),
            log_normaliser=mean.new_zeros(()),
        )

    def relations(self) -> Tensor:
        r"""Absolute correlation of tasks under $\Sigma$, (K, K), symmetric; 1 on the diagonal.

        Its sign is that of `task_covariance`.
        """
        return correlation(self.task_covariance).abs()

    # ---- read-outs ----------------------------------------------------------------------------

    @property
    def task_covariance(self) -> Tensor:
        r"""$\tau\Sigma = \tau(VV^\top + I)$, (K, K): in units of $\Psi$, for $\gamma = 1$."""
        return _task_law(self.loading) / self.level


def _task_law(loading: Tensor) -> Tensor:
    r"""$\Sigma = VV^\top + I$."""
    return loading.mT @ loading + identity(loading.shape[-1], loading)


def _checked(hyperprior: Sequence[float]) -> GIG:
    """A law whose density is finite; a ValueError says what it must be."""
    law = GIG(*hyperprior)
    order, chi, phi = law
    if not (chi >= 0 and phi >= 0 and (chi > 0 or order >= 1) and (phi > 0 or order < 0)):
        raise ValueError(
            "hyperprior must be GIG(order, chi, phi) with chi >= 0, phi >= 0, order >= 1 where "
            "chi = 0 (below 1 the density is infinite at a precision of 0), and order < 0 "
            f"where phi = 0; got {tuple(law)}."
        )
    return law
