r"""Sparse groups of features and a low-rank covariance of tasks, after Archambeau, Guo and Zoeter.

$$\gamma_g \sim \mathrm{GIG}(\omega, \chi, \varphi), \quad
  z_r \sim N(0, S), \quad w_k \mid z \sim N\Big(\sum_r V_{kr} z_r,\; S\Big), \quad
  S_{dd} = \tau \Psi_d / \gamma_{g(d)}$$

so that $W \sim N(0, \Sigma \otimes S)$ with $\Sigma = VV^\top + I$. One precision $\gamma_g$ a
group of features, which all tasks share, switches the group on or off. W and z are integrated out
together whenever $\eta = (V, \gamma, \tau)$ moves.

What differs from the paper: there every factor has a q of its own, under which the low rank may
die; here V, $\gamma$ and $\tau$ are MAP under the exact evidence. The covariance within a group,
$\Omega_g$, is diagonal. $\tau$ scales S alone: in $\Sigma$ it is not identified beside $\gamma$.
V's prior has heavy tails.

References:
    Archambeau, Guo and Zoeter, Sparse Bayesian multi-task learning, NIPS 24 (2011).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import numpy as np
import numpy.typing as npt
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ..distributions import GeneralizedInverseGaussian, MatrixNormal, SphericalCauchy
from ..gaussian import DiagonalScale, condition_tasks
from ..hyperparameters import Eta
from ..posterior import Centre, WeightPosterior, mixture_posterior
from ..roots import Roots
from ..statistics import TaskStatistics
from .covariance import correlation, identity, joint
from .task_prior import TaskPrior


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
        rank: R, columns of V: how many patterns of weights the tasks share. Each has K numbers
            that are fitted, not integrated out: more of them take many features.
        mixing: $(\omega, \chi, \varphi)$ of the generalized inverse Gaussian prior of each
            precision $\gamma_g$. $\chi = 0$ is a Gamma (weights a matrix Student-t),
            $\varphi = 0$ an inverse Gamma (matrix Laplace). The default is densest at 0.1 and
            has a tail up to 10000, so that a group can be switched off; (1.5, 0, 1) holds all
            groups near one size.

    Raises:
        ValueError: for groups that are no whole numbers or do not fit the features, a rank below
            1, or a `mixing` that is no law.

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

    group: Tensor
    loading: Tensor
    precision: Tensor
    level: Tensor
    relevance: Tensor

    def __init__(
        self,
        groups: Sequence[int] | npt.NDArray[np.integer] | Tensor | None = None,
        rank: int = 1,
        *,
        mixing: tuple[float, float, float] = (0.5, 0.1, 1e-4),
    ) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"rank must be at least 1; got {rank}.")
        order, chi, phi = mixing
        if not (chi >= 0 and phi >= 0 and (chi > 0 or order >= 1) and (phi > 0 or order < 0)):
            raise ValueError(
                "mixing must be (order, chi, phi) with chi >= 0, phi >= 0, order >= 1 where "
                "chi = 0 (below 1 the density is infinite at a precision of 0), and order < 0 "
                f"where phi = 0; got {mixing}."
            )
        self.groups = groups
        self.rank = rank
        self.mixing = mixing
        self._codes = None if groups is None else _codes(groups)

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

    def hyperprior(self) -> Eta:
        half = torch.full_like(self.level, 0.5 * self.sizes.num_features)
        law = GeneralizedInverseGaussian(*self._mixing())
        return {
            "loading": pyro.sample("loading", joint(SphericalCauchy(self.loading))),
            "precision": pyro.sample("precision", joint(law)),
            "level": pyro.sample("level", dist.Gamma(1 + half, half).to_event(1)),
        }

    def forward(self, eta: Eta) -> MatrixNormal:
        root = torch.diag_embed(self._variance(eta).sqrt())
        return MatrixNormal(torch.linalg.cholesky(_task_law(eta["loading"])), root)

    def _mixing(self) -> tuple[Tensor, Tensor, Tensor]:
        """ω, χ and φ, each (G,)."""
        order, chi, phi = self.mixing
        ones = torch.ones_like(self.precision)
        return order * ones, chi * ones, phi * ones

    def _variance(self, eta: Eta) -> Tensor:
        """S, the diagonal of the covariance of a task's own part, (..., O, D)."""
        precision = (eta["level"] * eta["precision"])[..., self.group]
        return self.scatter / precision[..., None, :]

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
        used = min(self.rank, len(size))
        loading = torch.zeros_like(self.loading)
        # the rest is the tasks' own, or a sixteenth of the whole where nothing is left
        own = (size[used:].square().sum() + size.square().sum() / 16) / len(white)
        own = own.clamp(min=torch.finfo(own.dtype).tiny)
        loading[:used] = (left[:, :used] * size[:used]).mT / own.sqrt()
        ones = torch.ones_like(self.precision)
        self.set_eta({"loading": loading, "precision": ones, "level": ones[:1]})

    def condition(self, statistics: TaskStatistics, eta: Eta) -> WeightPosterior:
        scale = DiagonalScale(self._variance(eta).sqrt())
        V = eta["loading"].mT  # (K, R)
        D = self.sizes.num_features
        pieces = condition_tasks(statistics, scale)
        inverse = torch.cat([piece.inverse_factor for piece in pieces])
        own = torch.cat([piece.v for piece in pieces])  # v_k = C̃_k h̃_k, (K, O, D)
        spread = inverse.mT @ inverse  # C̃_k
        # z = L ζ:  P = I + Σ_k V_k V_kᵀ ⊗ (I − C̃_k),  ζ̂ = P⁻¹ Σ_k V_k ⊗ v_k
        precision = torch.einsum("kr,ks,koij->orisj", V, V, identity(D, own) - spread)
        precision = precision.flatten(-2).flatten(-3, -2)
        precision = precision + identity(self.rank * D, own)
        factor = torch.linalg.cholesky(precision)
        linear = torch.einsum("kr,kod->ord", V, own).flatten(1)[..., None]
        patterns = torch.cholesky_solve(linear, factor)  # (O, R D, 1)
        # P^{-1/2} is wanted as such: it carries the patterns' uncertainty to every task
        whole = identity(self.rank * D, own).expand_as(factor)
        root = torch.linalg.solve_triangular(factor, whole, upper=False).mT
        # log p(D | η) = Σ_k log Z_k(0) + ½ (ΣVv)ᵀ P⁻¹ (ΣVv) − ½ log|P|
        log_normaliser = (
            torch.cat([piece.log_normaliser for piece in pieces]).sum()
            + 0.5 * (linear * patterns).sum()
            - factor.diagonal(dim1=-2, dim2=-1).log().sum()
        )
        # w_k | ζ ~ N(L (v_k + C̃_k Σ_r V_kr ζ_r), L C̃_k Lᵀ)
        shared = torch.cat([root, patterns], -1).unflatten(1, (self.rank, D))
        shared = torch.einsum("kr,ordj->kodj", V, shared)
        told = spread @ shared
        mean = own + told[..., -1]
        # tr(Ã (C̃ + C̃ B Bᵀ C̃)) with Ã C̃ = I − C̃
        effective = torch.cat([piece.effective() for piece in pieces])
        common, told = shared[..., :-1], told[..., :-1]
        effective = effective + ((common - told) * told).sum((-2, -1))
        std = scale.std.repeat(1, self.rank)
        return WeightPosterior(
            log_weights=mean.new_zeros(len(mean), 1),
            means=(scale.std * mean)[:, None],
            roots=Roots(scale.apply(inverse.mT)[:, None], scale.apply(told)[:, None]),
            log_normaliser=log_normaliser,
            effective=effective[:, None],
            shared=Centre((std * patterns[..., 0])[None], (std[..., None] * root)[None]),
        )

    def update(self, posterior: WeightPosterior) -> None:
        K, O, D = posterior.means[:, 0].shape
        R = self.rank
        centre = posterior.centre()
        z, root = centre.mean[0].unflatten(-1, (R, D)), centre.root[0].unflatten(1, (R, D))
        w, common = posterior.means[:, 0], posterior.roots.common[:, 0]
        # second moments over q(W, z), each weight by itself
        zz = torch.einsum("ord,osd->rsod", z, z) + torch.einsum("ordj,osdj->rsod", root, root)
        wz = torch.einsum("kod,ord->krod", w, z) + torch.einsum("kodj,ordj->krod", common, root)
        ww = (w.square() + posterior.roots.variance()[:, 0]).sum(0)
        # α_r = (K + 1) / (K + ‖V_r‖²),  V = E[W S⁻¹ Zᵀ] ( E[Z S⁻¹ Zᵀ] + diag α )⁻¹
        variance = self._variance(self.eta)
        alpha = (K + 1) / (K + self.loading.square().sum(-1))
        gram = (zz / variance).sum((-2, -1)) + torch.diag(alpha)
        loading = torch.cholesky_solve(
            (wz / variance).sum((-2, -1)).mT, torch.linalg.cholesky(gram)
        )
        # S_d = Σ_k E[(w_k − V_k z)²] + Σ_r E[z_r²]
        square = (
            ww
            - 2 * torch.einsum("rk,krod->od", loading, wz)
            + torch.einsum("rk,sk,rsod->od", loading, loading, zz)
            + torch.einsum("rrod->od", zz)
        )
        square = self._per_group((square / self.scatter).sum(0))
        count = O * (K + R) * torch.bincount(self.group).to(square)
        # γ_g | rest ~ GIG(ω + n_g/2, χ, φ + ℓ S_g): its mode
        order, chi, phi = self._mixing()
        law = GeneralizedInverseGaussian(
            order + 0.5 * count, chi, phi + self.level * square, validate_args=False
        )
        # ℓ = ( D + n ) / ( D + Σ_g γ_g S_g )
        level = (D + count.sum()) / (D + (law.mode * square).sum(-1, keepdim=True))
        self.set_eta({"loading": loading, "precision": law.mode, "level": level})

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
        variance = self._variance(eta)
        D = self.sizes.num_features
        variance = variance.expand(len(posterior.centre().mean), -1, -1)  # (C, O, D)
        V = eta["loading"].expand(len(variance), self.rank, -1)
        centre = posterior.centre()
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
                torch.diag_embed(variance.sqrt()),
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


def _codes(groups: Sequence[int] | npt.NDArray[np.integer] | Tensor) -> npt.NDArray[np.int64]:
    """Groups numbered 0..G-1 in sorted order."""
    values = np.asarray(groups)
    if values.ndim != 1 or values.dtype.kind not in "iu" or len(values) == 0:
        raise ValueError(
            f"groups must be a (D,) array of whole numbers, one for each feature; got {groups!r}."
        )
    return np.unique(values, return_inverse=True)[1].astype(np.int64)
