"""What a prior over task weights is. Read `SharedGaussian` next: the shortest complete example."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.transforms import Transform

from ..gaussian import DiagonalScale
from ..hyperparameters import Eta, ProbabilisticModule
from ..posterior import WeightPosterior, mixture_posterior
from ..sizes import Sizes
from ..statistics import TaskStatistics
from .amortised import AmortisedClassifier


class TaskPrior(ProbabilisticModule):
    r"""A law $p(W \mid \eta)\,p(\eta)$ of the weights (K, O, D) of all tasks.

    The generative half, `hyperprior` and `forward`, serves `SVI`, `NUTS` and users' own Pyro
    programs, and is all that a prior must have. The closed-form half, `initialise`, `condition`
    and `update`, serves `CoordinateAscent`, and lets `SVI` use a guide that is exact given the
    hyperparameters. Methods stand in the same order in every prior.
    """

    sizes: Sizes
    scatter: Tensor
    information: Tensor
    task_features: Tensor | None
    classifier: AmortisedClassifier | None

    closed_form: bool = True
    """Whether `condition` integrates the weights out; False for a generative half alone."""

    exact: bool = True
    """Whether `condition` integrates the weights out exactly; False where it bounds from below."""

    generative: bool = True
    r"""Whether $p(W \mid \eta)$ stands without the data; False where it reads posteriors."""

    amortised: int | None = None
    """Width of the network that gives the factors of classes under `SVI`; None: no network."""

    def build(self, sizes: Sizes, like: Tensor, task_features: Tensor | None = None) -> None:
        """Register every tensor, eagerly, so that a fresh object takes a state dict.

        Args:
            sizes: sizes of the family of tasks.
            like: gives dtype and device.
            task_features: (K, F) or None.
        """
        self.sizes = sizes
        self.register_buffer("task_features", task_features)
        self.register_buffer("scatter", like.new_ones(sizes.num_outputs, sizes.num_features))
        self.register_buffer("information", like.new_zeros(sizes.num_tasks))
        self.classifier = None
        if self.amortised is not None:
            self.classifier = AmortisedClassifier(sizes.num_features, self.amortised, like)
        self.register_hyperparameters(like)

    @abstractmethod
    def register_hyperparameters(self, like: Tensor) -> None:
        r"""Register a buffer for each site of `hyperprior`, at any valid value."""

    @abstractmethod
    def hyperprior(self) -> Eta:
        r"""Sample $\eta$: the only `pyro.sample` statements of a prior."""

    @abstractmethod
    def forward(self, eta: Eta) -> Distribution:
        r"""$p(W \mid \eta)$ with event shape (K, O, D), discrete labels summed out."""

    def initialise(
        self, statistics: TaskStatistics, generator: torch.Generator, start: int
    ) -> None:
        r"""Set the scale of the hyperprior and a first $\eta$ from data.

        Args:
            statistics: of all tasks.
            generator: the only source of randomness.
            start: number of this start, from 0.
        """
        self.register_buffer("scatter", unit_signal_scatter(statistics))
        if self.classifier is not None:
            self.classifier.reset(generator)

    def more_starts(self, scores: list[float]) -> bool:
        """Whether to try another start after starts with these scores."""
        return not scores

    def complexity(self) -> float:
        r"""What to charge for $\eta$, in nats, when starts of different size are compared."""
        return 0.0

    def condition(self, statistics: TaskStatistics, eta: Eta) -> WeightPosterior:
        r"""$q(W \mid \eta) \propto p(W \mid \eta) \prod_k t_k(w_k)$ and its log normaliser.

        Without a closed form the factors alone, over a unit Gaussian, are a free Gaussian for
        each task: what `SVI` fits for a prior with a generative half only.
        """
        loc = torch.zeros_like(statistics.b)
        unit = DiagonalScale(torch.ones_like(loc)[:, None])
        return mixture_posterior(statistics, loc.new_zeros(len(loc), 1), loc[:, None], unit)

    def update(self, posterior: WeightPosterior) -> None:
        r"""Move $\eta$ so that $\log p(D, \eta)$ does not fall (an M-step)."""
        raise TypeError(
            f"{type(self).__name__} has no closed form. Use engine=SVI() or NUTS(), or write "
            "`condition` and `update`."
        )

    def refresh(
        self,
        count: int,
        posterior: WeightPosterior,
        folds: Callable[[], Sequence[TaskStatistics]],
    ) -> bool:
        r"""Replace what stood still while $\eta$ moved: a tree, reference posteriors.

        Engines call it when a climb has ended, and climb again where it returns True; what they
        report starts anew there.

        Args:
            count: how often it was called before in this fit.
            posterior: of the weight vectors at the present state.
            folds: makes the statistics of five disjoint parts of every task's rows.

        Returns:
            whether the law of the weights is another now.
        """
        return False

    def points(self) -> dict[str, Transform]:
        r"""Buffers beside $\eta$ that `SVI` moves by gradient, each to one point: branch lengths.

        Returns:
            for each, by its path, the map to it from unconstrained space.
        """
        return {}

    def renew(self, folds: Callable[[], Sequence[TaskStatistics]]) -> bool:
        r"""Seek anew, between epochs of `SVI`, what no gradient moves: a tree.

        Asked of priors that have `points`, at the present centre of q.

        Args:
            folds: see `refresh`.

        Returns:
            whether the law of the weights is another now.
        """
        return False

    def settle(self, statistics: TaskStatistics, posterior: WeightPosterior) -> None:
        r"""Keep, after the last step, what read-outs need of the posterior.

        `information` (K,) is $\mathrm{tr}(A_k C_k) / (O D)$: the share of what is known of a
        task's weights that its own rows say; the rest comes from the prior, that is from the
        other tasks.

        Args:
            statistics: of the tasks.
            posterior: of the tasks.
        """
        self.register_buffer("information", own_information(statistics, posterior))

    def grow(
        self, information: Tensor, posterior: WeightPosterior, newcomers: WeightPosterior | None
    ) -> None:
        """Read-outs for more tasks than were in the fit: what `adapt` learned of them.

        Args:
            information: (K,) of all tasks, see `settle`.
            posterior: of all tasks.
            newcomers: of the tasks that were not known, from `population`; or none.
        """
        self.register_buffer("information", information)

    @abstractmethod
    def population(
        self, eta: Eta, posterior: WeightPosterior, task_features: Tensor | None, num_tasks: int
    ) -> WeightPosterior:
        """Law of the weights of tasks outside the fit, before any of their rows.

        Args:
            eta: hyperparameters.
            posterior: of the tasks in the fit.
            task_features: (num_tasks, F) or None.
            num_tasks: number of new tasks.
        """

    def condense(self, newcomers: WeightPosterior) -> WeightPosterior:
        """The law of new tasks in the form in which the model keeps its tasks'.

        Args:
            newcomers: `population`, or what it became by rows of the new tasks.
        """
        return newcomers

    @abstractmethod
    def relations(self) -> Tensor:
        """(K, K) strength of the relation between tasks; see each prior for what it means."""

    def reduce(self, statistics: TaskStatistics) -> TaskStatistics:
        """Statistics of the weight vectors from those of the tasks: the same, unless pooled."""
        return statistics

    def expand(
        self, posterior: WeightPosterior, statistics: TaskStatistics | None = None
    ) -> WeightPosterior:
        """Posterior of the tasks' weights from that of the weight vectors.

        Args:
            posterior: of the weight vectors.
            statistics: of the tasks, for `WeightPosterior.effective` of each.
        """
        return posterior


def own_information(statistics: TaskStatistics, posterior: WeightPosterior) -> Tensor:
    r"""$\mathrm{tr}(A_k C_k) / (O D)$ of each weight vector, (K,); see `TaskPrior.settle`."""
    O, D = posterior.means.shape[-2:]
    own, common = posterior.roots.own, posterior.roots.common
    root = own if own.shape[-1] else common  # pooled tasks have nothing of their own
    trace = statistics.trace_term(root.movedim(1, 0)).sum(-1) / (O * D)  # (C, K)
    return (posterior.log_weights.exp() * trace.T).sum(-1)


def unit_signal_scatter(statistics: TaskStatistics) -> Tensor:
    r"""$\Psi_d = 1 / (D \bar A_{dd})$, (O, D): weights of this scale have the noise's variance.

    $\bar A$ is the mean of $A$ a row, so that $E[(\phi^\top w)^2]$ in units of the noise (for
    logits: of the curvature) is 1 for $w \sim N(0, \Psi)$ whatever the units of the features are.
    Columns without information take the mean of the others.
    """
    D = statistics.b.shape[-1]
    rows = statistics.rows.sum().clamp(min=1)
    information = statistics.A.diagonal(dim1=-2, dim2=-1).sum(0) / rows  # (O | 1, D)
    information = information.expand(statistics.b.shape[1], D)
    positive = information > 1e-12 * information.amax(-1, keepdim=True)
    mean = (information * positive).sum(-1, keepdim=True) / positive.sum(-1, keepdim=True).clamp(
        min=1
    )
    information = torch.where(positive, information, torch.where(mean > 0, mean, 1.0))
    return 1 / (D * information)


def standardised(features: Tensor, reference: Tensor) -> Tensor:
    """Task features (K, F) in standard deviations from the mean of those of the fit.

    Args:
        features: of any tasks.
        reference: of the tasks of the fit; columns that are constant there keep their unit.
    """
    std = reference.std(0, correction=0)
    return (features - reference.mean(0)) / torch.where(std > 0, std, 1.0)
