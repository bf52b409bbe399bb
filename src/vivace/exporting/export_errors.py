"""What exporters raise when they can't take a network, as one line that names the operator."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from vivace.errors import ExportError, VivaceError

__all__ = ["exporting"]

# OpenVINO tells the operator at the end of a page
TELLING = "No conversion rule found for operations"


@contextlib.contextmanager
def exporting(target: str) -> Iterator[None]:
    """Raises ExportError for whatever an exporter raises meanwhile, but for our own errors and the disk's."""
    try:
        yield
    except (VivaceError, OSError):
        raise
    except Exception as error:
        raise ExportError(f"{target} can't take this network: {_reason(error)}. Use another runtime.") from error


def _reason(error: BaseException) -> str:
    innermost = error
    while innermost.__cause__ is not None:
        innermost = innermost.__cause__
    lines = [line.strip("- ") for line in str(innermost).splitlines() if line.strip("- ")]
    told = [line for line in lines if TELLING in line] or lines[:1]
    return told[0].rstrip(".") if told else type(innermost).__name__
