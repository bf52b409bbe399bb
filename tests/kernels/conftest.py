"""The kernels, built once for all of their tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch  # noqa: F401 (before its OpenMP is asked for)

from vivace.errors import KernelError
from vivace.kernels.build import OPTIONS, load_library


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the kernels have been built; skips where there is no compiler."""
    folder = tmp_path_factory.mktemp("kernels")
    try:
        for name in OPTIONS:
            load_library(name, folder)
    except KernelError as error:
        pytest.skip(str(error))
    return folder
