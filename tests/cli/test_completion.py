"""What completes verbs, options and choices, in the shells themselves; and what a wrong choice is answered with."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import vivace
from vivace.bundle import Bundle
from vivace.cli import VERBS, main
from vivace.cli.completion import SHELLS, words_of
from vivace.cli.options import option_names
from vivace.cli.train import Options
from vivace.errors import ConfigError, DataError, InputError, ModelError, nearest

# what calls the function that the shell would call, with the words that stand on the line
ASK = {
    "bash": (
        'source "$1"; shift; eval "$(complete -p vivace | sed "s/.*-F \\([^ ]*\\) .*/ask=\\1/")"; '
        'COMP_WORDS=(vivace "$@"); COMP_CWORD=$#; $ask; printf "%s\\n" "${COMPREPLY[@]}"'
    ),
    "zsh": (
        "compdef() { :; }; _describe() { print -l ${${(P)2}%%:*}; }; _files() { print FILES; }; "
        'compadd() { shift; print -l -- "$@"; }; source "$1"; shift; '
        'words=(vivace "$@"); CURRENT=$#words; _vivace'
    ),
    "fish": 'source $argv[1]; complete -C (string join -- " " vivace $argv[2..-1])',
}


@pytest.fixture(params=SHELLS)
def complete(request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., set]:
    """complete("train", "--ep"): what the shell offers for the last word, without what does not begin as it does."""
    shell = request.param
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} here")
    assert main(["--print-completion", shell]) == 0
    script = tmp_path / "vivace.completion"
    script.write_text(capsys.readouterr().out)

    def ask(*words: str) -> set[str]:
        # $0 of the others; to fish it would be one of its own options
        place = ["--"] if shell == "fish" else [shell]
        command = [shell, "-c", ASK[shell], *place, str(script), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
        assert done.stderr == ""
        offered = {line.split("\t")[0] for line in done.stdout.splitlines()}
        return {word for word in offered if word.startswith(words[-1])} - {""}

    return ask


def test_verbs_options_and_choices_are_completed(complete: Callable[..., set[str]]) -> None:
    assert set(VERBS) <= complete("")
    assert complete("tr") == {"train"}
    assert complete("train", "--ep") == {"--epochs"}
    options = set(option_names(Options))
    assert {word for word in complete("train", "--") if word != "--help"} == options
    assert complete("train", "photos", "--recipe", "f") == {"fast", "finetune"}
    assert complete("export", "bundle", "--to", "op") == {"openvino"}
    assert "--epochs" not in complete("predict", "--")
    assert "ablation" in complete("bench", "a")


def test_usual_values_of_free_options_are_offered(complete: Callable[..., set[str]]) -> None:
    assert complete("train", "x", "--device", "cu") == {"cuda"}
    assert complete("train", "x", "--track", "ml") == {"mlflow"}
    assert complete("train", "x", "--optimizer", "ada") == {"adam", "adamw"}
    assert complete("train", "x", "--model", "fast") == {"fast_cnn", "fast_photo"}
    assert "digits" in complete("train", "dig")
    assert complete("--print") == {"--print-completion"}
    assert complete("--print-completion", "z") == {"zsh"}


def test_files_are_offered_beside_the_names_of_data_sets(
    request: pytest.FixtureRequest, complete: Callable[..., set[str]], tmp_path: Path
) -> None:
    if "[zsh]" in request.node.name:
        pytest.skip("the _files of this test lists nothing")
    (tmp_path / "digitsofmine").mkdir()
    assert {word.rstrip("/") for word in complete("train", "digi")} == {"digits", "digitsofmine"}


def test_a_value_that_may_be_anything_is_no_option(complete: Callable[..., set[str]]) -> None:
    assert not {word for word in complete("train", "--lr", "") if word.startswith("--")}


@pytest.mark.parametrize("verb", VERBS)
def test_the_words_of_a_verb_are_its_options(verb: str) -> None:
    from importlib import import_module

    names = [word.name for word in words_of(verb) if word.name]
    assert names == [*option_names(import_module(f"vivace.cli.{verb}").Options), "--help"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--print-completion", "bsh"],
            "the shell is unknown: got 'bsh'. Did you mean 'bash' or 'zsh'? Known",
        ),
        (["--print-completion"], "the shell is missing. Give one of bash, zsh, fish."),
        (["--print-completion", "bash", "zsh"], "more than one shell is named: got 'zsh'."),
    ],
)
def test_another_shell_is_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"ConfigError: {message}")


CHOICES = [
    ("verb", ["evalute", "x"], "Did you mean 'evaluate'?", VERBS),
    ("option", ["train", "x", "--eposch", "3"], "Did you mean '--epochs'?", ()),
    ("recipe", ["train", "x", "--recipe", "acurate"], "Did you mean 'accurate'?", ("fast", "accurate", "finetune")),
    ("export target", ["export", "x", "--to", "openvin"], "Did you mean 'openvino'?", ("onnx", "openvino", "pt2")),
    ("what to bench", ["bench", "abalation", "x"], "", ()),
    ("data name", ["audit", "cifar01"], "Did you mean 'cifar10' or 'cifar100'?", ("cifar10", "cifar100", "digits")),
]


@pytest.mark.parametrize(("arguments", "hint", "known"), [row[1:] for row in CHOICES], ids=[row[0] for row in CHOICES])
def test_a_wrong_choice_names_the_nearest_and_all_in_a_fixed_order(
    arguments: list[str], hint: str, known: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    said = []
    for _ in range(2):
        assert main(arguments) == 2
        said.append(capsys.readouterr().err)
    assert said[0] == said[1]
    assert said[0].count("\n") == 1
    assert hint in said[0]
    assert ", ".join(known) in said[0]


def test_models_and_runtimes_are_suggested_too(trained: tuple[Bundle, Path]) -> None:
    calls: dict[str, tuple[type[InputError], Callable[[], object]]] = {
        r"the network is unknown: got 'fastcnn'\. Did you mean 'fast_cnn'": (
            ModelError,
            lambda: vivace.train(trained[1], overrides={"model.name": "fastcnn"}, run="x", quiet=True),
        ),
        r"the runtime is unknown: got 'onx'\. Did you mean 'onnx'\? Known: eager, ": (
            ConfigError,
            lambda: vivace.Predictor(trained[0], runtime="onx"),
        ),
        r"got 'diggits'.*Did you mean 'digits'\?": (DataError, lambda: vivace.audit("diggits")),
        r"there is no split 'tset' in colours\. Did you mean 'test'\? It has train, test": (
            DataError,
            lambda: vivace.evaluate(trained[0], trained[1], split="tset"),
        ),
    }
    for message, (error, call) in calls.items():
        with pytest.raises(error, match=message) as caught:
            call()
        assert re.fullmatch(r"[^\n]*", str(caught.value))


def test_the_nearest_of_equals_come_in_a_fixed_order() -> None:
    names = {"sgd1", "sgd2", "sgd3"}
    assert nearest("sgd", names) == nearest("sgd", sorted(names)) == nearest("sgd", sorted(names, reverse=True))
