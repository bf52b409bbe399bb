"""What is asked in each protocol, and what is answered: our own, Hugging Face's, Open Inference Protocol v2."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from served import Client, answering, png

from factories import pixels
from vivace.predicted import Prediction
from vivace.serving.protocols.classifying import plain_prediction


def tensor(data: Any = None, **changes: Any) -> dict[str, Any]:
    """The JSON of an inference request for one image."""
    data = pixels(1).ravel().tolist() if data is None else data
    one = {"name": "images", "datatype": "UINT8", "shape": [1, 32, 32, 3], "data": data, **changes}
    return {"inputs": [{name: value for name, value in one.items() if value is not ...}]}


def with_binary(head: dict[str, Any], data: bytes) -> dict[str, Any]:
    """The options of a request with binary tensors."""
    text = json.dumps(head).encode()
    return {"content": text + data, "headers": {"inference-header-content-length": str(len(text))}}


def test_an_answer_has_all_that_the_prediction_has(shared: Client) -> None:
    answer = shared.post("/predict?topk=2", content=png(0)).json()
    expected = shared.app.bundles.get(None).predictor(png(0), topk=2)
    (found,) = answer["predictions"]
    assert (found["label"], found["probability"]) == (expected.label, expected.probability)
    assert [(row["label"], row["probability"]) for row in found["topk"]] == list(expected.topk)
    assert answer["failures"] == []


def test_fields_that_predictions_get_later_are_passed_on() -> None:
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Later(Prediction):
        prediction_set: tuple[str, ...] | None = None
        abstains: bool | None = None

    told = plain_prediction(Later("a", "b", 0.5, (("b", 0.5),), ("b",), ("b", "c")), multi_label=False)
    assert told == {
        "name": "a",
        "label": "b",
        "probability": 0.5,
        "topk": [{"label": "b", "probability": 0.5}],
        "prediction_set": ["b", "c"],
    }


def test_images_that_cant_be_used_are_listed_beside_the_others(shared: Client) -> None:
    files = [("image", ("a", png(0))), ("image", ("b", b"GIF89a, or not")), ("topk", (None, "1"))]
    answer = shared.post("/predict", files=files).json()
    assert [(one["name"], len(one["topk"])) for one in answer["predictions"]] == [("a", 1)]
    assert [one["name"] for one in answer["failures"]] == ["b"]
    refused = shared.post("/predict", files=files[1:2])
    assert refused.status_code == 422
    assert set(refused.json()) == {"error", "code", "request_id"}


@pytest.mark.parametrize(
    ("content", "status", "says"),
    [
        (b"", 422, "empty"),
        (b"just text", 415, "not an image"),
        (b"%PDF-1.7 and so on", 415, "format is not allowed"),
        (png(0)[:200], 422, "damaged"),
        (b"https://example.org/cat.jpg", 422, "nothing is fetched"),
        (b"file:///etc/passwd", 422, "nothing is fetched"),
    ],
)
def test_what_is_no_image_is_refused_with_a_reason(shared: Client, content: bytes, status: int, says: str) -> None:
    for path in ("/predict", "/models/plain", "/"):
        refused = shared.post(path, content=content)
        assert refused.status_code == status
        assert says in refused.json()["error"]


@pytest.mark.parametrize("given", ["0", "-1", "1.5", "x", "9" * 400, "²"])
def test_a_topk_that_is_none_is_refused(shared: Client, given: str) -> None:
    refused = shared.post("/predict", params={"topk": given}, content=png(0))
    assert (refused.status_code, refused.json()["code"]) == (422, "topk")


def test_a_misspelt_parameter_is_refused(shared: Client) -> None:
    refused = shared.post("/predict?top_k=3", content=png(0))
    assert refused.status_code == 422
    assert "got 'top_k'. Known: bundle, topk, live." in refused.json()["error"]


def test_hugging_faces_task_is_answered_for_bytes_and_for_json(shared: Client) -> None:
    plain = shared.post("/models/plain", content=png(0)).json()
    assert [set(row) for row in plain] == [{"label", "score"}] * 3
    asked = {"inputs": base64.b64encode(png(0)).decode(), "parameters": {"top_k": 2}}
    assert shared.post("/", json=asked).json() == plain[:2]
    for wrong, says in (
        ({"inputs": "https://example.org/x.png"}, "nothing is fetched"),
        ({"inputs": "§"}, "no base64"),
        ({"inputs": asked["inputs"], "parameters": {"top_k": -1}}, "topk"),
        ({"inputs": asked["inputs"], "parameters": {"function_to_apply": "sigmoid"}}, "probabilities"),
        ([1], '"inputs"'),
    ):
        refused = shared.post("/models/plain", json=wrong)
        assert refused.status_code == 422
        assert says in refused.json()["error"]


def test_the_protocols_metadata_is_what_inference_takes(client: Client) -> None:
    assert client.get("/v2").json()["extensions"] == ["binary_tensor_data", "classification"]
    model = client.get("/v2/models/plain").json()
    assert model["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, 32, 32, 3]}]
    assert model["outputs"] == [{"name": "probs", "datatype": "FP32", "shape": [-1, 3]}]
    assert model["versions"] == ["1"]
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/plain/ready", "/v2/models/plain/versions/1/ready"):
        assert client.get(path).status_code == 200
    client.app.begin_to_stop()
    assert client.get("/v2/health/live").status_code == 200
    for path in ("/v2/health/ready", "/v2/models/plain/ready", "/readyz"):
        assert client.get(path).status_code == 503


def test_tensors_give_the_probabilities_of_the_network_however_they_are_sent(shared: Client) -> None:
    images = pixels(2)
    expected = shared.app.bundles.get(None).predictor.probs(images)
    nested, floats = images.tolist(), (images / 255).astype("<f4")
    asked = [
        {"json": tensor(nested, shape=[2, 32, 32, 3])},
        {"json": tensor(images.ravel().tolist(), shape=[2, 32, 32, 3])},
        {"json": tensor(floats.ravel().tolist(), shape=[2, 32, 32, 3], datatype="FP32")},
        with_binary(
            tensor(..., shape=[2, 32, 32, 3], parameters={"binary_data_size": images.nbytes}), images.tobytes()
        ),
        with_binary(
            tensor(..., shape=[2, 32, 32, 3], datatype="FP32", parameters={"binary_data_size": floats.nbytes}),
            floats.tobytes(),
        ),
    ]
    for options in asked:
        answer = shared.post("/v2/models/plain/infer", **options)
        assert answer.status_code == 200, answer.text
        (output,) = answer.json()["outputs"]
        assert (output["name"], output["datatype"], output["shape"]) == ("probs", "FP32", [2, 3])
        np.testing.assert_allclose(np.reshape(output["data"], (2, 3)), expected, atol=2e-3)


def test_files_are_sent_as_bytes_and_answered_as_classes_or_a_binary_tensor(shared: Client) -> None:
    images = [png(0), png(1)]
    data = b"".join(len(image).to_bytes(4, "little") + image for image in images)
    expected = [shared.app.bundles.get(None).predictor(image) for image in images]
    head = tensor(..., datatype="BYTES", shape=[2], parameters={"binary_data_size": len(data)})
    head["outputs"] = [{"name": "probs", "parameters": {"classification": 2}}]
    answer = shared.post("/v2/models/plain/infer", **with_binary({**head, "id": "mine"}, data)).json()
    assert answer["id"] == "mine"
    assert answer["outputs"][0]["shape"] == [2, 2]
    first = [text.split(":") for text in answer["outputs"][0]["data"][::2]]
    assert [label for _, _, label in first] == [one.label for one in expected]
    assert [float(value) for value, _, _ in first] == pytest.approx([one.probability for one in expected], abs=2e-3)
    encoded = tensor([base64.b64encode(image).decode() for image in images], datatype="BYTES", shape=[2, 1])
    response = shared.post("/v2/models/plain/infer", json={**encoded, "parameters": {"binary_data_output": True}})
    length = int(response.headers["inference-header-content-length"])
    (output,) = json.loads(response.content[:length])["outputs"]
    assert output["parameters"] == {"binary_data_size": 24}
    probs = np.frombuffer(response.content[length:], "<f4").reshape(2, 3)
    assert probs.max(1) == pytest.approx([one.probability for one in expected], abs=2e-3)


HUGE = 10**30
WRONG = {
    "no JSON": {"content": b"{"},
    "no object": {"content": b"[]"},
    "depth": {"content": b"[" * 100_000},
    "digits": {"content": b'{"inputs": ' + b"9" * 5000 + b"}"},
    "NaN": {"content": b'{"inputs": NaN}'},
    "no inputs": {"json": {}},
    "two inputs": {"json": {"inputs": tensor()["inputs"] * 2}},
    "another input": {"json": tensor(name="x")},
    "datatype": {"json": tensor(datatype="FP64")},
    "another shape": {"json": tensor(shape=[1, 3, 32, 32])},
    "no shape": {"json": tensor(shape=...)},
    "a negative shape": {"json": tensor(shape=[-1, 32, 32, 3])},
    "a shape of text": {"json": tensor(shape=["1", 32, 32, 3])},
    "a shape of booleans": {"json": tensor(shape=[True, 32, 32, 3])},
    "a huge shape": {"json": tensor(shape=[HUGE, 32, 32, 3])},
    "no image": {"json": tensor([], shape=[0, 32, 32, 3])},
    "too little data": {"json": tensor([1, 2, 3])},
    "data out of range": {"json": tensor([256] * 3072)},
    "data below zero": {"json": tensor([-1] * 3072)},
    "floats in uint8": {"json": tensor([0.5] * 3072)},
    "texts": {"json": tensor(["1"] * 3072)},
    "uneven data": {"json": tensor([[1, 2], [3]])},
    "floats beyond 1": {"json": tensor([2.0] * 3072, datatype="FP32")},
    "an overflow to infinity": {"json": tensor([1e39] * 3072, datatype="FP32")},
    "shared memory": {"json": tensor(parameters={"shared_memory_region": "x"})},
    "too few bytes": with_binary(tensor(..., parameters={"binary_data_size": 3}), b"abc"),
    "bytes that are not there": with_binary(tensor(..., parameters={"binary_data_size": 3072}), b"abc"),
    "bytes of no input": with_binary(tensor(), b"abc"),
    "data twice": with_binary(tensor(parameters={"binary_data_size": 3072}), bytes(3072)),
    "a length beyond the body": {"json": tensor(), "headers": {"inference-header-content-length": "99999999"}},
    "a length that is none": {"json": tensor(), "headers": {"inference-header-content-length": "-1"}},
    "a binary NaN": with_binary(
        tensor(..., datatype="FP32", parameters={"binary_data_size": 12288}), np.full(3072, np.nan, "<f4").tobytes()
    ),
    "an element beyond the tensor": with_binary(
        tensor(..., datatype="BYTES", shape=[1], parameters={"binary_data_size": 8}), b"\xff\xff\xff\xffabcd"
    ),
    "fewer elements than the shape": with_binary(
        tensor(..., datatype="BYTES", shape=[2], parameters={"binary_data_size": 8}), b"\4\0\0\0abcd"
    ),
    "an unknown output": {"json": {**tensor(), "outputs": [{"name": "logits"}]}},
    "outputs of no list": {"json": {**tensor(), "outputs": {"name": "probs"}}},
    "an id of an object": {"json": {**tensor(), "id": {}}},
}


@pytest.mark.parametrize("what", WRONG)
def test_a_tensor_that_is_wrong_is_refused_with_a_reason(shared: Client, what: str) -> None:
    refused = shared.post("/v2/models/plain/infer", **WRONG[what])
    assert refused.status_code == 400, refused.text
    assert re.fullmatch(r".+\. ?.*[.!]", refused.json()["error"])


@pytest.mark.parametrize("name", ["none", "..%2f..%2fetc%2fpasswd", "%00", "plain%2f", "PLAIN", "a" * 3000])
def test_a_bundle_that_is_not_served_is_not_looked_for_on_the_disk(shared: Client, name: str) -> None:
    for method, path in (
        ("GET", f"/v2/models/{name}"),
        ("POST", f"/v2/models/{name}/infer"),
        ("GET", f"/models/{name}"),
    ):
        assert shared.run(shared.send(method, path)).status_code == 404, path
    assert shared.post("/predict", params={"bundle": name}, content=png(0)).status_code == 404


def test_bundles_are_served_side_by_side_and_the_first_answers_where_none_is_named(
    folder: Path, graph_folder: Path
) -> None:
    with answering({"plain": folder, "graph": graph_folder}) as client:
        assert [one["name"] for one in client.get("/bundles").json()["bundles"]] == ["plain", "graph"]
        answers = [client.post(f"/predict{query}", content=png(0)).json() for query in ("", "?bundle=graph")]
        assert [answer["bundle"] for answer in answers] == ["plain", "graph"]
        found = [{row["label"]: row["probability"] for row in one["predictions"][0]["topk"]} for one in answers]
        assert found[0] == pytest.approx(found[1], abs=0.06)
        assert client.get("/models/graph").json()["runtime"] == "onnx"


def test_the_description_has_every_path_and_real_answers_fit_it(shared: Client) -> None:
    told = shared.get("/openapi.json").json()
    routes = {(method.lower(), route.path) for route in shared.app.guard._app.routes for method in route.methods}
    described = {(method, path) for path, methods in told["paths"].items() for method in methods}
    # what is served beside HEAD, which follows from GET, the page, and what is there to be refused
    routes = {(method, path) for method, path in routes if not path.endswith("/stats")}
    assert {(method, path) for method, path in routes if method != "head" and "page" not in path} - described <= {
        ("get", "/")
    }
    assert described <= routes
    answers = {
        ("post", "/predict"): shared.post("/predict", content=png(0)),
        ("post", "/models/{name}"): shared.post("/models/plain", content=png(0)),
        ("post", "/"): shared.post("/", content=png(0)),
        ("post", "/v2/models/{name}/infer"): shared.post("/v2/models/plain/infer", json=tensor()),
        ("get", "/v2/models/{name}"): shared.get("/v2/models/plain"),
        ("get", "/v2/models/{name}/ready"): shared.get("/v2/models/plain/ready"),
        ("get", "/models/{name}"): shared.get("/models/plain"),
        **{("get", path): shared.get(path) for path in ("/bundles", "/healthz", "/readyz", "/v2", "/v2/health/live")},
    }
    for (method, path), answer in answers.items():
        content = told["paths"][path][method]["responses"]["200"]["content"]
        schema = {**content["application/json"]["schema"], "components": told["components"]}
        Draft202012Validator(schema).validate(answer.json())
    refused = shared.post("/predict", content=b"x")
    response = told["paths"]["/predict"]["post"]["responses"][str(refused.status_code)]
    schema = {**response["content"]["application/json"]["schema"], "components": told["components"]}
    Draft202012Validator(schema).validate(refused.json())
    Draft202012Validator({"type": "object", "required": ["openapi", "info", "paths"]}).validate(told)
