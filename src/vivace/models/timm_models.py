"""timm's networks, fitted to small inputs; timm is imported only when one is requested."""

from __future__ import annotations

import functools
import inspect
import re
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vivace.errors import ModelError, nearest
from vivace.libraries.timm import load_timm
from vivace.models.hub import cache_only, hub_name, offline_if_unreachable

__all__ = [
    "Stats",
    "check_timm_name",
    "create_timm",
    "fit_to_timm",
    "full_name",
    "list_timm",
    "near_timm",
    "timm_license",
    "timm_num_classes",
    "timm_stats",
]

# mean, std, size, interpolation
Stats = tuple[tuple[float, ...], tuple[float, ...], int, Literal["bilinear", "bicubic"]]
NAME = re.compile(r"[A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*")


@functools.cache
def list_timm() -> tuple[str, ...]:
    """Names of all networks of timm, without the tags of their weights."""
    timm = load_timm()

    return tuple(timm.list_models())


def timm_stats(name: str) -> Stats | None:
    """(mean, std, size, interpolation) of the published weights of a network; None for an unknown one."""
    timm = load_timm()

    if not timm.is_model(name):
        return None
    config = _config(name)
    if config is None:
        return None
    # others, such as "random", are of training
    interpolation: Literal["bilinear", "bicubic"] = "bilinear" if config.interpolation == "bilinear" else "bicubic"
    return tuple(config.mean), tuple(config.std), int(config.input_size[-1]), interpolation


def full_name(name: str) -> str | None:
    """`name` with the tag of its weights, such as "resnet18.a1_in1k"; None if timm publishes none for it."""
    timm = load_timm()

    config = _config(name)
    if config is None or not timm.is_model_pretrained(name):
        return None
    return f"{config.architecture}.{config.tag}" if config.tag else str(config.architecture)


def timm_license(name: str) -> str | None:
    """The license of the weights `name`, such as "apache-2.0", as timm states it; None where it does not."""
    config = _config(name)
    return None if config is None or config.license is None else str(config.license)


def timm_num_classes(name: str) -> int:
    """Number of classes of the head of the weights `name`; 0 where timm does not say."""
    return int(getattr(_config(name), "num_classes", 0) or 0)


def create_timm(
    name: str,
    num_classes: int,
    *,
    in_channels: int,
    size: int,
    pretrained: bool,
    arguments: dict[str, Any],
    tried: bool = True,
    weights: dict[str, Tensor] | None = None,
    cached: Path | None = None,
    advice: str = "",
) -> nn.Module:
    """A network of timm for `num_classes` and inputs of `size` px, tried on one blank image if `tried`.

    name: of an architecture, or of one with the tag of its weights ("resnet18.a1_in1k"). pretrained: from `weights`,
    which timm fits to the head and the channels, or from the file `cached` of Hugging Face's cache, or from the hub.
    advice: what to do where they can't be had. Raises ModelError for an unknown name, arguments or a size that do not
    fit it, and weights that can't be had.
    """
    check_timm_name(name)
    config = _config(name)
    if pretrained:
        shape = {"num_classes": num_classes, "in_chans": in_channels}
        if weights is not None:
            model = _from_tensors(name, config, shape, size, arguments, weights)
        else:
            model = _pretrained(name, config, shape, size, arguments, cached, advice)
    else:
        model = _build(name, config, {"num_classes": num_classes, "in_chans": in_channels}, size, arguments)
    if tried:
        _try(model, name, num_classes, in_channels, size)
    return model


def check_timm_name(name: str) -> None:
    """Raise ModelError unless timm has a network of this name, which may end in the tag of its weights."""
    timm = load_timm()

    # timm also takes repositories and folders for names ("hf-hub:…", "local-dir:…")
    if NAME.fullmatch(name) is None or not timm.is_model(name):
        raise ModelError(
            f"the network is unknown: got 'timm/{name}'.{near_timm(name)} timm lists {len(list_timm())} networks."
        )


def near_timm(name: str) -> str:
    """A hint such as " Did you mean 'timm/resnet18'?", or ""."""
    return re.sub(r"'(\S+)'", r"'timm/\1'", nearest(name, list_timm()))


def _config(name: str) -> Any:
    """timm's description of the weights of a network; None where it has none."""
    timm = load_timm()

    try:
        return timm.get_pretrained_cfg(name)
    except RuntimeError:
        architecture, _, tag = name.partition(".")
        tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
        raise ModelError(
            f"timm/{architecture} has no weights {tag!r}.{nearest(tag, tags)} It has: {', '.join(tags) or 'none'}."
        ) from None


def _build(name: str, config: Any, shape: dict[str, int], size: int, arguments: dict[str, Any], **more: Any) -> Any:
    timm = load_timm()

    keywords = {**shape, **arguments, **more}
    attempts = [keywords]
    if config is not None and config.fixed_input_size and "img_size" not in keywords:
        # vision transformers and the like need their input size; some other networks with a fixed size do not accept it
        attempts.insert(0, {**keywords, "img_size": size})
    for attempt in attempts:
        try:
            return timm.create_model(name, **attempt)
        except TypeError as error:
            if "img_size" in attempt and "'img_size'" in str(error) and attempt is not attempts[-1]:
                continue
            raise _unbuildable(name, size, error) from None
        except ModelError:
            raise
        except Exception as error:
            # constructors fail in many ways on values that do not fit together: a bare assertion, a division by zero
            if more.get("pretrained"):
                raise
            raise _unbuildable(name, size, error) from None
    raise AssertionError("the last attempt returns or raises")


def _from_tensors(
    name: str, config: Any, shape: dict[str, int], size: int, arguments: dict[str, Any], weights: dict[str, Tensor]
) -> Any:
    """The network with tensors that are at hand, as timm fits those that it downloads."""
    try:
        model = _build(
            name, config, shape, size, arguments, pretrained=True, pretrained_cfg_overlay={"state_dict": weights}
        )
    except ModelError:
        raise
    except Exception as error:
        # is it the network, or its weights?
        _build(name, config, shape, size, arguments)
        raise ModelError(
            f"the published weights of timm/{name} do not fit it: {type(error).__name__}: {_one_line(error)}. "
            "Leave model.arguments out, or set `pretrained=False`."
        ) from None
    # timm keeps a copy of them in the network's description
    model.pretrained_cfg.pop("state_dict", None)
    return model


def _pretrained(
    name: str,
    config: Any,
    shape: dict[str, int],
    size: int,
    arguments: dict[str, Any],
    cached: Path | None,
    advice: str,
) -> Any:
    timm = load_timm()

    weights = f"{config.architecture}.{config.tag}" if config is not None and config.tag else name
    if not timm.is_model_pretrained(name):
        raise ModelError(
            f"timm publishes no weights for timm/{name}. Leave `model.pretrained` out, or choose another network."
        )
    with offline_if_unreachable() if cached is None else cache_only() as reachable:
        try:
            return _build(name, config, shape, size, arguments, pretrained=True)
        except ModelError:
            raise
        except Exception as error:
            # is it the network, or its weights?
            _build(name, config, shape, size, arguments)
            reason = f"{type(error).__name__}: {_one_line(error)}"
            if cached is not None:
                advice = f"Remove {cached}, and they are downloaded again."
            elif not reachable:
                reason = f"{hub_name()} does not answer, and they are not in its cache"
            raise ModelError(
                f"the published weights {weights} of timm/{name} can't be had: {reason}. {advice}"
            ) from None


@torch.no_grad()
def _try(model: nn.Module, name: str, num_classes: int, in_channels: int, size: int) -> None:
    """Raise ModelError unless a blank image of `size` px gives a row of logits: some networks fail in forward only."""
    from timm.layers import PatchEmbed

    patches: Any = getattr(model, "patch_embed", None)
    strict = isinstance(patches, PatchEmbed) and not patches.dynamic_img_pad
    if strict and any(size % side for side in patches.patch_size):
        side = patches.patch_size[0]
        raise ModelError(
            f"timm/{name} cuts images into patches of {side} px, and {size} px are no multiple of that. "
            f"Give `size={max(side, size // side * side)}`, or model.arguments.patch_size."
        )
    training = model.training
    try:
        logits = model.eval()(torch.zeros(1, in_channels, size, size))
    except Exception as error:
        raise _unbuildable(name, size, error) from None
    finally:
        model.train(training)
    if not isinstance(logits, Tensor) or logits.shape != (1, num_classes):
        raise ModelError(f"timm/{name} is no classifier: it does not give one logit per class. Choose another network.")


def fit_to_timm(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """`weights` converted as timm does for its networks: older names, another input size or number of channels.

    Unchanged for a network that is not timm's, and where timm fails.
    """
    if not type(model).__module__.startswith("timm."):
        return weights
    from timm.models import adapt_input_conv

    filter_fn = getattr(inspect.getmodule(type(model)), "checkpoint_filter_fn", None)
    try:
        fitted = dict(filter_fn(dict(weights), model)) if filter_fn is not None else dict(weights)
        config: Any = getattr(model, "pretrained_cfg", {})
        first = config.get("first_conv")
        for layer in [first] if isinstance(first, str) else first or ():
            expected, found = model.get_parameter(f"{layer}.weight"), fitted.get(f"{layer}.weight")
            if found is not None and expected.ndim == 4 and found.shape[1] == 3 and expected.shape[1] != 3:
                fitted[f"{layer}.weight"] = adapt_input_conv(expected.shape[1], found)
    except Exception:
        # weights of another network: the comparison that follows names the first key that does not fit
        return weights
    return fitted


def _unbuildable(name: str, size: int, error: Exception) -> ModelError:
    return ModelError(
        f"timm/{name} can't be built for {size} px: {_one_line(error)}. Fix model.arguments (such as patch_size) "
        "or `size`."
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")[:200] or f"{type(error).__name__} without a message"
