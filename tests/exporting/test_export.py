"""Other forms of a bundle: they answer as PyTorch does, or they are not left on disk (faults 36, 40, 44)."""

from __future__ import annotations

import builtins
import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from answers import last_answer
from factories import make_bundle, pixels
from vivace.bundle import Bundle, load_bundle
from vivace.cli import main
from vivace.errors import BundleError, ConfigError, MissingExtra, ParityError
from vivace.exporting import graphs, onnx
from vivace.exporting.export import export, targets
from vivace.exporting.parity import Parity, check_parity, measure_parity, parity_images, verify
from vivace.libraries.openvino import core
from vivace.prediction import Predictor
from vivace.runtimes.loading import load_runtime
from vivace.runtimes.openvino import GRAPH as OPENVINO_GRAPH
from vivace.runtimes.table import with_graph

CPU = torch.device("cpu")
GRAPHS = with_graph()


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "bundle", widths=[8, 16], depth=1)


@pytest.mark.parametrize("target", GRAPHS)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("simple_cnn", {}),
        ("fast_cnn", {"widths": [8, 16], "depth": 2, "residual": True, "padding": 0}),
        ("fast_cnn", {"channels": 1, "widths": [8], "depth": 1, "activation": "gelu"}),
        ("fast_photo", {"size": 64, "widths": [8, 16], "depths": [1, 1]}),
        ("timm/resnet10t", {"size": 64}),
    ],
    ids=["simple_cnn", "fast_cnn", "grey", "fast_photo", "timm"],
)
def test_the_graph_answers_as_pytorch_for_any_number_of_images(
    tmp_path: Path, target: str, name: str, options: dict[str, Any]
) -> None:
    bundle = make_bundle(tmp_path / "bundle", name, **options)
    exported = export(bundle, target, tmp_path / "out")
    derived = load_bundle(exported.path)
    assert (derived.info.runtime, derived.info.precision) == (target, "fp32")
    assert derived.info.parity["top1_agreement"] == 1.0
    # what else the bundle says stays
    assert derived.info.metrics == bundle.info.metrics
    assert derived.classes == bundle.classes
    classify = load_runtime(target, derived, device=CPU, precision="fp32")
    plain = load_runtime("eager", bundle, device=CPU, precision="fp32")
    for count in (1, 2, 7):
        images = pixels(count, options.get("size", 32), options.get("channels", 3))
        probs = classify(images)
        assert probs.dtype == np.float32
        np.testing.assert_allclose(probs, plain(images), atol=1e-4)
        # an answer is the caller's: the next call does not change it
        kept = probs.copy()
        classify(images[::-1])
        np.testing.assert_array_equal(probs, kept)


@pytest.mark.parametrize("target", GRAPHS)
def test_an_exported_bundle_is_taken_like_any_other(bundle: Bundle, tmp_path: Path, target: str) -> None:
    derived = export(bundle, target, tmp_path / "out").path
    predictor = Predictor(derived)
    assert (predictor.runtime, predictor.precision) == (target, "fp32")
    np.testing.assert_allclose(
        predictor.probs(pixels(5)), Predictor(bundle, precision="fp32").probs(pixels(5)), atol=1e-5
    )
    # the plain network is still in it
    assert Predictor(derived, runtime="eager").runtime == "eager"


def test_of_the_input_only_the_batch_is_open(bundle: Bundle, tmp_path: Path) -> None:
    # of open sides OpenVINO fuses less, and is up to 1.7 times as slow
    graph = core().read_model(export(bundle, "openvino", tmp_path / "graph").path / OPENVINO_GRAPH)
    batch, *image = graph.input().get_partial_shape()
    side = bundle.preprocess.size
    assert batch.is_dynamic
    assert [length.get_length() for length in image] == [side, side, 3]


def test_pt2_and_state_dict_are_files_that_pytorch_reads(bundle: Bundle, tmp_path: Path) -> None:
    program = export(bundle, "pt2", tmp_path / "model.pt2")
    assert program.parity is not None
    assert program.parity.holds
    loaded = torch.export.load(program.path).module()
    expected = load_runtime("eager", bundle, device=CPU, precision="fp32")(pixels(5))
    np.testing.assert_allclose(loaded(torch.from_numpy(pixels(5))).detach(), expected, atol=1e-6)
    weights = export(bundle, "state-dict", tmp_path / "model.pth")
    assert torch.load(weights.path, weights_only=True).keys() == bundle.build_model().state_dict().keys()


def test_the_certificate_is_of_real_images_where_they_are_given(
    bundle: Bundle, tmp_path: Path, make_folder: Callable[..., Path]
) -> None:
    data = make_folder(splits=("train", "val"), per_class=4)
    exported = export(bundle, "onnx", tmp_path / "out", data=data)
    assert exported.parity is not None
    assert (exported.parity.images, exported.parity.num_images) == ("colours, val", 12)
    images, _ = parity_images(bundle, data, num_images=5)
    assert len(images) == 5


@pytest.mark.parametrize("target", ["onnx", "openvino", "pt2"])
@pytest.mark.parametrize("earlier", [False, True])
def test_what_disagrees_is_refused_and_not_left_on_disk(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, earlier: bool
) -> None:
    out = tmp_path / "out"
    if earlier:
        export(bundle, target, out)
    deployed_graph = graphs.deployed_graph

    def wrong(bundle: Bundle) -> Any:
        graph, example = deployed_graph(bundle)
        with torch.no_grad():
            graph.model.head.weight.mul_(1.1)
        return graph, example

    before = {path.name: path.read_bytes() for path in out.iterdir()} if out.is_dir() else None
    for module in (graphs, onnx):
        monkeypatch.setattr(module, "deployed_graph", wrong)
    with pytest.raises(ParityError, match=rf"{target} does not agree with PyTorch: probabilities differ by"):
        export(bundle, target, out)
    if not earlier:
        assert not out.exists()
    elif before is not None:
        # what was there stays
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize("target", targets())
def test_weights_that_are_not_finite_are_refused(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    build = Bundle.build_model

    def broken(self: Bundle) -> Any:
        model = build(self)
        with torch.no_grad():
            model.head.weight[0, 0] = float("nan")  # type: ignore[index, operator, union-attr]
        return model

    monkeypatch.setattr(Bundle, "build_model", broken)
    with pytest.raises((BundleError, ParityError)):
        export(bundle, target, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("library", "target"), [("onnxscript", "onnx"), ("onnxruntime", "onnx"), ("openvino", "openvino")]
)
def test_a_library_that_is_not_installed_is_told_with_its_extra(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str, target: str
) -> None:
    plain = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name == library:
            raise ImportError(name)
        return plain(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra, match=rf"needs {library}, .*pip install 'vivace\[accelerate\]'"):
        export(bundle, target, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_verify_measures_anew_and_finds_a_graph_that_was_swapped(bundle: Bundle, tmp_path: Path) -> None:
    derived = export(bundle, "onnx", tmp_path / "out").path
    assert verify(derived).holds
    torch.manual_seed(1)
    other = export(make_bundle(tmp_path / "other", widths=[8, 16], depth=2), "onnx", tmp_path / "other-out").path
    shutil.copyfile(other / "model.onnx", derived / "model.onnx")
    with pytest.raises(BundleError, match=r"model.onnx is damaged"):
        verify(derived)


def test_a_graph_that_the_manifest_does_not_name_is_not_taken(bundle: Bundle, tmp_path: Path) -> None:
    derived = export(bundle, "onnx", tmp_path / "out").path
    shutil.copyfile(derived / "model.onnx", bundle.folder / "model.onnx")
    with pytest.raises(BundleError, match=r"model.onnx is not part of the bundle: its manifest does not list it"):
        load_bundle(bundle.folder)


def test_a_bundle_without_a_graph_says_how_to_make_one(bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match=r"holds no graph for onnx: .* Make one: vivace export .* --to onnx --out"):
        load_runtime("onnx", bundle, device=CPU, precision="fp32")


@pytest.mark.parametrize(("runtime", "precision"), [("onnx", "bf16"), ("openvino", "fp16")])
def test_a_precision_that_a_runtime_has_not_is_refused(bundle: Bundle, runtime: str, precision: str) -> None:
    with pytest.raises(ConfigError, match=rf"{runtime} runs on a CPU in .*: got cpu and {precision}. Use eager"):
        load_runtime(runtime, bundle, device=CPU, precision=precision)


def test_an_unknown_target_is_refused_with_the_nearest(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"`to` is unknown: got 'onxx'. Did you mean 'onnx'"):
        export(bundle, "onxx", tmp_path / "out")


def parity_of(found_NK: np.ndarray, expected_NK: np.ndarray, monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> Parity:
    """The certificate of two tables of probabilities."""
    from vivace.exporting import parity

    monkeypatch.setattr(parity, "load_reference", lambda bundle: lambda images: expected_NK)
    images = np.zeros((len(found_NK), 32, 32, 3), np.uint8)
    return measure_parity(bundle, lambda images: found_NK, images, runtime="x", precision="fp32", images="none")


def test_a_tie_within_the_tolerance_is_no_disagreement(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = np.array([[0.4, 0.4005, 0.1995], [0.1, 0.2, 0.7]])
    found = np.array([[0.4005, 0.4, 0.1995], [0.1, 0.2, 0.7]])
    assert parity_of(found, expected, monkeypatch, bundle).holds
    # the first class of the second image changes, which no tie explains
    wrong = parity_of(np.array([[0.4, 0.4005, 0.1995], [0.1, 0.7, 0.2]]), expected, monkeypatch, bundle)
    assert (wrong.top1_agreement, wrong.holds) == (0.5, False)
    assert wrong.max_difference == pytest.approx(0.5)
    # a probability that is far off is a disagreement even if the first class stays
    assert not parity_of(np.array([[0.4, 0.5, 0.1], [0.1, 0.2, 0.7]]), expected, monkeypatch, bundle).holds


def test_nan_never_agrees(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = np.array([[0.2, 0.8, 0.0]])
    parity = parity_of(np.full((1, 3), np.nan), expected, monkeypatch, bundle)
    assert not parity.holds
    with pytest.raises(ParityError, match="probabilities differ by nan"):
        check_parity(parity)


def test_verify_of_a_network_that_answers_nothing_says_so_and_not_that_it_disagrees(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vivace.exporting import parity

    plain = dataclasses.replace(bundle, info=dataclasses.replace(bundle.info, runtime="eager", precision="fp32"))

    def broken(*_: object, **__: object) -> Callable[[np.ndarray], np.ndarray]:
        return lambda images: np.full((len(images), len(bundle.classes)), np.nan)

    monkeypatch.setattr(parity, "load_reference", broken)
    monkeypatch.setattr(parity, "load_runtime", broken)
    found = verify(plain)
    assert (found.compared, found.holds, found.agreement) == (False, False, None)
    assert "not finite or not the same twice" in found.summary()
    with pytest.raises(ParityError, match=r"its probabilities of 64 images .* are not finite"):
        check_parity(found)


def test_generated_images_are_the_same_every_time_and_differ_among_themselves(bundle: Bundle) -> None:
    first, name = parity_images(bundle, None)
    assert name == "generated"
    np.testing.assert_array_equal(first, parity_images(bundle, None)[0])
    assert first.shape == (64, 32, 32, 3)
    assert len({image.tobytes() for image in first}) == 64
    assert first.std(axis=(1, 2, 3)).min() > 20


def test_the_verbs_export_and_verify(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], make_folder: Callable[..., Path]
) -> None:
    data, out = make_folder(per_class=4), tmp_path / "out"
    assert main(["export", str(bundle.folder), "--to", "openvino", "--out", str(out), str(data), "--json"]) == 0
    said = last_answer(capsys.readouterr().out)
    assert (said["path"], said["target"], said["parity"]["num_images"]) == (str(out), "openvino", 12)
    assert main(["evaluate", str(out), str(data), "--json", "--quiet"]) == 0
    probed = last_answer(capsys.readouterr().out)
    assert main(["evaluate", str(bundle.folder), str(data), "--precision", "fp32", "--json", "--quiet"]) == 0
    assert probed["top1"] == last_answer(capsys.readouterr().out)["top1"]
    assert main(["verify", str(out), str(data)]) == 0
    shown = capsys.readouterr().out
    assert "every file is undamaged" in shown
    assert "openvino in fp32 against PyTorch on 12 images of colours" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "onnx"], "--out is missing"),
        (["--out", "x"], "--to is missing"),
        (["--state-dict", "x.pth", "--to", "onnx"], "two targets"),
    ],
)
def test_half_an_export_is_refused(
    bundle: Bundle, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["export", str(bundle.folder), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_verify_of_a_bundle_that_disagrees_is_an_error(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vivace.exporting import parity

    out = export(bundle, "onnx", tmp_path / "out").path
    holds = verify(out)
    monkeypatch.setattr(parity, "verify", lambda *arguments, **options: dataclasses.replace(holds, max_difference=0.5))
    assert main(["verify", str(out), "--json"]) == 1
    printed = capsys.readouterr()
    assert last_answer(printed.out)["holds"] is False
    assert "does not agree with PyTorch" in printed.err
