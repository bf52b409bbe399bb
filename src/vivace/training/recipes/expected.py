"""What accuracy runs of `fast` are expected to reach, by network and length: a prior for `--target` (no torch here).

Accuracies are added and compared as logits, ln(p / (1 - p)): the gain from a longer run or from the final decay of the
learning rate is then much the same for easy and for difficult data.

Length: epochs of a run as a multiple of the recipe's own number of epochs.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vivace.config import override, to_dict
from vivace.training.recipes.named import WIDTHS_BY_SECONDS_PER_IMAGE, DataFacts, fast
from vivace.training.recipes.recipe import Recipe

__all__ = [
    "MAX_LENGTH",
    "MIN_LENGTH",
    "Choice",
    "Network",
    "cheapest",
    "is_planned",
    "logit",
    "most_accurate",
    "network_of",
    "networks_for",
    "seconds_for",
    "top1_of",
    "with_network",
]

# lengths that are planned
MIN_LENGTH, MAX_LENGTH = 0.02, 4.0
# how many times longer than measured a run of a smaller network may be
MAX_BEYOND = 1.5
# accuracy, in [0, 1], by which another network must be better to be taken in place of that of the table
MIN_GAIN = 0.01
# accuracies are clipped to this distance from 0 and 1, whose logits are infinite
MARGIN = 1e-3

Gaps = tuple[tuple[float, float, float], ...]


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network of `fast`, and the accuracy that it reached on the data it was measured on."""

    name: str
    cost: float
    """Time of a run of length 1, relative to the other networks for the same data."""
    lengths: tuple[float, ...]
    top1: tuple[float, ...]
    """Validation accuracy after a complete run of each of `lengths`."""
    gaps: Gaps
    """(progress of a run; logit that the rest of the run, with its decay, adds; standard deviation between runs)."""

    def logit(self, length: float) -> float:
        """The expected logit after a complete run of this length: linear in ln(length) between measured lengths."""
        return _interpolated(math.log(length), [math.log(value) for value in self.lengths], _logits(self))

    def length(self, wanted: float) -> float:
        """The length from which on the logit is at least `wanted`."""
        return math.exp(min(50.0, _interpolated(wanted, _logits(self), [math.log(value) for value in self.lengths])))

    def gap(self, progress: float) -> tuple[float, float]:
        """The logit that is expected to be added after this progress, and its standard deviation."""
        points, gaps, spreads = zip(*self.gaps, strict=True)
        return float(np.interp(progress, points, gaps)), float(np.interp(progress, points, spreads))


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The cheapest run that is expected to reach a target."""

    network: Network
    length: float
    reaches: bool
    """False: not even the longest run of any network is expected to reach it."""

    @property
    def cost(self) -> float:
        return self.network.cost * self.length


# Measured on CIFAR-10 (45,000 images to train on, 5,000 to validate), digits and flowers, on 2 cores of a Xeon with
# AMX; cost: seconds of a run of length 1 there. docs/log/2026-11-29.md has the sources.
# (progress, gap, its spread)
GAPS: Gaps = ((0.125, 2.05, 0.3), (0.25, 1.67, 0.25), (0.375, 1.29, 0.2), (0.5, 0.92, 0.19))
GAPS += ((0.625, 0.49, 0.08), (0.75, 0.3, 0.07), (0.875, 0.15, 0.06), (1.0, 0.0, 0.03))
# lower rates leave less to gain from their decay
GAPS_PHOTOS: Gaps = ((0.125, 1.19, 0.25), (0.25, 0.81, 0.15), (0.375, 0.51, 0.12), (0.5, 0.37, 0.1))
GAPS_PHOTOS += ((0.75, 0.1, 0.07), (1.0, 0.0, 0.05))
# runs of two epochs
GAPS_MEDIUM: Gaps = ((0.1, 1.8, 0.3), (0.18, 1.49, 0.25), (0.27, 1.05, 0.2), (0.36, 0.8, 0.15), (0.44, 0.55, 0.15))
GAPS_MEDIUM += ((0.53, 0.4, 0.12), (0.62, 0.27, 0.1), (0.75, 0.15, 0.07), (0.875, 0.07, 0.05), (1.0, 0.0, 0.03))
# batches of 250: four times as many steps in the same epochs
GAPS_SMALL: Gaps = ((0.1, 1.25, 0.25), (0.2, 1.0, 0.2), (0.3, 0.69, 0.15), (0.4, 0.47, 0.12), (0.5, 0.3, 0.1))
GAPS_SMALL += ((0.6, 0.15, 0.07), (0.7, 0.1, 0.06), (0.8, 0.08, 0.05), (0.9, 0.035, 0.04), (1.0, 0.0, 0.03))
SMALL = Network(
    name="the small network",
    cost=55.0,
    lengths=(0.052, 0.062, 0.085, 0.2, 0.27, 0.49, 0.73),
    top1=(0.65, 0.665, 0.708, 0.762, 0.772, 0.788, 0.805),
    gaps=GAPS_SMALL,
)
MEDIUM = Network(
    name="the medium network",
    cost=88.0,
    lengths=(0.125, 0.19, 0.31, 0.51, 0.97),
    top1=(0.752, 0.793, 0.828, 0.849, 0.87),
    gaps=GAPS_MEDIUM,
)
LARGE = Network(
    name="the large network",
    cost=148.0,
    lengths=(0.25, 0.5, 0.75, 1.0, 2.5),
    top1=(0.825, 0.868, 0.879, 0.889, 0.897),
    gaps=GAPS,
)
FEW = Network(name="the network for few images", cost=9.0, lengths=(0.15, 1.0), top1=(0.96, 0.99), gaps=GAPS_SMALL)
PHOTOS = Network(
    name="the network for photos",
    cost=172.0,
    lengths=(0.125, 0.25, 0.5, 1.0, 1.5, 4.5),
    top1=(0.7, 0.785, 0.84, 0.868, 0.878, 0.886),
    gaps=GAPS_PHOTOS,
)
BY_WIDTHS = {(48, 96, 192): SMALL, (64, 128, 256): MEDIUM, (64, 256, 256): LARGE}


def network_of(recipe: Recipe) -> Network:
    """The expectations for the network of a recipe; for one that was not measured, those for the nearest kind."""
    widths = tuple(recipe.model.arguments.get("widths", ()))
    if recipe.model.name == "fast_cnn":
        return BY_WIDTHS.get(widths, FEW)
    return PHOTOS


def networks_for(network: Network) -> tuple[Network, ...]:
    """The networks of the same data, in order of size, this one included."""
    return tuple(BY_WIDTHS.values()) if network in BY_WIDTHS.values() else (network,)


def is_planned(name: object, changes: Mapping[str, Any]) -> bool:
    """Whether a run of the recipe `name` with `changes` is planned towards its target.

    Only `fast` is, whose accuracies are known. A length or schedule that is given is kept: the run may stop early.
    """
    given = {field.partition(".")[0] for field in changes}
    # nor are accuracies from trained weights known
    starts = bool(changes.get("model.start_from"))
    kept = {"epochs", "schedule", "early_stopping", "monitor", "validate_every"}
    return name == "fast" and not starts and not given & kept


def seconds_for(target: float, facts: DataFacts) -> float | None:
    """The time budget with which `fast` has the network that is expected to reach the target first; None: none."""
    networks = networks_for(network_of(fast(facts)))
    return _seconds(cheapest(networks, logit(target)).network, facts)


def with_network(recipe: Recipe, facts: DataFacts, network: Network) -> Recipe:
    """The recipe with another network of `fast`, and what belongs to it; values that were set are kept."""
    before = _flat(fast(replace(facts, seconds=_seconds(network_of(recipe), facts))))
    after = _flat(fast(replace(facts, seconds=_seconds(network, facts))))
    now = _flat(recipe)
    return override(recipe, {key: value for key, value in after.items() if now.get(key) == before.get(key) != value})


def _seconds(network: Network, facts: DataFacts) -> float | None:
    """The smallest time budget with which `fast` has this network; None: it is that without a time budget."""
    for seconds, widths in WIDTHS_BY_SECONDS_PER_IMAGE[:-1]:
        if BY_WIDTHS.get(widths) is network:
            # rounding must not leave it just below the limit
            return seconds * facts.num_images / facts.speed * (1 + 1e-9)
    return 0.0 if network is SMALL else None


def _flat(recipe: Recipe) -> dict[str, Any]:
    """The fields of a recipe by dotted names."""
    fields: dict[str, Any] = {}
    for key, value in to_dict(recipe).items():
        fields |= (
            {f"{key}.{name}": item for name, item in value.items()} if isinstance(value, Mapping) else {key: value}
        )
    return fields


def cheapest(networks: Sequence[Network], wanted: float, *, shift: float = 0.0) -> Choice:
    """The cheapest run whose expected logit is at least `wanted`.

    shift: by how much the logits of these data are higher than those of the data that were measured. Without such a
    run: the longest one of the largest network.
    """
    choices = [
        Choice(network=network, length=max(MIN_LENGTH, length), reaches=True)
        for network in networks
        if (length := network.length(wanted - shift)) <= _longest(network, networks)
    ]
    if not choices:
        return Choice(network=networks[-1], length=MAX_LENGTH, reaches=False)
    return min(choices, key=lambda choice: choice.cost)


def most_accurate(network: Network, length: float) -> tuple[Network, float]:
    """The network that is most accurate in the time that `network` takes for a run of this length, and its own length.

    Another one than `network` must be expected to be better by MIN_GAIN on the data that were measured.
    """
    networks = networks_for(network)

    def top1(one: Network, its_length: float) -> float:
        # far beyond what was measured a smaller network gains less than its line says
        return top1_of(one.logit(min(its_length, _longest(one, networks))))

    lengths = {one.name: length * network.cost / one.cost for one in networks}
    best = max(networks, key=lambda one: top1(one, lengths[one.name]))
    if top1(best, lengths[best.name]) - top1(network, length) <= MIN_GAIN:
        best = network
    return best, lengths[best.name]


def _longest(network: Network, networks: Sequence[Network]) -> float:
    """The longest run that is planned: of a network that has a larger one, little more than was measured."""
    return MAX_LENGTH if network is networks[-1] else MAX_BEYOND * network.lengths[-1]


def logit(top1: float) -> float:
    """ln(p / (1 - p)), finite also for 0 and 1."""
    clipped = min(max(top1, MARGIN), 1 - MARGIN)
    return math.log(clipped / (1 - clipped))


def top1_of(value: float) -> float:
    """The accuracy of a logit."""
    return 1 / (1 + math.exp(-value))


def _logits(network: Network) -> list[float]:
    return [logit(top1) for top1 in network.top1]


def _interpolated(x: float, xs: Sequence[float], ys: Sequence[float]) -> float:
    """Piecewise linear through the points, whose `xs` increase; beyond them with the slope at that end."""
    index = min(max(bisect_right(xs, x), 1), len(xs) - 1)
    slope = (ys[index] - ys[index - 1]) / (xs[index] - xs[index - 1])
    return ys[index - 1] + slope * (x - xs[index - 1])
