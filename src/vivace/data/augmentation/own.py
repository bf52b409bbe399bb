"""An augmentation of the user's: a function on batches of images, checked, and with random numbers of its own.

It is called with images_BCHW, uint8 on the 0..255 scale, at the size that the network sees, on the run's device: after
the crops, flips, colours and cutout of the recipe, before mixup and cutmix, and before normalization. It may change
them in place. It returns as many images of the same shape, uint8, or float32 on the same scale.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import random
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from vivace.errors import ConfigError, first_line, shown

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["OwnAugmentation"]

# characters of the SHA-256 of a source
DIGEST = 16
# values as far from 0..255 are a mistake
FARTHEST = 1e4
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


class OwnAugmentation:
    """A function images_BCHW → images_BCHW, as the module says, with a name that tells it from another.

    The global random numbers of torch, numpy and Python are seeded before each call from the run's generator, and
    afterwards are as before: a resumed run draws what the unbroken one did. Raises ConfigError for what can't be
    called.
    """

    def __init__(self, function: Any) -> None:
        if isinstance(function, type):
            raise ConfigError(f"augment is a class: got {function.__name__}. Give an object: {function.__name__}().")
        if not callable(function):
            raise ConfigError(
                f"augment is no function: got {shown(function)}. Give a function from images_BCHW, uint8, to the same; "
                'fields of the recipe go into overrides, such as overrides={"augment.flip": "random"}.'
            )
        self._function: Callable[[Any], Any] = function
        self.name = _name(function)

    def __call__(self, images_BCHW: Tensor, generator: torch.Generator) -> Tensor:
        """The augmented images. generator: of the run.

        Raises ConfigError for an answer of another shape, dtype, device or scale, with NaN or Inf, and if it fails.
        """
        import torch

        seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
        with _seeded(seed, images_BCHW.device):
            try:
                with torch.no_grad():
                    given = self._function(images_BCHW.clone())
            except (MemoryError, torch.OutOfMemoryError):
                raise
            except Exception as error:
                raise ConfigError(
                    f"augment failed on {_described(images_BCHW)}: {type(error).__name__}: {first_line(error)[:200]}. "
                    f"Fix {self.name.partition(' ')[0]}."
                ) from error
        self._check(given, images_BCHW)
        return given.contiguous(memory_format=torch.channels_last)

    def _check(self, given: Any, images_BCHW: Tensor) -> None:
        import torch

        wanted = f"expected uint8 or float32 {tuple(images_BCHW.shape)}"
        if not isinstance(given, torch.Tensor):
            raise ConfigError(f"augment returned no tensor: got {type(given).__name__}, {wanted}.")
        if given.shape != images_BCHW.shape or given.device != images_BCHW.device:
            raise ConfigError(f"augment returned another shape or device: got {_described(given)}, {wanted}.")
        if given.dtype not in (torch.uint8, torch.float32):
            raise ConfigError(f"augment returned another dtype: got {_described(given)}, {wanted}. Convert it.")
        if given.dtype == torch.uint8:
            if images_BCHW.dtype != torch.uint8:
                raise ConfigError(f"augment returned another dtype: got {_described(given)}, {wanted}. Convert it.")
            return
        low, high = (float(value) for value in given.aminmax())
        if images_BCHW.dtype != torch.uint8 and bool(given.isfinite().all()):
            # images that are kept as they are have any scale
            return
        # NaN is neither
        if not (low >= -FARTHEST and high <= FARTHEST):
            raise ConfigError(
                f"augment returned NaN, Inf or values far from 0..255: got {low:g} to {high:g}. Return float32 on the "
                "0..255 scale."
            )
        if 0 < high <= 1 < float(images_BCHW.max()):
            raise ConfigError(
                f"augment returned images on another scale: got {low:g} to {high:g}, expected 0 to 255. Multiply by "
                "255; the network's normalization comes later."
            )


def _described(images: Tensor) -> str:
    return f"{str(images.dtype).removeprefix('torch.')} {tuple(images.shape)} on {images.device}"


@contextlib.contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Within, the global random numbers are those of the seed; afterwards they are as before."""
    import torch

    before = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else [], enabled=True):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)
            yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


def _name(function: Any) -> str:
    """Such as "mine.blur sha256:0123456789abcdef": where it is defined, and the hash of its source and parameters."""
    parts: list[str] = []
    inner = function
    while isinstance(inner, functools.partial):
        parts.append(repr((inner.args, sorted(inner.keywords.items()))))
        inner = inner.func
    inner = inspect.unwrap(inner)
    if inspect.ismethod(inner):
        parts.append(repr(inner.__self__))
        inner = inner.__func__
    named = inner if hasattr(inner, "__qualname__") else type(inner)
    if named is not inner:
        # what an object was made with is what it shows, if it shows it
        parts.append(repr(inner))
    source, code = None, getattr(named, "__code__", None)
    with contextlib.suppress(OSError, TypeError):
        source = inspect.getsource(named)
    parts.append(source or "")
    if code is not None and (source is None or named.__qualname__.endswith("<lambda>")):
        # typed into an interpreter, or one of several in a line
        parts.append(repr((code.co_code, code.co_consts, code.co_names)))
    digest = hashlib.sha256(ADDRESS.sub("", "\n".join(parts)).encode(errors="backslashreplace")).hexdigest()
    return f"{named.__module__}.{named.__qualname__} sha256:{digest[:DIGEST]}"
