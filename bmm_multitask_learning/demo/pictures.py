"""The pictures of the demo, each with what one sees in it."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from .. import plots
from ..report import drawn
from ..report.sections import Draw, Figure
from .study import GATED, POOLED, READING, SHARED, Floats, Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LEAST_ROWS = 12  # for an estimate from a school's own pupils: more than twice the features


@dataclasses.dataclass(frozen=True)
class Picture:
    """How to draw a picture, and what to say about it.

    Args:
        draw: draws on an axis.
        caption: what one sees.
        alt: what it shows, for readers who do not see it.
        size: width and height in inches.
    """

    draw: Draw
    caption: str
    alt: str
    size: tuple[float, float] = (7.6, 4.6)

    def figure(self) -> Figure:
        """The picture as a part of a report."""
        return drawn(self.draw, caption=self.caption, alt=self.alt, size=self.size)


def pictures(study: Study) -> dict[str, Picture]:
    """Every picture by its file name."""
    return {
        "forest": _forest(study),
        "shrinkage": _shrinkage(study),
        "predictions": _predictions(study),
        "coverage": _coverage(study),
        "responsibilities": _responsibilities(study),
        "relations": _relations(study),
        "bound": _bound(study),
    }


def _forest(study: Study) -> Picture:
    lower, upper = np.quantile(study.effects, [0.05, 0.95], axis=0)
    mean = study.effects.mean(0)
    apart = int(((lower > 0) | (upper < 0)).sum())
    return Picture(
        partial(
            plots.forest,
            mean,
            lower,
            upper,
            tasks=study.data.tasks,
            reference=0.0,
            label="school effect [sd]",
        ),
        f"What each school adds for the average pupil, with 90 % intervals, against the mean of"
        f" all schools. {apart} of {len(mean)} schools are clearly above or below it; the others "
        "are not told apart from it by these data.",
        "Schools ranked by their effect, each with an interval.",
        (8.4, 4.4),
    )


def own_estimates(study: Study) -> Floats:
    """(K, 2) intercept and reading slope by each school's own least squares; NaN for few rows."""
    estimates = np.full((study.data.num_tasks, 2), np.nan)
    x, y, task = (t.numpy() for t in (study.data.x, study.data.y, study.data.task))
    for school in np.flatnonzero(study.data.rows_per_task.numpy() >= _LEAST_ROWS):
        mine = task == school
        # the smallest solution: in a school for girls "girl" is constant
        weights = np.linalg.lstsq(x[mine], y[mine], rcond=None)[0]
        estimates[school] = weights[[0, READING]]
    return estimates


def _shrinkage(study: Study) -> Picture:
    fitted = study.whole.weights.mean[:, [0, READING]].numpy()
    return Picture(
        partial(
            plots.shrinkage,
            own_estimates(study),
            fitted,
            centres=fitted.mean(0, keepdims=True),
            names=("score of the average pupil [sd]", "gain per sd of reading [sd]"),
            tasks=study.data.tasks,
        ),
        "From what each school's own pupils say (open circles) to what the model infers (dots). "
        "Schools move towards the common centre the further, the less their own pupils tell.",
        "Arrows from scattered own estimates to posterior means closer to the centre.",
        (7.6, 5.6),
    )


def _predictions(study: Study) -> Picture:
    prediction = study.candidates[SHARED].prediction
    interval = prediction.interval(0.9)
    return Picture(
        partial(plots.predictions, study.test.y, prediction.mean, interval[:, 0], interval[:, 1]),
        "Held-out pupils under the shared Gaussian: observed against predicted exam scores, with "
        "90 % intervals. Crosses are the pupils whose interval missed.",
        "Observed against predicted scores around the diagonal, with vertical intervals.",
        (7.6, 5.2),
    )


def _coverage(study: Study) -> Picture:
    def draw(*, ax: Axes) -> None:
        for name in (SHARED, POOLED):
            plots.coverage(
                study.test.y, study.candidates[name].prediction.interval, label=name, ax=ax
            )

    return Picture(
        draw,
        "How often intervals hold the truth, at every level that they may promise. On the diagonal"
        " a model keeps its word; the grey band is what chance allows.",
        "Observed against nominal coverage: two curves, and the diagonal.",
        (5.6, 5.0),
    )


def _responsibilities(study: Study) -> Picture:
    shares = study.shares(GATED)
    return Picture(
        partial(plots.responsibilities, shares, tasks=study.data.tasks),
        "Asked for two clusters, the gated model gives each school a probability for either.",
        "A bar a school, split by the probabilities of the two clusters.",
        (8.4, 3.8),
    )


def _relations(study: Study) -> Picture:
    relations = study.candidates[GATED].model.relations()
    return Picture(
        partial(
            plots.relations,
            relations,
            tasks=study.data.tasks,
            clusters=study.shares(GATED).argmax(1),
            label="probability of one cluster",
        ),
        "The same as relations: the probability that two schools belong to one cluster.",
        "A heat map of schools by schools, those of one cluster side by side.",
        (7.6, 6.4),
    )


def _bound(study: Study) -> Picture:
    return Picture(
        partial(plots.bound, study.candidates[GATED].result.history),
        "The fit of the gated clustering: log joint density of the pupils' scores and the "
        "hyperparameters, iteration by iteration. It never falls.",
        "A curve that rises steeply and levels off.",
        (7.0, 3.8),
    )
