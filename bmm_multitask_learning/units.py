"""Standardised units for the model, the user's units for every read-out."""

from __future__ import annotations

import dataclasses
from typing import Any, Self, final

import numpy as np
import numpy.typing as npt
import torch

from .data import TaskData
from .distributions.affine import Affine
from .prediction import Prediction

Array = npt.NDArray[np.float64]

# A spread below this share of the mean is rounding: the column is constant.
_ROUNDING = 100 * np.finfo(np.float64).eps


@final
@dataclasses.dataclass(frozen=True)
class Units:
    r"""$z = (x - m) g$ for features and $t = (y - c) / s$ for targets.

    Args:
        centre: (D,) $m$.
        gain: (D,) $g$, 0 for constant columns, which are left out of the model in this way.
        target_centre: (1, O), or (K, 1) where each task has units of its own.
        target_scale: the same shape.
    """

    centre: Array
    gain: Array
    target_centre: Array
    target_scale: Array

    @classmethod
    def of(
        cls,
        data: TaskData,
        *,
        features: bool = True,
        targets: bool = True,
        centred: bool = True,
        by_task: bool = False,
    ) -> Self:
        r"""Units in which rows have mean 0 and spread 1.

        Args:
            data: the rows, in the user's units.
            features: whether to change the features' units.
            targets: whether to change the targets' units.
            centred: whether to take the mean away, for models with an intercept.
            by_task: whether each task has units of its own for its target.

        Example:
            >>> rows = TaskData([[1.0, 7.0], [3.0, 7.0]], [5.0, 9.0], ["a", "b"])
            >>> units = Units.of(rows)
            >>> units.features(rows.x.numpy(), intercept=True)
            array([[ 1., -1.,  0.],
                   [ 1.,  1.,  0.]])
            >>> units.targets(rows.y.numpy(), rows.task.numpy())
            array([-1.,  1.])
        """
        x, y, task, weight = arrays(data)
        width, outputs = x.shape[1], data.num_outputs
        centre, gain = np.zeros(width), np.ones(width)
        target_centre, target_scale = np.zeros((1, outputs)), np.ones((1, outputs))
        if features and x.ndim == 2:
            mean, spread = moments(x, weight, centred=centred)
            centre = mean[0]
            gain = np.where(spread[0] > 0, 1 / np.where(spread[0] > 0, spread[0], 1.0), 0.0)
        if targets:
            groups = (task, data.num_tasks) if by_task else None
            target_centre, spread = moments(
                y.reshape(len(y), outputs), weight, centred=centred, groups=groups
            )
            target_scale = np.where(spread > 0, spread, 1.0)
        return cls(centre, gain, target_centre, target_scale)

    def features(self, x: Array, *, intercept: bool = False) -> Array:
        """$z$ (N, D) of inputs x (N, D); after a constant, (N, 1 + D), for an intercept.

        Inputs of another shape are those of a backbone, and stay as they are.
        """
        z = x if x.ndim > 2 else (x - self.centre) * self.gain
        return np.column_stack([np.ones(len(z)), z]) if intercept else z

    def standardise(self, data: TaskData, *, intercept: bool = True) -> TaskData:
        """The rows in these units, by default with a constant feature first."""
        x, y, task, weight = arrays(data)
        return TaskData(
            self.features(x, intercept=intercept),
            self.targets(y, task),
            [data.tasks[k] for k in task],
            tasks=data.tasks,
            task_features=data.task_features,
            weight=weight,
        )

    def targets(self, y: Array, task: npt.NDArray[np.int64]) -> Array:
        """$t$ of targets (N,) or (N, O) of rows with task indices `task`."""
        centre, scale = self.of_rows(task)
        t = ((y[:, None] if y.ndim == 1 else y) - centre) / scale
        return t[:, 0] if y.ndim == 1 else t

    def of_rows(self, task: npt.NDArray[np.int64]) -> tuple[Array, Array]:
        """$c$ and $s$ of each row, broadcastable against (N, O)."""
        if len(self.target_centre) == 1:
            return self.target_centre, self.target_scale
        return self.target_centre[task], self.target_scale[task]

    def weights(self, w: Array, *, intercept: bool) -> tuple[Array, Array]:
        r"""Slopes and intercepts in the user's units, from weights in standardised ones.

        Args:
            w: (..., K, O, D) or, with an intercept in its first place, (..., K, O, 1 + D).
            intercept: whether the first weight is one.

        Returns:
            slopes (..., K, O, D) and intercepts (..., K, O).
        """
        slope, constant = (w[..., 1:], w[..., 0]) if intercept else (w, np.zeros(w.shape[:-1]))
        # y = c + s ( w₀ + Σ_d w_d g_d (x_d − m_d) )
        slope = slope * self.gain
        constant = constant - slope @ self.centre
        return (
            self.target_scale[..., None] * slope,
            self.target_centre + self.target_scale * constant,
        )

    def prediction(self, prediction: Prediction, task: npt.NDArray[np.int64]) -> Prediction:
        """A prediction of $t$ as one of $y$, for rows with task indices `task`."""
        like = prediction._log_weights
        c, s = (like.new_tensor(part)[:, None] for part in self.of_rows(task))
        weight, mean, variance = prediction._latent
        return dataclasses.replace(
            prediction,
            _law=Affine(prediction._law, c, s),
            _latent=(weight, c + s * mean, s.square() * variance),
        )


def arrays(data: TaskData) -> tuple[Array, Array, npt.NDArray[np.int64], Array | None]:
    """x, y, task and weight as NumPy arrays."""
    weight = None if data.weight is None else data.weight.numpy()
    return data.x.numpy(), data.y.numpy(), data.task.numpy(), weight


def moments(
    value: Array,
    weight: Array | None,
    *,
    centred: bool,
    groups: tuple[npt.NDArray[np.int64], int] | None = None,
) -> tuple[Array, Array]:
    """Weighted mean and spread of the columns of (N, M) values, NaN left out.

    Args:
        value: (N, M).
        weight: (N,) or None.
        centred: whether the spread is around the mean; otherwise the mean returned is 0.
        groups: (N,) group of each row, and how many there are, G; None: one group.

    Returns:
        (G, M) means and (G, M) spreads, 0 where a column is constant up to rounding. A group
        without values takes the mean of the others.

    Example:
        >>> moments(np.array([[1.0], [3.0]]), None, centred=True)
        (array([[2.]]), array([[1.]]))
    """
    group, size = (np.zeros(len(value), dtype=np.int64), 1) if groups is None else groups
    observed = ~np.isnan(value)
    share = observed * (1.0 if weight is None else weight[:, None])
    largest = np.abs(np.where(share > 0, value, 0.0)).max(0)
    unit = np.where(largest > 0, largest, 1.0)  # squares neither overflow nor vanish
    filled = np.where(observed, value, 0.0) / unit
    count = _group_sum(share, group, size)

    def average(part: Array) -> Array:
        mean = _group_sum(share * part, group, size) / np.where(count > 0, count, 1.0)
        others = mean.sum(0) / np.maximum((count > 0).sum(0), 1)
        return np.where(count > 0, mean, others)

    mean = np.zeros((size, value.shape[1]))
    if centred:
        mean = average(filled)
        mean = mean + average(filled - mean[group])  # once more, against rounding
    spread = np.sqrt(average(np.square(filled - mean[group])))
    spread = np.where(spread > _ROUNDING * np.abs(mean), spread, 0.0)
    return mean * unit, spread * unit


def _group_sum(value: Array, group: npt.NDArray[np.int64], size: int) -> Array:
    """(G, M) sums of the rows of (N, M) values in each group."""
    columns = [np.bincount(group, weights=column, minlength=size) for column in value.T]
    return np.stack(columns, -1)


@final
@dataclasses.dataclass(frozen=True)
class TablePrediction(Prediction):
    """Predictions of K tasks at each of N inputs: every read-out has the axes (N, K, ...).

    The rows underneath are in the order of the inputs, K rows for each.
    """

    _num_columns: int

    def log_prob(self, y: Any) -> Any:
        values = super().log_prob(y.reshape(-1))
        return values.reshape(-1, self._num_columns)

    def sample(self, num_samples: int, *, seed: int = 0) -> Any:
        draws = super().sample(num_samples, seed=seed)
        return draws.reshape(num_samples, -1, self._num_columns, *draws.shape[2:])

    def _out(self, value: torch.Tensor, drop: int = 0) -> Any:
        flat = super()._out(value, drop)
        return flat.reshape(-1, self._num_columns, *flat.shape[1:])


def as_table(prediction: Prediction, num_columns: int) -> TablePrediction:
    """Predictions of N K rows as (N, K) predictions."""
    values = {f.name: getattr(prediction, f.name) for f in dataclasses.fields(Prediction)}
    values["known"] = values["known"].reshape(-1, num_columns)
    return TablePrediction(**values, _num_columns=num_columns)
