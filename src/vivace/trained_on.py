"""Records which images a network was trained on, as short digests of their contents in its bundle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vivace.errors import BundleError

__all__ = ["TRAINED_ON", "TrainedOn", "write_trained_on"]

TRAINED_ON = "trained_on.digests"
# of each digest; with 5 bytes and a million images the rate of false matches is one in a million
DIGEST_BYTES = 5
# 80 MB; more images are not recorded
MAX_IMAGES = 2**24


@dataclass(frozen=True)
class TrainedOn:
    """The images that a network was trained on."""

    numbers_n: np.ndarray
    """The first bytes of their digests, uint64, sorted."""

    def __len__(self) -> int:
        return len(self.numbers_n)

    def among(self, digests_N: np.ndarray) -> np.ndarray:
        """bool [N]: whether the images with these digests are among them. digests_N: hexadecimal, as in the cache."""
        return np.isin(_numbers(digests_N), self.numbers_n)

    @property
    def digests_n(self) -> np.ndarray:
        """The first bytes of their digests as the cache has digests, hexadecimal."""
        rows = self.numbers_n.astype(">u8").view(np.uint8).reshape(-1, 8)[:, -DIGEST_BYTES:]
        return np.array([row.tobytes().hex().encode() for row in rows], dtype=f"S{2 * DIGEST_BYTES}")

    @classmethod
    def read(cls, path: Path) -> TrainedOn:
        """Read a file of `write_trained_on`. Raises BundleError if it holds anything else."""
        try:
            size = path.stat().st_size
            if size % DIGEST_BYTES or size > DIGEST_BYTES * MAX_IMAGES:
                raise BundleError(
                    f"the bundle is damaged: {path} has {size:,} bytes, which is not a multiple of {DIGEST_BYTES} or "
                    "too many. Make the bundle again."
                )
            rows = np.frombuffer(path.read_bytes(), dtype=np.uint8).reshape(-1, DIGEST_BYTES)
        except (OSError, ValueError) as error:
            raise BundleError(f"the bundle can't be read: {path} ({error}). Restore it from a copy.") from None
        return cls(np.unique(_joined(rows)))


def write_trained_on(path: Path, digests_N: np.ndarray) -> None:
    """Write the digests of the images that a network was trained on: 5 bytes each, sorted.

    digests_N: hexadecimal, as in the cache. Writes nothing for no images, or for more than MAX_IMAGES.
    """
    numbers = np.unique(_numbers(digests_N))
    if 0 < len(numbers) <= MAX_IMAGES:
        path.write_bytes(numbers.astype(">u8").view(np.uint8).reshape(-1, 8)[:, -DIGEST_BYTES:].tobytes())


def _numbers(digests_N: np.ndarray) -> np.ndarray:
    """uint64 [N]: the first bytes of hexadecimal digests, dtype S."""
    shortened = np.asarray(digests_N).astype(f"S{2 * DIGEST_BYTES}")
    rows = np.frombuffer(bytes.fromhex(shortened.tobytes().decode("ascii")), dtype=np.uint8)
    return _joined(rows.reshape(-1, DIGEST_BYTES))


def _joined(rows: np.ndarray) -> np.ndarray:
    padded = np.zeros((len(rows), 8), dtype=np.uint8)
    padded[:, -DIGEST_BYTES:] = rows
    numbers: np.ndarray = padded.view(">u8").astype(np.uint64).reshape(-1)
    return numbers
