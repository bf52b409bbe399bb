"""What `vivace --print-completion SHELL` prints: a script that completes verbs, options and their choices.

The script is complete in itself: while somebody types, no Python is started. It is printed anew after an update.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, Literal, get_args, get_origin, get_type_hints

from vivace.cli.options import is_positional
from vivace.errors import ConfigError, nearest

__all__ = ["SHELLS", "Word", "completion", "words_of"]


# verbs whose first argument is DATA: a path, or the name of a data set
DATA_FIRST = ("train", "audit")


@dataclasses.dataclass(frozen=True)
class Word:
    """An option, or a place without a name, of a verb."""

    name: str | None
    """Such as --batch-size; None: the place has no name."""
    takes_value: bool
    choices: tuple[str, ...]
    """Of its value; empty: any, and files are offered."""
    or_file: bool = False
    """Whether files are offered beside the choices."""


def words_of(verb: str) -> list[Word]:
    """Everything that a verb takes, its --help among it."""
    return [*_words(import_module(f"vivace.cli.{verb}").Options), Word("--help", False, ())]


def _words(options: Any) -> list[Word]:
    hints, words = get_type_hints(options, include_extras=True), []
    for field in dataclasses.fields(options):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            words += _words(hint)
        else:
            name = None if is_positional(hint) else "--" + field.name.rstrip("_").replace("_", "-")
            words.append(Word(name, field.default is not False, _choices(hint)))
    return words


def _choices(hint: Any) -> tuple[str, ...]:
    """The words of the first Literal in a type, in its order."""
    if get_origin(hint) is Literal:
        return tuple(map(str, get_args(hint)))
    return next((found for inner in get_args(hint) if (found := _choices(inner))), ())


def completion(shell: str, verbs: Mapping[str, str]) -> str:
    """The script for a shell; verbs: each with what it does. Raises ConfigError for an unknown shell."""
    if shell not in SHELLS:
        raise ConfigError(f"the shell is unknown: got {shell!r}.{nearest(shell, SHELLS)} Known: {', '.join(SHELLS)}.")
    return SHELLS[shell](verbs, {verb: _suggested(verb, words_of(verb)) for verb in verbs})


def _suggested(verb: str, words: list[Word]) -> list[Word]:
    """The words of a verb, with the usual values of options that take any text."""
    from vivace.data.layouts.catalog import CATALOG
    from vivace.models.config import NETWORKS
    from vivace.optim.config import OPTIMIZERS
    from vivace.training.recording.trackers.choose import TRACKERS

    usual = {
        "--device": ("auto", "cpu", "cuda", "mps"),
        "--track": tuple(TRACKERS),
        "--optimizer": OPTIMIZERS,
        "--model": NETWORKS,
    }
    found = [
        dataclasses.replace(word, choices=usual[word.name]) if word.name in usual and not word.choices else word
        for word in words
    ]
    if verb in DATA_FIRST:
        found[0] = dataclasses.replace(found[0], choices=CATALOG, or_file=True)
    return found


Words = dict[str, list[Word]]
# options of `vivace` itself
GENERAL = ("--help", "--version", "--print-completion")


def _bash(verbs: Mapping[str, str], words: Words) -> str:
    def cases(lines: list[str]) -> str:
        return "\n".join(f"        {line}" for line in lines)

    names = [f'{verb}) words="{" ".join(word.name for word in words[verb] if word.name)}" ;;' for verb in verbs]
    values, plain = [], []
    for verb in verbs:
        for word in words[verb]:
            if word.name is None and word.choices:
                files = " files=1" if word.or_file else ""
                plain.append(f'{verb}) words="{" ".join(word.choices)}"{files} ;;')
            elif word.choices:
                values.append(f'{verb}:{word.name}) words="{" ".join(word.choices)}" ;;')
            elif word.takes_value and word.name:
                values.append(f"{verb}:{word.name}) return ;;")
    return f"""# vivace for bash. For this session: source <(vivace --print-completion bash)
# For all: vivace --print-completion bash > ~/.local/share/bash-completion/completions/vivace
_vivace() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} verb=${{COMP_WORDS[1]}} words= files=
    COMPREPLY=()
    if ((COMP_CWORD == 1)); then
        COMPREPLY=($(compgen -W "{" ".join((*verbs, *GENERAL))}" -- "$current"))
        return
    fi
    if [[ $verb == --print-completion ]]; then
        COMPREPLY=($(compgen -W "{" ".join(SHELLS)}" -- "$current"))
        return
    fi
    # of --option=value bash makes three words
    if [[ $current == = ]]; then current=; elif [[ $before == = ]]; then before=${{COMP_WORDS[COMP_CWORD-2]}}; fi
    case $verb:$before in
{cases(values)}
    esac
    if [[ -z $words && $current == -* ]]; then
        case $verb in
{cases(names)}
        esac
    elif [[ -z $words ]]; then
        case $verb in
{cases(plain)}
        esac
    fi
    # with none of these bash offers files
    COMPREPLY=($(compgen -W "$words" -- "$current"))
    if [[ -n $files ]]; then
        local IFS=$'\n'
        COMPREPLY+=($(compgen -f -- "$current"))
        compopt -o filenames 2>/dev/null
    fi
}}
complete -o bashdefault -o default -F _vivace vivace
"""


def _zsh(verbs: Mapping[str, str], words: Words) -> str:
    lines = "\n".join(f"        {_quoted(f'{verb}:{about}')}" for verb, about in verbs.items())
    values, names, plain = [], [], []
    for verb in verbs:
        names.append(f"            {verb}) compadd -- {' '.join(word.name for word in words[verb] if word.name)} ;;")
        for word in words[verb]:
            if word.choices and word.name:
                values.append(f"        {verb}:{word.name}) compadd -- {' '.join(word.choices)}; return ;;")
            elif word.choices:
                plain.append(f"            {verb}) compadd -- {' '.join(word.choices)} ;;")
            elif word.takes_value and word.name:
                values.append(f"        {verb}:{word.name}) _files; return ;;")
    newline = "\n"
    return f"""#compdef vivace
# vivace for zsh. For this session: source <(vivace --print-completion zsh)
# For all: vivace --print-completion zsh > DIR/_vivace, DIR one of $fpath
_vivace() {{
    local -a verbs=(
{lines}
    )
    if ((CURRENT == 2)); then
        if [[ $words[CURRENT] == -* ]]; then compadd -- {" ".join(GENERAL)}; else _describe verb verbs; fi
        return
    fi
    if [[ $words[2] == --print-completion ]]; then
        compadd -- {" ".join(SHELLS)}
        return
    fi
    case $words[2]:$words[CURRENT-1] in
{newline.join(values)}
    esac
    if [[ $words[CURRENT] == -* ]]; then
        case $words[2] in
{newline.join(names)}
        esac
    else
        case $words[2] in
{newline.join(plain)}
        esac
        _files
    fi
}}
if [[ ${{funcstack[1]-}} == _vivace ]]; then
    _vivace "$@"
else
    compdef _vivace vivace
fi
"""


def _fish(verbs: Mapping[str, str], words: Words) -> str:
    lines = [
        "# vivace for fish: vivace --print-completion fish > ~/.config/fish/completions/vivace.fish",
        "complete -c vivace -f -n __fish_use_subcommand",
        "complete -c vivace -n __fish_use_subcommand -l help",
        "complete -c vivace -n __fish_use_subcommand -l version",
        f"complete -c vivace -n __fish_use_subcommand -l print-completion -x -a {_quoted(' '.join(SHELLS))}",
    ]
    for verb, about in verbs.items():
        lines.append(f"complete -c vivace -n __fish_use_subcommand -a {verb} -d {_quoted(about)}")
    for verb in verbs:
        inside = f"complete -c vivace -n '__fish_seen_subcommand_from {verb}'"
        for word in words[verb]:
            choices = f" -a {_quoted(' '.join(word.choices))}" if word.choices else ""
            if word.name is None:
                lines += [f"{inside}{choices}"] if choices else []
            else:
                value = " -x" if choices else " -r" if word.takes_value else ""
                lines.append(f"{inside} -l {word.name[2:]}{value}{choices}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "’") + "'"


SHELLS: dict[str, Callable[[Mapping[str, str], Words], str]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
