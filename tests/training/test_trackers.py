"""Experiment trackers: what is stored in their local stores, and that they never end or delay a run."""

from __future__ import annotations

import json
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from killing import Killed, die_after

from vivace.cli.wording import as_options
from vivace.errors import ConfigError, MissingExtra, RunFolderError
from vivace.notices import wording
from vivace.training.folder.runfolder import TRACKING, RunFolder
from vivace.training.recording.callbacks import Callback, StopTraining
from vivace.training.recording.trackers import choose, tracker
from vivace.training.recording.trackers.backend import Tracked, TrackedRun
from vivace.training.recording.trackers.choose import TRACKERS, TrackerRow, parse_trackers
from vivace.training.recording.trackers.secrets import without_secrets
from vivace.training.recording.trackers.tracker import record_name
from vivace.training.result import TrainResult

RunTiny = Callable[..., TrainResult]


class Fake:
    """A tracker in memory, which continues the runs that it knows."""

    runs: dict[str, list[Any]]

    def __init__(self) -> None:
        self.threads = {threading.current_thread().name}

    def start(self, run: TrackedRun) -> Tracked:
        self.run = run
        self.run_id = run.known_as if run.known_as in self.runs else f"id-{len(self.runs)}"
        self.runs.setdefault(self.run_id, []).append(("start", dict(run.params)))
        return Tracked(
            run_id=self.run_id, place=f"https://me:secret@host/{run.name}", is_continued=run.known_as == self.run_id
        )

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.runs[self.run_id].append((step, dict(metrics)))

    def finish(self, figures: Mapping[str, float], step: int, status: str) -> None:
        self.runs[self.run_id].append((status, dict(figures)))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    class Fresh(Fake):
        pass

    Fresh.runs = {}
    monkeypatch.setitem(TRACKERS, "mlflow", TrackerRow(make=Fresh))
    return Fresh


def steps(events: list[Any]) -> list[Any]:
    return [what for what, _ in events]


def test_a_tracker_is_told_recipe_validations_and_final_figures(
    run_tiny: RunTiny, fake: type[Fake], capsys: pytest.CaptureFixture[str]
) -> None:
    result = run_tiny(track="mlflow", quiet=False)
    (events,) = fake.runs.values()
    assert steps(events) == ["start", 3, 6, 9, "finished"]
    params = events[0][1]
    assert (params["optimizer.name"], params["optimizer.lr"], params["model.arguments.widths"]) == (
        "muon",
        0.05,
        [8, 16],
    )
    assert params["bundle"] == str(result.bundle.resolve())
    assert params["data_source.num_train"] == 18
    assert "place" not in str(params.keys())
    assert events[3][1]["val_top1"] == pytest.approx(result.val_top1)
    assert events[4][1]["final_val_top1"] == result.val_top1
    assert events[4][1]["final_num_images_seen"] == 54
    shown = capsys.readouterr().err
    assert "mlflow: https://***@host/run" in shown
    assert "secret" not in shown
    assert json.loads((result.run / record_name("mlflow")).read_text()) == {"run_id": "id-0", "last_step": 9}


def test_a_resumed_run_continues_the_tracked_one_and_reports_nothing_twice(
    run_tiny: RunTiny, fake: type[Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        die_after(patch, 7)
        with pytest.raises(Killed):
            run_tiny(track="mlflow")
    (events,) = fake.runs.values()
    assert steps(events) == ["start", 3, 6, "failed"]
    run_tiny(resume=True, track="mlflow", epochs=4)
    (events,) = fake.runs.values()
    assert steps(events) == ["start", 3, 6, "failed", "start", 9, 12, "finished"]


def test_a_tracker_that_joins_later_gets_the_earlier_validations(run_tiny: RunTiny, fake: type[Fake]) -> None:
    result = run_tiny(callbacks=[stop_after(6)])
    run_tiny(resume=True, epochs=3, track="mlflow")
    (events,) = fake.runs.values()
    assert result.epochs == 2
    assert steps(events)[:3] == ["start", 3, 6]


def stop_after(step: int) -> Callback:
    class Stop(Callback):
        def on_validation(self, validation: Any) -> None:
            if validation.step == step:
                raise StopTraining

    return Stop()


@pytest.mark.parametrize(
    "content", ["", "{}", '{"run_id": "../x", "last_step": 3}', '{"run_id": "id-0", "last_step": "3"}']
)
def test_a_record_that_is_damaged_starts_a_new_tracked_run(
    run_tiny: RunTiny, fake: type[Fake], capsys: pytest.CaptureFixture[str], content: str
) -> None:
    result = run_tiny(track="mlflow")
    (result.run / record_name("mlflow")).write_text(content)
    run_tiny(resume=True, epochs=4, track="mlflow")
    assert steps(fake.runs["id-1"]) == ["start", 3, 6, 9, 12, "finished"]
    assert "does not tell which tracked run to continue: a new one is started" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["make", "start", "log", "finish"])
@pytest.mark.parametrize("error", [ConnectionError("https://me:secret@host\nis away"), SystemExit(1)])
def test_a_tracker_that_fails_is_one_warning_and_the_run_goes_on(
    run_tiny: RunTiny, fake: type[Fake], capsys: pytest.CaptureFixture[str], where: str, error: BaseException
) -> None:
    def fail(*_: Any) -> Any:
        raise error

    setattr(fake, "__init__" if where == "make" else where, fail)
    result = run_tiny(track="mlflow")
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "mlflow" in line]
    assert line.startswith(f"warning: mlflow no longer tracks the run: {type(error).__name__}")
    assert line.endswith(". metrics.csv has all figures")
    assert "secret" not in line
    assert result.epochs == 3


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize("error", [Mute(), ValueError(f"`epochs={'~' * 4000}1` `epochs=[` `epochs=3`")])
def test_an_error_whose_text_is_hostile_is_one_warning_on_the_command_line(
    run_tiny: RunTiny, fake: type[Fake], capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def fail(*_: Any) -> Any:
        raise error

    fake.log = fail  # type: ignore[method-assign]
    with wording(lambda text: as_options(text, "train")):
        result = run_tiny(track="mlflow")
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "mlflow" in line]
    assert line.startswith(f"warning: mlflow no longer tracks the run: {type(error).__name__}")
    assert "--epochs" not in line
    assert result.epochs == 3


@pytest.mark.parametrize(
    "link", ["wandb", ".wandb", "mlruns", "mlflow.db", "wandb/offline-run-1-a", "mlruns/1/a/metrics", "wandb/logs/x"]
)
def test_a_link_where_a_tracker_writes_is_refused_before_work(
    run_tiny: RunTiny, fake: type[Fake], tmp_path: Path, link: str
) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "debug.log").write_text("kept")
    place = tmp_path / "run" / link
    place.parent.mkdir(parents=True)
    place.symlink_to(target)
    with pytest.raises(RunFolderError, match=rf"^the run folder holds a link where .*{link}\. Remove it, or choose"):
        run_tiny(track="mlflow")
    assert not fake.runs
    assert [(entry.name, entry.read_text()) for entry in target.iterdir()] == [("debug.log", "kept")]


def test_links_that_wandb_has_made_do_not_keep_a_run_from_being_resumed(run_tiny: RunTiny) -> None:
    result = run_tiny()
    for name in ("files", "logs"):
        (result.run / "wandb" / "run-1" / name).mkdir(parents=True)
    for link in ("debug.log", "latest-run", "run-1/files/saved.txt", "run-1/logs/debug-core.log"):
        (result.run / "wandb" / link).symlink_to("run-1")
    assert run_tiny(resume=True, epochs=4).epochs == 4


def test_a_tracker_that_hangs_does_not_hold_the_run(
    run_tiny: RunTiny, fake: type[Fake], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waiting = threading.Event()
    monkeypatch.setattr(tracker, "MAX_WAIT_SECONDS", 0.2)
    monkeypatch.setattr(tracker, "QUIET_SECONDS", 0.1)
    fake.log = lambda *_: waiting.wait(60)  # type: ignore[assignment, method-assign]
    try:
        result = run_tiny(track="mlflow", quiet=False)
    finally:
        waiting.set()
    assert result.bundle.is_dir()
    shown = capsys.readouterr().err
    assert "waiting for mlflow" in shown
    assert "warning: mlflow did not take all of the run within 0.2 s: metrics.csv has what it lacks" in shown


def test_trackers_are_named_one_by_one_or_in_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "_is_installed", lambda library: True)
    assert parse_trackers(()) == ()
    assert parse_trackers("mlflow, wandb") == ("mlflow", "wandb")
    assert parse_trackers(["trackio", "mlflow,trackio", "tensorboard"]) == ("trackio", "mlflow", "tensorboard")
    with pytest.raises(
        ConfigError, match=r"^`track` is unknown: got 'mflow'\. Did you mean 'mlflow'\? Known: tensorboard, m"
    ):
        parse_trackers("mflow")
    with pytest.raises(ConfigError, match=r"^`track` is no list of names: got 3\."):
        parse_trackers(3)  # type: ignore[arg-type]
    assert {record_name(name) for name, row in TRACKERS.items() if row.make} == set(TRACKING)


def test_a_library_that_is_missing_names_its_extra_before_work(
    run_tiny: RunTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TRACKERS, "wandb", TrackerRow(make=Fake, library="no_such_library"))
    with pytest.raises(MissingExtra, match=r"^`track='wandb'` needs no_such_library, .*pip install 'vivace\[no_such"):
        run_tiny(track=["wandb"])
    assert not (tmp_path / "run").exists()
    # a folder that wandb made is no library
    (tmp_path / "wandb_folder").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not choose._is_installed("wandb_folder")


def test_tensorboard_is_always_written(run_tiny: RunTiny) -> None:
    result = run_tiny(track="tensorboard")
    assert list((result.run / "tensorboard").iterdir())


def test_secrets_in_addresses_are_not_told() -> None:
    text = "https://user:pass@host/path?write_token=abc&x=1 postgresql://me@host sqlite:///a.db api_key=123 password=p"
    assert without_secrets(text) == (
        "https://***@host/path?write_token=***&x=1 postgresql://***@host sqlite:///a.db api_key=*** password=***"
    )


@pytest.mark.parametrize(
    "text",
    [
        *("http://user:s3cr/x3t@host", "http://u:s3c@r3t@host", "postgresql://u:s3c/r3t@host/db", "me:s3cr3t@host"),
        *("/x?a=1&pwd=s3cr3t", "/x?sig=s3cr3t&a=1", "api-key: s3cr3t", "Authorization: Bearer s3cr3t", "Bearer s3cr3t"),
        *('{"password": "a s3cr3t"}', "{'X-Api-Key': 's3cr3t'}", "AccountKey=s3cr3t==;", "refused: hf_s3cr3ts3cr3t"),
        *("it says a%2Bb c/s3 cr3t", "log in as a+b c/s3 cr3t", "401 for uri/s3", "401 for uri%2Fs3"),
    ],
)
def test_secrets_are_not_told_wherever_they_are(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a+b c/s3 cr3t")
    monkeypatch.setenv("HF_TOKEN", "a%2Bb c/s3 cr3t")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:uri/s3@host")
    told = without_secrets(text)
    assert "***" in told
    assert not re.search("s3c|r3t|x3t|cr3t|uri", told)


def test_what_is_no_secret_is_told() -> None:
    text = "KeyError: 'run' at https://host:80/api?x=1, passed: 3, by design=1, sqlite:///a.db, 12:30, tokens: 5"
    assert without_secrets(text) == text
    assert len(without_secrets("a" * 10**6)) < 10_000


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to work in, with nobody logged in anywhere, and no way out."""
    place = tmp_path / "work"
    place.mkdir()
    monkeypatch.chdir(place)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_MODE", "WANDB_API_KEY", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(place / "netrc"))
    monkeypatch.setenv("HOME", str(place))

    def refuse(*arguments: Any) -> None:
        host = arguments[1][0] if isinstance(arguments[1], tuple) else arguments[1]
        if host not in ("127.0.0.1", "localhost", "::1") and isinstance(arguments[1], tuple):
            refused.append(host)
            raise OSError(f"the network was reached: {host}")
        connect(*arguments)

    refused: list[str] = []
    connect = socket.socket.connect
    monkeypatch.setattr(socket.socket, "connect", refuse)
    yield place
    assert not refused


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mlflow_has_the_run_in_its_local_database(run_tiny: RunTiny, offline: Path) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    first = run_tiny(track="mlflow", callbacks=[stop_after(6)])
    result = run_tiny(track="mlflow", resume=True, epochs=4)
    client = MlflowClient(f"sqlite:///{offline}/mlflow.db")
    experiment = client.get_experiment_by_name("vivace")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "run")
    assert (run.data.params["optimizer.name"], run.data.params["bundle"]) == ("muon", str(result.bundle.resolve()))
    history = client.get_metric_history(run.info.run_id, "val_top1")
    assert [row.step for row in history] == [3, 6, 9, 12]
    assert history[-1].value == pytest.approx(result.val_top1)
    finals = client.get_metric_history(run.info.run_id, "final_val_top1")
    assert [row.value for row in finals] == [first.val_top1, result.val_top1]
    # a run that this database does not know, as one of another server, gets a new one
    (result.run / record_name("mlflow")).write_text(json.dumps({"run_id": "0" * 32, "last_step": 9}))
    run_tiny(track="mlflow", resume=True, epochs=5)
    newest, _ = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(newest.info.run_id, "val_top1")
    assert [row.step for row in history] == [3, 6, 9, 12, 15]


def leveldb_records(data: bytes, *, first_block: int) -> list[bytes]:
    """The records of a log in LevelDB's format: blocks of 32 KiB, in them pieces with checksum, length and kind."""
    records, begun, place, block_end = [], b"", 0, first_block
    while place + 7 <= len(data):
        if block_end - place < 7:
            place, block_end = block_end, block_end + 2**15
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        if place + 7 + length > len(data):
            # it is being written
            break
        begun += data[place + 7 : place + 7 + length]
        place += 7 + length
        # 1: all of a record, 2 to 4: its first piece, one in the middle, its last one
        if kind in (1, 4):
            records.append(begun)
            begun = b""
    return records


@pytest.mark.filterwarnings("ignore")
def test_wandb_keeps_the_run_offline_where_nobody_is_logged_in(
    run_tiny: RunTiny, offline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    # on a machine with much else to do its service may start only after the run
    monkeypatch.setattr(tracker, "MAX_WAIT_SECONDS", 250.0)
    result = run_tiny(track="wandb", quiet=False)
    shown = capsys.readouterr()
    assert "wandb: offline, upload it with: wandb sync " in shown.err
    assert "WARNING" not in shown.err
    assert not [path for path in (result.run / "wandb").iterdir() if path.is_symlink()]
    # its own links are none of a stranger's
    RunFolder(result.run, resume=True).release()
    assert shown.out == ""
    (stored,) = result.run.glob("wandb/offline-run-*/run-*.wandb")
    assert json.loads((result.run / record_name("wandb")).read_text())["run_id"] in stored.name
    # its service writes the file when it gets to it, which on a busy machine may be after the run
    for _ in range(1000):
        content = stored.read_bytes()
        records = [Record.FromString(data) for data in leveldb_records(content[7:], first_block=2**15 - 7)]
        rows = [
            {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            for record in records
            if record.HasField("history")
        ]
        if rows and "final_val_top1" in str(records):
            break
        time.sleep(0.1)
    assert [row["_step"] for row in rows] == [3, 6, 9]
    assert rows[-1]["val_top1"] == pytest.approx(result.val_top1)
    assert "optimizer.name" in str(records)
    assert "final_val_top1" in str(records)


@pytest.mark.filterwarnings("ignore")
def test_trackio_has_the_run_in_its_local_database(
    run_tiny: RunTiny, offline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(offline / "trackio"))
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    monkeypatch.setattr(tracker, "MAX_WAIT_SECONDS", 250.0)
    monkeypatch.setattr(tracker, "MAX_WAIT_ON_ERROR_SECONDS", 250.0)
    run_tiny(track="trackio", callbacks=[stop_after(6)])
    result = run_tiny(track="trackio", resume=True, epochs=4, quiet=False)
    shown = capsys.readouterr()
    # it prints to stdout by itself
    assert shown.out == ""
    name = json.loads((result.run / record_name("trackio")).read_text())["run_id"]
    assert f"trackio: run {name!r} of project 'vivace'" in shown.err
    rows = SQLiteStorage.get_logs("vivace", name)
    assert [row["step"] for row in rows if "val_top1" in row] == [3, 6, 9, 12]
    assert rows[-1]["final_val_top1"] == result.val_top1
    config = SQLiteStorage.get_run_config("vivace", name)
    assert (config["optimizer.name"], config["bundle"]) == ("muon", str(result.bundle.resolve()))
    assert "trackio" in sys.modules
