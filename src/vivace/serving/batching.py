"""From the images of many requests to batches: a bounded queue, threads that decode, and one that runs the network.

    event loop ──submit──▶ decoding threads ──pixels──▶ the batcher's thread ──probabilities──▶ event loop

Handing something to another thread and waking it costs more than all else that is done for a request, so images are
passed on by queues of C, and a batch's results come back to the event loop by one call.
"""

from __future__ import annotations

import asyncio
import math
import queue
import threading
import time
from collections.abc import Callable

import numpy as np

from vivace.errors import DataError, ImageError, first_line, one_line
from vivace.predictor import Predictor
from vivace.serving.jobs import Item, Job
from vivace.serving.metrics import BundleMeters
from vivace.serving.trial import Batching, Trial
from vivace.serving.web.refusals import Refusal, internal, of_image, too_busy

__all__ = ["Batcher", "Decoders"]

clock = time.perf_counter
# seconds in which a trial does not begin of itself: the first request is often there by then
TRIAL_AFTER = 1.0


class Decoders:
    """Threads that decode for all bundles of a server."""

    def __init__(self, count: int) -> None:
        self._queue: queue.SimpleQueue[tuple[Batcher, Item] | None] = queue.SimpleQueue()
        self.put = self._queue.put
        self._threads = [
            threading.Thread(target=self._run, name=f"decoder {number}", daemon=True) for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            batcher, item = work
            batcher.decode(item)
            # while this thread waits it must not hold the last image
            del work, batcher, item

    def stop(self) -> None:
        """End the threads once the queue is empty."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()


class Batcher:
    """Classifies the images of jobs with one predictor, in batches.

    A batch is run when it has `max_batch` images, when its first image has waited `max_wait` seconds, or when no other
    image is being decoded: nobody waits for what may not come. `capacity`: images that are on their way at most;
    patience: seconds that they may take together, at the rate of late.
    trial: chooses `max_batch` and `max_wait`, a step of it whenever no image waits and after each batch; `on_chosen` is
    called with what it found, by the batcher's thread.
    """

    def __init__(
        self,
        predictor: Predictor,
        decoders: Decoders,
        meters: BundleMeters,
        *,
        max_batch: int,
        max_wait: float,
        capacity: int,
        observe: Callable[[np.ndarray], None] = lambda probs_NK: None,
        patience: float = math.inf,
        trial: Trial | None = None,
        on_chosen: Callable[[Batching | None, str], None] = lambda found, problem: None,
    ) -> None:
        """observe: called with the probabilities of the images of each batch that are live traffic."""
        self._observe = observe
        self._patience = patience
        self._trial, self._trial_from, self._on_chosen = trial, clock() + TRIAL_AFTER, on_chosen
        self.predictor, self.max_batch, self.max_wait, self.capacity = predictor, max_batch, max_wait, capacity
        self.pending = 0
        """Images on their way; changed by the event loop alone."""
        self.seconds_per_image = 0.0
        """Of late, in batches: how long the queue will take."""
        self._decoders, self._meters = decoders, meters
        self._undecoded = 0
        self._ready: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._finished: list[Item] = []
        self._woken = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="batches", daemon=True)
        self._thread.start()

    @property
    def is_full(self) -> bool:
        # what would be too late in the end is better refused at once: it is not decoded in vain
        long = self.pending > self.max_batch and self.pending * self.seconds_per_image >= self._patience
        return long or self.pending >= self.capacity

    def refusal(self) -> Refusal:
        """What is said when the queue is full."""
        return too_busy(
            f"the queue is full: {self.pending} images wait, {self.capacity} may", self.pending * self.seconds_per_image
        )

    async def classify(self, job: Job) -> list[Item]:
        """The items of a job, each with `probs` or an `error`, in order. Raises Refusal when the queue is full."""
        count = len(job.items)
        if self.is_full or self.pending + count > self.capacity:
            raise self.refusal()
        self._loop = self._loop or asyncio.get_running_loop()
        self.pending += count
        self._meters.pending.set(self.pending)
        with self._lock:
            self._undecoded += count
        for item in job.items:
            if isinstance(item.source, bytes):
                self._decoders.put((self, item))
            else:
                item.pixels, item.source = item.source, None
                self._decoded(item)
        try:
            await job.done
        except asyncio.CancelledError:
            # what was not begun is passed over
            job.gone = True
            raise
        return job.items

    async def stop(self) -> None:
        """End the thread once all images that were submitted are through."""
        while self.pending:
            await asyncio.sleep(0.01)
        self._ready.put(None)
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join)

    def decode(self, item: Item) -> None:
        """Decode an image and pass it on; called by the decoding threads."""
        began = clock()
        self._meters.queue(began - item.job.started)
        source, item.source = item.source, None
        if self._is_void(item, began):
            self._end([item], undecoded=1)
            return
        try:
            item.pixels = self.predictor.bundle.preprocess.load(source)  # type: ignore[arg-type]
        except ImageError as error:
            self._fail(item, of_image(error), "refused")
        except MemoryError:
            self._fail(item, too_busy("there is no memory for this image", 1, code="no_memory"), "failed")
        except DataError as error:
            self._fail(item, Refusal(422, "unusable", str(error)), "refused")
        except Exception as error:
            self._fail(item, internal(error), "failed")
        self._meters.decode(clock() - began)
        if item.error is None:
            self._decoded(item)
        else:
            self._end([item], undecoded=1)

    def _decoded(self, item: Item) -> None:
        item.ready = clock()
        with self._lock:
            self._undecoded -= 1
        self._ready.put(item)

    def _run(self) -> None:
        while (batch := self._next_batch()) is not None:
            began = clock()
            # late is what would be answered too late; young ones are always tried, else one slow batch would end all
            until = began + min(len(batch) * self.seconds_per_image, self._patience / 2)
            live = [item for item in batch if not self._is_void(item, until)]
            for item in live:
                self._meters.batch(began - item.ready)
            if live:
                self._classify(live)
                took = clock() - began
                self._meters.inference(took)
                self._meters.batch_images(len(live))
                before = self.seconds_per_image
                self.seconds_per_image = took / len(live) if not before else 0.9 * before + 0.1 * took / len(live)
            self._end(batch)
            del batch, live
            if self._trial is not None:
                # also where some image always waits: else it would never be done
                self._try(self._trial)

    def _next_batch(self) -> list[Item] | None:
        """Up to `max_batch` images; None: stop."""
        item = self._first()
        if item is None:
            return None
        batch, until = [item], item.ready + self.max_wait
        while len(batch) < self.max_batch:
            try:
                # what is ready is taken, also when the first has waited long
                wait = until - clock() if self._undecoded > 0 else 0.0
                item = self._ready.get(timeout=wait) if wait > 0 else self._ready.get_nowait()
            except queue.Empty:
                break
            if item is None:
                self._ready.put(None)
                break
            batch.append(item)
        return batch

    def _first(self) -> Item | None:
        """The next item; until it comes, the trial goes on."""
        while self._trial is not None:
            wait = self._trial_from - clock()
            try:
                return self._ready.get(timeout=wait) if wait > 0 else self._ready.get_nowait()
            except queue.Empty:
                self._try(self._trial)
        return self._ready.get()

    def _try(self, trial: Trial) -> None:
        """One step of the trial, which then goes on whenever no image waits."""
        self._trial_from = 0.0
        try:
            next(trial)
        except StopIteration as end:
            self._trial = None
            self.max_batch, self.max_wait = end.value.max_batch, end.value.max_wait
            self._on_chosen(end.value, "")
        except Exception as error:
            # a batch of another size can't be run: single images go on
            self._trial = None
            self._on_chosen(None, one_line(f"{type(error).__name__}: {first_line(error)}"))

    def _classify(self, items: list[Item]) -> None:
        try:
            answers = self.predictor.answers(np.stack([item.pixels for item in items]))  # type: ignore[misc]
            decider = self.predictor.decider
            decided = None if decider is None else decider.decide(answers)
        except MemoryError:
            for item in items:
                self._fail(item, too_busy("there is no memory for this batch", 1, code="no_memory"), "failed")
        except Exception as error:
            if len(items) > 1:
                # one image may be at fault, and the others are somebody else's
                for item in items:
                    self._classify([item])
                return
            self._fail(items[0], internal(error), "failed")
        else:
            for index, (item, probs_K) in enumerate(zip(items, answers.probs_NK, strict=True)):
                item.probs = probs_K
                item.decided = None if decided is None else (decided, index)
                self._meters.results["classified"]()
            live = [index for index, item in enumerate(items) if item.job.live]
            if live:
                self._observe(answers.probs_NK if len(live) == len(items) else answers.probs_NK[live])

    def _is_void(self, item: Item, now: float) -> bool:
        """Whether nobody waits for it any more."""
        if item.job.gone:
            self._fail(item, Refusal(499, "client_gone", "the client has left"), "cancelled")
        elif now > item.job.late:
            waited = now - item.job.started
            busy = too_busy(f"the image has waited {waited:.1f} s, too long to be answered", 1, code="late")
            self._fail(item, busy, "late")
        return item.error is not None

    def _fail(self, item: Item, refusal: Refusal, result: str) -> None:
        item.error = refusal
        self._meters.results[result]()

    def _end(self, items: list[Item], *, undecoded: int = 0) -> None:
        """Hand items back to the event loop, which is woken once for all that end until it comes."""
        for item in items:
            item.pixels = None
        with self._lock:
            self._undecoded -= undecoded
            self._finished += items
            wake, self._woken = not self._woken, True
        if wake:
            assert self._loop is not None
            self._loop.call_soon_threadsafe(self._hand_over)

    def _hand_over(self) -> None:
        with self._lock:
            finished, self._finished, self._woken = self._finished, [], False
        self.pending -= len(finished)
        self._meters.pending.set(self.pending)
        for item in finished:
            job = item.job
            job.left -= 1
            if job.left == 0 and not job.done.done():
                job.done.set_result(None)
