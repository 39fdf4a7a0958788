r"""One Gaussian population of tasks, its centre and covariance learned.

$$1/s^2 \sim \mathrm{Gamma}(\tfrac32, \tfrac12), \quad
  m \sim N(0, s^2\Psi), \quad w_k \mid m \sim N(m, \Sigma)$$

with one of three forms of $\Sigma$ and its prior (`covariance`). W and m are integrated out
together whenever $\eta = (s^2, \Sigma)$ moves: updating m and W in turn drives the covariance to
zero. The shortest complete prior.

References:
    Lindley and Smith, Bayes estimates for the linear model (1972).
    Bakker and Heskes, Task clustering and gating for Bayesian multitask learning (2003),
    model (a).
"""

from __future__ import annotations

import functools
from functools import partial
from typing import Literal, final

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ..distributions import ExchangeableGaussian
from ..gaussian import Conditioned, condition_tasks, pulled, total_covariance
from ..hyperparameters import Eta
from ..posterior import Centre, WeightPosterior
from ..roots import CentredRoots, Roots
from ..statistics import TaskStatistics
from .covariance import Covariance, covariance_form, covariance_matrix
from .task_prior import TaskPrior


@final
class SharedGaussian(TaskPrior):
    r"""Task weights scatter around one centre: $w_k \sim N(m, \Sigma)$, m and $\Sigma$ inferred.

    $\Psi$ is the diagonal covariance that makes the signal as large as the noise. $\Sigma$ is
    shrunk towards a multiple of it that is learned, as is the centre's variance $s^2\Psi$.

    Args:
        covariance: "full", "diagonal" or "isotropic" $\Sigma$. Full learns which directions of the
            weights the tasks share; isotropic is for many features and few tasks.

    Raises:
        ValueError: for another `covariance`.

    Example:
        >>> from bmm_multitask_learning import MultitaskModel, SharedGaussian, datasets, fit
        >>> data, truth = datasets.make_clusters(num_tasks=9, num_clusters=1, seed=0)
        >>> model = MultitaskModel(prior=SharedGaussian(covariance="diagonal"))
        >>> result = fit(model, data, progress=False)
        >>> model.prior.covariance_matrix.shape
        torch.Size([1, 6, 6])

    References:
        Bakker and Heskes, Task clustering and gating for Bayesian multitask learning (2003).
    """

    centre_precision: Tensor

    def __init__(self, covariance: Literal["full", "diagonal", "isotropic"] = "full") -> None:
        super().__init__()
        self.covariance = covariance
        self.form = covariance_form(covariance)

    def register_hyperparameters(self, like: Tensor) -> None:
        for name, value in population_mode(self.form, self.scatter).items():
            self.register_buffer(name, value)

    def hyperprior(self) -> Eta:
        return population_hyperprior(self.form, self.scatter)

    def forward(self, eta: Eta) -> ExchangeableGaussian:
        return ExchangeableGaussian(
            self.sizes.num_tasks,
            self.scatter / eta["centre_precision"][..., None],
            self.form.scale(eta, self.sizes.num_features).root,
        )

    def initialise(
        self, statistics: TaskStatistics, generator: torch.Generator, start: int
    ) -> None:
        super().initialise(statistics, generator, start)
        self.register_buffer("scatter", self.form.reference(self.scatter))
        self.set_eta(population_mode(self.form, self.scatter))

    def condition(self, statistics: TaskStatistics, eta: Eta) -> WeightPosterior:
        scale = self.form.scale(eta, self.sizes.num_features)
        pieces = condition_tasks(statistics, scale)
        inverses = tuple(piece.inverse_factor for piece in pieces)  # C̃_k = U⁻ᵀU⁻¹
        own = torch.stack([total_covariance(inverse) for inverse in inverses]).sum(0)
        identity = torch.eye(own.shape[-1], dtype=own.dtype, device=own.device)
        # m = L μ:  T = Lᵀ S⁻¹ L,  P = T + Σ_k (I − C̃_k),  μ̂ = P⁻¹ Σ_k v_k
        variance = self.scatter / eta["centre_precision"][..., None]
        prior = scale.adjoint(scale.root / variance[..., None])
        factor = torch.linalg.cholesky(prior + len(statistics.b) * identity - own)
        v = torch.stack([piece.v.sum(0) for piece in pieces]).sum(0)[..., None]
        centre = torch.cholesky_solve(v, factor)  # (O, D, 1)
        # P^{-1/2} is wanted as such: it carries the centre's uncertainty to every task
        root = torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False).mT
        # log p(D | η) = Σ_k log Z_k(0) + ½ (Σv)ᵀ P⁻¹ (Σv) − ½ log|P| + ½ log|T|
        log_normaliser = (
            torch.stack([piece.log_normaliser.sum() for piece in pieces]).sum()
            + 0.5 * (v * centre).sum()
            - factor.diagonal(dim1=-2, dim2=-1).log().sum()
            # L is triangular
            + (scale.root.diagonal(dim1=-2, dim2=-1) / variance.sqrt()).log().sum()
        )
        # w_k | m ~ N(L (v_k + C̃_k μ), L C̃_k Lᵀ)
        means = [
            p.v[..., None] + p.inverse_factor.mT @ (p.inverse_factor @ centre) for p in pieces
        ]
        mean = scale.apply(torch.cat(means))[..., 0]
        # of no use to the gradient, nor to a round of `refine`
        moments = functools.cache(partial(_moments, self.form, pieces, means, centre, root))
        return WeightPosterior(
            log_weights=mean.new_zeros(len(mean), 1),
            means=mean[:, None],
            roots=CentredRoots(scale, inverses, mean.new_ones(len(mean), 1), root[:, None]),
            log_normaliser=log_normaliser,
            effective=lambda: moments()[0][:, None],
            shared=Centre(
                scale.apply(centre)[..., 0][None],
                scale.apply(root)[None],
                lambda: scale.colour(moments()[1] + self.form.part(own)),
            ),
        )

    def update(self, posterior: WeightPosterior) -> None:
        self.set_eta(update_population(self.form, self.eta, posterior, self.scatter))

    def population(
        self, eta: Eta, posterior: WeightPosterior, task_features: Tensor | None, num_tasks: int
    ) -> WeightPosterior:
        root = self.form.scale(eta, self.sizes.num_features).root
        return around_centre(posterior.centre(), root, num_tasks)

    def relations(self) -> Tensor:
        r"""Share of task k in what task j borrows, (K, K); rows sum to 1, not symmetric.

        All tasks borrow from one centre, in which task k weighs by its `information`: the rows
        differ only in that no task borrows from itself.
        """
        shares = self.information.clamp(min=0)
        shares = shares.expand(len(shares), -1).clone()
        shares = shares.fill_diagonal_(0)
        return shares / shares.sum(-1, keepdim=True).clamp(min=torch.finfo(shares.dtype).tiny)

    # ---- read-outs ----------------------------------------------------------------------------

    @property
    def covariance_matrix(self) -> Tensor:
        r"""$\Sigma$, (O, D, D), in squared units of the weights."""
        return covariance_matrix(self.form, self.eta, self.sizes.num_features)


def _moments(
    form: Covariance, pieces: list[Conditioned], means: list[Tensor], centre: Tensor, root: Tensor
) -> tuple[Tensor, Tensor]:
    r"""`WeightPosterior.effective` (K, O), and white scatter around the centre less $\sum_k C_k$.

    Args:
        form: of the scatter.
        pieces: of the tasks, given a centre of 0.
        means: (k, O, D, 1) of the tasks of each piece, white.
        centre, root: (O, D, 1) mean and (O, D, D) root of the centre, white.
    """
    effective, outers = [], []
    for piece, mean in zip(pieces, means, strict=True):
        # w_k − m = L (v_k + C̃_k μ − μ):  Σ_k E[(w_k − m)(w_k − m)ᵀ] = L (Σ …) Lᵀ
        spread, shared = pulled(piece.inverse_factor, root)
        outers += [form.outer(mean - centre), form.outer(spread)]
        # tr(Ã (C̃ + C̃ P⁻¹ C̃)) with Ã C̃ = I − C̃
        effective.append(piece.effective() + shared)
    return torch.cat(effective), torch.stack(outers).sum(0)


def population_hyperprior(form: Covariance, scatter: Tensor) -> Eta:
    r"""Sample $1/s^2 \sim \mathrm{Gamma}(\tfrac32, \tfrac12)$ and $\Sigma$.

    Args:
        form: of $\Sigma$.
        scatter: (O, D) $\Psi$.
    """
    half = torch.full_like(scatter[:, 0], 0.5)
    centre_precision = pyro.sample("centre_precision", dist.Gamma(3 * half, half).to_event(1))
    return {"centre_precision": centre_precision, **form.hyperprior(scatter)}


def population_mode(form: Covariance, scatter: Tensor) -> Eta:
    r"""Where the law of $1/s^2$ and $\Sigma$ is densest; see `population_hyperprior`."""
    return {"centre_precision": torch.ones_like(scatter[:, 0]), **form.mode(scatter)}


def update_population(
    form: Covariance, eta: Eta, posterior: WeightPosterior, scatter: Tensor
) -> Eta:
    r"""M-step of $s^2$ and $\Sigma$ for tasks that scatter around the posterior's centre.

    Args:
        form: of $\Sigma$.
        eta: hyperparameters that gave the posterior.
        posterior: of K tasks, with the scatter around their centre.
        scatter: (O, D) $\Psi$.
    """
    centre = posterior.centre()
    assert centre.scatter is not None  # `condition` made it
    mean, root = centre.mean[0], centre.root[0]
    count = mean.new_full(mean.shape[:1], float(len(posterior.means)))
    # s² = ( 1 + Σ_d E[m_d²] / Ψ_d ) / (D + 1)
    square = (mean.square() + root.square().sum(-1)) / scatter
    return {
        "centre_precision": (1 + mean.shape[-1]) / (1 + square.sum(-1)),
        **form.update(eta, centre.scatter(), count, scatter),
    }


def around_centre(centre: Centre, root: Tensor, num_tasks: int) -> WeightPosterior:
    r"""Law of new tasks, $w = m + u$ with $m \sim q(m)$ and $u \sim N(0, \Sigma)$.

    Args:
        centre: q(m), in C components.
        root: (O, D, D) or (C, O, D, D) root of $\Sigma$.
        num_tasks: number of new tasks.
    """
    mean = centre.mean
    root = root.expand(len(mean), *root.shape[-3:])
    shape = (num_tasks, *mean.shape)
    uniform = mean.new_zeros(num_tasks, len(mean)).log_softmax(-1)
    return WeightPosterior(
        log_weights=uniform,
        means=mean.expand(shape),
        roots=Roots(root.expand(*shape, -1), centre.root.expand(*shape, -1)),
        log_normaliser=mean.new_zeros(()),
    )
