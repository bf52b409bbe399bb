"""Heat maps of served bundles: the picture of `vivace.heat_maps`, and one line where there is none."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from served import Client, answering, png

import vivace
from vivace.heatmaps.overlay import side_by_side
from vivace.heatmaps.pictures import LEAST_SIDE, panels


@pytest.fixture(scope="module")
def both(folder: Path, graph_folder: Path) -> Iterator[Client]:
    with answering({"plain": folder, "graph": graph_folder}) as client:
        yield client


@pytest.mark.parametrize("label", [None, "green"])
def test_it_is_the_one_that_python_makes(both: Client, folder: Path, label: str | None) -> None:
    answer = both.post("/heatmap", params={} if label is None else {"label": label}, content=png(0))
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    (expected,) = vivace.heat_maps(folder, png(0), label=label)
    picture = side_by_side(panels(expected.image, [expected.values])[1:], least_side=LEAST_SIDE)
    found = Image.open(io.BytesIO(answer.content))
    assert found.size == (224, 224)
    assert (np.asarray(found) == np.asarray(picture)).all()


def test_where_there_is_none_it_is_said_and_not_offered(both: Client) -> None:
    plain, graph = both.get("/bundles").json()["bundles"]
    assert plain["heat_map"] == {"offered": True}
    assert (graph["heat_map"]["offered"], graph["heat_map"]["why"]) == (False, "no_gradients")
    refused = both.post("/heatmap?bundle=graph", content=png(0))
    assert (refused.status_code, refused.json()["code"]) == (422, "no_heat_map")
    assert "the bundle runs on onnx, which gives no gradients." in refused.json()["error"]


@pytest.mark.parametrize(
    ("query", "content", "status", "code"),
    [
        ("label=purple", png(0), 422, "label"),
        ("topk=3", png(0), 422, "unknown_parameter"),
        ("bundle=other", png(0), 404, "unknown_bundle"),
        ("", b"no image", 415, "not_an_image"),
        ("", png(0)[:200], 422, "truncated"),
    ],
)
def test_what_can_not_be_drawn_is_refused(both: Client, query: str, content: bytes, status: int, code: str) -> None:
    refused = both.post(f"/heatmap?{query}", content=content)
    assert (refused.status_code, refused.json()["code"]) == (status, code)


def test_it_is_no_live_traffic(both: Client) -> None:
    def classified() -> list[str]:
        return [line for line in both.get("/metrics").text.splitlines() if line.startswith("vivace_images_total{")]

    before = classified()
    assert both.post("/heatmap", content=png(0)).status_code == 200
    assert classified() == before
    both.post("/predict", content=png(0))
    assert classified() != before
