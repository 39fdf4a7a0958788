"""A fitted model as ArviZ's groups of named arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .data import TaskData
from .engines.program import joint_draws
from .likelihoods import Rows

if TYPE_CHECKING:
    from .family import Family
    from .model import MultitaskModel

# Latents formed at once.
_CHUNK = 2**23


def to_arviz(
    model: MultitaskModel,
    data: TaskData | None,
    *,
    num_samples: int,
    seed: int,
    family: str | None,
) -> Any:
    """See `MultitaskModel.to_arviz`."""
    try:
        import arviz
    except ImportError as error:
        raise ImportError(
            "to_arviz needs ArviZ, which is not installed; "
            "install the extra: pip install 'bmm-multitask-learning[arviz]'"
        ) from error
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1; got {num_samples}.")
    part = model.family(family)
    generator = torch.Generator(model.device).manual_seed(seed)
    with torch.no_grad():
        weights, eta = joint_draws(part, num_samples, generator)
        weights = weights.expand(-1, len(part.tasks), -1, -1)
        fixed = {**({} if eta else part.prior.eta), **part.likelihood.eta}
        drawn = {"posterior": {"weights": _drop(weights, 2), **eta}}
        given = {"constant_data": fixed}
        coords: dict[str, list[Any]] = {
            "task": list(part.tasks),
            "feature": _feature_names(data, part.sizes.num_features),
        }
        if data is not None:
            observed = data.observed.reshape(data.num_rows, -1).any(1).nonzero()[:, 0]
            rows = data.rows(observed)
            fixed["task_of_row"] = _task_of_row(part, rows)
            given["observed_data"] = {"y": rows.y}
            drawn |= _of_rows(model, part, rows.to(model.device), weights, seed)
            coords["row"] = observed.tolist()
    arrays: dict[str, Any] = {group: _arrays(values) for group, values in given.items()}
    for group, values in drawn.items():  # one chain
        arrays[group] = {name: value[None] for name, value in _arrays(values).items()}
    dims = {
        "weights": ["task", *([] if part.sizes.num_outputs == 1 else ["output"]), "feature"],
        "y": ["row"] if data is None or data.y.ndim == 1 else ["row", "target"],
        "y_row": ["row"],
        "task_of_row": ["row"],
    }
    if int(arviz.__version__.split(".")[0]) == 0:  # groups are arguments before 1.0
        return arviz.from_dict(**arrays, coords=coords, dims=dims)
    return arviz.from_dict(arrays, coords=coords, dims=dims)


def _arrays(values: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: value.cpu().numpy() for name, value in values.items()}


def _task_of_row(part: Family, data: TaskData) -> Tensor:
    """Index of each row's task among those of the fit, (N,)."""
    place = part.index_of(data.tasks)[data.task.cpu()]
    if bool((place < 0).any()):
        label = data.tasks[int(data.task.cpu()[place < 0][0])]
        raise ValueError(
            f"data has rows of a task outside the fit, {label!r}: call model.adapt first, or "
            "select the model's own tasks."
        )
    return place


def _of_rows(
    model: MultitaskModel, part: Family, data: TaskData, weights: Tensor, seed: int
) -> dict[str, dict[str, Tensor]]:
    """Draws of targets, (S, N) or (S, N, T), and log likelihoods (S, N), given the weights."""
    likelihood, theta = part.likelihood, part.likelihood.eta
    task = _task_of_row(part, data).to(model.device)
    phi = model.read(part, model.outputs(data.x), data.x, task)
    log_prob, simulated = [], []
    with torch.random.fork_rng(devices=[phi.device] if phi.device.type == "cuda" else []):
        torch.manual_seed(seed)
        every = torch.arange(len(phi), device=phi.device)
        for at in every.split(max(1, _CHUNK // weights[:, 0].numel())):
            weight = None if data.weight is None else data.weight[at]
            rows = Rows.from_targets(phi[at], data.y[at], weight, task[at], len(part.tasks))
            f = torch.einsum("nd,snod->nso", rows.phi, weights[:, rows.task])
            log_prob.append(likelihood.log_prob(rows, f, theta))
            simulated.append(likelihood.conditional(f, rows.task, theta).sample())
    y = torch.cat(simulated).transpose(0, 1).reshape(len(weights), *data.y.shape)
    name = "y" if data.y.ndim == 1 else "y_row"  # the sum over a row's targets
    return {
        "posterior_predictive": {"y": y},
        "log_likelihood": {name: torch.cat(log_prob).T},
    }


def _drop(value: Tensor, axis: int) -> Tensor:
    """Without an axis of length 1."""
    return value.squeeze(axis) if value.shape[axis] == 1 else value


def _feature_names(data: TaskData | None, num_features: int) -> list[Any]:
    """The names in the data where the features are their columns, else 0..D-1."""
    names = None if data is None else data.feature_names
    fits = names is not None and len(names) == num_features
    return list(names) if names is not None and fits else list(range(num_features))
