"""Real-valued targets (and counts) of many tasks, the scikit-learn way."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, final

import numpy as np
import numpy.typing as npt
from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils import Tags, check_array

from ..data.arrays import ArrayLike
from ..likelihoods import Gaussian, Likelihood
from ..units import Array
from .estimator import MultitaskEstimator


@final
class MultitaskRegressor(RegressorMixin, MultitaskEstimator):  # type: ignore[misc]
    """Bayesian regression of many related tasks, in the user's units.

    Features are standardised, targets centred and scaled (each column of y by itself where the
    columns are the tasks), and every task has an intercept; all of it is undone in every read-out.
    Columns that are constant in the fit are left out. The prior, likelihood and backbone given are
    copied by `fit`, never changed.

    Args:
        prior: of the task weights; `SharedGaussian()` by default.
        likelihood: `Gaussian()` by default; any likelihood that is not of classes.
        backbone: a module from inputs to features (N, D); None: the features themselves.
        engine: see `fit`.
        standardize: whether features and targets are standardised (targets only under a likelihood
            that any change of units leaves the same: not counts).
        fit_intercept: whether each task has an intercept; without one nothing is centred.
        dtype: "float64" or "float32".
        device: where to fit and predict, such as "cpu" or "cuda".
        progress: whether to show progress bars.
        random_state: the only source of randomness.

    Attributes:
        model_: the fitted `MultitaskModel`, in standardised units.
        result_: `FitResult`: bound, converged, engine, seconds.
        tasks_: (K,) labels, sorted, whatever the order of the rows; of columns of y, theirs.
        coef_, intercept_: (K, [O,] D) and (K, [O]) posterior means.
        relations_: (K, K), see the prior.
        n_features_in_, feature_names_in_: as in scikit-learn.

    Example:
        >>> from bmm_multitask_learning import MultitaskRegressor
        >>> X, y = [[0.0], [1.0], [2.0], [0.0], [1.0]], [0.0, 1.1, 1.9, 5.0, 5.9]
        >>> task = ["a", "a", "a", "b", "b"]
        >>> estimator = MultitaskRegressor().fit(X, y, task=task)
        >>> estimator.predict([[3.0]], task="b").shape
        (1,)
    """

    def predict(
        self,
        X: ArrayLike,
        task: Any = None,
        return_std: bool = False,  # noqa: FBT001, FBT002  # as in scikit-learn
        task_features: ArrayLike | Mapping[Hashable, Any] | None = None,
    ) -> Array | tuple[Array, Array]:
        """Predictive means.

        Args:
            X, task, task_features: see `predict_dist`.
            return_std: whether to give standard deviations too, noise included.

        Returns:
            (N,), or (N, O) outputs, or (N, K) tasks on shared inputs; with `return_std` a pair.
        """
        prediction = self.predict_dist(X, task, task_features)
        return (prediction.mean, prediction.std) if return_std else prediction.mean

    def score(
        self,
        X: ArrayLike,
        y: ArrayLike,
        task: Any = None,
        task_features: ArrayLike | Mapping[Hashable, Any] | None = None,
        sample_weight: npt.ArrayLike | None = None,
    ) -> float:
        """$R^2$ over all observed targets; the mean of the columns' where y is (N, O).

        Args:
            X, task, task_features: see `predict_dist`.
            y: targets of the shape that `predict` gives.
            sample_weight: (N,).
        """
        target = self._encode(y, reset=False)
        predicted = np.asarray(self.predict(X, task, task_features=task_features))
        if target.shape != predicted.shape:
            raise ValueError(f"y must have shape {predicted.shape}; got {target.shape}.")
        columns = target.reshape(len(target), -1), predicted.reshape(len(target), -1)
        weight = None if sample_weight is None else np.asarray(sample_weight)
        scores = []
        for y_true, y_pred in zip(columns[0].T, columns[1].T, strict=True):
            seen = ~np.isnan(y_true)
            part = None if weight is None else weight[seen]
            if seen.any():
                scores.append(r2_score(y_true[seen], y_pred[seen], sample_weight=part))
        return float(np.mean(scores))

    def _encode(self, y: Any, *, reset: bool) -> Array:
        target: Array = check_array(
            y,
            ensure_2d=False,
            dtype=np.float64,
            ensure_all_finite="allow-nan",
            input_name="y",
            estimator=self,
        )
        if target.ndim not in (1, 2):
            raise ValueError(f"y must have shape (N,) or (N, O); got {target.shape}.")
        return target

    def _default_likelihood(self) -> Likelihood:
        return Gaussian()

    def _check_likelihood(self, likelihood: Likelihood) -> None:
        if likelihood.classes:
            raise ValueError(
                f"{type(likelihood).__name__} is a likelihood of classes: use MultitaskClassifier."
            )

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
