"""fit: data into a model, by the engine that suits both."""

from __future__ import annotations

import dataclasses
import random
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch

from .data import TaskData
from .engines import NUTS, SVI, CoordinateAscent, Engine, FitResult
from .likelihoods import QuadraticLikelihood
from .model import MultitaskModel
from .processes import all_reduce_max, all_reduce_sum, num_processes, process


def fit(
    model: MultitaskModel,
    data: TaskData | Mapping[str, TaskData],
    *,
    engine: Engine | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: bool = True,
    warm_start: bool = False,
) -> FitResult:
    """Fit a model in place.

    In a process group of `torch.distributed` every process calls it with its own share of the
    rows, the same tasks and the same seed; see `processes.share`.

    Args:
        model: what to fit.
        data: a TaskData, or one for each family by name.
        engine: `CoordinateAscent()`, `SVI()` or `NUTS()`. None takes the closed form where prior
            and likelihood have one and the backbone has nothing to train, and SVI otherwise; the
            result's `engine` says which, and why.
        seed: the only source of randomness; global generators are restored afterwards.
        device: where to fit, such as "cpu" or "cuda"; the model stays there.
        progress: whether to show progress bars.
        warm_start: keep the sizes and hyperparameters of an earlier fit as the start.

    Returns:
        `FitResult`: bound, converged, history, engine, seconds.

    Raises:
        ValueError: for data that the model cannot take; the message says what to change.
        TypeError: for an engine that cannot fit this prior or likelihood.
        MemoryError: if the covariances of all tasks cannot fit, before they are allocated.
        NonFiniteBoundError: if the bound becomes infinite or NaN.

    Example:
        >>> from bmm_multitask_learning import MultitaskModel, datasets, fit
        >>> data, truth = datasets.make_clusters(num_tasks=8, seed=0)
        >>> fit(MultitaskModel(), data, progress=False).engine
        'CoordinateAscent (chosen: closed form, nothing to train in the backbone)'
    """
    started = time.perf_counter()
    named = {name: part.to(device) for name, part in model.named_data(data).items()}
    reason = ""
    if engine is None:
        engine, reason = choose_engine(model)
    with seeded(seed, device):
        model.eval()  # engines switch a backbone to training while they train it
        if not warm_start:
            model.build(named, device)
        if num_processes() > 1:
            _join(model, named, engine)
        generator = torch.Generator().manual_seed(seed)
        bars = progress and process() == 0
        result = engine.fit(model, named, generator=generator, progress=bars)
    return dataclasses.replace(
        result, engine=result.engine + reason, seconds=time.perf_counter() - started
    )


def _join(model: MultitaskModel, data: Mapping[str, TaskData], engine: Engine) -> None:
    """Check what the processes must have in common, and count the rows of all."""
    trained = any(p.requires_grad for p in model.feature_modules.parameters())
    if isinstance(engine, NUTS) or (isinstance(engine, CoordinateAscent) and trained):
        raise TypeError(
            f"{type(engine).__name__} fits {'a trainable backbone' if trained else 'a model'} in "
            "one process only; use SVI(), or call fit outside of the process group."
        )
    told = repr([(name, part.tasks, model[name].sizes) for name, part in data.items()])
    code = torch.tensor(zlib.crc32(told.encode()), device=model.device)
    if int(all_reduce_max(code)) != -int(all_reduce_max(-code)):
        raise ValueError(
            "every process must have the same tasks, in the same order, and sizes; this one has "
            f"{ {name: model[name].sizes for name in data} }. Build TaskData from all rows, and "
            "take processes.share(data)."
        )
    for family in model.families.values():
        count = torch.tensor(family.rows_per_task, device=model.device)
        family.rows_per_task = tuple(all_reduce_sum(count).tolist())


def choose_engine(model: MultitaskModel) -> tuple[Engine, str]:
    """The engine that `fit` takes by itself, and the reason in words."""
    if any(p.requires_grad for p in model.feature_modules.parameters()):
        return SVI(), " (chosen: the backbone has parameters to train)"
    for family in model.families.values():
        if not isinstance(family.likelihood, QuadraticLikelihood):
            return SVI(), f" (chosen: {type(family.likelihood).__name__} has no closed form)"
        if not family.prior.closed_form:
            return SVI(), f" (chosen: {type(family.prior).__name__} has no closed form)"
        if family.prior.amortised is not None:
            return SVI(), " (chosen: the amortised classifier is trained)"
    return CoordinateAscent(), " (chosen: closed form, nothing to train in the backbone)"


@contextmanager
def seeded(seed: int, device: str | torch.device) -> Iterator[None]:
    """Seed every global generator within, and give each its former state back."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  # to give it back
    devices = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        random.seed(seed)
        # libraries below may draw from NumPy's global generator
        np.random.seed(seed % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
