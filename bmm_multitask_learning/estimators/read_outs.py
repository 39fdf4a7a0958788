"""What a fitted estimator says of its tasks and targets, in the user's units."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from ..data.arrays import ArrayLike
from ..model import MultitaskModel
from ..posterior import WeightPosterior
from ..prediction import Prediction
from ..units import Array, Units


class ReadOuts(ABC):
    """Intervals, quantiles, tasks, relations and coefficients of an estimator."""

    model_: MultitaskModel
    backbone: nn.Module | None
    fit_intercept: bool
    _units: Units

    @abstractmethod
    def predict_dist(
        self,
        X: ArrayLike,
        task: Any = None,
        task_features: ArrayLike | Mapping[Hashable, Any] | None = None,
    ) -> Prediction:
        """Predictive distributions in the user's units."""

    def predict_interval(
        self,
        X: ArrayLike,
        task: Any = None,
        coverage: float = 0.9,
        task_features: ArrayLike | Mapping[Hashable, Any] | None = None,
    ) -> Array:
        """Central predictive interval of the target; of the probability, for classes.

        Args:
            X, task, task_features: see `predict_dist`.
            coverage: probability of the interval.

        Returns:
            (N, 2) lower and upper ends, with an axis for outputs or tasks before the last.
        """
        interval: Array = self.predict_dist(X, task, task_features).interval(coverage)
        return interval

    def predict_quantiles(
        self,
        X: ArrayLike,
        task: Any = None,
        levels: Sequence[float] = (0.05, 0.5, 0.95),
        task_features: ArrayLike | Mapping[Hashable, Any] | None = None,
    ) -> Array:
        """Quantiles of the target; of the probability, for classes.

        Args:
            X, task, task_features: see `predict_dist`.
            levels: Q levels between 0 and 1.

        Returns:
            (N, Q), with an axis for outputs or tasks before the last.
        """
        prediction = self.predict_dist(X, task, task_features)
        return np.stack([prediction.quantile(level) for level in levels], -1)

    @property
    def tasks_(self) -> npt.NDArray[Any]:
        """(K,) labels of the tasks, in the order of every read-out; tasks of `adapt` are last."""
        check_is_fitted(self)
        return np.asarray(self.model_.tasks)

    @property
    def relations_(self) -> Array:
        """(K, K) relations between tasks; see the prior's `relations` for what they mean."""
        check_is_fitted(self)
        return self.model_.relations().cpu().numpy()

    @property
    def coef_(self) -> Array:
        """(K, D) or (K, O, D) posterior mean of the slopes, in the user's units."""
        return self._linear(self._weights().mean)[0]

    @property
    def intercept_(self) -> Array:
        """(K,) or (K, O) posterior mean of the intercepts, in the user's units."""
        return self._linear(self._weights().mean)[1]

    def sample_posterior(self, num_samples: int = 100, *, seed: int = 0) -> tuple[Array, Array]:
        """Joint draws of all tasks' slopes and intercepts, in the user's units.

        Args:
            num_samples: S.
            seed: the only source of randomness.

        Returns:
            slopes (S, K, [O,] D) and intercepts (S, K, [O]).
        """
        return self._linear(self._weights().sample(num_samples, seed=seed))

    def _weights(self) -> WeightPosterior:
        check_is_fitted(self)
        if self.backbone is not None:
            raise AttributeError(
                "the weights belong to the backbone's features, not to the columns of X: see "
                "model_.weights, in the model's own units."
            )
        return self.model_.weights

    def _linear(self, weights: Tensor) -> tuple[Array, Array]:
        sizes = self.model_.family().sizes
        w = weights.double().cpu().numpy()
        single = sizes.num_outputs == 1  # the O axis is not there
        slope, constant = self._units.weights(
            w[..., None, :] if single else w, intercept=self.fit_intercept
        )
        return (slope[..., 0, :], constant[..., 0]) if single else (slope, constant)
