"""The command line: `vivace VERB`. Thin: parse, call, print."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
from typing import NoReturn

__all__ = ["VERBS", "main", "program"]

# verb → what it does, in the order of use; the module of a verb has its name
VERBS = {
    "train": "train a classifier on a folder of images and write its bundle",
    "evaluate": "measure a bundle on labelled images",
    "predict": "classify images with a bundle",
    "serve": "answer requests over HTTP with one or more bundles",
    "accelerate": "find the fastest variant of a bundle whose accuracy drop is proven to be within a budget",
    "profile": "show where a bundle's time goes, layer by layer, and in which precision its kernels ran",
    "export": "write a bundle for another runtime, phones or browsers, checked against PyTorch",
    "verify": "check a bundle's files and signature, and that its runtime agrees with PyTorch",
    "sign": "sign a bundle with a private key, or make a key",
    "bench": "measure what each technique of a recipe contributes, on your data and machine",
    "runs": "list training runs: data, recipe, accuracy, time, size",
    "compare": "show which of two runs is more accurate, by a paired test on the same images",
    "report": "write what to know of a run or a bundle before relying on it as one HTML file",
    "audit": "look for corrupt, duplicate, leaked and suspect images",
    "doctor": "describe this machine, what is faster on it, and what is missing",
    "cache": "list or remove what is kept in the cache: images, archives, downloads, kernels",
}

EXIT_STATUSES = """exit status:
  0  done; for predict: at least one image was classified, the others are listed on stderr
  1  failed while working; for predict: no image was classified
  2  refused before work began: the message names the cause and how to fix it
  3  accelerate left the bundle unchanged: nothing faster within the accuracy budget, timing too noisy, or out of time
  130, 143  stopped by Ctrl-C or SIGTERM, after saving; a second signal stops at once"""


def program() -> NoReturn:
    """The command `vivace`: run the command line and end the process."""
    from vivace.cli.terminated import TERMINATED, Terminated, termination_raised

    with contextlib.ExitStack() as hangups:
        try:
            # before all else is loaded, which takes a while
            with termination_raised():
                if sys.argv[1:2] == ["serve"]:
                    # whoever runs it as a service may ask it to reload at any time, which would end it
                    from vivace.serving.starting import hangups_remembered

                    hangups.enter_context(hangups_remembered())
                status = _status()
        except KeyboardInterrupt as error:
            by_term = isinstance(error, Terminated)
            status = TERMINATED if by_term else 130
            with contextlib.suppress(OSError, ValueError, AttributeError):
                sys.stderr.write("stopped by SIGTERM\n" if by_term else "stopped\n")
        _end(status)


def _end(status: int) -> NoReturn:
    """Write out what was printed, and end the process."""
    from vivace.cli.common import tell

    # unloading torch and its compiler takes Python a second, and all of our files are written by now
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # the reader has closed its end
        status = status or 1
    except (OSError, ValueError) as error:
        # an earlier failure was reported already
        if status == 0:
            tell(f"OutputError: the result can't be written to stdout: {error}. Send it elsewhere.")
            status = 1
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
    os._exit(status)


def _status() -> int:
    """The exit status of `main`, with what it raises told in a line."""
    from vivace.cli.common import TRACEBACK, tell, unexpected
    from vivace.cli.streams import open_missing_streams

    open_missing_streams()
    if not os.environ.get(TRACEBACK):
        # whoever waits for the thread gets its error; a traceback in between would help nobody
        threading.excepthook = lambda thrown: tell(unexpected(thrown.exc_value)) if thrown.exc_value else None
    try:
        return main()
    except BrokenPipeError:
        return 0
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        tell(unexpected(error))
        return 1


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if arguments[0] in ("-V", "--version"):
        from vivace import __version__

        print(f"vivace {__version__}")
        return 0
    if arguments[0].partition("=")[0] == "--print-completion":
        return _print_completion(arguments)
    verb = arguments[0]
    if verb not in VERBS:
        from vivace.errors import nearest

        known = [*VERBS, "--help", "--version", "--print-completion"]
        return _refused(f"unknown verb: got {verb!r}.{nearest(verb, known)} Known: {', '.join(VERBS)}.", arguments)
    from vivace.cli.common import run_verb

    return run_verb(verb, arguments[1:])


def _print_completion(arguments: list[str]) -> int:
    """Print the script for a shell, which is named behind "=" or as the next argument."""
    from vivace.cli.completion import SHELLS, completion
    from vivace.errors import ConfigError

    _, separator, shell = arguments[0].partition("=")
    rest = [argument for argument in arguments[1:] if argument != "--json"]
    if not separator and rest:
        shell, *rest = rest
    if not shell or rest:
        what = f"more than one shell is named: got {' '.join(rest)!r}" if rest else "the shell is missing"
        return _refused(f"{what}. Give one of {', '.join(SHELLS)}.", arguments)
    try:
        print(completion(shell, VERBS), end="")
    except ConfigError as error:
        return _refused(str(error), arguments)
    return 0


def _refused(message: str, arguments: list[str]) -> int:
    """The exit status of arguments that name no verb; the message is one line on stderr."""
    from vivace.cli.answers import failed, wants_json
    from vivace.cli.common import tell
    from vivace.errors import ConfigError

    tell(f"ConfigError: {message}")
    return failed(None, ConfigError(message), message, 2, as_json=wants_json(arguments))


def _help() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {text}" for verb, text in VERBS.items())
    return (
        "usage: vivace VERB [options]\n\n"
        "From a folder of images to the fastest image classifier that is still accurate.\n\n"
        f"verbs:\n{verbs}\n\n"
        "vivace VERB --help lists the options of a verb. Every verb takes --json.\n"
        "vivace --print-completion bash, zsh or fish prints a script that completes verbs and options.\n\n"
        f"{EXIT_STATUSES}"
    )
