"""What a bundle tells of its uncertainty: uncertainty.json, and features of known images (no torch here).

Read as anybody's word: its types, numbers and lengths are checked, whoever sealed the bundle.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vivace.config import check_choice, from_dict, to_dict
from vivace.errors import BundleError, ConfigError
from vivace.files import write_json
from vivace.plain import parse_json
from vivace.statistics.conformal import METHODS, SetRule, score_threshold
from vivace.statistics.detection import Detection
from vivace.statistics.selective import Level, certified_level
from vivace.uncertainty.scores import SCORES

__all__ = [
    "FEATURES",
    "UNCERTAINTY",
    "Calibrated",
    "GeneratedSet",
    "OodScore",
    "Uncertainty",
    "read_features",
    "write_uncertainty",
]

UNCERTAINTY, FEATURES = "uncertainty.json", "known_features.npy"
MAX_BYTES = 4 * 2**20
MAX_SCORES, MAX_LEVELS, MAX_FEATURES, MAX_WIDTH = 20_000, 1_000, 2_000, 65_536
# far above any score: a sum of probabilities with a penalty for each of a million ranks
MAX_SCORE = 1e9


@dataclass(frozen=True, kw_only=True)
class GeneratedSet:
    """How well a score tells images of a generated kind from the calibration images."""

    name: str
    result: Detection


@dataclass(frozen=True, kw_only=True)
class OodScore:
    """A score of images that are unlike the known ones."""

    name: str
    """A row of `SCORES`."""
    threshold: float
    """Above it an image counts as unlike: of calibration images 5 % are."""
    generated: tuple[GeneratedSet, ...] = ()

    @property
    def auroc(self) -> float:
        """The mean over the generated sets; 0.5 without any."""
        return float(np.mean([one.result.auroc for one in self.generated])) if self.generated else 0.5


@dataclass(frozen=True, kw_only=True)
class Uncertainty:
    """The thresholds of a bundle, and what they were calibrated on."""

    variant: str
    """The runtime and precision whose answers were calibrated, such as "eager fp32"."""
    images: str
    """What the calibration images are called."""
    num_choosing: int
    """Images that chose the rule and the levels, which are none of the calibration images."""
    also_chose: tuple[str, ...] = ()
    """What else these images chose before, such as "the temperature": for new images the coverage may then be a little
    lower than for these."""
    rule: SetRule
    scores: tuple[float, ...]
    """Of the true classes of the calibration images by the rule, ascending."""
    levels: tuple[Level, ...]
    """From the strictest to the one that answers all."""
    ood: tuple[OodScore, ...] = ()
    """The best one by the generated sets first."""
    schema_version: int = 1

    @property
    def num_images(self) -> int:
        """Number of calibration images."""
        return len(self.scores)

    def set_threshold(self, coverage: float) -> float:
        """The score up to which a class is in the set; infinite: all classes are."""
        return score_threshold(np.array(self.scores), coverage)

    def answered_from(self, risk: float) -> float | None:
        """The probability of the likeliest class from which on an image is answered; None: no promise is possible."""
        level = certified_level(self.levels, risk)
        return None if level is None else level.confidence

    @classmethod
    def read(cls, path: Path) -> Uncertainty:
        """Read a file of `write_uncertainty`. Raises BundleError if it holds anything else."""
        try:
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
            if len(data) > MAX_BYTES:
                raise BundleError(f"{path} has over {MAX_BYTES:,} bytes, too many. Make the bundle again.")
            found: Uncertainty = from_dict(cls, parse_json(data, str(path)))
            _check(found)
        except OSError as error:
            raise BundleError(f"{path} can't be read ({error.strerror}). Restore it from a copy.") from None
        except ConfigError as error:
            raise BundleError(f"{path} is wrong: {error} Make the bundle again.") from None
        return found


@dataclass(frozen=True)
class Calibrated:
    """The thresholds, and what goes beside them into a bundle."""

    found: Uncertainty
    features_MD: np.ndarray | None = None
    """Features of known images, of length 1; None where the neighbours are no score."""


def write_uncertainty(folder: Path, calibrated: Calibrated) -> None:
    """Write both files into the folder of a bundle that is being made; features are kept as float16."""
    _check(calibrated.found)
    write_json(folder / UNCERTAINTY, to_dict(calibrated.found))
    if calibrated.features_MD is not None:
        np.save(folder / FEATURES, calibrated.features_MD.astype(np.float16), allow_pickle=False)


def read_features(path: Path) -> np.ndarray:
    """float32 [M, D] of known images. Raises BundleError for anything else: another type or size, NaN, a pickle."""
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            if version != (1, 0):
                raise ValueError(f"version {version}")
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
            sizes = len(shape) == 2 and 0 < shape[0] <= MAX_FEATURES and 0 < shape[1] <= MAX_WIDTH
            if fortran or dtype != np.float16 or not sizes:
                raise ValueError(f"{dtype} {list(shape)}")
            data = file.read(2 * math.prod(shape) + 1)
        features = np.frombuffer(data, np.float16).reshape(shape).astype(np.float32)
    except (OSError, ValueError, SyntaxError, TypeError) as error:
        raise BundleError(f"{path} does not hold features of images ({error}). Make the bundle again.") from None
    if not np.isfinite(features).all():
        raise BundleError(f"{path} holds NaN or Inf. Make the bundle again.")
    return features


def _check(found: Uncertainty) -> None:
    """Raises ConfigError unless the numbers fit each other."""
    _demand(found.schema_version == 1, f"schema version {found.schema_version}", "1; a newer vivace wrote it: upgrade")
    check_choice("rule.method", found.rule.method, METHODS)
    _demand(0 <= found.rule.penalty <= 1000, f"rule.penalty {found.rule.penalty}", "0 to 1,000")
    _demand(0 <= found.rule.free_ranks <= 10**6, f"rule.free_ranks {found.rule.free_ranks}", "0 to a million")
    for text in (found.variant, found.images, *found.also_chose):
        _demand(text.isprintable() and len(text) <= 200, f"the text {text!r}", "a line")
    scores = np.array(found.scores)
    _demand(0 < len(scores) <= MAX_SCORES, f"{len(scores):,} scores", f"1 to {MAX_SCORES:,}")
    _demand(bool((np.diff(scores) >= 0).all()), "scores out of order", "ascending ones")
    _demand(bool((scores >= -1e-3).all() and (scores <= MAX_SCORE).all()), "scores out of range", "0 or more")
    _demand(0 <= found.num_choosing <= 10**9, f"num_choosing {found.num_choosing}", "0 or more")
    _check_levels(found.levels, len(scores))
    names = [score.name for score in found.ood]
    _demand(len(set(names)) == len(names) and set(names) <= set(SCORES), f"ood {names}", f"some of {', '.join(SCORES)}")
    for score in found.ood:
        _demand(len(score.generated) <= 100, f"{len(score.generated)} generated sets", "100 at most")
        for one in score.generated:
            _demand(one.name.isprintable() and len(one.name) <= 200, f"generated {one.name!r}", "a line of text")
            rates = [value for name, value in dataclasses.asdict(one.result).items() if not name.startswith("num_")]
            _demand(all(0 <= value <= 1 for value in rates), f"rates {rates}", "0 to 1")


def _check_levels(levels: tuple[Level, ...], num_images: int) -> None:
    _demand(0 < len(levels) <= MAX_LEVELS, f"{len(levels)} levels", f"1 to {MAX_LEVELS}")
    confidences = np.array([level.confidence for level in levels])
    in_order = bool((np.diff(confidences) < 0).all())
    _demand(in_order and confidences[-1] == 0 and confidences[0] <= 1.01, "levels out of order", "1 down to 0")
    for level in levels:
        hoped = level.expected_answered, level.expected_errors
        counts = 0 <= level.errors <= level.answered <= num_images and 0 <= hoped[1] <= hoped[0] <= 10**9
        _demand(counts, f"level {to_dict(level)}", "errors among what is answered")


def _demand(holds: bool, got: Any, expected: str) -> None:
    if not holds:
        raise ConfigError(f"got {str(got)[:200]}, expected {expected}.")
