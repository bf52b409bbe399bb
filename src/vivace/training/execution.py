"""How a training step is computed on a machine: a table with one row for each option.

The trial (`tune`), a step (`step`), receipts, ablations and the recipe's checks read the table (no torch here: what an
option switches on is imported then).
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from vivace.training.recipes.recipe import Recipe

__all__ = [
    "AUTO",
    "OPTIONS",
    "PRECISIONS",
    "Ablation",
    "ExecutionConfig",
    "ExecutionOption",
    "Machine",
    "candidates_of",
    "changes_nothing",
    "measured_fields",
    "own_kernels",
    "plain_values",
    "summary_of",
    "switches",
    "trial_batch_size",
    "without_own_kernels",
]

PRECISIONS = ("fp32", "bf16", "fp16")
AUTO = "auto"
# a compiler takes from half a minute to minutes: below this length of a run it is not even tried
COMPILE_MIN_SECONDS = {"cpu": 1800.0, "cuda": 600.0}
# ghost batches of this size and more do not hurt batch norm (arXiv:1705.08741)
MIN_MICRO_BATCH = 128
# fewer threads are tried from this number on
MIN_THREADS = 4


@dataclass(frozen=True, kw_only=True)
class ExecutionConfig:
    """How a step is computed on this machine: what a recipe leaves on "auto", resolved."""

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = False
    compile: bool = False
    tile_gradients: bool = False
    """Whether weight gradients are taken from tiles that hold many images (`TiledGradients`)."""
    winograd: bool = False
    """Whether 3×3 convolutions are Winograd's (`WinogradConvolutions`)."""
    fuse_norms: bool = False
    """Whether pooling, batch norm and activation run as one kernel (`fused_norms`)."""
    threads: int = 1
    micro_batch_size: int | None = None
    """Images per forward pass; None: the whole batch."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What decides whether an option applies, beside the recipe."""

    device: str
    """cpu, cuda or mps."""
    low_precisions: Sequence[str] = ()
    """Those below fp32 that it computes in hardware, the first to be tried first."""
    has_winograd: bool = False
    """Whether our Winograd kernels run on its processor, and are faster than what it has for bf16."""
    threads: int = 1
    run_seconds: float = float("inf")
    """How long the run will take."""


# a candidate of the trial: what it is called, and what it changes
Candidate = tuple[str, dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """How `vivace bench ablation` tells of an option."""

    name: str
    about: str


@dataclass(frozen=True, kw_only=True)
class ExecutionOption:
    """One field of `ExecutionConfig`; a recipe has a field of the same name."""

    field: str
    plain: Any
    """Its value where nothing is switched on."""
    describe: Callable[[Any], str]
    """A value, for people."""
    is_always_told: bool = False
    """Whether a summary tells the plain value too."""
    can_be_auto: bool = True
    """Whether a recipe may leave it to the trial by "auto"; otherwise by None."""
    trial_order: int
    """In which the trial tries: what saves most first, what comes after it in a step later."""
    candidates: Callable[[Recipe, Machine], list[Candidate]]
    """What the trial tries where the recipe leaves it open; nothing where it does not apply."""
    excluded_by: Callable[[ExecutionConfig], bool] = lambda config: False
    """Whether a configuration that has it does the same without it."""
    kernels: Callable[[Path], contextlib.AbstractContextManager[object]] | None = None
    """Where it is a kernel of ours, kept in a folder: the context in which a forward pass uses it."""
    ablation: Ablation | None = None


def trial_batch_size(recipe: Recipe) -> int:
    """Images per timed step: an eighth of the batch tells the same ratio at an eighth of the cost."""
    return min(recipe.batch_size, max(64, recipe.batch_size // 8))


def _low_precisions(recipe: Recipe, machine: Machine) -> list[Candidate]:
    if recipe.precision != AUTO or not machine.low_precisions:
        return []
    # bf16 before fp16: as fast, and it needs no loss scaling
    low = machine.low_precisions[0]
    alone = (low, {"precision": low})
    if recipe.channels_last != AUTO:
        return [alone]
    # both at once first: low precision gains little where every convolution reorders its images
    return [(f"{low}, channels_last", {"precision": low, "channels_last": True}), alone]


def _kernel(field: str, name: str, *, needs: Callable[[Machine], bool] = lambda machine: True) -> Any:
    """The candidates of a kernel of ours: on a CPU, where the precision is low or may become so."""

    def candidates(recipe: Recipe, machine: Machine) -> list[Candidate]:
        may_be_low = recipe.precision in ("bf16", "fp16") or (recipe.precision == AUTO and machine.low_precisions)
        applies = machine.device == "cpu" and may_be_low and needs(machine)
        return [(name, {field: True})] if applies and getattr(recipe, field) == AUTO else []

    return candidates


def _channels_last(recipe: Recipe, machine: Machine) -> list[Candidate]:
    return [("channels_last", {"channels_last": True})] if recipe.channels_last == AUTO else []


def _fewer_threads(recipe: Recipe, machine: Machine) -> list[Candidate]:
    if recipe.threads != AUTO or machine.device != "cpu" or machine.threads < MIN_THREADS:
        return []
    half = machine.threads // 2
    return [(f"{half} threads", {"threads": half})]


def _micro_batches(recipe: Recipe, machine: Machine) -> list[Candidate]:
    size = trial_batch_size(recipe)
    if recipe.micro_batch_size is not None or size < 2 * MIN_MICRO_BATCH or machine.device != "cpu":
        return []
    return [(f"micro-batches of {size // 2}", {"micro_batch_size": size // 2})]


def _compile(recipe: Recipe, machine: Machine) -> list[Candidate]:
    is_long = machine.run_seconds > COMPILE_MIN_SECONDS.get(machine.device, float("inf"))
    return [("compile", {"compile": True})] if recipe.compile == AUTO and not recipe.fake_quant and is_long else []


def _tiled_gradients(folder: Path) -> contextlib.AbstractContextManager[object]:
    from vivace.kernels.tiling import TiledGradients

    return TiledGradients(folder)


def _winograd_convolutions(folder: Path) -> contextlib.AbstractContextManager[object]:
    from vivace.kernels.winograd_convolutions import WinogradConvolutions

    return WinogradConvolutions(folder)


def _fused_norms(folder: Path) -> contextlib.AbstractContextManager[object]:
    from vivace.kernels.norms import fused_norms

    return fused_norms(folder)


# contexts of kernels are entered in this order: what the inner ones decline falls through to the outer ones
OPTIONS = (
    ExecutionOption(
        field="precision",
        plain="fp32",
        describe=str,
        is_always_told=True,
        trial_order=0,
        candidates=_low_precisions,
        ablation=Ablation(name="low precision", about="bf16 or fp16 for fp32"),
    ),
    ExecutionOption(
        field="tile_gradients",
        plain=False,
        describe=lambda on: "tiled gradients",
        trial_order=2,
        candidates=_kernel("tile_gradients", "tiled gradients"),
        # Winograd's have taken the convolutions
        excluded_by=lambda config: config.winograd or config.precision == "fp32",
        kernels=_tiled_gradients,
        ablation=Ablation(
            name="tiled gradients", about="weight gradients of 3×3 convolutions from tiles that hold many images"
        ),
    ),
    ExecutionOption(
        field="winograd",
        plain=False,
        describe=lambda on: "Winograd convolutions",
        trial_order=1,
        candidates=_kernel("winograd", "Winograd convolutions", needs=lambda machine: machine.has_winograd),
        excluded_by=lambda config: config.precision != "bf16",
        kernels=_winograd_convolutions,
        ablation=Ablation(name="Winograd convolutions", about="3×3 convolutions by minimal filtering: fewer products"),
    ),
    ExecutionOption(
        field="fuse_norms",
        plain=False,
        describe=lambda on: "fused norms",
        # after the convolutions: the faster they are, the more the norms matter
        trial_order=3,
        candidates=_kernel("fuse_norms", "fused norms"),
        excluded_by=lambda config: config.precision == "fp32",
        kernels=_fused_norms,
        ablation=Ablation(name="fused norms", about="pooling, batch norm and activation as one kernel"),
    ),
    ExecutionOption(
        field="channels_last",
        plain=False,
        describe=lambda on: "channels_last" if on else "contiguous",
        is_always_told=True,
        trial_order=4,
        candidates=_channels_last,
        ablation=Ablation(name="channels_last", about="memory format"),
    ),
    ExecutionOption(
        field="compile",
        plain=False,
        describe=lambda on: "compiled" if on else "eager",
        is_always_told=True,
        trial_order=7,
        candidates=_compile,
        ablation=Ablation(name="compile", about="torch.compile for eager"),
    ),
    ExecutionOption(
        field="threads",
        # up to one for each processor: the trial's to know
        plain=None,
        describe=lambda count: f"{count} threads",
        is_always_told=True,
        trial_order=5,
        candidates=_fewer_threads,
    ),
    ExecutionOption(
        field="micro_batch_size",
        plain=None,
        describe=lambda size: f"micro-batches of {size}",
        can_be_auto=False,
        trial_order=6,
        candidates=_micro_batches,
    ),
)


def switches() -> list[str]:
    """Fields that are on or off, or "auto" in a recipe."""
    return [option.field for option in OPTIONS if option.plain is False]


def measured_fields() -> list[str]:
    """Fields that a recipe may leave on "auto", in the order of `ExecutionConfig`: keys of receipts have them in it."""
    can_be_auto = {option.field for option in OPTIONS if option.can_be_auto}
    return [field.name for field in dataclasses.fields(ExecutionConfig) if field.name in can_be_auto]


def plain_values(recipe: Recipe) -> dict[str, Any]:
    """Field → what the recipe says; of what it leaves on "auto" the plain value."""
    values = {option.field: getattr(recipe, option.field) for option in OPTIONS}
    return {option.field: option.plain if values[option.field] == AUTO else values[option.field] for option in OPTIONS}


def candidates_of(recipe: Recipe, machine: Machine) -> list[Candidate]:
    """What the trial tries, in its order: (name, what it changes)."""
    ordered = sorted(OPTIONS, key=lambda option: option.trial_order)
    return [candidate for option in ordered for candidate in option.candidates(recipe, machine)]


def changes_nothing(config: ExecutionConfig, changes: Mapping[str, Any]) -> bool:
    """Whether a configuration, in which a candidate changed some fields, does the same as before."""
    return any(option.excluded_by(config) for option in OPTIONS if option.field in changes)


def without_own_kernels(config: ExecutionConfig) -> ExecutionConfig:
    """That of those who use the bundle: our kernels round bf16 otherwise, one answer in ten thousand changes."""
    plain = {option.field: option.plain for option in OPTIONS if option.kernels is not None}
    return dataclasses.replace(config, **plain)


@contextlib.contextmanager
def own_kernels(config: ExecutionConfig, folder: Path) -> Iterator[None]:
    """The context in which a forward pass uses our kernels that `config` switches on, kept in `folder`."""
    with contextlib.ExitStack() as entered:
        for option in OPTIONS:
            # a compiled network has its own
            if option.kernels is not None and getattr(config, option.field) and not config.compile:
                entered.enter_context(option.kernels(folder))
        yield


def summary_of(config: ExecutionConfig) -> list[str]:
    """A configuration for people: what is always told, then what is switched on."""
    always = [option for option in OPTIONS if option.is_always_told]
    on = [option for option in OPTIONS if not option.is_always_told and getattr(config, option.field)]
    return [option.describe(getattr(config, option.field)) for option in (*always, *on)]
