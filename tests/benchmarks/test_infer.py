"""infer.py: forms by hand agree with the bundle, images reach all sides alike, a small comparison runs to its end."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import infer
from environments import REQUIREMENTS
from exchange import random_bundle, view_for, write_exchange, write_random_exchange
from hand import HAND_FORMS, load, prepare
from peers.inference import Exchange, Job
from sides import PEERS, SideNotPrepared, peer_side
from vivace.acceleration.candidates import VARIANTS
from vivace.acceleration.splits import open_splits
from vivace.bundle import Bundle, derive_bundle, load_bundle

MakeFolder = Callable[..., Path]
# a compiler takes too long here; int8 has its own test
EXACT = [name for name, form in HAND_FORMS.items() if form.precision == "fp32" and form.runtime != "inductor"]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return random_bundle(tmp_path / "bundle", "simple_cnn", size=32, num_classes=3)


@pytest.fixture
def exchange(bundle: Bundle, tmp_path: Path) -> Exchange:
    return write_random_exchange(tmp_path / "exchange", bundle, batch=2)


def job(exchange: Exchange, model: Path, form: str, batch: int = 2) -> Job:
    return Job(exchange=exchange, model=model, form=form, batch=batch, threads=1)


def logits_of(exchange: Exchange, out: Path, form: str) -> np.ndarray:
    prepare(exchange, out, 2, form)
    model = load(job(exchange, out, form))
    images = next(exchange.batches("timed", 2))
    return np.asarray(model.classify(model.place(images)), dtype=np.float64)


def probs(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


# OpenVINO traces with what torch calls old
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", EXACT)
def test_a_form_by_hand_answers_as_the_bundle_does_on_the_same_pixels(
    form: str, bundle: Bundle, exchange: Exchange, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    from ours import load as load_ours

    ours = load_ours(job(exchange, bundle.folder, "eager fp32"))
    wanted = ours.classify(ours.place(next(exchange.batches("timed", 2, raw=True))))
    assert wanted.std() > 0
    np.testing.assert_allclose(probs(logits_of(exchange, out, form)), wanted, atol=2e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["openvino int8", "onnxruntime int8"])
def test_an_int8_form_by_hand_is_near_and_is_int8(form: str, exchange: Exchange, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    plain = logits_of(exchange, tmp_path, "eager fp32")
    quantized = logits_of(exchange, out, form)
    error = np.abs(quantized - plain).max()
    assert 0 < error < 0.3 * np.abs(plain).max()
    graph = b"".join(path.read_bytes() for path in out.iterdir())
    assert b"FakeQuantize" in graph or b"QuantizeLinear" in graph


def test_every_form_that_accelerate_tries_has_a_counterpart_by_hand() -> None:
    by_hand = {(form.runtime, form.precision) for form in HAND_FORMS.values()}
    # what no library's own documentation leads to stands for itself
    own = {("inductor", "int8"), ("aoti", "fp32"), ("aoti", "bf16"), ("openvino", "int8+bf16")}
    assert {(form.runtime, form.precision) for form in VARIANTS} - own <= by_hand


def test_batches_are_full_and_normalised_once(exchange: Exchange) -> None:
    stored = np.load(exchange.folder / "timed.npy")
    batches = list(exchange.batches("timed", 48))
    assert [len(batch) for batch in batches] == [48, 48]
    # the last image fills the last batch
    np.testing.assert_array_equal(batches[1][15:], np.repeat(batches[1][15:16], 33, axis=0))
    mean, std = exchange.facts["mean"][0], exchange.facts["std"][0]
    np.testing.assert_allclose(batches[0][5, 2], (stored[5, ..., 2] / 255 - mean) / std, rtol=1e-5, atol=1e-6)
    assert [len(batch) for batch in exchange.whole_batches("timed", 48)] == [48]


def test_the_splits_of_a_search_are_written_with_their_labels(make_folder: MakeFolder, tmp_path: Path) -> None:
    data = make_folder(per_class=40, splits=("train", "test"))
    bundle = random_bundle(tmp_path / "bundle", "simple_cnn", size=36, num_classes=3)
    named = dataclasses.replace(bundle.info, classes=("blue", "green", "red"))
    bundle = derive_bundle(bundle, tmp_path / "named", lambda folder: named)
    splits = open_splits(bundle, data)
    written = write_exchange(tmp_path / "exchange", bundle, splits, batch=2, max_drop=0.5)
    np.testing.assert_array_equal(np.load(written.folder / "certify.npy"), splits.certify.pixels())
    np.testing.assert_array_equal(written.labels("certify"), splits.certify.labels)
    assert written.top1(splits.certify.labels, "certify") == 1.0
    assert view_for(written, tmp_path / "same", bundle, bundle, data) is written
    # a bundle that sees fewer pixels of the same images
    smaller = dataclasses.replace(
        named,
        architecture=dataclasses.replace(named.architecture, size=32),
        preprocess=dataclasses.replace(named.preprocess, size=32),
    )
    other = derive_bundle(bundle, tmp_path / "smaller", lambda folder: smaller)
    seen = view_for(written, tmp_path / "seen", other, bundle, data)
    images = np.load(seen.folder / "certify.npy")
    np.testing.assert_array_equal(images, splits.certify.pixels()[:, 2:34, 2:34])


def test_every_peer_has_a_script_and_exact_pins() -> None:
    for peer in PEERS.values():
        assert peer.script.is_file()
        lines = (REQUIREMENTS / f"{peer.environment}.txt").read_text().splitlines()
        assert lines
        assert all("==" in line for line in lines)


def test_what_cant_be_prepared_says_why(exchange: Exchange, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # an environment without the peer, and a network that was written before
    monkeypatch.setattr("sides.ensure_environment", lambda *_: None)
    monkeypatch.setattr("sides.python_of", lambda *_: sys.executable)
    exchange.program(1).touch()
    with pytest.raises(SideNotPrepared, match=r"^ModuleNotFoundError: No module named 'litert_torch'$"):
        peer_side("litert", exchange, tmp_path, batch=1, threads=1, environments=tmp_path)


def test_the_times_of_a_random_network_are_compared_and_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--network", "simple_cnn", "--size", "32", "--num-classes", "3", "--forms", "eager fp32"]
    arguments += ["--starts", "1", "--rounds", "2", "--block-seconds", "0.01", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["infer.py", *arguments, "--out", str(tmp_path)])
    infer.main()
    (path,) = tmp_path.glob("infer/*-random-weights-*.json")
    (part,) = json.loads(path.read_text())["comparisons"]
    wanted = {"vivace eager fp32", "vivace eager fp32, again", "hand eager fp32", "hand eager fp32 channels_last"}
    assert {row["name"] for row in part["rows"]} == wanted
    assert all(row["p50_ms"] > 0 and row["ratio"][0] > 0 for row in part["rows"])
    assert part["claims"][0]["against"] == "the faster of eager and compiled float32"
    assert "| **vivace eager fp32** |" in path.with_suffix(".md").read_text()
    assert "simple_cnn, 32 px, batches of 1, random weights" in capsys.readouterr().out


def test_a_bundle_is_judged_on_the_images_to_certify_on(
    make_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_folder(per_class=20, splits=("train", "test"))
    random = random_bundle(tmp_path / "random", "simple_cnn", size=32, num_classes=3)
    named = dataclasses.replace(random.info, classes=("blue", "green", "red"))
    bundle = derive_bundle(random, tmp_path / "bundle", lambda folder: named)
    arguments = [str(bundle.folder), "--data", str(data), "--accelerated", str(bundle.folder), "--forms", "last"]
    arguments += ["--starts", "1", "--rounds", "2", "--block-seconds", "0.01", "--threads", "1", "--label", "try"]
    monkeypatch.setattr(sys, "argv", ["infer.py", *arguments, "--out", str(tmp_path)])
    infer.main()
    (path,) = tmp_path.glob(f"infer/*-{data.name}-try-*.json")
    (part,) = json.loads(path.read_text())["comparisons"]
    by_name = {row["name"]: row for row in part["rows"]}
    by_hand = {"hand eager fp32 channels_last", "hand eager bf16 channels_last"}
    assert set(by_name) == {"vivace", "vivace, again"} | by_hand
    labels = open_splits(bundle, data).certify.labels
    # the plain network is what all are compared with, and the one form is the same in another layout
    for name in ("vivace", "hand eager fp32 channels_last"):
        loss = by_name[name]["loss"]
        assert (loss["num_images"], loss["lost"], loss["gained"]) == (len(labels), 0, 0)
    assert by_name["vivace, again"]["loss"] is None
    assert not part["accelerate"]["accelerated"]


def test_the_search_is_asked_for_what_the_table_says(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    import tyro

    from vivace.cli.accelerate import Options

    arguments = ["bundle", "--data", "photos", "--max-drop", "1.5", "--threads", "1", "--on-bad-image", "skip"]
    monkeypatch.setattr(sys, "argv", ["infer.py", *arguments, "--accelerate-options", "--within 9m"])
    command = infer.accelerate_command(bundle, Path("fast"), infer.options(), 32)
    assert command[1:4] == ["-m", "vivace", "accelerate"]
    asked = tyro.cli(Options, args=command[4:], config=(tyro.conf.OmitArgPrefixes,))
    assert (asked.bundle, asked.data, asked.out) == (str(bundle.folder), "photos", Path("fast"))
    assert (asked.search.max_drop, asked.search.batch_size, asked.search.threads) == (1.5, 32, 1)
    assert (asked.search.on_bad_image, asked.search.within, asked.json) == ("skip", "9m", True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give bundles with --data, or --network"),
        (["bundle"], "--data is missing"),
        (["--network", "simple_cnn", "--peers", "olive", "nncf-ac"], "random weights have none"),
        (["bundle", "--data", "d", "--batch", "1", "32", "--accelerated", "a"], "got 1, needed one for each"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["infer.py", *arguments])
    with pytest.raises(SystemExit):
        infer.options()
    assert message in capsys.readouterr().err


def test_a_bundle_is_timed_as_the_predictor_takes_it(bundle: Bundle, tmp_path: Path) -> None:
    assert infer.own_form(bundle) == ("eager", "fp32")
    info = dataclasses.replace(bundle.info, runtime="openvino", precision="int8")
    derived = derive_bundle(bundle, tmp_path / "derived", lambda folder: info)
    assert infer.own_form(load_bundle(derived.folder)) == ("openvino", "int8")
