"""Which rows go where: splits within and between tasks."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


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
