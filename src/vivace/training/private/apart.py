"""Whether a network keeps the images of a batch apart, and keeps none: without that no gradient is of one image alone.

The network of a user's own may do anything. What is seen here is what it does to images of noise, and that nothing but
the trained weights has changed at the end; code that waits for real images is taken on trust.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vivace.errors import ConfigError, TrainingError

__all__ = ["Untrained", "check_apart"]

NUM_IMAGES = 4
# of the largest answer: rounding is far below, statistics of a batch far above
TOLERANCE = 1e-3
# beside images of noise the others of a batch are put that are brighter by this, in deviations
BRIGHTER = 3.0


def check_apart(model: nn.Module, name: str, *, channels: int, size: int, device: torch.device, training: bool) -> None:
    """Raises ConfigError where the answer to an image depends on the others of its batch, or images change the network.

    training: whether the network is as it is in training, else as it answers. Weights, mode and global random numbers
    stay as they were.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(NUM_IMAGES, channels, size, size, generator=generator).to(device)
    others = images.clone()
    others[1:] = BRIGHTER - others[1:]
    was_training, before = model.training, {key: value.clone() for key, value in model.state_dict().items()}
    model.train(training)
    try:
        first = _answer(model, images, device)
        changed = _changed(model, before)
        second = _answer(model, others, device)
        # it may have been tried on noise before, and hold that
        _answer(model, others.flip(0), device)
        changed = changed or _changed(model, before)
    finally:
        model.load_state_dict(before)
        model.train(was_training)
    if changed is not None:
        raise ConfigError(
            f"{name} can't be trained with differential privacy: {changed} changes with the images that it sees, and "
            "would be in the bundle without noise. Take that out of the network."
        )
    if float((first[0] - second[0]).abs().max()) > TOLERANCE * max(1.0, float(first.abs().max())):
        raise ConfigError(
            f"{name} can't be trained with differential privacy: its answer to an image depends on the others of the "
            "batch, so that no gradient is of one image alone. Take out what mixes them, such as batch norm."
        )


class Untrained:
    """What of a network is not trained, as it was when training began."""

    def __init__(self, model: nn.Module, trained: set[str]) -> None:
        """trained: the names of what is."""
        self._before = {name: value.clone() for name, value in model.state_dict().items() if name not in trained}

    def check(self, model: nn.Module) -> None:
        """Raises TrainingError if any of it has changed: no noise was added to that."""
        changed = _changed(model, self._before)
        if changed is not None:
            raise TrainingError(
                f"the network can't be kept: {changed} has changed in private training, and no noise was added to it. "
                "Take what changes it out of the network."
            )


@torch.no_grad()
def _answer(model: nn.Module, images_BCHW: Tensor, device: torch.device) -> Tensor:
    """float32 on the CPU, with the same random numbers each time: dropout is no mixture."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        answer: Tensor = model(images_BCHW).float().cpu()
    return answer


def _changed(model: nn.Module, before: dict[str, Tensor]) -> str | None:
    """The first of these tensors that is another now."""
    state = model.state_dict()
    for name, value in before.items():
        now = state.get(name)
        # NaN is no change where there was one
        if now is None or not torch.equal(torch.nan_to_num(now), torch.nan_to_num(value)):
            return name
    return None
