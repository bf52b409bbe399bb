"""vivace.accelerate: from a bundle and images to a faster bundle, with a report."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Unpack, overload

import numpy as np
from torch import nn

from vivace.acceleration.budget import now
from vivace.acceleration.modules.accelerate import accelerate_module
from vivace.acceleration.modules.options import ModuleKeywords, ModuleOptions
from vivace.acceleration.modules.result import ModuleAcceleration
from vivace.acceleration.options import SearchKeywords, SearchOptions
from vivace.acceleration.outcome import Acceleration, acceleration_of
from vivace.acceleration.page import PAGE, measured_on, write_page
from vivace.acceleration.receipt import markdown, receipt, samples
from vivace.acceleration.results import Result, SearchResult
from vivace.acceleration.search import Search
from vivace.bundle import Bundle, BundleInfo, derive_bundle, load_bundle
from vivace.cpus import limit_threads
from vivace.data.caching.held import hold
from vivace.data.caching.signature import signature_of
from vivace.data.place import AnyData, Data
from vivace.data.sources import open_source
from vivace.data.splits import DataSource
from vivace.errors import BundleError, ConfigError, printable
from vivace.files import canonical_json, sha256_of, write_json
from vivace.metrics.multilabel import evaluate_sets
from vivace.metrics.summary import evaluate_probs
from vivace.outputs import check_file, check_folder, warn_of_replaced, write_sealed, writing
from vivace.owned import BUNDLE
from vivace.systems import ENDS_GROUPS
from vivace.uncertainty.record import FEATURES, UNCERTAINTY, write_uncertainty
from vivace.uncertainty.validated import Validated, write_validated

__all__ = ["Acceleration", "accelerate", "default_out"]

RECEIPT = "receipt.json"
# draws a report to an image file
Draw = Callable[[dict[str, Any], Path], None]


def _print(message: str) -> None:
    print(printable(message), file=sys.stderr)


@overload
def accelerate(
    bundle: Bundle | str | Path,
    data: AnyData,
    *,
    out: str | Path | None = None,
    options: SearchOptions | None = None,
    started: float | None = None,
    draw: Draw | None = None,
    on_message: Callable[[str], None] = ...,
    **keywords: Unpack[SearchKeywords],
) -> Acceleration: ...


@overload
def accelerate(
    bundle: nn.Module,
    data: Iterable[Any],
    *,
    on_message: Callable[[str], None] = ...,
    **keywords: Unpack[ModuleKeywords],
) -> ModuleAcceleration: ...


def accelerate(
    bundle: Bundle | str | Path | nn.Module,
    data: Any,
    *,
    out: str | Path | None = None,
    options: SearchOptions | None = None,
    started: float | None = None,
    draw: Draw | None = None,
    on_message: Callable[[str], None] = _print,
    **keywords: Any,
) -> Acceleration | ModuleAcceleration:
    """Find the fastest variant of a bundle, or of any torch.nn.Module, whose accuracy drop is proven to be small.

    At most `max_drop` percentage points, with 95 % confidence. For a module see below; for a bundle:

    data: as for `train`, with the bundle's classes. out: folder of the new bundle, which also holds the report
    (receipt.json, receipt.md, report.html), the raw timings (samples.npz), and pareto.png if `draw` makes one; None:
    the folder that was given, with -accelerated appended to its name. Intermediate files
    are in a folder beside it, from which an interrupted search continues; trained networks stay there.
    options: a `SearchOptions`, or its fields as keywords: accelerate(..., max_drop=1.0, within="20m").
    started: time.monotonic() from which `within` counts; None: from this call. When that time is over, the search ends
    with what was measured by then: work that would not fit is not started, work that is running is abandoned.
    Of a network of the user's own the baseline is its float32 graph, from which its variants are made.
    Raises ConfigError, BundleError, DataError, and VivaceError if the plain model can't be timed.

    For a module, data are any iterable of (inputs, targets) batches, such as a DataLoader; inputs are a tensor, a
    tuple of positional arguments, or a dict of keyword arguments. The result is a `ModuleAcceleration`: its `module` is
    called like the one that was given, which stays as it is. It takes these keywords, and none of those above:

    metric: "top1", "agreement" with the original, or a function of (outputs, targets) that returns a score in [0, 1]
    for each sample; without targets in the data it gets the original's outputs for them. example: the inputs of a call
    as it will be made, which is timed; by default the first batch. calibration: batches that ranges for int8 are
    measured on. train: batches to train smaller networks on, to answer like a module that classifies images, with none
    of the samples of `data`. max_drop: of the mean score. thorough: whether to try what can hardly be faster too.
    within: "10m" by default; what has begun is not ended. Raises ConfigError, DataError, and ModelError if the
    module itself fails on the data.
    """
    if isinstance(bundle, nn.Module):
        for_bundles = {"out": out, "options": options, "started": started, "draw": draw}
        given = {name: value for name, value in for_bundles.items() if value is not None}
        return accelerate_module(bundle, data, ModuleOptions.from_dict(keywords | given), on_message=on_message)
    return _accelerate_bundle(
        bundle, data, out, _asked(options, keywords), started=started, draw=draw, on_message=on_message
    )


def _accelerate_bundle(
    bundle: Bundle | str | Path,
    data: AnyData,
    out: str | Path | None,
    options: SearchOptions,
    *,
    started: float | None,
    draw: Draw | None,
    on_message: Callable[[str], None],
) -> Acceleration:
    if not ENDS_GROUPS:
        raise ConfigError(
            "accelerate needs Linux or macOS: on this system it can't end the processes that it times. "
            "Run it there (on Windows in WSL), or use vivace export."
        )
    given, bundle = bundle, _opened(bundle)
    if out is None:
        out = default_out(given.folder if isinstance(given, Bundle) else Path(given))
    out, report, replaced = _checked_out(Path(out), bundle)
    if bundle.info.architecture.is_own:
        bundle = _as_graph(bundle)
    bundle.check_finite()
    limit_threads()
    # opening an object's images counts too
    started = now() if started is None else started
    name, data, told = str(Data.of(data)), *_identified(data, bundle, options)
    facts = [bundle.info.metrics, [sha256_of(bundle.folder / name) for name in bundle.files]]
    key = hashlib.sha256(canonical_json([facts, told])).hexdigest()[:10]
    work = out.with_name(f".{out.name}.{key}.search")
    if isinstance(data, DataSource):
        data = hold(data, work / "images")
    search = Search(bundle, data, work, options, started=started, on_message=on_message)
    result = search.run()
    late = search.budget.overrun()
    result.warnings += [] if late is None else [late]
    receipt_json = receipt(result, bundle, {"data": name, **options.to_dict()})
    if result.winner is None:
        with writing(report):
            write_sealed(report, receipt_json)
        write_page(out.with_name(f"{out.name}-{PAGE}"), out, bundle.info, bundle, receipt_json, None)
        on_message(f"the report: {report}")
        final = bundle
    else:
        with writing(out):
            final = _write(search, result, result.winner, receipt_json, out, draw)
        warn_of_replaced(out, replaced)
    _clear(work, on_message)
    if late is None:
        # writing the bundle counts too
        late = search.budget.overrun()
        result.warnings += [] if late is None else [late]
    return acceleration_of(result, final, options, receipt_json)


def _identified(data: AnyData, bundle: Bundle, options: SearchOptions) -> tuple[AnyData, list[str]]:
    """(the data, opened if they are an object, what tells them from other data)."""
    given = Data.of(data)
    if not given.is_object:
        return data, [str(given.where), *(str(value) for value in dataclasses.astuple(given)[1:])]
    place = None if options.cache_dir is None else Path(options.cache_dir)
    source = open_source(given, cache_dir=place, pixels=bundle.preprocess.pixels)
    return source, [signature_of(source, bundle.preprocess)]


def default_out(bundle: Path) -> Path:
    """The folder of the new bundle if none is named: that of the bundle or run, with -accelerated appended."""
    # "." and ".." have no name to derive another one from
    folder = bundle if bundle.name not in ("", "..") else bundle.resolve()
    return folder.with_name(folder.name + "-accelerated")


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
    """The bundle. Raises ConfigError for what is neither a bundle nor the path of its folder."""
    if isinstance(bundle, Bundle):
        return bundle
    if isinstance(bundle, str | os.PathLike):
        return load_bundle(Path(bundle))
    raise ConfigError(
        f"accelerate takes a bundle or a torch.nn.Module: got an object of type {type(bundle).__name__}. Give the "
        "folder that vivace train wrote, or the module; for another network of timm or of vivace: vivace accelerate "
        "NAME DATA --weights FILE."
    )


def _as_graph(bundle: Bundle) -> Bundle:
    """A bundle of a network of the user's own as the processes of a search have it: its graph, and no code.

    Raises BundleError if it has no graph.
    """
    if bundle.reference_graph is None:
        reason = bundle.info.network.get("without_graph", "it was lost")
        raise BundleError(
            f"a network of your own is accelerated from its graph, and the bundle has none: {bundle.folder} ({reason}) "
            "Change the network so that it can be exported, and train again, starting from `weights`."
        )
    return dataclasses.replace(bundle, network=None)


def _checked_out(out: Path, bundle: Bundle) -> tuple[Path, Path, str | None]:
    """(folder of the new bundle, file for the report if there is none, what the folder would replace).

    Raises OutputPathError if anything would be replaced that vivace did not write.
    """
    if out.name in ("", ".."):
        # other names are derived from its name
        out = out.resolve()
    replaced = check_folder(out, inputs=[bundle.folder], kind=BUNDLE, classes=bundle.classes)
    report = out.with_name(f"{out.name}-{RECEIPT}")
    for path in (report, out.with_name(f"{out.name}-{PAGE}")):
        check_file(path, inputs=[bundle.folder], option="the report's file")
    return out, report, replaced


def _clear(work: Path, on_message: Callable[[str], None]) -> None:
    """Remove intermediate files, except for trained networks: another search with the same time budget reuses them."""
    trained = work / "networks" / "runs"
    for path in (*work.glob("*"), *work.glob("networks/*")):
        if path not in (trained, trained.parent):
            shutil.rmtree(path, ignore_errors=True)
    if not trained.is_dir():
        shutil.rmtree(work, ignore_errors=True)
    else:
        on_message(f"trained networks are kept for further searches of this bundle: {trained}")


def _write(
    search: Search, result: SearchResult, winner: Result, receipt_json: dict[str, Any], out: Path, draw: Draw | None
) -> Bundle:
    built = search.bundle_of(winner)
    assert winner.parity is not None
    assert result.splits is not None
    probs_NK, labels_N = search.certify_probs(winner)
    sets = result.splits.certify.label_sets_MK
    if sets is None:
        metrics = evaluate_probs(probs_NK, labels_N, built.classes).summary()
    else:
        metrics = evaluate_sets(probs_NK, sets[labels_N], built.classes, built.info.thresholds).summary()
    info = dataclasses.replace(
        built.info, parity=winner.parity.recorded(), metrics={result.splits.certify.name: metrics}
    )

    calibrated = search.thresholds(winner)
    variant = f"{winner.candidate.runtime} {winner.candidate.precision}"

    def add(folder: Path) -> BundleInfo:
        if calibrated is not None:
            write_uncertainty(folder, calibrated)
        write_validated(folder, Validated.of(probs_NK, variant=variant, images="certification images"))
        for name in built.files:
            # of thresholds that belong to others there is none beside its own
            if not (folder / name).exists() and (calibrated is None or name not in (UNCERTAINTY, FEATURES)):
                shutil.copyfile(built.folder / name, folder / name)
        write_json(folder / RECEIPT, receipt_json)
        raw: dict[str, Any] = samples(result)
        np.savez_compressed(folder / "samples.npz", **raw)
        (folder / "receipt.md").write_text(markdown(receipt_json), encoding="utf-8")
        if draw is not None:
            draw(receipt_json, folder / "pareto.png")
        measured = measured_on(search.certify_images(winner), probs_NK)
        thresholds = None if calibrated is None else calibrated.found
        write_page(folder / PAGE, out, info, folder, receipt_json, measured, thresholds, network=built)
        return info

    return derive_bundle(built, out, add)
