"""A prediction of any number of images: from sources to outputs, in bounded memory, continued after a kill."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from vivace.batch.names import is_escaped, written_name
from vivace.batch.originals import Originals
from vivace.batch.outputs import Outputs
from vivace.batch.pipeline import Batch, Draw, classified
from vivace.batch.unfinished import Unfinished, folder_of
from vivace.cachedir import default_cache_dir
from vivace.data.layouts.listing import Skipped
from vivace.errors import ConfigError, OutputPathError
from vivace.files import sha256_of
from vivace.hardware import num_cpus
from vivace.kernels.resize import use_fast_resize
from vivace.notices import warn
from vivace.prediction import MANY_IMAGES, Failure
from vivace.predictor import Prediction, Predictor, check_whole
from vivace.sources.items import Item
from vivace.sources.kinds import READERS
from vivace.sources.stream import Sources

if TYPE_CHECKING:
    from vivace.batch.cluster.engine import RayEngine

__all__ = ["Streamed", "predict_stream"]

# at most so much is done again after a kill
COMMIT_SECONDS = 1.0
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Streamed:
    """What came of a stream of images."""

    num_images: int
    """Classified, those of the runs that this one continued among them."""
    num_failures: int
    num_resumed: int
    """Images and failures of earlier runs among them."""
    num_repeated: int
    """Names left out, of files that were named before."""
    skipped: Skipped
    """Files that were no images."""
    seconds: float
    """Finding, decoding, classifying and writing in this run, without loading the bundle."""
    images_per_second: float
    """Classified in this run."""
    num_workers: int = 0
    """Processes of the cluster that computed it; 0: this process did."""
    num_restarts: int = 0
    """Of them those that took the place of one that died."""


def predict_stream(
    predictor: Predictor,
    paths: Iterable[str | Path],
    *,
    topk: int = 5,
    outputs: Outputs | None = None,
    resume: bool = False,
    draw: Callable[[list[Item]], Draw] | None = None,
    each: Callable[[Prediction | Failure], None] = lambda outcome: None,
    stdin: BinaryIO | None = None,
    progress: Callable[[int, int | None], None] | None = None,
    engine: RayEngine | None = None,
) -> Streamed:
    """Classify the images behind paths (as for `Sources`), and write each as soon as it is classified, in their order.

    outputs: what is written; None: nothing. resume: go on where a killed run of the same outputs was. draw: makes what
    draws, of all items, which are held in memory then. each: called with every outcome of this run. progress: called
    with the number of images that are done, and about that of all, None where it is unknown. engine: what computes in
    place of the predictor, which then only says what the bundle is; whoever made it closes it.
    Few batches of images are held. Raises DataError when nothing is found, OutputPathError for an output that
    can't be written or resumed, and what `Predictor.answers` raises; what is done is kept for `resume`.
    """
    check_whole("topk", topk)
    if resume and (outputs is None or outputs.anchor is None):
        raise ConfigError("`resume` needs an output that is written: got none. Give `out`.")
    skipped = Skipped()
    given = list(paths)
    if engine is not None and draw is not None:
        raise ConfigError("`engine='ray'` and `heat_maps` exclude each other: workers draw nothing. Leave one out.")
    if outputs is None or outputs.anchor is None:
        sources = Sources(given, left=skipped, stdin=stdin)
        if engine is not None:
            engine.begin(predictor, topk=topk, features=False)
        return _Stream(predictor, sources, topk, skipped, each, progress, engine=engine).run(draw)
    outputs.check(given, resuming=resume)
    made_from = {
        "vivace's format": VERSION,
        "the bundle": sha256_of(predictor.bundle.folder / "bundle.json"),
        "the list of paths": [os.fsdecode(path) for path in given],
        "topk": topk,
        "batch_size": predictor.batch_size,
        "device": predictor.device_name,
        "runtime": predictor.runtime,
        "precision": predictor.precision,
        "threads": predictor.threads or num_cpus(),
        **predictor.rates,
        **outputs.made_from(),
    }
    if predictor.bundle.preprocess.decode != "fine":
        made_from["decode"] = predictor.bundle.preprocess.decode
    if engine is not None:
        facts = engine.begin(predictor, topk=topk, features=outputs.embeddings is not None)
        made_from |= dict(zip(("runtime", "precision", "device"), facts.same, strict=True))
        made_from |= {"threads": engine.threads, "engine": "ray"}
    sources = Sources(given, left=_Outside(skipped, folder_of(outputs.anchor)), stdin=stdin)
    if outputs.replaced is not None:
        originals = Originals(outputs.replaced)
        if "-" in sources.given:
            originals.check_list()
        # what is known is refused at once, the rest as it comes: the file gets its name when all was read
        for name in sources.named():
            originals.check(name)
        sources.reading = originals.check
    with Unfinished(outputs.anchor, made_from, resume=resume) as unfinished:
        try:
            if resume and not unfinished.resumed:
                outputs.check_unmade()
                warn(f"nothing to resume: no unfinished run of {outputs.anchor} is there, so it begins")
            if unfinished.resumed and not unfinished.state.complete:
                # a file that came meanwhile is better told now than at the end
                outputs.check(given, resuming=False)
            sources.done = unfinished.state.num_items
            outputs.begin(unfinished, predictor, topk)
            stream = _Stream(predictor, sources, topk, skipped, each, progress, outputs, unfinished, engine)
            return stream.run(draw)
        except BaseException:
            _keep_or_remove(unfinished)
            raise
        finally:
            outputs.close()


def _keep_or_remove(unfinished: Unfinished) -> None:
    if unfinished.committed is None:
        unfinished.remove()
    else:
        warn(f"{unfinished.committed:,} images are done, and kept in {unfinished.folder}: `resume=True` goes on")


@dataclass
class _Stream:
    """A run: what it reads, what it writes, and how far it is."""

    predictor: Predictor
    sources: Sources
    topk: int
    skipped: Skipped
    each: Callable[[Prediction | Failure], None]
    progress: Callable[[int, int | None], None] | None
    outputs: Outputs | None = None
    unfinished: Unfinished | None = None
    engine: RayEngine | None = None
    num_done: int = 0
    num_good: int = 0
    told_escapes: bool = False

    def run(self, draw: Callable[[list[Item]], Draw] | None) -> Streamed:
        started = time.perf_counter()
        self._digest = hashlib.blake2b(digest_size=16)
        self._committed = started
        self._total = None if self.progress is None else self.sources.count()
        items = iter(self.sources)
        complete = False
        if self.unfinished is not None:
            state = self.unfinished.state
            complete, self.num_done, self.num_good = state.complete, state.num_items, state.num_classified
            _pass_over(items, self.num_done, self._digest, self.unfinished)
        resumed, good_before = self.num_done, self.num_good
        if not complete:
            self._classify(items, draw, resumed=resumed > 0)
        if self.outputs is not None and self.unfinished is not None:
            self.outputs.finish()
            self.unfinished.remove()
        if (told := self.sources.told_empty()) is not None:
            warn(told)
        seconds = time.perf_counter() - started
        return Streamed(
            num_images=self.num_good,
            num_failures=self.num_done - self.num_good,
            num_resumed=resumed,
            num_repeated=self.sources.num_repeated,
            skipped=self.skipped,
            seconds=seconds,
            images_per_second=(self.num_good - good_before) / max(seconds, 1e-9),
            num_workers=0 if self.engine is None else self.engine.workers or 0,
            num_restarts=0 if self.engine is None else self.engine.num_restarts,
        )

    def _classify(self, items: Iterator[Item], draw: Callable[[list[Item]], Draw] | None, *, resumed: bool) -> None:
        if self.engine is not None:
            for batch in self.engine.batches(items, resumed=resumed):
                self._take(batch)
            self._complete()
            return
        pictures = None
        if draw is not None:
            known = list(items)
            items, pictures = iter(known), draw(known)
        many = False
        for batch in classified(
            items,
            self.predictor,
            self.topk,
            draw=pictures,
            embedder=None if self.outputs is None else self.outputs.embedder,
            workers=max(READERS, self.predictor.workers) if self.sources.remote else None,
            resumed=resumed,
        ):
            self._take(batch)
            if self.num_done >= MANY_IMAGES and not many:
                # pixels are the same: what it costs to build is less than what it saves from here on
                many = True
                use_fast_resize(default_cache_dir() / "kernels")
        self._complete()

    def _complete(self) -> None:
        if self.unfinished is not None:
            self.unfinished.state.complete = True
            self.unfinished.commit()

    def _take(self, batch: Batch) -> None:
        """Write a batch, and note now and then how far it is."""
        if self.outputs is not None:
            self.outputs.write(batch, self.num_done)
        if self.outputs is not None and not self.told_escapes:
            odd = next((item.name for item in batch.items if is_escaped(item.name)), None)
            if odd is not None:
                self.told_escapes = True
                warn(f"bytes of names that are not UTF-8 are written as in {written_name(odd)}")
        for outcome in batch.outcomes:
            self.num_good += isinstance(outcome, Prediction)
            self.each(outcome)
        self.num_done += len(batch.items)
        if self.progress is not None:
            self.progress(self.num_done, self._total)
        if self.unfinished is None:
            return
        for item in batch.items:
            _update(self._digest, item)
        state = self.unfinished.state
        state.num_items, state.num_classified = self.num_done, self.num_good
        state.num_failures = self.num_done - self.num_good
        state.items_digest = self._digest.hexdigest()
        if time.perf_counter() - self._committed >= COMMIT_SECONDS:
            self.unfinished.commit()
            self._committed = time.perf_counter()


def _pass_over(items: Iterator[Item], count: int, digest: Any, unfinished: Unfinished) -> None:
    """Take the items that are done. Raises OutputPathError unless they are the same as then."""
    for number in range(count):
        item = next(items, None)
        if item is None:
            raise OutputPathError(
                f"it can't be resumed, for the images changed: there were {count:,} before, and are {number:,} now. "
                f"Restore them, or remove {unfinished.folder} to begin anew."
            )
        _update(digest, item)
    if count and digest.hexdigest() != unfinished.state.items_digest:
        raise OutputPathError(
            f"it can't be resumed, for the images changed: of {count:,} that are done some have another name or date. "
            f"Restore them, or remove {unfinished.folder} to begin anew."
        )


def _update(digest: Any, item: Item) -> None:
    digest.update(f"{item.name}\0{item.stamp}\n".encode("utf-8", "surrogatepass"))


class _Outside:
    """Counts what is passed over outside of a folder."""

    def __init__(self, skipped: Skipped, folder: Path) -> None:
        self._skipped, self._folder = skipped, os.path.join(os.path.realpath(folder), "")  # noqa: PTH118

    def append(self, name: str, /) -> None:
        if not os.path.realpath(name).startswith(self._folder):
            self._skipped.append(name)
