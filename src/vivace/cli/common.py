"""What every verb shares: parsing, and errors to exit statuses."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from vivace.cli.answers import failed, wants_json
from vivace.cli.completion import words_of
from vivace.cli.deprecated import modern
from vivace.cli.options import option_names
from vivace.cli.streams import guarded_streams
from vivace.cli.terminated import TERMINATED, Terminated, termination_raised
from vivace.cli.wording import as_options
from vivace.errors import BundleError, ConfigError, VivaceError, first_line, nearest, one_line
from vivace.manifest import holds_bundle
from vivace.notices import collected_warnings, worded, wording

__all__ = [
    "TRACEBACK",
    "bundle_place",
    "parse_assignments",
    "run_verb",
    "tell",
    "unexpected",
]

# environment variable that shows tracebacks
TRACEBACK = "VIVACE_TRACEBACK"
PACKAGE = Path(__file__).parent.parent
# what libraries say in many words when there is no memory or no thread left
MEMORY_SIGNS = (
    *("can't allocate memory", "cannot allocate memory", "not enough memory", "failed to map segment"),
    *("bad_alloc", "out of memory", "can't start new thread", "resource temporarily unavailable"),
)


def run_verb(verb: str, arguments: list[str]) -> int:
    """Parse a verb's options, run it, and return its exit status. Torch is imported by the verb, not here."""
    for stream in (sys.stdout, sys.stderr):
        # file names may hold bytes that are not UTF-8, and class names what an ASCII terminal lacks: no reason to fail
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with collected_warnings(), wording(lambda text: as_options(text, verb, arguments)):
        return _run_told(verb, arguments, as_json=wants_json(arguments))


def _run_told(verb: str, arguments: list[str], *, as_json: bool) -> int:
    """`run_verb`, with every error reported on stderr, and as an object with --json."""
    try:
        _check_not_empty(arguments)
        with termination_raised():
            return _run(verb, arguments)
    except VivaceError as error:
        message = worded(str(error))
        tell(f"{type(error).__name__}: {message}")
        return failed(verb, error, message, error.exit_status, as_json=as_json)
    except KeyboardInterrupt as error:
        by_term = isinstance(error, Terminated)
        message, status = ("stopped by SIGTERM", TERMINATED) if by_term else ("stopped", 130)
        tell(message)
        return failed(verb, error, message, status, as_json=as_json)
    except BrokenPipeError:
        return _read_enough()
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        tell(unexpected(error))
        return failed(verb, error, unexpected(error), 1, as_json=as_json)


def _check_not_empty(arguments: list[str]) -> None:
    """Raise ConfigError for an empty argument: as a path it would be the current folder."""
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if argument == "" or (argument.startswith("--") and argument.endswith("=")):
            place = f": {argument}" if argument else f" after {before}" if before else ": the first one"
            raise ConfigError(f"an argument is empty{place}. Is a variable of the shell not set? Give it a value.")


def _run(verb: str, arguments: list[str]) -> int:
    module = import_module(f"vivace.cli.{verb}")
    try:
        parsed = _parse(verb, module, arguments)
    except SystemExit as stop:
        return int(stop.code or 0)
    if not sys.warnoptions:
        # meant for the developers of libraries, not for our users
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
    with guarded_streams():
        # a verb whose result may be "no" returns its own status
        try:
            status: int = module.run(parsed) or 0
        except BundleError as error:
            raise _swapped(verb, parsed) or error from None
        sys.stdout.flush()
    return status


def _swapped(verb: str, options: Any) -> BundleError | None:
    """The error of arguments whose second is the bundle and whose first is none."""
    first, second = getattr(options, "bundle", None), getattr(options, "data", None)
    if first is None or second is None or holds_bundle(Path(first)) or not holds_bundle(Path(second)):
        return None
    command = shlex.join(["vivace", verb, str(second), str(first)])
    return BundleError(f"the first argument is no bundle, the second is: got {first} and {second}. Write {command}")


def tell(message: str) -> None:
    """One line on stderr; nothing where that can't be written."""
    with contextlib.suppress(OSError, ValueError):
        print(one_line(message), file=sys.stderr, flush=True)


def unexpected(error: BaseException) -> str:
    """What to say of an error that nobody foresaw: what the system refused, or a bug of ours."""
    text = f"{type(error).__name__}: {first_line(error)}"
    lowered = text.lower()
    if isinstance(error, MemoryError) or any(sign in lowered for sign in MEMORY_SIGNS):
        return f"out of memory: {text}. Free some, raise the limit (ulimit -v), or give a smaller --size."
    if isinstance(error, ImportError):
        return f"a library can't be loaded: {text}. Install vivace again: pip install --force-reinstall vivace."
    if isinstance(error, OSError) and error.errno is not None:
        place = f": {error.filename}" if error.filename is not None else ""
        return f"the system refused: {error.strerror}{place}. Check free space, rights and limits (ulimit -a)."
    return f"internal error: {text} ({_place(error)}). Please report it; {TRACEBACK}=1 shows the traceback."


def _place(error: BaseException) -> str:
    """The last line of ours that the error went through, such as "cli/cache.py:12"."""
    place = "unknown place"
    for frame, line in traceback.walk_tb(error.__traceback__):
        path = Path(frame.f_code.co_filename)
        if PACKAGE in path.parents:
            place = f"{path.relative_to(PACKAGE)}:{line}"
    return place


def _read_enough() -> int:
    """The reader of stdout has what it wanted (`| head`): python must not complain at its exit either."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parse(verb: str, module: Any, arguments: list[str]) -> Any:
    """The options of a verb. Raises ConfigError on one line for what does not fit, SystemExit after the help."""
    import tyro

    arguments = modern(verb, arguments, tell)
    known = [*option_names(module.Options), "--help"]
    for argument in arguments:
        if argument == "--":
            break
        name = argument.partition("=")[0].replace("_", "-")
        if name.startswith("--") and name not in known:
            raise ConfigError(f"the option is unknown: got {name!r}.{nearest(name, known)} See vivace {verb} --help.")
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(
                module.Options,
                prog=f"vivace {verb}",
                description=module.__doc__,
                args=arguments,
                config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes, tyro.conf.DisallowNone),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ConfigError(f"{_first_message(verb, errors.getvalue())}. See vivace {verb} --help.") from None


def _first_message(verb: str, box: str) -> str:
    """What the parser says in its box, shortened: without the frame, Python's types and the help that follows."""
    lines = [line.strip("│| ") for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    parts: list[list[str]] = [[]]
    for line in lines:
        if line and not line.strip("─-"):
            parts.append([])
        else:
            parts[-1].append(line)
    # where only ASCII can be printed there are rules in place of a box, and the title is above the first of them
    message = parts[0] if "╭" in box or len(parts) == 1 else parts[1]
    text = " ".join(" ".join(message).split())
    for pattern, say in MESSAGES.items():
        if (match := re.search(pattern, text)) is not None:
            return say(verb, *match.groups())
    return text[:1].lower() + text[1:].rstrip(".") if not text[:2].isupper() else text


def _unknown(verb: str, name: str | None, value: str, choices: str) -> str:
    found = set(re.findall(r"'([^']*)'", choices)) - {"None"}
    # the parser's are a set, of another order in every process
    known = next((word.choices for word in words_of(verb) if set(word.choices) == found), tuple(sorted(found)))
    what = f"{name} is" if name is not None and name.startswith("-") else "the argument is"
    return f"{what} unknown: got '{value}'.{nearest(value, known)} Known: {', '.join(known)}"


# argument that needs another before it → what it is called where that alone was given
SECOND = {"RUN2": "the second RUN"}
# what the parser says → what is said of it, of a verb
MESSAGES: dict[str, Callable[..., str]] = {
    r"parsing (\S+): no type matching .*\['(.*?)'\] does not match choices (\(.*?\))": _unknown,
    r"nvalid choice '(.*?)' for argument '(.*?)'\. Expected one of (\(.*?\))": (
        lambda verb, value, name, choices: _unknown(verb, name, value, choices)
    ),
    r"parsing (\S+): no type matching INT .*\['([-+\d\s]{100,})'\]": (
        lambda verb, name, digits: (
            f"{name} is out of range: got {digits[:12]}… with thousands of digits. Give a whole number such as 8"
        )
    ),
    r"parsing (\S+): .*invalid literal for int\(\) with base 10: (.*)": (
        lambda verb, name, value: f"{name} is no whole number: got {value}. Give one such as 8"
    ),
    r"parsing (\S+): .*could not convert string to float: (.*)": (
        lambda verb, name, value: f"{name} is no number: got {value}. Give one such as {_fraction(value)}"
    ),
    r"issing value for argument '(.*?)'": lambda verb, name: f"{name} has no value. Give one after it",
    r"^Missing from [^:]*: (\S+).*": lambda verb, name: f"{SECOND.get(name, name)} is missing",
    r"nrecognized options: (-\S*)": lambda verb, name: f"the option is unknown: got '{name}'",
    r"nrecognized options: (.*)": lambda verb, names: f"more arguments than there are places: got {names}",
}


def _fraction(text: str) -> str:
    """The number that a percentage in quotes means, as options take fractions; an example for anything else."""
    percents = re.fullmatch(r"'(\d{1,3}(?:\.\d+)?)\s*%'", text)
    return "0.1" if percents is None else f"{float(percents[1]) / 100:g}"


def bundle_place(given: Path) -> Path:
    """The folder of a bundle that was named by itself or by its run: where no output may go."""
    return given / "bundle" if (given / "bundle" / "bundle.json").is_file() else given


def parse_assignments(pairs: tuple[str, ...]) -> dict[str, str]:
    """{"optimizer.lr": "0.1"} from ("optimizer.lr=0.1",). Raises ConfigError for a pair without "="."""
    assignments = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise ConfigError(f"--set needs field=value: got {pair!r}. Write, say, --set optimizer.lr=0.1.")
        assignments[key.strip()] = value.strip()
    return assignments
