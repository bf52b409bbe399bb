"""The kernels, built once for all of their tests."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch  # noqa: F401 (before its OpenMP is asked for)

from vivace.kernels.build import COMPILERS, OPTIONS, load_library


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the kernels have been built. Skips where there is no compiler; one that fails is an error."""
    if not os.environ.get("CC") and not any(map(shutil.which, COMPILERS)):
        pytest.skip(f"there is no C compiler: looked for {', '.join(COMPILERS)}")
    folder = tmp_path_factory.mktemp("kernels")
    # to build all of them takes longer than the tests of one
    for name in os.environ.get("VIVACE_TEST_KERNELS", " ".join(OPTIONS)).split():
        load_library(name, folder)
    return folder
