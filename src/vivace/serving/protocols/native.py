"""Our own protocol: `POST /predict`, an image's bytes or several files in, all that a prediction holds out."""

from __future__ import annotations

import json
import time
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from vivace.serving.protocols.classifying import Classifying, check_live, check_topk, plain_prediction, prediction_of
from vivace.serving.web.bodies import File, check_sent, media_type, of_form, read_body, read_form
from vivace.serving.web.exchange import exchange_of, json_response, parameters_of
from vivace.serving.web.refusals import Refusal

__all__ = ["Native"]

PARAMETERS = ("bundle", "topk", "live")
HEAT_PARAMETERS = ("bundle", "label")


class Native:
    """The handlers of our own protocol."""

    def __init__(self, classifying: Classifying) -> None:
        self._classifying = classifying

    async def predict(self, request: Request) -> Response:
        """Classify one image (the body is its file) or several (multipart/form-data).

        Of several, those that can't be used are listed beside the others; if none can, or the only one, the answer is
        that refusal.
        """
        asked = parameters_of(request)
        _check_known(asked, "parameter")
        served = self._classifying.bundle_for(request, asked.get("bundle"))
        settings = self._classifying.settings
        kind = media_type(request)
        if kind.startswith("multipart/"):
            form = await read_form(request, settings)
            _check_known(form.fields, "field")
            asked |= form.fields
            if "bundle" in form.fields:
                served = self._classifying.bundle_for(request, asked["bundle"])
            files = form.files
        elif kind == "application/json":
            raise Refusal(415, "json", "the body is JSON. Send an image's bytes, or files as multipart/form-data.")
        else:
            body = await read_body(request, settings)
            check_sent(body)
            files = (File("image 0", body),)
        topk, live = check_topk(asked.get("topk")), check_live(asked.get("live"))
        if not files:
            raise Refusal(
                422, "empty", "no image was sent. Send its bytes as the body, or files as multipart/form-data."
            )
        items = await self._classifying.items(request, served, [file.data for file in files], live=live)
        predictions, failures = [], []
        for file, item in zip(files, items, strict=True):
            if item.probs is not None:
                found = prediction_of(served, file.name, item, topk)
                predictions.append(plain_prediction(found, multi_label=served.predictor.bundle.info.multi_label))
            else:
                failures.append((file.name, item.error))
        if not predictions:
            raise of_form(request, _worst([error for _, error in failures if error is not None]))
        answer = {
            "bundle": served.name,
            "generation": served.generation,
            "predictions": predictions,
            "failures": [
                {"name": name, "code": error.code, "message": str(error)}
                for name, error in failures
                if error is not None
            ],
            "milliseconds": round(1000 * (time.perf_counter() - exchange_of(request.scope).started), 3),
        }
        return json_response(json.dumps(answer).encode())

    async def heat_map(self, request: Request) -> Response:
        """A PNG of an image under the heat map of a class, by default the predicted one. It is no live traffic."""
        asked = parameters_of(request)
        _check_known(asked, "parameter", HEAT_PARAMETERS)
        served = self._classifying.bundle_for(request, asked.get("bundle"))
        body = await read_body(request, self._classifying.settings)
        check_sent(body)
        picture = await served.heat.png(body, asked.get("label"))
        return Response(picture, 200, {"content-type": "image/png", "cache-control": "no-store"})

    async def bundles(self, request: Request) -> Response:
        """What is served."""
        return json_response(
            json.dumps({"bundles": [served.describe() for served in self._classifying.bundles.all]}).encode()
        )


def _check_known(given: dict[str, Any], what: str, known: tuple[str, ...] = PARAMETERS) -> None:
    for name in given:
        if name not in known:
            # the @ is easily forgotten
            file = " An image is to be a file: curl -F image=@one.jpg" if what == "field" else ""
            raise Refusal(
                422, "unknown_parameter", f"the {what} is unknown: got {name[:40]!r}. Known: {', '.join(known)}.{file}"
            )


def _worst(errors: list[Refusal]) -> Refusal:
    """What to say where no image was classified: a fault of the server before one of the images."""
    return max(errors, key=lambda error: error.status)
