"""NNCF, imported so that it reports nothing of this user, and says only what is wrong."""

from __future__ import annotations

import logging
from typing import Any

from vivace.errors import MissingExtra
from vivace.libraries.openvino import without_reports

__all__ = ["load_nncf"]


def load_nncf() -> Any:
    """The module nncf. Raises MissingExtra."""
    try:
        with without_reports():
            import nncf
    except ImportError:
        raise MissingExtra("nncf", "accelerate", "int8 for OpenVINO") from None
    nncf.set_log_level(logging.ERROR)
    return nncf
