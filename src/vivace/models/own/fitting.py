"""Makes a network of the user's own one that the rest can work with, or says why it can't be.

What others rely on: images_BCHW of any number in, in either memory format, logits_BK out, as a plain tensor; a copy is
like the original; its state is tensors; it has gradients. All is tried once, with two small batches.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vivace.errors import ModelError, first_line
from vivace.notices import warn

__all__ = ["fitted", "run_only", "takes_contiguous", "to_channels_last"]

# set on a network whose layers need contiguous images, such as one that flattens by .view()
CONTIGUOUS = "vivace_takes_contiguous"
FLOAT = torch.float32


def fitted(model: nn.Module, name: str, *, num_classes: int, in_channels: int, size: int) -> nn.Module:
    """The network, changed in place: logits are taken out of what it returns, images made contiguous if it needs that.

    Raises ModelError, with what to change, for one that does not take such images, does not give `num_classes` logits
    for each, has nothing to train, or can't be copied or saved.
    """
    images_BCHW = _images(in_channels, size)
    model.to("cpu")
    _materialise(model, name, images_BCHW)
    _check_tensors(model, name)
    _check_trainable(model, name)
    output = _forward(model, name, images_BCHW, training=False)
    logits_BK = _plain_logits(model, name, output, _trained(model, name, images_BCHW))
    _check_answers(model, name, images_BCHW, logits_BK, num_classes)
    if _are_probs(logits_BK):
        warn(f"{name} seems to end in a softmax: its outputs are not negative and sum to 1. Logits train better")
    return _in_any_layout(model, images_BCHW, num_classes)


def run_only(model: nn.Module, name: str, *, num_classes: int, in_channels: int, size: int) -> nn.Module:
    """The same of a network that is not trained any more: it needs no gradients, and no mode for training.

    Raises ModelError too where the outputs are probabilities already, of which others would be made.
    """
    images_BCHW = _images(in_channels, size)
    model.to("cpu")
    _check_tensors(model, name)
    output = _forward(model, name, images_BCHW, training=False)
    logits_BK = _plain_logits(model, name, output)
    _check_answers(model, name, images_BCHW, logits_BK, num_classes)
    if _are_probs(logits_BK):
        raise ModelError(
            f"{name} gives probabilities: its outputs are not negative and sum to 1. Return logits, without the "
            "softmax at the end: a bundle has its own."
        )
    return _in_any_layout(model, images_BCHW, num_classes)


def _in_any_layout(model: nn.Module, images_BCHW: Tensor, num_classes: int) -> nn.Module:
    """The network, which from now on takes images in either memory format."""
    if not _takes_channels_last(model, images_BCHW, num_classes):
        model.register_forward_pre_hook(_make_contiguous)
        setattr(model, CONTIGUOUS, True)
    return model


def _images(in_channels: int, size: int) -> Tensor:
    return torch.randn(2, in_channels, size, size, generator=torch.Generator().manual_seed(0))


def _plain_logits(model: nn.Module, name: str, *outputs: Any) -> Tensor:
    """The logits of the first output; if one is more than a tensor, the model gives a plain one from now on."""
    if not all(isinstance(one, Tensor) for one in outputs):
        for one in outputs:
            _check_logits(one, name)
        model.register_forward_hook(_take_logits)
    return _logits_of(outputs[0])


def _check_answers(model: nn.Module, name: str, images_BCHW: Tensor, logits_BK: Tensor, num_classes: int) -> None:
    _check_shape(logits_BK, name, num_classes)
    one_BK = _logits_of(_forward(model, name, images_BCHW[:1], training=False))
    if one_BK.shape != (1, num_classes):
        raise ModelError(
            f"{name} gives {list(one_BK.shape)} for one image, where [1, {num_classes}] is expected: squeeze() removes "
            "the batch too. Use flatten(1) in its place."
        )


def takes_contiguous(model: nn.Module) -> bool:
    """Whether the network needs contiguous images and weights."""
    return bool(getattr(model, CONTIGUOUS, False))


def to_channels_last(model: nn.Module) -> nn.Module:
    """The network with its weights in channels_last, in place; one that needs contiguous ones is left as it is."""
    return model if takes_contiguous(model) else model.to(memory_format=torch.channels_last)


def _take_logits(model: nn.Module, inputs: Any, output: Any) -> Tensor:
    """A forward hook: the logits of a mapping or object that has them."""
    return _logits_of(output)


def _make_contiguous(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """A forward pre-hook."""
    return tuple(value.contiguous() if isinstance(value, Tensor) else value for value in inputs)


def _logits_of(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    found: Tensor = output["logits"] if isinstance(output, Mapping) else output.logits
    return found


def _check_logits(output: Any, name: str) -> None:
    if isinstance(output, Tensor):
        return
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if not isinstance(found, Tensor):
        what = f"a mapping with {', '.join(map(str, output))}" if isinstance(output, Mapping) else _kind(output)
        raise ModelError(
            f"{name} gives no logits: got {what}. Return a tensor [batch, classes], or a mapping or object that has it "
            "as `logits`."
        )


def _kind(output: Any) -> str:
    plain = type(output) in (tuple, list)
    return f"a {type(output).__name__} of {len(output)}" if plain else f"an object of type {type(output).__name__}"


def _check_shape(logits_BK: Tensor, name: str, num_classes: int) -> None:
    shape = list(logits_BK.shape)
    if shape == [2, num_classes] and logits_BK.is_floating_point():
        return
    if len(shape) == 2 and shape[0] == 2 and logits_BK.is_floating_point():
        raise ModelError(
            f"{name} gives {shape[1]:,} logits, and the data has {num_classes:,} classes. Give its constructor a "
            f"parameter num_classes, which is passed, or build its last layer with {num_classes} outputs."
        )
    raise ModelError(
        f"{name} gives a tensor of {shape}, {logits_BK.dtype}, for 2 images, expected float [2, {num_classes}]. "
        "Return logits, one for each class, in the order of the images."
    )


def _are_probs(logits_BK: Tensor) -> bool:
    return bool((logits_BK >= 0).all()) and bool(((logits_BK.sum(1) - 1).abs() < 1e-4).all())


def _materialise(model: nn.Module, name: str, images_BCHW: Tensor) -> None:
    """Give lazy layers their shapes."""
    if any(nn.parameter.is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        _forward(model, name, images_BCHW, training=False)


def _check_tensors(model: nn.Module, name: str) -> None:
    for key, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise ModelError(
                f"{name} keeps something that is no tensor in its state: {key} is of type {type(value).__name__}. "
                "Keep it out of the state dict (get_extra_state)."
            )
        if value.is_floating_point() and value.dtype != FLOAT:
            raise ModelError(
                f"{name} has weights of {str(value.dtype).removeprefix('torch.')}: {key}. Give it in float32 "
                "(.float()); lower precisions are chosen in training."
            )


def _check_trainable(model: nn.Module, name: str) -> None:
    if not any(parameter.requires_grad for parameter in model.parameters()):
        count = sum(1 for _ in model.parameters())
        raise ModelError(
            f"{name} has nothing to train: got {count} parameters, none of which requires a gradient. Register its "
            "layers as attributes of it, or unfreeze some."
        )


def _forward(model: nn.Module, name: str, images_BCHW: Tensor, *, training: bool) -> Any:
    was = model.training
    try:
        with torch.set_grad_enabled(training):
            return model.train(training)(images_BCHW)
    except Exception as error:
        size = images_BCHW.shape[-1]
        raise ModelError(
            f"{name} does not take images [{', '.join(map(str, images_BCHW.shape))}], float: {type(error).__name__}: "
            f"{first_line(error)[:200]}. Give the `size` that it is made for in place of {size}, or change the network."
        ) from error
    finally:
        model.train(was)


def _trained(model: nn.Module, name: str, images_BCHW: Tensor) -> Any:
    """What a copy of it gives in training, after a gradient was computed."""
    try:
        twin = copy.deepcopy(model)
    except Exception as error:
        raise ModelError(
            f"{name} can't be copied: {type(error).__name__}: {first_line(error)[:200]}. Keep what copy.deepcopy can't "
            "copy, such as open files and locks, out of the network."
        ) from error
    output = _forward(twin, name, images_BCHW, training=True)
    _check_logits(output, name)
    try:
        _logits_of(output).float().square().sum().backward()
    except Exception as error:
        raise ModelError(
            f"{name} can't be trained: {type(error).__name__}: {first_line(error)[:200]}. Its logits must depend on "
            "its parameters, without detach() or torch.no_grad()."
        ) from error
    return output


def _takes_channels_last(model: nn.Module, images_BCHW: Tensor, num_classes: int) -> bool:
    """Whether it works with images and weights in channels_last, tried on a copy."""
    twin = copy.deepcopy(model).to(memory_format=torch.channels_last)
    images = images_BCHW.to(memory_format=torch.channels_last)
    work: Callable[..., Any] = twin.eval()
    try:
        with torch.no_grad():
            return _logits_of(work(images)).shape == (2, num_classes)
    except Exception:
        return False
