r"""Tasks at the leaves of a tree along which their weights diffused, after Daumé.

$$1/s^2 \sim \mathrm{Gamma}(\tfrac32, \tfrac12), \quad m \sim N(0, s^2\Psi), \quad
  x_i \mid x_{p(i)} \sim N(x_{p(i)}, t_i \Sigma), \quad w_k = x_k$$

from a centre m down a binary tree whose leaves are all at distance 1 from it, with one of three
forms of $\Sigma$ and its prior (`covariance`). Around m the tasks have the covariance
$\lambda C + 1 - \lambda$ on the diagonal, $\lambda C$ off it, times $\Sigma$: Pagel's $\lambda$
mixes the tree with a star, and $\lambda = 0$ is `SharedGaussian`.

With `share="covariance"` it is the logs of the weights' standard deviations that run along the
tree, not the weights; see `scale_diffusion`. The equations of either stand in `diffusion`.

What differs from the paper: the weights are integrated out by exact messages, where it takes their
modes; the tree is found by posterior-mean heights instead of a coalescent's mode; $\lambda$, which
the paper does not have, is chosen by rows that the tree has not seen.

References:
    Daumé III, Bayesian multitask learning with latent hierarchies (2009), sections 3.1, 3.2.
    Pagel, Inferring the historical patterns of biological evolution (1999), for $\lambda$.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, final

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.transforms import Transform

from ..gaussian import DiagonalScale
from ..hyperparameters import Eta
from ..posterior import WeightPosterior
from ..roots import Roots
from ..statistics import TaskStatistics
from ..trees import TaskTree
from ..trees.factors import Factor
from ..trees.places import Newcomer, newcomer
from ..trees.roots import check_memory
from ..trees.sampling import weighed
from ..trees.search import find_tree
from ..trees.task_tree import HeightsTransform, caterpillar
from .covariance import Covariance, covariance_form, covariance_matrix
from .cross_fitting import smallest_as_good, whole_and_rests
from .diffusion import Branching, Diffusion, WeightDiffusion, whitened_factors
from .scale_diffusion import ScaleDiffusion
from .shared_gaussian import around_centre
from .task_prior import TaskPrior

_MIXINGS = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95)
# EM steps in each fold at λ = 0, and at each further λ from where the one before ended.
_FORGETTING, _STEPS = 10, 3
_SHARED: dict[str, Callable[[Covariance], Diffusion]] = {
    "weights": WeightDiffusion,
    "covariance": ScaleDiffusion,
}


@final
class LatentHierarchy(TaskPrior):
    r"""Tasks are related along a tree, which is found, as far as the data support one.

    Around a common centre $\mathrm{cov}(w_j, w_k) = \lambda C_{jk} \Sigma$ for $j \ne k$ and
    $\mathrm{cov}(w_k) = \Sigma$, where $1 - C_{jk}$ is the height at which the two tasks meet.

    Args:
        covariance: "full", "diagonal" or "isotropic" $\Sigma$.
        share: "weights", or "covariance": the logs of the weights' standard deviations diffuse,
            and tasks that are near have weights of like sizes, around zero, with one correlation
            between features; see `scale_diffusion`. What is reported is then the density at fitted
            standard deviations: no evidence, and no bound on it.
        mixing: $\lambda$ in [0, 1], or "auto": chosen by five-fold cross-fitting over the rows of
            every task, the tree found anew without each fold. 0 says that there is no tree.

    Raises:
        ValueError: for another `covariance` or `share`, or a `mixing` that is neither "auto" nor
            in [0, 1].

    Example:
        >>> from bmm_multitask_learning import LatentHierarchy, MultitaskModel, datasets, fit
        >>> data, truth = datasets.make_tree(num_tasks=8, num_features=4, seed=0)
        >>> model = MultitaskModel(prior=LatentHierarchy())
        >>> result = fit(model, data, progress=False)
        >>> model.prior.tree.correlation().shape
        torch.Size([8, 8])
        >>> bool(model.prior.mixing_weight > 0.5)
        True

    References:
        Daumé III, Bayesian multitask learning with latent hierarchies (2009).
    """

    centre_precision: Tensor
    merges: Tensor
    heights: Tensor
    attached: Tensor
    leaf_precision: Tensor
    leaf_linear: Tensor
    mixing_weight: Tensor

    def __init__(
        self,
        covariance: Literal["full", "diagonal", "isotropic"] = "diagonal",
        *,
        share: Literal["weights", "covariance"] = "weights",
        mixing: float | Literal["auto"] = "auto",
    ) -> None:
        super().__init__()
        if share not in _SHARED:
            raise ValueError(f'share must be "weights" or "covariance"; got {share!r}.')
        if mixing != "auto" and not (isinstance(mixing, int | float) and 0 <= mixing <= 1):
            raise ValueError(f'mixing must lie in [0, 1], or be "auto"; got {mixing!r}.')
        self.covariance = covariance
        self.mixing = mixing
        self.share = share
        self.form = covariance_form(covariance)
        self.diffusion = _SHARED[share](self.form)
        self._branching: Branching | None = None

    # ---- generative half ----------------------------------------------------------------------

    def register_hyperparameters(self, like: Tensor) -> None:
        for name, value in self.diffusion.mode(self.scatter, self.sizes.num_tasks).items():
            self.register_buffer(name, value)
        mixing = 0.0 if self.mixing == "auto" else self.mixing
        self._set_tree(caterpillar(self.sizes.num_tasks, like), mixing)
        K, O, D = self.sizes.num_tasks, self.sizes.num_outputs, self.sizes.num_features
        self.register_buffer("attached", like.new_zeros(0, K))
        self.register_buffer("leaf_precision", like.new_zeros(K, 1, D, D))
        self.register_buffer("leaf_linear", like.new_zeros(K, O, D))

    def _set_tree(self, tree: TaskTree, mixing: float) -> None:
        self.register_buffer("merges", tree.merges)
        self.register_buffer("heights", tree.heights)
        self.register_buffer("mixing_weight", tree.heights.new_tensor(mixing))

    @property
    def tree(self) -> TaskTree:
        """The tree that was found, whatever its weight `mixing_weight` is."""
        return TaskTree(self.merges, self.heights)

    def hyperprior(self) -> Eta:
        return self.diffusion.hyperprior(self.scatter, self.tree, self.mixing_weight)

    def forward(self, eta: Eta) -> Distribution:
        return self.diffusion.law(eta, self.scatter, self.tree, self.mixing_weight)

    # ---- closed-form half ---------------------------------------------------------------------

    def initialise(
        self, statistics: TaskStatistics, generator: torch.Generator, start: int
    ) -> None:
        super().initialise(statistics, generator, start)
        self.register_buffer("scatter", self.form.reference(self.scatter))
        self.set_eta(self.diffusion.mode(self.scatter, self.sizes.num_tasks))
        # "auto" has no tree before `refresh`
        mixing = 0.0 if self.mixing == "auto" else self.mixing
        tree = (
            self._find(statistics) if mixing else caterpillar(self.sizes.num_tasks, self.scatter)
        )
        self._set_tree(tree, mixing)

    def _find(self, statistics: TaskStatistics) -> TaskTree:
        """The tree in units of the diagonal of Σ: its full form would hide who is near whom."""
        root = self.form.scale(self.eta, self.sizes.num_features).root
        leaves = self.diffusion.leaves(statistics, self.eta, self.scatter)
        return find_tree(leaves, DiagonalScale(root.square().sum(-1).sqrt()))

    def refresh(
        self,
        count: int,
        posterior: WeightPosterior,
        folds: Callable[[], Sequence[TaskStatistics]],
    ) -> bool:
        r"""Find the tree, once, at the fitted hyperparameters, and choose $\lambda$.

        Each fold f is scored as rows that the tree has not seen,
        $$\sum_f \log Z(\textstyle\sum_g S_g) - \log Z(\sum_{g \ne f} S_g),$$
        with the tree found from the statistics $S_g$, $g \ne f$, of the other folds.
        """
        if count != self.diffusion.rounds:
            more = count < 2 * self.diffusion.rounds + 1
            if more:
                along = self._along()
                self.set_eta(self.diffusion.rates(posterior, self.eta, self.scatter, along))
            return more
        self._seek(folds())
        return bool(self.mixing_weight)

    def points(self) -> dict[str, Transform]:
        r"""The heights, to the mode of their posterior: under their law, uniform, the bound's."""
        return {"heights": HeightsTransform()}

    def renew(self, folds: Callable[[], Sequence[TaskStatistics]]) -> bool:
        r"""Find the tree and choose $\lambda$ anew; its heights stand where its clades do."""
        if self.mixing == 0:
            return False
        tree, mixing = self.tree, float(self.mixing_weight)
        self._seek(folds())
        found = float(self.mixing_weight)
        same = self.tree.clades().keys() == tree.clades().keys()
        if same:
            self._set_tree(tree, found)
        return mixing != found or (found > 0 and not same)

    def _seek(self, parts: Sequence[TaskStatistics]) -> None:
        r"""The tree of all parts, and $\lambda$; see `refresh`."""
        whole, others = whole_and_rests(parts)
        trees = [self._find(part) for part in others]
        mixing = self.mixing
        if mixing == "auto":
            pairs = zip(others, trees, strict=True)
            scores = torch.stack([self._held_out(part, whole, tree) for part, tree in pairs])
            mixing = _MIXINGS[smallest_as_good(scores)]
        if mixing and self.share == "weights":
            check_memory(self.sizes, self.scatter)
        self._set_tree(self._find(whole), mixing)

    def _held_out(self, others: TaskStatistics, whole: TaskStatistics, tree: TaskTree) -> Tensor:
        r"""Log predictive density of one fold given the others for each λ of the grid, (7,).

        EM steps on the other folds make $\eta$ forget the fold, then follow $\lambda$: a $\Sigma$
        fitted without a tree has taken in what a tree would say.
        """
        diffusion, scores = self.diffusion, []
        eta = diffusion.forget(self.eta, self.scatter)
        for mixing in _MIXINGS:
            along = Branching.of(tree, tree.heights.new_tensor(mixing))
            for _ in range(_STEPS if mixing else _FORGETTING):
                eta = diffusion.step(others, eta, self.scatter, along)
            after, before = (
                diffusion.log_evidence(part, eta, self.scatter, along) for part in (whole, others)
            )
            scores.append(after - before)
        return torch.stack(scores)

    def _along(self) -> Branching:
        """The branches of the tree; their places are found anew where merges or λ are others."""
        kept = self._branching
        same = kept and kept.tree.merges is self.merges and kept.mixing is self.mixing_weight
        if not kept or not same:
            kept = Branching.of(self.tree, self.mixing_weight)
        elif kept.tree.heights is not self.heights:
            kept = kept.at(self.tree)
        self._branching = kept
        return kept

    def condition(self, statistics: TaskStatistics, eta: Eta) -> WeightPosterior:
        return self.diffusion.condition(statistics, eta, self.scatter, self._along())

    def update(self, posterior: WeightPosterior) -> None:
        self.set_eta(self.diffusion.update(posterior, self.eta, self.scatter, self._along()))

    def settle(self, statistics: TaskStatistics, posterior: WeightPosterior) -> None:
        super().settle(statistics, posterior)
        # what places in the tree say of the weights of a new task
        leaves = self.diffusion.leaves(statistics, self.eta, self.scatter)
        self.register_buffer("leaf_precision", leaves.A)
        self.register_buffer("leaf_linear", leaves.b)

    def _factors(self) -> tuple[Factor, Factor]:
        return whitened_factors(
            self.form,
            self.leaf_precision,
            self.leaf_linear,
            self.eta,
            self.diffusion.spread(self.scatter),
        )

    def population(
        self, eta: Eta, posterior: WeightPosterior, task_features: Tensor | None, num_tasks: int
    ) -> WeightPosterior:
        if not self._mixes:
            root = self.form.scale(eta, self.sizes.num_features).root
            return around_centre(posterior.centre(), root, num_tasks)
        # a task of which nothing is known stands anywhere in the tree; at one η, not at draws
        law = self._newcomer()
        means, own = self.diffusion.newcomer(law, self.eta, self.scatter)
        return WeightPosterior(
            log_weights=law.share.log().expand(num_tasks, -1),
            means=means.expand(num_tasks, *means.shape),
            roots=Roots.independent(own.expand(num_tasks, *own.shape)),
            log_normaliser=means.new_zeros(()),
        )

    @property
    def _mixes(self) -> bool:
        """Whether the law of a new task is a mixture over places."""
        return self.share == "covariance" or bool(self.mixing_weight)

    def _newcomer(self) -> Newcomer:
        law = newcomer(self.tree, *self._factors(), float(self.mixing_weight))
        return Newcomer(*(tensor.to(self.scatter) for tensor in law))

    def condense(self, newcomers: WeightPosterior) -> WeightPosterior:
        """One Gaussian with the moments of the mixture over places."""
        return newcomers.moment_matched() if self._mixes else newcomers

    def grow(
        self, information: Tensor, posterior: WeightPosterior, newcomers: WeightPosterior | None
    ) -> None:
        super().grow(information, posterior, newcomers)
        if newcomers is not None:
            new = self.attached.new_zeros(len(newcomers.means), self.attached.shape[1])
            if self._mixes:
                new = newcomers.log_weights.exp() @ self._newcomer().correlation
            self.register_buffer("attached", torch.cat([self.attached, new]))

    def relations(self) -> Tensor:
        r"""Prior correlation of what diffuses in two tasks, around the centre, (K, K), symmetric.

        $\lambda C_{jk}$ with ones on the diagonal: the identity where there is no tree. That of a
        task that came by `adapt` is averaged over its places in the tree; two such tasks have 0.
        """
        between = self.mixing_weight * self.tree.correlation()
        new = self.attached
        among = new.new_zeros(len(new), len(new))
        relations = torch.cat([torch.cat([between, new.mT], 1), torch.cat([new, among], 1)])
        return relations.fill_diagonal_(1.0)

    # ---- read-outs ----------------------------------------------------------------------------

    def weigh_clades(self, sweeps: int = 20, *, seed: int = 0, progress: bool = True) -> TaskTree:
        r"""The tree with the posterior probability of each of its clades.

        Trees are drawn given the rows, at the hyperparameters and $\lambda$ of the fit; a sweep of
        the chain prunes and regrafts every subtree once, $O(K^2 D^3)$; see `trees.sampling`.
        Where $\lambda = 0$ the rows say nothing of a tree, and the prior is returned.

        Args:
            sweeps: of the chain; the first fifth is left out.
            seed: the only source of randomness.
            progress: whether to show a progress bar.

        Raises:
            ValueError: for `sweeps` below 1.

        Example:
            >>> from bmm_multitask_learning import LatentHierarchy, MultitaskModel, datasets, fit
            >>> data, truth = datasets.make_tree(num_tasks=6, num_features=3, seed=0)
            >>> model = MultitaskModel(prior=LatentHierarchy(mixing=0.9))
            >>> result = fit(model, data, progress=False)
            >>> tree = model.prior.weigh_clades(sweeps=2, progress=False)
            >>> list(tree.clades().values())[-1]  # the clade of all tasks
            1.0
        """
        return weighed(
            self.tree,
            *self._factors(),
            float(self.mixing_weight),
            sweeps=sweeps,
            rng=np.random.default_rng(seed),
            progress=progress,
        )

    @property
    def nodes(self) -> Tensor:
        r"""Posterior mean of what diffuses at every node, (2K - 1, O, D): tasks, then merges.

        Of the weights, or under `share="covariance"` of the logs of their standard deviations. In
        between, along a branch, it is linear in the distance: `plots.tree(weights=...)` draws it.
        """
        A, b = self.leaf_precision, self.leaf_linear
        leaves = TaskStatistics(A, b, torch.zeros_like(b[..., 0]), b.new_ones(len(b)))
        return self.diffusion.nodes(leaves, self.eta, self.scatter, self._along())

    @property
    def covariance_matrix(self) -> Tensor:
        r"""$\Sigma$, (O, D, D), in squared units of what diffuses."""
        return covariance_matrix(self.form, self.eta, self.sizes.num_features)

    @property
    def log_standard_deviation(self) -> Tensor:
        """Of each weight under `share="covariance"`, (K, O, D), in log units of the weights.

        Raises:
            TypeError: where weights are shared: all tasks have one covariance then.
        """
        if not isinstance(self.diffusion, ScaleDiffusion):
            raise TypeError(
                'log_standard_deviation is what LatentHierarchy(share="covariance") has; this '
                "prior shares weights, whose covariance is covariance_matrix."
            )
        return self.diffusion.log_standard_deviation(self.eta, self.scatter)
