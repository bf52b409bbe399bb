"""A search and an export on data of one's own: other processes read the images, never the user's code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fakes import COSTS, fake_times, keep_fake_variants, run
from PIL import Image

import vivace
from own import Pairs, pairs_of
from vivace.bundle import Bundle


@pytest.fixture(autouse=True)
def quick_variants(graphs_made_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_fake_variants(monkeypatch)


def as_objects(photos: Path) -> dict[str, Any]:
    """The splits of a folder as data sets that no other process could be sent."""
    parts = {folder.name: folder for folder in sorted(photos.iterdir()) if folder.is_dir()}
    classes = sorted({path.parent.name for path in photos.rglob("*.png")})
    unsendable = lambda image: Image.eval(image, lambda value: value)  # noqa: E731
    return {name: Pairs(pairs_of(folder), classes, unsendable) for name, folder in parts.items()}


def test_a_search_on_objects_decides_as_on_their_files(
    trained: tuple[Bundle, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_times(monkeypatch, COSTS)
    files = run(trained, tmp_path / "files", max_drop=20.0)
    data = as_objects(trained[1])
    # within a time, the images are opened in another process
    own = run((trained[0], data), tmp_path / "own", max_drop=20.0, within=600)  # type: ignore[arg-type]
    assert (own.status, own.runtime, own.precision) == (files.status, files.runtime, files.precision)
    assert (own.top1_before, own.top1_after) == (files.top1_before, files.top1_after)
    assert own.num_certify_images == files.num_certify_images
    assert own.receipt["asked"]["data"] == "Pairs-dataset"
    assert json.loads((own.bundle / "receipt.json").read_text())["asked"]["data"] == "Pairs-dataset"
    # nothing is left beside it of the images that were copied for the other process
    assert not list((tmp_path / "own").glob(".*/images"))


def test_goldens_of_a_deployment_are_images_of_the_object(trained: tuple[Bundle, Path], tmp_path: Path) -> None:
    folder = vivace.export(trained[0].folder, to="deploy", out=tmp_path / "app", data=as_objects(trained[1])).path
    goldens = json.loads((folder / "golden" / "golden.json").read_text())["images"]
    assert {golden["source"].split("/")[0] for golden in goldens} <= {"train", "val", "test"}
    assert all((folder / "golden" / golden["file"]).suffix == ".png" for golden in goldens)
