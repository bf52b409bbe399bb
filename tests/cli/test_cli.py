"""The command line: what it prints, where, and with which exit status (faults 54 to 58)."""

from __future__ import annotations

import importlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vivace
from answers import last_answer
from colours import COLOURS, noisy_image
from vivace.cli import EXIT_STATUSES, VERBS, main
from vivace.cli.doctor import verdict_of
from vivace.cli.options import option_names
from vivace.cli.train import top1_line
from vivace.errors import ConfigError, DataError
from vivace.metrics.summary import evaluate_probs

TRAIN = ["--epochs", "2", "--size", "32", "--tune", "off", "--quiet", "--set", "threads=1", "--batch-size", "8"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of images with a test split, and a run on it."""
    root = tmp_path_factory.mktemp("cli")
    for split, count in (("train", 8), ("test", 3)):
        for label, colour in COLOURS.items():
            (root / "data" / split / label).mkdir(parents=True)
            for index in range(count):
                seed = index + (100 if split == "test" else 0)
                noisy_image(colour, seed).save(root / "data" / split / label / f"{index}.png")
    options = ["--cache-dir", str(root / "cache"), "--run", str(root / "run"), *TRAIN]
    assert main(["train", str(root / "data"), *options]) == 0
    return {"data": root / "data", "run": root / "run", "cache": root / "cache"}


def test_help_names_every_verb_and_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"], ["help"]):
        assert main(arguments) == 0
        text = capsys.readouterr().out
        assert all(re.search(rf"^  {verb} ", text, re.MULTILINE) for verb in VERBS)
        assert EXIT_STATUSES in text


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_and_takes_json(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert "--json" in text
    assert "None" not in text
    assert "(default: False)" not in text


def test_train_has_few_options() -> None:
    assert len(option_names(importlib.import_module("vivace.cli.train").Options)) <= 32


def num_modules(code: str, *words: str) -> int:
    """How many modules a program says that it has, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stderr.splitlines()[-1])


@pytest.fixture(scope="module")
def modules_of_tyro() -> int:
    """What the library that reads the command line needs, parts of it loaded late."""
    return num_modules("import sys, tyro; print(len(sys.modules), file=sys.stderr)")


@pytest.mark.parametrize("arguments", [["--help"], *([verb, "--help"] for verb in VERBS)], ids=lambda words: words[0])
def test_help_answers_at_once_and_without_torch(arguments: list[str], modules_of_tyro: int) -> None:
    program = (
        "import sys; from vivace.cli import main; status = main(sys.argv[1:]); "
        "assert not {'torch', 'timm', 'torchvision', 'matplotlib'} & set(sys.modules); "
        "print(len(sys.modules), file=sys.stderr); sys.exit(status)"
    )
    # importing is what takes time
    assert num_modules(program, *arguments) < 2.5 * modules_of_tyro


@pytest.mark.parametrize(("arguments", "status", "length"), [(["--help"], 0, 1000), (["trian"], 2, 0)])
def test_the_process_ends_with_its_status_and_all_that_was_printed(
    arguments: list[str], status: int, length: int
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vivace", *arguments], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == status
    # through a pipe output is held back until the end: it must not be lost there
    assert len(done.stdout) >= length
    assert bool(done.stderr) == (status != 0)


def test_what_was_to_be_done_at_the_end_is_done_and_an_output_that_is_full_is_no_success(tmp_path: Path) -> None:
    program = (
        "import atexit, sys; from vivace import cli; atexit.register(lambda: open(sys.argv[1], 'w').write('done')); "
        "cli.main = lambda: print('x') or 0; cli.program()"
    )
    left = tmp_path / "left"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-c", program, str(left)], stdout=full, check=False, timeout=60)
    assert done.returncode == 1
    assert left.read_text() == "done"


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert re.fullmatch(r"vivace \d+\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian", "data"], r"^ConfigError: unknown verb: got 'trian'\. Did you mean 'train'"),
        (
            ["train", "data", "--epoch", "3"],
            r"^ConfigError: the option is unknown: got '--epoch'\. Did you mean '--epochs'",
        ),
        (["train", "data", "--epochs", "many"], r"^ConfigError: --epochs is no whole number: got 'many'"),
        (["train", "data", "--recipe", "fats"], r"^ConfigError: --recipe is unknown: got 'fats'.*'fast'"),
        (["train"], r"^ConfigError: DATA is missing\. See vivace train --help"),
        (["train", "nowhere"], r"^DataError: .*nowhere"),
        (["compare", "one"], r"^ConfigError: the second RUN is missing\. See"),
        (
            ["train", "FOLDER", "--set", "optimizer.lrr=1"],
            r"^ConfigError: .*optimizer\.lrr.*Did you mean 'lr'|optimizer\.lr",
        ),
        (["train", "FOLDER", "--set", "optimizer.lr"], r"^ConfigError: --set needs field=value: got 'optimizer\.lr'"),
        (["train", "FOLDER", "--lr", "-1"], r"^ConfigError: .*optimizer\.lr.*-1"),
        (["train", "FOLDER", "--model", "resnet18"], r"^ModelError: .*'resnet18'\. Did you mean 'timm/resnet18'"),
        (["train", "FOLDER", "--within", "soon"], r"^ConfigError: --within is no duration: got 'soon'"),
        (["train", "FOLDER", "--config", "none.yaml"], r"^ConfigError: .*none\.yaml"),
        (["train", "FOLDER", "--device", "tpu"], r"^ConfigError: --device is unknown: got 'tpu'"),
        (["evaluate", "nowhere", "FOLDER"], r"^BundleError: the bundle does not exist: got 'nowhere'"),
        (["cache", "--remove", "nothing"], r"^DataError: there is no such cache entry: got 'nothing'"),
    ],
)
def test_a_wrong_input_is_one_line_on_stderr_and_status_2(
    arguments: list[str],
    message: str,
    make_folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = make_folder()
    assert main([str(folder) if word == "FOLDER" else word for word in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    # what was understood of the data comes first
    lines = [line for line in captured.err.splitlines() if not line.startswith("data: ")]
    assert len(lines) == 1, captured.err
    assert re.search(message, lines[0]), captured.err
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


def test_a_yaml_object_tag_is_refused(tmp_path: Path, make_folder: Any, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: !!python/object/apply:os.system ['touch executed']\n")
    assert main(["train", str(make_folder()), "--config", str(recipe), "--run", str(tmp_path / "run")]) == 2
    assert "recipe.yaml" in capsys.readouterr().err
    assert not (tmp_path / "executed").exists()


def test_a_file_name_can_neither_break_the_line_nor_reach_the_terminal(
    make_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_folder()
    (folder / "red" / "bad\n\x1b[31m.png").write_bytes(b"")
    assert main(["train", str(folder), "--run", str(tmp_path / "run"), "--on-bad-image", "refuse"]) == 2
    data, recipe, error = capsys.readouterr().err.splitlines()
    assert data.startswith("data: ")
    assert recipe.startswith("recipe: fast: small images")
    assert "bad" in error
    assert "\x1b" not in error


def test_train_prints_where_everything_lies_and_json_as_the_last_answer(
    trained: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["train", str(trained["data"]), "--cache-dir", str(trained["cache"]), *TRAIN]
    assert main([*common, "--run", str(tmp_path / "a"), "--json"]) == 0
    result = last_answer(capsys.readouterr().out)
    assert {
        "bundle",
        "run",
        "val_top1",
        "test_top1",
        "epochs",
        "train_seconds",
        "total_seconds",
        "num_images_seen",
    } <= set(result)
    assert 0 <= result["val_top1"] <= 1
    assert result["epochs"] == 2
    # 24 images, of which each class gives one to validation
    assert result["num_images_seen"] == 2 * 21
    assert 0 < result["train_seconds"] < result["total_seconds"]
    assert (Path(result["bundle"]) / "bundle.json").is_file()
    assert main([*common, "--run", str(tmp_path / "b")]) == 0
    text = capsys.readouterr().out
    for name in ("validation top-1", "test top-1", "bundle", "curves"):
        assert re.search(rf"^{name}\s+\S", text, re.MULTILINE)


def test_the_summary_gives_wilsons_interval_beside_an_accuracy() -> None:
    metrics = evaluate_probs(np.eye(2), np.array([0, 1]), ("a", "b")).summary()
    # (1 + z² / 2n − z √(z² / 4n²)) / (1 + z² / n) for 2 of 2
    assert top1_line(metrics) == "100.00 % [34.24, 100.00] of 2 images"


def test_evaluate_gives_the_keys_of_the_field(trained: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(trained["run"]), str(trained["data"]), "--json", "--quiet"]) == 0
    result = last_answer(capsys.readouterr().out)
    assert {"top1", "top1_low", "top1_high", "top5", "nll", "ece", "num_images"} <= set(result)
    assert result["num_images"] == 9
    assert result["top1_low"] <= result["top1"] <= result["top1_high"]
    training = json.loads((trained["run"] / "result.json").read_text())
    assert result["top1"] == training["test_top1"]


def test_predict_reads_a_list_from_stdin_and_reports_what_fails(
    trained: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = trained["data"] / "test" / "red" / "0.png"
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(f"{good}\n{bad}\n".encode())))
    assert main(["predict", str(trained["run"]), "-", "--json", "--quiet", "--topk", "2"]) == 0
    captured = capsys.readouterr()
    result = last_answer(captured.out)
    assert (result["num_images"], result["num_failures"]) == (1, 1)
    assert [row["path"] for row in result["predictions"]] == [str(good)]
    assert len(result["predictions"][0]["topk"]) == 2
    assert "bad.png" in captured.err


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_predictions_are_written_as_tables(trained: dict[str, Path], tmp_path: Path, suffix: str) -> None:
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    out = tmp_path / f"predictions.{suffix}"
    assert main(["predict", str(trained["run"]), str(trained["data"] / "test"), "--out", str(out), "--quiet"]) == 0
    if suffix == "parquet":
        import pyarrow.parquet as parquet

        assert parquet.read_table(out).num_rows == 9
    else:
        lines = out.read_text().splitlines()
        assert len(lines) == 9 + (suffix == "csv")


@pytest.mark.parametrize("verb", ["audit", "cache", "doctor", "export"])
def test_the_other_verbs_print_text_and_strict_json(
    verb: str, trained: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = {
        "audit": [str(trained["data"])],
        "cache": ["--cache-dir", str(trained["cache"])],
        "doctor": ["--cache-dir", str(trained["cache"])],
        "export": [str(trained["run"]), "--state-dict", str(tmp_path / "model.pth")],
    }[verb]
    assert main([verb, *arguments]) == 0
    assert capsys.readouterr().out.strip()
    assert main([verb, *arguments, "--json"]) == 0
    assert last_answer(capsys.readouterr().out)


def test_doctor_tells_machine_precisions_libraries_and_data(
    trained: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10" / "data.bin").write_bytes(b"x" * 1000)
    (tmp_path / "holidays").mkdir()
    arguments = ["--cache-dir", str(trained["cache"]), "--data-root", str(tmp_path), "--json"]
    assert main(["doctor", *arguments]) == 0
    findings = last_answer(capsys.readouterr().out)
    assert findings["data"] == {"path": str(tmp_path), "sets": [{"name": "cifar10", "bytes": 1000}]}
    assert findings["precision"][0]["precision"] == "fp32"
    assert all(row["gflops"] > 0 for row in findings["precision"])
    assert findings["machine"]["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert findings["cache"]["num_caches"] >= 1
    assert "timm/tf_efficientnet_lite0.in1k" in [row["network"] for row in findings["pretrained"]]
    assert {"norms", "resize"} < {row["name"] for row in findings["kernels"]}
    assert {row["state"] for row in findings["kernels"]} <= {"built", "unusable", "failed"}


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """doctor compiles those that the cache does not have: in a new one all of them."""
    monkeypatch.setattr("vivace.kernels.status.kernel_statuses", lambda _: ())


@pytest.mark.usefixtures("without_kernels")
@pytest.mark.parametrize(
    ("low", "high", "verdict", "said"),
    [(0.28, 1.8, "undecided", "undecided (too noisy)"), (1.1, 1.8, "faster", "faster"), (0.2, 0.9, "slower", "slower")],
)
def test_doctor_gives_no_verdict_from_an_interval_that_holds_1(
    low: float,
    high: float,
    verdict: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from vivace import hardware, measure

    compared = measure.Comparison(
        baseline_ms=(1.0,) * 5, candidate_ms=(1.0,) * 5, ratio=0.71, ratio_low=low, ratio_high=high
    )
    monkeypatch.setattr(measure, "compare", lambda *_, **__: compared)
    monkeypatch.setattr(hardware, "supported_precisions", lambda _: ("fp32", "bf16"))
    assert main(["doctor", "--device", "cpu", "--cache-dir", str(tmp_path)]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  bf16 ")]
    assert f"0.71 × [{low:.2f}, {high:.2f}]   {said}" in line
    assert verdict_of(low, high) == verdict


@pytest.mark.usefixtures("without_kernels")
def test_doctor_names_the_extra_of_a_missing_library(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from vivace import hardware

    versions = hardware.library_versions() | {"matplotlib": None}
    monkeypatch.setattr(hardware, "library_versions", lambda: versions)
    assert main(["doctor", "--cache-dir", str(tmp_path)]) == 0
    assert "matplotlib is missing: pip install 'vivace[report]'" in capsys.readouterr().out


@pytest.mark.usefixtures("without_kernels")
@pytest.mark.parametrize(("policy", "advised"), [("never", True), ("madvise", False), (None, False)])
def test_doctor_advises_huge_pages_where_nobody_gets_them(
    policy: str | None,
    advised: bool,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from vivace import hardware

    monkeypatch.setattr(hardware, "huge_pages", lambda: policy)
    assert main(["doctor", "--cache-dir", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert ("huge pages are off" in printed) is advised
    assert ("huge pages: " in printed) is (policy is not None)


def test_an_exported_state_dict_is_what_plain_torch_takes(trained: dict[str, Path], tmp_path: Path) -> None:
    import vivace
    from vivace.models.zoo import create_model

    assert main(["export", str(trained["run"]), "--state-dict", str(tmp_path / "model.pth")]) == 0
    architecture = vivace.load(trained["run"] / "bundle").info.architecture
    model = create_model(
        architecture.name,
        architecture.num_classes,
        in_channels=architecture.in_channels,
        size=architecture.size,
        **architecture.arguments,
    )
    model.load_state_dict(torch.load(tmp_path / "model.pth", weights_only=True))


def run_process(*arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "vivace", *arguments], capture_output=True, check=False, timeout=120, **options
    )


def test_a_closed_stdout_is_no_failure(trained: dict[str, Path]) -> None:
    predict = f"'{sys.executable}' -m vivace predict '{trained['run']}' '{trained['data'] / 'train'}' --quiet"
    command = f"{predict} | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "0"
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_help_that_nobody_reads_to_its_end_is_no_failure() -> None:
    read, write = os.pipe()
    os.close(read)
    # nobody reads it from the start: a `head` may leave before or after the last line
    done = subprocess.run(
        [sys.executable, "-m", "vivace", "evaluate", "--help"], stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert done.returncode == 0
    assert done.stderr == b""


def test_without_home_and_with_a_read_only_cache_place_the_error_is_clear(
    make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_folder()
    env = {key: value for key, value in os.environ.items() if key not in ("HOME", "XDG_CACHE_HOME", "VIVACE_CACHE")}
    done = run_process("audit", str(folder), "--json", env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (tmp_path / "file").write_text("")
    done = run_process("train", str(folder), "--cache-dir", str(tmp_path / "file" / "cache"), cwd=tmp_path)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr


def test_nothing_is_drawn_where_stderr_is_no_terminal(trained: dict[str, Path], tmp_path: Path) -> None:
    run = ["--run", str(tmp_path / "run"), "--epochs", "1", "--size", "32", "--tune", "off"]
    done = run_process("train", str(trained["data"]), *run, env={**os.environ, "VIVACE_CACHE": str(tmp_path / "cache")})
    assert done.returncode == 0, done.stderr
    assert b"\x1b" not in done.stdout + done.stderr
    # what the data are, the recipe and why, the execution, and a line for the epoch
    assert len(done.stderr.splitlines()) <= 4


def test_a_bug_keeps_its_traceback_where_that_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    from vivace.cli import cache

    def broken(options: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(cache, "run", broken)
    with pytest.raises(ZeroDivisionError):
        main(["cache"])


def test_ctrl_c_before_training_is_130_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vivace.cli import cache

    def interrupted(options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cache, "run", interrupted)
    assert main(["cache"]) == 130
    assert capsys.readouterr().err == "stopped\n"


def test_sigterm_ends_any_verb_as_ctrl_c_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vivace.cli import cache

    put_in_order = []

    def terminated(options: Any) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            # a second one would end the process of tests
            put_in_order.append(signal.getsignal(signal.SIGTERM))

    monkeypatch.setattr(cache, "run", terminated)
    before = signal.getsignal(signal.SIGTERM)
    assert main(["cache"]) == 143
    assert capsys.readouterr().err == "stopped by SIGTERM\n"
    assert put_in_order == [signal.SIG_DFL]
    assert main(["cache", "--json"]) == 143
    assert json.loads(capsys.readouterr().out)["error"]["exit_status"] == 143
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_forked_worker_ends_by_sigterm_as_any_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vivace.cli import cache

    ended = []

    def forks(options: Any) -> None:
        child = os.fork()
        if child == 0:
            try:
                signal.raise_signal(signal.SIGTERM)
            finally:
                # an exception would go through the tests a second time
                os._exit(7)
        ended.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    monkeypatch.setattr(cache, "run", forks)
    with warnings.catch_warnings():
        # that other threads may hold locks: the child takes none
        warnings.simplefilter("ignore", DeprecationWarning)
        assert main(["cache"]) == 0
    assert ended == [-signal.SIGTERM]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        (["train", ""], ": the first one"),
        (["train", "DATA", "--run", ""], " after --run"),
        (["predict", "RUN", ""], " after RUN"),
        (["evaluate", "RUN", "--split=", "DATA"], ": --split="),
    ],
)
def test_an_empty_argument_is_no_name_of_the_current_folder(
    arguments: list[str],
    place: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert f"an argument is empty{place}. Is a variable" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="run is an empty text"):
        vivace.train("digits", run="")
    with pytest.raises(DataError, match="data is an empty string"):
        vivace.train("")
