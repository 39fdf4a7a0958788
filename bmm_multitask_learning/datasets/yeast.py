"""Functional classes of yeast genes: 14 yes-or-no labels on shared inputs.

Elisseeff and Weston (2001), "A kernel method for multi-labelled classification", NIPS 14.
"""

from __future__ import annotations

import os

import numpy as np
from scipy.io.arff import loadarff

from bmm_multitask_learning.data import TaskData
from bmm_multitask_learning.datasets.remote_file import RemoteFile

__all__ = ["fetch_yeast"]

_URL = "https://raw.githubusercontent.com/daricyang/Mutli-tagging/675778d17641a4eae6aa6d66d533971737715a3f/data/"
TRAIN, TEST = (
    RemoteFile("yeast", name, sha256, _URL + name)
    for name, sha256 in (
        (
            "yeast-train.arff",
            "04e317497bafdd3710a996cbecdf375efe23019dd32a534fef8373fd870ce81e",
        ),
        (
            "yeast-test.arff",
            "12c2c2d84bbff103e5f66d29dad2cfa84eb736d537c434668debb96bf6a5842e",
        ),
    )
)
NUM_FEATURES = 103


def fetch_yeast(data_home: str | os.PathLike[str] | None = None) -> tuple[TaskData, TaskData]:
    """Expression profiles of 2417 genes, with the standard split.

    Target: 1 where the gene has the function, else 0.

    Features (D = 103): expression levels and phylogenetic profile, unnamed in the file, the same
    rows for all tasks. No constant is among them.

    Args:
        data_home: folder with `yeast/yeast-train.arff` and `yeast/yeast-test.arff`; else
            `$BMM_DATA_HOME`, pooch's cache, and a download of 2.4 MB.

    Returns:
        (train, test) of 14 tasks "class 1" to "class 14", of 1500 and 917 rows each.

    Raises:
        ValueError: a file found has other bytes than expected.
        ConnectionError: it is not here and cannot be downloaded.

    Example:
        >>> train, test = fetch_yeast("data")  # doctest: +SKIP
        >>> train.num_tasks, train.x.shape  # doctest: +SKIP
        (14, torch.Size([21000, 103]))
    """
    return _read(TRAIN, data_home), _read(TEST, data_home)


def _read(file: RemoteFile, data_home: str | os.PathLike[str] | None) -> TaskData:
    records, _ = loadarff(file.path(data_home))
    table = np.array(records.tolist(), dtype=np.float64)
    labels = table[:, NUM_FEATURES:]
    return TaskData.from_multioutput(
        table[:, :NUM_FEATURES],
        labels,
        tasks=[f"class {number}" for number in range(1, labels.shape[1] + 1)],
    )
