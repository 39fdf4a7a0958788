r"""Every pair of tasks with a covariance of its own: the weights are matrix normal.

$$\Omega = Q\,\Theta^{-1} Q, \qquad \Theta \sim \mathrm{Wishart}(2K + 1, K^{-1} I), \qquad
  \mathrm{cov}(w_j, w_k) = \Omega_{jk}\,\Sigma$$

$Q^2 = \tfrac12 I + \tfrac12 \mathbf{1}\mathbf{1}^\top$ is $\Omega$ where its prior is densest: any
two tasks correlated by one half, a belief worth as many features as there are tasks. $\Sigma$ has
one of the forms of `covariance`, for each output. W is integrated out whenever
$\eta = (\Theta, \Sigma)$ moves.

What differs from the paper: W is integrated out, where the paper alternates between W and
$\Omega$; $\Sigma$ is learned, where the paper has a multiple of I; $\Omega$ has a proper prior,
where the paper fixes its trace.

References:
    Zhang and Yeung, A convex formulation for learning task relationships in multi-task learning
    (2010), equations 1 to 3.
"""

from __future__ import annotations

from typing import Literal, final

import pyro
import torch
from torch import Tensor

from ..distributions import MatrixNormal, Wishart
from ..gaussian import DiagonalScale, condition
from ..hyperparameters import Eta
from ..posterior import Centre, WeightPosterior
from ..roots import Roots
from ..statistics import TaskStatistics
from .covariance import correlation, covariance_form, covariance_matrix, identity
from .task_prior import TaskPrior

# correlation of two tasks before any data
_CORRELATION = 0.5
# joint Gaussians of K D weights an output beyond this are slow and large: 288 MB a matrix
MAX_WEIGHTS = 6000


@final
class TaskCovariance(TaskPrior):
    r"""Any two tasks covary: $\mathrm{cov}(w_j, w_k) = \Omega_{jk}\,\Sigma$, both inferred.

    Tasks may be unrelated, alike, or opposite, each pair by itself; that takes $K(K+1)/2$ numbers
    and the joint posterior of all tasks, at a cost of $O(K^3D^3)$ an iteration.

    Data tell the product $\Omega_{jk}\Sigma$ alone. The hyperpriors fix how it is divided, and the
    read-outs report $\Omega$ with a mean diagonal of 1.

    Args:
        covariance: "full", "diagonal" or "isotropic" $\Sigma$.

    Raises:
        ValueError: for another `covariance`; in `fit`, where the K D weights of an output are
            more than 6000.

    Example:
        >>> from bmm_multitask_learning import MultitaskModel, TaskCovariance, datasets, fit
        >>> data, truth = datasets.make_clusters(num_tasks=6, num_clusters=2, seed=0)
        >>> model = MultitaskModel(prior=TaskCovariance())
        >>> result = fit(model, data, progress=False)
        >>> model.prior.task_correlation.shape
        torch.Size([6, 6])

    References:
        Zhang and Yeung, A convex formulation for learning task relationships in multi-task
        learning (2010).
    """

    task_precision: Tensor

    def __init__(self, covariance: Literal["full", "diagonal", "isotropic"] = "diagonal") -> None:
        super().__init__()
        self.covariance = covariance
        self.form = covariance_form(covariance)

    def register_hyperparameters(self, like: Tensor) -> None:
        self.register_buffer("task_precision", identity(self.sizes.num_tasks, like))
        for name, value in self.form.mode(self.scatter).items():
            self.register_buffer(name, value)

    def hyperprior(self) -> Eta:
        # mode I, worth as many observations as there are tasks
        K = len(self.task_precision)
        law = Wishart(self.scatter.new_tensor(2.0 * K + 1), self.scatter.new_full((K,), float(K)))
        task_precision = pyro.sample("task_precision", law)
        return {"task_precision": task_precision, **self.form.hyperprior(self.scatter)}

    def forward(self, eta: Eta) -> MatrixNormal:
        root = self.form.scale(eta, self.sizes.num_features).root
        return MatrixNormal(_task_root(eta), root)

    def initialise(
        self, statistics: TaskStatistics, generator: torch.Generator, start: int
    ) -> None:
        K, _, D = statistics.b.shape
        if K * D > MAX_WEIGHTS:
            raise ValueError(
                f"TaskCovariance holds the joint covariance of all weights of an output, and "
                f"{K} tasks x {D} features = {K * D} are more than {MAX_WEIGHTS}. Reduce the "
                "features (PCA, a narrower backbone), or take SharedGaussian or TaskClustering."
            )
        super().initialise(statistics, generator, start)
        self.register_buffer("scatter", self.form.reference(self.scatter))
        self.set_eta({"task_precision": identity(K, self.scatter), **self.form.mode(self.scatter)})

    def condition(self, statistics: TaskStatistics, eta: Eta) -> WeightPosterior:
        K, _, D = statistics.b.shape
        scale = self.form.scale(eta, D)
        tasks = _task_root(eta)
        # W = R V Lᵀ with V white:  Ã = Σ_k (R_k R_kᵀ) ⊗ Lᵀ A_k L,  h̃ = Σ_k R_k ⊗ Lᵀ b_k
        white = scale.adjoint(scale.adjoint(statistics.A).mT)
        A = torch.einsum("kj,kl,kode->ojdle", tasks, tasks, white).reshape(-1, K * D, K * D)
        h = torch.einsum("kj,kod->ojd", tasks, scale.adjoint(statistics.b[..., None])[..., 0])
        unit = DiagonalScale(torch.ones_like(h).flatten(1))
        given = condition(A, h.flatten(1), statistics.c.sum(0), unit)
        # (R ⊗ L) [ v̂, U⁻ᵀ ]: mean and root of all tasks at once
        columns = torch.cat([given.v[..., None], given.inverse_factor.mT], -1)
        columns = columns.unflatten(1, (K, D))
        columns = scale.apply(torch.einsum("kj,ojds->kods", tasks, columns))
        mean, root = columns[..., 0], columns[..., 1:]
        # what a task outside the fit resembles: β Σ_k w_k
        share = _share(K)
        return WeightPosterior(
            log_weights=mean.new_zeros(K, 1),
            means=mean[:, None],
            roots=Roots(root[:, None, ..., :0], root[:, None]),
            log_normaliser=given.log_normaliser.sum(),
            effective=statistics.trace_term(root)[:, None],
            shared=Centre(share * mean.sum(0)[None], share * root.sum(0)[None]),
        )

    def update(self, posterior: WeightPosterior) -> None:
        K, _, O, D = posterior.means.shape
        # E[w_j w_kᵀ] = Σ_s Z_js Z_ksᵀ
        Z = torch.cat([posterior.means[..., None], posterior.roots.common], -1)[:, 0]
        root = self.form.scale(self.eta, D).root
        white = torch.linalg.solve_triangular(root, Z, upper=False).flatten(1)
        half = _half(root, K, -0.5)
        # Θ⁻¹ = ( K I + Q⁻¹ Σ_o E[W_o Σ_o⁻¹ W_oᵀ] Q⁻¹ ) / ( K + O D )
        outer = half @ (white @ white.mT) @ half
        inverse = (K * identity(K, root) + outer) / (K + O * D)
        precision = torch.cholesky_inverse(torch.linalg.cholesky(inverse))
        # with the new Θ:  S_o = E[W_oᵀ Ω⁻¹ W_o]
        mixed = torch.linalg.cholesky(precision).mT @ half
        rows = (mixed @ Z.flatten(1)).unflatten(1, Z.shape[1:])
        count = Z.new_full((O,), float(K))
        moved = self.form.update(self.eta, self.form.outer(rows), count, self.scatter)
        self.set_eta({"task_precision": precision, **moved})

    def population(
        self, eta: Eta, posterior: WeightPosterior, task_features: Tensor | None, num_tasks: int
    ) -> WeightPosterior:
        # w_new = β Σ_k w_k + u,  u ~ N(0, s Σ)
        centre = posterior.centre()
        mean = centre.mean
        root = self.form.scale(eta, self.sizes.num_features).root
        own = _own_variance(_task_covariance(eta)).sqrt()[..., None, None, None] * root
        own = own.expand(len(mean), *own.shape[-3:])
        shape = (num_tasks, *mean.shape)
        return WeightPosterior(
            log_weights=mean.new_zeros(num_tasks, len(mean)).log_softmax(-1),
            means=mean.expand(shape),
            roots=Roots(own.expand(*shape, -1), centre.root.expand(*shape, -1)),
            log_normaliser=mean.new_zeros(()),
        )

    def relations(self) -> Tensor:
        r"""Prior correlation $\Omega_{jk} / \sqrt{\Omega_{jj}\Omega_{kk}}$, (K, K), symmetric.

        Between -1 (opposite weights) and 1 (proportional). Tasks that `adapt` added have what
        the prior knew of them: the same correlation with the mean of the tasks of the fit.
        """
        return correlation(self._with_added_tasks())

    # ---- read-outs ----------------------------------------------------------------------------

    @property
    def task_covariance(self) -> Tensor:
        r"""$\Omega$ (K, K) of the tasks of the fit, scaled to a mean diagonal of 1."""
        covariance = _task_covariance(self.eta)
        return covariance / covariance.diagonal().mean()

    @property
    def task_correlation(self) -> Tensor:
        """Correlation (K, K) of the tasks of the fit."""
        return correlation(_task_covariance(self.eta))

    @property
    def covariance_matrix(self) -> Tensor:
        r"""$\Sigma$ (O, D, D), in squared units of the weights, for $\Omega$ as reported."""
        size = _task_covariance(self.eta).diagonal().mean()
        return size * covariance_matrix(self.form, self.eta, self.sizes.num_features)

    def _with_added_tasks(self) -> Tensor:
        """Ω of all tasks, those outside the fit as in `population`."""
        covariance = _task_covariance(self.eta)
        K = len(covariance)
        added = len(self.information) - K
        lead = torch.cat([identity(K, covariance), covariance.new_full((added, K), _share(K))])
        own = torch.cat([covariance.new_zeros(K), _own_variance(covariance).expand(added)])
        return lead @ covariance @ lead.mT + torch.diag_embed(own)


def _half(like: Tensor, size: int, power: float) -> Tensor:
    """((1 − ρ) I + ρ 11ᵀ)^power: Q for ½, its inverse for −½."""
    mean = like.new_full((size, size), 1 / size)
    apart, together = 1 - _CORRELATION, 1 - _CORRELATION + _CORRELATION * size
    return apart**power * (identity(size, like) - mean) + together**power * mean


def _task_covariance(eta: Eta) -> Tensor:
    """Ω = Q Θ⁻¹ Q, (..., K, K)."""
    precision = eta["task_precision"]
    half = _half(precision, precision.shape[-1], 0.5)
    # Θ⁻¹ = M⁻ᵀ M⁻¹ for Θ = M Mᵀ
    side = torch.linalg.solve_triangular(torch.linalg.cholesky(precision), half, upper=False)
    return side.mT @ side


def _task_root(eta: Eta) -> Tensor:
    """R with R Rᵀ = Ω, lower triangular."""
    return torch.linalg.cholesky(_task_covariance(eta))


def _share(num_tasks: int) -> float:
    r"""$\beta = \rho / (1 - \rho + \rho K)$: the hyperprior's regression of a task on K others."""
    return _CORRELATION / (1 - _CORRELATION + _CORRELATION * num_tasks)


def _own_variance(covariance: Tensor) -> Tensor:
    r"""How far a task of the fit lies from $\beta \sum$ of the others, mean of squares, (...)."""
    K = covariance.shape[-1]
    share = _share(K - 1)
    away = (1 + share) * identity(K, covariance) - share
    return (away @ covariance @ away).diagonal(dim1=-2, dim2=-1).mean(-1)
