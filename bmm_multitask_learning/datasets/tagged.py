"""Sentences with a BIO tag a word, and the targets that a model is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bmm_multitask_learning.datasets.texts import rows_of_split, split_sizes

__all__ = ["TaggedSentences", "align_tags", "bio_tags", "tag_targets"]


@dataclass(frozen=True, eq=False, repr=False)
class TaggedSentences:
    """N sentences of words with their entities as BIO tags.

    The first word of an entity of type X has the tag B-X, its other words I-X, words outside O.

    Attributes:
        words: the words of each sentence.
        tags: their tags.
        corpus: (N,) name of the corpus a sentence is of, the task in most uses.
        split: (N,) "train", "dev" or "test".

    Example:
        >>> data = TaggedSentences(
        ...     (("Ada", "Lovelace", "wrote"), ("Turin",)), (("B-PER", "I-PER", "O"), ("B-LOC",)),
        ...     np.array(["a", "a"]), np.array(["train", "test"]),
        ... )
        >>> data.types, data.part("test").words
        (('LOC', 'PER'), (('Turin',),))
        >>> data
        TaggedSentences(2 sentences, 4 words, types LOC, PER, train 1, test 1)
    """

    words: tuple[tuple[str, ...], ...]
    tags: tuple[tuple[str, ...], ...]
    corpus: NDArray[np.str_]
    split: NDArray[np.str_]

    @property
    def types(self) -> tuple[str, ...]:
        """Types of entities that occur, sorted."""
        return tuple(sorted({tag[2:] for row in self.tags for tag in row if tag != "O"}))

    def part(self, name: str) -> TaggedSentences:
        """Sentences of one split.

        Raises:
            ValueError: the corpus has no split of that name.
        """
        rows = rows_of_split(self.split, name)
        return TaggedSentences(
            tuple(self.words[row] for row in rows),
            tuple(self.tags[row] for row in rows),
            self.corpus[rows],
            self.split[rows],
        )

    def retyped(self, names: Mapping[str, str]) -> TaggedSentences:
        """The same sentences with types renamed; words of types without a new name become O.

        Two types may get the same name: their entities stay apart.

        Args:
            names: the new name of each type that stays.
        """

        def renamed(tag: str) -> str:
            return tag[:2] + names[tag[2:]] if tag[2:] in names else "O"

        return replace(self, tags=tuple(tuple(map(renamed, row)) for row in self.tags))

    def __len__(self) -> int:
        return len(self.words)

    def __repr__(self) -> str:
        count = sum(map(len, self.words))
        types = ", ".join(self.types) or "none"
        sizes = split_sizes(self.split)
        return f"TaggedSentences({len(self)} sentences, {count} words, types {types}, {sizes})"


def bio_tags(types: Sequence[str]) -> tuple[str, ...]:
    """Names of the 1 + 2 T tags of T types, in the order of the types.

    Example:
        >>> bio_tags(["LOC", "PER"])
        ('O', 'B-LOC', 'I-LOC', 'B-PER', 'I-PER')
    """
    return ("O", *(f"{place}-{name}" for name in types for place in "BI"))


def tag_targets(
    tags: Sequence[Sequence[str]], names: Sequence[str] | None = None
) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Tags as numbers, the targets of a family of words.

    Args:
        tags: tags of N sentences; a word whose tag is not known has None.
        names: names of the tags in their order; by default `bio_tags` of the types that occur,
            sorted. Give the train sentences' names for test sentences.

    Returns:
        y: (N, W) number of each word's tag, W the words of the longest sentence; NaN where there
            is no word, or no tag.
        names: of the tags.

    Raises:
        ValueError: a tag is none of the names.

    Example:
        >>> y, names = tag_targets([["B-PER", "I-PER", "O"], ["O"]])
        >>> y, names
        (array([[ 1.,  2.,  0.],
                [ 0., nan, nan]]), ('O', 'B-PER', 'I-PER'))
    """
    if names is None:
        names = bio_tags(sorted({tag[2:] for row in tags for tag in row if tag and tag != "O"}))
    number = {name: float(place) for place, name in enumerate(names)}
    y = np.full((len(tags), max(map(len, tags), default=0)), np.nan)
    for n, row in enumerate(tags):
        for w, tag in enumerate(row):
            if tag is None:
                continue
            if tag not in number:
                raise ValueError(
                    f"every tag must be one of {', '.join(names)}; got {tag!r} in sentence {n}, "
                    f"word {w}. Rename its type by `retyped`, or give `names` that hold it."
                )
            y[n, w] = number[tag]
    return y, tuple(names)


def align_tags(
    corpora: Sequence[TaggedSentences], types: Sequence[str] | None = None
) -> TaggedSentences:
    """One set of sentences of several corpora with the types that they have in common.

    Entities of other types become O, which is what they are in the common set. A type that one
    corpus never marks must not stay: there, its entities are O.

    Args:
        corpora: corpora, retyped where they name one type differently.
        types: the types to keep; by default those that occur in every corpus.

    Returns:
        The sentences of all, one corpus after the other.

    Raises:
        ValueError: the corpora have no type in common, or a type asked for is missing in one.

    Example:
        >>> sentence, split = (("Ada", "wrote"),), np.array(["train"])
        >>> first = TaggedSentences(sentence, (("B-PER", "O"),), np.array(["a"]), split)
        >>> second = TaggedSentences(sentence, (("B-person", "B-MISC"),), np.array(["b"]), split)
        >>> both = align_tags([first, second.retyped({"person": "PER", "MISC": "MISC"})])
        >>> both.tags, both.corpus.tolist()
        ((('B-PER', 'O'), ('B-PER', 'O')), ['a', 'b'])
    """
    common = set.intersection(*(set(part.types) for part in corpora)) if corpora else set()
    wanted = common if types is None else set(types)
    if not wanted or not wanted <= common:
        found = "; ".join(f"{part.corpus[0]}: {', '.join(part.types)}" for part in corpora)
        raise ValueError(
            f"every corpus must have each type that is kept; got {found}. Rename types by "
            "`retyped`, or give the corpora families of their own."
        )
    kept = [part.retyped({name: name for name in wanted}) for part in corpora]
    return TaggedSentences(
        tuple(row for part in kept for row in part.words),
        tuple(row for part in kept for row in part.tags),
        np.concatenate([part.corpus for part in kept]),
        np.concatenate([part.split for part in kept]),
    )
