"""The Python API: the verbs of the command line, by the same names and with the same arguments."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest

import vivace
from colours import COLOURS, noisy_image
from vivace.bundle import Bundle
from vivace.cli import VERBS, main
from vivace.cli.options import option_names
from vivace.config import from_yaml
from vivace.errors import BundleError, ConfigError, DataError, ModelError
from vivace.optim.config import OptimizerConfig
from vivace.training.recipes.keywords import FIELDS, OPENING, TrainKeywords

FUNCTIONS = sorted({*VERBS} & {*vivace.__all__})
# for programs alone: what a terminal has in place of them, or is too large for an option
PROGRAMS_ONLY = {
    # of data sets whose items are random
    "cache",
    "progress",
    "stage",
    "on_message",
    "draw",
    "started",
    "clock",
    "teacher",
    "num_workers",
    "measure_test",
    # the command line always does
    "keep_interrupted",
    "callbacks",
    "augment",
}
# an option has another name where it takes text for what is an object here
OTHER_NAMES = {"overrides": "set", "start_from": "from"}


def test_the_verbs_that_work_on_data_and_bundles_are_functions() -> None:
    # bench, cache and doctor are for people; serve is a program that runs until it is stopped
    assert {*VERBS} - {*FUNCTIONS} == {"bench", "cache", "doctor", "serve"}
    assert "load" in vivace.__all__
    for name in vivace.__all__:
        assert getattr(vivace, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        vivace.trian  # noqa: B018


@pytest.mark.parametrize("verb", FUNCTIONS)
def test_an_argument_has_the_name_of_its_option(verb: str) -> None:
    options = import_module(f"vivace.cli.{verb}").Options
    named = {name[2:].replace("-", "_") for name in option_names(options)}
    named |= set(options.__annotations__)
    parameters = set(inspect.signature(getattr(vivace, verb)).parameters) - PROGRAMS_ONLY
    if verb == "accelerate":
        # its keywords are the fields of one object
        parameters = parameters - {"options", "keywords"} | {field.name for field in fields(vivace.SearchOptions)}
    if verb == "train":
        # every option is a parameter or a keyword
        parameters = parameters - {"keywords"} | {*get_type_hints(TrainKeywords)}
        given = {OTHER_NAMES.get(name, name) for name in parameters} - {"recipe"}
        groups = {"network", "budget", "opening", "images", "execution"}
        # a YAML file is a recipe too; JSON is printed by the command line alone
        assert given == named - groups - {"config", "json", "recipe"}
    assert {OTHER_NAMES.get(name, name) for name in parameters} <= named


def test_train_takes_the_options_as_keywords(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    assert {*get_type_hints(TrainKeywords)} == {*FIELDS, *OPENING}
    result = vivace.train(
        make_folder(),
        epochs=1,
        batch_size=8,
        model="fast_cnn",
        optimizer="adamw",
        lr=0.002,
        size=16,
        seed=3,
        precision="fp32",
        val_fraction=0.25,
        on_bad_image="refuse",
        data_root=tmp_path,
        overrides={"threads": 1},
        run=tmp_path / "run",
        cache_dir=tmp_path / "cache",
        tune=False,
        quiet=True,
    )
    recipe = from_yaml(vivace.Recipe, result.run / "recipe.yaml")
    assert (recipe.batch_size, recipe.model.name, recipe.optimizer.name) == (8, "fast_cnn", "adamw")
    assert (recipe.optimizer.lr, recipe.data.size, recipe.seed, recipe.precision) == (0.002, 16, 3, "fp32")
    assert (recipe.data.val_fraction, recipe.data.on_bad_image) == (0.25, "refuse")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batchsize": 8}, r"no such keyword: got 'batchsize'\. Did you mean 'batch_size'\?"),
        ({"overrides": {"lr": 0.1}}, r"got 'lr'\. Write 'optimizer\.lr', or give `lr=0\.1`"),
        ({"overrides": {"model": "fast_cnn"}}, r"Write 'model\.name', or give `model='fast_cnn'`"),
        ({"overrides": {"data_root": "x"}}, r"Give `data_root='x'`"),
        ({"data_root": 5}, "data_root has the wrong type: got 5"),
        ({"model": "fast_phto"}, r"the network is unknown: got 'fast_phto'\. Did you mean 'fast_photo'"),
        ({"model": "resnet50"}, r"got 'resnet50'\. Did you mean 'timm/resnet50'"),
        ({"recipe": vivace.Recipe(optimizer=OptimizerConfig(name="adamW2"))}, "the optimizer is unknown: got 'adamW2'"),
        ({"recipe": "fsat"}, r"`recipe` is unknown: got 'fsat'\. Did you mean 'fast'"),
        ({"optimizer": "adamW2"}, "the optimizer is unknown: got 'adamW2'"),
        ({"device": "gpu"}, "`device` is unknown: got 'gpu'"),
    ],
)
def test_misspellings_are_refused_before_data_are_opened(
    arguments: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # the data do not exist, which nobody noticed
    with pytest.raises((ConfigError, ModelError), match=message):
        vivace.train("no such data", cache_dir=tmp_path / "cache", **arguments)
    assert not (tmp_path / "cache").exists()
    assert "data:" not in capsys.readouterr().err


def test_a_refused_run_names_no_file_that_it_does_not_leave(
    make_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_folder()
    (root / "red" / "0.png").write_bytes(b"no image")
    options: dict[str, Any] = {"size": 16, "batch_size": 8, "epochs": 1, "tune": False, "cache_dir": tmp_path / "cache"}
    with pytest.raises(ModelError):
        vivace.train(root, weights=tmp_path / "none.pth", run=tmp_path / "run", **options)
    assert "left_out.csv" not in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    vivace.train(root, run=tmp_path / "run", **options)
    assert f"the excluded images are listed in {tmp_path / 'run' / 'left_out.csv'}" in capsys.readouterr().err
    assert "red/0.png" in (tmp_path / "run" / "left_out.csv").read_text()


def test_the_same_thing_has_the_same_name_and_data_the_same_place_in_every_verb() -> None:
    for verb in FUNCTIONS:
        parameters = list(inspect.signature(getattr(vivace, verb)).parameters)
        # of training `cache` says whether items are read once
        others = {name for name in parameters if (verb, name) != ("train", "cache")}
        assert not {"batch", "num_threads", "within_seconds", "output", "dataset", "cache"} & others, verb
        if verb == "audit":
            # of data: a bundle is one of its options
            continue
        options = list(import_module(f"vivace.cli.{verb}").Options.__annotations__)
        if "data" in options and "bundle" in options:
            assert options[:2] == ["bundle", "data"], verb
        if "bundle" in parameters:
            assert parameters[0] == "bundle"


def test_importing_vivace_imports_neither_torch_nor_numpy() -> None:
    # what takes longer than 50 ms; the clock of a machine that does other things is no test
    code = "import sys; before = set(sys.modules); import vivace; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert {name for name in loaded if name.startswith("vivace")} == {"vivace", "vivace.errors"}
    assert not {"torch", "numpy", "PIL"} & loaded
    assert len(loaded) < 50


@pytest.fixture(scope="module")
def graph(trained_once: Callable[..., tuple[Bundle, Path]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxruntime")
    bundle, _ = trained_once((8, 16))
    return vivace.export(bundle, "onnx", tmp_path_factory.mktemp("graph") / "onnx").path


def test_a_graph_classifies_without_torch_from_the_command_line_and_python(graph: Path, tmp_path: Path) -> None:
    noisy_image(COLOURS["red"], 3).save(tmp_path / "a.png")
    code = (
        "import sys, vivace; from vivace.cli import main; image = sys.argv[2]; bundle = vivace.load(sys.argv[1]); "
        "labels = {bundle(image).label, bundle.predictor(threads=1)(image).label}; "
        "labels.add(vivace.predict(sys.argv[1], image).rows[0].label); "
        "status = main(['predict', sys.argv[1], image, '--json']); "
        "print(labels, status, 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(graph), str(tmp_path / "a.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "{'red'} 0 False"


def test_what_load_gives_is_a_bundle_that_answers(trained: tuple[Bundle, Path], tmp_path: Path) -> None:
    bundle = vivace.load(trained[0].folder)
    assert isinstance(bundle, vivace.Bundle)
    assert bundle.classes == trained[0].classes
    image = noisy_image(COLOURS["green"], 5)
    expected = vivace.Predictor(trained[0])(image)
    assert bundle(image) == expected
    predictor = bundle.predictor(threads=1, batch_size=2)
    assert (predictor.threads, predictor.batch_size) == (1, 2)
    # before and after it has a predictor of its own
    for loaded in (vivace.load(trained[0].folder), bundle):
        assert pickle.loads(pickle.dumps(loaded))(image).label == expected.label
    with pytest.raises(BundleError, match="not a bundle"):
        vivace.load(tmp_path)


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_threads_may_share_a_predictor(kind: str, trained: tuple[Bundle, Path], graph: Path) -> None:
    predictor = vivace.Predictor(trained[0].folder if kind == "torch" else graph, threads=2)
    images = [np.asarray(noisy_image(colour, seed)) for colour in COLOURS.values() for seed in range(4)]
    expected = [predictor(image).topk for image in images]
    found: list[Any] = [None] * len(images)
    errors: list[BaseException] = []

    def classify(start: int) -> None:
        try:
            for _ in range(3):
                for index in range(start, len(images), 4):
                    found[index] = predictor(images[index]).topk
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=classify, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    assert found == expected


def test_predictions_are_a_sequence_of_what_was_classified(trained: tuple[Bundle, Path], tmp_path: Path) -> None:
    for seed in range(3):
        noisy_image(COLOURS["red"], seed).save(tmp_path / f"{seed}.png")
    found = vivace.predict(trained[0].folder, tmp_path)
    assert len(found) == 3
    assert [*found] == [*found.rows] == [found[0], *found[1:]]
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "no.png").write_bytes(b"no image")
    failed = vivace.predict(trained[0].folder, tmp_path / "bad")
    # an answer, though an empty one
    assert (len(failed), bool(failed), len(failed.failures)) == (0, True, 1)


def test_audit_tells_what_train_does_with_the_data(
    make_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_folder()
    found = vivace.audit(root)
    assert (found.data, found.num_images, found.refusal) == ("colours", 24, None)
    assert found.summary() == "takes all 24 of these images"
    assert "data: 3 classes" in capsys.readouterr().err
    (root / "red" / "0.png").write_bytes(b"no image")
    found = vivace.audit(root, quiet=True)
    assert [(finding.kind, finding.severity) for finding in found.findings] == [("not_an_image", "quarantine")]
    assert found.findings[0].names == ("train:red/0.png",)
    with pytest.raises(DataError, match="nowhere"):
        vivace.audit("nowhere")


def test_profile_and_verify_take_a_bundle_and_data(trained: tuple[Bundle, Path], graph: Path) -> None:
    profile = vivace.profile(graph, trained[1], batch_size=3, calls=2, threads=1)
    assert (profile.runtime, profile.batch_size) == ("onnx", 3)
    assert profile.layers
    parity = vivace.verify(graph, data=trained[1])
    assert parity.holds
    assert parity.images.startswith("colours")
    with pytest.raises(ConfigError, match="batch_size is out of range: got 0"):
        vivace.profile(graph, batch_size=0)
    with pytest.raises(ConfigError, match="threads would be ignored: got 2 and a predictor"):
        vivace.predict(vivace.Predictor(graph), trained[1] / "test", threads=2)


@pytest.mark.parametrize("spelling", [["--data", "DATA"], ["--data=DATA"], ["DATA"]])
@pytest.mark.parametrize("first", [True, False])
def test_data_is_behind_the_bundle_and_the_option_of_earlier_versions_still_works(
    spelling: list[str],
    first: bool,
    trained: tuple[Bundle, Path],
    graph: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if first and spelling == ["DATA"]:
        pytest.skip("without its name it has one place only")
    asked: dict[str, Any] = {}

    def told(bundle: Path, **options: Any) -> None:
        asked.update(options, bundle=bundle)
        raise DataError("enough.")

    monkeypatch.setattr("vivace.exporting.parity.verify", told)
    given = [word.replace("DATA", str(trained[1])) for word in spelling]
    assert main(["verify", *(given if first else []), str(graph), *([] if first else given)]) == 2
    assert (str(asked["bundle"]), str(asked["data"])) == (str(graph), str(trained[1]))
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    deprecated = [] if spelling == ["DATA"] else ["note: --data is no longer needed: vivace verify BUNDLE DATA."]
    assert notes == deprecated


@pytest.mark.parametrize(
    ("given", "expected"),
    [("runs/digits", "runs/digits-accelerated"), ("runs/digits/bundle/", "runs/digits/bundle-accelerated")],
)
def test_without_out_a_faster_bundle_gets_the_name_of_the_slower_one(given: str, expected: str) -> None:
    from vivace.acceleration.accelerate import default_out

    assert inspect.signature(vivace.accelerate).parameters["out"].default is None
    assert default_out(Path(given)) == Path(expected)


def test_of_the_current_folder_the_name_is_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vivace.acceleration.accelerate import default_out

    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    assert default_out(Path()) == tmp_path / "run-accelerated"
