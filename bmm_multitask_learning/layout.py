"""What a saved model needs to read further tables: columns, units, classes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd

from .data import TaskData
from .tabular import Columns, TableError, TargetKind, numbers
from .units import Array, Units

FILE = "table.json"
_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a fitted model needs to read further tables: columns, units and classes.

    Args:
        columns: with all features named.
        kind: of the target.
        classes: of the target, or none.
        units: of the features, and of a target that is a real number.
    """

    columns: Columns
    kind: TargetKind
    classes: tuple[str, ...]
    units: Units

    @classmethod
    def of(
        cls, data: TaskData, columns: Columns, kind: TargetKind, classes: tuple[str, ...]
    ) -> Layout:
        """The layout whose units are those of the rows `data`."""
        return cls(columns, kind, classes, Units.of(data, targets=kind is TargetKind.REAL))

    def features(self, frame: pd.DataFrame) -> Array:
        """Features (N, 1 + D) of a table in the model's units, a constant one first."""
        return self.units.features(numbers(frame, self.columns.features), intercept=True)

    def save(self, folder: Path) -> None:
        """Write `table.json` beside the model."""
        content = {
            "version": _VERSION,
            **dataclasses.asdict(self.columns),
            "kind": self.kind.name,
            "classes": self.classes,
            "units": {
                field.name: getattr(self.units, field.name).tolist()
                for field in dataclasses.fields(Units)
            },
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
            units = Units(
                *(
                    np.array(content["units"][field.name], dtype=np.float64)
                    for field in dataclasses.fields(Units)
                )
            )
            kind = TargetKind[content["kind"]]
            return cls(columns, kind, tuple(content["classes"]), units)
        except (ValueError, KeyError, TypeError) as error:
            raise TableError(f"{file} is damaged ({error!r}). Run bmm-mtl fit again.") from error
