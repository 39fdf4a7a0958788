"""Reviews of 16 kinds of product as sentence embeddings: is the review positive?

Reviews: Liu, Qiu and Huang (2017), "Adversarial multi-task learning for text classification", ACL.
Embeddings: MiniLM (all-MiniLM-L6-v2), mean over the first 128 tokens, length 1.
"""

from __future__ import annotations

import os

import numpy as np

from bmm_multitask_learning.data import TaskData
from bmm_multitask_learning.datasets.remote_file import RemoteFile

__all__ = ["fetch_sentiment"]

FILE = RemoteFile(
    folder="fdu_mtl",
    name="minilm_embeddings.npz",
    sha256="757ceecb3530b7bb20e976cf78f56f8ebfb8f99946a5eac43eff6342c8bbb188",
    url=None,
)


def fetch_sentiment(data_home: str | os.PathLike[str] | None = None) -> tuple[TaskData, TaskData]:
    """Sentence embeddings of reviews of 16 kinds of product, with the standard split.

    Target: 1 for a positive review, 0 for a negative one.

    Features (D = 384): the embedding, of length 1 up to half precision. No constant is among them.

    The embeddings are published nowhere: the file must lie on this machine.

    Args:
        data_home: folder with `fdu_mtl/minilm_embeddings.npz`; else `$BMM_DATA_HOME`.

    Returns:
        (train, test): 25380 and 6400 rows of the same 16 tasks, named by product.

    Raises:
        ValueError: the file found has other bytes than expected.
        FileNotFoundError: it is in neither folder.

    Example:
        >>> train, test = fetch_sentiment("data")  # doctest: +SKIP
        >>> train.tasks[:2], train.x.shape  # doctest: +SKIP
        (('MR', 'apparel'), torch.Size([25380, 384]))
    """
    with np.load(FILE.path(data_home)) as arrays:
        x, y, task = arrays["E"].astype(np.float64), arrays["y"], arrays["task"]
        names, is_test = arrays["names"], arrays["is_test"]
    labels = [str(name) for name in names]

    def part(rows: np.ndarray) -> TaskData:
        return TaskData(
            x[rows],
            y[rows].astype(np.float64),
            names[task[rows]],
            tasks=labels,
            feature_names=tuple(f"embedding {number}" for number in range(1, x.shape[1] + 1)),
            target_names=("positive",),
        )

    return part(~is_test), part(is_test)
