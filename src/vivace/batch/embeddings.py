"""Features of images as a parquet file: what the network's last layer is given, for search and clustering."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vivace.batch.names import written_name
from vivace.batch.parquet import import_pyarrow
from vivace.batch.pipeline import Batch
from vivace.batch.publish import publish
from vivace.batch.unfinished import Unfinished
from vivace.errors import ConfigError
from vivace.notices import warn
from vivace.predictor import Predictor
from vivace.runtimes.table import REFERENCE

__all__ = ["Embeddings", "embedder_of"]

# of a row group
GROUP_BYTES = 2**25


def embedder_of(predictor: Predictor) -> Predictor:
    """The predictor itself where its runtime gives features, or one of the same network that does.

    Raises ConfigError where there is none: a bundle without its network's code, or a network without such a layer.
    """
    size, channels = predictor.bundle.preprocess.size, predictor.bundle.preprocess.channels
    black_NHWC = np.zeros((1, size, size, channels), predictor.bundle.preprocess.dtype)
    if predictor.answers(black_NHWC, everything=True).features_ND is not None:
        return predictor
    if not predictor.bundle.has_code:
        raise ConfigError(
            f"`embeddings` needs the network itself, and {predictor.bundle.folder} holds its graph alone: got no "
            "features. Leave it out."
        )
    found = Predictor(
        predictor.bundle,
        runtime=REFERENCE,
        device=predictor.device_name,
        batch_size=predictor.batch_size,
        threads=predictor.threads,
    )
    if found.answers(black_NHWC, everything=True).features_ND is None:
        raise ConfigError(
            f"`embeddings` needs features before the last layer: got {predictor.bundle.info.architecture.name}, which "
            "has no such layer. Leave it out."
        )
    if predictor.runtime != found.runtime:
        warn(f"features come from the network by {found.runtime}, as {predictor.runtime} gives probabilities alone")
    return found


class Embeddings:
    """Features as they come, and the file at the end: columns path and embedding, a row for each classified image."""

    def __init__(self, out: Path, unfinished: Unfinished) -> None:
        self.out, self._unfinished = out, unfinished
        if not unfinished.resumed:
            unfinished.append("names", b"")
            unfinished.append("features", b"")

    def write(self, batch: Batch) -> None:
        """Add the features of a batch."""
        for place, vector_D in batch.features.items():
            self._unfinished.append("names", json.dumps(written_name(batch.items[place].name)).encode() + b"\n")
            self._unfinished.append("features", np.ascontiguousarray(vector_D, np.float32).tobytes())

    def finish(self) -> None:
        """Give the file its name. Raises OutputPathError if another file has it meanwhile."""
        names, features = self._unfinished.path("names"), self._unfinished.path("features")
        publish(names, self.out, overwrite=False, make=_writer(names, features), option="`embeddings`")


def _writer(names: Path, features: Path) -> Callable[[Any], None]:
    def write(file: Any) -> None:
        pyarrow = import_pyarrow()
        with names.open("rb") as lines:
            count = sum(1 for _ in lines)
        dim = features.stat().st_size // 4 // max(1, count)
        schema = pyarrow.schema([("path", pyarrow.string()), ("embedding", pyarrow.list_(pyarrow.float32(), dim))])
        with pyarrow.parquet.ParquetWriter(file, schema) as writer, features.open("rb") as vectors:
            for part in _parts(names, max(1, GROUP_BYTES // max(4, 4 * dim))):
                values = np.frombuffer(vectors.read(4 * dim * len(part)), np.float32)
                column = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(values), dim)
                writer.write_table(pyarrow.table([pyarrow.array(part, pyarrow.string()), column], schema))

    return write


def _parts(names: Path, size: int) -> Iterator[list[str]]:
    part: list[str] = []
    with names.open("rb") as lines:
        for line in lines:
            part.append(json.loads(line))
            if len(part) == size:
                yield part
                part = []
    if part:
        yield part
