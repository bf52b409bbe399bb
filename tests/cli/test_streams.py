"""Streams that are closed or full, names that a terminal would obey, errors that nobody foresaw: one line each."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from answers import last_answer
from vivace.bundle import Architecture, Bundle, BundleInfo, save_bundle
from vivace.cli import VERBS, cache, main
from vivace.cli.common import unexpected
from vivace.data.preprocess import Preprocess
from vivace.errors import BundleError, ImageError, VivaceError, nearest, one_line, printable
from vivace.models.zoo import create_model

EVIL = "red\x1b[31m\x07\r\n\x9b2J\u202e"


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    torch.manual_seed(0)
    info = BundleInfo(
        architecture=Architecture(name="simple_cnn", num_classes=3),
        classes=(EVIL, "b\tc", "grün"),
        preprocess=Preprocess(size=32, store_size=32),
    )
    return save_bundle(tmp_path / "bundle", create_model("simple_cnn", 3, size=32), info)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "a\x1b[2Jb.png"
    Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(path)
    return path


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if key != "VIVACE_TRACEBACK"} | environment
    vivace = f"'{sys.executable}' -m vivace"
    return subprocess.run(
        ["bash", "-c", command.replace("vivace", vivace, 1)], capture_output=True, text=True, check=False, env=env
    )


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-", "2>/dev/full"])
def test_a_closed_stream_or_a_full_stderr_is_no_failure(bundle: Bundle, image: Path, closed: str) -> None:
    done = shell(f"vivace predict '{bundle.folder}' '{image}' --out '{bundle.folder.parent}/o.csv' {closed}")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert (bundle.folder.parent / "o.csv").is_file()
    assert main(["predict", str(bundle.folder), str(image), "--quiet"]) == 0


@pytest.mark.parametrize("command", ["--help", "train --help", "cache", "cache --json", "--version"])
def test_a_full_stdout_is_one_line_and_status_1(command: str) -> None:
    done = shell(f"vivace {command} >/dev/full")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "No space left on device" in done.stderr


@pytest.mark.parametrize("options", ["", "--json"])
def test_answers_that_a_closed_stdout_loses_are_a_failure(bundle: Bundle, image: Path, options: str) -> None:
    done = shell(f"vivace predict '{bundle.folder}' '{image}' --quiet {options} >&-")
    assert done.returncode == 1
    assert "OutputError: the result can't be written to stdout: it is closed." in done.stderr
    assert shell("vivace --help >&-").returncode == 1


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (["predict", "no-bundle", "x.jpg", "--json"], "BundleError"),
        (["predict", "b", "--json"], "ConfigError"),
        (["evaluate", "b", "", "--json"], "ConfigError"),
        (["train", "no-data", "--json"], "DataError"),
        (["no-verb", "--json"], "ConfigError"),
    ],
)
def test_a_refusal_is_an_object_too(arguments: list[str], kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    shown = capsys.readouterr()
    told = last_answer(shown.out)["error"]
    assert (told["type"], told["exit_status"], len(shown.out.splitlines())) == (kind, 2, 1)
    assert told["message"] in shown.err
    assert main([argument for argument in arguments if argument != "--json"]) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("error", "status"), [(OSError(errno.ENOSPC, "full"), 1), (KeyboardInterrupt(), 130), (VivaceError("no."), 1)]
)
def test_a_failure_is_an_object_too(
    error: BaseException, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(options: Any) -> None:
        raise error

    monkeypatch.delenv("VIVACE_TRACEBACK")
    monkeypatch.setattr(cache, "run", broken)
    assert main(["cache", "--json"]) == status
    told = last_answer(capsys.readouterr().out)["error"]
    assert (told["type"], told["exit_status"]) == (type(error).__name__, status)


def test_a_file_gets_no_number_of_a_closed_stream(tmp_path: Path) -> None:
    code = (
        "import os; from vivace.cli.streams import open_missing_streams; open_missing_streams();"
        f"file = open({str(tmp_path / 'data')!r}, 'w'); assert file.fileno() > 2; os.write(1, b'x')"
    )
    done = subprocess.run(["bash", "-c", f'"{sys.executable}" -c "{code}" >&- <&-'], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "data").read_text() == ""


def test_names_and_labels_are_shown_escaped(
    bundle: Bundle, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "data"
    for label in bundle.classes:
        (folder / label).mkdir(parents=True)
        pixels = np.random.default_rng(len(label)).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / label / "x.png")
    assert main(["predict", str(bundle.folder), str(image), str(tmp_path / "no\x1b]0;x\x07.png"), "--quiet"]) == 0
    assert main(["evaluate", str(bundle.folder), str(folder), "--quiet"]) == 0
    with contextlib.suppress(SystemExit):
        main(["predict", str(bundle.folder) + "\x1b[1m", str(image)])
    shown = capsys.readouterr()
    for text in (shown.out, shown.err):
        assert not any(char in text for char in "\x1b\x07\r\x9b\u202e")
    assert "\\x1b[31m" in shown.out
    assert "grün" in shown.out


def test_a_file_that_is_named_again_is_classified_once(
    bundle: Bundle, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (image.parent / "images").mkdir()
    image = image.rename(image.parent / "images" / "a.png")
    assert main(["predict", str(bundle.folder), str(image), str(image.parent), str(image), "--quiet", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["num_images"] == 1
    assert "warning: 2 names left out, of files that are named already: each is classified once" in shown.err


def test_tables_keep_names_as_they_are(bundle: Bundle, image: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert main(["predict", str(bundle.folder), str(image), "--quiet", "--out", str(out)]) == 0
    assert "\\u001b[2J" in out.read_text()


@pytest.mark.parametrize("error", [VivaceError, BundleError, lambda text: ImageError(text, problem="x")])
def test_every_message_is_one_short_line_that_ends_with_its_fix(error: Callable[[str], VivaceError]) -> None:
    text = str(error("cause: \x1b[31m got " + "x\n" * 10_000 + "Do this instead."))
    assert len(text) <= 500
    assert text.startswith("cause: \\x1b[31m got x x")
    assert " … " in text
    assert text.endswith("Do this instead.")
    assert text.isprintable()


def test_what_is_short_and_plain_stays_as_it_is() -> None:
    assert str(VivaceError("the cause: got 'ü'. Do this.")) == "the cause: got 'ü'. Do this."
    assert one_line("x" * 500) == "x" * 500
    assert len(one_line("\x1b" * 10**6)) == 500
    assert printable("日本 ü") == "日本 ü"
    assert nearest("x" * 10**7, ["x"]) == ""


FORESEEN: list[tuple[Exception, str]] = [
    (OSError(errno.ENOSPC, "No space left on device", "/x/y"), r"the system refused: No space left on device: /x/y\."),
    (MemoryError(), r"out of memory: MemoryError"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), r"out of memory: RuntimeError"),
    (ImportError("libtorch_cpu.so: failed to map segment from shared object"), r"out of memory: ImportError"),
    (RuntimeError("can't start new thread"), r"out of memory"),
    (ImportError("libx.so: cannot open shared object file"), r"a library can't be loaded"),
    (RecursionError("maximum recursion depth exceeded"), r"internal error: RecursionError: .* report it"),
    (
        ZeroDivisionError("a\nbug"),
        r"internal error: ZeroDivisionError: a \(.*\)\. Please report it; VIVACE_TRACEBACK=1",
    ),
]


@pytest.mark.parametrize(("error", "message"), FORESEEN)
def test_an_error_that_nobody_foresaw_is_one_line(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(options: Any) -> None:
        raise error

    monkeypatch.delenv("VIVACE_TRACEBACK")
    monkeypatch.setattr(cache, "run", broken)
    assert main(["cache"]) == 1
    shown = capsys.readouterr().err
    assert len(shown.splitlines()) == 1
    assert re.match(message, shown), shown


def test_a_bug_names_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vivace.cli.common.option_names", lambda cls: 1 / 0)
    with pytest.raises(ZeroDivisionError) as caught:
        main(["cache"])
    said = unexpected(caught.value)
    assert re.search(r"internal error: ZeroDivisionError: division by zero \(cli/common\.py:\d+\)", said), said


def test_too_little_memory_is_one_line(bundle: Bundle, image: Path) -> None:
    done = shell(f"ulimit -v 300000; vivace predict '{bundle.folder}' '{image}'")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "out of memory" in done.stderr.splitlines()[-1]


PLACES = {
    "train": ["DATA"],
    "evaluate": ["BUNDLE", "DATA"],
    "predict": ["BUNDLE", "PATHS"],
    "accelerate": ["BUNDLE", "DATA"],
    "verify": ["BUNDLE", "[DATA]"],
    "sign": ["[BUNDLE]"],
    "export": ["BUNDLE", "[DATA]"],
    "profile": ["BUNDLE", "[DATA]"],
    "serve": ["BUNDLES"],
    "runs": ["[FOLDER]"],
    "compare": ["RUN", "[DATA]"],
    "bench": ["ablation", "DATA"],
    "audit": ["DATA"],
    "doctor": [],
    "cache": [],
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("columns", ["40", "200"])
def test_help_names_every_place_and_shows_no_empty_default(
    verb: str, columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert "(default: )" not in text
    assert "None" not in text
    usage, _, rest = text.partition("\n\n")
    for place in PLACES.get(verb, ["BUNDLE"]):
        assert place in usage.split(), usage
        # behind a frame, or at the start of a line
        assert re.search(rf"^\W*{place.strip('[]')}\b", rest, re.MULTILINE), rest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "b", "p", "--topk", "abc"], "--topk is no whole number: got 'abc'. Give one such as 8."),
        (
            ["accelerate", "b", "d", "--batch-size", "9" * 5000],
            "… with thousands of digits. Give a whole number",
        ),
        (["predict", "b", "p", "--topk", "1.5"], "--topk is no whole number: got '1.5'."),
        (["predict", "b", "p", "--topk"], "--topk has no value."),
        (["predict", "b"], "PATHS is missing."),
        (["predict", "b", "p", "-x"], "the option is unknown: got '-x'."),
        (["train", "d", "--lr", "x"], "--lr is no number: got 'x'."),
        (["train", "d", "--target", "95%"], "--target is no number: got '95%'. Give one such as 0.95."),
        (["train", "d", "--target", "95"], "--target is out of range: got 95.0. Give an accuracy in (0, 1]: 0.95 for"),
        (["train", "d", "--precision", "None"], "got 'None'. Known: auto, fp32, bf16, fp16."),
        (["train", "d", "--epochs", "None"], "--epochs is no whole number: got 'None'."),
        (["bench", "fever", "d"], "the argument is unknown: got 'fever'. Known: ablation."),
        (["evaluate", "b", "d", "e"], "more arguments than there are places: got e."),
        (["x" * 10_000], "ConfigError: unknown verb: got 'xxx"),
    ],
)
def test_what_the_parser_refuses_is_said_in_plain_words(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert len(shown.splitlines()) == 1
    assert len(shown) <= 501
    assert "literal" not in shown


def test_a_stderr_that_fails_does_not_end_the_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    def chatty(options: Any) -> None:
        print("a line", file=sys.stderr, flush=True)
        (tmp_path / "done").touch()

    monkeypatch.setattr(cache, "run", chatty)
    monkeypatch.setattr("sys.stderr", Full())
    assert main(["cache"]) == 0
    assert (tmp_path / "done").exists()


def test_whatever_a_verb_says_on_stderr_is_shown_escaped(bundle: Bundle, image: Path, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    out = tmp_path / "x" / f"{EVIL.strip()}.csv"
    for arguments in (["--overwrite"], ["--overwrite"], []):
        command = ["predict", str(bundle.folder), str(image), "--out", str(out), *arguments]
        done = subprocess.run([sys.executable, "-m", "vivace", *command], capture_output=True, check=False)
        assert rb"red\x1b[31m\x07" in done.stderr
        assert not re.search(rb"[\x00-\x08\x0b-\x1f\x7f]|\xc2[\x80-\x9f]|\xe2\x80\xae", done.stderr + done.stdout)


def test_what_is_drawn_on_a_terminal_on_purpose_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing else: neither what is printed beside it, nor names in a live display's messages."""
    from vivace.cli.streams import guarded_streams
    from vivace.training.recording.display import LiveDisplay

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    with guarded_streams():
        print(f"\rlibrary's bar {EVIL!s}", file=sys.stderr)
        with LiveDisplay(epochs="1") as display:
            display.on_message(f"message {EVIL}")
    text = terminal.getvalue()
    assert "\x1b[?25l" in text
    assert text.startswith("\rlibrary's bar red\\x1b[31m\\x07\\r\n")
    assert r"message red\x1b[31m\x07" in text
    assert "\x1b[31m" not in text
    assert "\x07" not in text
    assert "\u202e" not in text


def test_lines_of_a_program_that_calls_us_are_escaped_too(capsys: pytest.CaptureFixture[str]) -> None:
    from vivace.training.recording.display import LiveDisplay

    with LiveDisplay(epochs="1") as display:
        display.on_message(f"message {EVIL}")
    assert "\x1b" not in capsys.readouterr().err
