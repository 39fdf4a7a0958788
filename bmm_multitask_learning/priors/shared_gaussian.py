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

from typing import Literal, final

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ..distributions import ExchangeableGaussian
from ..gaussian import condition_tasks
from ..hyperparameters import Eta
from ..posterior import WeightPosterior
from ..statistics import TaskStatistics
from .covariance import covariance_form
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
        O = self.sizes.num_outputs
        self.register_buffer("centre_precision", like.new_ones(O))
        for name, value in self.form.mode(self.scatter).items():
            self.register_buffer(name, value)

    def hyperprior(self) -> Eta:
        half = torch.full_like(self.centre_precision, 0.5)
        centre_precision = pyro.sample("centre_precision", dist.Gamma(3 * half, half).to_event(1))
        return {"centre_precision": centre_precision, **self.form.hyperprior(self.scatter)}

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
        ones = self.scatter.new_ones(self.sizes.num_outputs)
        self.set_eta({"centre_precision": ones, **self.form.mode(self.scatter)})

    def condition(self, statistics: TaskStatistics, eta: Eta) -> WeightPosterior:
        scale = self.form.scale(eta, self.sizes.num_features)
        given = condition_tasks(statistics, torch.zeros_like(statistics.b[0]), scale)
        inverse = given.inverse_factor  # (K, O, D, D), C̃_k = U⁻ᵀU⁻¹
        # m = L μ:  T = Lᵀ S⁻¹ L,  P = T + Σ_k (I − C̃_k),  μ̂ = P⁻¹ Σ_k v_k
        variance = self.scatter / eta["centre_precision"][..., None]
        half = scale.root / variance.sqrt()[..., None]
        prior = half.mT @ half
        identity = torch.eye(inverse.shape[-1], dtype=inverse.dtype, device=inverse.device)
        rows = inverse.movedim(0, -3).flatten(-3, -2)  # (O, K D, D)
        total = prior + len(inverse) * identity - rows.mT @ rows
        factor = torch.linalg.cholesky(total)
        v = given.v.sum(0)[..., None]
        white_centre = torch.cholesky_solve(v, factor)  # (O, D, 1)
        # P^{-1/2} is wanted as such: it carries the centre's uncertainty to every task
        white_root = torch.linalg.solve_triangular(
            factor, identity.expand_as(factor), upper=False
        ).mT
        # log p(D | η) = Σ_k log Z_k(0) + ½ (Σv)ᵀ P⁻¹ (Σv) − ½ log|P| + ½ log|T|
        log_normaliser = (
            given.log_normaliser.sum()
            + 0.5 * (v * white_centre).sum()
            - factor.diagonal(dim1=-2, dim2=-1).log().sum()
            + 0.5 * torch.linalg.slogdet(prior).logabsdet.sum()
        )
        # w_k | m ~ N(L (v_k + C̃_k μ), L C̃_k Lᵀ)
        carried = inverse.mT @ (inverse @ torch.cat([white_centre, white_root], -1))
        mean = scale.apply(given.v[..., None] + carried[..., :1])[..., 0]
        return WeightPosterior(
            log_weights=mean.new_zeros(len(mean), 1),
            means=mean[:, None],
            roots=scale.apply(inverse.mT)[:, None],
            commons=scale.apply(carried[..., 1:])[:, None],
            log_normaliser=log_normaliser,
            centre_mean=scale.apply(white_centre)[..., 0][None],
            centre_root=scale.apply(white_root)[None],
        )

    def update(self, posterior: WeightPosterior) -> None:
        centre, root = (part[0] for part in posterior.centre())
        # S = Σ_k E[(w_k − m)(w_k − m)ᵀ]
        deviation = (posterior.means[:, 0] - centre)[..., None]
        parts = (posterior.roots[:, 0], posterior.commons[:, 0] - root, deviation)
        outer = torch.stack([self.form.outer(part) for part in parts]).sum(0)
        count = centre.new_full(centre.shape[:1], float(len(deviation)))
        # s² = ( 1 + Σ_d E[m_d²] / Ψ_d ) / (D + 1)
        square = (centre.square() + root.square().sum(-1)) / self.scatter
        self.set_eta(
            {
                "centre_precision": (1 + centre.shape[-1]) / (1 + square.sum(-1)),
                **self.form.update(self.eta, outer, count, self.scatter),
            }
        )

    def population(
        self, eta: Eta, posterior: WeightPosterior, task_features: Tensor | None, num_tasks: int
    ) -> WeightPosterior:
        # w_new = m + u,  m ~ q(m),  u ~ N(0, Σ)
        root = self.form.scale(eta, self.sizes.num_features).root
        mean, centre_root = posterior.centre()
        root = root.expand(len(mean), *root.shape[-3:])
        shape = (num_tasks, *mean.shape)
        uniform = mean.new_zeros(num_tasks, len(mean)).log_softmax(-1)
        return WeightPosterior(
            log_weights=uniform,
            means=mean.expand(shape),
            roots=root.expand(*shape, -1),
            commons=centre_root.expand(*shape, -1),
            log_normaliser=mean.new_zeros(()),
        )

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
        root = self.form.scale(self.eta, self.sizes.num_features).root
        return root @ root.mT
