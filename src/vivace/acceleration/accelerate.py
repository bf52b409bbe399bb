"""vivace.accelerate: from a bundle and images to a faster bundle with its receipt."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from vivace.acceleration.options import SearchKeywords, SearchOptions
from vivace.acceleration.receipt import markdown, receipt, samples
from vivace.acceleration.rows import Row, SearchResult
from vivace.acceleration.search import Search
from vivace.bundle import Bundle, BundleInfo, check_finite, derive_bundle, load_bundle
from vivace.cpus import limit_threads
from vivace.data.place import AnyData, Data
from vivace.errors import ConfigError, printable
from vivace.files import canonical_json, sha256_of, write_json
from vivace.metrics.summary import evaluate_probs
from vivace.outputs import check_file, check_folder, tell_replaced, write_sealed, writing
from vivace.systems import ENDS_GROUPS

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
    status: str
    """ "accelerated"; "nothing_faster": nothing was both faster and accurate enough; "noisy": the timing was too noisy
    to decide; "undecided": the time given was over before anything was decided."""
    reason: str
    """The status for people."""
    warnings: list[str]
    """What makes the result worth less than it seems: a model at chance level, more time taken than was given."""
    runtime: str
    precision: str
    batch_size: int
    latency_ms_before: float
    """p50 of the baseline: the faster of PyTorch eager and compiled, float32; NaN where it was not timed."""
    latency_ms_after: float
    speedup: float
    speedup_low: float
    """Lower bound of the 95 % interval; NaN without one."""
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
    data: AnyData,
    *,
    out: str | Path,
    options: SearchOptions | None = None,
    started: float | None = None,
    draw: Draw | None = None,
    on_message: Callable[[str], None] = lambda message: print(printable(message), file=sys.stderr),
    **keywords: Unpack[SearchKeywords],
) -> Acceleration:
    """Find the fastest form of a bundle that is proven to lose at most `max_drop` percentage points of accuracy.

    data: as for `train`, of the bundle's classes. out: folder of the new bundle, with receipt.json, receipt.md and
    samples.npz, the raw timings, beside the model, and pareto.png if `draw` makes one; what is built on the way lies
    in a folder beside it: from there a search that was stopped goes on, and there trained networks stay.
    options: what is asked for; or its fields as keywords, as in accelerate(..., max_drop=1.0, within="20m").
    started: of time.monotonic, from when on the time of `within` counts; None: from this call. The search ends by then:
    what does not fit is not started, what runs then is abandoned, and the verdict is what was measured until then.
    Raises ConfigError, BundleError, DataError, and VivaceError if the plain model can't be timed.
    """
    options = _asked(options, keywords)
    if not ENDS_GROUPS:
        raise ConfigError(
            "accelerate needs Linux or macOS: on this system processes can't be timed and ended as it does. "
            "Run it there (on Windows in WSL), or take vivace export."
        )
    bundle = _opened(bundle)
    out, told, replaced = _checked_out(Path(out), bundle)
    check_finite(bundle.build_model())
    limit_threads()
    facts = [bundle.info.metrics, [sha256_of(bundle.folder / name) for name in bundle.files]]
    key = hashlib.sha256(
        canonical_json([facts, [str(value) for value in dataclasses.astuple(Data.of(data))]])
    ).hexdigest()[:10]
    work = out.with_name(f".{out.name}.{key}.search")
    search = Search(bundle, data, work, options, started=started, on_message=on_message)
    result = search.run()
    late = search.budget.overrun()
    result.warnings += [] if late is None else [late]
    written = receipt(result, bundle, {"data": str(data), **options.to_dict()})
    if result.winner is None:
        with writing(told):
            write_sealed(told, written)
        on_message(f"the receipt: {told}")
        final = bundle
    else:
        with writing(out):
            final = _write(search, result, result.winner, written, out, draw)
        tell_replaced(out, replaced)
    _clear(work, on_message)
    if late is None:
        # what was written after the search counts too
        late = search.budget.overrun()
        result.warnings += [] if late is None else [late]
    return _acceleration(result, final, options, written)


def _asked(options: SearchOptions | None, keywords: Mapping[str, Any]) -> SearchOptions:
    """The options of a search. Raises ConfigError where both are given."""
    if options is None:
        return SearchOptions.from_dict(keywords)
    if keywords:
        raise ConfigError(
            f"options and keywords are both given: got {', '.join(keywords)} beside options. "
            "Put all of them into one SearchOptions."
        )
    if not isinstance(options, SearchOptions):
        raise ConfigError(f"options has the wrong type: got {type(options).__name__}. Give a SearchOptions.")
    return options


def _opened(bundle: Any) -> Bundle:
    """What is to be accelerated. Raises ConfigError for what is neither a bundle nor the name of its folder."""
    if isinstance(bundle, Bundle):
        return bundle
    if isinstance(bundle, str | os.PathLike):
        return load_bundle(Path(bundle))
    raise ConfigError(
        f"accelerate takes a bundle: got an object of type {type(bundle).__name__}. Give the folder that vivace train "
        "wrote, or for other networks of timm or of vivace their name and --weights on the command line."
    )


def _checked_out(out: Path, bundle: Bundle) -> tuple[Path, Path, str | None]:
    """The folder to write, the file of the report where nothing is found, and what the folder would replace.

    Raises OutputPathError where that would be anything that vivace did not write.
    """
    if out.name in ("", ".."):
        # names are made from its own
        out = out.resolve()
    replaced = check_folder(out, inputs=[bundle.folder])
    told = out.with_name(f"{out.name}-{RECEIPT}")
    check_file(told, inputs=[bundle.folder], option="the report's file")
    return out, told, replaced


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
    assert result.splits is not None
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


def _acceleration(result: SearchResult, final: Bundle, options: SearchOptions, written: dict[str, Any]) -> Acceleration:
    row = result.winner or result.baseline
    unknown = (math.nan, None, None)
    # nothing beside the model itself was found to be faster; without a baseline that is not known either
    ratio = unknown if row is None else (1.0, 1.0, 1.0) if row.ratio is None else row.ratio
    loss, unchanged = (None, math.nan) if row is None else (row.certified, 0.0)
    top1 = math.nan if written["top1_before"] is None else written["top1_before"]
    return Acceleration(
        bundle=final.folder,
        accelerated=result.winner is not None,
        status=result.verdict.value,
        reason=result.verdict.reason,
        warnings=list(result.warnings),
        runtime=final.info.runtime if row is None else row.candidate.runtime,
        precision=final.info.precision if row is None else row.candidate.precision,
        batch_size=options.images_per_call,
        latency_ms_before=_p50_ms(result.baseline),
        latency_ms_after=_p50_ms(row),
        speedup=ratio[0],
        speedup_low=math.nan if ratio[1] is None else ratio[1],
        top1_before=top1,
        top1_after=top1 if loss is None else loss.top1_after,
        drop=unchanged if loss is None else 100 * loss.drop,
        drop_bound=unchanged if loss is None else 100 * loss.bound,
        num_certify_images=result.num_certify,
        target_reached=None if options.target_speedup is None or row is None else ratio[0] >= options.target_speedup,
        receipt=written,
    )


def _p50_ms(row: Row | None) -> float:
    """NaN where a row was not timed."""
    return row.p50_ms if row is not None and math.isfinite(row.p50_ms) else math.nan
