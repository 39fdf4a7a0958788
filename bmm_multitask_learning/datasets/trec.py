"""Questions and what kind of answer they ask for.

Li and Roth (2002), "Learning question classifiers", COLING.
"""

from __future__ import annotations

import os
from typing import Literal

import numpy as np

from bmm_multitask_learning.datasets.remote_file import RemoteFile
from bmm_multitask_learning.datasets.texts import LabelledTexts, read_lines

__all__ = ["fetch_trec"]

_ADDRESS = (
    "https://raw.githubusercontent.com/harvardnlp/sent-conv-torch/"
    "d61ded09c99c0199d8c5bca946cd65864de2b296/data/raw"
)
_SHA256 = {
    "train": "9e4c8bdcaffb96ed61041bd64b564183d52793a8e91d84fc3a8646885f466ec3",
    "test": "033f22c028c2bbba9ca682f68ffe204dc1aa6e1cf35dd6207f2d4ca67f0d0e8e",
}


def fetch_trec(
    kinds: Literal["coarse", "fine"] = "coarse",
    data_home: str | os.PathLike[str] | None = None,
) -> LabelledTexts:
    """5952 questions with the kind of their answer, with the standard split.

    Coarse: abbreviation, description, entity, human, location, number; ten times as many
    entities as abbreviations. Fine: 50 kinds such as "HUM:ind", 42 of them among the test
    questions. Texts and their order are the same for both.

    Ten distinct test questions are among the train questions too; they are left as they are.

    Args:
        kinds: "coarse" (6 classes) or "fine" (50).
        data_home: folder with `trec/TREC.train` and `trec/TREC.test`; else `$BMM_DATA_HOME`,
            pooch's cache, and a download of .4 MB.

    Returns:
        5452 train and 500 test questions.

    Raises:
        ValueError: `kinds` is neither, or a file found has other bytes than expected.
        ConnectionError: a file is not here and cannot be downloaded.

    Example:
        >>> fetch_trec("fine", "data")  # doctest: +SKIP
        LabelledTexts(5952 texts, 50 classes, train 5452, test 500)
    """
    if kinds not in ("coarse", "fine"):
        raise ValueError(f'kinds must be "coarse" or "fine"; got {kinds!r}.')
    texts: list[str] = []
    names: list[str] = []
    split: list[str] = []
    for part, sha256 in _SHA256.items():
        file = RemoteFile("trec", f"TREC.{part}", sha256, f"{_ADDRESS}/TREC.{part}")
        for line in filter(None, read_lines(file.path(data_home))):
            kind, _, text = line.partition(" ")
            names.append(kind if kinds == "fine" else kind.partition(":")[0])
            texts.append(text.strip())
            split.append(part)
    classes, labels = np.unique(names, return_inverse=True)
    return LabelledTexts(
        tuple(texts),
        labels.astype(np.float64),
        tuple(classes.tolist()),
        np.full(len(texts), "TREC"),
        np.array(split),
    )
