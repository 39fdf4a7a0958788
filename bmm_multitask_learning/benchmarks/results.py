"""Rows of figures on disk: kept from one run to the next, and written as tables."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy
import sklearn
import torch
from tqdm.auto import tqdm

from .. import __version__
from .protocol import Figures, Protocol, Split
from .tables import page


def measure(protocol: Protocol, runs: Sequence[tuple[Split, str]] | None = None) -> pd.DataFrame:
    """Measure without a file.

    Args:
        protocol: what to measure.
        runs: pairs of split and method; None takes all.

    Returns:
        A row a pair: size, seed, method and the figures.
    """
    pairs = protocol.runs() if runs is None else runs
    rows = [(split, method, protocol.run(split, method)) for split, method in pairs]
    return pd.DataFrame(
        [{**split._asdict(), "method": method, **figures} for split, method, figures in rows]
    )


class Results:
    """The rows of one protocol in a folder: `name.csv`, `name.json` and `name.md`.

    Rows that an earlier run of the same protocol left are kept, and not measured again; a row
    without figures is. Rows of another protocol, or of other versions of the libraries, are
    dropped when the first new row is written.

    Args:
        protocol: what is measured.
        folder: where the three files lie.

    Attributes:
        rows: figures by split and method.
        page: the Markdown file.
    """

    def __init__(self, protocol: Protocol, folder: Path) -> None:
        self.protocol = protocol
        self._csv, self._json, self.page = (
            folder / f"{protocol.name}.{kind}" for kind in ("csv", "json", "md")
        )
        self.rows: dict[tuple[Split, str], Figures] = self._read() if self._same() else {}

    def measure(self, runs: Sequence[tuple[Split, str]]) -> None:
        """Measure the pairs that are missing, row by row to the file, and write the tables."""
        missing = [run for run in runs if "note" in self.rows.get(run, {"note": ""})]
        self._csv.parent.mkdir(parents=True, exist_ok=True)
        self._json.write_text(_text(self._facts()))
        for split, method in tqdm(missing, desc=self.protocol.name, unit="fit", disable=None):
            self.rows[split, method] = self.protocol.run(split, method)
            self._write()
        self._write()
        self.page.write_text(page(self.protocol, self.frame()))

    def frame(self) -> pd.DataFrame:
        """Rows in the protocol's order."""
        splits = {split: place for place, split in enumerate(self.protocol.splits)}
        methods = {name: place for place, name in enumerate(self.protocol.methods)}
        ordered = sorted(self.rows, key=lambda run: (splits[run[0]], methods[run[1]]))
        columns = ["size", "seed", "method", *self._keys(), "note"]
        return pd.DataFrame(
            [{**run[0]._asdict(), "method": run[1], **self.rows[run]} for run in ordered],
            columns=columns,
        )

    def _keys(self) -> list[str]:
        """Names of the figures, each once."""
        return list(dict.fromkeys(metric.key for metric in self.protocol.metrics))

    def _facts(self) -> dict[str, Any]:
        """The protocol, what it ran with, and what kind of machine the seconds are of."""
        protocol = self.protocol
        facts = {
            "benchmark": protocol.name,
            "protocol": " ".join(protocol.text.split()),
            "seeds": {
                size: [split.seed for split in protocol.splits if split.size == size]
                for size in dict.fromkeys(split.size for split in protocol.splits)
            },
            "metrics": self._keys(),
            "reference": protocol.reference,
            "versions": {
                "bmm_multitask_learning": __version__,
                "torch": torch.__version__.split("+")[0],
                "numpy": np.__version__,
                "scipy": scipy.__version__,
                "scikit-learn": sklearn.__version__,
                "python": platform.python_version(),
            },
        }
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        machine = f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} thread(s)"
        return {**facts, "sha256": digest, "machine": machine}

    def _same(self) -> bool:
        """Whether the files are of this protocol."""
        if not (self._csv.is_file() and self._json.is_file()):
            return False
        return json.loads(self._json.read_text()).get("sha256") == self._facts()["sha256"]

    def _read(self) -> dict[tuple[Split, str], Figures]:
        rows: dict[tuple[Split, str], Figures] = {}
        known = set(self.protocol.splits)
        with self._csv.open(newline="") as file:
            for row in csv.DictReader(file):
                split, method = Split(row.pop("size"), int(row.pop("seed"))), row.pop("method")
                note = row.pop("note")
                if split in known and method in self.protocol.methods:
                    figures: Figures = {key: float(value) for key, value in row.items() if value}
                    rows[split, method] = {"note": note} if note else figures
        return rows

    def _write(self) -> None:
        """All rows at once: an interruption leaves the file of before."""
        partial = self._csv.with_suffix(".csv.partial")
        self.frame().to_csv(partial, index=False, float_format="%.6g")
        os.replace(partial, self._csv)


def _text(facts: dict[str, Any]) -> str:
    """JSON with one line a fact."""
    lines = (f"  {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in facts.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"
