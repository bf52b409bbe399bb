"""Messages name parameters in Python and options on the command line."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vivace
from answers import last_answer
from vivace.bundle import Bundle
from vivace.cli import VERBS, main
from vivace.cli.wording import as_options
from vivace.errors import InputError
from vivace.notices import collected_warnings, warn, worded, wording

ROOT = Path(vivace.__file__).parent
# what names a command in full, of vivace's or of another program's
COMMAND = re.compile(r"vivace [a-z]+ |trackio show |\bcurl ")


@pytest.mark.parametrize(
    ("verb", "message", "shown"),
    [
        ("accelerate", "`max_drop` is out of range: got 0.", "--max-drop is out of range: got 0."),
        ("accelerate", "batch_size is out of range: got 0.", "--batch-size is out of range: got 0."),
        ("train", "go on with `resume=True`", "go on with --resume"),
        ("train", "Lower `optimizer.lr`.", "Lower --lr."),
        ("train", "Leave `model.pretrained` out.", "Leave --pretrained out."),
        ("train", "`data.channels=3` keeps them", "--set data.channels=3 keeps them"),
        ("bench", "Lower `optimizer.lr`.", "Lower --set optimizer.lr."),
        ("evaluate", "Give `split='all'`, or another `split`.", "Give --split all, or another --split."),
        ("evaluate", "skip them by `on_bad_image='skip'`", "skip them by --on-bad-image skip"),
        ("verify", "Give `data`.", "Give DATA."),
        ("predict", "`out` is a folder", "--out is a folder"),
        (
            "compare",
            "continue it: `vivace.train('my photos', resume=True, run=\"it's\")`",
            "continue it: vivace train 'my photos' --resume --run 'it'\"'\"'s'",
        ),
        (
            "train",
            "go on with `vivace.train(vivace.Data('a.csv', image_column='x\\x60y'), resume=True, run='r')`",
            "go on with vivace train a.csv --image-column 'x`y' --resume --run r",
        ),
        # a verb without it: the name is no option there
        ("cache", "Give a smaller `size`.", "Give a smaller `size`."),
        # what is no parameter
        ("train", "look at `vivace audit` and `notes.txt`", "look at `vivace audit` and `notes.txt`"),
        ("train", "data are an empty text", "data are an empty text"),
        ("train", "the run folder is there", "the run folder is there"),
        # values
        (
            "train",
            "`track` is unknown: got '`track`' or 'a `track` b'.",
            "--track is unknown: got '`track`' or 'a `track` b'.",
        ),
        (
            "train",
            'not a run: runs/`run` ("it\'s `run`"). Give `run`.',
            'not a run: runs/`run` ("it\'s `run`"). Give --run.',
        ),
        (
            "train",
            f"`epochs={'~' * 150}1` and `epochs={'~' * 4000}1`",
            f"--epochs {'~' * 150}1 and --epochs {'~' * 4000}1",
        ),
    ],
)
def test_a_parameter_becomes_the_option_of_the_verb(verb: str, message: str, shown: str) -> None:
    assert as_options(message, verb) == shown


def test_arguments_that_a_message_repeats_are_no_parameters() -> None:
    def told(message: str, argument: str) -> str:
        return as_options(message, "accelerate", [argument])

    message = "not a bundle: `max_drop=5` has no bundle.json. Give `max_drop`."
    assert told(message, "`max_drop=5`") == "not a bundle: `max_drop=5` has no bundle.json. Give --max-drop."
    assert told(message, "--out=`max_drop=5`") == told(message, "`max_drop=5`")
    assert told("out has no bundle.json", "out") == "out has no bundle.json"
    assert told("out is a file", "--out=a") == "--out is a file"


CALLS: dict[str, tuple[list[str], Callable[[Path, Path], Any], str]] = {
    "within": (["train", "DATA", "--within", "soon"], lambda _, data: vivace.train(data, within="soon"), "--within"),
    "target": (["train", "DATA", "--target", "2"], lambda _, data: vivace.train(data, target=2), "--target"),
    "device": (["train", "DATA", "--device", "tpu"], lambda _, data: vivace.train(data, device="tpu"), "--device"),
    "resume": (
        ["train", "DATA", "--resume", "--run", "none"],
        lambda _, data: vivace.train(data, resume=True, run="none"),
        "--resume",
    ),
    "split": (
        ["evaluate", "BUNDLE", "DATA/test", "--split", "test"],
        lambda bundle, data: vivace.evaluate(bundle, data / "test", split="test"),
        "--split all",
    ),
    "max_drop": (
        ["accelerate", "BUNDLE", "DATA", "--max-drop", "0"],
        lambda bundle, data: vivace.accelerate(bundle, data, out="none", max_drop=0),
        "--max-drop",
    ),
    "out": (
        ["export", "BUNDLE", "--to", "pt2", "--out", "DATA"],
        lambda bundle, data: vivace.export(bundle, "pt2", data),
        "--out",
    ),
    "data": (["audit", "none"], lambda _, data: vivace.audit("none"), "DATA"),
    "batch_size": (
        ["profile", "BUNDLE", "--batch-size", "0"],
        lambda bundle, data: vivace.profile(bundle, batch_size=0),
        "--batch-size",
    ),
    "image_column": (
        ["audit", "DATA", "--image-column", "a"],
        lambda _, data: vivace.audit(vivace.Data(data, image_column="a")),
        "--image-column",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_same_message_names_the_parameter_in_python_and_the_option_in_a_shell(
    name: str,
    trained: tuple[Bundle, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    bundle, data = trained[0].folder, trained[1]
    command, call, option = CALLS[name]
    with pytest.raises(InputError) as caught:
        call(bundle, data)
    message = str(caught.value)
    assert "--" not in message
    assert re.search(rf"\b{name}\b", message)
    capsys.readouterr()
    arguments = [word.replace("BUNDLE", str(bundle)).replace("DATA", str(data)) for word in command]
    assert main([*arguments, "--json"]) == 2
    shown = capsys.readouterr()
    line = shown.err.splitlines()[-1]
    assert option in line
    assert "`" not in line
    assert line == f"{type(caught.value).__name__}: {last_answer(shown.out)['error']['message']}"


def test_warnings_are_translated_too(capsys: pytest.CaptureFixture[str]) -> None:
    with collected_warnings() as told, wording(lambda text: as_options(text, "train")):
        warn("left out. `data.channels=3` keeps them")
        assert worded("`epochs`") == "--epochs"
    assert told == ["left out. --set data.channels=3 keeps them"]
    assert capsys.readouterr().err == "warning: left out. --set data.channels=3 keeps them\n"
    assert worded("`epochs`") == "`epochs`"


def texts_of(path: Path) -> list[str]:
    """The text of every string of a module that is no docstring; of one with fields, a brace for each."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and node.body
        if isinstance(node.body[0], ast.Expr)
    }
    # a string behind an attribute tells what that is
    docs |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts, inside = [], set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            inside |= {id(part) for part in node.values}
            texts.append("".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs | inside:
            texts.append(node.value)
    return texts


def test_no_message_of_the_library_names_an_option() -> None:
    # what writes the files of a deployment writes the command that starts it
    others = {"templates", "deploying"}
    paths = [path for path in sorted(ROOT.rglob("*.py")) if not others & set(path.parts)]
    paths = [path for path in paths if path.relative_to(ROOT).parts[0] != "cli"]
    assert len(paths) > 500
    wrong = [
        f"{path}: {text!r}"
        for path in paths
        for text in texts_of(path)
        if re.search(r"(^|[\s('\"])--[a-z]", text) and not COMMAND.search(text)
    ]
    assert wrong == []


def test_every_verb_can_say_its_names() -> None:
    for verb in VERBS:
        assert as_options("`json` and `none`", verb) == "--json and `none`"
