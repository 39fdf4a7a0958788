"""The HTTP application of a saved model."""

from __future__ import annotations

import math
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from .. import __version__
from .batching import Batcher
from .limits import BodyLimit
from .service import Service, read_folder


class Problem(BaseModel):
    """One thing that is wrong with a request."""

    loc: list[str | int]
    msg: str


class Problems(BaseModel):
    """What is wrong with a request."""

    detail: list[Problem]


class Refusal(BaseModel):
    """Why a request was refused."""

    detail: str


class Health(BaseModel):
    """That the model is loaded, and its families."""

    status: str
    version: str
    families: list[str]


class TaskInfo(BaseModel):
    """A task of the fit."""

    task: str | int
    rows: int


class Relations(BaseModel):
    """Relations between the tasks of a family; what they mean is the prior's to say."""

    prior: str
    tasks: list[str | int]
    relations: list[list[float | None]]


_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": Refusal, "description": "The body cannot be read."},
    413: {"model": Refusal, "description": "The body is too large."},
    422: {"model": Problems, "description": "Unknown columns, wrong types, too many rows."},
}


def create_app(
    folder: str | Path, *, max_rows: int = 1000, max_bytes: int = 2_000_000, window: float = 0.002
) -> FastAPI:
    """A FastAPI application with a typed endpoint for each family of a saved model.

    `POST /predict/{family}` answers rows, `GET /tasks`, `/relations` and `/health` tell of the
    model, `/openapi.json` and `/docs` describe it all, with examples. An unknown task gets the
    population's prediction, with `known` false. What is wrong with a request is answered with a
    status 4xx and the reason. Requests that wait at the same time go through the model together;
    answers are those of single ones up to rounding.

    Args:
        folder: that `bmm-mtl fit` or `MultitaskModel.save` wrote; nothing in it is executed.
        max_rows: rows of a request, and of a pass of the model, at most.
        max_bytes: of the body of a request at most.
        window: seconds that a request waits for others.

    Raises:
        FileNotFoundError: if the folder holds no model.
        ValueError: for files that are damaged or do not fit.

    Example:
        >>> import tempfile
        >>> from fastapi.testclient import TestClient
        >>> from bmm_multitask_learning import MultitaskModel, datasets, fit
        >>> data, truth = datasets.make_clusters(num_tasks=6, num_features=2, seed=0)
        >>> model = MultitaskModel()
        >>> result = fit(model, data, progress=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save(folder)
        ...     client = TestClient(create_app(folder))
        >>> row = {"task": 3, "features": [1.0, 0.5]}
        >>> answer = client.post("/predict/tasks", json={"rows": [row]})
        >>> [sorted(each) for each in answer.json()["predictions"]]
        [['known', 'lower', 'mean', 'std', 'upper']]
    """
    services = read_folder(Path(folder), max_rows=max_rows)
    app = FastAPI(
        title="bmm-mtl",
        summary="Predictions of related tasks, with intervals.",
        version=__version__,
    )
    app.add_middleware(BodyLimit, max_bytes=max_bytes)
    app.add_exception_handler(RequestValidationError, _explain)
    _add_facts(app, services)
    for service in services:
        _add_endpoint(app, service, max_rows, window)
    names = [service.name for service in services]

    @app.post("/predict/{family}", include_in_schema=False)
    def predict_unknown(family: str) -> None:
        raise HTTPException(404, f"there is no family {family!r}; there are {names}.")

    return app


def run(app: FastAPI, *, host: str, port: int) -> None:
    """Serve an application by uvicorn until it is stopped.

    More than 1000 connections at once are answered 503.
    """
    uvicorn.run(app, host=host, port=port, log_level="warning", limit_concurrency=1000)


def _add_endpoint(app: FastAPI, service: Service, max_rows: int, window: float) -> None:
    batcher = Batcher(service.answer, max_size=max_rows, window=window)

    async def predict(request: Any) -> JSONResponse:
        try:
            return JSONResponse(await batcher(request, size=len(request.rows)))
        except ValueError as error:
            raise RequestValidationError([{"loc": ("body", "rows"), "msg": str(error)}]) from error

    predict.__annotations__["request"] = service.request  # made at run time, of the model
    app.post(
        f"/predict/{service.name}",
        response_model=service.response,
        responses=_ERRORS,
        summary=f"Predict rows of {service.name}",
        operation_id=f"predict_{service.name}",
    )(predict)


def _add_facts(app: FastAPI, services: list[Service]) -> None:
    @app.get("/health")
    def health() -> Health:
        """That the model is loaded, and its families."""
        return Health(status="ok", version=__version__, families=[s.name for s in services])

    @app.get("/tasks")
    def tasks() -> dict[str, list[TaskInfo]]:
        """The tasks of each family, and their rows in the fit."""
        return {
            s.name: [
                TaskInfo(task=_label(task), rows=rows)
                for task, rows in zip(s.family.tasks, s.family.rows_per_task, strict=True)
            ]
            for s in services
        }

    @app.get("/relations")
    def relations() -> dict[str, Relations]:
        """How the tasks of each family are related, (K, K)."""
        found = {}
        for s in services:
            with torch.no_grad():
                values = s.family.prior.relations().tolist()
            found[s.name] = Relations(
                prior=type(s.family.prior).__name__,
                tasks=[_label(task) for task in s.family.tasks],
                relations=[[v if math.isfinite(v) else None for v in row] for row in values],
            )
        return found


def _label(task: Hashable) -> str | int:
    return task if isinstance(task, int) else str(task)


def _explain(request: Request, error: Exception) -> JSONResponse:
    """What is wrong with a request, without repeating its values."""
    assert isinstance(error, RequestValidationError)
    detail = [
        {"loc": [_printable(part) for part in each["loc"]], "msg": _printable(each["msg"])}
        for each in error.errors()
    ]
    return JSONResponse({"detail": detail}, status_code=422)


def _printable(part: str | int) -> str | int:
    """Text that can be sent: lone surrogates cannot."""
    return part if isinstance(part, int) else part.encode("utf-8", "replace").decode("utf-8")
