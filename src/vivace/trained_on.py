"""Which images a network was trained on: digests of their contents, small enough to lie in its bundle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vivace.errors import BundleError

__all__ = ["TRAINED_ON", "TrainedOn", "write_trained_on"]

TRAINED_ON = "trained_on.digests"
# of each image's digest: 5 bytes take a stranger for one of a million images once in a million times
DIGEST_BYTES = 5
# 80 MB. More images than that are not recorded
MAX_IMAGES = 2**24


@dataclass(frozen=True)
class TrainedOn:
    """The images that a network was trained on."""

    numbers_n: np.ndarray
    """uint64, sorted: the first bytes of their digests."""

    def __len__(self) -> int:
        return len(self.numbers_n)

    def among(self, digests_N: np.ndarray) -> np.ndarray:
        """bool [N]: whether the images with these digests (hexadecimal, as the cache has them) are among them."""
        return np.isin(_numbers(digests_N), self.numbers_n)

    @classmethod
    def read(cls, path: Path) -> TrainedOn:
        """What `write_trained_on` wrote. Raises BundleError if the file holds anything else."""
        try:
            size = path.stat().st_size
            if size % DIGEST_BYTES or size > DIGEST_BYTES * MAX_IMAGES:
                raise BundleError(
                    f"the bundle is wrong: {path} holds {size:,} bytes, which are no {DIGEST_BYTES} for each image. "
                    "Make it again."
                )
            rows = np.frombuffer(path.read_bytes(), dtype=np.uint8).reshape(-1, DIGEST_BYTES)
        except (OSError, ValueError) as error:
            raise BundleError(f"the bundle can't be read: {path} ({error}). Restore it from a copy.") from None
        return cls(np.unique(_joined(rows)))


def write_trained_on(path: Path, digests_N: np.ndarray) -> None:
    """Write the digests of the images that a network was trained on: 5 bytes for each, sorted."""
    numbers = np.unique(_numbers(digests_N))
    if 0 < len(numbers) <= MAX_IMAGES:
        path.write_bytes(numbers.astype(">u8").view(np.uint8).reshape(-1, 8)[:, -DIGEST_BYTES:].tobytes())


def _numbers(digests_N: np.ndarray) -> np.ndarray:
    """uint64 [N]: the first bytes of digests in hexadecimal, bytes of dtype S."""
    shortened = np.asarray(digests_N).astype(f"S{2 * DIGEST_BYTES}")
    rows = np.frombuffer(bytes.fromhex(shortened.tobytes().decode("ascii")), dtype=np.uint8)
    return _joined(rows.reshape(-1, DIGEST_BYTES))


def _joined(rows: np.ndarray) -> np.ndarray:
    padded = np.zeros((len(rows), 8), dtype=np.uint8)
    padded[:, -DIGEST_BYTES:] = rows
    numbers: np.ndarray = padded.view(">u8").astype(np.uint64).reshape(-1)
    return numbers
