"""`TaskData`: the rows of K tasks in long form."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, final

import numpy as np
import torch

from . import construction
from .arrays import ArrayLike, as_inputs, as_names, as_targets, as_weight, column_names
from .labels import as_labels, as_task_features, as_tasks, index_rows, shown
from .long_form import LongForm
from .samplers import Batch, RowsByTask, Sampler, as_sampler
from .sampling import check_fraction, fold_rows, split_rows

if TYPE_CHECKING:
    import pandas as pd


@final
class TaskData(LongForm):
    """Rows of K tasks in long form: row n has inputs x_n, targets y_n and belongs to task_n.

    Tasks of different size, targets that were not observed (NaN) and tasks without rows need no
    special case. Methods return new objects; nothing is changed in place.

    Args:
        x: (N, D) or (N, ...) finite numbers: array, tensor, nested list or frame. A floating
            tensor keeps its dtype, and so does an int32 or int64 tensor of three or more axes,
            which is for backbones that embed, such as text encoders; everything else becomes
            float64.
        y: (N,) or (N, O) targets in the dtype of x, float64 where x holds integers; NaN means
            "not observed".
        task: (N,) integer or string labels.
        task_features: (K, F) features of the tasks in the order of ``tasks``, or a mapping from
            label to row, or a frame indexed by label.
        weight: (N,) non-negative row weights.
        tasks: The K labels in the order wanted, also of tasks without rows; None: the sorted
            labels that occur.
        feature_names: D names of the columns of x.
        target_names: O names of the targets.
        task_feature_names: F names of the task features.

    Attributes:
        x: (N, ...) inputs.
        y: (N,) or (N, O) targets.
        task: (N,) task index of each row, 0..K-1.
        weight: (N,) row weights or None.
        tasks: The K labels.
        task_features: (K, F) or None.
        feature_names: Names of the features or None.
        target_names: Names of the targets or None.
        task_feature_names: Names of the task features or None.

    Raises:
        TypeError: Where values are no numbers, or labels neither integers nor strings.
        ValueError: Where shapes disagree, x is not finite, y is infinite or a label is missing.

    Example:
        >>> from bmm_multitask_learning.data import TaskData
        >>> data = TaskData([[0.0], [1.0], [2.0]], [1.0, 2.0, 3.0], ["a", "b", "a"])
        >>> data
        TaskData(3 rows, 2 tasks, 1 to 2 rows a task, 1 feature, 1 output, torch.float64 on cpu)
        >>> data.task
        tensor([0, 1, 0])
    """

    def __init__(
        self,
        x: ArrayLike,
        y: ArrayLike,
        task: Any,
        *,
        task_features: ArrayLike | Mapping[Hashable, Any] | None = None,
        weight: ArrayLike | None = None,
        tasks: Sequence[Hashable] | None = None,
        feature_names: Sequence[str] | None = None,
        target_names: Sequence[str] | None = None,
        task_feature_names: Sequence[str] | None = None,
    ) -> None:
        if feature_names is None:
            feature_names = column_names(x)
        self.x = as_inputs(x, feature_names)
        self.y = as_targets(y, self.x)
        labels = as_labels(task)
        if len(labels) != len(self.x):
            raise ValueError(
                f"task must have one label per row of x, N = {len(self.x)}; got {len(labels)}."
            )
        self.tasks = as_tasks(tasks, labels)
        self.task = index_rows(labels, self.tasks).to(self.x.device)
        self.weight = None if weight is None else as_weight(weight, self.y)
        self.feature_names = as_names(feature_names, self.x.shape[1], "feature_names")
        if target_names is None:
            target_names = column_names(y)
        self.target_names = as_names(target_names, self.num_outputs, "target_names")
        self.task_features = None
        if task_features is not None:
            self.task_features = as_task_features(task_features, self.tasks, self.y)
            if task_feature_names is None and not isinstance(task_features, Mapping):
                task_feature_names = column_names(task_features)
        self.task_feature_names = as_names(
            task_feature_names, self.num_task_features, "task_feature_names"
        )

    # Other ways to build one

    @classmethod
    def from_frame(
        cls,
        df: pd.DataFrame,
        target: str | Sequence[str],
        task: str,
        features: Sequence[str] | None = None,
        *,
        weight: str | None = None,
        task_features: Sequence[str] | pd.DataFrame | None = None,
        tasks: Sequence[Hashable] | None = None,
    ) -> TaskData:
        """Build from a pandas frame with one row per observation.

        Args:
            df: N rows.
            target: Column of the target, giving y (N,), or a list of O columns, giving (N, O).
            task: Column of the task labels: integers or strings.
            features: Columns of x; None: every other numeric column.
            weight: Column of row weights.
            task_features: Columns constant within each task, or a frame indexed by task label.
            tasks: As in `TaskData`.

        Returns:
            The data; column names become feature, target and task feature names.

        Raises:
            KeyError: Where a column does not exist.
            TypeError: Where ``df`` is no frame or a column that must be numeric is not.
            ValueError: Where a task feature varies within a task.

        Example:
            >>> import pandas as pd
            >>> df = pd.DataFrame({"school": ["a", "a"], "hours": [1, 2], "mark": [5, 6]})
            >>> TaskData.from_frame(df, target="mark", task="school").feature_names
            ('hours',)
        """
        parts = construction.frame_parts(df, target, task, features, weight, task_features)
        return cls(
            *parts.rows, tasks=tasks, weight=parts.weight, task_features=parts.task_features
        )

    @classmethod
    def from_multioutput(
        cls,
        X: ArrayLike,
        Y: ArrayLike,
        *,
        tasks: Sequence[Hashable] | None = None,
        task_features: ArrayLike | Mapping[Hashable, Any] | None = None,
        weight: ArrayLike | None = None,
        feature_names: Sequence[str] | None = None,
        task_feature_names: Sequence[str] | None = None,
    ) -> TaskData:
        """Build from K targets on shared inputs; a row per observed entry of Y, sorted by task.

        Args:
            X: (N, ...) inputs.
            Y: (N, K) targets, a column per task; NaN entries are left out.
            tasks: K labels; None: the column names of a frame, otherwise 0..K-1.
            task_features: As in `TaskData`.
            weight: (N,) weights of the rows of X.
            feature_names: As in `TaskData`.
            task_feature_names: As in `TaskData`.

        Returns:
            The data, with as many rows as Y has observed entries.

        Example:
            >>> data = TaskData.from_multioutput([[1.0], [2.0]], [[0.1, 0.2], [float("nan"), 0.4]])
            >>> data.y, data.task
            (tensor([0.1000, 0.2000, 0.4000], dtype=torch.float64), tensor([0, 1, 1]))
        """
        names = column_names(X) if feature_names is None else feature_names
        x = as_inputs(X, names)
        y, row, task, labels = construction.multioutput_parts(x, Y, tasks)
        return cls(
            x[row],
            y,
            construction.take_labels(labels, task),
            tasks=labels,
            task_features=task_features,
            weight=None if weight is None else as_weight(weight, x)[row],
            feature_names=names,
            task_feature_names=task_feature_names,
        )

    @classmethod
    def from_dict(
        cls,
        tables: Mapping[Hashable, tuple[ArrayLike, ArrayLike]],
        *,
        task_features: ArrayLike | Mapping[Hashable, Any] | None = None,
        feature_names: Sequence[str] | None = None,
        task_feature_names: Sequence[str] | None = None,
    ) -> TaskData:
        """Build from a table of inputs and targets for each task.

        Args:
            tables: From task label to inputs (n_k, D) and targets (n_k,) or (n_k, O).
            task_features: As in `TaskData`, in the order of ``tables``.
            feature_names: As in `TaskData`.
            task_feature_names: As in `TaskData`.

        Returns:
            The data, sorted by task, tasks in the order of ``tables``.

        Raises:
            ValueError: Where a task has no rows or another width than the first; it is named.

        Example:
            >>> tables = {"b": ([[1.0]], [0.5]), "a": ([[2.0], [3.0]], [0.1, 0.2])}
            >>> TaskData.from_dict(tables).tasks
            ('b', 'a')
        """
        x, y, task, labels, names = construction.table_parts(tables)
        return cls(
            x,
            y,
            construction.take_labels(labels, task),
            tasks=labels,
            task_features=task_features,
            feature_names=names if feature_names is None else feature_names,
            task_feature_names=task_feature_names,
        )

    @classmethod
    def concat(cls, parts: Sequence[TaskData]) -> TaskData:
        """All rows of several data sets; tasks of the same label become one.

        Args:
            parts: Data with rows of the same shape; tasks are kept in order of first appearance.

        Returns:
            The data in the dtype and on the device of the first part.

        Raises:
            ValueError: Where shapes, names or the task features of a label disagree.

        Example:
            >>> one = TaskData([[1.0]], [0.5], ["a"])
            >>> TaskData.concat([one, TaskData([[2.0]], [0.1], ["b"])]).tasks
            ('a', 'b')
        """
        return cls(**construction.concat_parts(parts))

    # Parts of it

    def select_tasks(self, labels: Any) -> TaskData:
        """Only the tasks named, in the order named, with all their rows.

        Args:
            labels: Labels of ``tasks``, or one label.

        Returns:
            Data of as many tasks as labels; rows keep their order.

        Raises:
            ValueError: Where a label is unknown or named twice.

        Example:
            >>> data = TaskData([[1.0], [2.0], [3.0]], [0.5, 0.1, 0.3], ["a", "b", "c"])
            >>> data.select_tasks(["c", "a"]).task
            tensor([1, 0])
        """
        chosen = self.index_of(labels)
        if bool((chosen < 0).any()):
            unknown = np.atleast_1d(np.asarray(labels))[(chosen < 0).cpu().numpy()][0]
            raise ValueError(
                f"labels must be among the K = {self.num_tasks} tasks ({shown(self.tasks)}); got "
                f"{np.asarray(unknown).item()!r}. Drop it or look for a misspelling."
            )
        if len(chosen) == 0 or len(set(chosen.tolist())) < len(chosen):
            raise ValueError(
                "labels must name at least one task, each once; got none or a repeat."
            )
        position = torch.full((self.num_tasks,), -1, device=self.device)
        position[chosen] = torch.arange(len(chosen), device=self.device)
        part = self.rows(position[self.task] >= 0)
        return part._replace(
            task=position[part.task],
            tasks=tuple(self.tasks[k] for k in chosen.tolist()),
            task_features=None if self.task_features is None else self.task_features[chosen],
        )

    def split(self, train_fraction: float = 0.75, *, seed: int) -> tuple[TaskData, TaskData]:
        """Split the rows of every task at random.

        ``np.random.default_rng(seed)`` draws one permutation per task, tasks in their order; of a
        task's n rows the first ⌊fraction · n⌋, at least one, are train rows.

        Args:
            train_fraction: Share of the rows of each task that train, in (0, 1).
            seed: Seed of the permutations.

        Returns:
            Train and test data, rows in the order of before, with the same tasks.

        Example:
            >>> data = TaskData(torch.ones(8, 1), torch.ones(8), [0, 0, 0, 0, 1, 1, 1, 1])
            >>> train, test = data.split(0.75, seed=0)
            >>> train.rows_per_task, test.rows_per_task
            (tensor([3, 3]), tensor([1, 1]))
        """
        order, counts = self.order.cpu().numpy(), self.rows_per_task.cpu().numpy()
        train, test = split_rows(order, counts, train_fraction, seed)
        return self.rows(train), self.rows(test)

    def folds(self, num_folds: int, *, seed: int) -> Iterator[tuple[TaskData, TaskData]]:
        """Deal the rows of every task into folds; each fold is the test part once.

        A task's rows are spread as evenly as they can be, beginning at a fold drawn for the task,
        so that folds are of one size also where tasks have fewer rows than there are folds. A
        task whose only row is a test row has no train row then.

        Args:
            num_folds: Number of folds, from 2 to the number of rows.
            seed: Seed of the deal.

        Returns:
            An iterator over pairs of train and test data, with the same tasks.

        Raises:
            ValueError: Where ``num_folds`` is out of range.

        Example:
            >>> data = TaskData(torch.ones(8, 1), torch.ones(8), [0, 0, 0, 0, 1, 1, 1, 1])
            >>> [test.rows_per_task.tolist() for train, test in data.folds(2, seed=0)]
            [[2, 2], [2, 2]]
        """
        if not 2 <= num_folds <= self.num_rows:
            raise ValueError(
                f"num_folds must lie between 2 and the number of rows, {self.num_rows}; got "
                f"{num_folds}."
            )
        order, counts = self.order.cpu().numpy(), self.rows_per_task.cpu().numpy()
        fold = fold_rows(order, counts, num_folds, seed)
        parts = [np.flatnonzero(fold == number) for number in range(num_folds)]
        others = [np.flatnonzero(fold != number) for number in range(num_folds)]
        return ((self.rows(a), self.rows(b)) for a, b in zip(others, parts, strict=True))

    def split_tasks(self, test_fraction: float = 0.2, *, seed: int) -> tuple[TaskData, TaskData]:
        """Split whole tasks at random: ⌊fraction · K⌋ of them, at least one, are test tasks.

        Args:
            test_fraction: Share of the tasks that test, in (0, 1).
            seed: Seed of the permutation of tasks.

        Returns:
            Train and test data, without a task in common.

        Raises:
            ValueError: With fewer than two tasks.

        Example:
            >>> data = TaskData(torch.ones(4, 1), torch.ones(4), ["a", "b", "c", "d"])
            >>> train, test = data.split_tasks(0.25, seed=0)
            >>> train.num_tasks, test.num_tasks
            (3, 1)
        """
        check_fraction(test_fraction, "test_fraction")
        if self.num_tasks < 2:
            raise ValueError("split_tasks needs at least 2 tasks; got 1. Use split for its rows.")
        shuffled = np.random.default_rng(seed).permutation(self.num_tasks)
        count = max(1, int(np.floor(np.round(test_fraction * self.num_tasks, 9))))
        chosen = [np.sort(part) for part in (shuffled[count:], shuffled[:count])]
        train, test = ([self.tasks[k] for k in part.tolist()] for part in chosen)
        return self.select_tasks(train), self.select_tasks(test)

    def batches(
        self,
        batch_size: int,
        *,
        generator: torch.Generator,
        sampling: Sampler | Literal["proportional", "uniform"] | float = "proportional",
        step: int = 0,
    ) -> Iterator[Batch]:
        """One epoch of minibatches with E[Σ_b scale_b ℓ_b] = Σ_n ℓ_n for any ℓ.

        A task is drawn with p_k ∝ n_k^t. For t = 1, "proportional", the epoch is one shuffled pass
        in which each row comes once, and scale = N/B. For t < 1 small tasks come more often: rows
        are drawn with replacement, a task by p_k and a row of it uniformly, scale = n_k/(B p_k).
        Other ways to draw are samplers: `Annealed`, `RoundRobin`, `Resampled`, or your own. Row
        weights are no part of the scale.

        Args:
            batch_size: B, rows of a batch; the last of a shuffled pass may have fewer.
            generator: Source of the draws.
            sampling: "proportional" (t = 1), "uniform" (t = 0), the temperature t in [0, 1], or a
                `Sampler`.
            step: Batches drawn in epochs before this one, for samplers that change as they go.

        Returns:
            An iterator over ⌈N/B⌉ batches, or as many as the sampler says.

        Raises:
            ValueError: Where ``batch_size`` or ``sampling`` is out of range.

        Example:
            >>> data = TaskData(torch.ones(5, 1), torch.ones(5), [0, 0, 0, 0, 1])
            >>> epoch = data.batches(2, generator=torch.Generator().manual_seed(0))
            >>> [len(batch.index) for batch in epoch]
            [2, 2, 1]
        """
        sampler = as_sampler(sampling)
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {batch_size}.")
        if self.num_rows == 0:
            raise ValueError("batches needs at least one row; got none.")
        size = min(int(batch_size), self.num_rows)
        rows = RowsByTask(self.order, self.rows_per_task, self.y)
        return sampler.batches(rows, size, generator, step)
