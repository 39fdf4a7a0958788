"""Classes of many tasks, the scikit-learn way."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, final

import numpy as np
import numpy.typing as npt
from sklearn.base import ClassifierMixin
from sklearn.utils import Tags
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d

from ..data.arrays import ArrayLike
from ..data.labels import is_missing
from ..likelihoods import Bernoulli, Categorical, Likelihood, Ordinal
from ..units import Array
from .estimator import MultitaskEstimator


@final
class MultitaskClassifier(ClassifierMixin, MultitaskEstimator):  # type: ignore[misc]
    """Bayesian classification of many related tasks that share their classes.

    Features are standardised and every task has an intercept; both are undone in every read-out.
    Columns that are constant in the fit are left out. The prior, likelihood and backbone given are
    copied by `fit`, never changed. A task may lack rows of some classes.

    Args:
        prior: of the task weights; `SharedGaussian()` by default.
        likelihood: `Bernoulli()` for two classes and `Categorical(C)` for more by default;
            `Ordinal(C)` for numbers whose order matters.
        backbone: a module from inputs to features (N, D); None: the features themselves.
        engine: see `fit`.
        standardize: whether features are standardised.
        fit_intercept: whether each task has an intercept; without one nothing is centred.
        dtype: "float64" or "float32".
        device: where to fit and predict, such as "cpu" or "cuda".
        progress: whether to show progress bars.
        random_state: the only source of randomness.

    Attributes:
        classes_: (C,) sorted labels of the classes, of any type.
        model_: the fitted `MultitaskModel`, in standardised units.
        result_: `FitResult`: bound, converged, engine, seconds.
        tasks_: (K,) labels, sorted, whatever the order of the rows; of columns of y, theirs.
        coef_, intercept_: (K, [C,] D) and (K, [C]) posterior means; without C for two classes.
        relations_: (K, K), see the prior.
        n_features_in_, feature_names_in_: as in scikit-learn.

    Example:
        >>> from bmm_multitask_learning import MultitaskClassifier
        >>> X, y = [[0.0], [1.0], [2.0], [0.0], [1.0]], ["no", "no", "yes", "no", "yes"]
        >>> estimator = MultitaskClassifier().fit(X, y, task=["a", "a", "a", "b", "b"])
        >>> estimator.predict([[-9.0], [9.0]], task="b")
        array(['no', 'yes'], dtype='<U3')
    """

    def predict(
        self,
        X: ArrayLike,
        task: Any = None,
        task_features: ArrayLike | Mapping[Hashable, Any] | None = None,
    ) -> npt.NDArray[Any]:
        """The most probable class of each row.

        Args:
            X, task, task_features: see `predict_dist`.

        Returns:
            (N,), or (N, K) for tasks on shared inputs, or (N, O) for several labels a row.
        """
        probability = self._probability(X, task, task_features)
        return self.classes_[probability.argmax(-1)]

    def predict_proba(
        self,
        X: ArrayLike,
        task: Any = None,
        task_features: ArrayLike | Mapping[Hashable, Any] | None = None,
    ) -> Array | list[Array]:
        """Probabilities of the classes, averaged over the posterior of the weights.

        Args:
            X, task, task_features: see `predict_dist`.

        Returns:
            (N, C). For K tasks on shared inputs, or several labels a row, as in scikit-learn: of
            two classes the probability of the second, (N, K); of more a list of K (N, C).
        """
        return _by_column(self._probability(X, task, task_features))

    def predict_log_proba(
        self,
        X: ArrayLike,
        task: Any = None,
        task_features: ArrayLike | Mapping[Hashable, Any] | None = None,
    ) -> Array | list[Array]:
        """Logarithm of `predict_proba`."""
        with np.errstate(divide="ignore"):  # the logarithm of 0 is -inf
            return _by_column(np.log(self._probability(X, task, task_features)))

    def decision_function(
        self,
        X: ArrayLike,
        task: Any = None,
        task_features: ArrayLike | Mapping[Hashable, Any] | None = None,
    ) -> Array:
        """Log odds of the second of two classes, (N,); log probabilities of more, (N, C).

        Args:
            X, task, task_features: see `predict_dist`.

        Returns:
            the values, with an axis for tasks or labels after the first where there are several.
        """
        probability = self._probability(X, task, task_features)
        log = np.log(np.clip(probability, np.finfo(np.float64).tiny, None))
        return log[..., 1] - log[..., 0] if len(self.classes_) == 2 else log

    def score(
        self,
        X: ArrayLike,
        y: Any,
        task: Any = None,
        task_features: ArrayLike | Mapping[Hashable, Any] | None = None,
        sample_weight: npt.ArrayLike | None = None,
    ) -> float:
        """Share of the observed targets whose class is predicted.

        Args:
            X, task, task_features: see `predict_dist`.
            y: classes, of the shape that `predict` gives.
            sample_weight: (N,).
        """
        predicted = self.predict(X, task, task_features)
        target, seen = _labels(y)
        if target.shape != predicted.shape:
            raise ValueError(f"y must have shape {predicted.shape}; got {target.shape}.")
        row = np.broadcast_to(np.arange(len(seen)).reshape(-1, *[1] * (seen.ndim - 1)), seen.shape)
        weight = None if sample_weight is None else np.asarray(sample_weight)[row[seen]]
        return float(np.average(target[seen] == predicted[seen], weights=weight))

    def _probability(self, X: Any, task: Any, task_features: Any) -> Array:
        """(N, [K or O,] C)."""
        mean: Array = self.predict_dist(X, task, task_features).mean
        if isinstance(self.model_.likelihood, Categorical | Ordinal):
            return mean
        return np.stack([1 - mean, mean], -1)

    def _encode(self, y: Any, *, reset: bool) -> Array:
        target, seen = _labels(y)
        observed = target[seen]
        if len(observed) == 0:
            raise ValueError("y must have at least one observed class; got none.")
        check_classification_targets(observed)
        if reset:
            self.classes_ = np.unique(observed)
            if len(self.classes_) < 2:
                raise ValueError(
                    f"y must have at least 2 classes; got 1 class, {self.classes_.tolist()}. "
                    "Single tasks may have one class only, not all of them together."
                )
        code = np.searchsorted(self.classes_, observed).clip(max=len(self.classes_) - 1)
        wrong = self.classes_[code] != observed
        if wrong.any():
            raise ValueError(
                f"y must hold the classes of the fit, {self.classes_.tolist()}; got "
                f"{observed[wrong].tolist()[0]!r}."
            )
        encoded = np.full(target.shape, np.nan)
        encoded[seen] = code
        return encoded

    def _default_likelihood(self) -> Likelihood:
        return Bernoulli() if len(self.classes_) == 2 else Categorical(len(self.classes_))

    def _check_likelihood(self, likelihood: Likelihood) -> None:
        count = len(self.classes_)
        if not likelihood.classes:
            raise ValueError(
                f"{type(likelihood).__name__} is no likelihood of classes: use MultitaskRegressor."
            )
        name = type(likelihood).__name__
        if isinstance(likelihood, Categorical | Ordinal) and likelihood.num_classes != count:
            raise ValueError(
                f"y has {count} classes and the likelihood {name}({likelihood.num_classes}); "
                f"give {name}({count}), or likelihood=None."
            )
        if isinstance(likelihood, Ordinal) and self.classes_.dtype.kind not in "biuf":
            raise ValueError(
                f"Ordinal needs classes in their order; got {self.classes_.tolist()}, whose order "
                "is the alphabet's. Number them from the lowest to the highest."
            )
        if isinstance(likelihood, Bernoulli) and count != 2:
            raise ValueError(
                f"Bernoulli is for 2 classes; y has {count}: give likelihood=None, which takes "
                f"Categorical({count})."
            )

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        tags.classifier_tags.multi_label = True
        return tags


def _labels(y: Any) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Classes (N,) or (N, O), and where they were observed."""
    target = np.asarray(y)
    if target.ndim == 2 and target.shape[1] == 1:
        target = column_or_1d(target, warn=True)
    if target.ndim not in (1, 2):
        raise ValueError(f"y must have shape (N,) or (N, O); got {target.shape}.")
    if target.dtype.kind == "f":
        if np.isinf(target).any():
            raise ValueError("Input y contains infinity. Classes are finite numbers or strings.")
        return target, ~np.isnan(target)
    if target.dtype.kind != "O":
        return target, np.ones(target.shape, dtype=bool)
    missing = [is_missing(item) for item in target.ravel().tolist()]
    return target, ~np.array(missing, dtype=bool).reshape(target.shape)


def _by_column(value: Array) -> Array | list[Array]:
    """What `predict_proba` returns, from values (N, C) or (N, K, C)."""
    if value.ndim == 2:
        return value
    return value[..., 1] if value.shape[-1] == 2 else list(np.moveaxis(value, 1, 0))
