"""MultitaskModel: a backbone, and families of tasks with their likelihoods and priors."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Hashable, Mapping
from typing import Any, cast, final

import numpy as np
import torch
from torch import Tensor, nn

from .data import TaskData
from .engines.program import family_program
from .evidence import Evidence, log_evidence
from .hyperparameters import Eta
from .insight import Contrast, TaskSummary, contrast, explain_tasks, ranking
from .likelihoods import Gaussian, Likelihood, Rows
from .posterior import WeightPosterior
from .prediction import Prediction, adapt, predict
from .priors import SharedGaussian, TaskPrior
from .sizes import Sizes

_POSTERIOR = tuple(f.name for f in dataclasses.fields(WeightPosterior))
# Matrices of shape (K, O, D, D) alive at once in a fit: statistics, factor, root, shared root.
_COPIES = 5


@final
class Family(nn.Module):
    """Tasks that share a kind of output: their likelihood and their prior.

    Args:
        prior: of the tasks' weights; `SharedGaussian()` by default.
        likelihood: of the targets; `Gaussian()` by default.
    """

    prior: TaskPrior
    likelihood: Likelihood

    def __init__(
        self, prior: TaskPrior | None = None, likelihood: Likelihood | None = None
    ) -> None:
        super().__init__()
        self.prior = SharedGaussian() if prior is None else prior
        self.likelihood = Gaussian() if likelihood is None else likelihood
        self.tasks: tuple[Hashable, ...] = ()
        self.rows_per_task: tuple[int, ...] = ()

    def build(
        self, sizes: Sizes, tasks: tuple[Hashable, ...], like: Tensor, task_features: Tensor | None
    ) -> None:
        """Register every tensor, eagerly."""
        _check_memory(sizes, like)
        self.sizes = sizes
        self.tasks = tasks
        self.rows_per_task = (0,) * len(tasks)
        self.prior.build(sizes, like, task_features)
        self.likelihood.build(sizes, like)
        for name in _POSTERIOR:
            self.register_buffer(f"posterior_{name}", None)
        for name in self.prior.transforms:
            self.register_buffer(f"draws_{name}", None)

    def set_posterior(self, posterior: WeightPosterior) -> None:
        """Keep q(W)."""
        for name in _POSTERIOR:
            value = getattr(posterior, name)
            self.register_buffer(f"posterior_{name}", None if value is None else value.detach())

    @property
    def posterior(self) -> WeightPosterior:
        """q(W) of the prior's weight vectors."""
        if self._buffers.get("posterior_means") is None:
            raise RuntimeError("this model has no posterior yet: call fit(model, data) first.")
        return WeightPosterior(*(self.get_buffer(f"posterior_{name}") for name in _POSTERIOR))

    def set_draws(self, eta: Eta) -> None:
        r"""Keep draws (S, ...) of the prior's hyperparameters: predictions average over them."""
        for name, value in eta.items():
            self.register_buffer(f"draws_{name}", value)

    @property
    def draws(self) -> Eta:
        r"""Draws of $\eta$ where the engine made any, else its one value."""
        kept = {n: self.get_buffer(f"draws_{n}") for n in self.prior.transforms}
        return self.prior.eta if any(value is None for value in kept.values()) else kept

    @property
    def weights(self) -> WeightPosterior:
        """q(W) of the tasks: `.mean`, `.covariance`, `.std`, `.sample(n)`, `.interval(0.9)`."""
        return self.prior.expand(self.posterior)

    def index_of(self, tasks: Any) -> Tensor:
        """Index of each label, -1 for one outside the fit."""
        place = {label: i for i, label in enumerate(self.tasks)}
        return torch.tensor([place.get(label, -1) for label in tasks], dtype=torch.long)


@final
class MultitaskModel(nn.Module):
    r"""$f_n = \phi(x_n)^\top w_{task(n)}$, $W \sim p(W \mid \eta)$, $y_n \sim p(y \mid f_n)$.

    It standardises nothing and adds no intercept: `MultitaskRegressor` and `MultitaskClassifier`
    do. Heads and statistics are float64 unless `dtype` says otherwise.

    Args:
        prior: of the task weights; `SharedGaussian()` by default.
        likelihood: `Gaussian()` by default.
        backbone: any module from inputs (N, ...) to features (N, D); None: the inputs themselves.
        families: instead of `prior` and `likelihood`, several named `Family` objects that share
            the backbone; data and predictions are then named as well.
        dtype: of features, statistics and posteriors.

    Raises:
        ValueError: if both `families` and a prior or likelihood are given.

    Example:
        >>> from bmm_multitask_learning import MultitaskModel, TaskClustering
        >>> MultitaskModel(prior=TaskClustering(num_clusters=2)).prior.num_clusters
        2
    """

    def __init__(
        self,
        prior: TaskPrior | None = None,
        likelihood: Likelihood | None = None,
        *,
        backbone: nn.Module | None = None,
        families: Mapping[str, Family] | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        if families is not None and (prior is not None or likelihood is not None):
            raise ValueError(
                "give either families={name: Family(prior=, likelihood=)}, or prior= and "
                "likelihood=, not both."
            )
        self.single = families is None
        if families is None:
            families = {"tasks": Family(prior, likelihood)}
        if not families:
            raise ValueError("families must hold at least one Family; got none.")
        self.backbone = nn.Identity() if backbone is None else backbone
        self.family_modules = nn.ModuleDict(dict(families))
        self.dtype = dtype

    @property
    def families(self) -> dict[str, Family]:
        """The families by name."""
        return cast(dict[str, Family], dict(self.family_modules.items()))

    # ---- build --------------------------------------------------------------------------------

    def named_data(self, data: TaskData | Mapping[str, TaskData]) -> dict[str, TaskData]:
        """The data of each family by name, checked against the model's families."""
        if isinstance(data, TaskData):
            data = dict.fromkeys(self.families, data) if self.single else {}
            if not data:
                raise ValueError(
                    f"the model has the families {sorted(self.families)}: give a dict of TaskData "
                    "by family name."
                )
        if set(data) != set(self.families):
            raise ValueError(
                f"data must have one TaskData for each family {sorted(self.families)}; got "
                f"{sorted(data)}."
            )
        return {name: data[name] for name in self.families}

    def build(
        self, data: TaskData | Mapping[str, TaskData], device: torch.device | str = "cpu"
    ) -> None:
        """Register every tensor for the sizes of `data`, eagerly; `fit` calls it."""
        self.to(device)
        like = torch.zeros((), dtype=self.dtype, device=device)
        for name, part in self.named_data(data).items():
            family = self.families[name]
            if part.num_rows == 0:
                raise ValueError("the data have no rows: give at least one.")
            family.likelihood.check(part.y)
            with torch.no_grad():
                probe = self.features(part.x[:2].to(device))
            sizes = Sizes(
                num_tasks=part.num_tasks,
                num_features=probe.shape[1],
                num_outputs=family.likelihood.num_outputs(part.y),
                num_task_features=part.num_task_features,
            )
            features = None if part.task_features is None else part.task_features.to(like)
            family.build(sizes, part.tasks, like, features)
            family.rows_per_task = tuple(part.rows_per_task.tolist())

    def features(self, x: Tensor) -> Tensor:
        r"""$\phi(x)$, (N, D), in the model's dtype."""
        try:
            phi = self.backbone(x)
        except RuntimeError as error:
            raise ValueError(
                f"the backbone {type(self.backbone).__name__} failed on inputs of shape "
                f"{tuple(x.shape)} and {x.dtype}. Does its input width equal {x.shape[-1]}, and "
                f"are its parameters {x.dtype}? It said: {error}"
            ) from error
        if phi.ndim != 2 or len(phi) != len(x):
            raise ValueError(
                f"the backbone must return features of shape (N, D) = ({len(x)}, D); got "
                f"{tuple(phi.shape)}. Flatten or pool its output."
            )
        return phi.to(self.dtype)

    def rows(self, name: str, data: TaskData) -> Rows:
        """Features and targets of one family, as its likelihood sees them."""
        phi = self.features(data.x)
        return Rows.from_targets(phi, data.y, data.weight, data.task, data.num_tasks)

    # ---- the generative model -----------------------------------------------------------------

    def model(self, batch: Mapping[str, Rows]) -> dict[str, Tensor]:
        """The whole model as a Pyro program: hyperparameters, weights, then targets.

        Args:
            batch: rows of each family; row weights scale a minibatch to the whole.

        Returns:
            the weights (M, O, D) of each family, M = K unless the prior pools.
        """
        return {
            name: family_program(family, name, batch[name])
            for name, family in self.families.items()
        }

    # ---- results ------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> Family:
        """One family by name: `model["sentiment"].weights`."""
        if name not in self.families:
            raise KeyError(f"no family {name!r}; the model has {sorted(self.families)}.")
        return self.families[name]

    def family(self, name: str | None = None) -> Family:
        """The family called `name`, or the only one."""
        if name is None:
            if len(self.families) > 1:
                raise ValueError(
                    f"the model has the families {sorted(self.families)}: say which with family=."
                )
            name = next(iter(self.families))
        return self[name]

    @property
    def prior(self) -> TaskPrior:
        """The prior of the only family: its read-outs live here."""
        return self.family().prior

    @property
    def likelihood(self) -> Likelihood:
        """The likelihood of the only family."""
        return self.family().likelihood

    @property
    def weights(self) -> WeightPosterior:
        """q(W) of the only family."""
        return self.family().weights

    @property
    def tasks(self) -> tuple[Hashable, ...]:
        """Labels of the only family's tasks, in the order of every read-out."""
        return self.family().tasks

    def relations(self) -> Tensor:
        """(K, K) relations between the only family's tasks; see its prior for what they mean."""
        return self.prior.relations()

    def predict(
        self, x: Any, task: Any, *, family: str | None = None, task_features: Any = None
    ) -> Prediction:
        """Predictive distribution of the target at each row; see `Prediction`.

        Args:
            x: (N, ...) inputs.
            task: (N,) labels, or one label for all rows. A label outside the fit gets the
                population's prediction, with one warning.
            family: which family, where there are several.
            task_features: (U, F) of the U unknown tasks in order of first appearance, or a dict by
                label, where the prior reads them.
        """
        return predict(self, x, task, family=family, task_features=task_features)

    def adapt(self, data: TaskData, *, family: str | None = None) -> MultitaskModel:
        """A copy that has also seen `data`: new tasks, or more rows of known ones.

        Hyperparameters, backbone and the other tasks stay as they are: each task's weights are
        updated by its new rows alone, at the cost of one small fit.

        Args:
            data: rows of new or known tasks, with `task_features` for new ones if the prior reads
                them.
            family: which family, where there are several.
        """
        return adapt(self, data, family=family)

    def contrast(
        self, first: Hashable, second: Hashable, x: Any = None, *, family: str | None = None
    ) -> Contrast:
        """How two tasks differ: in their weights, or in their latent values at inputs `x`."""
        return contrast(self, first, second, x, family=family)

    def ranking(
        self, x: Any, *, num_samples: int = 2000, seed: int = 0, family: str | None = None
    ) -> np.ndarray:
        """(K, K) probability that task k has rank r (0: largest latent value) at input x."""
        return ranking(self, x, num_samples=num_samples, seed=seed, family=family)

    def explain_tasks(self, *, family: str | None = None) -> list[TaskSummary]:
        """What borrowing did for each task: rows, shrinkage, rows borrowed, from whom."""
        return explain_tasks(self, family=family)

    def log_evidence(self, data: TaskData | Mapping[str, TaskData]) -> Evidence:
        r"""$\log p(D \mid \hat\eta)$ of data on the same tasks, and its kind; see `Evidence`."""
        return log_evidence(self, data)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `config.json` and `model.safetensors` into the folder `path`; see `load`."""
        from .persistence import save  # persistence knows every class by name, this one included

        save(self, path)

    @property
    def device(self) -> torch.device:
        """Where the tensors lie."""
        scatter = next(iter(self.families.values())).prior._buffers.get("scatter")
        if scatter is None:
            raise RuntimeError("this model has no tensors yet: call fit(model, data) first.")
        return scatter.device


def _check_memory(sizes: Sizes, like: Tensor) -> None:
    """Refuse, before allocating, what cannot fit."""
    K, O, D = sizes.num_tasks, sizes.num_outputs, sizes.num_features
    needed = _COPIES * K * O * D * D * like.element_size()
    if like.device.type == "cuda":
        available = torch.cuda.mem_get_info(like.device)[0]
    else:
        available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > available:
        raise MemoryError(
            f"{K} tasks x {O} outputs x {D} x {D} features need about {needed / 2**30:.1f} GiB "
            f"for their covariances; {available / 2**30:.1f} GiB free on {like.device}. Reduce "
            "the features first (PCA, or a backbone with a narrower output), fit fewer tasks at "
            "once, or use dtype=torch.float32."
        )
