"""The search: three splits that share no image, a proof or no change, and a receipt that says what happened."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import COSTS, fake_times, keep_fake_variants, run
from PIL import Image

from vivace.acceleration import candidates as candidates_module
from vivace.acceleration import measurements as measurements_module
from vivace.acceleration.accelerate import accelerate
from vivace.acceleration.networks import Network
from vivace.acceleration.receipt import markdown
from vivace.acceleration.splits import open_splits
from vivace.bundle import Bundle, load_bundle
from vivace.cli import main
from vivace.compression import quantize as quantize_module
from vivace.data.caching.cache import open_cache
from vivace.data.sources import open_source
from vivace.errors import ConfigError, DataError, OutputPathError
from vivace.evaluation.evaluate import evaluate
from vivace.exporting.parity import verify
from vivace.libraries.openvino import core
from vivace.prediction import Predictor
from vivace.statistics.paired import loss_bound

MakeFolder = Callable[..., Path]


@pytest.fixture(autouse=True)
def quick_variants(graphs_made_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_fake_variants(monkeypatch)


def test_no_image_is_in_two_splits_and_calibration_sees_training_images_only(
    trained: tuple[Bundle, Path], make_folder: MakeFolder
) -> None:
    bundle, data = trained
    splits = open_splits(bundle, data)
    assert (splits.calibrate.name, splits.select.name, splits.certify.name) == ("train", "train", "test")
    assert not set(splits.calibrate.rows) & set(splits.select.rows)
    assert len(splits.certify) == 120
    # what the training held out, and nothing else
    assert len(splits.select) == 12
    # of every class as many
    assert np.bincount(splits.calibrate.labels).tolist() == [36, 36, 36]
    without_test = make_folder("other", per_class=60, splits=("train", "val"))
    splits = open_splits(bundle, without_test)
    assert (splits.select.name, splits.certify.name) == ("val", "val")
    assert not set(splits.select.rows) & set(splits.certify.rows)
    assert (len(splits.select), len(splits.certify)) == (45, 135)
    with pytest.raises(DataError, match="too few images to prove anything: few has 9 for certification"):
        open_splits(bundle, make_folder("few", per_class=4, splits=("train", "val")))


def test_nothing_is_proven_on_images_that_were_trained_on_although_the_data_have_grown(
    trained: tuple[Bundle, Path], tmp_path: Path
) -> None:
    bundle, data = trained
    grown = shutil.copytree(data, tmp_path / "grown")
    shutil.rmtree(grown / "test")
    for index in range(60):
        Image.effect_noise((20, 20), 90).convert("RGB").save(grown / "train" / "red" / f"a{index}.png")
    splits = open_splits(bundle, grown)
    cache = open_cache(open_source(grown), bundle.preprocess)
    seen = bundle.trained_on()
    assert seen is not None
    known = seen.among(cache.splits["train"].digests_N)
    rows = np.concatenate([splits.select.rows, splits.certify.rows])
    assert len(rows) == 60 + 12
    assert not known[rows].any()
    assert known[splits.calibrate.rows].all()


@pytest.mark.parametrize("noisy", [1, 2])
def test_a_noisy_timing_is_made_once_more_and_where_it_is_no_better_nothing_is_decided(
    trained: tuple[Bundle, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noisy: int
) -> None:
    fake_times(monkeypatch, COSTS)
    plain, aa_tests = measurements_module.Measurements.time, []

    def time(*arguments: Any) -> Any:
        level, num_processes = plain(*arguments)
        aa_tests.append((0.63, 0.52, 2.49) if len(aa_tests) < noisy else level)
        return aa_tests[-1], num_processes

    monkeypatch.setattr(measurements_module.Measurements, "time", time)
    result = run(trained, tmp_path, max_drop=20.0)
    assert len(aa_tests) == 2
    assert result.accelerated is (noisy == 1)
    if noisy == 2:
        assert (result.status, result.reason) == ("noisy", "too noisy to decide")
        assert (result.to_dict()["status"], result.receipt["status"]) == ("noisy", "noisy")
        assert result.bundle == trained[0].folder
        assert not (tmp_path / "fast").exists()
        assert markdown(result.receipt).splitlines()[0].endswith(": too noisy to decide")
        assert any("0.63 [0.52, 2.49] times as fast as itself" in note for note in result.receipt["notes"])


def test_the_fastest_variant_within_the_budget_wins_and_is_taken_like_any_bundle(
    trained: tuple[Bundle, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = fake_times(monkeypatch, COSTS)
    result = run(trained, tmp_path, max_drop=20.0, target_speedup=3.0)
    assert result.accelerated
    assert (result.runtime, result.precision) == ("openvino", "int8")
    assert result.speedup == pytest.approx(4.0, rel=0.05)
    assert result.target_reached
    assert result.num_certify_images == 120
    # the final timing has the baseline twice: the second is for the A/A test
    assert asked[1][:2] == ["eager fp32", "A/A test"]
    derived = load_bundle(result.bundle)
    # its own answers, not those of the network that it replaces
    validated = derived.validated()
    assert validated is not None
    assert (validated.variant, validated.images, validated.num_images) == ("openvino int8", "certification images", 120)
    assert {"receipt.json", "receipt.md", "report.html", "samples.npz", "model.xml"} <= set(derived.files)
    page = (derived.folder / "report.html").read_text(encoding="utf-8")
    # of its own mistakes, by its own network
    assert 'id="slices"' in page
    assert ("Grad-CAM" in page) == (result.top1_after < 1)
    predictor = Predictor(derived)
    assert (predictor.runtime, predictor.precision) == ("openvino", "int8")
    measured = evaluate(derived, trained[1])
    assert measured.top1 == pytest.approx(result.top1_after)
    assert derived.info.metrics["test"]["top1"] == pytest.approx(result.top1_after)
    assert result.drop == pytest.approx(100 * (result.top1_before - result.top1_after))
    receipt = json.loads((derived.folder / "receipt.json").read_text())
    rows = {row["name"]: row for row in receipt["rows"]}
    # timed apart, and of files
    assert 0 < receipt["preprocessing_ms"] < 100
    assert " ms to read, decode and resize an image file." in (derived.folder / "receipt.md").read_text()
    # dominated: slower than a variant of less risk
    assert rows["onnx int8"]["reason"] == "slower than onnx fp32"
    assert rows["openvino fp32"]["reason"] == "slower than onnx fp32"
    won = rows["openvino int8"]["certified"]
    assert [rows[name]["status"] for name in COSTS] == ["baseline", "certified", "slower", "slower", "certified"]
    assert won["bound"] == pytest.approx(100 * loss_bound(won["lost"], won["gained"], 120))
    assert result.drop_bound == pytest.approx(won["bound"])
    assert len(rows["openvino int8"]["timed"]["medians_ms"]) == measurements_module.FINAL_ROUNDS
    with np.load(derived.folder / "samples.npz") as raw:
        assert raw["openvino int8, timed"].shape == (measurements_module.FINAL_ROUNDS, 5)
    assert "**openvino int8**" in (derived.folder / "receipt.md").read_text()
    # nothing of the search is left
    assert not list(tmp_path.glob(".fast*"))
    with pytest.raises(ConfigError, match="compared on real images"):
        verify(derived)
    assert verify(derived, data=trained[1]).holds


def test_for_size_the_smallest_variant_wins_that_is_faster_than_the_baseline(
    trained: tuple[Bundle, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_times(monkeypatch, {**COSTS, "openvino int8": 5.0})
    plain = measurements_module.Measurements.build
    # of so small a network an int8 file is no smaller; the smallest of all is slower than the baseline
    sizes = {"openvino int8": 10, "onnx int8": 20}

    def built(measurements: Any, candidates: Any, **options: Any) -> Any:
        rows = plain(measurements, candidates, **options)
        return measurements.results.put(dataclasses.replace(row, num_bytes=sizes.get(row.name, 100)) for row in rows)

    monkeypatch.setattr(measurements_module.Measurements, "build", built)
    result = run(trained, tmp_path, max_drop=20.0, objective="size")
    # slower than onnx in float32, and smaller
    assert (result.runtime, result.precision) == ("onnx", "int8")


def test_a_budget_that_so_few_images_cannot_prove_is_said_and_the_bundle_stays(
    trained: tuple[Bundle, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_times(monkeypatch, COSTS)
    result = run(trained, tmp_path, max_drop=0.1)
    assert not result.accelerated
    assert result.bundle == trained[0].folder
    assert not (tmp_path / "fast").exists()
    # 120 images without a changed answer prove 2.2 points
    assert "images like these would prove it" in result.receipt["notes"][0]
    statuses = {row["name"]: row["reason"] for row in result.receipt["rows"]}
    assert statuses["onnx fp32"] == "not proven"
    assert (tmp_path / "fast-receipt.json").is_file()
    # receipts had the words alone, as their status
    rows = [{**row, "status": row["reason"], "reason": None} for row in result.receipt["rows"]]
    before = {**result.receipt, "rows": rows, "status": result.reason, "reason": None}
    assert markdown(before) == markdown(result.receipt)


def test_where_everything_is_slower_the_bundle_stays(
    trained: tuple[Bundle, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_times(monkeypatch, {name: 4.0 if name == "eager fp32" else 5.0 for name in COSTS})
    result = run(trained, tmp_path, max_drop=20.0, target_speedup=2.0)
    assert not result.accelerated
    assert (result.speedup, result.target_reached) == (1.0, False)


def test_the_certification_images_are_seen_in_order_of_risk_until_one_variant_fails(
    trained: tuple[Bundle, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # so near to each other that both go on
    fake_times(monkeypatch, {**COSTS, "openvino fp32": 2.02})
    looked: list[str] = []
    plain = measurements_module.Measurements.loss

    def loss(measurements: Any, row: Any, images: Any, own_images: Any, part: str, **options: Any) -> Any:
        found = plain(measurements, row, images, own_images, part, **options)
        if part == "certify":
            looked.append(row.name)
            if row.name == "openvino fp32":
                found = dataclasses.replace(found, lost=30, bound=0.4)
            return found
        # in this order they are at risk, by what was seen when selecting
        return dataclasses.replace(found, bound={"onnx fp32": 0.01, "openvino fp32": 0.02}.get(row.name, 0.03))

    monkeypatch.setattr(measurements_module.Measurements, "loss", loss)
    result = run(trained, tmp_path, max_drop=20.0)
    assert looked == ["onnx fp32", "openvino fp32"]
    assert (result.runtime, result.precision) == ("onnx", "fp32")
    statuses = {row["name"]: row["reason"] for row in result.receipt["rows"]}
    assert statuses["openvino int8"] == "not judged: openvino fp32 before it was not proven"


def test_a_variant_that_cannot_be_built_costs_only_itself(
    trained: tuple[Bundle, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_times(monkeypatch, COSTS)

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("unsupported operator\nand a long trace")

    monkeypatch.setattr(quantize_module, "quantize_openvino", fails)
    result = run(trained, tmp_path, max_drop=20.0)
    assert (result.runtime, result.precision) == ("onnx", "fp32")
    statuses = {row["name"]: row["reason"] for row in result.receipt["rows"]}
    assert statuses["openvino int8"] == "could not be built: RuntimeError: unsupported operator"


def test_finer_activations_win_where_the_others_lose_too_much(
    trained: tuple[Bundle, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finer = candidates_module.Variant("openvino", "int8", ("openvino", "nncf"), asymmetric=True)
    monkeypatch.setattr(candidates_module, "VARIANTS", (*candidates_module.VARIANTS, finer))
    fake_times(monkeypatch, COSTS | {"openvino int8, asymmetric": 1.2})
    own_probs = Network.probs

    def spoilt(self: Network, candidate: Any, images: Any) -> Any:
        probs = own_probs(self, candidate, images)
        return 1 - probs if candidate is not None and candidate.name == "openvino int8" else probs

    monkeypatch.setattr(Network, "probs", spoilt)
    result = run(trained, tmp_path, max_drop=20.0)
    assert result.receipt["winner"] == "openvino int8, asymmetric"
    (row,) = (row for row in result.receipt["rows"] if row["name"] == result.receipt["winner"])
    assert (row["asymmetric"], row["kept"]) == (True, [])
    # its normalised pixels have a zero point, those of the plain variant have none
    graph = core().read_model(Path(result.bundle, "model.xml"))
    (first, *_) = (node for node in graph.get_ordered_ops() if node.get_type_name() == "FakeQuantize")
    low, high = (float(first.input_value(i).get_node().data.item()) for i in (1, 2))
    assert low < 0 < high
    assert abs(low + high) > 0.02 * high


def test_a_library_that_is_missing_is_told_with_its_mend(
    trained: tuple[Bundle, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_times(monkeypatch, COSTS)
    monkeypatch.setattr(candidates_module, "find_spec", lambda name: None if name == "openvino" else object())
    result = run(trained, tmp_path, max_drop=20.0)
    assert result.runtime == "onnx"
    assert result.receipt["missing"]["openvino int8"] == ("openvino is not installed: pip install 'vivace[accelerate]'")


def test_a_search_that_was_stopped_goes_on_from_what_it_had_built(
    trained: tuple[Bundle, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_times(monkeypatch, COSTS)

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(measurements_module, "time_sides", stop)
        with pytest.raises(KeyboardInterrupt):
            run(trained, tmp_path, max_drop=20.0)
    assert list(tmp_path.glob(".fast*"))
    monkeypatch.setattr(quantize_module, "quantize_openvino", stop)
    monkeypatch.setattr(quantize_module, "quantize_onnx", stop)
    assert run(trained, tmp_path, max_drop=20.0).precision == "int8"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_drop": 0.0}, "max_drop is out of range"),
        ({"objective": "speed"}, "objective is unknown"),
        ({"batch_size": 0}, "batch_size is out of range"),
    ],
)
def test_what_makes_no_sense_is_refused(
    trained: tuple[Bundle, Path], tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(trained, tmp_path, **options)


def test_a_folder_that_holds_something_else_is_left_alone(trained: tuple[Bundle, Path], tmp_path: Path) -> None:
    (tmp_path / "fast").mkdir()
    (tmp_path / "fast" / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputPathError, match="holds something other than a bundle"):
        run(trained, tmp_path)
    with pytest.raises(OutputPathError, match="`out` is an input"):
        accelerate(trained[0], trained[1], out=trained[0].folder)


def test_the_command_really_times(
    trained: tuple[Bundle, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # of the variants those that are soon there; that several processes are timed is shown in tests/timing
    soon = {("eager", "fp32"), ("openvino", "fp32")}
    variants = tuple(one for one in candidates_module.VARIANTS if (one.runtime, one.precision) in soon)
    monkeypatch.setattr(candidates_module, "VARIANTS", variants)
    monkeypatch.setattr(measurements_module, "FINAL_ROUNDS", 2)
    monkeypatch.setattr(measurements_module, "FINAL_PROCESSES", 1)
    bundle, data = trained
    command = ["accelerate", str(bundle.folder), str(data), "--out", str(tmp_path / "fast"), "--quiet"]
    status = main([*command, "--max-drop", "25", "--threads", "1"])
    said = capsys.readouterr()
    # a tiny network beside other tests: mostly faster, and told either way
    assert status in (0, 3), said.err
    assert "| eager fp32 |" in said.out
    if status == 0:
        assert (tmp_path / "fast" / "pareto.png").stat().st_size > 5000
