"""What a saved model needs to read further tables: columns, units, classes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from .data import TaskData
from .scaling import Scaling
from .tabular import Columns, TableError, TargetKind, numbers

FILE = "table.json"
_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a fitted model needs to read further tables: columns, units and classes.

    Args:
        columns: with all features named.
        kind: of the target.
        classes: of the target, or none.
        scaling: of the features.
        centre: of the target; 0 unless it is a real number.
        scale: of the target; 1 unless it is a real number.
    """

    columns: Columns
    kind: TargetKind
    classes: tuple[str, ...]
    scaling: Scaling
    centre: float
    scale: float

    @classmethod
    def of(
        cls, data: TaskData, columns: Columns, kind: TargetKind, classes: tuple[str, ...]
    ) -> Layout:
        """The layout whose units are those of the rows `data`."""
        centre, scale = 0.0, 1.0
        if kind is TargetKind.REAL:
            y = data.y[data.observed]
            centre, scale = float(y.mean()), float(y.std(correction=0)) or 1.0
        return cls(columns, kind, classes, Scaling.of(data.x), centre, scale)

    def features(self, frame: pd.DataFrame) -> Tensor:
        """Features (N, D) of a table in the model's units, a constant one first."""
        return self.scaling.apply(torch.from_numpy(numbers(frame, self.columns.features)))

    def standardise(self, data: TaskData) -> TaskData:
        """The rows in the model's units, a constant feature first."""
        return TaskData(
            self.scaling.apply(data.x),
            (data.y - self.centre) / self.scale,
            [data.tasks[k] for k in data.task.tolist()],
            tasks=data.tasks,
            task_features=data.task_features,
        )

    def save(self, folder: Path) -> None:
        """Write `table.json` beside the model."""
        content = {
            "version": _VERSION,
            **dataclasses.asdict(self.columns),
            "kind": self.kind.name,
            "classes": self.classes,
            "feature_mean": self.scaling.mean.tolist(),
            "feature_scale": self.scaling.scale.tolist(),
            "target_mean": self.centre,
            "target_scale": self.scale,
        }
        text = json.dumps(content, indent=2, ensure_ascii=False)
        (folder / FILE).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Layout:
        """Read what `save` wrote.

        Raises:
            TableError: it is not there, or was not written by this library.
        """
        file = folder / FILE
        if not file.is_file():
            raise TableError(f"no {FILE} in {folder}: give a folder that bmm-mtl fit wrote.")
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            columns = Columns(
                content["task"],
                content["target"],
                tuple(content["features"]),
                tuple(content["task_features"]),
            )
            mean, scale = (
                torch.tensor(content[name], dtype=torch.float64)
                for name in ("feature_mean", "feature_scale")
            )
            return cls(
                columns,
                TargetKind[content["kind"]],
                tuple(content["classes"]),
                Scaling(mean, scale),
                content["target_mean"],
                content["target_scale"],
            )
        except (ValueError, KeyError, TypeError) as error:
            raise TableError(f"{file} is damaged ({error!r}). Run bmm-mtl fit again.") from error
