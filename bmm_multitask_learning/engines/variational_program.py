"""Model and guide of `SVI` as Pyro programs, and the state that its steps move."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast, final

import pyro
import pyro.distributions as dist
import torch
from pyro.contrib.autoname import scope
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor, nn
from torch.distributions import Distribution

from ..data import TaskData
from ..distributions import PosteriorGaussian
from ..likelihoods import Likelihood, QuadraticLikelihood, Rows
from ..posterior import WeightPosterior
from ..sites import blend, expected_log_prob, latent_moments, local_factor
from ..statistics import TaskStatistics
from .guides import FamilyGuide

if TYPE_CHECKING:
    from ..hyperparameters import Eta
    from ..model import MultitaskModel

Moments = tuple[Tensor, Tensor, Tensor]

_FINAL_PARTICLES = 16
_FINAL_ROUNDS = 5


@final
class VariationalProgram:
    """Model and guide as Pyro programs over one batch of rows of every family."""

    def __init__(
        self, model: MultitaskModel, data: Mapping[str, TaskData], sites: dict[str, TaskStatistics]
    ) -> None:
        self.network = model
        self.sites = sites
        self.guide_modules = nn.ModuleDict(
            {
                name: FamilyGuide(family, len(family.prior.reduce(sites[name]).b))
                for name, family in model.families.items()
            }
        )
        self.num_rows = sum(part.num_rows for part in data.values())
        self.exact = all(family.likelihood.exact for family in model.families.values())
        self.batch: dict[str, Rows] = {}
        self._last: dict[str, TaskData] = {}
        self._summaries: dict[str, tuple[Rows, Any]] = {}
        self._posterior: dict[str, WeightPosterior] = {}
        self._theta: dict[str, Eta] = {}
        self._law: dict[str, TorchDistribution] = {}
        self._moments: dict[str, Moments] = {}
        trained = (p.requires_grad for p in model.backbone.parameters())
        self.fixed_features = not any(trained)

    @property
    def guides(self) -> dict[str, FamilyGuide]:
        """The guides of the families by name."""
        return cast(dict[str, FamilyGuide], dict(self.guide_modules.items()))

    def load(self, batch: Mapping[str, TaskData]) -> None:
        """Run the backbone, once for all families, on the rows that the next step uses."""
        same = all(part is self._last.get(name) for name, part in batch.items())
        if same and self.fixed_features:
            return
        parts = list(batch.items())
        phi = self.network.features(torch.cat([part.x for _, part in parts]))
        pieces = phi.split([part.num_rows for _, part in parts])
        for (name, part), piece in zip(parts, pieces, strict=True):
            # all rows come again at every step: their layout by task stays
            again = part is self._last.get(name)
            blocks = self.batch[name].blocks if again else None
            self.batch[name] = Rows.from_targets(
                piece, part.y, part.weight, part.task, part.num_tasks, blocks
            )
        self._last = dict(batch)

    def guide(self) -> None:
        r"""$q(\eta)\, q(W \mid \eta)$."""
        for name, family in self.network.families.items():
            with scope(prefix=name):
                guide, prior = self.guides[name], family.prior
                eta = guide.prior()
                self._theta[name] = guide.likelihood()
                # the model's law at the same η, so built once
                law = self._law[name] = prior(eta)
                factors = guide.factors(law, prior.reduce(self.sites[name]))
                posterior = prior.condition(factors, eta)
                q = PosteriorGaussian(
                    posterior,
                    factors,
                    law if prior.closed_form else _unit(factors.b),
                    conditional=prior.closed_form,
                )
                pyro.sample("weights", q)
                self._posterior[name] = posterior

    def model(self) -> None:
        """`MultitaskModel.model`, its likelihood replaced by its expectation under the guide."""
        for name, family in self.network.families.items():
            with scope(prefix=name):
                family.prior.hyperprior()
                family.likelihood.hyperprior()
                pyro.sample("weights", self._law[name])
                rows = self.batch[name]
                moments = latent_moments(family.prior.expand(self._posterior[name]), rows)
                self._moments[name] = moments
                value = expected_log_prob(family.likelihood, rows, *moments, self._theta[name])
                pyro.factor("targets", value.sum())

    def move_sites(self, rate: float) -> None:
        """Natural-gradient step of the factors towards what the last batch saw."""
        with torch.no_grad():
            for name, family in self.network.families.items():
                theta = {n: value.detach() for n, value in self._theta[name].items()}
                new = self._factor(name, family.likelihood, self._moments[name], theta)
                self.sites[name] = blend(self.sites[name], new, rate)

    def _factor(
        self, name: str, likelihood: Likelihood, moments: Moments, theta: Eta
    ) -> TaskStatistics:
        """The factor of the last batch; sums over its rows are kept while it stays the same."""
        rows = self.batch[name]
        if not (isinstance(likelihood, QuadraticLikelihood) and likelihood.exact):
            return local_factor(likelihood, rows, *moments, theta)
        if name not in self._summaries or self._summaries[name][0] is not rows:
            self._summaries[name] = (rows, likelihood.summarise(rows))
        return likelihood.statistics(self._summaries[name][1], theta)

    # ---- optimisation -------------------------------------------------------------------------

    def optimiser(self, lr: float, weight_decay: float) -> torch.optim.Optimizer:
        """AdamW on the guide and on what the backbone has to train."""
        backbone = [p for p in self.network.backbone.parameters() if p.requires_grad]
        groups = [
            {"params": list(self.guide_modules.parameters()), "weight_decay": 0.0},
            {"params": backbone, "weight_decay": weight_decay},
        ]
        return torch.optim.AdamW([g for g in groups if g["params"]] or groups[:1], lr=lr)

    def gradient_parameters(self) -> Iterator[nn.Parameter]:
        """All parameters that Adam moves."""
        yield from self.guide_modules.parameters()
        yield from self.network.backbone.parameters()

    def snapshot(self) -> dict[str, Any]:
        """Everything that a fit changes."""
        state = {
            "guides": self.guide_modules.state_dict(),
            "backbone": self.network.backbone.state_dict(),
        }
        return {**copy.deepcopy(state), "sites": dict(self.sites)}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `snapshot`."""
        self.guide_modules.load_state_dict(state["guides"])
        self.network.backbone.load_state_dict(state["backbone"])
        self.sites = dict(state["sites"])

    def validate(self, held_out: Mapping[str, TaskData]) -> float:
        """Mean log predictive density of held-out rows at the centre of the guide."""
        self.publish()
        self.network.backbone.eval()
        total, count = 0.0, 0
        for name, part in held_out.items():
            y = part.y[:, None] if part.y.ndim == 1 else part.y
            observed = ~y.isnan().all(-1)
            if not bool(observed.any()):
                continue
            labels = [part.tasks[i] for i in part.task.tolist()]
            values = self.network.predict(part.x, labels, family=name).log_prob(part.y)
            values = values if values.ndim == 1 else values.nansum(-1)
            total, count = total + float(values[observed].sum()), count + int(observed.sum())
        self.network.backbone.train(not self.fixed_features)
        return total / max(count, 1)

    def publish(self) -> None:
        """Write the centre of the guide into the model's families."""
        with torch.no_grad():
            for name, family in self.network.families.items():
                guide, prior = self.guides[name], family.prior
                prior.set_eta(guide.prior.median())
                family.likelihood.set_eta(guide.likelihood.median())
                factors = guide.factors(prior(prior.eta), prior.reduce(self.sites[name]))
                posterior = prior.condition(factors, prior.eta)
                prior.settle(self.sites[name], prior.expand(posterior))
                family.set_posterior(posterior)

    def settle(self, data: Mapping[str, TaskData]) -> float:
        """Publish with factors of all rows at the centre; returns the bound on all rows."""
        self.publish()
        with torch.no_grad(), pyro.validation_enabled(is_validate=False):
            self.load(data)
            for _ in range(1 if self.exact else _FINAL_ROUNDS):
                for name, family in self.network.families.items():
                    moments = latent_moments(family.weights, self.batch[name])
                    likelihood = family.likelihood
                    new = self._factor(name, likelihood, moments, likelihood.eta)
                    self.sites[name] = blend(self.sites[name], new, 1.0 if self.exact else 0.5)
                self.publish()
            elbo = TraceMeanField_ELBO(num_particles=_FINAL_PARTICLES)
            return -float(elbo.loss(self.model, self.guide))

    def diagnose(self, step: int) -> str:
        """Which part of the bound is not finite, and what to try."""
        # in the order of the program: what comes first breaks what comes after
        backbone = self.network.backbone.named_parameters()
        parts: dict[str, Tensor] = {f"backbone.{n}": p for n, p in backbone}
        parts |= {f"features of {n}": rows.phi for n, rows in self.batch.items()}
        parts |= dict(self.guide_modules.named_parameters())
        parts |= {f"factor of {n}": s.A for n, s in self.sites.items()}
        broken = [name for name, value in parts.items() if not bool(torch.isfinite(value).all())]
        return (
            f"the bound became infinite or NaN at step {step}; first at: "
            f"{broken[0] if broken else 'the expected log likelihood'}. Try a smaller lr, "
            "standardised inputs and targets, or weight_decay for the backbone; see the "
            "troubleshooting page."
        )


def _unit(like: Tensor) -> Distribution:
    """The unit Gaussian that stands for a prior without closed form in its guide."""
    return dist.Normal(torch.zeros_like(like), torch.ones_like(like)).to_event(3)
