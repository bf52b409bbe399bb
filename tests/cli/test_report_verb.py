"""vivace report: one HTML file of a run or a bundle, on its own images or on those that are given."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vivace
from answers import last_answer
from colours import colour_folder
from tables_of_sets import colour_table
from vivace.bundle import Bundle
from vivace.cli import main
from vivace.data.caching.cache import open_cache
from vivace.data.sources import open_source
from vivace.errors import BundleError, OutputPathError, RunFolderError
from vivace.training import completion
from vivace.verbs import train as training_verb


@pytest.fixture
def run(trained: tuple[Bundle, Path], tmp_path: Path) -> Path:
    """A run whose data lie where they lay, and whose cache has them."""
    shutil.copytree(trained[0].folder.parent, tmp_path / "runs" / "colours-fast")
    # another test of the same process may have written one
    (tmp_path / "runs" / "colours-fast" / "report.html").unlink(missing_ok=True)
    open_cache(open_source(trained[1]), trained[0].preprocess)
    return tmp_path / "runs" / "colours-fast"


def test_a_run_is_reported_on_its_own_images(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run), "--json"]) == 0
    answer = last_answer(capsys.readouterr().out)
    assert answer["report"] == str(run / "report.html")
    assert answer["sections"] == [
        *("summary", "curves", "mistakes", "confusion", "classes", "slices", "reliability", "audit", "made", "missing")
    ]
    assert "vivace train PATH/TO/colours --config" in (run / "report.html").read_text().replace("&#39;", "'")
    assert [row["what"] for row in answer["not_measured"]] == ["corruptions", "attack", "search", "profile"]
    html = (run / "report.html").read_text()
    assert len(html.encode()) == answer["bytes"]
    assert "On 120 images that it was not trained on (test)" in html.replace("\u00a0", " ")
    assert "data:image/webp" in html
    # where the run and its data lie on this machine is nobody's business
    assert str(run.parent) not in html
    # the same again replaces it, and says so
    assert main(["report", str(run), "--lang", "zh"]) == 0
    told = capsys.readouterr()
    assert f"replaced a file that vivace wrote earlier: {run / 'report.html'}" in told.err
    assert told.out.startswith(f"wrote {run / 'report.html'}, ")
    assert '<html lang="zh-Hans">' in (run / "report.html").read_text()


def test_nothing_is_written_into_the_data_of_the_run(run: Path, trained: tuple[Bundle, Path]) -> None:
    place = trained[1] / "page.html"
    with pytest.raises(OutputPathError, match="`out` is inside"):
        vivace.report(run, out=place)
    with pytest.raises(OutputPathError, match="`report` is inside"):
        vivace.compare(run, run, report=place)
    assert not place.exists()


def test_a_bundle_without_its_run_has_a_report_beside_it(
    trained: tuple[Bundle, Path], tmp_path: Path, make_folder: Callable[..., Path]
) -> None:
    bundle = tmp_path / "found"
    shutil.copytree(trained[0].folder, bundle)
    bare = vivace.report(bundle)
    assert bare.report == tmp_path / "found-report.html"
    assert not {"curves", "mistakes", "audit"} & set(bare.sections)
    assert ("answers", "vivace report found DATA") in bare.not_measured
    assert bare.bytes < 100_000
    # which are in the run's files, and not in the bundle
    assert "There were no warnings" not in bare.report.read_text()
    assert "does not hold the warnings" in bare.report.read_text()
    # its folder stays a bundle and nothing else
    assert vivace.load(bundle).classes == trained[0].classes
    others = make_folder("others", per_class=4)
    (others / "red" / "broken.png").write_bytes(b"no image")
    given = vivace.report(bundle, others, out=tmp_path / "given.html", card=tmp_path / "README.md", on_bad_image="skip")
    html = given.report.read_text().replace("\u00a0", " ")
    count = vivace.evaluate(bundle, others, on_bad_image="skip").metrics.num_images
    assert f"On {count} images of others (held out)" in html
    assert "broken.png" in html
    assert str(others) not in html
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\npipeline_tag: image-classification\n")
    assert given.card == tmp_path / "README.md"
    # both are recognized and replaced
    vivace.report(bundle, others, out=tmp_path / "given.html", card=tmp_path / "README.md", on_bad_image="skip")


def test_nothing_is_overwritten_and_no_output_lies_in_what_is_read(run: Path, trained: tuple[Bundle, Path]) -> None:
    (run / "report.html").write_text("<p>mine</p>")
    with pytest.raises(OutputPathError, match="was not written by vivace"):
        vivace.report(run)
    assert (run / "report.html").read_text() == "<p>mine</p>"
    written = vivace.report(run, out=run.parent / "a.html").report
    written.write_text(written.read_text().replace("report", "Report", 1))
    with pytest.raises(OutputPathError, match="was not written by vivace"):
        vivace.report(run, out=written)
    card = run.parent / "README.md"
    card.write_text("# mine")
    with pytest.raises(OutputPathError, match=r"`card` exists already"):
        vivace.report(run, out=run.parent / "b.html", card=card)
    both = run.parent / "both.html"
    with pytest.raises(OutputPathError, match=r"`card` is the report itself"):
        vivace.report(run, out=both, card=both)
    # vivace wrote it, and what is reported now does not bring it back
    (other := run.with_name("other")).mkdir()
    for name in ("run.json", "recipe.yaml"):
        shutil.copy(run / name, other)
    (run / "report.html").unlink()
    shutil.copy(vivace.report(run).report, other)
    for writes in (
        lambda place: vivace.report(run, out=place),
        lambda place: vivace.audit(trained[1], near=False, report=place, quiet=True),
        lambda place: vivace.compare(run, run / "bundle", trained[1], report=place),
    ):
        with pytest.raises(OutputPathError, match="is the report of a run"):
            writes(other / "report.html")
    with pytest.raises(OutputPathError, match="inside the data"):
        vivace.audit(trained[1], near=False, report=trained[1] / "audit.html", quiet=True)
    with pytest.raises(OutputPathError, match="inside the data"):
        vivace.compare(run, run / "bundle", trained[1], report=trained[1] / "page.html")
    for place in (run / "bundle" / "report.html", trained[1] / "report.html"):
        with pytest.raises(OutputPathError):
            vivace.report(run, trained[1], out=place)
    assert not (run.parent / "b.html").exists()
    shutil.rmtree(run / "bundle")
    with pytest.raises(RunFolderError, match="bundle is missing"):
        vivace.report(run)
    with pytest.raises(BundleError, match="neither a run nor a bundle: got int"):
        vivace.report(3)  # type: ignore[arg-type]


def test_a_run_of_a_stranger_opens_no_folder_and_shows_its_files_as_text(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    private = colour_folder(tmp_path / "private", per_class=3)
    facts = json.loads((run / "run.json").read_text())
    facts["data"] |= {"name": "<script>alert(1)</script>", "place": str(private), "fingerprint": "0" * 64}
    facts["warnings"] = ["</ul><script>alert(2)</script>"]
    (run / "run.json").write_text(json.dumps(facts))
    (run / "result.json").write_text("{" * 100_000)
    (run / "tune.json").write_text('{"execution": {"<b>": "<i>"}}')
    (run / "metrics.csv").write_bytes(b"\xff\xfe epoch")
    assert main(["report", str(run)]) == 0
    told = capsys.readouterr()
    assert "the report has no images: " in told.err
    assert "left out of the report: " in told.err
    assert "not measured: answers (vivace report" in told.out
    html = (run / "report.html").read_text()
    assert "<script" not in html
    assert "<i>" not in html
    assert "&lt;script&gt;alert(2)&lt;/script&gt;" in html
    assert "data:image" not in html


def test_training_writes_the_report_and_a_failure_to_is_one_line(
    make_folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = make_folder(per_class=24)
    (data / "red" / "broken.png").write_bytes(b"no image")
    options: dict[str, Any] = {"size": 16, "batch_size": 8, "epochs": 1, "tune": False, "quiet": True}
    result = vivace.train(data, run=tmp_path / "run", **options)
    assert result.report == tmp_path / "run" / "report.html"
    html = result.report.read_text()
    for name in ("curves", "confusion", "reliability", "audit"):
        assert f'<section id="{name}"' in html
    assert 'src="data:image/webp' in html
    # the run's folder, which a warning of the run names, and that of the data
    assert str(tmp_path) not in html
    # the same facts make the same page later
    assert "report" not in json.loads((tmp_path / "run" / "result.json").read_text())
    assert vivace.report(tmp_path / "run").report.stat().st_size > 10_000
    vivace.train(data, run=tmp_path / "run", resume=True, **{**options, "epochs": 2})
    capsys.readouterr()
    assert "epochs</span>" in result.report.read_text()

    def fail(finished: completion.Finished) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(training_verb, "_report", fail)
    again = vivace.train(data, run=tmp_path / "other", **options)
    assert again.report is None
    assert again.warnings[-1] == "the report was not written: OSError: [Errno 28] No space left on device"
    assert (tmp_path / "other" / "bundle" / "bundle.json").exists()


def test_a_run_on_a_table_is_reported_on_the_table_and_not_on_its_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = colour_folder(tmp_path / "data", per_class=12)
    files = sorted(path.relative_to(data).as_posix() for path in data.rglob("*.png"))
    rows = [(file, file.split("/")[-2], "val" if number % 4 == 0 else "train") for number, file in enumerate(files)]
    table = data / "labels.csv"

    def write(kept: list[tuple[str, str, str]]) -> None:
        table.write_text("image,label,split\n" + "".join(",".join(row) + "\n" for row in kept))

    # the folder holds other images too
    write(rows[::2] + rows[1::4])
    run, val = tmp_path / "run", sum(row[2] == "val" for row in rows[::2] + rows[1::4])
    result = vivace.train(table, epochs=1, run=run, quiet=True, device="cpu")
    assert json.loads((run / "run.json").read_text())["data"]["file"] == str(table.resolve())
    assert result.bundle == run / "bundle"
    assert "file" not in json.loads((run / "bundle" / "bundle.json").read_text())["data"]
    assert main(["report", str(run), "--json"]) == 0
    assert "mistakes" in (sections := last_answer(capsys.readouterr().out)["sections"])
    assert "audit" in sections
    assert f"On {val} images" in (run / "report.html").read_text().replace("\u00a0", " ")
    # another table in its place: the report that is there shows more than one without images
    write(rows)
    before = (run / "report.html").read_bytes()
    assert main(["report", str(run)]) == 2
    said = capsys.readouterr().err
    assert "no longer those that the run was trained on" in said or "the cache holds no images" in said
    assert "the report there shows more than this one would (" in said
    assert (run / "report.html").read_bytes() == before
    assert main(["report", str(run), "--out", str(tmp_path / "poor.html")]) == 0


def test_a_run_on_sets_of_labels_beside_their_table_is_reported_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = colour_table(tmp_path / "project", count=60)
    monkeypatch.chdir(table.parent)
    result = vivace.train("list.csv", epochs=1, run="runs/a", quiet=True, device="cpu", tune="off")
    assert result.report is not None
    assert main(["report", "runs/a"]) == 0
    shown = capsys.readouterr()
    assert "the report has no images" not in shown.err
    assert "mistakes" in shown.out


def test_a_place_that_a_run_names_must_hold_the_images_of_the_table(run: Path, tmp_path: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    elsewhere = colour_folder(tmp_path / "elsewhere", per_class=2)
    (elsewhere / "labels.csv").write_text("image,label\n" + f"{next(elsewhere.rglob('*.png'))},blue\n" * 3)
    record["data"]["file"] = str(elsewhere / "labels.csv")
    (run / "run.json").write_text(json.dumps(record))
    (run / "report.html").unlink(missing_ok=True)
    written = vivace.report(run)
    assert "mistakes" not in written.sections
    assert any("the report has no images" in line for line in written.warnings)


def test_where_a_table_has_its_images_is_nobodys_business(tmp_path: Path) -> None:
    data = colour_folder(tmp_path / "secret place" / "data", per_class=8)
    files = sorted(data.rglob("*.png"))
    # a copy under another label is named by the audit
    shutil.copyfile(files[0], data / "red" / "copy.png")
    files = sorted(data.rglob("*.png"))
    (tmp_path / "tables").mkdir()
    table = tmp_path / "tables" / "labels.csv"
    table.write_text("image,label\n" + "".join(f"{file},{file.parent.name}\n" for file in files))
    result = vivace.train(table, epochs=1, run=tmp_path / "run", quiet=True, device="cpu", on_bad_image="skip")
    assert result.report is not None
    page = vivace.report(result.run, table, out=tmp_path / "page.html", on_bad_image="skip").report
    for path in (result.report, page):
        html = path.read_text()
        assert "the same image is labelled blue and red" in html
        assert "secret place" not in html
        assert str(tmp_path)[:12] not in html
