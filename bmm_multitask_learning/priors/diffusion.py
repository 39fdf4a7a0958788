r"""What diffuses along the tree of a `LatentHierarchy`: here the weights themselves.

Either way vectors $x_i \mid x_{p(i)} \sim N(x_{p(i)}, t_i \Sigma)$ run from a centre
$m \sim N(0, s^2 \Psi)$ down to the tasks, and each task has a Gaussian factor on its own: of the
weights the rows themselves; of log standard deviations, in `scale_diffusion`, what Laplace's
approximation makes of them.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, final

import torch
from torch import Tensor
from torch.distributions import Distribution

from ..distributions import BrownianTree
from ..gaussian import Scale
from ..hyperparameters import Eta
from ..posterior import Centre, WeightPosterior
from ..statistics import TaskStatistics
from ..trees import TaskTree
from ..trees.factors import Factor
from ..trees.messages import Level, Upward, make_levels, pass_downward, pass_upward
from ..trees.places import Newcomer
from ..trees.roots import TreeRoots
from .covariance import Covariance
from .shared_gaussian import population_hyperprior, population_mode, update_population


class Branching(NamedTuple):
    """A tree, its weight λ, and its nodes by depth."""

    tree: TaskTree
    mixing: Tensor
    levels: tuple[Level, ...]

    @classmethod
    def of(cls, tree: TaskTree, mixing: Tensor) -> Branching:
        """The branches of a tree at one λ."""
        return cls(tree, mixing, make_levels(tree, mixing))

    def at(self, tree: TaskTree) -> Branching:
        """The same merges at other heights."""
        lengths = tree.lengths(self.mixing)
        levels = (level._replace(length=lengths[level.node]) for level in self.levels)
        return self._replace(tree=tree, levels=tuple(levels))


class Diffusion(Protocol):
    """What a task's place in the tree says of its weights.

    rounds: of `rates` before the tree is sought and after.
    """

    form: Covariance
    rounds: int

    def spread(self, scatter: Tensor) -> Tensor:
        r"""$\Psi$ (O, D) of what diffuses, from that of the weights."""

    def mode(self, scatter: Tensor, num_tasks: int) -> Eta:
        r"""A first $\eta$."""

    def hyperprior(self, scatter: Tensor, tree: TaskTree, mixing: Tensor) -> Eta:
        r"""Sample $\eta$."""

    def law(self, eta: Eta, scatter: Tensor, tree: TaskTree, mixing: Tensor) -> Distribution:
        r"""$p(W \mid \eta)$."""

    def condition(
        self, statistics: TaskStatistics, eta: Eta, scatter: Tensor, along: Branching
    ) -> WeightPosterior:
        r"""$q(W \mid \eta)$."""

    def log_evidence(
        self, statistics: TaskStatistics, eta: Eta, scatter: Tensor, along: Branching
    ) -> Tensor:
        r"""$\log p(D \mid \eta)$."""

    def update(
        self, posterior: WeightPosterior, eta: Eta, scatter: Tensor, along: Branching
    ) -> Eta:
        r"""A step that does not lower $p(\eta \mid D)$."""

    def rates(
        self, posterior: WeightPosterior, eta: Eta, scatter: Tensor, along: Branching
    ) -> Eta:
        r"""A step of what `update` leaves alone."""

    def step(self, statistics: TaskStatistics, eta: Eta, scatter: Tensor, along: Branching) -> Eta:
        r"""All of $\eta$ moved once."""

    def forget(self, eta: Eta, scatter: Tensor) -> Eta:
        r"""$\eta$ without what it says of single tasks."""

    def leaves(self, statistics: TaskStatistics, eta: Eta, scatter: Tensor) -> TaskStatistics:
        """Each task's factor on what diffuses."""

    def nodes(self, leaves: TaskStatistics, eta: Eta, scatter: Tensor, along: Branching) -> Tensor:
        """Means (2K - 1, O, D) of what diffuses at every node, from `leaves`."""

    def newcomer(self, law: Newcomer, eta: Eta, scatter: Tensor) -> tuple[Tensor, Tensor]:
        """Means (n, O, D) and roots (n, O, D, D) of weights at n places, whitened in `law`."""


@final
class WeightDiffusion:
    """The weights run along the tree: $w_k = x_k$."""

    rounds = 0

    def __init__(self, form: Covariance) -> None:
        self.form = form

    def spread(self, scatter: Tensor) -> Tensor:
        return scatter

    def mode(self, scatter: Tensor, num_tasks: int) -> Eta:
        return population_mode(self.form, scatter)

    def hyperprior(self, scatter: Tensor, tree: TaskTree, mixing: Tensor) -> Eta:
        return population_hyperprior(self.form, scatter)

    def law(self, eta: Eta, scatter: Tensor, tree: TaskTree, mixing: Tensor) -> BrownianTree:
        return tree_law(self.form, eta, scatter, tree, mixing)

    def condition(
        self, statistics: TaskStatistics, eta: Eta, scatter: Tensor, along: Branching
    ) -> WeightPosterior:
        return condition_along(self.form, statistics, eta, scatter, along.levels)

    def log_evidence(
        self, statistics: TaskStatistics, eta: Eta, scatter: Tensor, along: Branching
    ) -> Tensor:
        return at_centre(self.form, statistics, eta, scatter, along.levels).log_normaliser

    def update(
        self, posterior: WeightPosterior, eta: Eta, scatter: Tensor, along: Branching
    ) -> Eta:
        return update_population(self.form, eta, posterior, scatter)

    def rates(
        self, posterior: WeightPosterior, eta: Eta, scatter: Tensor, along: Branching
    ) -> Eta:
        return {}

    def step(self, statistics: TaskStatistics, eta: Eta, scatter: Tensor, along: Branching) -> Eta:
        posterior = self.condition(statistics, eta, scatter, along)
        return {**eta, **self.update(posterior, eta, scatter, along)}

    def forget(self, eta: Eta, scatter: Tensor) -> Eta:
        return dict(eta)

    def leaves(self, statistics: TaskStatistics, eta: Eta, scatter: Tensor) -> TaskStatistics:
        return statistics

    def nodes(self, leaves: TaskStatistics, eta: Eta, scatter: Tensor, along: Branching) -> Tensor:
        return means_along(self.form, leaves, eta, scatter, along.levels)

    def newcomer(self, law: Newcomer, eta: Eta, scatter: Tensor) -> tuple[Tensor, Tensor]:
        scale = self.form.scale(eta, scatter.shape[-1])
        root = scale.apply(torch.linalg.cholesky(law.covariance))
        return scale.apply(law.mean[..., None])[..., 0], root


# ---- vectors along a tree ---------------------------------------------------------------------


def tree_law(
    form: Covariance, eta: Eta, scatter: Tensor, tree: TaskTree, mixing: Tensor
) -> BrownianTree:
    r"""The law of the vectors at the leaves, the centre and the inner nodes integrated out."""
    return BrownianTree(
        tree.merges,
        tree.lengths(mixing),
        scatter / eta["centre_precision"][..., None],
        form.scale(eta, scatter.shape[-1]).root,
    )


def whitened(
    form: Covariance, A: Tensor, b: Tensor, eta: Eta, scatter: Tensor
) -> tuple[Scale, Tensor, Tensor, Tensor]:
    """L, the leaves' factors in coordinates where Σ = I, and T, the centre's precision there."""
    scale = form.scale(eta, scatter.shape[-1])
    # w = L x:  Ã = Lᵀ A L,  h̃ = Lᵀ b
    white = scale.adjoint(scale.adjoint(A).mT)
    linear = scale.adjoint(b[..., None])[..., 0]
    # m = L μ:  T = Lᵀ S⁻¹ L
    half = scale.root / (scatter / eta["centre_precision"][..., None]).sqrt()[..., None]
    return scale, white.expand(*linear.shape, linear.shape[-1]), linear, half.mT @ half


def whitened_factors(
    form: Covariance, A: Tensor, b: Tensor, eta: Eta, scatter: Tensor
) -> tuple[Factor, Factor]:
    """What each leaf and the centre's prior say, whitened, on the CPU."""
    _, white, linear, prior = whitened(form, A, b, eta, scatter)
    half = 0.5 * torch.linalg.slogdet(prior).logabsdet
    leaves = Factor(torch.zeros_like(linear[..., 0]), linear, white)
    centre = Factor(half[None], torch.zeros_like(linear[:1]), prior[None])
    return leaves.cpu(), centre.cpu()


class AtCentre(NamedTuple):
    """All factors brought to the centre: its posterior's Cholesky factor and mean, whitened."""

    scale: Scale
    upward: Upward
    factor: Tensor
    centre: Tensor
    log_normaliser: Tensor


def at_centre(
    form: Covariance,
    statistics: TaskStatistics,
    eta: Eta,
    scatter: Tensor,
    levels: tuple[Level, ...],
) -> AtCentre:
    """Messages from the leaves' factors up to the centre, and the evidence."""
    scale, white, linear, prior = whitened(form, statistics.A, statistics.b, eta, scatter)
    upward = pass_upward(levels, white, linear)
    # Q = T + P,  μ̂ = Q⁻¹ h
    factor = torch.linalg.cholesky(prior + upward.precision)
    centre = torch.cholesky_solve(upward.linear[..., None], factor)[..., 0]
    # log p(D | η) = Σ c_k + Σ_i log Z_i + ½ hᵀ Q⁻¹ h − ½ log|Q| + ½ log|T|
    log_normaliser = (
        statistics.c.sum()
        + upward.log_normaliser
        + 0.5 * (upward.linear * centre).sum()
        - factor.diagonal(dim1=-2, dim2=-1).log().sum()
        + 0.5 * torch.linalg.slogdet(prior).logabsdet.sum()
    )
    return AtCentre(scale, upward, factor, centre, log_normaliser)


def condition_along(
    form: Covariance,
    statistics: TaskStatistics,
    eta: Eta,
    scatter: Tensor,
    levels: tuple[Level, ...],
) -> WeightPosterior:
    """The law of the vectors at the leaves given their factors."""
    scale, upward, factor, centre, log_normaliser = at_centre(
        form, statistics, eta, scatter, levels
    )
    root = _inverse_root(factor)
    down = pass_downward(levels, upward, centre, root)
    mean = scale.apply(down.mean[..., None])[..., 0]
    return WeightPosterior(
        log_weights=mean.new_zeros(len(mean), 1),
        means=mean[:, None],
        roots=TreeRoots(scale, down.covariance, root, levels, down.steps),
        log_normaliser=log_normaliser,
        effective=lambda: down.effective[:, None],
        shared=Centre(
            scale.apply(centre[..., None])[..., 0][None],
            scale.apply(root)[None],
            lambda: scale.colour(form.part(down.scatter)),
        ),
    )


def means_along(
    form: Covariance,
    statistics: TaskStatistics,
    eta: Eta,
    scatter: Tensor,
    levels: tuple[Level, ...],
) -> Tensor:
    """The mean of the vector at each of the 2K - 1 nodes given the leaves' factors."""
    scale, upward, factor, centre, _ = at_centre(form, statistics, eta, scatter, levels)
    down = pass_downward(levels, upward, centre, _inverse_root(factor))
    # nodes of no level, the root at least, stand at the centre
    white = centre.expand(2 * len(statistics.b) - 1, *centre.shape).clone()
    white[torch.cat([level.node for level in levels])] = torch.cat(down.nodes)
    return scale.apply(white[..., None])[..., 0]


def _inverse_root(factor: Tensor) -> Tensor:
    """Q^{-1/2} from the Cholesky factor: as such it carries the centre's uncertainty to nodes."""
    identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    return torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False).mT
