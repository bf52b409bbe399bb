"""The facts that recipes depend on: measured from headers, whatever files there are."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from vivace.data.sources import open_source
from vivace.data.splits import DataSource, Split
from vivace.training.recipes import facts as facts_module
from vivace.training.recipes.facts import measure_facts, training_speed

MakeFolder = Callable[..., Path]


def source_of(paths: list[Path]) -> DataSource:
    names = tuple(path.name for path in paths)
    labels = np.zeros(len(paths), np.int64)
    train = Split(name="train", names=names, labels=labels, paths=tuple(paths), arrays=None)
    return DataSource(name="mine", classes=("a", "b"), splits={"train": train}, root=None, channels=3)


def write_images(folder: Path, sizes: list[tuple[int, int]]) -> list[Path]:
    paths = []
    for index, size in enumerate(sizes):
        paths.append(folder / f"{index:04d}.png")
        Image.new("RGB", size).save(paths[-1])
    return paths


def test_small_images_are_told_from_photos(make_folder: MakeFolder, tmp_path: Path) -> None:
    small = measure_facts(open_source(make_folder(per_class=5, splits=("train", "test"))))
    assert (small.num_images, small.num_classes, small.channels, small.side) == (15, 3, 3, 36)
    assert small.small
    photos = measure_facts(source_of(write_images(tmp_path, [(300, 200), (200, 400), (640, 480)])))
    # the median of the shorter sides
    assert photos.side == 200
    assert not photos.small


def test_digits_are_small_and_grey() -> None:
    pytest.importorskip("sklearn")
    digits = measure_facts(open_source("digits"))
    assert (digits.channels, digits.side, digits.num_classes, digits.small) == (1, 8, 10, True)


def test_of_arrays_the_shape_tells_the_side() -> None:
    images = np.zeros((4, 20, 30, 1), np.uint8)
    labels = np.array([0, 0, 1, 1])
    train = Split(name="train", names=("a", "b", "c", "d"), labels=labels, paths=None, arrays=images)
    source = DataSource(name="mine", classes=("0", "1"), splits={"train": train}, root=None, channels=1)
    assert measure_facts(source).side == 20


def test_the_sample_is_spread_over_all_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts_module, "NUM_SAMPLED", 8)
    # sorted by class: most images are in the second one, and large
    paths = write_images(tmp_path, [(20, 20)] * 5 + [(90, 90)] * 10)
    opened: list[Path] = []
    size_of = facts_module.size_of

    def recording(path: Path) -> tuple[int, int]:
        opened.append(path)
        return size_of(path)

    monkeypatch.setattr(facts_module, "size_of", recording)
    assert measure_facts(source_of(paths)).side == 90
    assert len(opened) == len(set(opened)) == 8
    opened.clear()
    # of fewer files, each one
    measure_facts(source_of(paths[:5]))
    assert opened == paths[:5]


def test_files_that_can_not_be_read_are_passed_over(tmp_path: Path) -> None:
    good = write_images(tmp_path, [(50, 60)])
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "cut.png").write_bytes(good[0].read_bytes()[:20])
    # a format that is not allowed is not even looked at
    (tmp_path / "page.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 900 900\n%%EndComments\n")
    bad = [tmp_path / name for name in ("empty.png", "text.jpg", "cut.png", "page.eps", "absent.png")]
    assert measure_facts(source_of(bad + good)).side == 50
    # the audit will say what is wrong with them
    assert measure_facts(source_of(bad)).side == 128


def test_a_decompression_bomb_is_neither_decoded_nor_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = write_images(tmp_path, [(60, 60)])
    data = bytearray(path.read_bytes())
    # what the header of a PNG says, at bytes 16 to 24, with the checksum behind it
    data[16:24] = struct.pack(">II", 60_000, 50_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("decoded"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert measure_facts(source_of([path])).side == 50_000


def test_a_machine_counts_as_slower_without_instructions_and_with_fewer_processors() -> None:
    with_amx = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    assert training_speed(2, with_amx) == training_speed(64, with_amx) == 1.0
    assert training_speed(1, with_amx) == 0.5
    speeds = [training_speed(2, with_amx[:count]) for count in (1, 2, 3, 4)]
    assert speeds == sorted(set(speeds))
    # four cores of one kind as two that are twice as fast
    assert training_speed(4, with_amx[:3]) == 2 * training_speed(2, with_amx[:3])
    # of other processors nothing is known
    assert training_speed(2, ("asimd",)) == 1.0


def test_the_facts_hold_the_speed_of_this_machine(
    make_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts_module, "cpu_features", lambda: ("avx2",))
    monkeypatch.setattr(facts_module, "num_cpus", lambda: 2)
    assert measure_facts(open_source(make_folder(), cache_dir=tmp_path)).speed == training_speed(2, ("avx2",)) < 0.2
