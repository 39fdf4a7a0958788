"""Markdown tables of figures: summarised over splits, and compared split by split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from .protocol import Array, Metric, Protocol


def page(protocol: Protocol, rows: pd.DataFrame) -> str:
    """The protocol in words, its figures, and differences to its reference."""
    return (
        f"{protocol.text.strip()}\n\nFigures are means over the splits ± their standard "
        f"deviation.\n\n{summary(protocol, rows)}\nDifferences to `{protocol.reference}` on the "
        f"same splits, ± standard error, and on how many splits the figure is higher:\n\n"
        f"{paired(protocol, rows)}"
    )


def summary(protocol: Protocol, rows: pd.DataFrame) -> str:
    """For each size and method the number of splits, and mean ± standard deviation of figures."""
    body = []
    for label, group in _groups(rows):
        done = group[group.note.isna()]
        if done.empty:
            cells = [str(group.note.iloc[0]), *[""] * (len(protocol.metrics) - 1)]
        else:
            cells = [_shown(done[m.key].dropna().to_numpy(float), m) for m in protocol.metrics]
        body.append([*label, str(len(done)), *cells])
    headings = ["size", "method", "splits", *(metric.heading for metric in protocol.metrics)]
    return markdown(headings, body)


def paired(protocol: Protocol, rows: pd.DataFrame) -> str:
    """For each size and method the differences to the reference, ± their standard error."""
    metrics = [next(m for m in protocol.metrics if m.key == key) for key in protocol.compared]
    keys = [metric.key for metric in metrics]
    values = rows.set_index(["size", "seed"])
    reference = values.loc[values.method == protocol.reference, keys]
    body = []
    for label, group in _groups(rows):
        own = group.set_index(["size", "seed"])[keys]
        differences = (own - reference.reindex(own.index)).dropna(how="all")
        if label[1] == protocol.reference or differences.empty:
            continue
        cells = (_difference(differences[m.key].dropna().to_numpy(), m) for m in metrics)
        body.append([*label, *(cell for pair in cells for cell in pair)])
    headings = [part for metric in metrics for part in (f"Δ {metric.heading}", "higher")]
    return markdown(["size", "method", *headings], body)


def markdown(headings: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; a first column that is empty throughout is left out."""
    if body and not any(cells[0] for cells in body):
        headings, body = headings[1:], [cells[1:] for cells in body]
    lines = ["| " + " | ".join(headings) + " |", "|" + " --- |" * len(headings)]
    lines += ["| " + " | ".join(cells) + " |" for cells in body]
    return "\n".join(lines) + "\n"


def _groups(rows: pd.DataFrame) -> Iterator[tuple[tuple[str, str], pd.DataFrame]]:
    """Size by size, methods in the order of their first rows."""
    for size, part in rows.groupby("size", sort=False):
        for method, group in part.groupby("method", sort=False):
            yield (str(size), str(method)), group


def _shown(values: Array, metric: Metric) -> str:
    if not len(values):
        return "–"
    if metric.worst or len(values) == 1:
        return f"{values.max():.{metric.decimals}f}"
    return f"{values.mean():.{metric.decimals}f} ± {values.std(ddof=1):.{metric.decimals}f}"


def _difference(values: Array, metric: Metric) -> tuple[str, str]:
    if not len(values):
        return "–", ""
    decimals = metric.decimals + 1
    shown = f"{values.mean():+.{decimals}f}"
    if len(values) > 1:
        shown += f" ± {values.std(ddof=1) / np.sqrt(len(values)):.{decimals}f}"
    return shown, f"{int((values > 0).sum())} of {len(values)}"
