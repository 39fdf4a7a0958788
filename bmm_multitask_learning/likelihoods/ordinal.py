"""Ordered classes through a cumulative link, by SVI."""

from __future__ import annotations

from typing import Literal, final

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution

from ..hyperparameters import Eta
from .likelihood import Likelihood, Rows, no_classes

# Where the outermost classes end: beyond any latent, and short of -1e9, from where on torch's
# gradient of log_ndtr is wrong.
_FAR = 1e6
# Of L-BFGS, to the start; and the standard deviation of latents before rows are seen.
_STEPS, _SPREAD = 30, 2.0


@final
class Ordinal(Likelihood):
    r"""$P(y_n \le c) = G(\kappa_c - f_n)$: one latent cut into O ordered classes.

    $G$ is the logistic function or the normal distribution's, $\kappa_0 < \dots < \kappa_{O-2}$
    are the same for all tasks. Fitted by `SVI` or `NUTS`; there is no closed form.

    The cut points have the law that a flat one of the classes' shares $\pi$ at $f = 0$ gives them,
    $$\pi \sim \mathrm{Dirichlet}(1, \dots, 1), \qquad
      \kappa_c = G^{-1}(\pi_0 + \dots + \pi_c),$$
    which is proper and keeps them in order. A constant among the features moves all of a task's
    cut points together.

    Args:
        num_classes: O, at least 2. Targets are 0 .. O-1.
        link: "logit" or "probit".

    Raises:
        ValueError: for fewer than 2 classes, or another `link`.

    References:
        McCullagh, Regression models for ordinal data (1980), eq. 2.4.

    Example:
        >>> Ordinal(5)
        Ordinal(num_classes=5, link='logit')
    """

    class_shares: Tensor

    classes = True

    def __init__(self, num_classes: int, link: Literal["logit", "probit"] = "logit") -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2; got {num_classes}.")
        if link not in ("logit", "probit"):
            raise ValueError(f'link must be "logit" or "probit"; got {link!r}.')
        self.num_classes = num_classes
        self.link = link

    @property
    def cut_points(self) -> Tensor:
        r"""(O-1,) $\kappa$, on the scale of the latents, rising."""
        return self._cut_points(self.eta)

    def num_outputs(self, y: Tensor) -> int:
        if y.ndim > 1:
            raise ValueError(
                f"Ordinal takes one target a row, y of shape (N,); got {tuple(y.shape)}. Give "
                "class numbers, or the targets as families or tasks of their own."
            )
        return 1

    def check(self, y: Tensor) -> None:
        """Raise a ValueError unless every observed target is one of 0 .. O-1."""
        wrong = no_classes(y, self.num_classes)
        if len(wrong):
            raise ValueError(
                f"Ordinal(num_classes={self.num_classes}) targets must be whole numbers "
                f"0..{self.num_classes - 1} in their order; got {wrong[0].item():g}. Number the "
                "classes from the lowest to the highest."
            )

    def register_hyperparameters(self, like: Tensor) -> None:
        share = like.new_full((self.num_classes,), 1 / self.num_classes)
        self.register_buffer("class_shares", share)

    def hyperprior(self) -> Eta:
        law = dist.Dirichlet(torch.ones_like(self.class_shares))
        return {"class_shares": pyro.sample("class_shares", law)}

    def initialise(self, rows: Rows) -> None:
        # the scale of cut points and latents together moves slowly by gradients of either: both
        # start from one regression for all tasks, by a ridge that keeps many features from fitting
        # few rows exactly
        one = torch.ones_like(self.class_shares)
        count = one.index_add(0, rows.y[:, 0].long(), rows.weight[:, 0])
        simplex = self.transforms["class_shares"]
        phi = rows.phi.detach()
        size = (rows.weight * phi.square()).sum(0).div(rows.weight.sum()).sqrt()
        with torch.enable_grad():
            shares = simplex.inv(count / count.sum()).requires_grad_()
            weights = torch.zeros_like(size).requires_grad_()
            optimiser = torch.optim.LBFGS(
                [weights, shares], max_iter=_STEPS, line_search_fn="strong_wolfe"
            )

            def loss() -> Tensor:
                optimiser.zero_grad()
                f = (phi @ (weights / size.clamp(min=1e-30)))[:, None, None]
                theta = {"class_shares": simplex(shares)}
                value = 0.5 * (size > 0).sum() / _SPREAD**2 * weights.square().sum()
                value = value - self.log_prob(rows, f, theta).sum()
                # the flat law of the shares, in the unconstrained space where the fit moves
                value = value - theta["class_shares"].log().sum()
                value.backward()
                return value

            optimiser.step(loss)
        self.set_eta({"class_shares": simplex(shares.detach())})

    def conditional(self, f: Tensor, task: Tensor, theta: Eta) -> Distribution:
        logits = self._log_masses(f, theta)
        return torch.distributions.Categorical(logits=logits, validate_args=False)

    def log_prob(self, rows: Rows, f: Tensor, theta: Eta) -> Tensor:
        edges, label = self._edges(theta), rows.y.long()
        return rows.weight * self._log_mass(edges[label] - f[..., 0], edges[label + 1] - f[..., 0])

    def probability(self, f: Tensor, theta: Eta) -> Tensor:
        return self._log_masses(f, theta).exp()

    def _log_masses(self, f: Tensor, theta: Eta) -> Tensor:
        """Log probabilities (..., O) of the classes at latents f (..., 1)."""
        edges = self._edges(theta) - f
        return self._log_mass(edges[..., :-1], edges[..., 1:])

    def _edges(self, theta: Eta) -> Tensor:
        """(O+1,) where classes begin and end; the outermost ones finite, and beyond any latent."""
        cuts = self._cut_points(theta)
        far = cuts.new_full((1,), _FAR)
        return torch.cat([-far, cuts, far])

    def _cut_points(self, theta: Eta) -> Tensor:
        shares = theta["class_shares"]
        below = shares.cumsum(-1)[:-1]
        above = shares.flip(-1).cumsum(-1).flip(-1)[1:]
        if self.link == "logit":
            return below.log() - above.log()
        tail = torch.special.ndtri(torch.minimum(below, above))  # of .999.. digits would be lost
        return torch.where(below < above, tail, -tail)

    def _log_mass(self, low: Tensor, high: Tensor) -> Tensor:
        """log( G(high) − G(low) )."""
        # = log( G(−low) − G(−high) ): of the two, the one in the lower tail loses no digits
        mirror = high + low > 0
        high, low = torch.where(mirror, -low, high), torch.where(mirror, -high, low)
        top = self._log_cdf(high)
        ratio = (self._log_cdf(low) - top).clamp(max=-torch.finfo(top.dtype).tiny)
        # log G(high) + log( 1 − G(low)/G(high) )
        return top + (-torch.expm1(ratio)).log()

    def _log_cdf(self, value: Tensor) -> Tensor:
        if self.link == "logit":
            return torch.nn.functional.logsigmoid(value)
        return torch.special.log_ndtr(value)
