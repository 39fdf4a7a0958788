r"""Weights of losses as what is known of each head's precision: a Gamma posterior.

$$p(y \mid \lambda_j) \propto \lambda_j^{\nu_j} e^{-\lambda_j \ell_j}, \qquad
  \lambda_j \sim \mathrm{Gamma}(a_0, b_0), \qquad
  q(\lambda_j) = \mathrm{Gamma}\big(a_0 + \nu_j n_j,\; b_0 + E_q[S_j]\big)$$

with $\ell$ the loss of one target and $S_j$ the sum of head j's over its $n_j$ targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from scipy.stats import gamma
from torch import Tensor

from .loss_weighting import Kind, LossWeighting, check_losses, powers

# Cross-entropy below ν / 10 earns no more weight.
_CROSS_ENTROPY_CAP = 10.0


@final
class VariationalLossWeighting(LossWeighting):
    r"""Each loss weighs as the posterior mean of its head's precision says.

    $$w_j = \frac{n_j}{\bar n}\,\langle\lambda_j\rangle, \qquad
      \langle\lambda_j\rangle = \frac{a_0 + \nu_j n_j}{b_0 + n_j \bar L_j}$$

    $\bar L_j$, the mean loss over all rows, is not known while rows come in batches. The natural
    gradient of the bound is the way from what is believed to what a batch says, so a step of
    stochastic variational inference is an average with rate $\rho$:

    $$\bar L_j \leftarrow (1 - \rho)\,\bar L_j + \rho\,L_j, \qquad
      \rho = \max\Big(\frac{1}{t_j}, \frac{c_j}{n_j}, \rho_0\Big)$$

    for the $t_j$-th batch with targets of head j, $c_j$ of them: it remembers about an epoch, and
    with all rows it is the exact update.

    Of a squared error (a Gaussian, $\nu = \tfrac12$, $\lambda = 1/2\sigma^2$) and an absolute
    error (a Laplace, $\nu = 1$) the posterior is exact given $E_q[S]$. Cross-entropy to the power
    $\lambda$ is not normalised by $\lambda^\nu$: there ½ is a convention, $\lambda$ a temperature
    without intervals, and a cap keeps it from growing as the loss goes to 0.

    With $a_0 = b_0 = 0$, the default, $\langle\lambda\rangle = \nu n / S$ whatever the units; a
    head that is fitted without error then wants `rate` above 0. With $a_0, b_0 \to \infty$ it
    stays at $a_0 / b_0$.

    With `pooled`, $b_0$ is learned too, from $p(b_0) \propto 1 / b_0$: heads with few targets lean
    on the others. That is for heads in one unit.

    Args:
        kinds: what the loss of each head is: "squared", "absolute" or "cross_entropy".
        rows: $n_j$, observed training targets of each head.
        shape: $a_0 \ge 0$.
        rate: $b_0 \ge 0$, in the unit of a loss; where `pooled`, its start.
        pooled: whether $b_0$ is learned.
        smallest_step: $\rho_0$ in (0, 1]: forgets after $1/\rho_0$ steps where epochs are longer.
        cap: largest $\langle\lambda\rangle$ of a cross-entropy.

    Attributes:
        mean_loss: (J,) $\bar L_j$.
        steps: (J,) batches with targets of each head.

    Raises:
        ValueError: for arguments out of range, and for losses that are negative.

    Example:
        >>> weighting = VariationalLossWeighting(["squared", "absolute"], rows=[100, 100])
        >>> weighting.update(torch.tensor([0.5, 4.0]), torch.tensor([100, 100]))
        >>> weighting.weights(torch.tensor([0.5, 4.0]))
        tensor([1.0000, 0.2500])

    References:
        Hoffman, Blei, Wang and Paisley, Stochastic variational inference (2013), for the step;
        Kendall, Gal and Cipolla (2018), whose weights are the mode of this posterior's likelihood.
    """

    power: Tensor
    rows: Tensor
    prior_rate: Tensor
    cap: Tensor
    mean_loss: Tensor
    steps: Tensor

    def __init__(
        self,
        kinds: Sequence[Kind],
        rows: Sequence[int],
        *,
        shape: float = 0.0,
        rate: float = 0.0,
        pooled: bool = False,
        smallest_step: float = 0.01,
        cap: float = _CROSS_ENTROPY_CAP,
    ) -> None:
        super().__init__()
        power = powers(kinds)
        if len(rows) != len(kinds) or min(rows) < 1:
            raise ValueError(
                f"rows must count the targets of each of {len(kinds)} heads, at least 1; got "
                f"{list(rows)}."
            )
        if not shape >= 0 or not rate >= 0 or (pooled and not (shape > 0 and rate > 0)):
            raise ValueError(
                "shape and rate must be at least 0, and above 0 where pooled; got "
                f"{shape} and {rate}."
            )
        if not 0 < smallest_step <= 1 or not cap > 0:
            raise ValueError(
                f"smallest_step must lie in (0, 1] and cap be positive; got {smallest_step} and "
                f"{cap}."
            )
        self.shape, self.pooled, self.smallest_step = shape, pooled, smallest_step
        caps = [cap if kind == "cross_entropy" else torch.inf for kind in kinds]
        self.register_buffer("power", power)
        self.register_buffer("rows", torch.tensor(rows, dtype=torch.float64))
        self.register_buffer("prior_rate", torch.tensor(rate, dtype=torch.float64))
        self.register_buffer("cap", torch.tensor(caps, dtype=torch.float64))
        self.register_buffer("mean_loss", torch.zeros_like(power))
        self.register_buffer("steps", torch.zeros_like(power))

    def weights(self, losses: Tensor) -> Tensor:
        # a head that was never seen is believed to be as this batch shows it
        known = torch.where(self.steps > 0, self.mean_loss, losses.detach().to(self.power))
        weights = (self.rows / self.rows.mean() * self._mean(known)).to(losses)
        return weights.nan_to_num()  # a loss of 0 and a flat prior: infinite, and 0 times that

    def update(self, losses: Tensor, counts: Tensor) -> None:
        check_losses(losses, len(self.power))
        seen = counts > 0
        self.steps += seen
        step = torch.maximum(1 / self.steps.clamp(min=1), counts / self.rows)
        step = step.clamp(self.smallest_step, 1.0)
        # ρ of L̄ ← (1 - ρ) L̄ + ρ L
        self.mean_loss = torch.where(
            seen, torch.lerp(self.mean_loss, losses.to(step), step), self.mean_loss
        )
        if self.pooled:
            # q(b₀) = Gamma(J a₀, Σ⟨λ⟩), of heads that were seen
            ever = self.steps > 0
            total = (self.precision * ever).sum()
            learned = ever.sum() * self.shape / total
            self.prior_rate = torch.where(ever.any(), learned, self.prior_rate)

    @property
    def precision(self) -> Tensor:
        r"""$\langle\lambda_j\rangle$ (J,); NaN before a head is seen."""
        return torch.where(self.steps > 0, self._mean(self.mean_loss), torch.nan)

    def interval(self, coverage: float = 0.9) -> Tensor:
        r"""Credible interval of each $\lambda_j$.

        Args:
            coverage: mass inside, in (0, 1), with equal tails.

        Returns:
            (J, 2) lower and upper ends; NaN for cross-entropy, where $q(\lambda)$ is no posterior,
            and before a head is seen.

        Raises:
            ValueError: for a coverage outside (0, 1).

        Example:
            >>> weighting = VariationalLossWeighting(["squared"], rows=[50])
            >>> weighting.update(torch.tensor([0.5]), torch.tensor([50]))
            >>> weighting.interval(0.9)
            tensor([[0.6953, 1.3501]], dtype=torch.float64)
        """
        if not 0 < coverage < 1:
            raise ValueError(f"coverage must lie in (0, 1); got {coverage}.")
        a, b = (value.cpu().numpy() for value in self._posterior(self.mean_loss))
        ends = [gamma.ppf(tail, a) / b for tail in ((1 - coverage) / 2, (1 + coverage) / 2)]
        interval = torch.stack([torch.from_numpy(end) for end in ends], -1).to(self.power)
        known = (self.steps > 0) & self.cap.isinf()
        return torch.where(known[:, None], interval, torch.nan)

    def _posterior(self, mean_loss: Tensor) -> tuple[Tensor, Tensor]:
        """Shape and rate of q(λ), given the mean loss over all rows."""
        a = self.shape + self.power * self.rows
        b = self.prior_rate + self.rows * mean_loss
        return a, b

    def _mean(self, mean_loss: Tensor) -> Tensor:
        a, b = self._posterior(mean_loss)
        return torch.minimum(a / b, self.cap)
