"""Model and guide of `SVI` as Pyro programs, and the state that its steps move."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast, final

import pyro
import torch
from pyro.contrib.autoname import scope
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor, nn
from torch.distributions import Normal

from ..backbones import LatentEncoder
from ..data import TaskData
from ..likelihoods import QuadraticLikelihood, Rows
from ..places import joined
from ..posterior import WeightPosterior
from ..processes import all_reduce_sum
from ..sites import (
    amortised_factor,
    blend,
    expected_log_prob,
    fold_statistics,
    latent_moments,
    local_factor,
    refine,
)
from ..statistics import TaskStatistics
from .guides import FamilyGuide
from .snapshots import part_of, put_back

if TYPE_CHECKING:
    from ..hyperparameters import Eta
    from ..model import MultitaskModel

Moments = tuple[Tensor, Tensor, Tensor]

_FINAL_PARTICLES = 16


@final
class VariationalProgram:
    """Model and guide as Pyro programs over one batch of rows of every family.

    Args:
        model: hyperparameters at the start.
        data: all rows.
        sites: factors of the tasks at the start.
        precision: of the backbone where it is trained; None: its own.
    """

    def __init__(
        self,
        model: MultitaskModel,
        data: Mapping[str, TaskData],
        sites: dict[str, TaskStatistics],
        precision: torch.dtype | None = None,
    ) -> None:
        self.network = model
        self.precision = precision
        self.sites = sites
        self.guide_modules = nn.ModuleDict(
            {
                name: FamilyGuide(family, len(family.prior.reduce(sites[name]).b))
                for name, family in model.families.items()
            }
        )
        own = torch.tensor(sum(part.num_rows for part in data.values()), device=model.device)
        self.num_rows = int(all_reduce_sum(own))
        self.exact = all(family.likelihood.exact for family in model.families.values())
        self.batch: dict[str, Rows] = {}
        self._last: dict[str, TaskData] = {}
        self._summaries: dict[str, Any] = {}
        self._theta: dict[str, Eta] = {}
        self._moments: dict[str, Moments] = {}
        trained = (p.requires_grad for p in model.feature_modules.parameters())
        self.fixed_features = not any(trained)
        self.encoder = _encoder(model)
        self._laws: dict[str, Normal] = {}

    @property
    def guides(self) -> dict[str, FamilyGuide]:
        """The guides of the families by name."""
        return cast(dict[str, FamilyGuide], dict(self.guide_modules.items()))

    def load(self, batch: Mapping[str, TaskData], *, shared: bool = False) -> None:
        """Run the backbone, once for all families, on the rows that the next step uses.

        Args:
            batch: rows of each family.
            shared: whether they are this process's share of all rows, see `Rows`. Those of a step
                are not: each process makes its own estimate of the bound, and gradients are
                averaged.
        """
        same = all(part is self._last.get(name) for name, part in batch.items())
        if same and self.fixed_features:
            return
        x = joined([part.x for part in batch.values()])
        outputs = self._outputs(x)
        if self.encoder is not None:
            self._laws = {name: self.encoder.law(x) for name in batch}
        sizes = [part.num_rows for part in batch.values()]
        pieces = zip(batch.items(), outputs.split(sizes), x.split(sizes), strict=True)
        for (name, part), piece, inputs in pieces:
            phi = self.network.read(self.network[name], piece, inputs, part.task)
            # all rows come again at every step: their layout by task stays
            again = part is self._last.get(name)
            blocks = self.batch[name].blocks if again else None
            rows = Rows.from_targets(phi, part.y, part.weight, part.task, part.num_tasks, blocks)
            rows = self.batch[name] = dataclasses.replace(rows, shared=shared)
            likelihood = self.network[name].likelihood
            if isinstance(likelihood, QuadraticLikelihood) and likelihood.exact:
                self._summaries[name] = likelihood.summarise(rows)
        self._last = dict(batch)

    def _outputs(self, x: Tensor) -> Tensor:
        """What the backbone makes of all rows, in `precision` where gradients will be taken."""
        if self.precision is None or not torch.is_grad_enabled():
            return self.network.outputs(x)
        with torch.autocast(x.device.type, self.precision):
            return self.network.outputs(x).float()

    def guide(self, names: Iterable[str] | None = None) -> None:
        r"""$q(\eta)$; $q(W \mid \eta)$ is integrated out of the bound in `model`."""
        for name in names or self.guides:
            guide = self.guides[name]
            with scope(prefix=name):
                guide.prior()
                guide.likelihood()

    def model(self, names: Iterable[str] | None = None) -> None:
        r"""`MultitaskModel.model` with W integrated out under $q(W \mid \eta)$.

        $$\log p(\eta) - KL\big(q(W \mid \eta) \,\|\, p(W \mid \eta)\big)
          + E_q[\log p(y \mid W)]$$

        Args:
            names: families, of which the bound is the sum; None: all.
        """
        for name in names or self.guides:
            family = self.network[name]
            self.guides[name].place(family.prior)
            with scope(prefix=name):
                eta = family.prior.hyperprior()
                theta = self._theta[name] = family.likelihood.hyperprior()
                sites = family.prior.reduce(self._sites(name))
                posterior, divergence = self.guides[name].weights(family.prior, eta, sites)
                pyro.factor("weights", -divergence)
                pyro.factor("targets", self._expected_log_likelihood(name, posterior, theta))
                if self.encoder is not None:
                    pyro.factor("codes", self._codes(self.encoder, name))

    def _sites(self, name: str) -> TaskStatistics:
        """The factors of the tasks: those that natural gradients move, or a network's."""
        family = self.network[name]
        if family.prior.classifier is None:
            return self.sites[name]
        return amortised_factor(family.prior, family.likelihood, self.batch[name])

    def _free(self) -> list[str]:
        """Families whose factors natural gradients move."""
        return [
            n for n, family in self.network.families.items() if family.prior.classifier is None
        ]

    def _codes(self, encoder: LatentEncoder, name: str) -> Tensor:
        r"""$\log p(\beta) - \sum_n KL(q(z \mid x_n) \| p(z \mid x_n, D_{\setminus t}))$."""
        rows = self.batch[name]
        # rows of a task without classes are one group
        classes = self.network[name].likelihood.classes
        group = (rows.y[:, 0] if classes else torch.zeros_like(rows.y[:, 0])).long()
        weight = rows.weight[:, 0]
        return encoder.log_prior() - encoder.divergence(self._laws[name], group, rows.task, weight)

    def _expected_log_likelihood(
        self, name: str, posterior: WeightPosterior, theta: Eta
    ) -> Tensor:
        """On statistics where the likelihood is a Gaussian factor, else row by row."""
        family, rows = self.network[name], self.batch[name]
        if name in self._summaries:
            factor = family.prior.reduce(self._factor(name, theta))
            return posterior.expected_log_factor(factor, posterior.trace(factor)).sum()
        moments = self._moments[name] = latent_moments(family.prior.expand(posterior), rows)
        return rows.sum(expected_log_prob(family.likelihood, rows, *moments, theta))

    @torch.no_grad()
    def factors(self) -> dict[str, TaskStatistics]:
        """The factors of the tasks that the last batch saw, scaled to the whole."""
        return {
            name: self._factor(name, {n: v.detach() for n, v in self._theta[name].items()})
            for name in self._free()
        }

    @torch.no_grad()
    def move_sites(self, seen: Mapping[str, TaskStatistics], rate: float) -> None:
        """Natural-gradient step of the factors towards those of `factors`."""
        for name, factor in seen.items():
            self.sites[name] = blend(self.sites[name], factor, rate)

    def _factor(self, name: str, theta: Eta) -> TaskStatistics:
        """The factor of the last batch, at the moments that the bound saw."""
        likelihood = self.network[name].likelihood
        if isinstance(likelihood, QuadraticLikelihood) and name in self._summaries:
            return likelihood.statistics(self._summaries[name], theta)
        return local_factor(likelihood, self.batch[name], *self._moments[name], theta)

    def anneal(self, done: float) -> None:
        """Set the temperature of relaxed draws after a share `done` of the steps."""
        for guide in self.guides.values():
            guide.prior.anneal(done)

    # ---- optimisation -------------------------------------------------------------------------

    def gradient_parameters(self) -> Iterator[nn.Parameter]:
        """All parameters that Adam moves."""
        yield from self.guide_modules.parameters()
        yield from self.network.feature_modules.parameters()

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of everything that a fit changes."""
        state = {f"guide.{n}": value for n, value in self.guide_modules.state_dict().items()}
        features = self.network.feature_modules.state_dict()
        state |= {f"features.{n}": value for n, value in features.items()}
        for name, family in self.network.families.items():
            state |= {f"prior.{name}.{n}": v for n, v in family.prior.kept().items()}
            state |= {f"likelihood.{name}.{n}": v for n, v in family.likelihood.kept().items()}
            site = self.sites[name]
            state |= {f"site.{name}.A": site.A, f"site.{name}.b": site.b}
            state |= {f"site.{name}.c": site.c, f"site.{name}.rows": site.rows}
        # buffers may be views of one another, as files may not hold them
        return {n: value.detach().clone() for n, value in state.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `snapshot`."""
        self.sites = put_back(self.network, state)
        self.guide_modules.load_state_dict(part_of(state, "guide."))
        self.network.feature_modules.load_state_dict(part_of(state, "features."))

    def validate(self, held_out: Mapping[str, TaskData]) -> float:
        """Mean log predictive density of held-out rows at the centre of the guide."""
        self.publish()
        self.network.feature_modules.eval()
        total, count = 0.0, 0
        for name, part in held_out.items():
            if not bool(part.observed.any()):
                continue
            labels = [part.tasks[i] for i in part.task.tolist()]
            values = self.network.predict(part.x, labels, family=name).log_prob(part.y)
            values = values[:, None] if values.ndim == 1 else values
            observed = ~values.isnan().all(-1)
            total, count = total + float(values.nansum()), count + int(observed.sum())
        self.network.feature_modules.train(not self.fixed_features)
        sums = torch.tensor([total, count], dtype=torch.float64, device=self.network.device)
        total, count = all_reduce_sum(sums).tolist()
        return total / max(count, 1)

    def publish(self) -> None:
        """Write the centre of the guide into the model's families."""
        with torch.no_grad():
            for name, family in self.network.families.items():
                guide, prior = self.guides[name], family.prior
                guide.place(prior)
                prior.set_eta(guide.prior.median())
                family.likelihood.set_eta(guide.likelihood.median())
                sites = self._sites(name)
                posterior, _ = guide.weights(prior, prior.eta, prior.reduce(sites))
                prior.settle(sites, prior.expand(posterior))
                family.set_posterior(posterior)

    def _posterior_given(self, name: str, sites: TaskStatistics) -> WeightPosterior:
        """The tasks' posterior at the centre of the guide."""
        prior = self.network.families[name].prior
        posterior, _ = self.guides[name].weights(prior, prior.eta, prior.reduce(sites))
        return prior.expand(posterior)

    @torch.no_grad()
    def renew(
        self, data: Mapping[str, TaskData], optimiser: torch.optim.Optimizer
    ) -> list[tuple[float, float]]:
        """Let priors seek anew what gradients cannot move; returns the jump of the bound, if any.

        Args:
            data: all rows.
            optimiser: forgets the momentum of what was replaced.
        """
        having = [name for name, guide in self.guides.items() if len(guide.points)]
        if not having:
            return []
        self.network.feature_modules.eval()
        before, changed = self._bound(data), False
        for name in having:
            guide, family = self.guides[name], self.network[name]
            if family.prior.renew(functools.partial(self._folds, name)):
                changed = True
                guide.follow(family.prior)
                for point in guide.points:
                    optimiser.state.pop(point, None)
        jumps = [(before, self._bound(data))] if changed else []
        self.network.feature_modules.train(not self.fixed_features)
        return jumps

    def _folds(self, name: str) -> list[TaskStatistics]:
        """See `TaskPrior.refresh`; at the centre of the guide."""
        family, rows = self.network[name], self.batch[name]
        tasks = self._posterior_given(name, self.sites[name])
        parts = fold_statistics(family.likelihood, rows, tasks)
        return [family.prior.reduce(part) for part in parts]

    def _bound(self, data: Mapping[str, TaskData]) -> float:
        """Publish; the bound on all rows."""
        self.publish()
        with pyro.validation_enabled(is_validate=False):
            if self.encoder is None:
                self.load(data, shared=True)
                elbo = TraceMeanField_ELBO(num_particles=_FINAL_PARTICLES)
                return -float(elbo.loss(self.model, self.guide))
            self.encoder.train()  # a code is drawn anew for each particle
            losses = []
            for _ in range(_FINAL_PARTICLES):
                self.load(data, shared=True)
                losses.append(TraceMeanField_ELBO().loss(self.model, self.guide))
            self.encoder.eval()
            return -float(torch.tensor(losses).mean())

    def settle(self, data: Mapping[str, TaskData]) -> float:
        """Publish with factors of all rows at the centre; returns the bound on all rows."""
        self.publish()
        with torch.no_grad(), pyro.validation_enabled(is_validate=False):
            self.load(data, shared=True)
            for name in self._free():
                condition = functools.partial(self._posterior_given, name)
                likelihood, rows = self.network[name].likelihood, self.batch[name]
                self.sites[name] = refine(condition, likelihood, rows, self.sites[name])
            return self._bound(data)

    def diagnose(self, step: int) -> str:
        """Which part of the bound is not finite, and what to try."""
        # in the order of the program: what comes first breaks what comes after
        backbone = self.network.feature_modules.named_parameters()
        parts: dict[str, Tensor] = {f"features.{n}": p for n, p in backbone}
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


def _encoder(model: MultitaskModel) -> LatentEncoder | None:
    """The backbone, if its features have a law; a ValueError where that would go unnoticed."""
    found = [m for m in model.backbone.modules() if isinstance(m, LatentEncoder)]
    if not found:
        return None
    if found[0] is not model.backbone or len(model.families) > 1:
        raise ValueError(
            "a LatentEncoder must be the backbone itself, of a model with one family; got it "
            f"within {type(model.backbone).__name__}, with {len(model.families)} families. Use "
            "its hidden= for layers before the code."
        )
    tasks = model.family().sizes.num_tasks
    if found[0].num_tasks != tasks:
        raise ValueError(
            f"the LatentEncoder was made for num_tasks={found[0].num_tasks}; the data have "
            f"{tasks}. Give it num_tasks={tasks}."
        )
    return found[0]
