"""Handwritten digits, turned: one task an angle.

Images: LeCun, Bottou, Bengio and Haffner (1998), "Gradient-based learning applied to document
recognition", Proceedings of the IEEE 86, 2278-2324; the 10000 of the test set.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Sequence

import numpy as np
from scipy.ndimage import rotate

from bmm_multitask_learning.data import TaskData
from bmm_multitask_learning.datasets.remote_file import RemoteFile

__all__ = ["fetch_rotated_mnist"]

_URL = "https://raw.githubusercontent.com/potterhsu/MnistTensorFlowVsPyTorch/2d3961f7fb76f41afd0b8101dab03ba80f73fc9f/data/"
IMAGES, LABELS = (
    RemoteFile("mnist_t10k", name, sha256, _URL + name)
    for name, sha256 in (
        (
            "t10k-images-idx3-ubyte.gz",
            "a099c5cbed9005941904202c3dc1fea19ea68d1bbbdfb713a7a390d877d62432",
        ),
        (
            "t10k-labels-idx1-ubyte.gz",
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
    )
)
# bytes before the data: a magic number and the length of each axis, 4 bytes each
_HEADS = (16, 8)
SIDE = 28


def fetch_rotated_mnist(
    angles: Sequence[float] = (0, 15, 30, 45, 60, 75),
    data_home: str | os.PathLike[str] | None = None,
) -> TaskData:
    """10000 images of digits, dealt to the angles in turn, each turned by its angle.

    Target: the digit, 0 to 9.

    Features (D = 784): brightness of the 28 x 28 pixels, 0 to 1, row by row. Tasks share no image.

    Args:
        angles: degrees to turn by, counterclockwise; image n is turned by `angles[n % K]`, with
            linear interpolation, corners filled with black.
        data_home: folder with `mnist_t10k/t10k-images-idx3-ubyte.gz` and
            `t10k-labels-idx1-ubyte.gz`; else `$BMM_DATA_HOME`, pooch's cache, and a download of
            1.6 MB.

    Returns:
        Data of K tasks "0 degrees", "15 degrees", .., angle by angle.

    Raises:
        ValueError: no angle, or one twice; a file found has other bytes than expected.
        ConnectionError: one is not here and cannot be downloaded.

    Example:
        >>> fetch_rotated_mnist((0, 90), "data")  # doctest: +SKIP
        TaskData(10000 rows, 2 tasks, ...)
    """
    if not len(angles) or len(set(angles)) < len(angles):
        raise ValueError(f"angles must be one or more different numbers; got {tuple(angles)}.")
    pixels, digits = (
        np.frombuffer(gzip.decompress(file.path(data_home).read_bytes()), np.uint8, offset=head)
        for file, head in zip((IMAGES, LABELS), _HEADS, strict=True)
    )
    images = pixels.reshape(-1, SIDE, SIDE) / 255
    labels = [f"{angle:g} degrees" for angle in angles]
    dealt = [slice(start, None, len(angles)) for start in range(len(angles))]
    turned = [
        rotate(images[part], angle, axes=(2, 1), reshape=False, order=1)
        for angle, part in zip(angles, dealt, strict=True)
    ]
    return TaskData(
        np.concatenate(turned).reshape(len(images), -1),
        np.concatenate([digits[part] for part in dealt]).astype(np.float64),
        np.repeat(labels, [len(block) for block in turned]),
        tasks=labels,
        target_names=("digit",),
    )
