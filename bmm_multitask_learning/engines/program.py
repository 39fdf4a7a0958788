"""One family of tasks as a Pyro program."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyro
import torch
from pyro.contrib.autoname import scope
from torch import Tensor

from ..likelihoods import Rows

if TYPE_CHECKING:
    from ..model import Family


def family_program(family: Family, name: str, rows: Rows) -> Tensor:
    r"""$\eta \sim p(\eta)$, $\theta \sim p(\theta)$, $W \sim p(W \mid \eta)$, then the targets.

    Args:
        family: prior and likelihood.
        name: prefix of the sites.
        rows: observed rows; their weights scale a minibatch to the whole.

    Returns:
        the weights (M, O, D), M = K unless the prior pools.
    """
    with scope(prefix=name):
        eta = family.prior.hyperprior()
        theta = family.likelihood.hyperprior()
        W = pyro.sample("weights", family.prior(eta))
        own = W.expand(family.sizes.num_tasks, -1, -1)
        f = torch.einsum("nd,nod->no", rows.phi, own[rows.task])
        log_prob = family.likelihood.log_prob(rows, f[:, None], theta)
        pyro.factor("targets", log_prob.sum())
    return W
