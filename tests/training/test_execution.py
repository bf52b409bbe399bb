"""The table of execution options: one row decides what the trial tries, what is told, and what a step enters."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vivace.bench.ablation import TECHNIQUES, techniques_of
from vivace.training.execution import (
    OPTIONS,
    PRECISIONS,
    ExecutionConfig,
    Machine,
    candidates_of,
    changes_nothing,
    measured_fields,
    own_kernels,
    summary_of,
    switches,
    without_own_kernels,
)
from vivace.training.recipes.recipe import Recipe
from vivace.training.tuning import tune as tune_module
from vivace.training.tuning.tune import _candidates, plain_execution

# (device, whether Winograd runs, processors, precisions, length of the run)
MACHINES = (
    ("cpu", True, 8, ("fp32", "bf16"), 60.0),
    ("cpu", False, 3, ("fp32", "bf16"), 5000.0),
    ("cpu", False, 2, ("fp32",), 1e9),
    ("cuda", False, 4, ("fp32", "bf16", "fp16"), 601.0),
    ("cuda", True, 16, ("fp32", "fp16"), 599.0),
    ("mps", False, 4, ("fp32",), 1e9),
)
# of what the lists gave before there was a table, over the same recipes and machines
BEFORE = "0132cfcb2b98460f6bbe7ac6533bcc36e510121a8b530b89ed0d4ca827e4abbf"
ALL_ON = dict.fromkeys(switches(), True)


def recipes() -> Iterator[Recipe]:
    """Every value of every option, in combinations."""
    switch = ("auto", True, False)
    names = ("channels_last", "compile", "tile_gradients", "winograd", "fuse_norms")
    rest = ((1, None, 64, False), ("auto", None, 2048, False), ("auto", 32, 512, True), (3, None, 2048, True))
    for precision, *values in itertools.product(("auto", *PRECISIONS), *[switch] * len(names)):
        for threads, micro, batch, fake_quant in rest:
            options: dict[str, Any] = dict(zip(names, values, strict=True))
            if fake_quant and options["compile"] is True:
                continue
            options |= {"threads": threads, "micro_batch_size": micro, "fake_quant": fake_quant}
            yield Recipe(precision=precision, batch_size=batch, **options)  # type: ignore[arg-type]


def test_the_trial_tries_what_it_tried_before_there_was_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    digest = hashlib.sha256()
    before: list[dict[str, Any]] = [
        {},
        {"precision": "bf16"},
        {"precision": "fp16", "channels_last": True},
        {"precision": "bf16", "winograd": True},
    ]
    monkeypatch.setattr(tune_module, "warn", lambda text: None)
    for recipe in itertools.islice(recipes(), 0, None, 13):
        for device, has_winograd, processors, precisions, seconds in MACHINES:
            monkeypatch.setattr(tune_module, "supported_precisions", lambda _, known=precisions: known)
            monkeypatch.setattr(tune_module, "has_winograd", lambda has=has_winograd: has)
            monkeypatch.setattr(tune_module, "num_cpus", lambda count=processors: count)
            plain = plain_execution(recipe)
            found = _candidates(recipe, plain, SimpleNamespace(type=device), seconds)  # type: ignore[arg-type]
            nothing = [
                changes_nothing(dataclasses.replace(plain, **{**earlier, **changes}), changes)
                for _, changes in found
                for earlier in before
            ]
            digest.update(json.dumps([dataclasses.asdict(plain), found, nothing], sort_keys=True).encode() + b"\n")
    assert digest.hexdigest() == BEFORE


def test_every_field_has_one_row_and_a_recipe_has_it_too() -> None:
    fields = [field.name for field in dataclasses.fields(ExecutionConfig)]
    assert sorted(option.field for option in OPTIONS) == sorted(fields)
    assert len({option.trial_order for option in OPTIONS}) == len(OPTIONS)
    assert set(fields) <= {field.name for field in dataclasses.fields(Recipe)}
    assert measured_fields() == [name for name in fields if name != "micro_batch_size"]
    defaults = Recipe()
    for option in OPTIONS:
        assert getattr(defaults, option.field) == ("auto" if option.can_be_auto else None)


def test_the_order_of_the_trial_on_a_processor_that_has_everything() -> None:
    machine = Machine(device="cpu", low_precisions=("bf16",), has_winograd=True, threads=8)
    assert [name for name, _ in candidates_of(Recipe(batch_size=2048), machine)] == [
        "bf16, channels_last",
        "bf16",
        "Winograd convolutions",
        "tiled gradients",
        "fused norms",
        "channels_last",
        "4 threads",
        "micro-batches of 128",
        "compile",
    ]


def test_a_summary_tells_what_is_on() -> None:
    assert summary_of(ExecutionConfig(threads=2)) == ["fp32", "contiguous", "eager", "2 threads"]
    config = ExecutionConfig(precision="bf16", threads=2, micro_batch_size=64, **ALL_ON)
    on = ["tiled gradients", "Winograd convolutions", "fused norms", "micro-batches of 64"]
    assert summary_of(config) == ["bf16", "channels_last", "compiled", "2 threads", *on]


def test_kernels_are_entered_in_the_tables_order_and_a_compiled_network_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered: list[str] = []

    class Context:
        def __init__(self, name: str) -> None:
            self.name = name

        def __enter__(self) -> None:
            entered.append(self.name)

        def __exit__(self, *_: object) -> None:
            entered.append(f"-{self.name}")

    for name, place in (("TiledGradients", "tiling"), ("WinogradConvolutions", "winograd_convolutions")):
        monkeypatch.setattr(f"vivace.kernels.{place}.{name}", lambda folder, name=name: Context(name))
    monkeypatch.setattr("vivace.kernels.norms.fused_norms", lambda folder: Context("norms"))
    config = ExecutionConfig(**{**ALL_ON, "compile": False})
    with own_kernels(config, tmp_path):
        assert entered == ["TiledGradients", "WinogradConvolutions", "norms"]
    assert entered[3:] == ["-norms", "-WinogradConvolutions", "-TiledGradients"]
    with own_kernels(dataclasses.replace(config, compile=True), tmp_path):
        assert len(entered) == 6
    assert without_own_kernels(config) == ExecutionConfig(channels_last=True)


def test_ablations_switch_off_what_a_resolved_recipe_has_on() -> None:
    plain = Recipe(precision="fp32", **dict.fromkeys(switches(), False))  # type: ignore[arg-type]
    names = [option.ablation.name for option in OPTIONS if option.ablation is not None]
    assert [technique.name for technique in TECHNIQUES][: len(names)] == names
    assert not set(names) & {technique.name for technique in techniques_of(plain)}
    on = dataclasses.replace(plain, precision="bf16", **ALL_ON)  # type: ignore[arg-type]
    found = [technique for technique in techniques_of(on) if technique.name in names]
    assert [technique.name for technique in found] == names
    for technique in found:
        assert dataclasses.replace(on, **technique.off) == dataclasses.replace(
            on, **{field: getattr(plain, field) for field in technique.off}
        )
