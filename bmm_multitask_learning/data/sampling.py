"""Which rows go where: splits within and between tasks, and minibatches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class Batch(NamedTuple):
    """Rows of a minibatch; Σ_b scale_b ℓ(index_b) estimates Σ_n ℓ(n) without bias."""

    index: Tensor  # type: ignore[assignment]  # (B,) rows; hides tuple.index
    scale: Tensor  # (B,) factors


def split_rows(
    order: npt.NDArray[np.int64], counts: npt.NDArray[np.int64], fraction: float, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows of a train and a test part, drawn within each task; see `TaskData.split`.

    Args:
        order: (N,) rows sorted by task.
        counts: (K,) rows of each task.
        fraction: Share of train rows, in (0, 1).
        seed: Seed of the permutations.

    Returns:
        Train and test rows, each in ascending order.
    """
    check_fraction(fraction, "train_fraction")
    rng = np.random.default_rng(seed)
    # One permutation a task from one stream is the protocol of the published tables, so this loop
    # cannot be one vectorised draw.
    shuffled = [rng.permutation(n) for n in counts.tolist()]
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    place = np.arange(len(order)) - starts
    # Rounding keeps a product such as .29 * 100 = 28.999... from losing a row.
    train_counts = np.maximum(np.floor(np.round(fraction * counts, 9)), 1)
    is_train = place < np.repeat(train_counts, counts)
    rows = order[starts + np.concatenate(shuffled).astype(np.int64)]
    return np.sort(rows[is_train]), np.sort(rows[~is_train])


def fold_rows(
    order: npt.NDArray[np.int64], counts: npt.NDArray[np.int64], num_folds: int, seed: int
) -> npt.NDArray[np.int64]:
    """The fold of each row, dealt within each task; see `TaskData.folds`.

    Args:
        order: (N,) rows sorted by task.
        counts: (K,) rows of each task.
        num_folds: Number of folds.
        seed: Seed of the order in which rows are dealt, and of each task's first fold.

    Returns:
        (N,) fold of each row, 0..num_folds-1.
    """
    rng = np.random.default_rng(seed)
    task = np.repeat(np.arange(len(counts)), counts)
    dealt = order[np.lexsort((rng.random(len(order)), task))]
    first = rng.integers(num_folds, size=len(counts))[task]
    place = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    fold = np.empty(len(order), dtype=np.int64)
    fold[dealt] = (first + place) % num_folds
    return fold


def check_fraction(fraction: float, name: str) -> None:
    """Raise a ValueError where ``fraction`` is not strictly between 0 and 1."""
    if not 0.0 < fraction < 1.0:
        raise ValueError(f"{name} must lie strictly between 0 and 1; got {fraction}.")


def resolve_temperature(sampling: Literal["proportional", "uniform"] | float) -> float:
    """The temperature t of p_k ∝ n_k^t that a user's ``sampling`` stands for."""
    if sampling == "proportional":
        return 1.0
    if sampling == "uniform":
        return 0.0
    if isinstance(sampling, str | bool) or not 0.0 <= sampling <= 1.0:
        raise ValueError(
            'sampling must be "proportional", "uniform" or a temperature in [0, 1]; '
            f"got {sampling!r}."
        )
    return float(sampling)


def shuffled_pass(
    num_rows: int, batch_size: int, generator: torch.Generator, like: Tensor
) -> Iterator[Batch]:
    """One pass over all rows in random order, each row once: scale = N / B."""
    rows = torch.randperm(num_rows, generator=generator, device=generator.device).to(like.device)
    for index in torch.split(rows, batch_size):
        yield Batch(index, like.new_full((len(index),), num_rows / len(index)))


def tempered_draws(
    order: Tensor,
    counts: Tensor,
    batch_size: int,
    generator: torch.Generator,
    like: Tensor,
    temperature: float,
) -> Iterator[Batch]:
    """⌈N/B⌉ batches of rows drawn with replacement.

    A task by p_k ∝ n_k^t, then one of its rows uniformly: scale = n_k / (B p_k).
    """
    n = counts.to(torch.float64)
    mass = torch.where(counts > 0, n**temperature, torch.zeros_like(n))
    p = mass / mass.sum()
    cumulative = p.cumsum(0)
    last = int(counts.nonzero()[-1, 0])  # rounding of the sum must not reach an empty task
    starts = counts.cumsum(0) - counts
    for _ in range(-(-len(order) // batch_size)):
        draws = torch.rand(
            (2, batch_size), generator=generator, device=generator.device, dtype=torch.float64
        ).to(like.device)
        k = torch.searchsorted(cumulative, draws[0], right=True).clamp(max=last)
        place = torch.minimum((draws[1] * n[k]).long(), counts[k] - 1)
        yield Batch(order[starts[k] + place], (n[k] / (batch_size * p[k])).to(like.dtype))
