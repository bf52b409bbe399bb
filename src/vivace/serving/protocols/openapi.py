"""The description of the server's paths, by OpenAPI 3.1: what clients and their generators read.

A test holds it to the application: every route is in it, and real answers fit its schemas.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from typing import Any

from vivace.runtimes.table import INPUT, OUTPUT
from vivace.serving.settings import Settings

__all__ = ["description"]

JSON = "application/json"
# what may go wrong with a request that has a body of images
REFUSED = {
    400: "It is no request of this protocol.",
    404: "There is no such bundle or version.",
    408: "The body came too slowly.",
    413: "It is too large, or has too many images.",
    415: "It is no image of a format that is taken, or is compressed.",
    422: "The image or a parameter can't be used.",
    500: "The server failed; its log has the cause.",
    501: "It comes in another encoding than chunks.",
    503: "The queue is full: try again after Retry-After seconds.",
}
# what may go wrong with any
ALWAYS = {
    400: "A header comes twice.",
    401: "The token is missing or wrong.",
    403: "A page of another site asks.",
    421: "The Host is none of the server's names.",
}
TEXT, NUMBER, WHOLE = {"type": "string"}, {"type": "number"}, {"type": "integer"}
PROBABILITY = {"type": "number", "minimum": 0, "maximum": 1.002}
FILE = {"type": "string", "format": "binary"}


def description(settings: Settings, *, guarded: bool) -> dict[str, Any]:
    """The OpenAPI document. guarded: whether requests need a token."""
    told: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "vivace",
            "version": metadata.version("vivace"),
            "description": "Image classifiers behind HTTP. Every error is JSON with error, code and request_id.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": dict(_paths(settings)),
        "components": {"schemas": SCHEMAS},
    }
    if guarded:
        told["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        told["security"] = [{"token": []}]
    return told


def _paths(settings: Settings) -> Iterator[tuple[str, dict[str, Any]]]:
    topk = _parameter("topk", "query", {"type": "integer", "minimum": 1, "default": 5}, "Classes per image.")
    bundle = _parameter("bundle", "query", TEXT, "Its name; the first one where it is left out.")
    live = _parameter(
        "live",
        "query",
        {"type": "string", "enum": ["true", "false"], "default": "true"},
        "Whether it is live traffic, whose drift is watched: false for trials.",
    )
    name = _parameter("name", "path", TEXT, "A bundle's name.")
    version = _parameter("version", "path", TEXT, "Its version: 1, and one more after each reload.")
    files = {
        "type": "object",
        "properties": {
            "image": {"type": "array", "items": FILE, "maxItems": settings.max_images},
            "topk": {"type": "integer", "minimum": 1},
            "bundle": TEXT,
            "live": {"type": "string", "enum": ["true", "false"]},
        },
    }
    yield (
        "/predict",
        {
            "post": _operation(
                "predict",
                "Classify an image, or several.",
                "Prediction",
                [bundle, topk, live],
                {"image/*": {"schema": FILE}, "multipart/form-data": {"schema": files}},
            )
        },
    )
    label = _parameter("label", "query", TEXT, "The class that it is of; the predicted one where it is left out.")
    heat = _operation(
        "heat_map", "Where an image speaks for a class.", "Error", [bundle, label], {"image/*": {"schema": FILE}}
    )
    heat["responses"]["200"]["content"] = {"image/png": {"schema": FILE}}
    yield "/heatmap", {"post": heat}
    yield "/bundles", {"get": _operation("bundles", "What is served.", "Bundles")}
    task = {"image/*": {"schema": FILE}, JSON: {"schema": _reference("TaskRequest")}}
    first = _operation("classify_by_the_first", "Hugging Face's task image-classification.", "Scores", [], task)
    yield "/", {"post": first}
    yield (
        "/models/{name}",
        {
            "get": _operation("describe", "What is served under this name.", "Bundle", [name]),
            "post": _operation("classify", "Hugging Face's task image-classification.", "Scores", [name], task),
        },
    )
    yield "/healthz", {"get": _operation("alive", "Whether the process answers.", "Status")}
    yield "/readyz", {"get": _operation("ready", "Whether requests are taken: 503 if not.", "Status", health=True)}
    yield "/metrics", {"get": _plain("metrics", "Metrics as Prometheus reads them.", "text/plain")}
    yield "/openapi.json", {"get": _plain("openapi", "This document.", JSON)}
    yield "/v2", {"get": _operation("server", "Open Inference Protocol: the server.", "Server")}
    for state in ("live", "ready"):
        told = _operation(f"v2_{state}", f"Open Inference Protocol: {state}.", "State", health=True)
        yield f"/v2/health/{state}", {"get": told}
    infer = {
        JSON: {"schema": _reference("InferRequest")},
        "application/octet-stream": {"schema": FILE},
    }
    for path, given in (("/v2/models/{name}", [name]), ("/v2/models/{name}/versions/{version}", [name, version])):
        suffix = "_version" if len(given) > 1 else ""
        length = _parameter(
            "Inference-Header-Content-Length",
            "header",
            {"type": "integer", "minimum": 0},
            "Of the JSON before tensors.",
        )
        yield path, {"get": _operation(f"model{suffix}", "What a bundle takes and gives.", "Model", given)}
        ready = _operation(f"model_ready{suffix}", "Whether a bundle takes requests.", "State", given, health=True)
        yield f"{path}/ready", {"get": ready}
        answer = _operation(f"infer{suffix}", "Classify images.", "InferResponse", [*given, length], infer)
        answer["responses"]["200"]["content"]["application/octet-stream"] = {"schema": FILE}
        yield f"{path}/infer", {"post": answer}


def _parameter(name: str, place: str, schema: dict[str, Any], text: str) -> dict[str, Any]:
    return {"name": name, "in": place, "required": place == "path", "description": text, "schema": schema}


def _reference(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _operation(
    name: str,
    text: str,
    answer: str,
    parameters: list[dict[str, Any]] | None = None,
    body: dict[str, Any] | None = None,
    *,
    health: bool = False,
) -> dict[str, Any]:
    told: dict[str, Any] = {"operationId": name, "summary": text}
    if parameters:
        told["parameters"] = parameters
    if body is not None:
        told["requestBody"] = {"required": True, "content": body}
    responses: dict[str, Any] = {
        "200": {"description": "The answer.", "content": {JSON: {"schema": _reference(answer)}}}
    }
    named = bool(parameters) and any(one["in"] == "path" for one in parameters or [])
    refused = ALWAYS | (REFUSED if body is not None else {404: REFUSED[404]} if named else {})
    for status, meaning in sorted(refused.items()):
        responses[str(status)] = {"description": meaning, "content": {JSON: {"schema": _reference("Error")}}}
    if "503" in responses:
        responses["503"]["headers"] = {"Retry-After": {"schema": WHOLE, "description": "Seconds."}}
    if health:
        responses["503"] = {
            "description": "The server is about to stop.",
            "content": {JSON: {"schema": _reference(answer)}},
        }
    return told | {"responses": responses}


def _plain(name: str, text: str, kind: str) -> dict[str, Any]:
    told = _operation(name, text, "Error")
    told["responses"]["200"]["content"] = {kind: {}}
    return told


def _object(required: dict[str, Any], optional: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": {**required, **(optional or {})}, **more}


def _list(of: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "array", "items": of, **more}


RANKED = _list(_object({"label": TEXT, "probability": PROBABILITY}))
SHAPE = _list({"type": "integer", "minimum": 0})
SCHEMAS: dict[str, Any] = {
    "Error": _object(
        {"error": TEXT, "code": TEXT}, {"request_id": TEXT}, description="error: the cause, the value, how to fix it."
    ),
    "Status": _object({"status": {"enum": ["alive", "ready", "stopping"]}}, {"bundles": _list(TEXT)}),
    "State": {
        "type": "object",
        "properties": {"live": {"type": "boolean"}, "ready": {"type": "boolean"}, "name": TEXT},
    },
    "Bundle": _object(
        {
            "name": TEXT,
            "classes": _list(TEXT),
            "task": {"enum": ["single_label", "multi_label"]},
            "network": TEXT,
            "size": WHOLE,
            "channels": WHOLE,
            "pixels": {"enum": ["uint8", "float32"]},
            "runtime": TEXT,
            "precision": TEXT,
            "max_batch": WHOLE,
            "max_wait_ms": NUMBER,
            "generation": WHOLE,
            "drift": _reference("Drift"),
            "heat_map": _object({"offered": {"type": "boolean"}}, {"why": TEXT, "reason": TEXT}),
        }
    ),
    "Drift": _object(
        {"watched": {"type": "boolean"}},
        {
            "reason": {"type": "string", "description": "Why it is not watched."},
            "alarm": {"type": "boolean"},
            "alarm_at_image": {"type": ["integer", "null"]},
            "images": WHOLE,
            "evidence": {"type": "number", "minimum": 0, "description": "Of drift: about 1 without any."},
            "alarm_from": NUMBER,
            "false_alarm_rate": {
                "type": "number",
                "description": "Of servers without drift, those that ever raise an alarm, at most.",
            },
            "validation_images": WHOLE,
            "validated": TEXT,
            "window": {"type": ["object", "null"], "description": "The last 50 images beside the validation images."},
        },
    ),
    "Bundles": _object({"bundles": _list(_reference("Bundle"))}),
    "Prediction": _object(
        {
            "bundle": TEXT,
            "generation": WHOLE,
            "predictions": _list(
                _object(
                    {"name": TEXT, "label": TEXT, "probability": PROBABILITY, "topk": RANKED},
                    {"labels": _list(TEXT)},
                    description="And whatever else a bundle's predictions carry.",
                ),
                minItems=1,
            ),
            "failures": _list(_object({"name": TEXT, "code": TEXT, "message": TEXT})),
            "milliseconds": NUMBER,
        }
    ),
    "TaskRequest": _object(
        {"inputs": {"type": "string", "contentEncoding": "base64"}},
        {"parameters": {"type": "object", "properties": {"top_k": {"type": "integer", "minimum": 1}}}},
    ),
    "Scores": _list(_object({"label": TEXT, "score": PROBABILITY}), minItems=1),
    "Server": _object({"name": TEXT, "version": TEXT, "extensions": _list(TEXT)}),
    "Model": _object(
        {
            "name": TEXT,
            "versions": _list(TEXT),
            "platform": TEXT,
            **dict.fromkeys(
                ("inputs", "outputs"), _list(_object({"name": TEXT, "datatype": TEXT, "shape": _list(WHOLE)}))
            ),
        }
    ),
    "InferRequest": _object(
        {
            "inputs": _list(
                _object(
                    {
                        "name": {"const": INPUT},
                        "shape": {**SHAPE, "minItems": 1},
                        "datatype": {"enum": ["BYTES", "UINT8", "UINT16", "FP32"]},
                    },
                    {
                        "data": {"type": "array", "description": "Numbers, nested or flat; of BYTES files in base64."},
                        "parameters": {"type": "object", "properties": {"binary_data_size": WHOLE}},
                    },
                ),
                minItems=1,
                maxItems=1,
            )
        },
        {
            "id": {"type": "string", "maxLength": 200},
            "parameters": {"type": "object", "properties": {"binary_data_output": {"type": "boolean"}}},
            "outputs": _list(
                _object(
                    {"name": {"const": OUTPUT}},
                    {
                        "parameters": {
                            "type": "object",
                            "properties": {"binary_data": {"type": "boolean"}, "classification": WHOLE},
                        }
                    },
                )
            ),
        },
    ),
    "InferResponse": _object(
        {
            "model_name": TEXT,
            "model_version": TEXT,
            "outputs": _list(
                _object(
                    {"name": {"const": OUTPUT}, "datatype": {"enum": ["FP32", "BYTES"]}, "shape": SHAPE},
                    {"data": {"type": "array"}, "parameters": {"type": "object"}},
                )
            ),
        },
        {"id": TEXT},
    ),
}
