"""task_affinity: which tasks help which, by one of three measures."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from ..data import TaskData
from ..priors import SharedGaussian
from ..sites import first_factor, refine, tasks_posterior
from ..statistics import TaskStatistics
from .evidence import CentreFactors, agglomerate, pair_gains
from .result import Array, TaskAffinity, average_linkage
from .steps import measure_steps

if TYPE_CHECKING:
    from ..family import Family
    from ..model import MultitaskModel

Method = Literal["evidence", "lookahead", "gradient"]
# See `refine`.
_TOLERANCE = 2e-4


def task_affinity(
    model: MultitaskModel,
    data: TaskData | Mapping[str, TaskData],
    method: Method = "evidence",
    *,
    held_out: TaskData | Mapping[str, TaskData] | None = None,
    family: str | None = None,
    steps: int = 20,
    lr: float = 1e-2,
    seed: int = 0,
    progress: bool = True,
) -> TaskAffinity:
    r"""Which tasks help which; the model stays as it is.

    "evidence" asks of every pair whether its rows are more probable under one centre,
    $$\Delta_{ij} = \log P(D_i, D_j) - \log P(D_i) - \log P(D_j),$$
    for a fitted model with the prior `SharedGaussian`. Features, noise and the law of a task's
    weights, $w_k \sim N(0, T)$ with $T = S + \Sigma$, are those of the fit of all tasks; the
    correlation $\rho$ between the weights of the pair is unknown and integrated over
    $(0, 1)$. With `held_out` rows, it is what those of j gain by the rows of i,
    $\log P(D_j^* \mid D_i, D_j) - \log P(D_j^* \mid D_j)$. The Gaussian likelihood is exact;
    for others the Gaussian factors of the fit stand for the rows. It keeps some
    $10\,K O D^2$ numbers.

    "lookahead" and "gradient" watch a backbone learn, for `steps` steps of Adam on the mean of
    the tasks' losses $L_j$, each task's weights at their posterior mean on the present features:
    $$Z_{i \to j} = 1 - L_j(\theta - \text{lr}\,\nabla L_i) / L_j(\theta), \qquad
      \cos(\nabla L_i, \nabla L_j),$$
    averaged over the steps, $\theta$ the backbone's parameters. $L_j$ is the mean over the task's
    rows of minus the log likelihood, less its least possible value where targets are numbers. In
    a model of several families the families are the tasks, unless `family` says which.

    Args:
        model: fitted; for the last two one that is not will do: it takes the hyperparameters of
            the closed form on the backbone's first features.
        data: rows of the model's tasks, or of each family by name.
        method: see above.
        held_out: further rows of the same tasks, for "evidence" and the Gaussian likelihood.
        family: which family's tasks, where there are several.
        steps, lr: of the run.
        seed: of the run.
        progress: whether to show a progress bar.

    Returns:
        (K, K) affinities, entry (i, j) what i does for j, with `ranking()` and `groups()`.

    Raises:
        ValueError: for an unknown method, a backbone without parameters to train, rows of other
            tasks, or `held_out` where it has no meaning.
        TypeError: for "evidence" with another prior than `SharedGaussian`.
        RuntimeError: for "evidence" before a fit.

    Example:
        >>> from bmm_multitask_learning import MultitaskModel, datasets, fit, task_affinity
        >>> data, truth = datasets.make_clusters(num_tasks=12, num_clusters=3, seed=0)
        >>> model = MultitaskModel()
        >>> result = fit(model, data, progress=False)
        >>> affinity = task_affinity(model, data, progress=False)
        >>> pair = affinity.ranking()[0]
        >>> bool(truth.labels[pair.helper] == truth.labels[pair.helped])
        True
        >>> int(affinity.groups().max()) + 1
        3

    References:
        Fifty et al., Efficiently identifying task groupings for multi-task learning (2021), for
        the lookahead. Du et al., Adapting auxiliary losses using gradient similarity (2018).
    """
    if method not in ("evidence", "lookahead", "gradient"):
        raise ValueError(f'method must be "evidence", "lookahead" or "gradient"; got {method!r}.')
    if method != "evidence":
        if held_out is not None:
            raise ValueError(f'held_out is for method="evidence"; got it with {method!r}.')
        matrix, tasks = measure_steps(
            model, data, method, family=family, steps=steps, lr=lr, seed=seed, progress=progress
        )
        return TaskAffinity(matrix, method, tasks, *average_linkage(matrix))
    part = model.family(family)
    name = next(n for n, other in model.families.items() if other is part)
    root = _marginal_root(part)
    with torch.no_grad():
        known = task_statistics(model, name, data)
        factors = CentreFactors.of_tasks(known, root)
        if held_out is None:
            gains = _symmetric(factors, progress=progress)
            linkage = agglomerate(factors, gains, progress=progress)
            return TaskAffinity(_blank(gains), "evidence", part.tasks, *linkage)
        if not part.likelihood.exact:
            raise ValueError(
                "held_out needs a Gaussian likelihood: the factors that stand for the rows of a "
                f"{type(part.likelihood).__name__} have no density. Leave it out."
            )
        further = CentreFactors.of_tasks(known + task_statistics(model, name, held_out), root)
        gains = _directed(factors, further, progress=progress)
    return TaskAffinity(_blank(gains), "held-out", part.tasks, *average_linkage(gains))


def _marginal_root(part: Family) -> Tensor:
    r"""$L$ (O, D, D) with $LL^\top = S + \Sigma$."""
    prior = part.prior
    if not isinstance(prior, SharedGaussian):
        raise TypeError(
            'method="evidence" reads the population of tasks from a fit with the prior '
            f"SharedGaussian; got {type(prior).__name__}. Fit "
            "MultitaskModel(prior=SharedGaussian(), ...) to the same data for it."
        )
    if not part.tasks:
        raise RuntimeError("this model has not been fitted: call fit(model, data) first.")
    centre = prior.scatter / prior.eta["centre_precision"][..., None]
    return torch.linalg.cholesky(prior.covariance_matrix + torch.diag_embed(centre))


def task_statistics(
    model: MultitaskModel, name: str, named: TaskData | Mapping[str, TaskData]
) -> TaskStatistics:
    """The Gaussian factors of the tasks at the fit's hyperparameters."""
    part, data = model[name], model.named_data(named)[name]
    if data.tasks != part.tasks:
        raise ValueError(
            "task_affinity needs rows of the model's own tasks, in the same order; got "
            f"{len(data.tasks)} tasks where the model has {len(part.tasks)}. Take rows of the "
            "data that were fitted."
        )
    part.likelihood.check(data.y)
    rows = model.rows(name, data.to(model.device)).in_dual_form()
    start = first_factor(part.likelihood, rows, part.likelihood.eta)
    return refine(
        partial(tasks_posterior, part.prior), part.likelihood, rows, start, tolerance=_TOLERANCE
    )


def _symmetric(factors: CentreFactors, *, progress: bool) -> Array:
    K = len(factors)
    first, second = torch.triu_indices(K, K, 1, device=factors.own.device)
    gains = factors.own.new_zeros(K, K)
    gains[first, second] = pair_gains(factors, factors, (first, second), progress=progress)
    return (gains + gains.T).cpu().numpy()


def _directed(factors: CentreFactors, further: CentreFactors, *, progress: bool) -> Array:
    """What the further rows of j gain by the rows of i, where j's own first rows are known."""
    K = len(factors)
    first, second = (~torch.eye(K, dtype=torch.bool, device=factors.own.device)).nonzero().T
    gains = factors.own.new_zeros(K, K)
    gains[first, second] = pair_gains(factors, further, (first, second), progress=progress)
    return gains.cpu().numpy() - _symmetric(factors, progress=progress)


def _blank(gains: Array) -> Array:
    """A task with itself is no pair."""
    matrix = gains.copy()
    np.fill_diagonal(matrix, np.nan)
    return matrix
