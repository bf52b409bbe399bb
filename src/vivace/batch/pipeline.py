"""From items to predictions: threads decode the next batches while the network has this one, in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np

from vivace.errors import ImageError
from vivace.prediction import Failure
from vivace.predictor import Prediction, Predictor
from vivace.sources.items import Item, content
from vivace.uncertainty.scores import Answers

__all__ = [
    "GROUP",
    "HELD_BYTES",
    "Batch",
    "Draw",
    "batches_of",
    "classified",
    "decoded",
    "decoded_batches",
    "outcomes_of",
]

Pixels = np.ndarray | ImageError
Draw = Callable[[list[Prediction], np.ndarray], list[Prediction]]
# images that a thread decodes before it asks for more: handing over one takes as long as a tenth of decoding it
GROUP = 8
# batches that are decoded ahead, and at least so many groups for each thread
AHEAD, GROUPS_AHEAD = 2, 2
# encoded images that the batches ahead may hold; a batch that holds as much ends early
HELD_BYTES = 2**28


@dataclass(frozen=True)
class Batch:
    """What came of some images, in their order."""

    items: list[Item]
    outcomes: list[Prediction | Failure]
    features: dict[int, np.ndarray]
    """Place in the batch → float32 [D] of an image that was classified; empty unless they were asked for."""


def decoded_batches(
    items: Iterable[Item], load: Callable[[Any], np.ndarray], *, batch_size: int, workers: int
) -> Iterator[tuple[list[Item], list[Pixels]]]:
    """Batches of items with their pixels, or why there are none; their bounds depend on the items alone.

    load: pixels of a path or bytes, or ImageError. Raises what `items` raises, after the images before that.
    """
    batches = batches_of(iter(items), batch_size)
    begun = [*islice(batches, 1)]
    error: BaseException | None = None
    if begun and len(begun[0]) == 1:
        try:
            begun += islice(batches, 1)
        except Exception as raised:
            error = raised
    if len(begun) < 2 and (not begun or len(begun[0]) == 1):
        for batch in begun:
            # importing threads takes as long as decoding an image
            yield batch, decoded(batch, load)
        if error is not None:
            raise error
        return
    from concurrent.futures import Future, ThreadPoolExecutor

    ahead = max(AHEAD, -(-GROUPS_AHEAD * workers * GROUP // batch_size))
    pending: deque[tuple[list[Item], list[Future[list[Pixels]]]]] = deque()
    held = 0
    following = chain(begun, batches)
    with ThreadPoolExecutor(workers) as pool:
        try:
            while True:
                while error is None and len(pending) <= ahead and (not pending or held < HELD_BYTES):
                    try:
                        upcoming = next(following, None)
                    except Exception as raised:
                        # what was found before it is worth its rows
                        error = raised
                        break
                    if upcoming is None:
                        break
                    held += sum(item.held_bytes for item in upcoming)
                    groups = [upcoming[start : start + GROUP] for start in range(0, len(upcoming), GROUP)]
                    pending.append((upcoming, [pool.submit(decoded, group, load) for group in groups]))
                if not pending:
                    break
                batch, futures = pending.popleft()
                pixels = [found for future in futures for found in future.result()]
                held -= sum(item.held_bytes for item in batch)
                yield batch, pixels
        finally:
            # whoever stops early does not wait for images that nobody sees
            pool.shutdown(wait=True, cancel_futures=True)
    if error is not None:
        raise error


def batches_of(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    """Batches of items; their bounds depend on the items alone. Raises what `items` raises, after those before it."""
    batch: list[Item] = []
    held = 0
    try:
        for item in items:
            batch.append(item)
            held += item.held_bytes
            if len(batch) == size or held >= HELD_BYTES:
                yield batch
                batch, held = [], 0
    except Exception:
        if batch:
            yield batch
        raise
    if batch:
        yield batch


def decoded(items: list[Item], load: Callable[[Any], np.ndarray]) -> list[Pixels]:
    """Their pixels, or why there are none."""
    return [_pixels_of(item, load) for item in items]


def _pixels_of(item: Item, load: Callable[[Any], np.ndarray]) -> Pixels:
    try:
        if item.path is not None:
            # a context costs time for small pictures
            return load(item.path)
        with content(item) as found:
            return load(found)
    except ImageError as error:
        return error
    except ValueError as error:
        # no file can have such a name: a zero byte, or a character that has no bytes
        return ImageError(f"the name is no file's: {item.name!r} ({error}). Correct it.", problem="unreadable")


def classified(
    items: Iterable[Item],
    predictor: Predictor,
    topk: int,
    *,
    draw: Draw | None = None,
    embedder: Predictor | None = None,
    workers: int | None = None,
    resumed: bool = False,
) -> Iterator[Batch]:
    """The outcomes of items in their order, batch by batch; of an image that can't be used a `Failure`.

    draw: adds a picture to each prediction. embedder: gives features too; it may be the predictor itself. workers:
    threads that read and decode; None: the predictor's. resumed: other batches came before.
    """
    first = not resumed
    for batch, pixels in decoded_batches(
        items, predictor.bundle.preprocess.load, batch_size=predictor.batch_size, workers=workers or predictor.workers
    ):
        # only a stream of one batch is computed in a smaller one
        small = first and len(batch) < predictor.batch_size
        first = False
        yield outcomes_of(batch, pixels, predictor, topk, small=small, draw=draw, embedder=embedder)


def outcomes_of(
    batch: list[Item],
    pixels: Sequence[Pixels],
    predictor: Predictor,
    topk: int,
    *,
    small: bool = False,
    draw: Draw | None = None,
    embedder: Predictor | None = None,
) -> Batch:
    """The outcomes of a batch that is decoded. small: it is computed as it is, not filled up to the size of others."""
    good = {place: image for place, image in enumerate(pixels) if isinstance(image, np.ndarray)}
    outcomes: dict[int, Prediction | Failure] = {
        place: Failure(batch[place].name, error.problem, str(error))
        for place, error in enumerate(pixels)
        if isinstance(error, ImageError)
    }
    vectors: dict[int, np.ndarray] = {}
    if good:
        images_NHWC = np.stack(list(good.values()))
        names = [batch[place].name for place in good]
        size = 0 if small else predictor.batch_size
        if embedder is not None:
            answers = _answers(embedder, images_NHWC, size, everything=True)
            assert answers.features_ND is not None
            vectors = dict(zip(good, answers.features_ND, strict=True))
        if embedder is not predictor:
            answers = _answers(predictor, images_NHWC, size)
        found = predictor.predictions_from(names, answers, topk)
        outcomes |= zip(good, found if draw is None else draw(found, images_NHWC), strict=True)
    return Batch(batch, [outcomes[place] for place in range(len(batch))], vectors)


def _answers(predictor: Predictor, images_NHWC: np.ndarray, size: int, *, everything: bool = False) -> Answers:
    """The answers to images, computed in a batch of `size`, what is missing black.

    A runtime rounds sums otherwise in another batch, and may choose its program by those that it was given before: a
    run that goes on would differ in its last digits.
    """
    count = len(images_NHWC)
    if count < size:
        images_NHWC = np.concatenate([images_NHWC, np.zeros((size - count, *images_NHWC.shape[1:]), images_NHWC.dtype)])
    found = predictor.answers(images_NHWC, everything=everything)
    return Answers(*(None if part is None else part[:count] for part in vars(found).values()))  # type: ignore[arg-type]
