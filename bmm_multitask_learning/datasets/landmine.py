"""Radar images of 29 fields: is there a mine?

Xue, Liao, Carin and Krishnapuram (2007), "Multi-task learning for classification with Dirichlet
process priors", Journal of Machine Learning Research 8, 35-63.
"""

from __future__ import annotations

import os

import numpy as np
from scipy.io import loadmat

from bmm_multitask_learning.data import TaskData
from bmm_multitask_learning.datasets.remote_file import RemoteFile

__all__ = ["fetch_landmine"]

FILE = RemoteFile(
    folder="landmine",
    name="LandmineData.mat",
    sha256="2163ab20a80e33a8b65593c48cf283c540599dcb291105e63fa4af2ce24c2bea",
    url="https://raw.githubusercontent.com/daizhongxiang/Federated_Bayesian_Optimization/30a4548606f2ae9bc62c6bf0eb4110177aa3876a/LandmineData.mat",
)


def fetch_landmine(data_home: str | os.PathLike[str] | None = None) -> TaskData:
    """Radar features of 14820 patches in 29 fields; 6 % of them hold a mine.

    Target: 1 where there is a mine, else 0.

    Features (D = 9): of the radar image, unnamed in the file; by the paper four moments, three
    correlations, one energy ratio, one spatial variance. No constant is among them.

    Fields 1-15 are covered by foliage, 16-29 are bare earth or desert (by the paper).

    Args:
        data_home: folder with `landmine/LandmineData.mat`; else `$BMM_DATA_HOME`, pooch's cache,
            and a download of 1.1 MB.

    Returns:
        Data of 29 tasks "field 1" to "field 29", of 445 to 690 rows.

    Raises:
        ValueError: the file found has other bytes than expected.
        ConnectionError: it is not here and cannot be downloaded.

    Example:
        >>> fetch_landmine("data")  # doctest: +SKIP
        TaskData(14820 rows, 29 tasks, ...)
    """
    cells = loadmat(FILE.path(data_home))
    x = list(cells["feature"].ravel())
    y = [block.astype(np.float64).ravel() for block in cells["label"].ravel()]
    labels = [f"field {number}" for number in range(1, len(x) + 1)]
    return TaskData(
        np.concatenate(x),
        np.concatenate(y),
        np.repeat(labels, [len(block) for block in y]),
        tasks=labels,
        feature_names=tuple(f"radar {number}" for number in range(1, x[0].shape[1] + 1)),
        target_names=("mine",),
    )
