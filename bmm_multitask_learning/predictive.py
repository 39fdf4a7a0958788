"""From a fitted model and inputs to predictive distributions."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .backbones import find_text_encoder
from .likelihoods import Likelihood
from .places import Places
from .posterior import WeightPosterior
from .prediction import Prediction
from .roots import Roots

if TYPE_CHECKING:
    from .family import Family
    from .model import MultitaskModel


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Inputs of predictions, and what the backbone makes of them.

    Args:
        x: (N, ...) inputs where the model lies.
        outputs: of the backbone, the same for all families.
        numpy: whether they came as something else than a tensor, and predictions are NumPy arrays.
    """

    x: Tensor
    outputs: Tensor
    numpy: bool

    @classmethod
    def of(cls, model: MultitaskModel, x: Any) -> Inputs:
        """Checked inputs, the backbone run on them."""
        tensor = isinstance(x, Tensor)
        value = x if tensor else _as_tensor(model, x)
        if value.ndim < 2:
            raise ValueError(
                "x must have shape (N, ...) with one row per observation; got "
                f"{tuple(value.shape)}. For one row use x[None, :]."
            )
        if len(value) == 0:
            raise ValueError("x has no rows: give at least one.")
        if value.ndim == 2 and not value.is_floating_point():
            value = value.to(torch.float64)
        if not bool(torch.isfinite(value).all()):
            raise ValueError(
                "x has NaN or infinite entries. Impute or drop them before predicting."
            )
        value = value.to(model.device)
        with torch.no_grad():
            return cls(value, model.outputs(value), not tensor)

    def features(
        self, model: MultitaskModel, part: Family, task: Tensor
    ) -> tuple[Tensor, Places | None]:
        """Features (M, D) of the rows; where inputs hold words, which word each of them is."""
        with torch.no_grad():
            phi = model.read(part, self.outputs, self.x, task)
        check_width(part, phi)
        if phi.ndim == 2:
            return phi, None
        words = Places.of(phi)
        return words.among(phi), words


def _as_tensor(model: MultitaskModel, x: Any) -> Tensor:
    """Texts as tokens, where the backbone makes any; everything else as float64."""
    if isinstance(x, list | tuple) and x and _is_text(x[0]):
        encoder = find_text_encoder(model.backbone)
        if encoder is None:
            raise TypeError(
                "x holds texts, and this model's backbone is no text encoder. Give numbers, or "
                "fit a model with backbone=SentenceEncoder.from_pretrained(...)."
            )
        return encoder.tokens(x)
    return torch.as_tensor(np.array(x, dtype=np.float64))  # a frame's own array is read-only


def _is_text(first: Any) -> bool:
    """Whether it is a string, or a list of words."""
    words = isinstance(first, list | tuple) and len(first) > 0 and isinstance(first[0], str)
    return words or isinstance(first, str)


def as_task_labels(task: Any, num_rows: int) -> list[Hashable]:
    """One label for each row, from labels or a single label."""
    if isinstance(task, str | int) or np.ndim(task) == 0:
        return [task.item() if isinstance(task, np.generic) else task] * num_rows
    labels = task.tolist() if isinstance(task, np.ndarray | Tensor) else list(task)
    if len(labels) != num_rows:
        raise ValueError(
            f"task must be one label or {num_rows} labels, one for each row of x; got "
            f"{len(labels)}."
        )
    return labels


def predict(
    model: MultitaskModel, inputs: Inputs, task: Any, *, family: str | None, task_features: Any
) -> Prediction:
    """See `MultitaskModel.predict`."""
    part = model.family(family)
    labels = as_task_labels(task, len(inputs.x))
    index = part.index_of(labels).to(model.device)
    unknown = list(
        dict.fromkeys(label for label, i in zip(labels, index.tolist(), strict=True) if i < 0)
    )
    posterior = part.weights
    if unknown:
        shown = ", ".join(repr(label) for label in unknown[:3]) + (
            ", ..." if len(unknown) > 3 else ""
        )
        warnings.warn(
            f"{len(unknown)} task(s) outside the fit ({shown}): predictions are the population's, "
            "and wider. With rows of these tasks, call model.adapt(data) first.",
            UserWarning,
            stacklevel=3,
        )
        population = part.prior.condense(new_tasks(part, unknown, task_features))
        posterior = concatenate(posterior, population)
        place = {label: len(part.tasks) + i for i, label in enumerate(unknown)}
        full = torch.tensor(
            [place.get(label, i) for label, i in zip(labels, index.tolist(), strict=True)],
            device=model.device,
        )
    else:
        full = index
    phi, words = inputs.features(model, part, full)
    if words is not None:
        full, index = full[words.text], index[words.text]
    with torch.no_grad():
        mean, variance = model.latent(posterior, phi, inputs.x, full)
        log_weights = posterior.log_weights[full]
        mixture, law = part.likelihood.predictive(log_weights, mean, variance, index)
    known = index >= 0
    return Prediction(
        known=known.cpu().numpy() if inputs.numpy else known,
        words=words,
        _log_weights=mixture,
        _law=law,
        _latent=(log_weights.exp(), mean, variance),
        _probability=_class_probability(part.likelihood),
        _numpy=inputs.numpy,
    )


def _class_probability(likelihood: Likelihood) -> Callable[[Tensor], Tensor] | None:
    """Probabilities of classes at the present hyperparameters, which a later fit leaves alone."""
    if not likelihood.classes:
        return None
    return functools.partial(likelihood.probability, theta=likelihood.eta)


def check_width(part: Family, phi: Tensor) -> None:
    """A ValueError unless features (..., D) are as many as in the fit."""
    if phi.shape[-1] != part.sizes.num_features:
        raise ValueError(
            f"x must give {part.sizes.num_features} features, as in the fit; got "
            f"{phi.shape[-1]}. Are the columns the same, in the same order?"
        )


def new_tasks(part: Family, labels: list[Hashable], task_features: Any) -> WeightPosterior:
    """Law of the weights of tasks outside the fit."""
    features = None
    if task_features is not None:
        if isinstance(task_features, Mapping):
            missing = [label for label in labels if label not in task_features]
            if missing:
                raise ValueError(f"task_features has no row for the new task {missing[0]!r}.")
            task_features = np.stack([np.asarray(task_features[label]) for label in labels])
        features = torch.as_tensor(np.asarray(task_features)).to(part.prior.scatter)
        wanted = (len(labels), part.sizes.num_task_features)
        if features.shape != wanted:
            raise ValueError(
                f"task_features must have shape {wanted}, a row for each new task in order of "
                f"first appearance; got {tuple(features.shape)}."
            )
    return part.prior.population(part.draws, part.posterior, features, len(labels))


def concatenate(first: WeightPosterior, second: WeightPosterior) -> WeightPosterior:
    """The posteriors of two sets of tasks as one."""
    first, second = _same_columns(first, second), _same_columns(second, first)
    return dataclasses.replace(
        first,
        log_weights=torch.cat([first.log_weights, second.log_weights]),
        means=torch.cat([first.means, second.means]),
        roots=Roots(
            torch.cat([first.roots.own, second.roots.own]),
            torch.cat([first.roots.common, second.roots.common]),
        ),
    )


def _same_columns(posterior: WeightPosterior, other: WeightPosterior) -> WeightPosterior:
    """Pad components with weight 0, and roots with columns of 0, to the size of `other`."""
    C = max(posterior.means.shape[1], other.means.shape[1]) - posterior.means.shape[1]
    own, common = posterior.roots.own, posterior.roots.common
    R = max(own.shape[-1], other.roots.own.shape[-1]) - own.shape[-1]
    S = max(common.shape[-1], other.roots.common.shape[-1]) - common.shape[-1]
    pad = torch.nn.functional.pad
    return dataclasses.replace(
        posterior,
        log_weights=pad(posterior.log_weights, (0, C), value=-torch.inf),
        means=pad(posterior.means, (0, 0, 0, 0, 0, C)),
        roots=Roots(
            pad(own, (0, R, 0, 0, 0, 0, 0, C)),
            pad(common, (0, S, 0, 0, 0, 0, 0, C)),
        ),
    )
