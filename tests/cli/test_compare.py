"""vivace compare: which of two runs is better, on which images, or that none is."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import vivace
from answers import last_answer
from colours import colour_folder
from vivace.bundle import Bundle, save_bundle
from vivace.cli import main
from vivace.data.caching.cache import open_cache
from vivace.data.sources import open_source
from vivace.errors import BundleError, ConfigError, DataError, OutputPathError, RunFolderError


@pytest.fixture
def run(trained: tuple[Bundle, Path], tmp_path: Path) -> Path:
    """A run that has nearly all images right."""
    shutil.copytree(trained[0].folder.parent, tmp_path / "runs" / "good")
    # as after a training with this cache
    open_cache(open_source(trained[1]), trained[0].preprocess)
    return tmp_path / "runs" / "good"


def changed(run: Path, name: str, order: list[int], classes: tuple[str, ...] | None = None) -> Path:
    """A copy of a run whose network gives its answers in another order, under these names."""
    copy = run.with_name(name)
    shutil.copytree(run, copy)
    bundle = vivace.load(copy)
    model = bundle.build_model()
    head = [module for module in model.modules() if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)][-1]
    with torch.no_grad():
        for values in (head.weight, head.bias):
            if values is not None:
                values.copy_(values[order].clone())
    # without the digests of the images that it was trained on
    save_bundle(copy / "bundle", model, dataclasses.replace(bundle.info, classes=classes or bundle.classes))
    return copy


def test_the_better_run_is_named_with_the_images_and_the_test(
    run: Path, trained: tuple[Bundle, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    weak = changed(run, "weak", [1, 0, 2])
    compared = vivace.compare(weak, run)
    assert (compared.data, compared.split, compared.num_images) == ("colours", "test", 120)
    first, second = compared.runs
    evaluation = vivace.evaluate(run, trained[1])
    assert second.top1 == evaluation.top1
    assert first.top1 < 0.5 < second.top1
    assert compared.better == str(run)
    assert compared.significant
    assert compared.difference == pytest.approx(second.top1 - first.top1)
    assert compared.difference_low < compared.difference < compared.difference_high
    assert second.num_only_right - first.num_only_right == round(120 * compared.difference)
    assert second.seconds == json.loads((run / "result.json").read_text())["total_seconds"]
    # the other way round it is the same difference
    turned = vivace.compare(run, weak)
    assert (turned.difference, turned.better) == (-compared.difference, str(run))
    assert turned.difference_low == pytest.approx(-compared.difference_high)
    assert main(["compare", str(weak), str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "colours, test: the same 120 images for both"
    assert lines[-1].startswith(f"{run} is better (McNemar's exact test: p = ")


def test_the_same_answers_under_classes_in_another_order_are_no_difference(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classes = vivace.load(run).classes
    order = [2, 0, 1]
    other = changed(run, "other", order, tuple(classes[index] for index in order))
    assert main(["compare", str(run), str(other), "--json"]) == 0
    answer = last_answer(capsys.readouterr().out)
    assert (answer["difference"], answer["p_value"], answer["better"], answer["significant"]) == (0, 1, None, False)
    assert answer["difference_low"] < 0 < answer["difference_high"]
    assert any("does not say which images it was trained on" in line for line in answer["warnings"])
    assert main(["compare", str(run), str(other)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "the difference is not significant (McNemar's exact test: p = 1)"
    )


def test_images_that_one_of_them_was_trained_on_are_left_out_and_counted(
    run: Path, trained: tuple[Bundle, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    compared = vivace.compare(run, run / "bundle", trained[1] / "train")
    facts = json.loads((run / "run.json").read_text())["data"]
    assert compared.split == "held out"
    assert (compared.num_images, compared.num_images_left_out) == (facts["num_val"], facts["num_train"])
    assert compared.runs[1].seconds is None
    whole = vivace.compare(run, run / "bundle", trained[1] / "train", split="all")
    assert (whole.split, whole.num_images) == ("all", facts["num_val"] + facts["num_train"])
    assert "were trained on, by one of the two at least" in capsys.readouterr().err


def test_runs_that_leave_no_image_to_compare_on_are_told_why_and_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = colour_folder(tmp_path / "photos")
    for seed in (0, 1):
        vivace.train(photos, epochs=1, seed=seed, run=tmp_path / f"run{seed}", quiet=True)
    assert main(["compare", str(tmp_path / "run0"), str(tmp_path / "run1")]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("DataError: ")]
    assert line == (
        "DataError: there is no image to compare on: at least one of the two runs was trained on each of the 24 of "
        "photos. Give DATA that neither has seen, or train both with the same seed: they then hold out the same images."
    )


def test_other_classes_and_other_data_are_refused_with_what_to_do(
    run: Path, make_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = changed(run, "named", [0, 1, 2], ("blue", "green", "violet"))
    with pytest.raises(
        DataError, match=r"different classes: .*good alone knows red; .*named alone knows violet\. Comp"
    ):
        vivace.compare(run, named)
    elsewhere = changed(run, "elsewhere", [0, 1, 2])
    facts = json.loads((elsewhere / "run.json").read_text())
    facts["data"]["place"] = str(tmp_path / "gone")
    (elsewhere / "run.json").write_text(json.dumps(facts))
    with pytest.raises(DataError, match=r"trained on different data: .* Give `data`: the images"):
        vivace.compare(run, elsewhere)
    with pytest.raises(ConfigError, match=r"gone, and the cache holds no images from there .* Give `data`"):
        vivace.compare(elsewhere, elsewhere)
    with pytest.raises(ConfigError, match=r"^`data` is missing: .*bundle does not say where its data are"):
        vivace.compare(run, run / "bundle")
    assert main(["compare", str(run), str(run / "bundle"), "--label-column", "x"]) == 2
    assert "--label-column goes with DATA" in capsys.readouterr().err
    other = colour_folder(tmp_path / "new", per_class=5, splits=("test",))
    compared = vivace.compare(run, elsewhere, other)
    # some of its files are those of the images that were trained on
    assert compared.num_images + compared.num_images_left_out == 15


def test_a_run_without_a_bundle_is_told_from_what_is_no_run(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "stopped")
    shutil.rmtree(tmp_path / "stopped" / "bundle")
    (tmp_path / "stopped" / "result.json").unlink()
    with pytest.raises(RunFolderError, match=r"no bundle yet: .*stopped \(it is running, or was stopped\)\. Let it"):
        vivace.compare(run, tmp_path / "stopped")
    capsys.readouterr()
    assert main(["compare", str(run), str(tmp_path / "stopped")]) == 2
    place = json.loads((run / "run.json").read_text())["data"]["place"]
    command = shlex.join(["vivace", "train", place, "--resume", "--run", str(tmp_path / "stopped")])
    assert capsys.readouterr().err.endswith(f"continue it: {command}\n")
    shutil.copy(run / "result.json", tmp_path / "stopped")
    with pytest.raises(RunFolderError, match=r"^the run's bundle is missing: .*stopped/bundle\. Restore it"):
        vivace.compare(run, tmp_path / "stopped")
    assert main(["compare", str(run), str(tmp_path / "nowhere")]) == 2


@pytest.mark.parametrize("fingerprint", [None, "", "0" * 64, "\ud800", "../../x"])
@pytest.mark.parametrize(
    ("name", "place"),
    [("colours", "PRIVATE"), ("colours", "/proc"), ("cifar10", None), ("/usr", None), ("digits", "/")],
)
def test_what_a_strangers_run_names_is_neither_opened_nor_downloaded(
    name: str, place: str | None, fingerprint: str | None, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*_: object, **__: object) -> None:
        raise AssertionError("it was opened")

    monkeypatch.setattr("vivace.verbs.recorded.open_source", opened)
    monkeypatch.setattr("vivace.verbs.compare.open_split", opened)
    facts = json.loads((run / "run.json").read_text())
    # the right fingerprint too: it is of images from another place
    told = {"name": name, "place": str(tmp_path) if place == "PRIVATE" else place}
    facts["data"] |= told if fingerprint is None else {**told, "fingerprint": fingerprint}
    (run / "run.json").write_text(json.dumps(facts))
    with pytest.raises(ConfigError, match=r"^`data` is missing: .*it is not opened\. Give `data`"):
        vivace.compare(run, run)


def test_a_named_data_set_that_was_removed_is_not_downloaded_again(
    run: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    facts = json.loads((run / "run.json").read_text())
    facts["data"] |= {"name": "cifar10", "place": None}
    (run / "run.json").write_text(json.dumps(facts))
    monkeypatch.setattr("vivace.verbs.recorded._is_in_cache", lambda *_: True)
    with pytest.raises(ConfigError, match="cifar10 is no longer on this machine, and is not downloaded"):
        vivace.compare(run, run)
    assert not (own_cache / "downloads").exists()


def test_a_bundle_that_is_a_link_is_refused_and_so_is_what_is_no_path(
    run: Path, trained: tuple[Bundle, Path], tmp_path: Path
) -> None:
    (run / "bundle").rename(tmp_path / "elsewhere")
    (run / "bundle").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=r"^the run's bundle is a link out of its folder: .*bundle is not opened"):
        vivace.compare(run, run)
    with pytest.raises(BundleError, match="neither a run nor a bundle: got NoneType"):
        vivace.compare(None, None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="on_bad_image is unknown: got 'zz'"):
        vivace.compare(tmp_path / "elsewhere", tmp_path / "elsewhere", trained[1], on_bad_image="zz")


def test_a_damaged_run_whose_bundle_is_sound_is_compared_with_a_warning(run: Path) -> None:
    shutil.copytree(run, run.with_name("other"))
    (run.with_name("other") / "result.json").write_text("[]")
    assert any(
        "is damaged, and only its bundle" in told for told in vivace.compare(run, run.with_name("other")).warnings
    )


def test_swapped_arguments_are_named_with_the_right_command(
    run: Path, trained: tuple[Bundle, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(trained[1]), str(run)]) == 2
    assert capsys.readouterr().err.endswith(f"Write vivace evaluate {run} {trained[1]}\n")


def test_both_are_written_side_by_side_where_the_classes_have_another_order(
    run: Path, trained: tuple[Bundle, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classes = trained[0].classes
    # the same network, whose answers have another order with their names
    other = changed(run, "turned", [2, 0, 1], (classes[2], classes[0], classes[1]))
    weak = changed(run, "weak", [1, 0, 2])
    page = tmp_path / "page.html"
    main(["compare", str(run), str(other), str(trained[1]), "--report", str(page), "--json"])
    answer = last_answer(capsys.readouterr().out)
    assert answer["report"] == str(page)
    assert answer["difference"] == 0
    assert "not significant" in page.read_text()
    assert "data:image" not in page.read_text()
    # a page of vivace's own is replaced, and that is said; anything else is not
    main(["compare", str(weak), str(other), str(trained[1]), "--report", str(page), "--lang", "zh"])
    shown = capsys.readouterr()
    assert f"wrote {page}" in shown.out
    assert "page.html" in shown.err
    assert "B 更好" in page.read_text()
    assert "data:image/webp" in page.read_text()
    mine = tmp_path / "mine.html"
    mine.write_text("notes")
    with pytest.raises(OutputPathError, match=r"mine\.html"):
        vivace.compare(run, other, trained[1], report=mine)
    assert mine.read_text() == "notes"
    with pytest.raises(ConfigError, match="lang is unknown"):
        vivace.compare(run, other, trained[1], report=page, lang="de")


def test_a_page_shows_no_images_that_a_private_run_may_have_been_trained_on(run: Path, tmp_path: Path) -> None:
    weak = changed(run, "weak", [1, 0, 2])
    vivace.compare(run, weak, split="val", report=tmp_path / "shown.html")
    assert "data:image/webp" in (tmp_path / "shown.html").read_text()
    info = vivace.load(weak).info
    metrics = {**info.metrics, "privacy": {"epsilon": 3.0, "delta": 1e-5}}
    save_bundle(weak / "bundle", vivace.load(weak).build_model(), dataclasses.replace(info, metrics=metrics))
    for split, shown in (("val", False), ("test", True)):
        vivace.compare(run, weak, split=split, report=tmp_path / f"{split}.html")
        html = (tmp_path / f"{split}.html").read_text()
        assert ("data:image/webp" in html) == shown
        # nor how its validations went
        assert "<polyline" not in html
