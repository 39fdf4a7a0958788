"""Fixtures and settings that every test shares.

Environment variables that move the whole suite: ``TEST_DEVICE`` (cpu), ``TEST_DTYPE`` (float64)
and ``BMM_DATA_HOME`` (the folder of data sets; ``../shared/data`` beside the repository where it
is not set).
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

REPOSITORY = Path(__file__).parent.parent
DTYPES = {"float64": torch.float64, "float32": torch.float32}


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(
        1
    )  # two test processes on two cores: more threads only wait for each other


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")


@pytest.fixture(scope="session")
def data_home() -> Path:
    """Folder of the real data sets; the test is skipped where it is missing."""
    home = Path(os.environ.get("BMM_DATA_HOME") or REPOSITORY.parent / "shared" / "data")
    if not home.is_dir():
        pytest.skip(f"no data sets in {home}; set BMM_DATA_HOME to the folder that has them")
    return home


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Device of the suite, from TEST_DEVICE."""
    return torch.device(os.environ.get("TEST_DEVICE", "cpu"))


@pytest.fixture(scope="session")
def dtype() -> torch.dtype:
    """Floating type of the suite, from TEST_DTYPE."""
    return DTYPES[os.environ.get("TEST_DTYPE", "float64")]


@pytest.fixture
def generator() -> torch.Generator:
    """Torch generator with a fixed seed."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def rng() -> np.random.Generator:
    """NumPy generator with a fixed seed."""
    return np.random.default_rng(0)
