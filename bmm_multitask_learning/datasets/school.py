"""Exam scores of 15362 pupils in 139 schools: the field's standard regression data.

Inner London Education Authority, 1985-87; in the form used since Bakker and Heskes (2003) and
Argyriou, Evgeniou and Pontil (2008), as released with the MALSAR toolbox.
"""

from __future__ import annotations

import os

import numpy as np
from scipy.io import loadmat

from bmm_multitask_learning.data import TaskData
from bmm_multitask_learning.datasets.remote_file import RemoteFile

__all__ = ["fetch_school"]

FILE = RemoteFile(
    folder="school",
    name="school_malsar.mat",
    sha256="57fb3238fdd03a9aa17276e2ce18d9bbb5d128c3261e794fe6233b58b6909068",
    url="https://raw.githubusercontent.com/jiayuzhou/MALSAR/fb9751594983df020ddc4f7e4a40520ee7c37989/data/school.mat",
)

FEATURE_NAMES = (
    *(f"year {number}" for number in (1, 2, 3)),
    "% free meals",
    "% top band",
    "girl",
    "boy",
    "bottom band",
    "top band",
    "middle band",
    *(f"ethnic group {number}" for number in range(1, 12)),
    "mixed school",
    "boys' school",
    "girls' school",
    *(f"denomination {number}" for number in (1, 2, 3)),
)


def fetch_school(data_home: str | os.PathLike[str] | None = None) -> TaskData:
    """Exam scores of 15362 pupils in 139 schools.

    Target: exam score, 1 to 70 points.

    Features (D = 27): year of the exam (3 indicators), the school's share of pupils with free
    meals and in the top band of verbal reasoning (per cent, by year), sex (2), the pupil's band of
    verbal reasoning (3; none for 15 pupils), ethnic group (11), kind of school (3), denomination
    (3). Each group of indicators sums to 1. The file's 28th column, a constant, is left out: add
    one, or let an estimator do it.

    The file itself names no column. Order of groups and number of categories follow the data set's
    published description; which band and which sex a column stands for was told by the scores and
    by the single-sex schools; years, ethnic groups and denominations are only numbered.

    No task features are attached; the last six columns are constant within each school and may
    serve.

    Args:
        data_home: folder with `school/school_malsar.mat`; else `$BMM_DATA_HOME`, pooch's cache,
            and a download of 45 kB.

    Returns:
        Data of 139 tasks "school 1" to "school 139", of 22 to 251 rows.

    Raises:
        ValueError: the file found has other bytes than expected.
        ConnectionError: it is not here and cannot be downloaded.

    Example:
        >>> fetch_school("data")  # doctest: +SKIP
        TaskData(15362 rows, 139 tasks, ...)
    """
    cells = loadmat(FILE.path(data_home))
    x = [block.astype(np.float64)[:, :-1] for block in cells["X"].ravel()]
    y = [block.astype(np.float64).ravel() for block in cells["Y"].ravel()]
    labels = [f"school {number}" for number in range(1, len(x) + 1)]
    return TaskData(
        np.concatenate(x),
        np.concatenate(y),
        np.repeat(labels, [len(block) for block in y]),
        tasks=labels,
        feature_names=FEATURE_NAMES,
        target_names=("exam score",),
    )
