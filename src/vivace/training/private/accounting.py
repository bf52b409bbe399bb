"""How much noise a promise (epsilon, delta) needs, and what was spent: Opacus's accountant of privacy loss variables.

Its bound (arXiv:2106.02848) is checked against Google's dp-accounting in the tests. A step adds Gaussian noise to a sum
over images that were each drawn with a fixed probability.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from vivace.errors import ConfigError
from vivace.libraries.opacus import opacus_module

__all__ = ["Release", "Spent", "epsilon_of", "noise_for"]

# (noise multiplier, probability with which an image takes part, number of times)
Release = tuple[float, float, int]

# of epsilon: the accountant's own error, which it adds to its answer
RELATIVE_ERROR = 0.002
# of epsilon: what is spent lies below what was asked for by at most this
TOLERANCE = 0.002
# epsilon is never taken for less, whatever the accountant says of so much noise
LEAST = 1e-9
MAX_GUESSES, MAX_MOVE = 40, 2.0


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What a private training spent, and how."""

    epsilon: float
    delta: float
    noise_multiplier: float
    """Deviation of the noise of a step, as a multiple of the norm to which an image's gradient is clipped."""
    sample_rate: float
    """With which an image takes part in a step."""
    steps: int
    clip_norm: float

    def metrics(self) -> dict[str, float]:
        """As numbers, for the metrics of a bundle."""
        return {
            "epsilon": self.epsilon,
            "delta": self.delta,
            "noise_multiplier": self.noise_multiplier,
            "sample_rate": self.sample_rate,
            "steps": self.steps,
            "clip_norm": self.clip_norm,
        }


def epsilon_of(releases: Sequence[Release], delta: float, *, error: float = 0.002) -> float:
    """An upper bound of epsilon for all releases together, by at most twice `error` above the least one.

    Raises MissingExtra without Opacus.
    """
    accountant = opacus_module("accountants").PRVAccountant()
    accountant.history = list(releases)
    with warnings.catch_warnings():
        # where every image takes part, logarithms of 0 are expected
        warnings.simplefilter("ignore")
        return float(accountant.get_epsilon(delta, eps_error=error))


def noise_for(
    epsilon: float, delta: float, *, sample_rate: float, steps: int, center: float = 0.0
) -> tuple[float, float | None]:
    """(noise multiplier of the steps, that of a mean released before them): together they spend at most (ε, δ).

    center: fraction of the privacy for that mean, of the inverse variance of its noise; 0: no mean, and None for its
    noise. Raises MissingExtra without Opacus.
    """
    error = RELATIVE_ERROR * epsilon

    def spent(releases: Sequence[Release]) -> float:
        return epsilon_of(releases, delta, error=error)

    mu, mean_noise = _gaussian_mu(epsilon, delta), None
    before: list[Release] = []
    if center:
        # that of one release with all of epsilon
        mean_noise = _least(lambda noise: spent([(noise, 1.0, 1)]), epsilon, 1 / mu) / math.sqrt(center)
        before = [(mean_noise, 1.0, 1)]
    # of many draws of a small part (arXiv:1911.11607)
    guess = math.log1p((1 - center) * mu**2 / (sample_rate**2 * steps)) ** -0.5
    return _least(lambda noise: spent([*before, (noise, sample_rate, steps)]), epsilon, guess), mean_noise


def _gaussian_mu(epsilon: float, delta: float) -> float:
    """1 / noise multiplier of a single Gaussian release that is (ε, δ)-private (arXiv:1805.06530, theorem 8)."""
    normal = NormalDist().cdf
    low, high = 1e-6, 100.0
    for _ in range(60):
        mu = math.sqrt(low * high)
        lost = normal(mu / 2 - epsilon / mu) - math.exp(epsilon) * normal(-mu / 2 - epsilon / mu)
        low, high = (mu, high) if lost < delta else (low, mu)
    return low


def _least(spent: Callable[[float], float], epsilon: float, guess: float) -> float:
    """The least noise, to within TOLERANCE of epsilon, with which at most `epsilon` is spent.

    The logarithm of what is spent falls almost linearly with that of the noise: few guesses are needed, and each takes
    the accountant up to a second.
    """
    aim = math.log(1 - TOLERANCE / 2)
    # epsilon is about inversely proportional to the noise
    x, slope = math.log(guess), -1.0
    before: tuple[float, float] | None = None
    for _ in range(MAX_GUESSES):
        y = math.log(max(spent(math.exp(x)), LEAST) / epsilon)
        if aim - TOLERANCE / 2 <= y <= 0:
            return math.exp(x)
        if before is not None and abs(x - before[0]) > 1e-9:
            # one that is hardly a slope would lead anywhere
            slope = min(-0.3, max(-4.0, (y - before[1]) / (x - before[0])))
        before = (x, y)
        x += max(-MAX_MOVE, min(MAX_MOVE, (aim - y) / slope))
    raise ConfigError(
        f"no noise was found for privacy.epsilon {epsilon:g}: the last one tried is {math.exp(x):.3g}. Give another "
        "privacy.epsilon, privacy.epochs or batch_size."
    )
