"""MultitaskModel: a backbone, and families of tasks with their likelihoods and priors."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Hashable, Mapping
from typing import Any, cast, final

import numpy as np
import torch
from torch import Tensor, nn

from .adaptation import adapt
from .backbones import LatentEncoder
from .data import TaskData
from .engines.program import family_guide, family_program
from .evidence import Evidence, log_evidence
from .family import Family
from .insight import Contrast, TaskSummary, contrast, explain_tasks, ranking
from .likelihoods import Likelihood, Rows
from .posterior import WeightPosterior
from .prediction import Prediction
from .predictive import Inputs, predict
from .priors import TaskPrior
from .sizes import Sizes
from .statistics import make_blocks, task_sum


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
                probe = self.features(part.x[:2].to(device), part.task[:2].to(device), name)
            words = probe.ndim == 3
            sizes = Sizes(
                num_tasks=part.num_tasks,
                num_features=probe.shape[-1],
                num_outputs=family.likelihood.num_outputs(part.y[:, 0] if words else part.y),
                num_task_features=part.num_task_features,
            )
            features = None if part.task_features is None else part.task_features.to(like)
            family.build(sizes, part.tasks, like, features)
            count = part.rows_per_task
            if words:
                count = task_sum(part.observed.sum(1), part.task, part.num_tasks)
            family.rows_per_task = tuple(count.tolist())

    def features(self, x: Tensor, task: Tensor, name: str | None = None) -> Tensor:
        r"""$\phi(x)$ as one family sees it, in the model's dtype.

        Args:
            x: (N, ...) inputs.
            task: (N,) index of each row's task, K or more for tasks outside the fit.
            name: of the family, where there are several.

        Returns:
            (N, D), or (N, W, D) for a family of words.
        """
        return self.read(self.family(name), self.outputs(x), x, task)

    def outputs(self, x: Tensor) -> Tensor:
        """What the backbone makes of inputs (N, ...), the same for all families."""
        try:
            return self.backbone(x)
        except RuntimeError as error:
            raise ValueError(
                f"the backbone {type(self.backbone).__name__} failed on inputs of shape "
                f"{tuple(x.shape)} and {x.dtype}. Does its input width equal {x.shape[-1]}, and "
                f"are its parameters {x.dtype}? It said: {error}"
            ) from error

    def read(self, family: Family, h: Tensor, x: Tensor, task: Tensor) -> Tensor:
        """The features of one family, (N, D) or (N, W, D), of the backbone's output `h`."""
        phi = h if family.reader is None else family.reader(h, x, task)
        of_words = family.reader is not None and phi.ndim == 3
        if not (phi.ndim == 2 or of_words) or len(phi) != len(x):
            raise ValueError(
                f"the backbone must return features of shape (N, D) = ({len(x)}, D); got "
                f"{tuple(phi.shape)}. Flatten or pool its output, or give the family a reader=."
            )
        return phi.to(self.dtype)

    def latent(
        self, posterior: WeightPosterior, phi: Tensor, x: Tensor, task: Tensor
    ) -> tuple[Tensor, Tensor]:
        r"""Means and variances (N, C, O) of the latents under C components of q(W).

        A code's own variance adds $\sum_d \mathrm{var}(\phi_d)\, E[w_d^2]$.

        Args:
            posterior: of the tasks' weights.
            phi: (N, D) features of the inputs.
            x: (N, ...) inputs.
            task: (N,) index of each row's task in `posterior`.
        """
        mean, variance = posterior.latent(
            phi, make_blocks(task, len(posterior.means), phi.shape[1])
        )
        if isinstance(self.backbone, LatentEncoder):
            square = posterior.means.square() + posterior.roots.variance()
            spread = self.backbone.spread(x).to(phi)
            variance = variance + torch.einsum("nd,ncod->nco", spread, square[task])
        return mean, variance

    def rows(self, name: str, data: TaskData, *, shared: bool = False) -> Rows:
        """Features and targets of one family, as its likelihood sees them.

        Args:
            name: of the family.
            data: its rows.
            shared: whether they are this process's share of all; see `Rows`.
        """
        phi = self.features(data.x, data.task, name)
        rows = Rows.from_targets(phi, data.y, data.weight, data.task, data.num_tasks)
        return dataclasses.replace(rows, shared=shared)

    @property
    def feature_modules(self) -> nn.ModuleList:
        """The backbone and the families' readers: what turns inputs into features."""
        readers = [family.reader for family in self.families.values()]
        return nn.ModuleList([self.backbone, *(r for r in readers if r is not None)])

    # ---- the generative model -----------------------------------------------------------------

    def model(self, data: TaskData | Mapping[str, TaskData]) -> dict[str, Tensor]:
        """The whole model as a Pyro program: hyperparameters, weights, then targets.

        Sites are `family/name`; that of the weights is `family/weights`, and the only family is
        called `tasks`. A program of the user's may call this one and go on from the weights.

        Args:
            data: rows of the model's own tasks, or those of each family by name; row weights
                scale a minibatch to the whole.

        Returns:
            the weights (M, O, D) of each family, M = K unless the prior pools.
        """
        return {
            name: family_program(self[name], name, self._own_rows(name, part))
            for name, part in self.named_data(data).items()
        }

    def guide(self, data: TaskData | Mapping[str, TaskData] | None = None) -> dict[str, Tensor]:
        r"""What a fit knows, as a guide for `model`: $q(W)$, and hyperparameters at their values.

        After `NUTS`, a joint draw of hyperparameters and weights. It has no parameters.

        Args:
            data: not read; guides take what their models take.

        Returns:
            the weights (M, O, D) of each family.
        """
        return {name: family_guide(family, name) for name, family in self.families.items()}

    def _own_rows(self, name: str, data: TaskData) -> Rows:
        """Rows of one family, checked to be of its tasks."""
        if data.tasks != self[name].tasks:
            raise ValueError(
                "the program needs data on the model's own tasks, in the same order; got "
                f"{len(data.tasks)} tasks where the model has {len(self[name].tasks)}. Call "
                "fit(model, data) or model.build(data) first, and take rows of those data."
            )
        return self.rows(name, data.to(self.device))

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

        In a family of words each word is a row, text after text.

        Args:
            x: (N, ...) inputs; a list of strings, or of lists of words, where the backbone is a
                text encoder.
            task: (N,) labels, or one label for all rows. A label outside the fit gets the
                population's prediction, with one warning.
            family: which family, where there are several.
            task_features: (U, F) of the U unknown tasks in order of first appearance, or a dict by
                label, where the prior reads them.
        """
        inputs = Inputs.of(self, x)
        return predict(self, inputs, task, family=family, task_features=task_features)

    def predict_all(self, x: Any, tasks: Mapping[str, Any]) -> dict[str, Prediction]:
        """Predictions of several families at the same inputs, from one pass of the backbone.

        Args:
            x: as `predict` takes them.
            tasks: for each family wanted, (N,) labels or one label, as `predict` takes them.
        """
        inputs = Inputs.of(self, x)
        return {
            name: predict(self, inputs, task, family=name, task_features=None)
            for name, task in tasks.items()
        }

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

    def to_arviz(
        self,
        data: TaskData | None = None,
        *,
        num_samples: int = 1000,
        seed: int = 0,
        family: str | None = None,
    ) -> Any:
        r"""Draws from the posterior for ArviZ: an `InferenceData`, from ArviZ 1.0 on a `DataTree`.

        `posterior` has one chain of independent draws of `weights`, (draw, task, [output],
        feature) with labels and names as coordinates; after `NUTS` also the hyperparameters of
        each draw, in the order of its chain. Otherwise they are points, and stand in
        `constant_data`, as those of the likelihood always do. With `data`, for each row with an
        observed target: `observed_data` and `posterior_predictive` of `y`, `log_likelihood` (times
        the row's weight; called `y_row` and summed over targets where a row has several), and
        `task_of_row`, an index into `task`.

        Args:
            data: rows of known tasks.
            num_samples: number of draws; those of `NUTS` are repeated or thinned to it.
            seed: the only source of randomness.
            family: which family, where there are several.

        Raises:
            ImportError: without the extra `arviz`.
            ValueError: for rows of tasks outside the fit, or `num_samples` below 1.
        """
        from .arviz_export import to_arviz  # ArviZ and xarray are asked for by no other method

        return to_arviz(self, data, num_samples=num_samples, seed=seed, family=family)

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
