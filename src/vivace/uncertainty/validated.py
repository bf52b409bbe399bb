"""What a bundle tells of its answers to validation images, for live answers to be compared with (no torch here).

validation.json holds how often each class was predicted, and a histogram of confidences. It is read as anybody's word.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vivace.config import from_dict, to_dict
from vivace.errors import BundleError, ConfigError
from vivace.files import write_json
from vivace.plain import parse_json

__all__ = ["EDGES", "VALIDATED", "Validated", "write_validated"]

VALIDATED = "validation.json"
# of confidences: fixed, as bounds on how often they are exceeded hold for edges that no image chose
EDGES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
MAX_BYTES, MAX_CLASSES, MAX_EDGES, MAX_IMAGES = 4 * 2**20, 100_000, 1_000, 10**9


@dataclass(frozen=True, kw_only=True)
class Validated:
    """The classes that were predicted for validation images, and the confidences: the probabilities of these."""

    variant: str
    """The runtime and precision that answered, such as "eager fp32"."""
    images: str
    """What the images are called."""
    class_counts: tuple[int, ...]
    """Images for which each class was the likeliest."""
    edges: tuple[float, ...]
    """Of confidences, ascending, in (0, 1)."""
    confidence_counts: tuple[int, ...]
    """Images below the first edge, between the first and second …, from the last on."""
    mean_confidence: float
    schema_version: int = 1

    @property
    def num_images(self) -> int:
        return sum(self.class_counts)

    @property
    def below_counts(self) -> tuple[int, ...]:
        """Images whose confidence is below each edge."""
        return tuple(int(count) for count in np.cumsum(self.confidence_counts[:-1]))

    @classmethod
    def of(cls, probs_NK: np.ndarray, *, variant: str, images: str) -> Validated:
        """From the probabilities of at least one image."""
        confidence_N = probs_NK.max(1).astype(np.float64)
        bins_N = np.searchsorted(EDGES, confidence_N, side="right")
        return cls(
            variant=variant,
            images=images,
            class_counts=tuple(np.bincount(probs_NK.argmax(1), minlength=probs_NK.shape[1]).tolist()),
            edges=EDGES,
            confidence_counts=tuple(np.bincount(bins_N, minlength=len(EDGES) + 1).tolist()),
            mean_confidence=float(min(1.0, confidence_N.mean())),
        )

    @classmethod
    def read(cls, path: Path, num_classes: int) -> Validated:
        """Read a file of `write_validated`. Raises BundleError if it holds anything else, or another number of
        classes."""
        try:
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
            if len(data) > MAX_BYTES:
                raise BundleError(f"{path} has over {MAX_BYTES:,} bytes, too many. Make the bundle again.")
            found: Validated = from_dict(cls, parse_json(data, str(path)))
            _check(found, num_classes)
        except OSError as error:
            raise BundleError(f"{path} can't be read ({error.strerror}). Restore it from a copy.") from None
        except ConfigError as error:
            raise BundleError(f"{path} is wrong: {error} Make the bundle again.") from None
        return found


def write_validated(folder: Path, found: Validated) -> None:
    """Write the file into the folder of a bundle that is being made."""
    _check(found, len(found.class_counts))
    write_json(folder / VALIDATED, to_dict(found))


def _check(found: Validated, num_classes: int) -> None:
    """Raises ConfigError unless the numbers fit each other."""
    if found.schema_version != 1:
        raise ConfigError(f"got schema version {found.schema_version}, expected 1; a newer vivace wrote it: upgrade.")
    for text in (found.variant, found.images):
        _demand(text.isprintable() and len(text) <= 200, "text", text)
    counts, bins, edges = found.class_counts, found.confidence_counts, found.edges
    _demand(len(counts) == num_classes <= MAX_CLASSES, f"{num_classes} class_counts", len(counts))
    _demand(all(count >= 0 for count in (*counts, *bins)), "counts from 0", min((*counts, *bins), default=None))
    _demand(0 < sum(counts) <= MAX_IMAGES, "images from 1", sum(counts))
    ascending = all(low < high for low, high in zip((0.0, *edges), (*edges, 1.0), strict=True))
    _demand(0 < len(edges) <= MAX_EDGES and ascending, "ascending edges between 0 and 1", edges)
    _demand(len(bins) == len(edges) + 1, f"{len(edges) + 1} confidence_counts", len(bins))
    _demand(sum(bins) == sum(counts), f"confidence_counts of {sum(counts)} images", sum(bins))
    mean = found.mean_confidence
    _demand(math.isfinite(mean) and 0 <= mean <= 1, "mean_confidence from 0 to 1", mean)


def _demand(holds: bool, expected: str, got: object) -> None:
    if not holds:
        raise ConfigError(f"got {str(got)[:200]!r}, expected {expected}.")
