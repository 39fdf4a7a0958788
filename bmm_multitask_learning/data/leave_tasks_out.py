"""Cross-validation over whole tasks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import GroupKFold


class LeaveTasksOut(GroupKFold):  # type: ignore[misc]  # scikit-learn is not typed
    """K-fold over tasks: every test fold holds whole tasks that training never saw.

    A thin `sklearn.model_selection.GroupKFold` whose groups are the task labels.

    Args:
        n_splits: Folds, at most the number of tasks.
        shuffle: Whether tasks are assigned to folds at random; otherwise folds are balanced in
            rows.
        random_state: Seed of the assignment.

    Example:
        >>> import numpy as np
        >>> from bmm_multitask_learning.data import LeaveTasksOut
        >>> task = np.array(["a", "a", "b", "b", "c"])
        >>> folds = LeaveTasksOut(3, shuffle=False).split(task, groups=task)
        >>> [task[test].tolist() for train, test in folds]
        [['b', 'b'], ['a', 'a'], ['c']]
    """

    def __init__(
        self, n_splits: int = 5, *, shuffle: bool = True, random_state: int | None = None
    ) -> None:
        super().__init__(n_splits=n_splits, shuffle=shuffle, random_state=random_state)

    def split(
        self, X: Any, y: Any = None, groups: Any = None
    ) -> Iterator[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]]:
        """Yield train and test rows of each fold.

        Args:
            X: (N, ...) inputs; only their number is read.
            y: (N, ...) targets, not read.
            groups: (N,) task labels.

        Returns:
            Pairs of row indices (train, test).

        Raises:
            ValueError: Without groups, or with fewer tasks than folds.
        """
        if groups is None:
            raise ValueError(
                "LeaveTasksOut needs the task of each row as groups; got none. Pass groups=task, "
                "e.g. cross_validate(model, X, y, groups=task, cv=LeaveTasksOut())."
            )
        folds: Iterator[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]]
        folds = super().split(X, y, groups)
        return folds
