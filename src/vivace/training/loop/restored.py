"""Checks that a checkpoint's contents could have been written by a run of this network and optimizer.

The SHA-256 in a checkpoint finds damage, but not forgery: whoever writes a file can compute its SHA-256.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from vivace.training.loop.progress import AFTER
from vivace.training.loop.state import Counters
from vivace.training.recording.curves import COLUMNS, SET_COLUMNS

__all__ = ["MALFORMED", "check_tree", "check_weights", "try_step"]

# exceptions raised by loading values of wrong types, names or shapes
MALFORMED = (LookupError, TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError, AssertionError)
# upper bound of steps, epochs and seconds
MAX_NUMBER = 10**12


def check_tree(tree: Mapping[str, Any], fresh: Mapping[str, Any]) -> None:
    """Raise one of MALFORMED unless a checkpoint's tree has the structure of `fresh`, the state of a new run."""
    _check_counters(tree["counters"])
    for name, value in fresh.items():
        if name == "optimizer":
            _check_optimizer(tree[name], value)
        elif name == "focus" and value is not None:
            _check_focus(tree[name], value)
        elif name != "counters":
            _check_like(tree[name], value, name)


def check_weights(weights: Any, fresh: Mapping[str, Any]) -> None:
    """Raise one of MALFORMED unless the weights have the names, shapes and dtypes of `fresh`."""
    _check_like(weights, dict(fresh), "model")


def try_step(optimizer: torch.optim.Optimizer) -> None:
    """Make a step with zero gradients; it changes weights and state, so load them again afterwards.

    Raises one of MALFORMED if the optimizer can't continue from its state, whose structure depends on the optimizer.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    try:
        optimizer.step()
    finally:
        optimizer.zero_grad(set_to_none=True)


def _check_like(value: Any, like: Any, where: str) -> None:
    if isinstance(like, Tensor):
        right = isinstance(value, Tensor) and value.shape == like.shape and value.dtype == like.dtype
    elif isinstance(like, dict):
        right = isinstance(value, dict) and value.keys() == like.keys()
    elif isinstance(like, list | tuple):
        right = type(value) is type(like) and len(value) == len(like)
    elif isinstance(like, bool | str):
        right = type(value) is type(like)
    elif isinstance(like, int):
        right = _is_number(value, 0 if like >= 0 else -MAX_NUMBER, MAX_NUMBER, whole=True)
    elif isinstance(like, float):
        right = type(value) in (int, float)
    else:
        # None at first, possibly a number later
        right = value is None or type(value) in (int, float)
    if not right:
        raise TypeError(f"{where} is {_shown(value)}")
    if isinstance(like, dict):
        for key in like:
            _check_like(value[key], like[key], f"{where}.{key}")
    elif isinstance(like, list | tuple):
        for index, (item, other) in enumerate(zip(value, like, strict=True)):
            _check_like(item, other, f"{where}.{index}")


def _check_optimizer(saved: Any, fresh: dict[str, Any]) -> None:
    groups, expected = saved["param_groups"], fresh["param_groups"]
    if not isinstance(groups, list) or len(groups) != len(expected):
        raise TypeError(f"the optimizer's groups are {_shown(groups)}")
    for number, (group, like) in enumerate(zip(groups, expected, strict=True)):
        if group["params"] != like["params"]:
            raise ValueError(f"group {number} of the optimizer has other weights")
        # other versions of torch have other settings
        for key in like.keys() & group.keys():
            _check_like(group[key], like[key], f"group {number}.{key}")
    known = {index for like in expected for index in like["params"]}
    for index, entries in saved["state"].items():
        if index not in known or not isinstance(entries, dict):
            raise TypeError(f"the optimizer's state has {_shown(index)}")


def _check_focus(saved: Any, fresh: dict[str, Any]) -> None:
    order, num_images = saved["order"], len(fresh["losses"])
    _check_like({**saved, "order": None}, {**fresh, "order": None}, "focus")
    if not 0 <= saved["begun_at"] <= 1:
        raise ValueError(f"focus.begun_at is {_shown(saved['begun_at'])}")
    if order is not None:
        right = isinstance(order, Tensor) and order.dtype == torch.int64 and order.ndim == 1 and len(order) > 0
        if not right or int(order.min()) < 0 or int(order.max()) >= num_images:
            raise ValueError("focus.order names other images")


def _is_number(value: Any, low: float, high: float, *, whole: bool = False) -> bool:
    return (type(value) is int if whole else type(value) in (int, float)) and low <= value <= high


def _whole(low: int, high: int = MAX_NUMBER) -> Callable[[Any], bool]:
    return lambda value: _is_number(value, low, high, whole=True)


def _number(low: float, high: float = MAX_NUMBER) -> Callable[[Any], bool]:
    return lambda value: _is_number(value, low, high)


def _or_none(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or holds(value)


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_real(value: Any) -> bool:
    return type(value) in (int, float) and not math.isnan(value)


COUNTERS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("step", "epoch", "batch", "num_images_seen", "num_rollbacks", "num_overfits", "count"), _whole(0)),
    **dict.fromkeys(("seconds", "total_seconds", "correct_sum"), _number(0)),
    "loss_sum": _number(-MAX_NUMBER),
    **dict.fromkeys(("stopped_early", "finished", "head_only"), _flag),
    "progress": _number(0, 1),
    # halved by each roll-back
    "lr_scale": _number(1e-3, 1),
    **dict.fromkeys(("micro_batch_size", "planned_steps"), _or_none(_whole(1))),
    "best_value": _or_none(_number(0)),
    "best_step": _whole(-1),
    "target_seconds": _or_none(_number(0)),
    "history": lambda value: isinstance(value, list),
}
ROW: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(COLUMNS, _is_real),
    **dict.fromkeys(("epoch", "seconds"), _number(0)),
    **dict.fromkeys(("progress", "val_top1", "val_macro_f1", "val_balanced_accuracy"), _number(0, 1)),
    "step": _whole(0),
}
# of adversarial training, beside the others
ROBUST_ROW: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("val_robust", "val_robust_newest"), _number(0, 1)),
    **dict.fromkeys(("num_probed", "num_overfits"), _whole(0)),
}
# of a run on sets of labels
SET_ROW = {**{name: ROW.get(name, _is_real) for name in (*SET_COLUMNS, "progress")}, "val_map": _number(0, 1)}


def _check_counters(saved: Mapping[str, Any]) -> None:
    if saved.keys() != {field.name for field in dataclasses.fields(Counters)}:
        raise ValueError("its counters are others")
    _check_fields(saved, COUNTERS, "")
    last = 0
    for row in saved["history"]:
        _check_fields(row, SET_ROW if isinstance(row, Mapping) and "val_map" in row else ROW, "history.")
        if "val_robust" in row:
            _check_fields(row, ROBUST_ROW, "history.")
        if AFTER in row:
            # earlier versions did not write it
            _check_fields(row, {AFTER: _number(0)}, "history.")
        if not last <= row["step"] <= saved["step"]:
            raise ValueError(f"history.step is {row['step']}")
        last = row["step"]


def _check_fields(saved: Any, fields: Mapping[str, Callable[[Any], bool]], where: str) -> None:
    if not isinstance(saved, Mapping):
        raise TypeError(f"{where or 'counters'} is {_shown(saved)}")
    for name, holds in fields.items():
        if not holds(saved[name]):
            raise ValueError(f"{where}{name} is {_shown(saved[name])}")


def _shown(value: Any) -> str:
    """A value from a file, shortened for a message."""
    return f"{value!r:.40}" if isinstance(value, str | int | float | None) else f"of type {type(value).__name__}"
