"""OpenSSF's model-signing, imported when it is first used: it takes a second."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from vivace.errors import MissingExtra

__all__ = ["cryptography_keys", "model_signing"]

EXTRA, LIBRARY = "sign", "model-signing"


def model_signing(part: str, purpose: str) -> Any:
    """The module "signing", "verifying" or "hashing" of the library. Raises MissingExtra, which names the purpose."""
    try:
        return import_module(f"model_signing.{part}")
    except ImportError:
        raise MissingExtra(LIBRARY, EXTRA, purpose) from None


def cryptography_keys(purpose: str) -> tuple[Any, Any]:
    """(serialization, elliptic curves) of the library that keys are read and made by. Raises MissingExtra."""
    try:
        primitives = "cryptography.hazmat.primitives"
        return import_module(f"{primitives}.serialization"), import_module(f"{primitives}.asymmetric.ec")
    except ImportError:
        raise MissingExtra("cryptography", EXTRA, purpose) from None
