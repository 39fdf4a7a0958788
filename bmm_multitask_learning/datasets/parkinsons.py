"""Voices of 42 people with Parkinson's disease, and how severe their symptoms are.

Tsanas, Little, McSharry and Ramig (2010), "Accurate telemonitoring of Parkinson's disease
progression by noninvasive speech tests", IEEE Transactions on Biomedical Engineering 57.
"""

from __future__ import annotations

import os

import numpy as np

from bmm_multitask_learning.data import TaskData
from bmm_multitask_learning.datasets.remote_file import RemoteFile

__all__ = ["fetch_parkinsons"]

FILE = RemoteFile(
    folder="parkinsons_updrs",
    name="parkinsons_updrs.data",
    sha256="52229b3075c2109a2c144f5584d88cc5ea99022a9a9eaa6d978b2e8e7c6bc501",
    url="https://raw.githubusercontent.com/shikashyam/ParkinsonsTelemonitoring/deb237cac5ac21f2254f96077e53ec90f401a4c5/parkinsons_updrs.data",
)


def fetch_parkinsons(data_home: str | os.PathLike[str] | None = None) -> TaskData:
    """Voice measures of 5875 recordings of 42 patients, over half a year.

    Targets (O = 2): motor and total score on the Unified Parkinson's Disease Rating Scale (UPDRS).

    Features (D = 17): time of the test in days, and 16 measures of the voice. No constant is among
    them. Task features (F = 2): the patient's age in years and sex, 1 for female.

    The signal within patients is almost wholly the time of the test, and the scores are said to be
    interpolated in time between three visits: random rows leak, and say nothing of forecasts.

    Args:
        data_home: folder with `parkinsons_updrs/parkinsons_updrs.data`; else `$BMM_DATA_HOME`,
            pooch's cache, and a download of 0.9 MB.

    Returns:
        Data of 42 tasks "patient 1" to "patient 42", of 101 to 168 rows.

    Raises:
        ValueError: the file found has other bytes than expected.
        ConnectionError: it is not here and cannot be downloaded.

    Example:
        >>> fetch_parkinsons("data")  # doctest: +SKIP
        TaskData(5875 rows, 42 tasks, ...)
    """
    path = FILE.path(data_home)
    table = np.loadtxt(path, skiprows=1)
    with path.open(encoding="utf-8") as file:
        names = file.readline().split()
    patient, first = np.unique(table[:, 0].astype(int), return_index=True)
    return TaskData(
        table[:, [3, *range(6, 22)]],
        table[:, 4:6],
        [f"patient {number:.0f}" for number in table[:, 0]],
        tasks=[f"patient {number}" for number in patient],
        task_features=table[first, 1:3],
        feature_names=(names[3], *names[6:]),
        task_feature_names=("age", "female"),
        target_names=("motor UPDRS", "total UPDRS"),
    )
