r"""Every pair of tasks with a covariance of its own: the weights are matrix normal.

$$\mathrm{cov}(w_j, w_k) = \Omega_{jk}\,\Sigma, \qquad \Omega = Q\,\Theta^{-1} Q, \qquad
  Q^2 = (1 - \rho) I + \rho \mathbf{1}\mathbf{1}^\top,$$
$$\Theta \sim \mathrm{Wishart}(sK + K + 1, (sK)^{-1} I), \qquad
  \rho \sim \mathrm{Beta}(\tfrac32, \tfrac32)$$

$Q^2$ is $\Omega$ where its prior is densest: any two tasks correlated by $\rho$, which is learned.
That all pairs are alike is a belief worth s times as many features as there are tasks; s is told
by rows that were held out, among the training rows. $\Sigma$ has one of the forms of `covariance`,
for each output. W is integrated out whenever $\eta = (\Theta, \rho, \Sigma)$ moves.

What differs from the paper: W is integrated out, where the paper alternates between W and
$\Omega$; $\Sigma$ is learned, where the paper has a multiple of I; $\Omega$ has a proper prior,
where the paper fixes its trace.

References:
    Zhang and Yeung, A convex formulation for learning task relationships in multi-task learning
    (2010), equations 1 to 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, final

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ..distributions import MatrixNormal, Wishart
from ..gaussian import DiagonalScale, condition
from ..hyperparameters import Eta
from ..posterior import Centre, WeightPosterior
from ..precision import formed
from ..roots import Roots
from ..statistics import TaskStatistics
from .covariance import correlation, covariance_form, covariance_matrix, identity
from .cross_fitting import smallest_as_good, whole_and_rests
from .task_prior import TaskPrior

# s, the most cautious first
_STRENGTHS = (25.0, 5.0, 1.0)
# EM steps for each s on the rows of four folds
_FOLD_STEPS = 5
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
        covariance: "full", "diagonal" or "isotropic" $\Sigma$. A scale for each feature is learned
            from all tasks together: with few of them it costs more than it gains.
        strength: s of the belief that any two tasks are as alike as any other two. "auto": 25, 5
            or 1, by held-out training rows.

    Raises:
        ValueError: for another `covariance` or a `strength` that is not positive; in `fit`, where
            the K D weights of an output are more than 6000.

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
    worth: Tensor

    def __init__(
        self,
        covariance: Literal["full", "diagonal", "isotropic"] = "isotropic",
        *,
        strength: float | Literal["auto"] = "auto",
    ) -> None:
        super().__init__()
        if strength != "auto" and not strength > 0:
            raise ValueError(
                f'strength must be a positive number, or "auto" to choose it; got {strength!r}.'
            )
        self.covariance = covariance
        self.strength = strength
        self.form = covariance_form(covariance)

    def register_hyperparameters(self, like: Tensor) -> None:
        first = _STRENGTHS[0] if self.strength == "auto" else self.strength
        self.register_buffer("worth", like.new_tensor(first))
        for name, value in self._mode().items():
            self.register_buffer(name, value)

    def hyperprior(self) -> Eta:
        # mode I, worth s times as many observations as there are tasks
        K = len(self.task_precision)
        worth = self.worth * K
        law = Wishart(worth + K + 1, worth.expand(K))
        half = worth.new_full((1,), 1.5)
        return {
            "task_precision": pyro.sample("task_precision", law),
            "correlation": pyro.sample("correlation", dist.Beta(half, half).to_event(1)),
            **self.form.hyperprior(self.scatter),
        }

    def _mode(self) -> Eta:
        return {
            "task_precision": identity(self.sizes.num_tasks, self.scatter),
            "correlation": self.scatter.new_full((1,), 0.5),
            **self.form.mode(self.scatter),
        }

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
        self.register_hyperparameters(self.scatter)

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
        columns = torch.cat([given.v[..., None], formed(given.inverse_factor).mT], -1)
        columns = columns.unflatten(1, (K, D))
        columns = scale.apply(torch.einsum("kj,ojds->kods", tasks, columns))
        mean, root = columns[..., 0], columns[..., 1:]
        # what a task outside the fit resembles: β Σ_k w_k
        share = _share(eta["correlation"], K)
        return WeightPosterior(
            log_weights=mean.new_zeros(K, 1),
            means=mean[:, None],
            roots=Roots(root[:, None, ..., :0], root[:, None]),
            log_normaliser=given.log_normaliser.sum(),
            effective=lambda: statistics.trace_term(root)[:, None],
            shared=Centre(share * mean.sum(0)[None], share * root.sum(0)[None]),
        )

    def update(self, posterior: WeightPosterior) -> None:
        self.set_eta(self._moved(posterior, self.eta))

    def _moved(self, posterior: WeightPosterior, eta: Eta) -> Eta:
        r"""The M-step from $\eta$: $\Theta$, then $\rho$, then $\Sigma$."""
        K, _, O, D = posterior.means.shape
        # E[w_j w_kᵀ] = Σ_s Z_js Z_ksᵀ
        Z = torch.cat([posterior.means[..., None], posterior.roots.common], -1)[:, 0]
        root = self.form.scale(eta, D).root
        white = torch.linalg.solve_triangular(root, Z, upper=False).flatten(1)
        square, rho, worth = white @ white.mT, eta["correlation"], self.worth * K
        half = _half(rho, K, -0.5)
        # Θ⁻¹ = ( s K I + Q⁻¹ Σ_o E[W_o Σ_o⁻¹ W_oᵀ] Q⁻¹ ) / ( s K + O D )
        inverse = (worth * identity(K, root) + half @ square @ half) / (worth + O * D)
        precision = torch.cholesky_inverse(torch.linalg.cholesky(inverse))
        rho = _best_correlation(rho, precision, square, O * D)
        # with the new Ω:  S_o = E[W_oᵀ Ω⁻¹ W_o]
        mixed = torch.linalg.cholesky(precision).mT @ _half(rho, K, -0.5)
        rows = (mixed @ Z.flatten(1)).unflatten(1, Z.shape[1:])
        count = Z.new_full((O,), float(K))
        scales = self.form.update(eta, self.form.outer(rows), count, self.scatter)
        return {"task_precision": precision, "correlation": rho, **scales}

    def refresh(
        self,
        count: int,
        posterior: WeightPosterior,
        folds: Callable[[], Sequence[TaskStatistics]],
    ) -> bool:
        r"""Choose s, once: the largest less than one standard error worse than the best.

        What is compared is the log predictive density of held-out rows,
        $$\sum_f \log Z_s\big(\textstyle\sum_g S_g\big) - \log Z_s\big(\sum_{g \ne f} S_g\big),$$

        with $\eta$ found from the statistics $S_g$, $g \ne f$, of the other folds.
        """
        if count or self.strength != "auto" or len(self.task_precision) == 1:
            return False
        whole, rest = whole_and_rests(folds())
        best = smallest_as_good(torch.stack([self._held_out(part, whole) for part in rest]))
        self.worth.fill_(_STRENGTHS[best])
        return best > 0

    def _held_out(self, others: TaskStatistics, whole: TaskStatistics) -> Tensor:
        """Log predictive density of one fold given the others for each strength, (3,)."""
        eta, scores = self.eta, []
        for strength in _STRENGTHS:
            self.worth.fill_(strength)
            for _ in range(_FOLD_STEPS):
                eta = self._moved(self.condition(others, eta), eta)
            after, before = (self.condition(part, eta) for part in (whole, others))
            scores.append(after.log_normaliser - before.log_normaliser)
        return torch.stack(scores)

    def population(
        self, eta: Eta, posterior: WeightPosterior, task_features: Tensor | None, num_tasks: int
    ) -> WeightPosterior:
        # w_new = β Σ_k w_k + u,  u ~ N(0, s Σ)
        centre = posterior.centre()
        mean = centre.mean
        root = self.form.scale(eta, self.sizes.num_features).root
        own = _own_variance(eta).sqrt()[..., None, None, None] * root
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
        share = _share(self.eta["correlation"], K).expand(added, K)
        lead = torch.cat([identity(K, covariance), share])
        own = torch.cat([covariance.new_zeros(K), _own_variance(self.eta).expand(added)])
        return lead @ covariance @ lead.mT + torch.diag_embed(own)


def _half(rho: Tensor, size: int, power: float) -> Tensor:
    """((1 − ρ) I + ρ 11ᵀ)^power, (..., K, K), for ρ (..., 1): Q for ½, its inverse for −½."""
    mean = rho.new_full((size, size), 1 / size)
    apart, together = (value[..., None] ** power for value in _eigenvalues(rho, size))
    return apart * (identity(size, rho) - mean) + together * mean


def _eigenvalues(rho: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Of Q²: K − 1 times the first, once the second."""
    return 1 - rho, 1 - rho + rho * size


def _best_correlation(rho: Tensor, precision: Tensor, square: Tensor, count: int) -> Tensor:
    r"""$\rho$ that maximises $E_q[\log p(W \mid \eta)] + \log p(\rho)$ near the present one.

    Args:
        rho: (1,) the present one, which stays where none is better.
        precision: (K, K) $\Theta$.
        square: (K, K) $\sum_o E[W_o \Sigma_o^{-1} W_o^\top]$.
        count: O D.
    """
    K = len(precision)
    mean = precision.new_full((K, K), 1 / K)
    parts = (identity(K, precision) - mean, mean)
    # tr(Θ Q⁻¹ S Q⁻¹) = Σ_ab tr(Θ P_a S P_b) / √(λ_a λ_b)
    trace = torch.stack(
        [torch.stack([(precision @ a @ square * b).sum() for b in parts]) for a in parts]
    )

    def value(logit: Tensor) -> Tensor:
        rho = logit.sigmoid()
        apart, together = _eigenvalues(rho, K)
        size = torch.stack([apart, together], -1).rsqrt()
        fit = torch.einsum("...a,ab,...b->...", size, trace, size)
        log_det = (K - 1) * apart.log() + together.log()
        return -0.5 * (count * log_det + fit) + 0.5 * (rho.log() + apart.log())

    logit = rho.logit()
    for width in (2.0, 0.2, 0.02, 2e-3, 2e-4, 2e-5, 2e-6, 2e-7):
        near = logit + width * torch.linspace(-1, 1, 21, dtype=rho.dtype, device=rho.device)
        logit = near[value(near).argmax(0, keepdim=True)]
    return logit.sigmoid()


def _task_covariance(eta: Eta) -> Tensor:
    """Ω = Q Θ⁻¹ Q, (..., K, K)."""
    precision = eta["task_precision"]
    half = _half(eta["correlation"], precision.shape[-1], 0.5)
    # Θ⁻¹ = M⁻ᵀ M⁻¹ for Θ = M Mᵀ
    side = torch.linalg.solve_triangular(torch.linalg.cholesky(precision), half, upper=False)
    return side.mT @ side


def _task_root(eta: Eta) -> Tensor:
    """R with R Rᵀ = Ω, lower triangular."""
    return torch.linalg.cholesky(_task_covariance(eta))


def _share(rho: Tensor, num_tasks: int) -> Tensor:
    r"""$\beta = \rho / (1 - \rho + \rho K)$: the hyperprior's regression of a task on K others."""
    return rho / _eigenvalues(rho, num_tasks)[1]


def _own_variance(eta: Eta) -> Tensor:
    r"""How far a task of the fit lies from $\beta \sum$ of the others, mean of squares, (...)."""
    covariance = _task_covariance(eta)
    K = covariance.shape[-1]
    share = _share(eta["correlation"], K - 1)[..., None]
    away = (1 + share) * identity(K, covariance) - share
    return (away @ covariance @ away).diagonal(dim1=-2, dim2=-1).mean(-1)
