"""vivace.predict_to: a bundle and any number of images → files, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from vivace.batch.cluster.choice import engine_for, predictor_beside
from vivace.batch.outputs import Outputs
from vivace.batch.run import Streamed, predict_stream
from vivace.bundle import Bundle
from vivace.errors import ConfigError
from vivace.predictor import Predictor

__all__ = ["predict_to"]


def predict_to(
    bundle: Bundle | Predictor | str | Path,
    paths: str | Path | Iterable[str | Path],
    out: str | Path | None = None,
    *,
    overwrite: bool = False,
    resume: bool = False,
    sort_into: str | Path | None = None,
    embeddings: str | Path | None = None,
    topk: int = 5,
    batch_size: int = 64,
    threads: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    coverage: float | None = None,
    abstain: float | None = None,
    progress: Callable[[int, int | None], None] | None = None,
    decode: str = "fine",
    engine: str = "local",
    workers: int | None = None,
    ray_address: str | None = None,
) -> Streamed:
    """Classify any number of images, and write what came of each: nothing of it is held.

    paths: files, folders, globs, tars, parquet files that hold images, URLs of fsspec, or "-" for a list on stdin. out:
    a table, .csv, .jsonl or .parquet, a row for each image in the order of the paths, also of one that can't be used.
    overwrite: replace it if it is there. resume: go on where the same call was killed; the files are those of a run
    that nothing stopped, to the last byte. sort_into: a folder for a link to each image in a folder of its class.
    embeddings: a .parquet for the features of each image. decode: as for `Predictor`; what was decoded coarsely has a
    column that says so. The others are those of `vivace.predict`. progress: called
    with the number of images that are done, and about that of all, None where it is unknown. engine: "local", this
    process, or "ray", `workers` processes of a Ray cluster, each with `threads` processors; None: as many as there is
    room for, with four. ray_address: HOST:PORT of a cluster that runs; None: the variable RAY_ADDRESS, or a cluster of
    this machine alone, started for the call.
    Raises ConfigError without an output, and what `vivace.predict` raises; OutputPathError for an output that can't be
    written, is there, or can't be resumed.
    """
    out, sort_into, embeddings = (None if given is None else Path(given) for given in (out, sort_into, embeddings))
    outputs = Outputs(out, overwrite=overwrite, sort_into=sort_into, embeddings=embeddings)
    if outputs.anchor is None:
        raise ConfigError("predict_to needs an output: got none. Give `out`, `embeddings` or `sort_into`.")
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    outputs.check(given, resuming=resume)
    with engine_for(
        engine,
        bundle,
        workers=workers,
        ray_address=ray_address,
        threads=threads,
        device=device,
        precision=precision,
    ) as found:
        predictor = predictor_beside(
            found,
            bundle,
            device,
            batch_size,
            precision,
            threads,
            coverage=coverage,
            abstain=abstain,
            decode=decode,
        )
        outputs.inputs.append(predictor.bundle.folder)
        return predict_stream(
            predictor, given, topk=topk, outputs=outputs, resume=resume, progress=progress, engine=found
        )
