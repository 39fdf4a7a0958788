"""Pictures of ten kinds of object from four sources: one task a source.

Gong, Shi, Sha and Grauman (2012), "Geodesic flow kernel for unsupervised domain adaptation",
Computer Vision and Pattern Recognition, 2066-2073.
"""

from __future__ import annotations

import os

import numpy as np
from scipy.io import loadmat

from bmm_multitask_learning.data import TaskData
from bmm_multitask_learning.datasets.remote_file import RemoteFile

__all__ = ["fetch_office_caltech10"]

_ADDRESS = (
    "https://raw.githubusercontent.com/alecamo97/Optimal-Transport-Office-Caltech-dataset/"
    "e3178ef83f02079b423200c7411b6a2f0d22e0dc/Surf"
)
_SHA256 = {
    "amazon": "df32548b994e18d364c99e1f317e1fae100597259f0423a41b90f4f68187bb1f",
    "caltech10": "4f9334c8ced489d5054de97a5fd51a61f017f3bcd1f38c9a85c6d78cb9d7bda5",
    "dslr": "44d673c68e1d07b837893aa74dba3b986e4a6cc3fd66f0dd357683bdef059216",
    "webcam": "a6a9c78b4b7181dfbb58bcfd351d4ebd737f171c31247b8884948aa156d3f700",
}


def fetch_office_caltech10(data_home: str | os.PathLike[str] | None = None) -> TaskData:
    """2533 pictures of ten kinds of object, as histograms of 800 visual words.

    Target: the kind, 0 to 9.

    Features (D = 800): how often each SURF word occurs in the picture, whole numbers.

    Args:
        data_home: folder with `office_caltech10_surf/amazon.mat` and three more; else
            `$BMM_DATA_HOME`, pooch's cache, and a download of .3 MB.

    Returns:
        Data of four tasks: "amazon" (958 rows), "caltech10" (1123), "dslr" (157), "webcam" (295).

    Raises:
        ValueError: a file found has other bytes than expected.
        ConnectionError: one is not here and cannot be downloaded.

    Example:
        >>> fetch_office_caltech10("data")  # doctest: +SKIP
        TaskData(2533 rows, 4 tasks, ...)
    """
    x, y = [], []
    for name, sha256 in _SHA256.items():
        file = RemoteFile("office_caltech10_surf", f"{name}.mat", sha256, f"{_ADDRESS}/{name}.mat")
        cells = loadmat(file.path(data_home))
        x.append(cells["fts"].astype(np.float64))
        y.append(cells["labels"].ravel().astype(np.float64) - 1)
    return TaskData(
        np.concatenate(x),
        np.concatenate(y),
        np.repeat(list(_SHA256), [len(block) for block in y]),
        tasks=list(_SHA256),
        target_names=("kind",),
    )
