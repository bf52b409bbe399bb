"""Networks by name: a table of ours, and every network of timm as `timm/NAME`."""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vivace.cachedir import default_cache_dir
from vivace.errors import ModelError, first_line, nearest
from vivace.models.arguments import ARGUMENTS, FRACTION, check_arguments, check_shape
from vivace.models.classes import rows_of_classes
from vivace.models.convnets import FastCNN, FastPhoto, SimpleCNN
from vivace.models.limits import blank_network, check_forward
from vivace.models.narrowing import narrow
from vivace.models.parts import count_parameters, forward_flops, head_parameters, layer_groups
from vivace.models.pretrained import WeightsSource, advice_without, find_weights, pretrained_stats
from vivace.models.scattering import ScatterLinear
from vivace.models.timm_models import check_timm_name, create_timm, list_timm, near_timm
from vivace.models.weights import load_weights

__all__ = [
    "ZOO",
    "check_name",
    "class_rows",
    "complete_arguments",
    "count_parameters",
    "create_model",
    "forward_flops",
    "head_parameters",
    "layer_groups",
    "list_models",
    "load_weights",
    "pretrained_stats",
]

ZOO: dict[str, Callable[..., nn.Module]] = {
    "simple_cnn": SimpleCNN,
    "fast_cnn": FastCNN,
    "fast_photo": FastPhoto,
    "scatter_linear": ScatterLinear,
}
TIMM = "timm/"
# what every network gets in addition to its own arguments
FIXED = {"num_classes", "in_channels", "size"}
# the cost of a forward pass is only checked where it may be unexpectedly high: for large images, and for arguments
# that change a layer's size
LARGE_SIZE = 512
HARMLESS = {name for name, kind in ARGUMENTS.items() if kind is FRACTION}


def create_model(
    name: str,
    num_classes: int,
    *,
    in_channels: int = 3,
    size: int = 32,
    pretrained: bool | WeightsSource = False,
    cache_dir: Path | None = None,
    narrowed: Mapping[str, Sequence[int]] | None = None,
    inspect_blank: Callable[[nn.Module], object] = lambda blank: None,
    **arguments: Any,
) -> nn.Module:
    """The network `name`: normalised images_BCHW float of `size` px → logits_BK.

    pretrained: with published weights, from a source or the first that `find_weights` finds; `cache_dir` holds those of
    packages as safetensors (None: the default one). narrowed: sizes of the layers that pruning left with fewer
    channels (`models.narrowing`). inspect_blank: is given the network on the meta device before it is built, and may
    raise. arguments: of the network's constructor, those that `models.arguments` lists.
    Raises ModelError for an unknown name, an argument that the network does not take, weights that can't be had, and
    for a network of more weights or operations than `models.limits` allows: before it is built.
    """
    check_shape(num_classes, in_channels, size)
    if name in ZOO:
        _check_own(name, arguments)
    check_arguments({**arguments, **({} if narrowed is None else {"narrowed": narrowed})})
    if narrowed and pretrained:
        raise ModelError(f"published weights do not fit a narrowed {name}. Leave `model.pretrained` out.")

    def build(pretrained: bool | WeightsSource, tried: bool) -> nn.Module:
        model = _create(name, num_classes, in_channels, size, pretrained, arguments, tried, cache_dir)
        narrow(model, narrowed or {})
        return model

    blank = blank_network(name, lambda: build(pretrained=False, tried=False))
    inspect_blank(blank)
    if narrowed or size > LARGE_SIZE or not HARMLESS.issuperset(arguments):
        _check_forward(name, blank, in_channels, size, "narrowed sizes" if narrowed else "arguments")
    model = build(pretrained, tried=True)
    if narrowed:
        _try_narrowed(model, name, num_classes, in_channels, size)
    return model


def class_rows(
    name: str,
    num_classes: int,
    *,
    in_channels: int = 3,
    size: int = 32,
    narrowed: Mapping[str, Sequence[int]] | None = None,
    **arguments: Any,
) -> frozenset[str]:
    """Names of the tensors of a network's state dict with a row for each class, found without building it.

    Takes what `create_model` takes. Raises ModelError where the number of classes changes anything else.
    """

    def blank(count: int) -> dict[str, torch.Tensor]:
        def build() -> nn.Module:
            model = _create(name, count, in_channels, size, False, arguments, False, None)
            narrow(model, narrowed or {})
            return model

        return dict(blank_network(name, build).state_dict())

    return rows_of_classes(blank(num_classes), blank(num_classes + 1))


def _check_own(name: str, arguments: Mapping[str, Any]) -> None:
    known = set(inspect.signature(ZOO[name]).parameters) - FIXED
    for key in arguments:
        if key not in known:
            takes = ", ".join(sorted(known)) or "none"
            raise ModelError(f"{name} takes no argument {key!r}.{nearest(key, known)} It takes: {takes}.")


def _check_forward(name: str, blank: nn.Module, in_channels: int, size: int, what: str) -> None:
    try:
        check_forward(name, blank, in_channels, size)
    except ModelError:
        raise
    except Exception as error:
        # shapes that do not fit fail in any way, a bare assertion included
        raise ModelError(
            f"{name} does not work with these {what} at {size} px: {type(error).__name__}: {first_line(error)[:200]}. "
            "Fix model.arguments or `size`."
        ) from None


@torch.no_grad()
def _try_narrowed(model: nn.Module, name: str, num_classes: int, in_channels: int, size: int) -> None:
    training = model.training
    try:
        fits = model.eval()(torch.zeros(1, in_channels, size, size)).shape == (1, num_classes)
    except (RuntimeError, ValueError, AssertionError, TypeError, IndexError) as error:
        raise ModelError(f"{name} can't be narrowed like this: its layers do not fit each other ({error}).") from None
    finally:
        model.train(training)
    if not fits:
        raise ModelError(f"{name} can't be narrowed like this: it does not give {num_classes} logits.")


def _create(
    name: str,
    num_classes: int,
    in_channels: int,
    size: int,
    pretrained: bool | WeightsSource,
    arguments: dict[str, Any],
    tried: bool,
    cache_dir: Path | None,
) -> nn.Module:
    check_name(name)
    source = find_weights(name) if pretrained is True else pretrained or None
    if name.startswith(TIMM):
        given: dict[str, Any] = {}
        if source is not None:
            given["weights"] = source.read(cache_dir or default_cache_dir())
            given["cached"] = source.path
            given["advice"] = advice_without(source)
        return create_timm(
            name[len(TIMM) :],
            num_classes,
            in_channels=in_channels,
            size=size,
            pretrained=source is not None,
            arguments=arguments,
            tried=tried,
            **given,
        )
    try:
        return ZOO[name](num_classes, in_channels=in_channels, size=size, **arguments)
    except ModelError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)[:200]}"
        raise ModelError(f"{name} can't be built: {reason}. Fix model.arguments or `size`.") from None


def check_name(name: str) -> None:
    """Raise ModelError for a network that neither we nor timm have."""
    if name.startswith(TIMM):
        check_timm_name(name[len(TIMM) :])
    elif name not in ZOO:
        # most likely a name of timm without its prefix
        near = nearest(name, ZOO) if name not in list_timm() else ""
        own = " One of your own is FILE.py:NAME, given by `model`." if ":" in name else ""
        raise ModelError(
            f"the network is unknown: got {name!r}.{near or near_timm(name)} Known: {', '.join(ZOO)} and timm/NAME."
            f"{own}"
        )


def complete_arguments(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """`arguments` with our own networks' defaults filled in, so that a later change of a default changes no bundle."""
    if name not in ZOO:
        return dict(arguments)
    parameters = inspect.signature(ZOO[name]).parameters
    defaults = {key: parameter.default for key, parameter in parameters.items() if key not in FIXED}
    return {**{key: list(v) if isinstance(v, tuple) else v for key, v in defaults.items()}, **arguments}


def list_models(pattern: str = "*") -> list[str]:
    """All names that `create_model` takes and that match a shell pattern."""
    names = [*ZOO, *(TIMM + name for name in list_timm())]
    return [name for name in names if fnmatch.fnmatch(name, pattern)]
