"""Predictive distributions: mixtures of the likelihood's conditionals over q(W)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from .places import Places

if TYPE_CHECKING:
    pass

_BISECTIONS = 60


@dataclasses.dataclass(frozen=True)
class Prediction:
    r"""$p(y_n \mid x_n, D)$ of N rows; NumPy arrays if the inputs were NumPy, tensors otherwise.

    For real-valued targets `mean`, `std`, `interval` and `quantile` speak of the target, noise
    included. For classes `mean` is the probability averaged over q(W) — (N,) for Bernoulli, (N, O)
    for Categorical and Ordinal — and `interval` is a credible interval of the probability itself.

    The O axis is dropped where O = 1.
    """

    known: Any
    """(N,) False for rows of tasks outside the fit."""
    words: Places | None
    """In a family of words: the text and the place of each row."""
    _log_weights: Tensor
    _law: Distribution
    _latent: tuple[Tensor, Tensor, Tensor]
    _probability: Callable[[Tensor], Tensor] | None
    """Of classes at latents (..., O); None where targets are no classes."""
    _numpy: bool

    @property
    def mean(self) -> Any:
        """(N,) or (N, O)."""
        return self._out(self._mean())

    @property
    def std(self) -> Any:
        """Standard deviation of the target, noise included, (N,) or (N, O)."""
        mean = self._mean()
        if self._probability is not None:
            return self._out((mean * (1 - mean)).sqrt())
        component = self._law.mean
        square = self._law.variance + (component - mean[:, None]).square()
        return self._out(self._average(square).sqrt())

    @property
    def latent_mean(self) -> Any:
        """Mean of the latent $f_n$, (N,) or (N, O)."""
        weight, mean, _ = self._latent
        return self._out(torch.einsum("nc,nco->no", weight, mean))

    @property
    def latent_std(self) -> Any:
        """Standard deviation of the latent $f_n$, without noise, (N,) or (N, O)."""
        weight, mean, variance = self._latent
        average = torch.einsum("nc,nco->no", weight, mean)
        square = variance + (mean - average[:, None]).square()
        return self._out(torch.einsum("nc,nco->no", weight, square).sqrt())

    def interval(self, coverage: float = 0.9) -> Any:
        """Central interval, (N, 2) or (N, O, 2): lower and upper."""
        if not 0 < coverage < 1:
            raise ValueError(f"coverage must lie between 0 and 1; got {coverage}.")
        tail = 0.5 * (1 - coverage)
        ends = [self._quantile(level) for level in (tail, 1 - tail)]
        return self._out(torch.stack(ends, -1), drop=1)

    def quantile(self, level: float) -> Any:
        """Quantile of the target (of the probability, for classes), (N,) or (N, O)."""
        if not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1; got {level}.")
        return self._out(self._quantile(level))

    def log_prob(self, y: Any) -> Any:
        """Log predictive density or mass of targets (N,) or (N, O); NaN where y is NaN.

        In a family of words, targets may be (texts, W) as in the fit; the result has a value a
        word.
        """
        y = torch.as_tensor(np.asarray(y) if self._numpy else y).to(self._log_weights)
        if self.words is not None and y.ndim == 2:
            y = self.words.among(y)
        missing = y.isnan()
        safe = torch.where(missing, 0.0, y)
        single = y.ndim == 1
        if isinstance(self._law, torch.distributions.Categorical):
            values = self._law.log_prob(safe[:, None])
            total = (self._log_weights + values).logsumexp(1)
        else:
            values = self._law.log_prob((safe[:, None] if single else safe)[:, None])
            total = (self._log_weights[..., None] + values).logsumexp(1)
            total = total[:, 0] if single else total
        total = torch.where(missing, torch.nan, total)
        return total.cpu().numpy() if self._numpy else total

    def sample(self, num_samples: int, *, seed: int = 0) -> Any:
        """Draws of the target, (num_samples, N) or (num_samples, N, O).

        Rows are drawn independently: for joint draws of what tasks share, see `model.weights`.
        """
        with torch.random.fork_rng(devices=_cuda(self._log_weights)):
            torch.manual_seed(seed)
            draws = self._law.sample((num_samples,))  # (S, N, J) or (S, N, J, O)
            component = torch.multinomial(self._log_weights.exp(), num_samples, replacement=True).T
        index = component[..., None]
        if draws.ndim == 4:
            index = index[..., None].expand(-1, -1, -1, draws.shape[-1])
        chosen = draws.gather(2, index)[:, :, 0]
        chosen = chosen[..., 0] if chosen.ndim == 3 and chosen.shape[-1] == 1 else chosen
        return chosen.cpu().numpy() if self._numpy else chosen

    def _mean(self) -> Tensor:
        if isinstance(self._law, torch.distributions.Categorical):
            return torch.einsum("nj,njo->no", self._log_weights.exp(), self._law.probs)
        return self._average(self._law.mean)

    def _average(self, value: Tensor) -> Tensor:
        return torch.einsum("nj,njo->no", self._log_weights.exp(), value)

    def _quantile(self, level: float) -> Tensor:
        if self._probability is not None:
            return self._probability_quantile(level, self._probability)
        spread = 40 * self._law.stddev
        lower = (self._law.mean - spread).amin(1)
        upper = (self._law.mean + spread).amax(1)
        weight = self._log_weights.exp()
        value = _bisect(
            lambda y: torch.einsum("nj,njo->no", weight, self._law.cdf(y[:, None])),
            level,
            lower,
            upper,
        )
        support = self._law.support
        return value.round() if support is not None and support.is_discrete else value

    def _probability_quantile(
        self, level: float, probability: Callable[[Tensor], Tensor]
    ) -> Tensor:
        weight, mean, variance = self._latent
        std = variance.sqrt()
        if isinstance(self._law, torch.distributions.Categorical):
            draws = _latent_draws(weight, mean, std)  # (S, N, O)
            return torch.quantile(probability(draws), level, dim=0)
        normal = torch.distributions.Normal(mean, std.clamp(min=1e-12), validate_args=False)
        lower, upper = (mean - 40 * std).amin(1), (mean + 40 * std).amax(1)
        latent = _bisect(
            lambda f: torch.einsum("nc,nco->no", weight, normal.cdf(f[:, None])),
            level,
            lower,
            upper,
        )
        return probability(latent)

    def _out(self, value: Tensor, drop: int = 0) -> Any:
        axis = value.ndim - 1 - drop
        if value.shape[axis] == 1 and axis == 1:
            value = value.squeeze(axis)
        return value.cpu().numpy() if self._numpy else value


def _bisect(cdf: Any, level: float, lower: Tensor, upper: Tensor) -> Tensor:
    for _ in range(_BISECTIONS):
        middle = 0.5 * (lower + upper)
        below = cdf(middle) < level
        lower, upper = torch.where(below, middle, lower), torch.where(below, upper, middle)
    return upper


def _latent_draws(weight: Tensor, mean: Tensor, std: Tensor, num_samples: int = 1000) -> Tensor:
    """Draws (S, N, O) of mixtures of Gaussians, the same seed for every call."""
    generator = torch.Generator(mean.device).manual_seed(0)
    component = torch.multinomial(weight, num_samples, replacement=True, generator=generator).T
    row = torch.arange(len(mean), device=mean.device)
    noise = torch.randn(
        num_samples, *mean[:, 0].shape, dtype=mean.dtype, device=mean.device, generator=generator
    )
    return mean[row, component] + std[row, component] * noise


def _cuda(value: Tensor) -> list[torch.device]:
    return [value.device] if value.device.type == "cuda" else []
