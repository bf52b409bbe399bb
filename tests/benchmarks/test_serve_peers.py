"""What the comparison of servers sends, and what it makes of what came back."""

from __future__ import annotations

import email
import http.server
import json
import threading
from typing import Any

import pytest

import serve_peers
from serve import request_of
from vivace.hardware import describe


@pytest.mark.parametrize("body", ["bytes", "form"])
def test_a_request_has_the_image_as_the_side_takes_it_and_its_true_length(body: str) -> None:
    image = bytes(range(256)) * 3
    head, _, sent = request_of(image, body, "/predict?bundle=a").partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    assert first == "POST /predict?bundle=a HTTP/1.1"
    assert int(headers["Content-Length"]) == len(sent)
    if body == "form":
        message = email.message_from_bytes(f"Content-Type: {headers['Content-Type']}\r\n\r\n".encode() + sent)
        (part,) = message.get_payload()  # type: ignore[misc]
        assert part.get_param("name", header="content-disposition") == "images"  # type: ignore[union-attr]
        sent = part.get_payload(decode=True)  # type: ignore[union-attr, assignment]
    assert sent == image


@pytest.mark.parametrize(
    "shape", [lambda row: {"predictions": [row]}, lambda row: [row], lambda row: row], ids=["ours", "list", "plain"]
)
def test_an_answer_is_read_as_each_side_gives_it_and_a_refusal_is_none(shape: Any) -> None:
    told = json.dumps(shape({"topk": [{"label": "rose", "probability": 0.75}]})).encode()
    statuses = [200, 503]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(statuses.pop(0))
            self.send_header("content-length", str(len(told)))
            self.end_headers()
            self.wfile.write(told)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=lambda: [server.handle_request() for _ in range(2)])
        thread.start()
        assert serve_peers.answer_of(server.server_port, b"image", "bytes") == {"rose": 0.75}
        with pytest.raises(ValueError, match="503"):
            serve_peers.answer_of(server.server_port, b"image", "bytes")
        thread.join()


def test_ratios_are_vivaces_over_the_peers_and_what_was_refused_is_counted() -> None:
    def run(rate: float, p99: float, **statuses: int) -> dict[str, Any]:
        one = {"requests": 100, "rate": rate, "p50_ms": 1.0, "p99_ms": p99, "server_cpu_seconds": 0.5}
        one["statuses"] = {"200": 100, **{name.removeprefix("s"): count for name, count in statuses.items()}}
        return {"closed": one, "open": one, "start_s": 1.0, "memory_bytes": 2**20, "answers": [{"rose": 0.5}]}

    measured = {"vivace": [run(300, 10), run(330, 10)], "FastAPI": [run(100, 30, s503=2), run(110, 30)]}
    ours, peer = serve_peers.summary_of(measured, [{"rose": 0.75, "tulip": 0.25}])
    assert (ours["rate"], ours["vivace_rate_over"], ours["refused"], ours["max_difference"]) == (315, None, 0, 0.25)
    assert peer["vivace_rate_over"][0] == pytest.approx(3.0)
    assert peer["p99_over_vivace"][0] == pytest.approx(3.0)
    assert (peer["refused"], peer["cpu_ms"]) == (4, 5.0)
    record = {"summary": [ours, peer], "environment": describe(), "date": "2026-11-30", "command": "it"}
    record |= {"served": "openvino int8", "variant": "bf16 compiled", "workers": 2, "connections": 32, "rounds": 2}
    page = serve_peers.markdown(record | {"seconds": 10.0, "peers": {"fastapi": "1.0"}})
    assert "| FastAPI | 105.0 | 3.00 [" in page
