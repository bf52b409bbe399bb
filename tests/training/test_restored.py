"""A checkpoint that somebody wrote anew, with a right SHA-256 and wrong values, is refused: whatever the value."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import not_ended
from safetensors.torch import save_file
from torch import Tensor, nn

from vivace.errors import CheckpointError
from vivace.optim.config import OptimizerConfig
from vivace.optim.optimizers import create_optimizer
from vivace.training.folder.checkpoints import _digest, load_checkpoint, save_checkpoint
from vivace.training.loop.plan import forecast_top1
from vivace.training.loop.restored import COUNTERS, MALFORMED, check_tree, check_weights, try_step
from vivace.training.loop.state import Counters, Ema, TrainState
from vivace.training.recipes.recipe import HardExamplesConfig
from vivace.training.recording.curves import COLUMNS
from vivace.training.techniques.hard_examples import HardExamples
from vivace.training.techniques.self_distillation import SelfDistillation

WRONG = (None, True, -1, 10**30, 0.5, float("nan"), "x", [], {}, [1], {"a": 1}, torch.zeros(7, 7))


def make_state(name: str = "adamw", *, trained: bool = False) -> TrainState:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    state = TrainState(
        model=model,
        optimizer=create_optimizer(model, OptimizerConfig(name=name)),
        generator=torch.Generator(),
        ema=Ema(model, 0.9),
        scaler=torch.amp.GradScaler("cpu"),
        hard_examples=HardExamples(config=HardExamplesConfig(), losses_N=torch.full((6,), float("inf"))),
        self_distillation=SelfDistillation(
            0.5, torch.zeros(6).numpy(), 2, label_smoothing=0.1, device=torch.device("cpu")
        ),
    )
    if trained:
        state.model(torch.randn(2, 1, 4, 4)).square().sum().backward()
        state.optimizer.step()
        assert state.ema is not None
        state.ema.update(model)
        row = dict.fromkeys(COLUMNS[3:], 0.5)
        row |= {"epoch": 1.0, "step": 3, "seconds": 2.0, "progress": 0.5}
        state.counters = Counters(step=4, epoch=1, batch=1, history=[row], target_seconds=2.0, micro_batch_size=4)
        assert state.hard_examples is not None
        state.hard_examples.order_n = torch.arange(6).numpy()
    return state


def saved_tree(path: Path, name: str = "adamw") -> dict[str, Any]:
    """What a checkpoint of a run of some steps gives back."""
    save_checkpoint(path, make_state(name, trained=True).state_dict())
    return load_checkpoint(path)


def places(value: Any, *before: Any) -> Iterator[tuple[Any, ...]]:
    """The way to every value in a tree."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list | tuple) else ():
        yield (*before, key)
        yield from places(value[key], *before, key)


def put(value: Any, way: tuple[Any, ...], new: Any) -> Any:
    """The tree with another value in one place."""
    if not way:
        return new
    items = dict(value) if isinstance(value, dict) else dict(enumerate(value))
    items[way[0]] = put(items[way[0]], way[1:], new)
    return items if isinstance(value, dict) else type(value)(items.values())


def at(value: Any, way: tuple[Any, ...]) -> Any:
    for key in way:
        value = value[key]
    return value


def restore(tree: dict[str, Any], name: str = "adamw") -> None:
    """As a run does it, and a step afterwards. Raises CheckpointError."""
    from types import SimpleNamespace

    from vivace.training import resume

    state = make_state(name)
    resume.restore(state, tree, SimpleNamespace(checkpoints=Path("run/checkpoints")))  # type: ignore[arg-type]
    forecast_top1(state.counters.history * 3, state.counters.progress)
    state.model(torch.randn(2, 1, 4, 4)).square().sum().backward()
    state.optimizer.step()
    assert state.ema is not None
    state.ema.update(state.model)


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon", "lamb", "adafactor"])
def test_every_value_of_another_type_is_refused_or_does_no_harm(tmp_path: Path, name: str) -> None:
    tree = saved_tree(tmp_path / "c.safetensors", name)
    restore(copy.deepcopy(tree), name)
    messages, taken = [], 0
    for number, way in enumerate(places(tree)):
        for wrong in WRONG[number % 3 :: 3]:
            try:
                restore(put(copy.deepcopy(tree), way, wrong), name)
                taken += 1
            except CheckpointError as error:
                messages.append(str(error))
    assert all(message.startswith("the checkpoint does not fit the run: ") for message in messages)
    # numbers for numbers, and settings that are none
    assert taken < 0.25 * len(messages)


@pytest.mark.parametrize(
    "key", [*COUNTERS, "history.step", "history.val_top1", "history.val_macro_f1", "history.epoch", "history.seconds"]
)
def test_every_counter_has_a_type_and_a_range(tmp_path: Path, key: str) -> None:
    tree = saved_tree(tmp_path / "c.safetensors")
    name, _, column = key.partition(".")
    way = ("counters", name, *((0, column) if column else ()))
    for wrong in ("x", {}, -(10**15), 10**30, float("nan"), float("inf")):
        with pytest.raises(CheckpointError, match=rf"{name}"):
            restore(put(tree, way, wrong))
    for lost in (tree["counters"], *([tree["counters"]["history"][0]] if column else [])):
        lost.pop(column if column and lost is not tree["counters"] else name, None)
    with pytest.raises(CheckpointError):
        restore(tree)


def test_what_is_restored_is_bitwise_what_was_saved(tmp_path: Path) -> None:
    """The step that is tried leaves nothing behind."""
    for name in ("sgd", "adamw", "muon", "lamb", "adafactor"):
        tree = saved_tree(tmp_path / "c.safetensors", name)
        from types import SimpleNamespace

        from vivace.training import resume

        state = make_state(name)
        resume.restore(state, copy.deepcopy(tree), SimpleNamespace(checkpoints=tmp_path))  # type: ignore[arg-type]
        again = state.state_dict()
        for way in places(tree):
            found, expected = at(again, way), at(tree, way)
            if isinstance(expected, Tensor):
                assert torch.equal(found, expected), way
            elif not isinstance(expected, dict | list | tuple):
                assert found == expected, way
        assert all(parameter.grad is None for parameter in state.model.parameters())


def test_an_order_of_other_images_is_refused(tmp_path: Path) -> None:
    tree = saved_tree(tmp_path / "c.safetensors")
    for order in ([0, 6], [-1], [], [[0]]):
        with pytest.raises(CheckpointError, match=r"focus\.order"):
            restore(put(tree, ("focus", "order"), torch.tensor(order, dtype=torch.int64)))


def test_weights_of_another_network_are_refused() -> None:
    state = make_state()
    fresh = state.model.state_dict()
    check_weights(fresh, fresh)
    for wrong in (
        None,
        {},
        {**fresh, "x": torch.zeros(1)},
        {**fresh, "0.bias": torch.zeros(9)},
        {**fresh, "0.bias": 1},
    ):
        with pytest.raises(MALFORMED):
            check_weights(wrong, fresh)


def test_an_optimizers_state_without_its_tensors_is_found_by_the_step_that_is_tried() -> None:
    state = make_state(trained=True)
    try_step(state.optimizer)
    for entries in state.optimizer.state.values():
        del entries["exp_avg"]
    with pytest.raises(MALFORMED):
        try_step(state.optimizer)
    check_tree(make_state().state_dict(), make_state().state_dict())


@pytest.mark.parametrize("version", ["²", "9" * 5000, "", "-1", "0", "1.0", "x\x1b[31m"])
def test_a_version_that_is_no_number_is_refused(tmp_path: Path, version: str) -> None:
    path, tree = tmp_path / "c.safetensors", '{"dict": []}'
    tensors: dict[str, Tensor] = {"x": torch.zeros(1)}
    metadata = {"format": "vivace-checkpoint", "version": version, "tree": tree}
    save_file(tensors, path, {**metadata, "sha256": _digest(version, tree, tensors)})
    with pytest.raises(CheckpointError, match=r"^the checkpoint has no version: ") as caught:
        load_checkpoint(path)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    "tree",
    [
        '{"dict": [["a", {"tensor": "x", "channels_last": true}]]}',
        '{"dict": [["a", {"tensor": "x", "channels_last": false}], ["b", {"tensor": "x", "channels_last": false}]]}',
        '{"dict": [["a", "' + "x" * 2**25 + '"]]}',
    ],
    ids=["an order of other shapes", "a tensor twice", "endless text"],
)
def test_a_tree_that_no_run_writes_is_refused(tmp_path: Path, tree: str) -> None:
    path, tensors = tmp_path / "c.safetensors", {"x": torch.zeros(3)}
    metadata = {"format": "vivace-checkpoint", "version": "1", "tree": tree}
    save_file(tensors, path, {**metadata, "sha256": _digest("1", tree, tensors)})
    with pytest.raises(CheckpointError, match=r"^the checkpoint makes no sense: "):
        load_checkpoint(path)


def test_best_weights_that_do_not_fit_leave_the_last_ones(
    run_tiny: Callable[..., Any], capfd: pytest.CaptureFixture[str]
) -> None:
    run = run_tiny(changes={"early_stopping": 5, "epochs": 1}).run
    best = run / "checkpoints" / "best.safetensors"
    tree = load_checkpoint(best)
    for wrong in ({}, {"model": {}}, {"model": 5, "step": "x"}):
        save_checkpoint(best, {**tree, **wrong} if wrong else {"step": 1})
        not_ended(run)
        run_tiny(resume=True, quiet=False)
        assert "the last weights are kept in place of the best" in capfd.readouterr().err.replace("\n", " ")
