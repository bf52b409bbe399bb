"""The task "image-classification" as Hugging Face's inference clients speak it: bytes in, [{"label", "score"}] out.

With parameters a client sends JSON: {"inputs": base64, "parameters": {"top_k": 3}}. Its URL is the model's:
`InferenceClient(model="http://127.0.0.1:8000/models/photos").image_classification("one.jpg")`.
"""

from __future__ import annotations

import json
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from vivace.serving.protocols.classifying import Classifying, check_topk, from_base64
from vivace.serving.web.bodies import check_sent, media_type, of_form, parsed_json, read_body
from vivace.serving.web.exchange import json_response
from vivace.serving.web.refusals import Refusal

__all__ = ["HuggingFace"]


class HuggingFace:
    """The handlers of the task."""

    def __init__(self, classifying: Classifying) -> None:
        self._classifying = classifying

    async def classify(self, request: Request) -> Response:
        """Classify one image; the labels with their scores, the likeliest first."""
        served = self._classifying.bundle_for(request, request.path_params.get("name"))
        body = await read_body(request, self._classifying.settings)
        check_sent(body)
        topk = 5
        if media_type(request) == "application/json":
            body, topk = _of_json(await parsed_json(body))
        (item,) = await self._classifying.items(request, served, [body])
        if item.probs is None:
            assert item.error is not None
            raise of_form(request, item.error)
        ranked = served.predictor.prediction_of("", item.probs, topk).topk
        answer = [{"label": label, "score": probability} for label, probability in ranked]
        return json_response(json.dumps(answer).encode())

    async def describe(self, request: Request) -> Response:
        """What is served under this name."""
        return json_response(json.dumps(self._classifying.bundles.get(request.path_params["name"]).describe()).encode())


def _of_json(value: Any) -> tuple[bytes, int]:
    """(the image, classes that are asked for) of a request with parameters."""
    parameters = value.get("parameters") if isinstance(value, dict) else None
    if not isinstance(value, dict) or "inputs" not in value or not isinstance(parameters, dict | None):
        raise Refusal(422, "inputs", 'the JSON has no "inputs". Send {"inputs": base64, "parameters": {"top_k": 5}}.')
    parameters = parameters or {}
    known = {"top_k", "function_to_apply"}
    if unknown := sorted(set(parameters) - known):
        raise Refusal(
            422,
            "unknown_parameter",
            f"the parameter is unknown: got {unknown[0][:40]!r}. Known: {', '.join(sorted(known))}.",
        )
    applied = parameters.get("function_to_apply")
    if applied not in (None, "softmax", "sigmoid", "none"):
        raise Refusal(
            422, "function_to_apply", f"function_to_apply is unknown: got {str(applied)[:40]!r}. Leave it out."
        )
    if applied in ("sigmoid", "none"):
        raise Refusal(
            422,
            "function_to_apply",
            f"function_to_apply can't be {applied}: the bundle gives probabilities. Leave it out.",
        )
    return from_base64(value["inputs"], "inputs"), check_topk(parameters.get("top_k"))
