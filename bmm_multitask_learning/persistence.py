"""Saved models: a folder with `config.json` and `model.safetensors`, and nothing executable."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .backbones import (
    MLP,
    Backbone,
    CachedFeatures,
    Pooled,
    SentenceEncoder,
    TransformerEncoder,
    WithConstant,
    Words,
    heads_only,
)
from .family import Family
from .hyperparameters import ProbabilisticModule
from .likelihoods import Bernoulli, Categorical, Gaussian, Ordinal, Poisson, StudentT
from .model import MultitaskModel
from .priors import (
    IndependentTasks,
    LatentHierarchy,
    PooledTasks,
    SharedGaussian,
    SparseBayesian,
    TaskClustering,
    TaskCovariance,
    TaskMean,
    VariationalWeighting,
)
from .sizes import Sizes

FORMAT = "bmm_multitask_learning"
FORMAT_VERSION = 1
CONFIG, TENSORS = "config.json", "model.safetensors"

_CLASSES: tuple[type[ProbabilisticModule], ...] = (
    *(IndependentTasks, LatentHierarchy, PooledTasks, SharedGaussian, SparseBayesian),
    *(TaskClustering, TaskCovariance, TaskMean, VariationalWeighting),
    *(Bernoulli, Categorical, Gaussian, Ordinal, Poisson, StudentT),
)
_BACKBONES: dict[str, type[nn.Module]] = {
    cls.__name__: cls
    for cls in (
        *(nn.Identity, MLP, WithConstant, SentenceEncoder, TransformerEncoder, CachedFeatures),
        *(Pooled, Words),
    )
}
_DTYPES = {str(dtype): dtype for dtype in (torch.float32, torch.float64)}


def save(model: MultitaskModel, path: str | os.PathLike[str]) -> None:
    """Write a fitted model into the folder `path`, which is made if need be.

    Each file is replaced as a whole, so that an interrupted save leaves the old one. Tensors are
    written as they would be on the CPU.

    Args:
        model: a fitted model.
        path: the folder.

    Raises:
        RuntimeError: if the model has not been fitted.
    """
    for family in model.families.values():
        if not family.tasks:
            raise RuntimeError("only a fitted model can be saved: call fit(model, data) first.")
        family.posterior  # noqa: B018  # raises where a fit did not finish
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {n: t.detach().cpu().contiguous().clone() for n, t in _tensors(model).items()}
    partial = folder / f"{TENSORS}.part"
    save_file(tensors, partial, metadata={"format": FORMAT})
    partial.replace(folder / TENSORS)
    partial = folder / f"{CONFIG}.part"
    text = json.dumps(_config(model), indent=2, ensure_ascii=False, default=_as_list)
    partial.write_text(text, encoding="utf-8")
    partial.replace(folder / CONFIG)


def load(
    path: str | os.PathLike[str],
    *,
    classes: Sequence[type[ProbabilisticModule]] = (),
    backbone: nn.Module | None = None,
) -> MultitaskModel:
    """Read a model that `MultitaskModel.save` wrote; it predicts bit for bit as it did on the CPU.

    Args:
        path: the folder.
        classes: priors and likelihoods of your own that the model uses; nothing is imported by
            the name that a file gives.
        backbone: a module of the same architecture as the saved one, if it was not the identity or
            one of this library's; it takes the saved parameters.

    Raises:
        FileNotFoundError: if the folder or one of its files is not there.
        ValueError: for a truncated, foreign or newer file, or a class that was not named.

    Example:
        >>> import tempfile
        >>> from bmm_multitask_learning import MultitaskModel, datasets, fit, load
        >>> data, truth = datasets.make_clusters(num_tasks=6, num_clusters=1, seed=0)
        >>> model = MultitaskModel()
        >>> result = fit(model, data, progress=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save(folder)
        ...     again = load(folder)
        >>> bool((again.weights.mean == model.weights.mean).all())
        True
    """
    folder = Path(path)
    config = _read_config(folder / CONFIG)
    known = {cls.__name__: cls for cls in (*_CLASSES, *classes)}
    try:
        families = {
            name: Family(
                _construct(part["prior"], known),
                _construct(part["likelihood"], known),
                reader=_reader(part),
            )
            for name, part in config["families"].items()
        }
        model = MultitaskModel(
            backbone=_backbone(config["backbone"], backbone),
            families=families,
            dtype=_DTYPES[config["dtype"]],
        )
        model.single = config["single"]
        for name, part in config["families"].items():
            _rebuild(model[name], part, model.dtype)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / CONFIG} is not a complete model description ({error}). Save the "
            "model again."
        ) from error
    _fill(model, _read_tensors(folder / TENSORS), folder / TENSORS)
    return model


# ---- config ----------------------------------------------------------------------------------


def _config(model: MultitaskModel) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "dtype": str(model.dtype),
        "single": model.single,
        "families": {
            name: {
                "prior": _describe(family.prior),
                "likelihood": _describe(family.likelihood),
                "reader": None if family.reader is None else _describe_backbone(family.reader),
                "sizes": vars(family.sizes),
                "tasks": list(family.tasks),
                "rows_per_task": list(family.rows_per_task),
            }
            for name, family in model.families.items()
        },
        # last: a tokenizer in it is long
        "backbone": _describe_backbone(model.backbone),
    }


def _describe(module: ProbabilisticModule) -> dict[str, Any]:
    arguments = module.get_params(deep=False)
    nested = {n: _describe(v) for n, v in arguments.items() if isinstance(v, ProbabilisticModule)}
    return {"class": type(module).__name__, "arguments": arguments | nested}


def _as_list(array: NDArray[Any] | Tensor) -> Any:
    """An argument that is an array, for JSON."""
    return array.tolist()


def _describe_backbone(backbone: nn.Module) -> dict[str, Any]:
    arguments = backbone.arguments() if isinstance(backbone, Backbone) else {}
    modules = {n: v for n, v in arguments.items() if isinstance(v, nn.Module)}
    plain = {n: v for n, v in arguments.items() if n not in modules}
    nested = {n: _describe_backbone(module) for n, module in modules.items()}
    return {
        "class": type(backbone).__name__,
        "arguments": plain,
        "modules": nested,
        "frozen": not any(p.requires_grad for p in backbone.parameters()),
    }


def _construct(description: dict[str, Any], known: dict[str, type[ProbabilisticModule]]) -> Any:
    name = description["class"]
    if name not in known:
        raise ValueError(
            f"the model uses the class {name}, which this library does not have. Name it: "
            f"load(path, classes=[{name}])."
        )
    arguments = {
        # a prior inside a prior
        n: _construct(v, known) if isinstance(v, dict) else v
        for n, v in description["arguments"].items()
    }
    return known[name](**arguments)


def _backbone(description: dict[str, Any], given: nn.Module | None) -> nn.Module:
    name = description["class"]
    if given is not None:
        return given
    if name not in _BACKBONES:
        raise ValueError(
            f"the model has a backbone of the class {name}: give a module of the same "
            "architecture, load(path, backbone=...), which takes the saved parameters."
        )
    # files of older releases have no modules within a backbone, and do not say whether it trains
    parts = {n: _backbone(d, None) for n, d in description.get("modules", {}).items()}
    backbone = _BACKBONES[name](**description["arguments"], **parts)
    return heads_only(backbone) if description.get("frozen", False) else backbone


def _reader(part: dict[str, Any]) -> nn.Module | None:
    description = part.get("reader")  # files of older releases have none
    return None if description is None else _backbone(description, None)


def _rebuild(family: Family, part: dict[str, Any], dtype: torch.dtype) -> None:
    """Register every tensor; the file's own shapes replace them in `_fill`."""
    sizes = Sizes(**part["sizes"])
    like = torch.zeros((), dtype=dtype)
    features = like.new_zeros(sizes.num_tasks, sizes.num_task_features)
    family.build(sizes, tuple(part["tasks"]), like, features if sizes.num_task_features else None)
    family.rows_per_task = tuple(part["rows_per_task"])


def _read_config(file: Path) -> dict[str, Any]:
    if not file.exists():
        raise FileNotFoundError(
            f"no {CONFIG} in {file.parent}: give the folder that MultitaskModel.save wrote."
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{file} is not readable JSON ({error}): truncated, or not from this library. Save "
            "the model again."
        ) from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ValueError(
            f"{file} was not written by this library. Give the folder that MultitaskModel.save "
            "wrote."
        )
    version = config.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise ValueError(
            f"{file} has format version {version}; this release reads up to {FORMAT_VERSION}. "
            "Update bmm_multitask_learning."
        )
    return config


# ---- tensors ---------------------------------------------------------------------------------


def _tensors(model: MultitaskModel) -> dict[str, Tensor]:
    # a prior inside a prior may hold the same tensor
    return dict(model.named_parameters()) | dict(model.named_buffers(remove_duplicate=False))


def _read_tensors(file: Path) -> dict[str, Tensor]:
    if not file.exists():
        raise FileNotFoundError(f"no {TENSORS} in {file.parent}: the saved model is incomplete.")
    try:
        with safe_open(file, framework="pt", device="cpu") as stored:
            return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{file} is truncated or not a safetensors file ({error}). Save the model again."
        ) from error


def _fill(model: MultitaskModel, stored: dict[str, Tensor], file: Path) -> None:
    wanted = _tensors(model)
    missing = sorted(set(wanted) - set(stored) - _optional(model))
    if missing:
        raise ValueError(
            f"{file} lacks {missing[0]!r} and does not fit {CONFIG}. Save the model again."
        )
    parameters = dict(model.named_parameters())
    for name, value in stored.items():
        owner, _, leaf = name.rpartition(".")
        try:
            module = model.get_submodule(owner)
        except AttributeError as error:
            raise ValueError(f"{file} has {name!r}, which the model does not have.") from error
        if name in parameters:
            if parameters[name].shape != value.shape:
                raise ValueError(
                    f"the backbone's {name} has shape {tuple(parameters[name].shape)}; the saved "
                    f"one has {tuple(value.shape)}. Give load(backbone=...) the architecture that "
                    "was saved."
                )
            with torch.no_grad():
                parameters[name].copy_(value)
        elif leaf in module._buffers:
            module.register_buffer(leaf, value)
        else:
            raise ValueError(f"{file} has {name!r}, which the model does not have.")


def _optional(model: MultitaskModel) -> set[str]:
    """Buffers of the backbone that PyTorch itself would not save."""
    return set(_tensors(model)) - set(model.state_dict())
