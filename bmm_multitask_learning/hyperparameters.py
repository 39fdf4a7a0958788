"""Modules whose hyperparameters have a prior, written once in Pyro and read by every engine."""

from __future__ import annotations

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.distributions import biject_to
from torch.distributions.transforms import Transform

Eta = dict[str, Tensor]


class ProbabilisticModule(nn.Module, ABC):
    r"""A module with hyperparameters $\eta$: `hyperprior` is their law, buffers hold their value.

    A subclass registers a buffer for every site that `hyperprior` samples, under the site's name.
    """

    attributes: ClassVar[Mapping[str, str]] = {}
    """Attributes that keep an argument whose own name is taken by a method."""

    relaxed: frozenset[str] = frozenset()
    """Sites on the simplex that `SVI` draws by Gumbel-softmax; others are Gaussian."""

    def __init__(self) -> None:
        super().__init__()

    def get_params(self, deep: bool = True) -> dict[str, Any]:  # noqa: FBT001, FBT002  # scikit-learn's
        """The constructor's arguments, as scikit-learn's `clone` and `GridSearchCV` ask for them.

        Args:
            deep: without effect; no argument has parameters of its own.
        """
        parameters = list(inspect.signature(type(self).__init__).parameters.values())[1:]
        named = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        return {name: getattr(self, self.attributes.get(name, name)) for name in named}

    def set_params(self, **params: Any) -> Self:
        """Construct anew with some arguments changed; fitted values are dropped.

        Raises:
            ValueError: for a name that is no argument of the constructor, or a value it refuses.
        """
        known = self.get_params()
        unknown = sorted(set(params) - set(known))
        if unknown:
            raise ValueError(
                f"{type(self).__name__} has no parameter {unknown[0]!r}; it has {sorted(known)}."
            )
        fresh = type(self)(**{**known, **params})
        self.__dict__.clear()  # nothing derived from the old arguments stays, cached or registered
        self.__dict__.update(fresh.__dict__)
        return self

    def extra_repr(self) -> str:
        """The constructor's arguments, for `repr`."""
        names = inspect.signature(type(self)).parameters
        places = {name: self.attributes.get(name, name) for name in names}
        kept = {name: at for name, at in places.items() if at in self.__dict__}
        return ", ".join(f"{name}={self.__dict__[at]!r}" for name, at in kept.items())

    @abstractmethod
    def hyperprior(self) -> Eta:
        r"""Sample $\eta$ with `pyro.sample`, and return it by site name."""

    @property
    def eta(self) -> Eta:
        r"""The current value of $\eta$."""
        return {name: self.get_buffer(name) for name in self.transforms}

    def set_eta(self, eta: Eta) -> None:
        r"""Make $\eta$ the current value."""
        for name, value in eta.items():
            self.get_buffer(name)  # an unknown name is an AttributeError
            self.register_buffer(name, value.detach().clone())

    def kept(self) -> dict[str, Tensor]:
        """Every buffer, those of a module within among them, for `put_back`."""
        return dict(self.named_buffers(remove_duplicate=False))

    def put_back(self, buffers: Mapping[str, Tensor]) -> None:
        """Make what `kept` gave the present state again; sizes may have changed since."""
        for name, value in buffers.items():
            path, _, leaf = name.rpartition(".")
            self.get_submodule(path).register_buffer(leaf, value)

    @functools.cached_property
    def transforms(self) -> dict[str, Transform]:
        """For each site of `hyperprior`, the map from unconstrained space to its support."""
        with torch.random.fork_rng(), pyro.validation_enabled(is_validate=False):
            trace = poutine.trace(self.hyperprior).get_trace()
        return {n: biject_to(_law(trace, n).support) for n in trace.stochastic_nodes}

    def log_hyperprior(self, eta: Eta) -> Tensor:
        r"""$\log p(\eta)$, a scalar."""
        with pyro.validation_enabled(is_validate=False):
            handler = poutine.condition(self.hyperprior, data=eta)
            trace = poutine.trace(handler).get_trace()
        terms = [_law(trace, name).log_prob(value).sum() for name, value in eta.items()]
        return torch.stack(terms).sum() if terms else torch.zeros(())


def _law(trace: poutine.Trace, site: str) -> Any:
    """The distribution of a site."""
    return trace.nodes[site]["fn"]


def pack(values: Eta, transforms: dict[str, Transform]) -> Tensor:
    r"""$\eta$ as one unconstrained vector."""
    return torch.cat([transforms[n].inv(v).flatten() for n, v in values.items()])


def unpack(vector: Tensor, like: Eta, transforms: dict[str, Transform]) -> Eta:
    r"""The inverse of `pack`; `like` gives names, order and shapes."""
    shapes = {n: transforms[n].inverse_shape(v.shape) for n, v in like.items()}
    pieces = vector.split([shape.numel() for shape in shapes.values()])
    return {
        n: transforms[n](piece.reshape(shapes[n])) for n, piece in zip(like, pieces, strict=True)
    }


def climb(
    module: ProbabilisticModule, objective: Callable[[Eta], Tensor], eta: Eta, steps: int
) -> Eta:
    r"""$\eta$ after L-BFGS steps up an objective and $\log p(\eta)$; never lower.

    Args:
        module: whose hyperparameters they are.
        objective: of $\eta$, a scalar.
        eta: where to start.
        steps: L-BFGS iterations, at most.
    """
    transforms = module.transforms
    with torch.enable_grad():
        free = pack(eta, transforms).requires_grad_()
        optimiser = torch.optim.LBFGS([free], max_iter=steps, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimiser.zero_grad()
            moved = unpack(free, eta, transforms)
            value = -(objective(moved) + module.log_hyperprior(moved))
            value.backward()
            return value

        before = optimiser.step(loss)
        after = loss()
    return unpack(free.detach(), eta, transforms) if bool(after <= before) else eta
