"""`python -m tests.benchmarks [NAME ...]`: run benchmarks and write docs/benchmarks/."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import torch

NAMES = ("calibration", "encode", "loss_weighting", "speed")


def main(names: list[str]) -> None:
    """Run the named benchmarks, all by default."""
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        raise SystemExit(f"benchmarks are {', '.join(NAMES)}; got {', '.join(unknown)}.")
    home = Path(__file__).parents[3] / "shared" / "data"
    if home.is_dir():
        os.environ.setdefault("BMM_DATA_HOME", str(home))
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    for name in names or NAMES:
        importlib.import_module(f".{name}", __package__).main()


if __name__ == "__main__":
    main(sys.argv[1:])
