"""vivace.accelerate: from a bundle and images to a faster bundle with its receipt."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vivace.acceleration.receipt import markdown, receipt, samples
from vivace.acceleration.rows import Row, SearchResult
from vivace.acceleration.search import Search
from vivace.bundle import Bundle, BundleInfo, check_finite, derive_bundle, load_bundle
from vivace.cpus import limit_threads
from vivace.errors import ConfigError
from vivace.files import canonical_json, sha256_of, write_json
from vivace.metrics.summary import evaluate_probs

__all__ = ["Acceleration", "accelerate"]

RECEIPT = "receipt.json"
# a receipt → a picture at a path
Draw = Callable[[dict[str, Any], Path], None]


@dataclass(frozen=True, kw_only=True)
class Acceleration:
    """What a search gave. Accuracies are shares, drops percentage points, times ms of one call."""

    bundle: Path
    """The new bundle, or the one that was given where nothing faster was proven."""
    accelerated: bool
    runtime: str
    precision: str
    batch_size: int
    latency_ms_before: float
    """p50 of the baseline: the faster of PyTorch eager and compiled, float32."""
    latency_ms_after: float
    speedup: float
    speedup_low: float
    """Lower bound of the 95 % interval."""
    top1_before: float
    top1_after: float
    drop: float
    drop_bound: float
    """One-sided, 95 %; more where several networks were judged."""
    num_certify_images: int
    target_reached: bool | None
    """None where no speed-up was asked for."""
    receipt: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The single figures, for JSON; the receipt lies in the bundle."""
        values = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "receipt"
        }
        return {**values, "bundle": str(self.bundle)}


def accelerate(
    bundle: Bundle | str | Path,
    data: str | Path,
    *,
    out: str | Path,
    max_drop: float = 0.5,
    objective: str = "latency",
    batch_size: int | None = None,
    threads: int | None = None,
    within_seconds: float | None = None,
    target_speedup: float | None = None,
    train: str = "auto",
    cache_dir: str | Path | None = None,
    on_bad_image: str = "auto",
    draw: Draw | None = None,
    on_message: Callable[[str], None] = lambda message: print(message, file=sys.stderr),
) -> Acceleration:
    """Find the fastest form of a bundle that is proven to lose at most `max_drop` percentage points of accuracy.

    data: as for `train`, of the bundle's classes. out: folder of the new bundle, with receipt.json, receipt.md and
    samples.npz, the raw timings, beside the model, and pareto.png if `draw` makes one; what is built on the way lies
    in a folder beside it: from there a search that was stopped goes on, and there trained networks stay.
    objective: "latency" (batches of 1), "throughput" (of 32) or "size"; batch_size: another batch. threads: processors
    that each form may use.
    within_seconds: no new form is built once a third of it is gone.
    target_speedup: reported as reached or not. train: whether smaller networks, pruned ones and those of the zoo, are
    trained to take the model's place, "on", "off", or "auto": where `target_speedup` is not reached without.
    on_bad_image: as for `train`.
    Raises ConfigError, BundleError, DataError, and VivaceError if the plain model can't be timed.
    """
    bundle = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
    out = Path(out)
    if out.exists() and not (out / "bundle.json").is_file() and any(out.iterdir()):
        raise ConfigError(f"--out holds something else than a bundle: {out}. Give another folder.")
    if out.resolve() == bundle.folder.resolve():
        raise ConfigError(f"--out is the bundle itself: {out}. Give another folder.")
    check_finite(bundle.build_model())
    limit_threads()
    if batch_size is None:
        batch_size = 32 if objective == "throughput" else 1
    facts = [bundle.info.metrics, [sha256_of(bundle.folder / name) for name in bundle.files]]
    key = hashlib.sha256(canonical_json([facts, str(data)])).hexdigest()[:10]
    work = out.with_name(f".{out.name}.{key}.search")
    search = Search(
        bundle,
        data,
        work,
        max_drop=max_drop / 100,
        objective=objective,
        batch_size=batch_size,
        threads=threads,
        within_seconds=within_seconds,
        target_speedup=target_speedup,
        train=train,
        cache_dir=Path(cache_dir) if cache_dir is not None else None,
        on_bad_image=on_bad_image,
        on_message=on_message,
    )
    result = search.run()
    asked = {
        "data": str(data),
        "max_drop": max_drop,
        "objective": objective,
        "batch_size": batch_size,
        "threads": threads,
        "within_seconds": within_seconds,
        "target_speedup": target_speedup,
        "train": train,
    }
    written = receipt(result, bundle, asked)
    if result.winner is None:
        out.parent.mkdir(parents=True, exist_ok=True)
        path = out.with_name(f"{out.name}-{RECEIPT}")
        write_json(path, written)
        on_message(f"the receipt: {path}")
        final = bundle
    else:
        final = _write(search, result, result.winner, written, out, draw)
    _clear(work, on_message)
    return _acceleration(result, final, batch_size, target_speedup, written)


def _clear(work: Path, on_message: Callable[[str], None]) -> None:
    """Remove what was built on the way, but for trained networks: another search in as much time takes them."""
    trained = work / "networks" / "runs"
    for path in (*work.glob("*"), *work.glob("networks/*")):
        if path not in (trained, trained.parent):
            shutil.rmtree(path, ignore_errors=True)
    if not trained.is_dir():
        shutil.rmtree(work, ignore_errors=True)
    else:
        on_message(f"kept for another search of this bundle, as for another budget: {trained}")


def _write(
    search: Search, result: SearchResult, winner: Row, written: dict[str, Any], out: Path, draw: Draw | None
) -> Bundle:
    built = search.bundle_of(winner)
    assert winner.parity is not None
    metrics = evaluate_probs(*search.certify_probs(winner), built.classes).summary()
    info = dataclasses.replace(
        built.info, parity=winner.parity.to_dict(), metrics={result.splits.certify.name: metrics}
    )

    def add(folder: Path) -> BundleInfo:
        for name in built.files:
            if not (folder / name).exists():
                shutil.copyfile(built.folder / name, folder / name)
        write_json(folder / RECEIPT, written)
        raw: dict[str, Any] = samples(result)
        np.savez_compressed(folder / "samples.npz", **raw)
        (folder / "receipt.md").write_text(markdown(written), encoding="utf-8")
        if draw is not None:
            draw(written, folder / "pareto.png")
        return info

    return derive_bundle(built, out, add)


def _acceleration(
    result: SearchResult, final: Bundle, batch_size: int, target: float | None, written: dict[str, Any]
) -> Acceleration:
    row = result.winner or result.baseline
    ratio = row.ratio or (1.0, 1.0, 1.0)
    loss = row.certified
    top1 = written["top1_before"]
    return Acceleration(
        bundle=final.folder,
        accelerated=result.winner is not None,
        runtime=row.candidate.runtime,
        precision=row.candidate.precision,
        batch_size=batch_size,
        latency_ms_before=result.baseline.p50_ms,
        latency_ms_after=row.p50_ms,
        speedup=ratio[0],
        speedup_low=ratio[1],
        top1_before=top1,
        top1_after=top1 if loss is None else loss.top1_after,
        drop=0.0 if loss is None else 100 * loss.drop,
        drop_bound=0.0 if loss is None else 100 * loss.bound,
        num_certify_images=result.num_certify,
        target_reached=None if target is None else ratio[0] >= target,
        receipt=written,
    )
