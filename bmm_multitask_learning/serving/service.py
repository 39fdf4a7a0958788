"""A loaded family behind its endpoint: requests in, answers out."""

from __future__ import annotations

import json
import warnings
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, create_model

from ..layout import FILE, Layout
from ..model import MultitaskModel
from ..persistence import load
from .inputs import InputField, Inputs, Number, make_inputs, plain_rows, row_model
from .outputs import Answers, make_answers

CLASSES = "classes.json"
_COVERAGE = 0.9


@dataclass(frozen=True)
class _Newcomer:
    """All unknown tasks with the same facts: the population's prediction for them is the same."""

    facts: tuple[float, ...]


class Service:
    """One family of a model: what it takes, what it answers.

    Args:
        name: of the family.
        model: fitted.
        layout: of the table that `bmm-mtl fit` read, if there was one.
        classes: names of the classes, or none.
        max_rows: rows of a request at most.
    """

    def __init__(
        self,
        name: str,
        model: MultitaskModel,
        layout: Layout | None,
        classes: tuple[str, ...],
        *,
        max_rows: int,
    ) -> None:
        self.name = name
        self.model = model
        self.family = model[name]
        self.known = frozenset(self.family.tasks)
        self.task = layout.columns.task if layout else "task"
        self.as_text = layout is not None  # the labels of a table are text
        self.inputs: Inputs = make_inputs(model, self.family, layout)
        self.answers: Answers = make_answers(self.family, layout, classes)
        self.facts = _facts(self.family.sizes.num_task_features, layout)
        task = InputField(self.task, StrictStr | StrictInt, self.family.tasks[0])
        title = "".join(part.capitalize() for part in name.replace("-", "_").split("_"))
        row = row_model(f"{title}Row", [task, *self.inputs.fields, *self.facts])
        rows = Annotated[list[row], Field(min_length=1, max_length=max_rows)]  # type: ignore[valid-type]
        fields: dict[str, Any] = {"rows": (rows, ...)}
        if self.answers.intervals:
            fields["coverage"] = (
                Annotated[float, Field(strict=True, ge=0.01, le=0.999)],
                Field(default=_COVERAGE, description="Probability that intervals hold."),
            )
        self.request: type[BaseModel] = create_model(
            f"{title}Request", __config__=ConfigDict(extra="forbid"), **fields
        )
        self.response: type[BaseModel] = create_model(
            f"{title}Response",
            predictions=(list[self.answers.model], ...),  # type: ignore[name-defined]
        )

    def answer(self, requests: list[Any]) -> list[dict[str, Any]]:
        """Answers to several requests, from one pass of the model.

        Raises:
            ValueError: for rows that the model cannot take.
        """
        parts = [plain_rows(request.rows) for request in requests]
        rows = [row for part in parts for row in part]
        x = self.inputs.join([self.inputs.read(part) for part in parts])
        labels = [self._label(row) for row in rows]
        facts = {label: np.array(label.facts) for label in labels if isinstance(label, _Newcomer)}
        with warnings.catch_warnings():  # the answers say which tasks are known
            warnings.filterwarnings("ignore", r"\d+ task\(s\) outside the fit", UserWarning)
            prediction = self.model.predict(
                x, labels, family=self.name, task_features=facts if self.facts else None
            )
        coverages = [
            request.coverage if self.answers.intervals else _COVERAGE for request in requests
        ]
        found = {each: self.answers.of(prediction, each, rows) for each in set(coverages)}
        answers, start = [], 0
        for coverage, part in zip(coverages, parts, strict=True):
            own = found[coverage][start : start + len(part)]
            answers.append({"predictions": own})
            start += len(part)
        return answers

    def _label(self, row: dict[str, Any]) -> Hashable:
        """The row's task as the model knows it, or what stands for an unknown one."""
        label = str(row[self.task]) if self.as_text else row[self.task]
        if label in self.known:
            return label
        return _Newcomer(tuple(row[field.name] for field in self.facts))


def _facts(count: int, layout: Layout | None) -> list[InputField]:
    """Fields of the facts about a task, where the prior reads any."""
    names = layout.columns.task_features if layout else tuple(f"fact_{i}" for i in range(count))
    return [InputField(name, Number, 0.0) for name in names]


def read_folder(folder: Path, *, max_rows: int) -> list[Service]:
    """A service for each family of a saved model.

    Args:
        folder: that `bmm-mtl fit` or `MultitaskModel.save` wrote. Beside a model of the latter
            there may be `classes.json`, the names of the classes of each family by its name.
        max_rows: rows of a request at most.

    Raises:
        FileNotFoundError: if the folder holds no model.
        ValueError: for files that are damaged or do not fit.
    """
    model = load(folder)
    layout = Layout.load(folder) if (folder / FILE).is_file() else None
    classes: dict[str, list[str]] = {}
    if (folder / CLASSES).is_file():
        classes = json.loads((folder / CLASSES).read_text(encoding="utf-8"))
        if set(classes) - set(model.families):
            raise ValueError(
                f"{folder / CLASSES} must name families of the model, {sorted(model.families)}; "
                f"got {sorted(classes)}."
            )
    return [
        Service(
            name,
            model,
            layout,
            tuple(classes.get(name, ())) or (layout.classes if layout else ()),
            max_rows=max_rows,
        )
        for name in model.families
    ]
