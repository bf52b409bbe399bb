"""The network of the user's own that a run trains: what was passed with the call, and whether the run began with it.

A run folder holds the network's name and the hash of its source, and no code: nothing in it is imported.
"""

from __future__ import annotations

import contextlib
import dataclasses
import traceback
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vivace.errors import CheckpointError, TrainingError, VivaceError, first_line
from vivace.models.own.names import is_own
from vivace.notices import warn
from vivace.runtimes.table import PORTABLE, RUNTIMES
from vivace.training.folder.runfolder import RunFolder

if TYPE_CHECKING:
    from vivace.models.own.given import OwnNetwork

__all__ = ["own_errors", "passed_network", "resumed_network"]

# where libraries lie: by the names of folders, Python's own, and this package
LIBRARIES = {"site-packages", "dist-packages"}
STANDARD, PACKAGE = Path(contextlib.__file__).parent, Path(__file__).parents[1]


def passed_network(model: Any, *, resume: bool) -> OwnNetwork | None:
    """The network of the user's own that was passed as `model`; None for a name of the zoo or of timm.

    Says before hours of training if its graph can't be written at the end. Raises ModelError.
    """
    if model is None or (isinstance(model, str) and ":" not in model and not model.endswith(".py")):
        return None
    from vivace.models.own.given import own_network

    network = own_network(model)
    if network is not None and not resume:
        row = RUNTIMES[PORTABLE]
        missing = next((name for name in _needed() if find_spec(name) is None), None)
        if missing is not None:
            warn(
                f"{missing} is not installed: the bundle will have no graph, and need the network's code wherever it "
                f"is used. Install it: pip install 'vivace[{row.extra}]'"
            )
    return network


def _needed() -> tuple[str, ...]:
    """Modules without which no graph is written: those of the plainest variant."""
    return RUNTIMES[PORTABLE].variants[0].needs


def resumed_network(folder: RunFolder, given: OwnNetwork | None) -> OwnNetwork | None:
    """The network that a resumed run goes on with, by the name that the run began with.

    Raises CheckpointError if the run trains one of the user's own and none is given, another one, or one whose source
    was changed: a resumed run ends with bitwise the weights of an unbroken one, which nobody could promise then.
    """
    name = folder.saved_recipe().model.name
    if not is_own(name) and given is None:
        return None
    shown = name.removeprefix("own/")
    if given is None:
        raise CheckpointError(
            f"the run trains a network of your own, whose code is not in its folder: {shown}. Give it again: "
            f"`model={shown!r}`, with the path of the file."
        )
    if not is_own(name) or given.name.rpartition(":")[2] != name.rpartition(":")[2]:
        raise CheckpointError(
            f"the run can't be resumed with another network: it began with {shown}, got "
            f"{given.shown}. Give the former, or start a new run with another `run`."
        )
    saved = folder.saved_facts().get("network")
    before = saved.get("sha256") if isinstance(saved, Mapping) else None
    if before is None or given.sha256 is None:
        warn(f"the source of {shown} is not known: whether it is as when the run began can't be checked")
    elif before != given.sha256:
        raise CheckpointError(
            f"the source of the network was changed since the run began: {shown} has the SHA-256 {given.sha256[:12]}, "
            f"then {str(before)[:12]}. A resumed run would not end as the unbroken one: restore the file, or start a "
            "new run with another `run`."
        )
    return dataclasses.replace(given, name=name)


@contextlib.contextmanager
def own_errors(network: OwnNetwork | None) -> Iterator[None]:
    """Within, what the code of the user's own network raises becomes a TrainingError that says where."""
    try:
        yield
    except (VivaceError, OSError, MemoryError):
        raise
    except Exception as error:
        place = None if network is None else _place(error)
        if network is None or place is None:
            raise
        raise TrainingError(
            f"the network failed while it was trained: {network.shown}, {place}: "
            f"{type(error).__name__}: {first_line(error)[:200]}. Lower precision may be why: `precision='fp32'`."
        ) from error


def _place(error: BaseException) -> str | None:
    """The last line of the user's own code that an error went through, such as "nets.py:12"; None if there is none."""
    place = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        path = Path(frame.f_code.co_filename)
        if not {PACKAGE, STANDARD} & set(path.parents) and not LIBRARIES & set(path.parts):
            place = f"{path.name}:{line}"
    return place
