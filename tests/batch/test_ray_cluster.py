"""A prediction over a Ray cluster of this machine: the rows of one process, whichever workers are killed.

`make ray` installs Ray, which takes 200 MB, and runs these tests.
"""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from streams import make_images, make_tar

from factories import make_bundle
from vivace.batch.cluster.engine import RayEngine
from vivace.batch.outputs import Outputs
from vivace.batch.run import predict_stream
from vivace.cli import main
from vivace.errors import ConfigError
from vivace.predictor import Predictor

pytestmark = [
    # not by importing it: Ray reads then whether a token is needed
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: make ray"),
    pytest.mark.alone,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture
def bundle(tmp_path: Path) -> str:
    return str(make_bundle(tmp_path / "bundle", size=16, widths=[8, 8]).folder)


def sources(folder: Path, count: int = 300) -> list[str]:
    """Images in a folder, of which two are damaged, in a tar and in a parquet file; and one that is not there."""
    images = make_images(folder / "images", count, damaged=(3, 200))
    some = {path.name: path.read_bytes() for path in sorted(images.iterdir())[:100]}
    make_tar(folder / "shard.tar", some)
    pyarrow.parquet.write_table(pyarrow.table({"image": list(some.values())}), folder / "rows.parquet")
    return [str(folder / name) for name in ("images", "shard.tar", "rows.parquet", "missing.jpg")]


def listening(process: int) -> list[str]:
    """The addresses, in hexadecimal, at which this process and those below it wait for connections."""
    found = subprocess.run(["ps", "-e", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = dict(map(int, line.split()) for line in found.splitlines())
    family = {pid for pid in parents if process in _line_of(pid, parents)}
    inodes = set()
    for pid in family:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                inodes.add(os.readlink(link))  # noqa: PTH115
            except OSError:
                continue
    addresses = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            cells = line.split()
            if cells[3] == "0A" and f"socket:[{cells[9]}]" in inodes:
                addresses.append(cells[1].partition(":")[0])
    return addresses


def _line_of(pid: int, parents: dict[int, int]) -> list[int]:
    line = [pid]
    while (pid := parents.get(pid, 0)) > 1:
        line.append(pid)
    return line


def test_with_a_worker_killed_in_the_middle_every_image_has_its_row_once(
    bundle: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = sources(tmp_path)
    predictor = Predictor(bundle, batch_size=8, precision="fp32", threads=1)
    alone = predict_stream(predictor, paths, outputs=Outputs(tmp_path / "alone.csv"))
    killed: list[int] = []
    with RayEngine(workers=3, threads=1, precision="fp32", device="cpu") as cluster:

        def kill(done: int, total: int | None) -> None:
            if done > 150 and not killed:
                killed.append(min(cluster.pids))
                os.kill(killed[0], signal.SIGKILL)
                assert set(listening(os.getpid())) <= {"0100007F", "0000000000000000FFFF00000100007F"}

        many = predict_stream(predictor, paths, outputs=Outputs(tmp_path / "many.csv"), engine=cluster, progress=kill)
    assert killed
    # rows may be there
    assert capsys.readouterr().out == ""
    assert many.num_restarts >= 1
    assert many.num_workers == 3
    assert (many.num_images, many.num_failures) == (alone.num_images, alone.num_failures) == (496, 5)
    assert (tmp_path / "many.csv").read_bytes() == (tmp_path / "alone.csv").read_bytes()
    rows = list(csv.DictReader((tmp_path / "many.csv").read_text().splitlines()))
    assert len({row["path"] for row in rows}) == len(rows) == 501


def test_the_command_gives_tables_features_and_links(
    bundle: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = sources(tmp_path, 210)
    common = ["predict", bundle, *paths, "--quiet", "--threads", "1", "--batch-size", "16", "--precision", "fp32"]
    for name, more in (("local", []), ("ray", ["--engine", "ray", "--workers", "2", "--device", "cpu"])):
        outputs = ["--out", f"{name}.parquet", "--embeddings", f"{name}-features.parquet", "--sort-into", name]
        outputs = [str(tmp_path / text) if not text.startswith("--") else text for text in outputs]
        assert main([*common, *more, *outputs]) == 0
    assert "; by 2 workers of Ray; " in capsys.readouterr().err
    read = pyarrow.parquet.read_table
    assert read(tmp_path / "ray.parquet") == read(tmp_path / "local.parquet")
    here, there = read(tmp_path / "local-features.parquet"), read(tmp_path / "ray-features.parquet")
    assert here["path"] == there["path"]
    np.testing.assert_allclose(
        np.stack(here["embedding"].to_numpy()), np.stack(there["embedding"].to_numpy()), atol=1e-5
    )
    links = [
        sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*"))
        for folder in (tmp_path / "local", tmp_path / "ray")
    ]
    assert links[0] == links[1]
    assert len(links[0]) > 300
    assert not sys.modules["ray"].is_initialized()


def test_a_killed_command_leaves_no_process_and_is_resumed(bundle: str, tmp_path: Path) -> None:
    paths = sources(tmp_path, 900)
    # a cluster's processes are known by the variable that they inherit
    marked = {**os.environ, "VIVACE_TEST_MARK": str(tmp_path)}
    command = [
        sys.executable,
        "-m",
        "vivace",
        "predict",
        bundle,
        *paths,
        "--quiet",
        "--threads",
        "1",
        "--engine",
        "ray",
    ]
    command += ["--workers", "2", "--batch-size", "1", "--device", "cpu", "--resume", "--out"]
    out = tmp_path / "out.csv"
    journal = tmp_path / "out.csv.unfinished" / "journal.jsonl"
    process = subprocess.Popen([*command, str(out)], env=marked, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") > 1):
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not out.exists()
    # two of Ray's own look for their cluster for a minute
    for _ in range(900):
        if not marked_processes(tmp_path):
            break
        time.sleep(0.1)
    assert marked_processes(tmp_path) == []
    done = subprocess.run([*command, str(out)], env=marked, capture_output=True, text=True, check=True)
    assert "were done before" in done.stderr
    subprocess.run([*command, str(tmp_path / "whole.csv")], check=True, capture_output=True)
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def marked_processes(mark: Path) -> list[int]:
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if f"VIVACE_TEST_MARK={mark}".encode() in (place / "environ").read_bytes():
                found.append(int(place.name))
        except OSError:
            continue
    return found


def test_an_address_that_nobody_listens_at_is_an_error(bundle: str, tmp_path: Path) -> None:
    make_images(tmp_path / "images", 3, damaged=())
    with (
        pytest.raises(ConfigError, match=r"Ray's client is not supported: got the address 'ray://127.0.0.1:1'"),
        RayEngine(address="ray://127.0.0.1:1") as cluster,
    ):
        predict_stream(Predictor(bundle), [tmp_path / "images"], engine=cluster)
