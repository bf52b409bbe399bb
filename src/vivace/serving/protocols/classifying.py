"""What every protocol does with images: hands them to a bundle's batcher, and watches whether the client stays."""

from __future__ import annotations

import asyncio
import base64
import binascii
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from starlette.requests import Request

from vivace.predicted import Prediction, with_decided
from vivace.serving.bundles import Bundles, Served
from vivace.serving.jobs import Item, Job
from vivace.serving.settings import Settings
from vivace.serving.web.exchange import TELLS, exchange_of
from vivace.serving.web.refusals import Refusal

__all__ = ["Classifying", "check_live", "check_topk", "from_base64", "plain_prediction", "prediction_of"]

# most answers are there earlier; a client that leaves later spares work
WATCH_AFTER = 0.02
MAX_TOPK = 10_000
URLS = (b"http://", b"https://", b"ftp://", b"file://", b"s3://", b"data:")


class Classifying:
    """The bundles and bounds that all protocols share."""

    def __init__(self, bundles: Bundles, settings: Settings) -> None:
        self.bundles, self.settings = bundles, settings

    def bundle_for(self, request: Request, name: str | None) -> Served:
        """The bundle that is to answer, noted in the request's log line. Raises Refusal: 404, or 503 if it is busy."""
        served = self.bundles.get(name)
        exchange_of(request.scope).bundle = served.name
        if served.batcher.is_full:
            # said before the body is read
            raise served.batcher.refusal()
        return served

    async def items(
        self, request: Request, served: Served, images: Sequence[bytes | np.ndarray], *, live: bool = True
    ) -> list[Item]:
        """The classified images, in order; each has probabilities or an error. live: whether their drift is watched.

        Raises Refusal: 413 for too many images, 503 if the queue is full, 499 if the client left.
        """
        exchange = exchange_of(request.scope)
        exchange.images = len(images)
        job = self.job(images, live=live)
        if request.scope.get(TELLS):
            exchange.leave = job.leave
            items = await served.batcher.classify(job)
        else:
            items = await self._watched(request, served, job)
        if job.gone:
            raise Refusal(499, "client_gone", "the client has left")
        return items

    async def _watched(self, request: Request, served: Served, job: Job) -> list[Item]:
        """The items of a job, on a connection that does not tell when its client leaves."""
        loop, watching = asyncio.get_running_loop(), list[asyncio.Task[None]]()
        timer = loop.call_later(WATCH_AFTER, lambda: watching.append(loop.create_task(_watch(request.receive, job))))
        try:
            return await served.batcher.classify(job)
        finally:
            timer.cancel()
            for task in watching:
                task.cancel()

    def job(self, images: Sequence[bytes | np.ndarray], *, seconds: float | None = None, live: bool = True) -> Job:
        """The images of a request, to be classified within so many seconds. Raises Refusal: 413, or 422 for a URL."""
        # what the queue can't hold even when it is empty is no reason to try again
        most = min(self.settings.max_images, self.settings.queue)
        if len(images) > most:
            raise Refusal(
                413,
                "too_many",
                f"too many images: got {len(images)}, a request may have at most {most}. Send several requests.",
            )
        job = Job(images, self.settings.answer_seconds if seconds is None else seconds, live=live)
        for item in job.items:
            _refuse_url(item)
        return job


async def _watch(receive: Any, job: Job) -> None:
    # the body is read, so that nothing else comes than the end
    while (await receive())["type"] == "http.request":
        pass
    job.leave()


def _refuse_url(item: Item) -> None:
    source = item.source
    if isinstance(source, bytes) and len(source) < 4096 and source[:10].lstrip().lower().startswith(URLS):
        raise Refusal(422, "url", "a URL in place of an image: nothing is fetched. Send the image's bytes.")


def check_topk(given: Any, default: int = 5) -> int:
    """The number of classes that is asked for. Raises Refusal (422) for what is none."""
    if given is None:
        return default
    text = str(given)
    if isinstance(given, bool) or not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= MAX_TOPK:
        raise Refusal(422, "topk", f"topk is no whole number from 1: got {text[:40]!r}. Give one such as 5.")
    return int(text[:9])


def check_live(given: Any) -> bool:
    """Whether an image counts as live traffic. Raises Refusal (422) for what is neither true nor false."""
    if given not in (None, "true", "false"):
        raise Refusal(422, "live", f"live is neither true nor false: got {str(given)[:40]!r}. Give one of these.")
    return given != "false"


def from_base64(text: Any, what: str) -> bytes:
    """The bytes of an image in JSON. Raises Refusal (422) for a URL or what is no base64."""
    if not isinstance(text, str):
        raise Refusal(422, "no_base64", f"{what} is no text: got {type(text).__name__}. Send the image as base64.")
    if text[:10].lower().lstrip().encode("ascii", "replace").startswith(URLS[:-1]):
        raise Refusal(422, "url", f"{what} is a URL: nothing is fetched. Send the image as base64.")
    if text[:5].lower() == "data:":
        _, marked, text = text.partition(";base64,")
        if not marked:
            raise Refusal(422, "no_base64", f"{what} is a data URL without base64. Send the image as base64.")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Refusal(
            422,
            "no_base64",
            f"{what} is no base64: got {text[:20]!r}, {len(text):,} characters. Send the image as that.",
        ) from None


def prediction_of(served: Served, name: str, item: Item, topk: int) -> Prediction:
    """The prediction of a classified image, with what the bundle's thresholds say of it."""
    assert item.probs is not None
    predictor = served.predictor
    found = predictor.prediction_of(name, item.probs, topk)
    return found if item.decided is None else with_decided(found, *item.decided, item.probs, predictor.classes)


_NAMES: dict[type, tuple[str, ...]] = {}


def _names(kind: type[Prediction]) -> tuple[str, ...]:
    if kind not in _NAMES:
        _NAMES[kind] = tuple(field.name for field in dataclasses.fields(kind))
    return _NAMES[kind]


def plain_prediction(prediction: Prediction, *, multi_label: bool) -> dict[str, Any]:
    """A prediction as JSON holds it: all that it carries, under the names that it has in Python."""
    told: dict[str, Any] = {"name": prediction.path}
    for name in _names(type(prediction)):
        value = getattr(prediction, name)
        if name == "path" or value is None or (name == "labels" and not multi_label):
            continue
        if name == "topk":
            value = [{"label": label, "probability": probability} for label, probability in value]
        if isinstance(value, float) and not math.isfinite(value):
            # JSON has no such number
            value = None
        told[name] = list(value) if isinstance(value, tuple) else value
    return told
