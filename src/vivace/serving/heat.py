"""Heat maps of a served bundle, for the page: where an image speaks for a class."""

from __future__ import annotations

import asyncio
import io
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from vivace.errors import DataError, ImageError, VivaceError
from vivace.predictor import Predictor
from vivace.runtimes.table import RUNTIMES
from vivace.serving.web.refusals import Refusal, of_image, too_busy

if TYPE_CHECKING:
    from vivace.heatmaps.mapper import HeatMapper

__all__ = ["HeatMaps"]

# each takes a pass forward and back, beside the batches that are served
MAX_WAITING = 8
REASONS = {
    "no_gradients": "the bundle runs on {runtime}, which gives no gradients. Serve the bundle that it was made from",
    "no_code": "the network is one of your own, whose code is not here",
}


class HeatMaps:
    """Makes the heat maps of one bundle, one after the other in a thread of its own; nothing is built before the first.

    why_not: None, or why none is offered: "no_gradients" or "no_code".
    """

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self.why_not: str | None = None
        if not RUNTIMES[predictor.runtime].takes_network:
            # torch is not imported for it: that takes as long as hundreds of thousands of answers
            self.why_not = "no_gradients"
        elif not predictor.bundle.has_code:
            self.why_not = "no_code"
        self._mapper: HeatMapper | None = None
        self._waiting = 0
        self._thread: ThreadPoolExecutor | None = None

    def describe(self) -> dict[str, Any]:
        """Whether there are any, and why not."""
        if self.why_not is None:
            return {"offered": True}
        return {"offered": False, "why": self.why_not, "reason": self._reason()}

    async def png(self, image: bytes, label: str | None) -> bytes:
        """A PNG of the image in grey under the map's colours. label: the class that it is of; None: the predicted one.

        Raises Refusal: 415 or 422 for the image or the label, 422 where there is no map, 503 if too many wait.
        """
        if self.why_not is not None:
            raise Refusal(422, "no_heat_map", f"there is no heat map: {self._reason()}.")
        if label is not None and label not in self._predictor.classes:
            raise Refusal(422, "label", f"label is no class of the bundle: got {label[:80]!r}. See /bundles for these.")
        if self._waiting >= MAX_WAITING:
            raise too_busy(f"{self._waiting} heat maps wait, {MAX_WAITING} may", 1)
        self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="heat maps")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._made, image, label)
        except ImageError as error:
            raise of_image(error) from None
        except DataError as error:
            raise Refusal(422, "unusable", str(error)) from None
        except VivaceError as error:
            # a network without a layer that keeps places
            raise Refusal(422, "no_heat_map", str(error)) from None
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """End the thread; what waits is not made."""
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)

    def _reason(self) -> str:
        assert self.why_not is not None
        return REASONS[self.why_not].format(runtime=self._predictor.runtime)

    def _made(self, image: bytes, label: str | None) -> bytes:
        from vivace.heatmaps.mapper import HeatMapper
        from vivace.heatmaps.overlay import side_by_side
        from vivace.heatmaps.pictures import LEAST_SIDE, panels

        predictor = self._predictor
        pixels = np.array(predictor.bundle.preprocess.load(image))
        self._mapper = self._mapper or HeatMapper(predictor.bundle, device=predictor.device)
        classes = predictor.classes
        index = int(predictor.probs(pixels[None])[0].argmax()) if label is None else classes.index(label)
        (map_HW,) = self._mapper(pixels[None], np.array([index]))
        file = io.BytesIO()
        side_by_side(panels(pixels, [map_HW])[1:], least_side=LEAST_SIDE).save(file, "PNG")
        return file.getvalue()
