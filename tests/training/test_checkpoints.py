"""A checkpoint is whole or refused (faults 32 to 34); the newest sound one is used."""

from __future__ import annotations

import json
import os
import pickle
import resource
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from same_weights import assert_same_weights

from vivace.errors import CheckpointError, TrainingError
from vivace.training.folder import checkpoints
from vivace.training.folder.checkpoints import CHECKPOINT_VERSION, load_checkpoint, load_newest, prune, save_checkpoint
from vivace.training.result import TrainResult

RunTiny = Callable[..., TrainResult]


def make_tree() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {
        "model": {"weight": torch.randn(4, 3, 3, 3, generator=generator), "steps": torch.tensor(7)},
        "optimizer": {
            "state": {0: {"momentum": torch.randn(4, generator=generator)}},
            "groups": [{"betas": (0.9, 0.95)}],
        },
        "half": torch.randn(3, generator=generator).bfloat16(),
        "empty": torch.zeros(0),
        "rng": torch.arange(8, dtype=torch.uint8),
        "flag": None,
        "counters": {"step": 3, "history": [{"epoch": 1, "val_top1": 0.25}], "name": "é\n"},
    }


def assert_same_tree(first: Any, second: Any) -> None:
    assert type(first) is type(second)
    if isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype
        assert torch.equal(first, second)
        assert first.stride() == second.stride()
    elif isinstance(first, dict):
        assert list(first) == list(second)
        for key in first:
            assert_same_tree(first[key], second[key])
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_same_tree(one, other)
    else:
        assert first == second


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """No file may grow beyond this in the block: writes fail as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_tree_comes_back_as_it_was(tmp_path: Path) -> None:
    tree = make_tree()
    # keys that are numbers, tuples, and memory formats are all part of an optimizer's state
    tree["model"]["weight"] = tree["model"]["weight"].to(memory_format=torch.channels_last)
    save_checkpoint(tmp_path / "c.safetensors", tree)
    assert_same_tree(load_checkpoint(tmp_path / "c.safetensors"), tree)


def test_a_value_that_cannot_be_kept_is_refused_when_saving(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="a checkpoint can't hold object"):
        save_checkpoint(tmp_path / "c.safetensors", {"x": object()})
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_truncated_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, make_tree())
    whole = path.read_bytes()
    for length in [0, 1, 7, 8, 9, *range(10, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            load_checkpoint(path)


def test_one_flipped_bit_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, make_tree())
    whole = path.read_bytes()
    # every byte: the length of the header, its JSON, which holds the tree, and the tensors
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            load_checkpoint(path)


def test_the_version_is_covered_by_the_hash(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, make_tree())
    path.write_bytes(path.read_bytes().replace(b'"version":"1"', b'"version":"0"'))
    with pytest.raises(CheckpointError, match=r"^the checkpoint is damaged: .*c\.safetensors, its SHA-256 is wrong\."):
        load_checkpoint(path)


def test_another_programs_safetensors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match=r"^not a checkpoint: .*Give one that 'vivace train' wrote"):
        load_checkpoint(path)


def test_a_newer_version_is_refused_and_both_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "CHECKPOINT_VERSION", CHECKPOINT_VERSION + 1)
        save_checkpoint(path, make_tree())
    expected = rf"newer: version {CHECKPOINT_VERSION + 1}, this vivace reads up to {CHECKPOINT_VERSION}\. Upgrade: pip"
    with pytest.raises(CheckpointError, match=expected):
        load_checkpoint(path)


def test_a_disk_that_is_full_in_the_middle_of_a_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "step-000000001.safetensors"
    save_checkpoint(path, make_tree())
    before = path.read_bytes()
    with (
        largest_file(len(before) // 2),
        pytest.raises(
            TrainingError,
            match=r"could not be written: .*1\.safetensors \(File too large\)\. The previous",
        ),
    ):
        save_checkpoint(path, make_tree())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_pickle_offered_as_a_checkpoint_is_not_loaded(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "executed",)

    path = tmp_path / "step-000000009.safetensors"
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError, match=r"^the checkpoint can't be read: "):
        load_checkpoint(path)
    torch.save({"x": Evil()}, path)
    with pytest.raises(CheckpointError, match=r"^the checkpoint can't be read: "):
        load_checkpoint(path)
    assert not (tmp_path / "executed").exists()


def test_a_header_that_claims_too_much_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    path.write_bytes(struct.pack("<Q", 2**40) + b"{}")
    with pytest.raises(CheckpointError, match=r"^the checkpoint can't be read: "):
        load_checkpoint(path)
    header = json.dumps({"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(CheckpointError, match=r"^the checkpoint can't be read: "):
        load_checkpoint(path)


def test_a_checkpoint_of_holes_is_passed_over_unread(tmp_path: Path) -> None:
    """100 GiB that take no room on a disk: hashing them takes a minute or more, and reading them that much memory."""
    size = 100 * 2**30
    tensors = {"x": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    header = json.dumps({"__metadata__": {"format": "vivace-checkpoint", "tree": "{}", "version": "1"}, **tensors})
    path = tmp_path / "step-000000009.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode())
    os.truncate(path, 8 + len(header) + size)
    save_checkpoint(tmp_path / "step-000000003.safetensors", {"step": 3})
    tree, _, (told,) = load_newest(tmp_path)
    assert tree == {"step": 3}
    assert "bytes that are almost only holes" in told


def test_the_newest_sound_checkpoint_is_found_and_the_damaged_are_told(tmp_path: Path) -> None:
    for step in (3, 6, 9):
        save_checkpoint(tmp_path / f"step-{step:09d}.safetensors", {"step": step})
    newest = tmp_path / "step-000000009.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1] + b"?")
    tree, path, damaged = load_newest(tmp_path)
    assert tree == {"step": 6}
    assert path == tmp_path / "step-000000006.safetensors"
    assert len(damaged) == 1
    assert newest.name in damaged[0]


def test_pruning_keeps_the_newest_two_and_removes_what_a_crash_left(tmp_path: Path) -> None:
    for step in (3, 6, 9, 12):
        save_checkpoint(tmp_path / f"step-{step:09d}.safetensors", {"step": step})
    save_checkpoint(tmp_path / "best.safetensors", {"step": 3})
    (tmp_path / ".step-000000015.safetensors.0123abcd.tmp").write_bytes(b"half")
    (tmp_path / ".mine.tmp").write_bytes(b"the user's")
    prune(tmp_path, tmp_path / "step-000000012.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".mine.tmp",
        "best.safetensors",
        "step-000000009.safetensors",
        "step-000000012.safetensors",
    ]


def test_pruning_removes_the_steps_that_a_run_gave_up(tmp_path: Path) -> None:
    for step in (3, 6, 9, 12):
        save_checkpoint(tmp_path / f"step-{step:09d}.safetensors", {"step": step})
    # back at step 6: what was to become of it then is not what becomes of it now
    prune(tmp_path, tmp_path / "step-000000006.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-000000003.safetensors",
        "step-000000006.safetensors",
    ]


def test_a_run_whose_newest_checkpoint_is_damaged_goes_on_from_the_one_before(
    run_tiny: RunTiny, capfd: pytest.CaptureFixture[str]
) -> None:
    unbroken = run_tiny("unbroken")
    damaged = run_tiny("damaged")
    newest = max((damaged.run / "checkpoints").glob("step-*"))
    newest.write_bytes(newest.read_bytes()[:1000])
    resumed = run_tiny("damaged", resume=True, quiet=False)
    assert_same_weights(unbroken, resumed)
    assert f"the checkpoint can't be read: {newest}" in capfd.readouterr().err.replace("\n", "")


def test_a_run_without_a_sound_checkpoint_is_refused(run_tiny: RunTiny) -> None:
    result = run_tiny()
    for path in (result.run / "checkpoints").glob("step-*"):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError) as caught:
        run_tiny(resume=True)
    message = str(caught.value)
    assert message.startswith(f"no sound checkpoint is left in {result.run / 'checkpoints'}: 2 can't be used")
    assert "step-000000009.safetensors (Error while deserializing header: header too small)" in message
    assert message.endswith("Start a new run with another `run`.")


def test_a_pipe_is_no_checkpoint_that_is_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "step-000000001.safetensors")
    with pytest.raises(CheckpointError, match=r"^the checkpoint can't be read: .* \(no regular file\)"):
        load_checkpoint(tmp_path / "step-000000001.safetensors")


def test_pruning_leaves_the_files_of_others(tmp_path: Path) -> None:
    mine = tmp_path / ".notes.deadbeef.tmp"
    mine.write_text("mine")
    newest = tmp_path / "step-000000001.safetensors"
    save_checkpoint(newest, {"step": 1})
    prune(tmp_path, newest)
    assert mine.read_text() == "mine"


def test_a_tree_that_makes_no_sense_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "step-000000001.safetensors"
    for tree in ({"tensor": "none", "channels_last": False}, {"dict": [1]}, {"tuple": 3}, [], {}, {"dict": [[[], 1]]}):
        with monkeypatch.context() as patch:
            patch.setattr("vivace.training.folder.checkpoints._split", lambda *_, tree=tree: tree)
            save_checkpoint(path, {})
        with pytest.raises(CheckpointError, match=r"^the checkpoint makes no sense: "):
            load_checkpoint(path)
