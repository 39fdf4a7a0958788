"""Results of benchmarks: rows of figures, summarised over splits, written in three forms."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

FOLDER = Path(__file__).parents[2] / "docs" / "benchmarks"


@dataclass(frozen=True)
class Column:
    """A figure in a table: its key in the rows, its heading, its number of decimals."""

    key: str
    heading: str
    decimals: int = 3


def machine() -> str:
    """What the figures of time depend on."""
    return (
        f"{torch.get_num_threads()} thread(s), PyTorch {torch.__version__.split('+')[0]}, "
        f"NumPy {np.__version__}, Python {platform.python_version()}"
    )


def summary(rows: pd.DataFrame, by: Sequence[str], columns: Sequence[Column]) -> str:
    """Markdown table: for each method the mean over splits, ± their standard deviation."""
    groups = rows.groupby(list(by), sort=False)
    body = []
    for name, group in groups:
        cells = [_show(value) for value in name]
        for column in columns:
            values = group[column.key].dropna() if column.key in group else group.iloc[:0, 0]
            cells.append(_mean_and_spread(values.to_numpy(dtype=float), column.decimals))
        body.append(cells)
    return markdown([*by, *(column.heading for column in columns)], body)


def paired(
    rows: pd.DataFrame,
    metric: str,
    reference: str,
    *,
    by: Sequence[str] = (),
    decimals: int = 4,
) -> str:
    """Markdown table of differences to one method on the same splits, ± their standard error."""
    wide = rows.pivot_table(
        index=[*by, "split"], columns="method", values=metric, sort=False, dropna=False
    )
    differences = wide.drop(columns=reference).sub(wide[reference], axis=0)
    body = []
    for method in differences:
        column = differences[method].dropna()
        if column.empty:
            continue
        groups = column.groupby(list(by), sort=False) if by else [((), column)]
        for name, values in groups:
            label = name if isinstance(name, tuple) else (name,)
            mean, error = values.mean(), values.std(ddof=1) / np.sqrt(max(len(values), 1))
            shown = f"{mean:+.{decimals}f}"
            if len(values) > 1:
                shown += f" ± {error:.{decimals}f}"
            wins = f"{int((values > 0).sum())} of {len(values)}"
            body.append([*(_show(part) for part in label), str(method), shown, wins])
    return markdown([*by, "method", f"{metric} − {reference}", "above"], body)


def markdown(headings: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(headings) + " |", "|" + " --- |" * len(headings)]
    lines += ["| " + " | ".join(cells) + " |" for cells in body]
    return "\n".join(lines) + "\n"


def write(name: str, rows: pd.DataFrame, page: str, facts: Mapping[str, object]) -> None:
    """Write rows (CSV), protocol (JSON) and tables (Markdown), and show the tables."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    rows.to_csv(FOLDER / f"{name}.csv", index=False, float_format="%.6g")
    text = json.dumps({**facts, "machine": machine()}, indent=2, default=str)
    (FOLDER / f"{name}.json").write_text(text + "\n")
    (FOLDER / f"{name}.md").write_text(page.strip() + "\n")
    print(page)


def _show(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _mean_and_spread(values: np.ndarray, decimals: int) -> str:
    if not len(values):
        return "–"
    mean = f"{values.mean():.{decimals}f}"
    return mean if len(values) == 1 else f"{mean} ± {values.std(ddof=1):.{decimals}f}"
