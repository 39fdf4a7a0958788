r"""Columns whose parameters are alike, as the prior believes, and how much the data decide.

$$\theta_{lj} \sim N(\bar\theta_l, \tau_l^{-1} I), \qquad \tau_l \sim \mathrm{Gamma}(a, b)$$
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from ..backbone import Backbone
from ..parameter_prior import ParameterPrior
from .towers import Activation, TowerLayers, after_one

# the hyperprior of τ, worth two observations of a spread of .1
_SHAPE, _RATE = 1.0, 0.01
# log s at the start
_LOG_SPREAD = -6.0


@final
class SoftSharing(Backbone, ParameterPrior):
    r"""J columns, each an `MLP`, alike: $\theta_{lj} \sim N(\bar\theta_l, \tau_l^{-1} I)$.

    $\theta_{lj} = \bar\theta_l + \delta_{lj}$ are the weights and biases of layer l of column j;
    $\bar\theta_l$ is learned as it is. With `strength` given it is every $\tau_l$, and `SVI` adds
    to the bound

    $$\log p(\delta) = -\frac{\tau}{2} \sum_{lj} \|\delta_{lj}\|^2,$$

    the penalty of soft sharing. Without, the data decide: the density of $\delta$ and $\tau$
    together is largest where all columns are one, nearly whatever the data, so the differences
    have a law $q(\delta) = N(\mu, \mathrm{diag}\, s^2)$ from which each step draws. `SVI` adds
    $-KL(q \,\|\, p)$, and $\tau_l$ is the value at which that is largest,

    $$\tau_l = \frac{n_l + 2(a - 1)}{\sum_j E\|\delta_{lj}\|^2 + 2b},$$

    with $n_l$ differences, $a = 1$, $b = .01$. Predictions take the means, and so does the bound
    that `fit` reports, which compares with nothing. All columns start as one, `MLP(seed=seed)`.
    Read by `OwnColumn` or `Column`.

    Args:
        in_features: width of the inputs.
        hidden: widths of the layers; the last is the number of features without the constant.
        num_columns: J.
        strength: $\tau$; None: by the data.
        activation: one of "tanh", "relu", "gelu".
        seed: of the initial weights.
        dtype: of the parameters.

    Raises:
        ValueError: for a strength that is not positive, no columns, and what `MLP` refuses.

    Example:
        >>> network = SoftSharing(3, [8, 5], num_columns=4)
        >>> network(torch.zeros(2, 3, dtype=torch.float64)).shape, network.precision.shape
        (torch.Size([2, 4, 6]), torch.Size([2]))
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int],
        *,
        num_columns: int,
        strength: float | None = None,
        activation: Activation = "tanh",
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        if strength is not None and not 0 < strength < math.inf:
            raise ValueError(f"strength must be positive and finite, or None; got {strength}.")
        self._arguments = {
            "in_features": in_features,
            "hidden": list(hidden),
            "num_columns": num_columns,
            "strength": strength,
            "activation": activation,
        }
        if num_columns < 1:
            raise ValueError(f"num_columns must be at least 1; got {num_columns}.")
        self.num_columns = num_columns
        self.strength = strength
        self.centre = TowerLayers(
            in_features, hidden, 1, activation=activation, seed=seed, dtype=dtype
        )
        # weights (J, in, out) of every layer, then biases (J, out)
        shapes = [p.expand(num_columns, *p.shape[1:]) for p in self._centres()]
        self.offsets = nn.ParameterList(torch.zeros_like(p) for p in shapes)
        lawful = [] if strength is not None else shapes
        self.log_spreads = nn.ParameterList(torch.full_like(p, _LOG_SPREAD) for p in lawful)

    def arguments(self) -> dict[str, Any]:
        return self._arguments

    @property
    def precision(self) -> Tensor:
        r"""$\tau$, (L,): how closely the columns' layers are held together."""
        with torch.no_grad():
            return torch.stack([self._precision(l) for l in range(len(self.centre))])

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, J, 1 + D) of inputs (N, in_features), drawn anew while it is trained."""
        pairs = zip(self._centres(), self._differences(), strict=True)
        theta, L = [centre + delta for centre, delta in pairs], len(self.centre)
        h = x[:, None].expand(-1, self.num_columns, -1)
        for weight, bias in zip(theta[:L], theta[L:], strict=True):
            h = self.centre.apply_layer(h, weight, bias)
        return after_one(h)

    def log_prior(self) -> Tensor:
        r"""$\log p(\delta)$ or $-KL(q(\delta) \,\|\, p(\delta))$, up to a constant, a scalar."""
        return torch.stack([self._log_prior(l) for l in range(len(self.centre))]).sum()

    def _log_prior(self, l: int) -> Tensor:
        tau, scatter = self._precision(l), self._scatter(l)
        if self.strength is not None:
            return -0.5 * tau * scatter
        spreads = self._of_layer(self.log_spreads, l)
        n = sum(s.numel() for s in spreads)
        # log p(τ) + E log p(δ | τ) + H[q]
        given = (_SHAPE - 1 + n / 2) * tau.log() - tau * (_RATE + scatter / 2)
        return given + torch.stack([s.sum() for s in spreads]).sum() + n / 2

    def _centres(self) -> list[Tensor]:
        return [*self.centre.weights, *self.centre.biases]

    def _differences(self) -> list[Tensor]:
        """A draw of δ while it is trained, where it has a law; its mean otherwise."""
        if not self.training or self.strength is not None:
            return list(self.offsets)
        pairs = zip(self.offsets, self.log_spreads, strict=True)
        return [mean + s.exp() * torch.randn_like(mean) for mean, s in pairs]

    def _of_layer(self, parameters: nn.ParameterList, l: int) -> list[Tensor]:
        """Those of weights and biases of layer l."""
        return [parameters[l], parameters[l + len(self.centre)]]

    def _scatter(self, l: int) -> Tensor:
        r"""$\sum_j E\|\delta_{lj}\|^2$."""
        squares = [d.square().sum() for d in self._of_layer(self.offsets, l)]
        if self.strength is None:
            squares += [(2 * s).exp().sum() for s in self._of_layer(self.log_spreads, l)]
        return torch.stack(squares).sum()

    def _precision(self, l: int) -> Tensor:
        scatter = self._scatter(l).detach()
        if self.strength is not None:
            return torch.full_like(scatter, self.strength)
        n = sum(d.numel() for d in self._of_layer(self.offsets, l))
        # τ = (n + 2 (a − 1)) / (E Σ ‖δ‖² + 2 b)
        return (n + 2 * (_SHAPE - 1)) / (scatter + 2 * _RATE)
