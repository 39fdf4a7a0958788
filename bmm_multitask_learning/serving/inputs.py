"""What a family is asked with: the fields of a row, and the model's inputs from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from pydantic import ConfigDict, Field, StrictStr, create_model
from pydantic.fields import FieldInfo
from torch import Tensor, nn

from ..backbones import TextEncoder, Words, find_text_encoder
from ..family import Family
from ..layout import Layout
from ..model import MultitaskModel

# Far beyond what anyone measures, and far from where float64 overflows.
_LARGEST = 1e100
Number = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=-_LARGEST, le=_LARGEST)]


class InputField(NamedTuple):
    """A field of a row: its name, its type and an example."""

    name: str
    kind: Any
    example: Any

    @property
    def definition(self) -> tuple[Any, FieldInfo]:
        """The field as pydantic's `create_model` takes it: the name may be any text."""
        return self.kind, Field(alias=self.name)


class Inputs(ABC):
    """From the fields of rows to inputs of the model."""

    fields: tuple[InputField, ...]

    @abstractmethod
    def read(self, rows: Sequence[dict[str, Any]]) -> Tensor:
        """Inputs (N, ...) of N rows.

        Raises:
            ValueError: for rows that the model cannot take.
        """

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The inputs of several requests as one."""
        return torch.cat(list(parts))


class ColumnInputs(Inputs):
    """Named columns of numbers, in the units of the table that was fitted."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        typical = [float(f"{value:.3g}") for value in layout.units.centre]
        self.fields = tuple(
            InputField(name, Number, value)
            for name, value in zip(layout.columns.features, typical, strict=True)
        )

    def read(self, rows: Sequence[dict[str, Any]]) -> Tensor:
        table = np.array([[row[f.name] for f in self.fields] for row in rows], dtype=np.float64)
        return torch.from_numpy(self.layout.units.features(table, intercept=True))


class VectorInputs(Inputs):
    """The features themselves, as the model was fitted to them.

    Args:
        width: how many; None: what the backbone takes.
    """

    def __init__(self, width: int | None) -> None:
        kind = Annotated[list[Number], Field(min_length=width or 1, max_length=width)]
        self.fields = (InputField("features", kind, [0.0] * (width or 1)),)

    def read(self, rows: Sequence[dict[str, Any]]) -> Tensor:
        lengths = {len(row["features"]) for row in rows}
        if len(lengths) > 1:
            raise ValueError(
                f"rows must all have as many features; got {min(lengths)} and {max(lengths)}."
            )
        return torch.tensor([row["features"] for row in rows], dtype=torch.float64)


class TextInputs(Inputs):
    """Sentences, or sentences split into words, through the backbone's tokenizer.

    Args:
        encoder: of the model.
        name: of the field.
        words: whether a row is a list of words.
    """

    def __init__(self, encoder: TextEncoder, name: str, *, words: bool) -> None:
        self.encoder = encoder
        kind: Any = StrictStr
        example: Any = "Works as described, and arrived in time."
        if words:
            word = Annotated[str, Field(strict=True, min_length=1)]
            kind = Annotated[list[word], Field(min_length=1, max_length=encoder.max_length)]
            example = ["Ada", "Lovelace", "wrote", "it", "in", "London", "."]
        self.fields = (InputField(name, kind, example),)

    def read(self, rows: Sequence[dict[str, Any]]) -> Tensor:
        [field] = self.fields
        texts = [row[field.name] for row in rows]
        for text in texts:
            "".join(text).encode()  # half a character is refused here, with a ValueError
        return self.encoder.tokens(texts)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        longest = max(part.shape[-1] for part in parts)
        padded = [
            nn.functional.pad(part, (0, longest - part.shape[-1]), value=-1) for part in parts
        ]
        return torch.cat(padded)


def make_inputs(model: MultitaskModel, family: Family, layout: Layout | None) -> Inputs:
    """The inputs that a family of a saved model reads.

    Args:
        model: as loaded.
        family: of the model.
        layout: of the table that `bmm-mtl fit` read, if there was one.
    """
    encoder = find_text_encoder(model.backbone)
    if encoder is not None:
        words = isinstance(family.reader, Words)
        name = layout.columns.text if layout else "words" if words else "text"
        return TextInputs(encoder, name, words=words)
    if layout is not None:
        return ColumnInputs(layout)
    plain = isinstance(model.backbone, nn.Identity)
    return VectorInputs(family.sizes.num_features if plain and family.reader is None else None)


def row_model(name: str, fields: Sequence[InputField]) -> Any:
    """A pydantic model of a row: every field wanted, no other taken."""
    example = {field.name: field.example for field in fields}
    config = ConfigDict(extra="forbid", json_schema_extra={"examples": [example]})
    definitions: dict[str, Any] = {
        f"field_{place}": field.definition for place, field in enumerate(fields)
    }
    return create_model(name, __config__=config, **definitions)


def plain_rows(rows: Sequence[Any]) -> list[dict[str, Any]]:
    """Rows as dictionaries by the fields' own names."""
    return [row.model_dump(by_alias=True) for row in rows]
