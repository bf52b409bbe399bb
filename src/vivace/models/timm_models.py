"""timm's networks, fitted to small inputs; timm is imported when one is asked for."""

from __future__ import annotations

import functools
import inspect
import os
from typing import Any

from torch import nn

from vivace.errors import ModelError, nearest

__all__ = ["create_timm", "list_timm", "timm_stats"]


@functools.cache
def list_timm() -> tuple[str, ...]:
    """Names of all networks of timm."""
    import timm

    return tuple(timm.list_models())


def timm_stats(name: str) -> tuple[tuple[float, ...], tuple[float, ...], int, str] | None:
    """(mean, std, size, interpolation) of the published weights of a network; None for an unknown one."""
    import timm

    if not timm.is_model(name):
        return None
    config = timm.get_pretrained_cfg(name)
    if config is None:
        return None
    return tuple(config.mean), tuple(config.std), int(config.input_size[-1]), str(config.interpolation)


def create_timm(
    name: str,
    num_classes: int,
    *,
    in_channels: int,
    size: int,
    pretrained: bool,
    arguments: dict[str, Any],
) -> nn.Module:
    """A network of timm for `num_classes` and inputs of `size` px. Raises ModelError."""
    import timm

    if not timm.is_model(name):
        raise ModelError(
            f"the network is unknown: got 'timm/{name}'.{nearest(name, list_timm())} timm lists {len(list_timm())}."
        )
    keywords = dict(arguments)
    if _takes_image_size(name) and "img_size" not in keywords:
        keywords["img_size"] = size
    if pretrained:
        # without a network the hub retries for minutes unless told how long to wait
        os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", "5")
        os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", "10")
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=num_classes, in_chans=in_channels, **keywords)
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if pretrained:
            raise ModelError(
                f"the published weights of timm/{name} can't be had ({type(error).__name__}: {reason}). Connect to the "
                "network, or give a local file by --weights."
            ) from None
        raise ModelError(
            f"timm/{name} can't be built for {size} px: {reason}. Mend model.arguments or --size."
        ) from None


def _takes_image_size(name: str) -> bool:
    """Whether the architecture has to be told its input size: vision transformers and the like."""
    import timm

    entry = timm.model_entrypoint(name)
    module = inspect.getmodule(entry)
    assert module is not None
    classes = [value for _, value in inspect.getmembers(module, inspect.isclass) if value.__module__ == module.__name__]
    config = timm.get_pretrained_cfg(name)
    fixed = bool(config is not None and config.fixed_input_size)
    return fixed and any("img_size" in inspect.signature(value.__init__).parameters for value in classes)
