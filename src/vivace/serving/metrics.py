"""What is counted and timed, for Prometheus. Labels have few values, and none is of what a client sent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vivace.errors import MissingExtra

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

__all__ = ["CONTENT_TYPE", "BundleMeters", "DriftMeters", "Meters"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# seconds; from a tiny network on small images to a large one behind a full queue
SECONDS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
DRIFT = {
    "alarm": "1 once answers have come otherwise than on validation images, until the bundle is opened anew.",
    "evidence": "Of drift: about 1 without any; from 200 on there is an alarm, in 1 % of servers without drift.",
    "class_distance": "Total variation between the classes of the last 50 images and of validation images.",
    "confidence_distance": "Kolmogorov's between the confidences of the last 50 images and of validation images.",
}
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Meters:
    """The metrics of one server, in a registry of its own: two servers in a process do not share them."""

    def __init__(self) -> None:
        client = _library()
        self.registry: CollectorRegistry = client.CollectorRegistry()
        self._text = client.generate_latest
        self.requests = client.Counter(
            "vivace_requests", "Requests, by route and status.", ["route", "status"], registry=self.registry
        )
        self.request_seconds = client.Histogram(
            "vivace_request_seconds",
            "From the headers of a request to its answer.",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.open_requests = client.Gauge("vivace_open_requests", "Requests without an answer.", registry=self.registry)
        self.pending_bytes = client.Gauge("vivace_pending_bytes", "Of bodies in memory.", registry=self.registry)
        self.reloads = client.Counter(
            "vivace_reloads", "Bundles that were opened anew.", ["bundle", "result"], registry=self.registry
        )
        self._stages = client.Histogram(
            "vivace_stage_seconds",
            "Of an image: queue (until it is decoded), decode, batch (until it is in one); of a batch: inference.",
            ["bundle", "stage"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._batches = client.Histogram(
            "vivace_batch_images", "Images per forward pass.", ["bundle"], buckets=BATCHES, registry=self.registry
        )
        self._images = client.Counter(
            "vivace_images",
            "Images by what became of them: classified, refused (no image), late, cancelled (the client left), failed.",
            ["bundle", "result"],
            registry=self.registry,
        )
        self._pending = client.Gauge(
            "vivace_pending_images", "Images in the queue.", ["bundle"], registry=self.registry
        )
        self._drift = {
            name: client.Gauge(f"vivace_drift_{name}", text, ["bundle"], registry=self.registry)
            for name, text in DRIFT.items()
        }
        self._drift_images = client.Counter(
            "vivace_drift_images", "Images whose answers were compared.", ["bundle"], registry=self.registry
        )
        # by route and status: to look up labels takes longer than to count
        self._known: dict[Any, Any] = {}

    def text(self) -> bytes:
        """All metrics as Prometheus reads them."""
        text: bytes = self._text(self.registry)
        return text

    def of_request(self, route: str, status: int | str, seconds: float) -> None:
        """Count one request that was answered."""
        known = self._known.get((route, status))
        if known is None:
            known = self.requests.labels(route, str(status)).inc, self.request_seconds.labels(route).observe
            self._known[route, status] = known
        count, observe = known
        count()
        observe(seconds)

    def of_bundle(self, name: str) -> BundleMeters:
        """The metrics of one bundle."""
        stages = {stage: self._stages.labels(name, stage) for stage in ("queue", "decode", "batch", "inference")}
        results = {
            result: self._images.labels(name, result)
            for result in ("classified", "refused", "late", "cancelled", "failed")
        }
        return BundleMeters(stages, results, self._batches.labels(name), self._pending.labels(name))

    def of_drift(self, name: str) -> DriftMeters:
        """The metrics of a bundle's drift."""
        return DriftMeters(
            **{gauge: made.labels(name) for gauge, made in self._drift.items()}, images=self._drift_images.labels(name)
        )


@dataclass(frozen=True, kw_only=True)
class DriftMeters:
    """The metrics of one bundle's drift."""

    alarm: Any
    evidence: Any
    class_distance: Any
    confidence_distance: Any
    images: Any


class BundleMeters:
    """The metrics of one bundle, their labels looked up once."""

    def __init__(self, stages: dict[str, Any], results: dict[str, Any], batches: Any, pending: Any) -> None:
        self.queue = stages["queue"].observe
        self.decode = stages["decode"].observe
        self.batch = stages["batch"].observe
        self.inference = stages["inference"].observe
        self.results = {name: counter.inc for name, counter in results.items()}
        self.batch_images = batches.observe
        self.pending = pending


def _library() -> Any:
    try:
        import prometheus_client
    except ImportError:
        raise MissingExtra("prometheus-client", "serve", "serving") from None
    return prometheus_client
