r"""Each task's prior is a mixture of what the other tasks learned, after Shen and others.

$$p(w_t \mid \alpha) \approx \sum_{i \ne t} \alpha_{ti}\, q_i(w) + \alpha_{tt}\, N(0, \Sigma),
  \qquad \alpha_t \sim \mathrm{Dirichlet}(1 + \tfrac{s}{K} + \tfrac12 e_t)$$

The references $q_i = N(\mu_i, \mathrm{diag}\,\sigma_i^2)$ are posteriors of the tasks, frozen:
first those of tasks of one population, then, at each further refresh, those of the last fit. The
prior reads a posterior, so what is maximised is a surrogate of an evidence, and it never falls
only as long as the references stand still. Whether there are references at all, and how strongly
s the weights are held together, is told by rows that were held out of the fit, among the training
rows.

What differs from the paper: by default the mixture is replaced by the Gaussian with its own mean
and variance; $\alpha$ is found by EM with its Dirichlet prior, and under `SVI` has a
logistic-normal guide, Gumbel-softmax draws being an option; the anchor's weight is learned;
predictions average over the posterior; the references are made once, or a few times, and not at
every step.

References:
    Shen, Zhen, Worring and Shao, Variational multi-task learning with Gumbel-softmax priors
    (2021), equations 5 and 7.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Literal, final

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution

from ..distributions import GaussianMixture
from ..gaussian import DiagonalScale
from ..hyperparameters import Eta, climb
from ..posterior import WeightPosterior, mixture_posterior
from ..roots import Roots
from ..statistics import TaskStatistics
from .covariance import covariance_form
from .cross_fitting import smallest_as_good, whole_and_rests
from .mixtures import MIXTURES, Law, References, gaussian, moments
from .shared_gaussian import SharedGaussian
from .task_prior import TaskPrior

# L-BFGS evaluations of an M-step: the E-step between them costs more than all of them
_M_STEPS = 10
# and of a climb on the rows of four folds
_FOLD_STEPS = 15
# tasks that the belief in the anchor is worth: more of it costs related tasks their gain
_ANCHOR = 0.5
# tasks that the belief in equal weights is worth; the first leaves next to nothing to learn
_STRENGTHS = (100.0, 10.0, 1.0)


@final
class VariationalWeighting(TaskPrior):
    r"""Each task weighs the others by how well their posteriors explain its rows.

    $w_t \sim \sum_{i \ne t} \alpha_{ti} q_i + \alpha_{tt} N(0, \Sigma)$, or a Gaussian in its
    place; the weights $\alpha$ differ from task to task and need not be symmetric.

    There is no $p(W \mid \eta)\,p(\eta)$ behind it: `log_evidence` is a surrogate that compares
    with nothing else, and `NUTS` refuses.

    Args:
        mixture: "moment_matched" (the Gaussian with the mixture's mean and variance), "log_linear"
            (the geometric mean), "exact" (the mixture itself, which in many dimensions picks one
            component), "weighted_sum" (variance $\sum\alpha^2\sigma^2$: too narrow).
        refreshes: how often references are made, at least once; from the second time on a task's
            own rows come back to it through those who learned from it. "auto": once, or not at
            all, which leaves each task alone, as held-out training rows tell.
        strength: s, how many tasks the belief in equal weights is worth. "auto": 100, 10 or 1,
            by held-out training rows.
        covariance: "isotropic" or "diagonal" $\Sigma$, of tasks alone and of the population of
            the first references; a scale for each feature asks for many tasks.
        draws: of $\alpha$ under `SVI`: "gaussian" logits, or "gumbel" for the paper's
            Gumbel-softmax with learned logits and a falling temperature; `mixing` is then the
            softmax of the logits. Without effect in the closed form.
        amortised: width of a network, one for all tasks and classes, that gives what rows say of a
            class's weights from their mean feature (`priors.amortised`). It asks for `SVI` and
            `Categorical` targets. None: each task and class has a Gaussian factor of its own.

    Raises:
        ValueError: for another `mixture`, `covariance` or `draws`, `refreshes` or `amortised`
            below 1, or a `strength` that is not positive.

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
    worth: Tensor
    planned: Tensor
    reference_mean: Tensor
    reference_variance: Tensor

    def __init__(
        self,
        mixture: Literal[
            "moment_matched", "log_linear", "exact", "weighted_sum"
        ] = "moment_matched",
        *,
        refreshes: int | Literal["auto"] = "auto",
        strength: float | Literal["auto"] = "auto",
        covariance: Literal["isotropic", "diagonal"] = "isotropic",
        draws: Literal["gaussian", "gumbel"] = "gaussian",
        amortised: int | None = None,
    ) -> None:
        super().__init__()
        if mixture not in MIXTURES:
            raise ValueError(f"mixture must be one of {sorted(MIXTURES)}; got {mixture!r}.")
        if refreshes != "auto" and not refreshes >= 1:
            raise ValueError(
                f'refreshes must be at least 1, or "auto" to choose it; got {refreshes!r}.'
            )
        if strength != "auto" and not strength > 0:
            raise ValueError(
                f'strength must be a positive number, or "auto" to choose it; got {strength!r}.'
            )
        if covariance not in ("diagonal", "isotropic"):
            raise ValueError(
                f'covariance must be "diagonal", as references are, or "isotropic"; '
                f"got {covariance!r}."
            )
        if draws not in ("gaussian", "gumbel"):
            raise ValueError(f'draws must be "gaussian" or "gumbel"; got {draws!r}.')
        if amortised is not None and not amortised >= 1:
            raise ValueError(
                f"amortised must be a width of at least 1, or None; got {amortised!r}."
            )
        self.mixture = mixture
        self.refreshes = refreshes
        self.strength = strength
        self.covariance = covariance
        self.draws = draws
        self.amortised = amortised
        self.relaxed = frozenset({"share"} if draws == "gumbel" else ())
        self.form = covariance_form(covariance)
        self._combine = MIXTURES[mixture]

    # ---- generative half ----------------------------------------------------------------------

    def register_hyperparameters(self, like: Tensor) -> None:
        sizes = self.sizes
        K = sizes.num_tasks
        chosen = self.strength == "auto"
        self.register_buffer("worth", like.new_tensor(1.0 if chosen else self.strength))
        self.register_buffer("planned", torch.zeros((), dtype=torch.int64, device=like.device))
        self.register_buffer("share", like.new_full((K, K), 1 / K))
        for name, value in self.form.mode(self.scatter).items():
            self.register_buffer(name, value)
        none = like.new_zeros(0, sizes.num_outputs, sizes.num_features)
        self.register_buffer("reference_mean", none)
        self.register_buffer("reference_variance", none)

    def hyperprior(self) -> Eta:
        # no mode at zero, from where a weight could not rise again; more for the anchor, which
        # lessens what unrelated tasks lose
        law = dist.Dirichlet(1 + self._belief())
        share = pyro.sample("share", law.to_event(1))
        return {"share": share, **self.form.hyperprior(self.scatter)}

    def _belief(self) -> Tensor:
        """What the prior of the weights is worth, in tasks, (K, K)."""
        K = len(self.share)
        anchor = _ANCHOR * torch.eye(K, dtype=self.share.dtype, device=self.share.device)
        return self.worth / K + anchor

    def _equal(self) -> Tensor:
        """The weights where their prior is densest."""
        belief = self._belief()
        return belief / belief.sum(-1, keepdim=True)

    def forward(self, eta: Eta) -> Distribution:
        law = self._law(eta, self._references)
        component = dist.Normal(law.loc, law.variance.sqrt()).to_event(2)
        return GaussianMixture(dist.Categorical(logits=law.log_weights), component).to_event(1)

    @property
    def _references(self) -> References:
        return References(self.reference_mean, self.reference_variance)

    def _anchor(self, eta: Eta) -> Tensor:
        """Variances (..., O, D) of tasks alone."""
        return self.form.scale(eta, self.sizes.num_features).root.square().sum(-1)

    def _law(self, eta: Eta, references: References) -> Law:
        """The prior of each task; without references the anchor alone."""
        K = eta["share"].shape[-1]
        anchor = self._anchor(eta)
        if not len(references.mean):
            each = anchor.expand(K, 1, *anchor.shape)
            return gaussian(torch.zeros_like(each), each)
        # in place of itself each task has the anchor
        own = torch.eye(K, dtype=torch.bool, device=anchor.device)[..., None, None]
        loc = torch.where(own, 0.0, references.mean)
        variance = torch.where(own, anchor, references.variance)
        return self._combine(eta["share"], loc, variance)

    # ---- closed-form half ---------------------------------------------------------------------

    def initialise(
        self, statistics: TaskStatistics, generator: torch.Generator, start: int
    ) -> None:
        super().initialise(statistics, generator, start)
        self.register_buffer("scatter", self.form.reference(self.scatter))
        self.register_hyperparameters(self.scatter)

    def condition(self, statistics: TaskStatistics, eta: Eta) -> WeightPosterior:
        return self._condition(statistics, eta, self._references)

    def _condition(
        self, statistics: TaskStatistics, eta: Eta, references: References
    ) -> WeightPosterior:
        law = self._law(eta, references)
        scale = DiagonalScale(law.variance.sqrt())
        return mixture_posterior(statistics, law.log_weights, law.loc, scale)

    def update(self, posterior: WeightPosterior) -> None:
        r"""Steps up $E_q[\log p(W, c \mid \eta)] + \log p(\eta)$, c the components."""
        share = posterior.log_weights.exp()
        variance = posterior.roots.variance()

        def expected(eta: Eta) -> Tensor:
            law = self._law(eta, self._references)
            # E log N(w; m, v) = −½ [ log v + (s² + (μ − m)²) / v ]
            square = variance + (posterior.means - law.loc).square()
            fit = -0.5 * (law.variance.log() + square / law.variance).sum((-2, -1))
            return (share * (law.log_weights + fit)).sum()

        self.set_eta(climb(self, expected, self.eta, _M_STEPS))

    def refresh(
        self,
        count: int,
        posterior: WeightPosterior,
        folds: Callable[[], Sequence[TaskStatistics]],
    ) -> bool:
        r"""Replace the references by `posterior`; before the first time, choose how often.

        What is chosen is the most cautious choice that is less than one standard error worse than
        the best in

        $$\sum_f \log Z_f\big(\textstyle\sum_g S_g\big) - \log Z_f\big(\sum_{g \ne f} S_g\big),$$

        with references and $\alpha$ found from the statistics $S_g$, $g \ne f$, of other folds.
        """
        if not count:
            whole, rests = whole_and_rests(folds())
            self._choose(whole, rests)
            posterior = self._exchangeable(whole)
        if count == int(self.planned):
            return False
        references = moments(posterior)
        self.register_buffer("reference_mean", references.mean)
        self.register_buffer("reference_variance", references.variance)
        return True

    def _choose(self, whole: TaskStatistics, rests: Sequence[TaskStatistics]) -> None:
        """Set `worth` and `planned`: as they were asked for, or by held-out rows."""
        strengths = _STRENGTHS if self.strength == "auto" else (self.strength,)
        if self.refreshes != "auto" and self.strength != "auto":
            best, planned = 0, self.refreshes
        else:
            scores = self._held_out(whole, rests, strengths)
            best = smallest_as_good(scores[:, 1:])
            once = smallest_as_good(scores[:, [0, 1 + best]])
            planned = once if self.refreshes == "auto" else self.refreshes
        self.worth.fill_(strengths[best])
        self.planned.fill_(planned)
        self.set_eta({"share": self._equal()})

    def _held_out(
        self,
        whole: TaskStatistics,
        rests: Sequence[TaskStatistics],
        strengths: Sequence[float],
    ) -> Tensor:
        """Log predictive density (F, 1 + S) of each part given the others: alone, and by strength.

        The strengths are judged after one refresh.
        """
        scores = []
        for others in rests:
            references = moments(self._exchangeable(others))
            alone = self._score(whole, others, References(*(r[:0] for r in references)))
            row = [alone]
            for strength in strengths:
                self.worth.fill_(strength)
                row.append(self._score(whole, others, references))
            scores.append(torch.stack(row))
        return torch.stack(scores)

    def _score(
        self, whole: TaskStatistics, others: TaskStatistics, references: References
    ) -> Tensor:
        """Log predictive density of one part given the others, hyperparameters found from them."""
        given = functools.partial(self._condition, references=references)
        start = self.eta | {"share": self._equal()}
        objective = functools.partial(_surrogate, functools.partial(given, others))
        eta = climb(self, objective, start, _FOLD_STEPS)
        return given(whole, eta).log_normaliser - given(others, eta).log_normaliser

    def _exchangeable(self, statistics: TaskStatistics) -> WeightPosterior:
        """Posteriors of tasks of one Gaussian population, the centre integrated out.

        Posteriors of tasks alone are as wide as the prior that leaves them alone, and so would be
        all that is mixed from them: each refresh would narrow the priors a little.
        """
        shared = SharedGaussian(self.covariance)
        shared.build(self.sizes, statistics.b)
        shared.initialise(statistics, torch.Generator(), 0)
        given = functools.partial(shared.condition, statistics)
        eta = climb(shared, functools.partial(_surrogate, given), shared.eta, _FOLD_STEPS)
        return given(eta)

    def population(
        self, eta: Eta, posterior: WeightPosterior, task_features: Tensor | None, num_tasks: int
    ) -> WeightPosterior:
        # the same share for each task of the fit and for the anchor
        mean, variance = moments(posterior)
        anchor = self._anchor(eta)[None]
        loc = torch.cat([mean, torch.zeros_like(anchor)])[None]
        spread = torch.cat([variance, anchor])[None]
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
        r"""$\alpha_{ti}$ among the other tasks, (K, K): zero diagonal, rows sum to 1.

        Zero where each task was left alone.
        """
        if not len(self.reference_mean):
            return torch.zeros_like(self.share)
        others = self.share.clone().fill_diagonal_(0)
        total = others.sum(-1, keepdim=True)
        return others / total.clamp(min=torch.finfo(total.dtype).tiny)

    @property
    def anchor_weight(self) -> Tensor:
        r"""$\alpha_{tt}$ (K,): the share of $N(0, \Sigma)$, which borrows from no task."""
        if not len(self.reference_mean):
            return torch.ones_like(self.share[0])
        return self.share.diagonal().clone()


def _surrogate(given: Callable[[Eta], WeightPosterior], eta: Eta) -> Tensor:
    return given(eta).log_normaliser
