"""Data that need options to be opened: every verb that takes data takes these options, and says which."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest
from fakes import COSTS, fake_times, told_layers

from vivace.acceleration import candidates as candidates_module
from vivace.bundle import Bundle
from vivace.cli import VERBS, main
from vivace.cli.options import option_names

TINY = ["--set", "model.arguments={widths: [8], depth: 1}", "--set", "batch_size=16"]
QUICK = ["--epochs", "1", *TINY, "--set", "precision=fp32"]
# verb → (before DATA, behind it); BUNDLE and OUT are filled in
COMMANDS = {
    "train": ([], ["--run", "OUT", "--tune", "off", "--quiet", *QUICK]),
    "audit": ([], ["--quiet"]),
    "evaluate": (["BUNDLE"], ["--quiet"]),
    "accelerate": (["BUNDLE"], ["--out", "OUT", "--max-drop", "20", "--quiet"]),
    "export": (["BUNDLE", "--to", "onnx", "--out", "OUT"], []),
    "verify": (["BUNDLE"], []),
    "report": (["BUNDLE"], ["--quiet"]),
    "bench": (["ablation"], ["--out", "OUT", "--seeds", "1", "--technique", "Muon", "--quiet", *QUICK]),
    "profile": (["BUNDLE"], ["--calls", "2"]),
    "compare": (["BUNDLE", "BUNDLE"], []),
}
OPTIONS = {"links": ["--follow-links"], "table": ["--image-column", "a", "--label-column", "b"]}


def links_of(photos: Path, root: Path) -> Path:
    """Class folders of links to images that lie elsewhere."""
    for image in photos.rglob("*.png"):
        link = root / image.relative_to(photos)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(image)
    return root


def table_of(photos: Path, path: Path) -> Path:
    """A table whose columns have names that say nothing."""
    images = sorted(photos.rglob("*.png"))
    rows = [f"{image},{image.parent.name},{i},{image.parent.parent.name}" for i, image in enumerate(images)]
    path.write_text("\n".join(["a,b,c,split", *rows]) + "\n")
    return path


@pytest.fixture
def odd(trained: tuple[Bundle, Path], tmp_path: Path) -> dict[str, Path]:
    """The photos of the bundle as links, and in a table."""
    photos = trained[1]
    return {"links": links_of(photos, tmp_path / "farm"), "table": table_of(photos, tmp_path / "odd.csv")}


@pytest.mark.parametrize(
    "verb", [verb for verb in VERBS if "--follow-links" in option_names(import_module(f"vivace.cli.{verb}").Options)]
)
@pytest.mark.parametrize("layout", ["links", "table"])
def test_every_verb_opens_what_needs_options_and_names_them_without(
    verb: str,
    layout: str,
    trained: tuple[Bundle, Path],
    odd: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    variants = tuple(
        variant
        for variant in candidates_module.VARIANTS
        if (variant.runtime, variant.precision) in {("eager", "fp32"), ("onnx", "fp32")}
    )
    monkeypatch.setattr(candidates_module, "VARIANTS", variants)
    fake_times(monkeypatch, COSTS)
    monkeypatch.setattr("vivace.verbs.profile.profile_layers", told_layers)
    names = {"BUNDLE": str(trained[0].folder), "OUT": str(tmp_path / "out" / verb)}
    before, behind = ([names.get(word, word) for word in words] for words in COMMANDS[verb])
    command = [verb, *before, str(odd[layout]), *behind]

    assert main(command) == 2
    said = capsys.readouterr().err
    advised = set(re.findall(r"--[a-z-]+", said.splitlines()[-1]))
    assert advised == {OPTIONS[layout][0]}, said
    assert advised <= set(option_names(import_module(f"vivace.cli.{verb}").Options))
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").rglob("*.safetensors"))

    assert main([*command, *OPTIONS[layout]]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("option", [["--follow-links"], ["--image-column", "a"], ["--label-column", "a"]])
@pytest.mark.parametrize("verb", ["export", "verify"])
def test_options_of_data_without_data_are_refused(
    verb: str, option: list[str], trained: tuple[Bundle, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = ["--to", "onnx", "--out", str(tmp_path / "out")] if verb == "export" else []
    assert main([verb, str(trained[0].folder), *target, *option]) == 2
    assert f"{option[0]} goes with DATA: got {option[0]} alone." in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
