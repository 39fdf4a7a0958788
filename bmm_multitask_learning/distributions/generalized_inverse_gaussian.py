"""The generalized inverse Gaussian law of a positive number, its moments and its two limits."""

from __future__ import annotations

import functools
from typing import Any, ClassVar, NamedTuple

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all
from torch.types import _size

NO_SAMPLES = torch.Size()

# The density is integrated where its logarithm lies within 40 of the maximum: e⁻⁴⁰ < 1e-17.
_DEPTH = 40.0
_NODES = 512


class GIG(NamedTuple):
    r"""The numbers $(\omega, \chi, \varphi)$ of a `GeneralizedInverseGaussian`, to give a prior.

    Its constructors name the members that the literature has names for. $\gamma$ is a *precision*:
    what it makes of Gaussian weights is said beside each. Plain numbers, so that it can be saved,
    cloned and compared.

    Args:
        order: $\omega$.
        chi: $\chi \ge 0$, in units of $\gamma$.
        phi: $\varphi \ge 0$, in units of $1/\gamma$.

    Example:
        >>> GIG.gamma(1.5, 0.5)
        GIG(order=1.5, chi=0.0, phi=1.0)

    References:
        Archambeau, Guo and Zoeter, Sparse Bayesian multi-task learning, NIPS 24 (2011), section 2.
    """

    order: float
    chi: float
    phi: float

    @classmethod
    def gamma(cls, shape: float, rate: float) -> GIG:
        r"""$\gamma \sim \mathrm{Gamma}(a, b)$, $\chi = 0$: weights are a matrix Student-t."""
        return cls(shape, 0.0, 2 * rate)

    @classmethod
    def inverse_gamma(cls, shape: float, scale: float) -> GIG:
        r"""$1/\gamma \sim \mathrm{Gamma}(a, b)$, $\varphi = 0$: weights are a matrix Laplace."""
        return cls(-shape, 2 * scale, 0.0)

    @classmethod
    def inverse_gaussian(cls, mean: float, shape: float) -> GIG:
        r"""Mean $\mu$, shape $\lambda$: $(-\tfrac12, \lambda, \lambda/\mu^2)$."""
        return cls(-0.5, shape, shape / mean**2)

    @classmethod
    def jeffreys(cls, width: float = 1e4) -> GIG:
        r"""$p(\gamma) \propto 1/\gamma$ from 1/width to width, and falling beyond: matrix ARD.

        Jeffreys' prior itself, $\omega = \chi = \varphi = 0$, is no law: no evidence could be
        computed under it. Here $\chi = \varphi = 1/\text{width}$.
        """
        return cls(0.0, 1 / width, 1 / width)


class GeneralizedInverseGaussian(TorchDistribution):
    r"""Density $p(\gamma) \propto \gamma^{\omega - 1} e^{-\frac12(\chi/\gamma + \varphi\gamma)}$.

    Its normaliser is $2 K_\omega(\sqrt{\chi\varphi})\,(\chi/\varphi)^{\omega/2}$. Gamma
    ($\chi = 0$), inverse Gamma ($\varphi = 0$), inverse Gaussian ($\omega = -\tfrac12$) and its
    reciprocal ($\omega = \tfrac12$) are members, and so is the posterior of the precision
    $\gamma$ of any Gaussian: n values of sum of squares S make
    $(\omega + n/2, \chi, \varphi + S)$ of it. Jeffreys' prior, $(0, 0, 0)$, is not a law: take
    a Gamma or an inverse Gamma that is wide.

    In $u = \log\gamma$ the density is log-concave and decays doubly exponentially, so that the
    trapezoidal rule gives normaliser, moments and their gradients to rounding, for
    $\sqrt{\chi\varphi}$ of 0 or from 1e-6 on, and orders between -1e6 and 1e6.

    Args:
        order: (...) $\omega$; positive where $\chi = 0$, negative where $\varphi = 0$.
        chi: (...) $\chi \ge 0$, in units of $\gamma$.
        phi: (...) $\varphi \ge 0$, in units of $1/\gamma$.

    Raises:
        ValueError: where arguments are validated and out of range.

    Example:
        >>> law = GeneralizedInverseGaussian(*torch.tensor([1.5, 0.0, 1.0]))  # a Gamma
        >>> round(float(law.mean), 4)
        3.0

    References:
        Jorgensen, Statistical properties of the generalized inverse Gaussian distribution (1982).
        Devroye, Random variate generation for the generalized inverse Gaussian distribution
        (2014), for the sampler.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "order": constraints.real,
        "chi": constraints.nonnegative,
        "phi": constraints.nonnegative,
    }
    support = constraints.positive
    has_rsample = False

    def __init__(
        self, order: Tensor, chi: Tensor, phi: Tensor, *, validate_args: bool | None = None
    ) -> None:
        self.order, self.chi, self.phi = broadcast_all(order, chi, phi)
        super().__init__(self.order.shape, validate_args=validate_args)
        if self._validate_args and not bool(self._proper().all()):
            raise ValueError(
                "the law needs order > 0 where chi = 0, and order < 0 where phi = 0; got order "
                f"{self.order.tolist()}, chi {self.chi.tolist()}, phi {self.phi.tolist()}."
            )

    def expand(self, batch_shape: _size, _instance: Any = None) -> GeneralizedInverseGaussian:
        parts = (part.expand(torch.Size(batch_shape)) for part in (self.order, self.chi, self.phi))
        law = GeneralizedInverseGaussian(*parts, validate_args=False)
        # an integral, which need not be done again for each of many equal laws
        law.log_normaliser = self.log_normaliser.expand(batch_shape)
        return law

    # ---- density and moments ------------------------------------------------------------------

    def log_prob(self, value: Tensor) -> Tensor:
        kernel = (self.order - 1) * value.log() - 0.5 * (self.chi / value + self.phi * value)
        return kernel - self.log_normaliser

    @functools.cached_property
    def log_normaliser(self) -> Tensor:
        r"""$\log \int \gamma^{\omega-1} e^{-\frac12(\chi/\gamma + \varphi\gamma)}\,d\gamma$."""
        inner = self._interior
        u, log_weight = inner._nodes()
        # the integrand itself at the nodes, so that gradients pass through its parameters
        height = inner.order * u - 0.5 * (inner.chi * (-u).exp() + inner.phi * u.exp())
        value = (height + log_weight).logsumexp(0)
        # Γ(|ω|) (2/b)^|ω|  at χ = 0, b = φ, and at φ = 0, b = χ
        size, rate = self._gamma
        limit = torch.lgamma(size) - size * (0.5 * rate).log()
        return torch.where(self._is_limit, limit, value)

    @property
    def mean(self) -> Tensor:
        r"""$E[\gamma]$."""
        return self.moment(1.0)

    @property
    def mean_reciprocal(self) -> Tensor:
        r"""$E[1/\gamma]$."""
        return self.moment(-1.0)

    @property
    def variance(self) -> Tensor:
        r"""$E[\gamma^2] - E[\gamma]^2$."""
        return self.moment(2.0) - self.mean.square()

    def moment(self, power: float) -> Tensor:
        r"""$E[\gamma^p]$; infinite where the integral diverges."""
        u, share = self._interior._shares()
        centre = self._interior._log_mode()
        value = (share * (power * (u - centre)).exp()).sum(0) * (power * centre).exp()
        size, rate = self._gamma
        # E[γ^p] = Γ(a ± p) / Γ(a) (b/2)^∓p
        signed = torch.where(self.chi == 0, power, -power)
        exists = size + signed > 0
        raised = torch.where(exists, size + signed, 1.0)
        limit = torch.lgamma(raised) - torch.lgamma(size) - signed * (0.5 * rate).log()
        limit = torch.where(exists, limit.exp(), torch.inf)
        return torch.where(self._is_limit, limit, value)

    @property
    def mean_log(self) -> Tensor:
        r"""$E[\log\gamma]$."""
        u, share = self._interior._shares()
        size, rate = self._gamma
        limit = torch.digamma(size) - (0.5 * rate).log()
        limit = torch.where(self.chi == 0, limit, -limit)
        return torch.where(self._is_limit, limit, (share * u).sum(0))

    @property
    def mode(self) -> Tensor:
        r"""$(m + \sqrt{m^2 + \chi\varphi}) / \varphi$, $m = \omega - 1$."""
        return _ratio(self.order - 1, self.chi, self.phi)

    def entropy(self) -> Tensor:
        r"""$-E[\log p(\gamma)]$, in nats."""
        # 0 times an infinite moment is 0: that term is not in the density
        reciprocal = torch.where(self.chi > 0, self.chi * self.mean_reciprocal, 0.0)
        linear = torch.where(self.phi > 0, self.phi * self.mean, 0.0)
        kernel = (self.order - 1) * self.mean_log - 0.5 * (reciprocal + linear)
        return self.log_normaliser - kernel

    # ---- draws --------------------------------------------------------------------------------

    def sample(self, sample_shape: _size = NO_SAMPLES) -> Tensor:
        """Draws by rejection from a hat of one uniform piece and two exponential tails."""
        shape = self._extended_shape(sample_shape)
        with torch.no_grad():
            u = self._interior._draw(shape)
            size, rate = self._gamma
            limit = torch.distributions.Gamma(size, 0.5 * rate, validate_args=False).sample(
                torch.Size(sample_shape)
            )
            limit = torch.where(self.chi == 0, limit, 1 / limit)
            return torch.where(self._is_limit, limit, u.exp())

    def _draw(self, shape: torch.Size) -> Tensor:
        """Draws of log γ: tangents at t and −s of the concave log density bound it (Devroye)."""
        a, b = self._curvatures()
        t, s = _reach(1.0, b, a), _reach(1.0, a, b)
        right, left = _fall(t, a, b), _fall(-s, a, b)
        rate_right, rate_left = b * t.expm1() - a * (-t).expm1(), a * s.expm1() - b * (-s).expm1()
        inner_right, inner_left = t - right / rate_right, s - left / rate_left
        width = inner_right + inner_left
        total = width + 1 / rate_right + 1 / rate_left
        found = torch.full(shape, torch.nan, dtype=self.order.dtype, device=self.order.device)
        while bool(found.isnan().any()):
            piece, place, height = torch.rand(3, *shape, dtype=found.dtype, device=found.device)
            piece, tail = piece * total, -(1 - place).log()
            middle = -inner_left + width * place
            delta = torch.where(piece < width, middle, inner_right + tail / rate_right)
            delta = torch.where(
                piece < width + 1 / rate_right, delta, -inner_left - tail / rate_left
            )
            beyond = torch.where(delta > inner_right, rate_right * (delta - inner_right), 0.0)
            beyond = torch.where(delta < -inner_left, rate_left * (-inner_left - delta), beyond)
            accepted = (1 - height).log() <= beyond - _fall(delta, a, b)
            found = torch.where(found.isnan() & accepted, delta, found)
        return self._log_mode() + found

    # ---- the density of log γ -----------------------------------------------------------------

    @property
    def _is_limit(self) -> Tensor:
        return (self.chi == 0) | (self.phi == 0)

    def _proper(self) -> Tensor:
        return ((self.chi > 0) | (self.order > 0)) & ((self.phi > 0) | (self.order < 0))

    @functools.cached_property
    def _interior(self) -> GeneralizedInverseGaussian:
        """Itself, with the limits replaced by a law whose integrals exist."""
        parts = (
            torch.where(self._is_limit, 1.0, part) for part in (self.order, self.chi, self.phi)
        )
        return GeneralizedInverseGaussian(*parts, validate_args=False)

    @property
    def _gamma(self) -> tuple[Tensor, Tensor]:
        """Shape and twice the rate of γ, or of 1/γ, at the limits; 1 and 1 elsewhere."""
        size = torch.where(self._is_limit, self.order.abs(), 1.0)
        rate = torch.where(self.chi == 0, self.phi, self.chi)
        return size, torch.where(self._is_limit, rate, 1.0)

    def _log_mode(self) -> Tensor:
        """Where the density of u = log γ is largest."""
        return _ratio(self.order, self.chi, self.phi).log()

    def _curvatures(self) -> tuple[Tensor, Tensor]:
        """Of log p(u) at its mode: it falls by a h(−δ) + b h(δ), a = ½ χ e^−u, b = ½ φ e^u."""
        mode = _ratio(self.order, self.chi, self.phi)
        return 0.5 * self.chi / mode, 0.5 * self.phi * mode

    def _nodes(self) -> tuple[Tensor, Tensor]:
        """Nodes (N, ...) in u and the logarithm of their distance; constants for gradients."""
        with torch.no_grad():
            a, b = self._curvatures()
            below, above = _reach(_DEPTH, a, b), _reach(_DEPTH, b, a)
            grid = torch.linspace(0, 1, _NODES, dtype=a.dtype, device=a.device)
            grid = grid.reshape(-1, *[1] * a.ndim)
            delta = grid * (below + above) - below
            return self._log_mode() + delta, ((below + above) / (_NODES - 1)).log()

    def _shares(self) -> tuple[Tensor, Tensor]:
        """Nodes u and the probability (N, ...) of each."""
        u, _ = self._nodes()
        a, b = self._curvatures()
        return u, (-_fall(u - self._log_mode(), a, b)).softmax(0)


def _ratio(order: Tensor, chi: Tensor, phi: Tensor) -> Tensor:
    r"""$(\omega + \sqrt{\omega^2 + \chi\varphi}) / \varphi$, without cancellation."""
    root = (order.square() + chi * phi).sqrt()
    positive = order > 0
    upper = (torch.where(positive, order, 0.0) + root) / torch.where(positive, phi, 1.0)
    lower = chi / (root - torch.where(positive, -1.0, order))
    return torch.where(positive, upper, lower)


def _fall(delta: Tensor, a: Tensor, b: Tensor) -> Tensor:
    r"""$a\,h(-\delta) + b\,h(\delta)$ with $h(x) = e^x - 1 - x$."""
    return a * ((-delta).expm1() + delta) + b * (delta.expm1() - delta)


def _reach(depth: float, ahead: Tensor, behind: Tensor) -> Tensor:
    """A distance at which the log density has fallen by at least `depth`."""
    # h(x) ≥ x²/2 and h(x) ≥ (eˣ − 1)/2 ahead, h(−x) ≥ x² / (2 + x) behind, each solved for x
    steep, slow = depth / ahead, depth / behind
    far = 0.5 * (slow + (slow.square() + 8 * slow).sqrt())
    return torch.minimum(torch.minimum((2 * steep).sqrt(), 1 + (2 * steep).log1p()), far)
