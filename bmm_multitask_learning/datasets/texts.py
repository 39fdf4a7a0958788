"""Texts with labels and splits, before an encoder has read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["LabelledTexts", "read_lines", "split_at_random"]

_PARTS = ("train", "dev", "test")


@dataclass(frozen=True, eq=False, repr=False)
class LabelledTexts:
    """N texts, each of one class, one corpus and one part of it.

    Attributes:
        texts: the N texts.
        labels: (N,) class numbers 0 .. C-1.
        classes: names of the C classes.
        corpus: (N,) name of the corpus a text is of, the task in most uses.
        split: (N,) "train", "dev" or "test".

    Example:
        >>> data = LabelledTexts(
        ...     ("good", "bad", "fine"), np.array([1.0, 0.0, 1.0]), ("negative", "positive"),
        ...     np.array(["shop"] * 3), np.array(["train", "train", "test"]),
        ... )
        >>> data.part("train").texts
        ('good', 'bad')
        >>> data
        LabelledTexts(3 texts, 2 classes, train 2, test 1)
    """

    texts: tuple[str, ...]
    labels: NDArray[np.float64]
    classes: tuple[str, ...]
    corpus: NDArray[np.str_]
    split: NDArray[np.str_]

    def part(self, name: str) -> LabelledTexts:
        """Texts of one split.

        Raises:
            ValueError: the corpus has no split of that name.
        """
        rows = rows_of_split(self.split, name)
        return LabelledTexts(
            tuple(self.texts[row] for row in rows),
            self.labels[rows],
            self.classes,
            self.corpus[rows],
            self.split[rows],
        )

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        sizes = split_sizes(self.split)
        return f"LabelledTexts({len(self)} texts, {len(self.classes)} classes, {sizes})"


def rows_of_split(split: NDArray[np.str_], name: str) -> NDArray[np.int64]:
    """Row numbers of one part, at least one."""
    rows = np.flatnonzero(split == name)
    if not len(rows):
        raise ValueError(f"the split must be one of {split_sizes(split)}; got {name!r}.")
    return rows


def split_sizes(split: NDArray[np.str_]) -> str:
    """Names and sizes of the parts that there are."""
    sizes = ((name, int((split == name).sum())) for name in _PARTS)
    return ", ".join(f"{name} {size}" for name, size in sizes if size)


def split_at_random(groups: Sequence[str] | NDArray[np.int64]) -> NDArray[np.str_]:
    """A fixed split of 70, 10 and 20 % of the groups: rows of one group stay together.

    The groups in sorted order are permuted by `numpy.random.default_rng(0)`.

    Args:
        groups: (N,) what group each row is of.

    Returns:
        (N,) "train", "dev" or "test".
    """
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    place = np.random.default_rng(0).permutation(len(names))[index]
    return np.array(_PARTS)[
        np.searchsorted([0.7 * len(names), 0.8 * len(names)], place, side="right")
    ]


def read_lines(path: Path) -> list[str]:
    """Lines of a file that is UTF-8 but for lines that are Windows-1252."""
    return [_decoded(line) for line in path.read_bytes().split(b"\n")]


def _decoded(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        return line.decode("cp1252")
