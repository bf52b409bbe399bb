"""OpenVINO, imported so that it reports nothing of this user, and its Core; below every layer that computes with it."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from vivace.errors import MissingExtra
from vivace.libraries.absent import absent
from vivace.libraries.signal_stack import own_signal_stack

__all__ = ["REPORTER", "core", "library", "without_reports"]

PURPOSE = "the runtime openvino"
REPORTER = "openvino_telemetry"
CONVERTER = "openvino.tools.ovc"


def core(purpose: str = PURPOSE) -> Any:
    """The openvino.Core of this process, its plugin for the CPU loaded. Raises MissingExtra, with the purpose."""
    return _core(library(purpose))


@functools.cache
def _core(openvino: Any) -> Any:
    with own_signal_stack():
        found = openvino.Core()
        # loads the plugin
        found.get_property("CPU", "FULL_DEVICE_NAME")
    return found


def library(purpose: str = PURPOSE) -> Any:
    """The module openvino, imported so that it reports nothing. Raises MissingExtra, which names the purpose.

    Its converter of models takes as long to import as all the rest: it follows when it is called.
    """
    first = "openvino" not in sys.modules
    try:
        with without_reports(), absent(CONVERTER) if first else contextlib.nullcontext():
            import openvino
    except ImportError:
        raise MissingExtra("openvino", "accelerate", purpose) from None
    if first:
        openvino.convert_model = _convert_model
    return openvino


def _convert_model(*arguments: Any, **options: Any) -> Any:
    """openvino.convert_model in a process where `library` imported openvino without its converter."""
    with without_reports():
        converter = import_module(CONVERTER)
    # from now on it is the real one
    vars(sys.modules["openvino"])["convert_model"] = converter.convert_model
    return converter.convert_model(*arguments, **options)


@contextlib.contextmanager
def without_reports() -> Iterator[None]:
    """What is imported meanwhile can't report its use to its makers, nor keep a number for this user.

    OpenVINO and NNCF do both by default, as they are imported and at every conversion. Where the library that sends
    for them is not installed they go on without it, for as long as the process lives: they are told that it is not.
    """
    with absent(REPORTER):
        yield
