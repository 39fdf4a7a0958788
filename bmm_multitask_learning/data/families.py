"""One frame whose rows carry labels for several families of tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .arrays import ArrayLike, is_frame
from .construction import check_columns, frame_parts, other_numeric_columns
from .task_data import TaskData

if TYPE_CHECKING:
    import pandas as pd

_ROLES = ("target", "task", "weight", "task_features", "tasks")


class MakesTokens(Protocol):
    """What turns texts into rows of tokens: a `TextEncoder`."""

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Rows (N, 2, L) of N texts."""


def families_from_frame(
    df: pd.DataFrame,
    families: Mapping[str, Mapping[str, Any]],
    features: Sequence[str] | None = None,
    *,
    text: str | None = None,
    encoder: MakesTokens | None = None,
) -> dict[str, TaskData]:
    """Build the data of several families from a frame whose rows have labels for some of them.

    A row is left out of a family for which it has no label at all; its task may be missing there.
    Families see the same columns as inputs. Texts are turned into tokens once for all families.

    Args:
        df: rows.
        families: for each family its columns by role, as in `TaskData.from_frame`: "target" and
            "task", and where wanted "weight", "task_features" and "tasks".
        features: columns of x; None: every numeric column that no family names.
        text: column of texts, whose tokens are x in place of features; needs `encoder`.
        encoder: a text encoder, the model's backbone.

    Returns:
        The data of each family by its name.

    Raises:
        KeyError: where a column does not exist.
        TypeError: where ``df`` is no frame, a column that must be numeric is not, or a text is
            missing.
        ValueError: where a family has no labels, an unknown role or an impossible column; texts
            without an encoder, or together with features.

    Example:
        >>> import pandas as pd
        >>> nan = float("nan")
        >>> df = pd.DataFrame({"hours": [1.0, 2.0, 3.0], "school": ["a", "b", "b"],
        ...                    "mark": [5.0, nan, 6.0], "passed": [nan, 0.0, 1.0]})
        >>> data = families_from_frame(df, {
        ...     "marks": {"target": "mark", "task": "school"},
        ...     "exams": {"target": "passed", "task": "school"},
        ... })
        >>> data["marks"].y, data["exams"].x
        (tensor([5., 6.], dtype=torch.float64), tensor([[2.],
        [3.]], dtype=torch.float64))
    """
    if not is_frame(df):
        raise TypeError(f"df must be a pandas DataFrame; got {type(df).__name__}.")
    if not families:
        raise ValueError("families must name at least one family; got none.")
    if (text is None) != (encoder is None):
        raise ValueError("texts need both text=, their column, and encoder=, which reads them.")
    if text is not None and features is not None:
        raise ValueError(f"inputs are texts or features, not both; got {text!r} and {features}.")
    for name, roles in families.items():
        _check_roles(name, roles)
        check_columns(df, [*_targets(roles), roles["task"]], f"family {name!r}")
    labelled = {name: _labelled(df, name, roles) for name, roles in families.items()}
    x: Tensor | None = None
    if text is not None and encoder is not None:
        check_columns(df, [text], "text")
        needed = np.flatnonzero(np.any(list(labelled.values()), axis=0))
        place = np.full(len(df), -1)  # of each row among the tokens
        place[needed] = np.arange(len(needed))
        x, features = encoder.tokens(df[text].iloc[needed].tolist()), []
    elif features is None:
        features = other_numeric_columns(df, [c for r in families.values() for c in _named(r)])
    data = {}
    for name, roles in families.items():
        rows = labelled[name]
        try:
            parts = frame_parts(
                *(df[rows], roles["target"], roles["task"], features),
                *(roles.get("weight"), roles.get("task_features")),
            )
            inputs: ArrayLike = parts.rows[0] if x is None else x[torch.from_numpy(place[rows])]
            data[name] = TaskData(
                inputs,
                *parts.rows[1:],
                tasks=roles.get("tasks"),
                weight=parts.weight,
                task_features=parts.task_features,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise type(error)(f"family {name!r}: {error.args[0]}") from error
    return data


def _check_roles(name: str, roles: Mapping[str, Any]) -> None:
    unknown = [role for role in roles if role not in _ROLES]
    if unknown or "target" not in roles or "task" not in roles:
        raise ValueError(
            f"family {name!r} must have the roles 'target' and 'task', and may have "
            f"{', '.join(_ROLES[2:])}; got {list(roles)}."
        )


def _targets(roles: Mapping[str, Any]) -> list[str]:
    target = roles["target"]
    return [target] if isinstance(target, str) else list(target)


def _named(roles: Mapping[str, Any]) -> list[str]:
    """Columns that a family names: they are no features."""
    named = [*_targets(roles), roles["task"], roles.get("weight")]
    task_features = roles.get("task_features")
    if task_features is not None and not is_frame(task_features):
        named += task_features
    return [column for column in named if column is not None]


def _labelled(df: pd.DataFrame, name: str, roles: Mapping[str, Any]) -> npt.NDArray[np.bool_]:
    """(N,) which rows have a label of the family."""
    rows = np.asarray(df[_targets(roles)].notna().any(axis=1), dtype=np.bool_)
    if not rows.any():
        raise ValueError(
            f"family {name!r} must have a label in some row; got none in {_targets(roles)}."
        )
    return rows
