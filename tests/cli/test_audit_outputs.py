"""What `vivace audit` writes: a manifest without what was found, and a page with pictures of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vivace
from vivace.cli import main
from vivace.data.audit import Audit, Finding
from vivace.data.layouts.manifests import open_manifest
from vivace.errors import ConfigError, DataError, OutputPathError
from vivace.verbs.auditfix import removed_names


def drawing(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((40, 40), Image.Resampling.BICUBIC)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Six images of two classes to train on, of which one is mirrored in test and one is empty; two to test."""
    root = tmp_path / "data"
    for number, (split, label, image) in enumerate((
        ("train", "a", drawing(0)),
        ("train", "a", drawing(1)),
        ("train", "a", drawing(2)),
        ("train", "<b>", drawing(3)),
        ("train", "<b>", drawing(4)),
        ("test", "a", drawing(0).transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
        ("test", "<b>", drawing(6)),
    )):  # fmt: skip
        folder = root / split / label
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{number}.png")
    (root / "train" / "<b>" / "empty.png").write_bytes(b"")
    return root


def test_a_manifest_without_what_was_found_is_read_by_train_and_nothing_is_overwritten(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in data.rglob("*.png")}
    page, manifest = tmp_path / "audit.html", tmp_path / "fixed.csv"
    arguments = ["audit", str(data), "--size", "32", "--quiet", "--report", str(page), "--fix", str(manifest)]
    assert main([*arguments, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (answer["report"], answer["fixed"], answer["num_fixed"]) == (str(page), str(manifest), 6)
    source = open_manifest(manifest)
    listed = {split: {Path(path).name for path in part.paths or ()} for split, part in source.splits.items()}
    assert listed == {"train": {"1.png", "2.png", "3.png", "4.png"}, "test": {"5.png", "6.png"}}
    assert source.classes == ("<b>", "a")
    assert {path: path.read_bytes() for path in data.rglob("*.png")} == before
    html = page.read_text()
    assert "Nearly the same image in train and another split" in html
    assert html.count("data:image/webp;base64,") == 2
    assert "&lt;b&gt;" in html
    assert "<b>" not in html
    assert "http" not in html.replace("http-equiv", "")
    assert main(arguments) == 2
    assert "--fix exists already" in capsys.readouterr().err
    manifest.unlink()
    # a page that vivace wrote may be written anew
    assert main(arguments) == 0
    shown = capsys.readouterr()
    assert f"manifest: {manifest}, 6 of 8 images" in shown.out
    assert f"report: {page}" in shown.out


def test_the_rule_of_what_stays() -> None:
    def finding(kind: str, *names: str) -> Finding:
        return Finding(kind=kind, severity="warning", names=names, message="")

    def removed(*findings: Finding, fix_labels: bool = False) -> set[str]:
        return set(removed_names(Audit(num_images=9), findings, fix_labels=fix_labels))

    assert removed(finding("near_leak", "train:a", "val:b", "test:c", "test:d")) == {"train:a", "val:b"}
    assert removed(finding("near_leak", "train:a", "val:b", "val:c")) == {"train:a", "val:c"}
    assert removed(finding("near_duplicate", "train:a", "train:b", "train:c")) == {"train:b", "train:c"}
    assert removed(finding("duplicate", "train:a", "train:b")) == {"train:b"}
    assert removed(finding("near_contradiction", "train:a", "train:b")) == {"train:a", "train:b"}
    assert removed(finding("near_contradiction", "test:a", "test:b")) == set()
    errors = (finding("label_error", "train:a"), finding("label_error", "test:b"))
    assert removed(*errors) == set()
    assert removed(*errors, fix_labels=True) == {"train:a"}
    # what is out already is no reason to keep its copy out too
    bad = Finding(kind="leak", severity="quarantine", names=("train:a",), message="")
    both = (bad, finding("near_duplicate", "train:a", "train:b"))
    assert set(removed_names(Audit(num_images=2, findings=(bad,)), both, fix_labels=False)) == {"train:a"}


def test_what_no_manifest_could_say_is_refused(data: Path, tmp_path: Path) -> None:
    images = np.stack([np.asarray(drawing(seed)) for seed in range(4)])
    with pytest.raises(DataError, match="are in no files, which a manifest could list"):
        vivace.audit((images, np.arange(4) % 2), size=32, fix=tmp_path / "arrays.csv", quiet=True)
    (data / "train" / "a").rename(data / "train" / "NaN")
    (data / "test" / "a").rename(data / "test" / "NaN")
    with pytest.raises(DataError, match="a table would be read otherwise than data is, as by the name NaN"):
        vivace.audit(data, size=32, fix=tmp_path / "nan.csv", quiet=True)
    assert not list(tmp_path.glob("*.csv"))


def test_outputs_are_checked_before_the_work(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`fix_labels` needs `fix`"):
        vivace.audit(data, fix_labels=True)
    with pytest.raises(OutputPathError, match=r"`fix` is a table: got fixed\.txt"):
        vivace.audit(data, fix=tmp_path / "fixed.txt", quiet=True)
    mine = tmp_path / "mine.html"
    mine.write_text("mine")
    with pytest.raises(OutputPathError, match="`report` exists already"):
        vivace.audit(data, report=mine, quiet=True)
    assert mine.read_text() == "mine"


def test_report_and_manifest_are_two_files(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = tmp_path / "one.csv"
    assert main(["audit", str(data), "--fix", str(one), "--report", str(one)]) == 2
    assert "is the report itself" in capsys.readouterr().err
    assert not one.exists()


def test_several_labels_come_back_from_the_manifest(tmp_path: Path) -> None:
    for seed in range(6):
        drawing(seed % 5).save(tmp_path / f"{seed}.png")
    lines = ["file_name,label", *(f"{seed}.png,{'cat; dog' if seed % 2 else 'cat'}" for seed in range(5)), "5.png,cat"]
    (tmp_path / "pets.csv").write_text("\n".join(lines) + "\n")
    found = vivace.audit(
        tmp_path / "pets.csv",
        size=32,
        overrides={"data.multi_label": True},
        fix=tmp_path / "fixed.csv",
        quiet=True,
        cache_dir=tmp_path / "cache",
    )
    read = open_manifest(tmp_path / "fixed.csv", multi_label=True)
    assert read.classes == ("cat", "dog")
    assert len(read.splits["train"]) == found.num_fixed == 5
