r"""Each task's prior is a mixture of what the other tasks learned, after Shen and others.

$$p(w_t \mid \alpha) \approx \sum_{i \ne t} \alpha_{ti}\, q_i(w) + \alpha_{tt}\, N(0, \tau_t^2 I),
  \qquad \alpha_t \sim \mathrm{Dirichlet}(1 + \tfrac1K + \tfrac12 e_t)$$

The references $q_i = N(\mu_i, \mathrm{diag}\,\sigma_i^2)$ are posteriors of the tasks, frozen:
first those of each task alone, then, at each refresh, those of the last fit. The prior reads a
posterior, so what is maximised is a surrogate of an evidence, and it never falls only as long as
the references stand still.

What differs from the paper: by default the mixture is replaced by the Gaussian with its own mean
and variance; $\alpha$ is found by EM with its Dirichlet prior instead of Gumbel-softmax draws, and
under `SVI` has a logistic-normal guide; the anchor's weight is learned; predictions average over
the posterior; the references are refreshed a few times and not at every step.

References:
    Shen, Zhen, Worring and Shao, Variational multi-task learning with Gumbel-softmax priors
    (2021), equations 5 and 7.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, final

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution

from ..distributions import GaussianMixture
from ..gaussian import DiagonalScale
from ..hyperparameters import Eta, pack, unpack
from ..posterior import WeightPosterior, mixture_posterior
from ..roots import Roots
from ..statistics import TaskStatistics
from .covariance import IsotropicCovariance
from .task_prior import TaskPrior

_FORM = IsotropicCovariance()
# L-BFGS evaluations of an M-step: the E-step between them costs more than all of them
_M_STEPS = 10
# tasks that the belief in the anchor is worth: more of it costs related tasks their gain
_ANCHOR = 0.5


class Law(NamedTuple):
    """A mixture of C Gaussians for each task's weights.

    log_weights: (K, C).
    loc: (K, C, O, D).
    variance: (K, C, O, D).
    """

    log_weights: Tensor
    loc: Tensor
    variance: Tensor


def moment_matched(share: Tensor, loc: Tensor, variance: Tensor) -> Law:
    r"""The Gaussian with the mixture's own mean and variance.

    $$m_t = \sum_i \alpha_{ti}\mu_{ti}, \qquad
      v_t = \sum_i \alpha_{ti}\big(\sigma_{ti}^2 + (\mu_{ti} - m_t)^2\big)$$

    Args:
        share: (K, C) $\alpha$.
        loc: (K, C, O, D) $\mu$.
        variance: (K, C, O, D) $\sigma^2$.

    Example:
        >>> third, one = torch.full((1, 3), 1 / 3), torch.ones(1, 3, 1, 1)
        >>> means = torch.tensor([-2.0, 0.0, 2.0]).reshape(1, 3, 1, 1)
        >>> round(float(moment_matched(third, means, one).variance), 3)
        3.667
    """
    mean = _average(share, loc)
    # v = Σ α ( σ² + (μ − m)² )
    return _gaussian(mean, _average(share, variance + (loc - mean).square()))


def log_linear(share: Tensor, loc: Tensor, variance: Tensor) -> Law:
    r"""The normalised geometric mean $\prod_i q_i^{\alpha_{ti}}$: precisions are averaged."""
    precision = _average(share, 1 / variance)
    return _gaussian(_average(share, loc / variance) / precision, 1 / precision)


def exact(share: Tensor, loc: Tensor, variance: Tensor) -> Law:
    """The mixture itself."""
    return Law(share.log(), loc, variance)


def weighted_sum(share: Tensor, loc: Tensor, variance: Tensor) -> Law:
    r"""The law of $\sum_i \alpha_{ti} w_i$, of variance $\sum_i \alpha_{ti}^2\sigma_i^2$.

    What the paper's released code computes. It is narrower than the mixture, and the narrower the
    more tasks there are.
    """
    return _gaussian(_average(share, loc), _average(share.square(), variance))


def _average(share: Tensor, value: Tensor) -> Tensor:
    return torch.einsum("kc,kcod->kod", share, value)[:, None]


def _gaussian(loc: Tensor, variance: Tensor) -> Law:
    return Law(loc.new_zeros(loc.shape[:2]), loc, variance)


_MIXTURES: dict[str, Callable[[Tensor, Tensor, Tensor], Law]] = {
    "moment_matched": moment_matched,
    "log_linear": log_linear,
    "exact": exact,
    "weighted_sum": weighted_sum,
}


@final
class VariationalWeighting(TaskPrior):
    r"""Each task weighs the others by how well their posteriors explain its rows.

    $w_t \sim \sum_{i \ne t} \alpha_{ti} q_i + \alpha_{tt} N(0, \tau_t^2 I)$, or a Gaussian in its
    place; the weights $\alpha$ differ from task to task and need not be symmetric.

    There is no $p(W \mid \eta)\,p(\eta)$ behind it: `log_evidence` is a surrogate that compares
    with nothing else, and `NUTS` refuses.

    Args:
        mixture: "moment_matched" (the Gaussian with the mixture's mean and variance), "log_linear"
            (the geometric mean), "exact" (the mixture itself, which in many dimensions picks one
            component), "weighted_sum" (variance $\sum\alpha^2\sigma^2$: too narrow).
        refreshes: how often the references are replaced by the last fit's posteriors, from 1 to 3.
            Only the first are free of the task's own rows.

    Raises:
        ValueError: for another `mixture`, or `refreshes` outside 1..3.

    Example:
        >>> from bmm_multitask_learning import MultitaskModel, VariationalWeighting, datasets, fit
        >>> data, truth = datasets.make_clusters(num_tasks=6, num_clusters=2, seed=0)
        >>> model = MultitaskModel(prior=VariationalWeighting())
        >>> result = fit(model, data, progress=False)
        >>> model.prior.mixing.shape, model.prior.anchor_weight.shape
        (torch.Size([6, 6]), torch.Size([6]))

    References:
        Shen, Zhen, Worring and Shao, Variational multi-task learning with Gumbel-softmax priors
        (2021).
    """

    generative = False

    share: Tensor
    precision: Tensor
    reference_mean: Tensor
    reference_variance: Tensor

    def __init__(
        self,
        mixture: Literal[
            "moment_matched", "log_linear", "exact", "weighted_sum"
        ] = "moment_matched",
        *,
        refreshes: int = 1,
    ) -> None:
        super().__init__()
        if mixture not in _MIXTURES:
            raise ValueError(f"mixture must be one of {sorted(_MIXTURES)}; got {mixture!r}.")
        if refreshes not in (1, 2, 3):
            raise ValueError(
                f"refreshes must be 1, 2 or 3: each counts the rows once more; got {refreshes!r}."
            )
        self.mixture = mixture
        self.refreshes = refreshes
        self._combine = _MIXTURES[mixture]

    # ---- generative half ----------------------------------------------------------------------

    def register_hyperparameters(self, like: Tensor) -> None:
        sizes = self.sizes
        K = sizes.num_tasks
        self.register_buffer("share", like.new_full((K, K), 1 / K))
        self.register_buffer("precision", like.new_ones(K, sizes.num_outputs))
        none = like.new_zeros(0, sizes.num_outputs, sizes.num_features)
        self.register_buffer("reference_mean", none)
        self.register_buffer("reference_variance", none)

    def hyperprior(self) -> Eta:
        K = len(self.share)
        # no mode at zero, from where a weight could not rise again; more for the anchor, which
        # lessens what unrelated tasks lose
        anchor = _ANCHOR * torch.eye(K, dtype=self.share.dtype, device=self.share.device)
        law = dist.Dirichlet(1 + 1 / K + anchor)
        share = pyro.sample("share", law.to_event(1))
        return {"share": share, **_FORM.hyperprior(self.scatter.expand(K, -1, -1))}

    def forward(self, eta: Eta) -> Distribution:
        law = self._law(eta)
        component = dist.Normal(law.loc, law.variance.sqrt()).to_event(2)
        return GaussianMixture(dist.Categorical(logits=law.log_weights), component).to_event(1)

    def _law(self, eta: Eta) -> Law:
        """The prior of each task; without references the anchor alone."""
        D = self.sizes.num_features
        anchor = (1 / eta["precision"])[..., None].expand(*eta["precision"].shape, D)
        if not len(self.reference_mean):
            return _gaussian(torch.zeros_like(anchor)[:, None], anchor[:, None])
        # in place of itself each task has the anchor
        own = torch.eye(len(anchor), dtype=torch.bool, device=anchor.device)[..., None, None]
        loc = torch.where(own, 0.0, self.reference_mean)
        variance = torch.where(own, anchor[:, None], self.reference_variance)
        return self._combine(eta["share"], loc, variance)

    # ---- closed-form half ---------------------------------------------------------------------

    def initialise(
        self, statistics: TaskStatistics, generator: torch.Generator, start: int
    ) -> None:
        super().initialise(statistics, generator, start)
        self.register_buffer("scatter", _FORM.reference(self.scatter))
        self.register_hyperparameters(self.scatter)
        self.set_eta(_FORM.mode(self.scatter.expand(len(self.share), -1, -1)))

    def condition(self, statistics: TaskStatistics, eta: Eta) -> WeightPosterior:
        law = self._law(eta)
        scale = DiagonalScale(law.variance.sqrt())
        return mixture_posterior(statistics, law.log_weights, law.loc, scale)

    def update(self, posterior: WeightPosterior) -> None:
        r"""Steps up $E_q[\log p(W, c \mid \eta)] + \log p(\eta)$, c the components."""
        share = posterior.log_weights.exp()
        variance = posterior.roots.variance()

        def objective(eta: Eta) -> Tensor:
            law = self._law(eta)
            # E log N(w; m, v) = −½ [ log v + (s² + (μ − m)²) / v ]
            square = variance + (posterior.means - law.loc).square()
            fit = -0.5 * (law.variance.log() + square / law.variance).sum((-2, -1))
            return (share * (law.log_weights + fit)).sum() + self.log_hyperprior(eta)

        with torch.enable_grad():
            start = pack(self.eta, self.transforms)
            free = start.clone().requires_grad_()
            optimiser = torch.optim.LBFGS([free], max_iter=_M_STEPS, line_search_fn="strong_wolfe")

            def loss() -> Tensor:
                optimiser.zero_grad()
                value = -objective(unpack(free, self.eta, self.transforms))
                value.backward()
                return value

            before = optimiser.step(loss)
            after = loss()
        if bool(after <= before):
            self.set_eta(unpack(free.detach(), self.eta, self.transforms))

    def refresh(
        self,
        count: int,
        posterior: WeightPosterior,
        folds: Callable[[], Sequence[TaskStatistics]],
    ) -> bool:
        if count == self.refreshes:
            return False
        mean, variance = _moments(posterior)
        self.register_buffer("reference_mean", mean)
        self.register_buffer("reference_variance", variance)
        return True

    def population(
        self, eta: Eta, posterior: WeightPosterior, task_features: Tensor | None, num_tasks: int
    ) -> WeightPosterior:
        # the same share for each task of the fit and for an anchor of their mean precision
        mean, variance = _moments(posterior)
        anchor = (1 / eta["precision"].mean(0))[:, None].expand_as(mean[0])
        loc = torch.cat([mean, torch.zeros_like(anchor)[None]])[None]
        spread = torch.cat([variance, anchor[None]])[None]
        law = self._combine(loc.new_full(loc.shape[:2], 1 / loc.shape[1]), loc, spread)
        law = Law(*(value.expand(num_tasks, *value.shape[1:]) for value in law))
        return WeightPosterior(
            log_weights=law.log_weights,
            means=law.loc,
            roots=Roots.independent(torch.diag_embed(law.variance.sqrt())),
            log_normaliser=law.loc.new_zeros(()),
        )

    def relations(self) -> Tensor:
        r"""`mixing`: what task j's prior takes from task k, (K, K); not symmetric.

        Rows sum to 1 and the diagonal is zero. Tasks that `adapt` added borrow from all tasks of
        the fit alike, and nothing is borrowed from them.
        """
        mixing = self.mixing
        K = len(mixing)
        added = len(self.information) - K
        wide = torch.cat([mixing, mixing.new_full((added, K), 1 / K)])
        return torch.nn.functional.pad(wide, (0, added))

    # ---- read-outs ----------------------------------------------------------------------------

    @property
    def mixing(self) -> Tensor:
        r"""$\alpha_{ti}$ among the other tasks, (K, K): zero diagonal, rows sum to 1."""
        others = self.share.clone().fill_diagonal_(0)
        total = others.sum(-1, keepdim=True)
        return others / total.clamp(min=torch.finfo(total.dtype).tiny)

    @property
    def anchor_weight(self) -> Tensor:
        r"""$\alpha_{tt}$ (K,): the share of $N(0, \tau_t^2 I)$, which borrows from no task."""
        return self.share.diagonal().clone()


def _moments(posterior: WeightPosterior) -> tuple[Tensor, Tensor]:
    """Mean and variance (K, O, D) of each weight."""
    share = posterior.log_weights.exp()
    law = moment_matched(share, posterior.means, posterior.roots.variance())
    return law.loc[:, 0], law.variance[:, 0]
