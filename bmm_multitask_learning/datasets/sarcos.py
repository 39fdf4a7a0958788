"""Inverse dynamics of a robot arm: seven torques from positions, velocities and accelerations.

Vijayakumar and Schaal (2000), "Locally weighted projection regression", ICML.
"""

from __future__ import annotations

import os

import numpy as np
from scipy.io import loadmat

from bmm_multitask_learning.data import TaskData
from bmm_multitask_learning.datasets.remote_file import RemoteFile

__all__ = ["fetch_sarcos"]

FILE = RemoteFile(
    folder="sarcos",
    name="sarcos_inv_test.mat",
    sha256="161a59b5c3b4f4b404584323f181607b2acbe620eb134dc720760dc3f38f5cec",
    url="https://raw.githubusercontent.com/chcorbi/MultiTaskLearning/51cdbf9eb79342a7ef17b6ad5af76c5fbceab868/data/sarcos_inv_test.mat",
)


def fetch_sarcos(data_home: str | os.PathLike[str] | None = None) -> TaskData:
    """Torques at the seven joints of an arm in 4449 states of its movement.

    Target: torque at one joint.

    Features (D = 21): position, velocity and acceleration of each joint, the same rows for all
    tasks. No constant is among them.

    Args:
        data_home: folder with `sarcos/sarcos_inv_test.mat`; else `$BMM_DATA_HOME`, pooch's cache,
            and a download of 1 MB.

    Returns:
        Data of 7 tasks "joint 1" to "joint 7", of 4449 rows each, in the same order.

    Raises:
        ValueError: the file found has other bytes than expected.
        ConnectionError: it is not here and cannot be downloaded.

    Example:
        >>> fetch_sarcos("data")  # doctest: +SKIP
        TaskData(31143 rows, 7 tasks, ...)
    """
    table = loadmat(FILE.path(data_home))["sarcos_inv_test"].astype(np.float64)
    joints = range(1, 8)
    kinds = ("position", "velocity", "acceleration")
    return TaskData.from_multioutput(
        table[:, :21],
        table[:, 21:],
        tasks=[f"joint {joint}" for joint in joints],
        feature_names=[f"{kind} {joint}" for kind in kinds for joint in joints],
    )
