"""What the estimators share: standardise, add intercepts, fit, and undo it in every read-out."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal, Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import (
    _check_sample_weight,
    check_consistent_length,
    check_is_fitted,
    validate_data,
)
from torch import Tensor, nn

from ..backbones import with_constant
from ..data import TaskData
from ..data.arrays import ArrayLike, column_names, is_frame
from ..data.labels import as_labels
from ..engines import CoordinateAscent, Engine, FitResult
from ..fitting import choose_engine, fit
from ..likelihoods import Likelihood
from ..model import MultitaskModel
from ..prediction import Prediction
from ..priors import SharedGaussian, TaskPrior
from ..units import Array, Units, arrays, as_table
from .read_outs import ReadOuts

_Part = TypeVar("_Part")
_DTYPES = {"float64": torch.float64, "float32": torch.float32}


class MultitaskEstimator(ReadOuts, BaseEstimator):  # type: ignore[misc]  # scikit-learn is not typed
    """What `MultitaskRegressor` and `MultitaskClassifier` share."""

    def __init__(
        self,
        prior: TaskPrior | None = None,
        likelihood: Likelihood | None = None,
        *,
        backbone: nn.Module | None = None,
        engine: Engine | None = None,
        standardize: bool = True,
        fit_intercept: bool = True,
        dtype: Literal["float64", "float32"] = "float64",
        device: str = "cpu",
        progress: bool = False,
        random_state: int | np.random.RandomState | None = 0,
    ) -> None:
        self.prior = prior
        self.likelihood = likelihood
        self.backbone = backbone
        self.engine = engine
        self.standardize = standardize
        self.fit_intercept = fit_intercept
        self.dtype = dtype
        self.device = device
        self.progress = progress
        self.random_state = random_state

    # ---- fit ----------------------------------------------------------------------------------

    @abstractmethod
    def _encode(self, y: Any, *, reset: bool) -> Array:
        """Targets as numbers (N,) or (N, O), NaN where not observed.

        Args:
            y: targets as the user gives them.
            reset: whether to learn their coding, rather than use that of the fit.
        """

    @abstractmethod
    def _default_likelihood(self) -> Likelihood:
        """The likelihood where none was given."""

    @abstractmethod
    def _check_likelihood(self, likelihood: Likelihood) -> None:
        """Raise a ValueError unless the likelihood suits the kind of targets."""

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        task: Any = None,
        task_features: ArrayLike | Mapping[Hashable, Any] | None = None,
        sample_weight: npt.ArrayLike | None = None,
    ) -> Self:
        """Fit copies of the prior, the likelihood and the backbone.

        Args:
            X: (N, D) features, or (N, ...) inputs of a backbone.
            y: (N,) targets; (N, O) outputs of each task; without `task`, (N, K) targets of K tasks
                on the same inputs. NaN (None for classes) means "not observed".
            task: (N,) integer or string labels. None: one task, or one for each column of y.
            task_features: (K, F) in the sorted order of the labels, a mapping from label to row,
                or a frame indexed by label.
            sample_weight: (N,) non-negative row weights.

        Returns:
            self.

        Raises:
            ValueError: for shapes that disagree, inputs that are not finite, unobserved targets
                only, or a likelihood of another kind.
        """
        prior = _copied(self.prior, TaskPrior, "prior=TaskClustering(num_clusters=2)")
        likelihood = _copied(self.likelihood, Likelihood, "likelihood=StudentT()")
        data, self._shared_inputs = self._as_data(
            X, y, task, task_features, sample_weight, reset=True
        )
        likelihood = self._default_likelihood() if likelihood is None else likelihood
        self._check_likelihood(likelihood)
        self._units = self._learn_units(data, likelihood)
        model = MultitaskModel(
            SharedGaussian() if prior is None else prior,
            likelihood,
            backbone=self._copied_backbone(),
            dtype=self._torch_dtype(),
        )
        self.result_: FitResult = fit(
            model,
            self._standardised(data, data.task.numpy()),
            engine=self.engine,
            seed=self._seed(),
            device=self.device,
            progress=self.progress,
        )
        self.model_ = model
        engine = choose_engine(model)[0] if self.engine is None else self.engine
        if isinstance(engine, CoordinateAscent) and not self.result_.converged:
            warnings.warn(
                f"the bound was still rising after max_iter={engine.max_iter} iterations. Give "
                f"engine=CoordinateAscent(max_iter={10 * engine.max_iter}), or a larger tol.",
                ConvergenceWarning,
                stacklevel=2,
            )
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return "model_" in vars(self)

    def _torch_dtype(self) -> torch.dtype:
        if self.dtype not in _DTYPES:
            raise ValueError(f"dtype must be one of {sorted(_DTYPES)}; got {self.dtype!r}.")
        return _DTYPES[self.dtype]

    def _seed(self) -> int:
        if isinstance(self.random_state, int | np.integer):
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    def _copied_backbone(self) -> nn.Module | None:
        backbone = _copied(self.backbone, nn.Module, "backbone=MLP(num_features, [16])")
        if backbone is None:
            return None
        return with_constant(backbone) if self.fit_intercept else backbone

    def _as_data(
        self, X: Any, y: Any, task: Any, task_features: Any, sample_weight: Any, *, reset: bool
    ) -> tuple[TaskData, bool]:
        """Checked data in the user's units, and whether y's columns are its tasks."""
        if y is None:
            raise ValueError(
                f"This {type(self).__name__} estimator requires y to be passed, but the target y "
                "is None."
            )
        x = self._checked_inputs(X, reset=reset)
        names = column_names(y)
        target = self._encode(y, reset=reset)
        check_consistent_length(x, target)
        if np.isnan(target).all():
            raise ValueError("y must have at least one observed target; got only NaN.")
        weight = None
        if sample_weight is not None:
            weight = _check_sample_weight(sample_weight, x, ensure_non_negative=True)
        if task is None and target.ndim == 2:
            data = TaskData.from_multioutput(
                x, target, tasks=names, task_features=task_features, weight=weight
            )
            return data, True
        if task is None and reset:
            task = np.zeros(len(x), dtype=np.int64)
        labels = task if reset else self._labels(task, len(x))
        return TaskData(x, target, labels, task_features=task_features, weight=weight), False

    def _checked_inputs(self, X: Any, *, reset: bool) -> Array:
        allow_nd = self.backbone is not None
        checked = validate_data(self, X, reset=reset, dtype=np.float64, allow_nd=allow_nd)
        return np.array(checked)  # a copy: memory of others may be read-only

    def _learn_units(self, data: TaskData, likelihood: Likelihood) -> Units:
        return Units.of(
            data,
            features=self.standardize and data.x.ndim == 2,
            targets=self.standardize and likelihood.location_scale,
            centred=self.fit_intercept,
            by_task=self._shared_inputs,
        )

    def _standardised(self, data: TaskData, index: npt.NDArray[np.int64]) -> TaskData:
        """The data in the model's units; `index` (N,) places each row's task among the fit's."""
        x, y, task, weight = arrays(data)
        return TaskData(
            self._features(x),
            self._units.targets(y, index),
            np.take(as_labels(list(data.tasks)), task),
            tasks=data.tasks,
            task_features=data.task_features,
            weight=weight,
        )

    def _features(self, x: Array) -> Tensor:
        """What the model sees of inputs in the user's units."""
        if self.backbone is None:
            return torch.from_numpy(self._units.features(x, intercept=self.fit_intercept))
        z = self._units.features(x) if x.ndim == 2 else x
        parameter = next(self.backbone.parameters(), None)
        return torch.from_numpy(z).to(torch.float64 if parameter is None else parameter.dtype)

    # ---- results ------------------------------------------------------------------------------

    def predict_dist(
        self,
        X: ArrayLike,
        task: Any = None,
        task_features: ArrayLike | Mapping[Hashable, Any] | None = None,
    ) -> Prediction:
        """Predictive distributions in the user's units; see `Prediction`.

        Args:
            X: (N, D) features, or (N, ...) inputs of a backbone.
            task: (N,) labels, or one label for all rows; a label outside the fit gets the
                population's prediction, with one warning. None is for a single task, and for K
                tasks on shared inputs, where every read-out has the axes (N, K, ...).
            task_features: of the tasks outside the fit, if the prior reads them: a row for each
                in order of first appearance, a mapping from label to row, or a frame indexed by
                label.

        Returns:
            the distributions. Classes are numbered by their place in `classes_`.

        Raises:
            ValueError: for a missing task, or inputs of another shape than in the fit.
        """
        check_is_fitted(self)
        x = self._checked_inputs(X, reset=False)
        tasks = self.model_.tasks
        table = task is None and self._shared_inputs
        if table:
            labels = list(tasks) * len(x)
            x = np.repeat(x, len(tasks), axis=0)
        else:
            labels = self._labels(task, len(x))
        index = self._index(labels)
        prediction = self.model_.predict(
            self._features(x), labels, task_features=_by_label(task_features)
        )
        prediction = _as_numpy(prediction)
        if self.model_.likelihood.location_scale:
            prediction = self._units.prediction(prediction, index)
        return as_table(prediction, len(tasks)) if table else prediction

    def _labels(self, task: Any, num_rows: int) -> list[Hashable]:
        tasks = self.model_.tasks
        if task is None and len(tasks) > 1:
            raise ValueError(
                f"the fit had {len(tasks)} tasks: say which task each row belongs to with task=. "
                "Inside scikit-learn's tools, request it by set_predict_request(task=True) and "
                "set_score_request(task=True) with metadata routing enabled."
            )
        if task is None or isinstance(task, str | int | np.generic):
            one = tasks[0] if task is None else as_labels([task]).tolist()[0]
            return [one] * num_rows
        labels: list[Hashable] = as_labels(task).tolist()
        if len(labels) != num_rows:
            raise ValueError(
                f"task must be one label, or one for each of the {num_rows} rows of X; got "
                f"{len(labels)} labels."
            )
        return labels

    def _index(self, labels: Sequence[Hashable]) -> npt.NDArray[np.int64]:
        """(N,) place of each label among the fit's tasks, -1 for one outside the fit."""
        index = self.model_.family().index_of(labels).numpy()
        if self._shared_inputs and (index < 0).any():
            unknown = labels[int((index < 0).argmax())]
            raise ValueError(
                f"{unknown!r} is not one of the fit's targets, {list(self.model_.tasks)[:5]}. "
                "Each column of y has units of its own, so nothing can be said of another one. "
                "Fit with task= in long form for tasks in common units."
            )
        return index

    def adapt(
        self,
        X: ArrayLike,
        y: ArrayLike,
        task: Any = None,
        task_features: ArrayLike | Mapping[Hashable, Any] | None = None,
        sample_weight: npt.ArrayLike | None = None,
    ) -> Self:
        """A copy that has also seen these rows, of new tasks or of known ones.

        Hyperparameters, backbone, units and the other tasks stay as they are.

        Args:
            X, y, task, task_features, sample_weight: as in `fit`; without `task`, rows of the
                fit's single task, or of its K tasks on shared inputs.

        Returns:
            another fitted estimator.
        """
        check_is_fitted(self)
        data, columns = self._as_data(X, y, task, task_features, sample_weight, reset=False)
        if columns != self._shared_inputs:
            form = "(N, K) targets of tasks on shared inputs" if self._shared_inputs else "task="
            raise ValueError(f"the fit had {form}: give these rows in the same form.")
        index = self._index([data.tasks[k] for k in data.task.tolist()])
        adapted = copy.copy(self)
        adapted.model_ = self.model_.adapt(self._standardised(data, index))
        return adapted


def _copied(value: _Part, kind: type[Any], example: str) -> _Part:
    """A copy of a part of the model, so that what the user gave is never changed."""
    if value is not None and not isinstance(value, kind):
        raise TypeError(
            f"{example.split('=')[0]} must be a {kind.__name__} object or None; got {value!r}. "
            f"Give for example {example}."
        )
    return copy.deepcopy(value)


def _by_label(task_features: Any) -> Any:
    """A frame as a mapping from label to row; anything else as it is."""
    if not is_frame(task_features):
        return task_features
    rows = task_features.to_numpy(dtype=np.float64)
    return dict(zip(task_features.index, rows, strict=True))


def _as_numpy(prediction: Prediction) -> Prediction:
    known = prediction.known.cpu().numpy()
    return dataclasses.replace(prediction, known=known, _numpy=True)
