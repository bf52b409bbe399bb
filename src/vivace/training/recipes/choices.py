"""Whether the names that a run is given exist, before its data are opened (no torch here)."""

from __future__ import annotations

import re

from vivace.errors import ConfigError, ModelError
from vivace.models.config import NETWORKS
from vivace.models.own.names import is_own
from vivace.optim.config import OPTIMIZERS

__all__ = ["check_device_name", "check_names", "check_target"]

DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


def check_device_name(name: str) -> None:
    """Raise ConfigError for what is no device's name. Whether the machine has it, torch alone can tell."""
    if not isinstance(name, str) or DEVICE.fullmatch(name) is None:
        got = repr(name) if isinstance(name, str | None) else type(name).__name__
        raise ConfigError(f"`device` is unknown: got {got}. Give auto, cpu, cuda, cuda:N or mps.")


def check_target(target: float | None) -> None:
    """Raise ConfigError for what is no accuracy in (0, 1]; None: not given."""
    if target is None or 0 < target <= 1:
        return
    meant = f": {target / 100:g} for {target:g} %" if 1 < target <= 100 else ""
    raise ConfigError(f"`target` is out of range: got {target!r}. Give an accuracy in (0, 1]{meant}.")


def check_names(network: object, optimizer: object, *, own: str | None = None) -> None:
    """Raise ModelError or ConfigError for a network or an optimizer that does not exist; None: not given.

    own: the name of a network of the user's own, which was passed with the call; a recipe can't name another.

    For a name that is not ours timm is imported, and torch with it.
    """
    if isinstance(network, str) and is_own(network):
        if network != own:
            raise ModelError(
                f"the recipe trains a network of your own, whose code a recipe does not hold: got {network[:80]!r}. "
                f"Give it: `model={network.removeprefix('own/')[:80]!r}`, with the path of the file."
            )
    elif isinstance(network, str) and network not in ("auto", *NETWORKS):
        from vivace.models.zoo import check_name

        check_name(network)
    if isinstance(optimizer, str) and optimizer not in OPTIMIZERS:
        from vivace.optim.optimizers import check_optimizer_name

        check_optimizer_name(optimizer)
