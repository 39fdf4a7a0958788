r"""Hyperparameters up the ELBO, each time at the best Gaussian factors of the targets.

$$\mathcal L(\eta) = \max_t\; E_q[\log p(D \mid W)] - KL(q \,\|\, p(W \mid \eta)) + \log p(\eta),
  \qquad q \propto p(W \mid \eta) \prod_k t_k(w_k).$$

At the best factors t the gradient of $\mathcal L$ is that of $\log \int p(W \mid \eta)
\prod_k t_k(w_k)\,dW + \log p(\eta)$ with t fixed, which the prior's closed form gives. L-BFGS
follows it: where EM takes hundreds of steps along a flat ridge, it takes tens.

References:
    Liu and Nocedal, On the limited memory BFGS method for large scale optimization (1989).
    Khan and Lin, Conjugate-computation variational inference (2017), for the factors.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, final

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # public, not exported

from ..hyperparameters import Eta, pack, unpack
from ..likelihoods import Likelihood, Rows
from ..priors import TaskPrior
from ..sites import elbo, refine, tasks_posterior
from ..statistics import TaskStatistics

# Pairs of steps and gradients that L-BFGS keeps.
_MEMORY = 20
# Loss, in sizes of the best bound, of hyperparameters that give no covariance in floating point.
_REFUSED = 1e3
# See `refine`: on the way, and at the hyperparameters found.
_TOLERANCE = 5e-3
_LAST_TOLERANCE = 2e-4

Array = npt.NDArray[np.float64]


class Reached(NamedTuple):
    """Hyperparameters, the factors at them, and their bound."""

    bound: float
    eta: Eta
    factors: TaskStatistics


@final
class ElboAscent:
    """The climb of one family's prior, from the factors of a bound.

    Args:
        prior: moved in place.
        likelihood: of the targets; it has no hyperparameters of its own.
        rows: all of them.
        factors: of the tasks. If they bound the likelihood, the climb never ends lower than that
            bound's log normaliser.
    """

    def __init__(
        self, prior: TaskPrior, likelihood: Likelihood, rows: Rows, factors: TaskStatistics
    ) -> None:
        self.prior, self.likelihood, self.rows = prior, likelihood, rows
        self.factors = factors
        self.best = Reached(self._bound(), prior.eta, factors)
        self._like = factors.b

    def climb(
        self, *, max_iter: int, tol: float, advance: Callable[[float], None]
    ) -> tuple[list[float], bool]:
        """Climb until an iteration raises the bound by less than `tol`, relative to its size.

        Returns:
            The rising bounds, and whether they converged.
        """
        history = [self.best.bound]

        def record(_: Array) -> None:
            history.append(self.best.bound)
            advance(history[-1])

        start = pack(self.prior.eta, self.prior.transforms)
        result = minimize(  # type: ignore[call-overload]  # the stubs know no maxcor
            self._loss,
            start.cpu().numpy(),
            jac=True,
            method="L-BFGS-B",
            callback=record,
            options={"maxiter": max_iter, "maxcor": _MEMORY, "ftol": tol, "gtol": 0.0},
        )
        self.prior.set_eta(self.best.eta)
        self._refine(_LAST_TOLERANCE)
        last = Reached(self._bound(), self.best.eta, self.factors)
        self.best = max(self.best, last, key=lambda reached: reached.bound)
        self.factors = self.best.factors
        return [*history, self.best.bound], bool(result.success)

    def _loss(self, x: Array) -> tuple[float, Array]:
        try:
            bound, gradient = self._evaluate(self._like.new_tensor(x))
        except (LinAlgError, ValueError):
            # a step so far that a covariance is no longer one, in floating point
            return abs(self.best.bound) * _REFUSED, np.zeros_like(x)
        if bound > self.best.bound:
            self.best = Reached(bound, self.prior.eta, self.factors)
        return -bound, -gradient.cpu().numpy()

    def _evaluate(self, x: Tensor) -> tuple[float, Tensor]:
        prior = self.prior
        with torch.no_grad():
            prior.set_eta(unpack(x, prior.eta, prior.transforms))
            self._refine(_TOLERANCE)
            bound = self._bound()
        with torch.enable_grad():
            x = x.requires_grad_()
            eta = unpack(x, prior.eta, prior.transforms)
            normaliser = prior.condition(prior.reduce(self.factors), eta).log_normaliser
            (gradient,) = torch.autograd.grad(normaliser + prior.log_hyperprior(eta), x)
        return bound, gradient

    def _refine(self, tolerance: float) -> None:
        """From the factors of the best point: those of a far trial would mislead the next one."""
        given = partial(tasks_posterior, self.prior)
        self.factors = refine(
            given, self.likelihood, self.rows, self.best.factors, tolerance=tolerance
        )

    def _bound(self) -> float:
        posterior = tasks_posterior(self.prior, self.factors)
        value = elbo(self.likelihood, self.rows, posterior, self.factors)
        return float(value + self.prior.log_hyperprior(self.prior.eta))
