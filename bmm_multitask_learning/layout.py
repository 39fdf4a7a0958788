"""What a saved model needs to read further tables: columns, units, classes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from .backbones.text_encoder import find_text_encoder
from .data import TaskData
from .tabular import Columns, TableError, TargetKind, numbers, sentences
from .units import Units

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
        """The layout whose units are those of the rows `data`; those of sentences stay 1."""
        units = Units.of(data, features=not columns.text, targets=kind is TargetKind.REAL)
        return cls(columns, kind, classes, units)

    def inputs(self, frame: pd.DataFrame, backbone: nn.Module) -> Tensor:
        """The model's inputs from a table: features after a constant one, or tokens (N, 2, L).

        Raises:
            TableError: anything in the table that does not fit, or a model without the encoder
                that the layout needs.
        """
        if not self.columns.text:
            features = numbers(frame, self.columns.features)
            return torch.from_numpy(self.units.features(features, intercept=True))
        encoder = find_text_encoder(backbone)
        if encoder is None:
            raise TableError(f"{FILE} names a text, but the model has no encoder: fit it again.")
        return encoder.tokens(sentences(frame, self.columns.text))

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
                content.get("text", ""),  # older releases had none
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
