"""Options of earlier versions: they still work, and a line on stderr names the new spelling."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vivace.errors import ConfigError

__all__ = ["modern"]

RENAMED = {"accelerate": {"--batch": "--batch-size"}, "profile": {"--batch": "--batch-size"}}
# DATA has the same position in every verb; these took it as an option
DATA_WAS_AN_OPTION = ("accelerate", "export", "report", "verify")


def modern(verb: str, arguments: Sequence[str], tell: Callable[[str], None]) -> list[str]:
    """The arguments in today's spelling. An option without its value is left as it is, for the parser to refuse."""
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    options, rest = list(arguments[:end]), list(arguments[end:])
    for old, new in RENAMED.get(verb, {}).items():
        for index, argument in enumerate(options):
            if argument.partition("=")[0] == old:
                options[index] = new + argument.removeprefix(old)
                tell(f"note: {old} is now {new}.")
    if verb not in DATA_WAS_AN_OPTION:
        return options + rest
    options, data = _without_data(verb, options, tell)
    # at the end: BUNDLE, which comes first, may follow --data
    return options + rest + data


def _without_data(verb: str, options: list[str], tell: Callable[[str], None]) -> tuple[list[str], list[str]]:
    """(the arguments but --data and its value, the value as an argument that can't be taken for an option).

    Raises ConfigError for --data with an option behind it.
    """
    for index, argument in enumerate(options):
        name, separator, value = argument.partition("=")
        if name != "--data" or (not separator and index + 1 == len(options)):
            continue
        value = value if separator else options[index + 1]
        if not separator and value.startswith("-"):
            raise ConfigError(f"--data has no value: an option follows, {value!r}. Give DATA; a folder as ./{value}.")
        tell(f"note: --data is no longer needed: vivace {verb} BUNDLE DATA.")
        path = f"./{value}" if value.startswith("-") else value
        return [*options[:index], *options[index + (1 if separator else 2) :]], [path]
    return options, []
