"""Label errors by a bundle: what the audit says of labels that were replaced, and where labels can't be judged."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import vivace
from vivace.bundle import Bundle
from vivace.cli import main
from vivace.data.audit import Finding
from vivace.errors import ConfigError, DataError
from vivace.reporting.page.phrases import in_language
from vivace.verbs.labelcheck import LabelCheck


def test_replaced_labels_are_found_and_the_rest_is_not(
    trained: tuple[Bundle, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, data = trained
    root = tmp_path / "colours"
    shutil.copytree(data, root)
    moved = []
    for number, (old, new) in enumerate((("red", "blue"), ("green", "red"), ("blue", "green"))):
        source = sorted((root / "train" / old).iterdir())[number]
        target = root / "train" / new / f"moved{number}.png"
        source.rename(target)
        moved.append(f"train:{target.relative_to(root)}")
    cache = tmp_path / "cache"
    # of so few the margin for chance is wide
    found = vivace.audit(root, bundle=bundle, near=False, fdr=0.3, cache_dir=cache, quiet=True)
    assert found.labels is not None
    errors = [finding for finding in found.findings if finding.kind == "label_error"]
    assert {finding.names[0] for finding in errors} == set(moved)
    assert {finding.severity for finding in errors} == {"warning"}
    (red,) = [finding for finding in errors if finding.names[0] == "train:train/blue/moved0.png"]
    assert red.message.startswith("labelled blue, probably red (0.")
    assert found.labels.num_judged == 240
    assert found.labels.expected_fdr <= found.labels.fdr == 0.3
    capsys.readouterr()
    arguments = ["audit", str(root), "--bundle", str(bundle.folder), "--fdr", "0.4", "--near", "off", "--json"]
    assert main([*arguments, "--cache-dir", str(cache)]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (answer["label_errors"]["fdr"], answer["label_errors"]["num_called_wrong"]) == (0.4, 3)


@pytest.mark.parametrize(
    ("num", "rate", "told"),
    [
        (0, 0.083, "None can be named so that at most 10 % of those named are right; a higher `fdr` may name some."),
        (2, 0.083, "2 can be named, of which at most 10 % may be right."),
        # no rate would name any
        (0, 0.0, "None is called wrong."),
    ],
)
def test_what_was_found_of_labels_is_a_line_that_tells_what_to_do(num: int, rate: float, told: str) -> None:
    found = (Finding(kind="label_error", severity="warning", names=("train:a",), message="x"),) * num
    check = LabelCheck(num_judged=1797, fdr=0.1, rate=rate, expected_fdr=0.0, agreement=0.891, findings=found)
    line = check.line()
    assert line == (
        "1,797 labels were judged by heads that had not seen them, which agree with 89.1 % of them. By estimate "
        f"{100 * rate:.1f} % of all are wrong. {told}"
    )
    assert not re.search("judged|named|wrong", in_language(line, "zh"))


def test_options_that_would_be_ignored_are_refused(trained: tuple[Bundle, Path]) -> None:
    bundle, data = trained
    with pytest.raises(ConfigError, match=r"`fdr` is of labels, which only a bundle can judge: got 0\.1"):
        vivace.audit(data, fdr=0.1)
    with pytest.raises(ConfigError, match=r"`fdr` must be above 0 and at most 0\.5: got 0\.7"):
        vivace.audit(data, bundle=bundle, fdr=0.7)
    with pytest.raises(ConfigError, match="`size` and fields of data are the bundle's own"):
        vivace.audit(data, bundle=bundle, size=32)


def test_few_images_and_other_classes_are_not_judged(
    trained: tuple[Bundle, Path], make_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, _ = trained
    few = vivace.audit(make_folder(), bundle=bundle, near=False, cache_dir=tmp_path / "cache", quiet=True)
    assert few.labels is None
    assert "labels are not judged: blue has fewer than 10 images" in capsys.readouterr().err
    other = make_folder("others")
    for label in ("red", "green", "blue"):
        (other / label).rename(other / f"not{label}")
    with pytest.raises(DataError):
        vivace.audit(other, bundle=bundle, near=False, cache_dir=tmp_path / "cache", quiet=True)
