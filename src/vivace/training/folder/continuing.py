"""How a stopped run is continued, as a call that a message shows (no torch here)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from vivace.data.place import AnyData, Data
from vivace.errors import Interrupted, TrainingError

__all__ = ["resume_call", "says_how_to_resume"]

# how the parts of a training say it, which know neither the data's name nor the folder of the run
SHORT = "`resume=True`"
# what there is for a private run in place of that
ANEW = "a new run (a private one can't be resumed, and weights that this folder may hold count too)"
# options of Data that the run's recipe has
SAVED = ("multi_label", "pixels")


def resume_call(data: AnyData, run: Path, network: str | None = None) -> str:
    """The call that continues the run, in backquotes; the command line shows it as a command.

    network: the file and name of one of the user's own, which has to be given again.
    """
    data = Data.of(data)
    options = [f"{name}={_text(value)}" for name, value in data.options().items() if name not in SAVED]
    # an object has no text that would give it again: it is the caller's `data`
    given = "data" if data.is_object else _text(data.where)
    where = f"vivace.Data({', '.join([given, *options])})" if options else given
    model = "" if network is None else f"model={_text(network)}, "
    return f"`vivace.train({where}, {model}resume=True, run={_text(run)})`"


def _text(value: object) -> str:
    # a backquote would end the call in the message
    return repr(value if isinstance(value, bool) else str(value)).replace("`", "\\x60")


@contextlib.contextmanager
def says_how_to_resume(
    data: AnyData, run: Path, *, network: str | None = None, is_private: bool = False
) -> Iterator[None]:
    """Within, an error that stops the training says the whole call that continues it; of a private one, which is never
    continued, that it needs a new run."""
    try:
        yield
    except (Interrupted, TrainingError) as error:
        call = ANEW if is_private else resume_call(data, run, network)
        error.args = (str(error).replace(SHORT, call), *error.args[1:])
        raise
