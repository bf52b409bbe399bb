"""Digests of the images that a network was trained on: small, and without false matches."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from vivace.bundle import Architecture, BundleInfo, derive_bundle, load_bundle, save_bundle
from vivace.data.preprocess import Preprocess
from vivace.errors import BundleError
from vivace.models.zoo import create_model
from vivace.trained_on import TRAINED_ON, TrainedOn, write_trained_on


def digests(contents: Sequence[object]) -> np.ndarray:
    """Digests as in the cache."""
    return np.asarray([hashlib.blake2b(str(c).encode(), digest_size=16).hexdigest() for c in contents], dtype="S32")


def test_images_trained_on_are_distinguished_from_others(tmp_path: Path) -> None:
    write_trained_on(tmp_path / "x", digests(range(0, 20_000, 2)))
    found = TrainedOn.read(tmp_path / "x")
    assert len(found) == 10_000
    np.testing.assert_array_equal(found.among(digests(range(20_000))), np.arange(20_000) % 2 == 0)
    assert found.among(digests([])).shape == (0,)
    assert (tmp_path / "x").stat().st_size == 5 * 10_000


def test_copies_of_an_image_are_one(tmp_path: Path) -> None:
    write_trained_on(tmp_path / "x", digests([1, 1, 2]))
    assert len(TrainedOn.read(tmp_path / "x")) == 2


@pytest.mark.parametrize("digest", [b"00" * 16, b"ff" * 16, b"0000000001" + b"a" * 22])
def test_digests_at_the_ends_are_kept(tmp_path: Path, digest: bytes) -> None:
    write_trained_on(tmp_path / "x", np.asarray([digest]))
    assert TrainedOn.read(tmp_path / "x").among(np.asarray([digest])).all()


def test_more_images_than_a_bundle_has_room_for_are_not_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vivace.trained_on.MAX_IMAGES", 3)
    write_trained_on(tmp_path / "x", digests(range(4)))
    assert not (tmp_path / "x").exists()
    write_trained_on(tmp_path / "x", digests(range(3)))
    monkeypatch.setattr("vivace.trained_on.MAX_IMAGES", 2)
    with pytest.raises(BundleError, match="has 15 bytes, which is not a multiple of 5 or too many"):
        TrainedOn.read(tmp_path / "x")


@pytest.mark.parametrize("contents", [b"1234", b"123456", os.urandom(999)])
def test_a_file_that_holds_something_else_is_refused(tmp_path: Path, contents: bytes) -> None:
    (tmp_path / "x").write_bytes(contents)
    with pytest.raises(
        BundleError, match=r"^the bundle is damaged: .*x has [\d,]+ bytes, which is not a multiple of 5"
    ):
        TrainedOn.read(tmp_path / "x")


def test_unsorted_and_repeated_digests_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes.fromhex("ff0000000000000000010000000001"))
    found = TrainedOn.read(tmp_path / "x")
    assert found.among(np.asarray([b"0000000001" + b"0" * 22, b"ff" * 16])).tolist() == [True, False]


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return create_model("simple_cnn", 3, size=32)


INFO = BundleInfo(
    architecture=Architecture(name="simple_cnn", num_classes=3),
    classes=("a", "b", "c"),
    preprocess=Preprocess(size=32, store_size=32),
)


def test_a_bundle_and_those_derived_from_it_record_what_they_were_trained_on(
    tmp_path: Path, network: nn.Module
) -> None:
    saved = save_bundle(tmp_path / "one", network, INFO, trained_on=digests(range(10)))
    derived = derive_bundle(load_bundle(tmp_path / "one"), tmp_path / "two", lambda folder: INFO)
    for bundle in (saved, derived, load_bundle(tmp_path / "one"), load_bundle(tmp_path / "two")):
        found = bundle.trained_on()
        assert found is not None
        assert found.among(digests(range(12))).sum() == 10
    with (tmp_path / "two" / TRAINED_ON).open("ab") as file:
        file.write(bytes(5))
    with pytest.raises(BundleError, match="damaged"):
        load_bundle(tmp_path / "two")


def test_a_bundle_without_digests_is_not_used(tmp_path: Path, network: nn.Module) -> None:
    assert save_bundle(tmp_path / "one", network, INFO).trained_on() is None
    # a file that the manifest does not list is not trusted
    write_trained_on(tmp_path / "one" / TRAINED_ON, digests(range(10)))
    assert load_bundle(tmp_path / "one").trained_on() is None
