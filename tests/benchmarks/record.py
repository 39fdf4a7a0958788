"""Results of benchmarks by hand: rows, protocol and tables, written to docs/benchmarks/."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from bmm_multitask_learning.benchmarks.tables import markdown

__all__ = ["FOLDER", "machine", "markdown", "write"]

FOLDER = Path(__file__).parents[2] / "docs" / "benchmarks"


def machine() -> str:
    """What the figures of time depend on."""
    return (
        f"{torch.get_num_threads()} thread(s), PyTorch {torch.__version__.split('+')[0]}, "
        f"NumPy {np.__version__}, Python {platform.python_version()}"
    )


def write(name: str, rows: pd.DataFrame, page: str, facts: Mapping[str, object]) -> None:
    """Write rows (CSV), protocol (JSON) and tables (Markdown), and show the tables."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    rows.to_csv(FOLDER / f"{name}.csv", index=False, float_format="%.6g")
    text = json.dumps({**facts, "machine": machine()}, indent=2, default=str)
    (FOLDER / f"{name}.json").write_text(text + "\n")
    (FOLDER / f"{name}.md").write_text(page.strip() + "\n")
    print(page)
