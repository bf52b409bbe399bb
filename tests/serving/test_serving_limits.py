"""What is refused before an image is looked at: sizes, time, parts, names, tokens; and settings that are not safe."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from served import Client, answering, png

from vivace.errors import BundleError, ConfigError
from vivace.serving.bundles import named
from vivace.serving.settings import TOKEN_VARIABLE, Settings, is_loopback, read_token

TOKEN = "a-token-of-more-than-16"
BOUNDARY = {"content-type": "multipart/form-data; boundary=b"}


async def pieces(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


def test_a_body_over_the_limit_is_refused_with_and_without_its_length(folder: Path) -> None:
    with answering({"plain": folder}, max_body_bytes=10_000) as client:
        for make in (lambda: bytes(10_001), lambda: pieces(*[bytes(1000)] * 11)):
            for path in ("/predict", "/v2/models/plain/infer", "/models/plain"):
                refused = client.post(path, content=make())
                assert (refused.status_code, refused.json()["code"]) == (413, "too_large")
                assert refused.headers["connection"] == "close"
        # a length that lies is no reason to wait or to believe it
        lying = client.post("/predict", content=pieces(png(0)), headers={"content-length": "9" * 25})
        assert lying.status_code == 413


def test_bodies_are_refused_once_all_of_them_take_too_much_memory(folder: Path) -> None:
    with answering({"plain": folder}, max_pending_bytes=5000) as client:
        refused = client.post("/predict", content=bytes(6000))
        assert (refused.status_code, refused.json()["code"]) == (503, "no_memory")
        assert "retry-after" in refused.headers
        # what was refused or answered is forgotten
        assert client.app.guard.pending_bytes == 0
        assert client.post("/predict", content=png(0, size=32)).status_code == 200
        assert client.app.guard.pending_bytes == 0


def call(client: Client, receive: Callable[[], Awaitable[dict[str, Any]]], **headers: str) -> tuple[int, bytes]:
    """(status, body) of a request whose body comes from `receive`."""
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/predict", "raw_path": b"/predict", "query_string": b""}
    pairs = [(b"host", b"127.0.0.1"), *((name.encode(), value.encode()) for name, value in headers.items())]
    scope |= {"headers": pairs, "root_path": "", "scheme": "http", "http_version": "1.1"}
    client.run(client.app(scope, receive, send))
    return sent[0]["status"], sent[1]["body"]


def test_a_body_that_stops_and_one_that_trickles_are_given_up(folder: Path) -> None:
    async def stops() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    async def trickles() -> dict[str, Any]:
        return {"type": "http.request", "body": b"x", "more_body": True}

    # a rate that nothing reaches
    patience = {"idle_seconds": 0.01, "header_seconds": 0.01, "min_bytes_per_second": 1 << 60}
    with answering({"plain": folder}, **patience) as client:
        for receive in (stops, trickles):
            status, body = call(client, receive)
            assert status == 408
            assert b"too slowly" in body


def part(name: str, data: bytes, *, filename: str | None = "x", more: str = "") -> bytes:
    disposition = f'form-data; name="{name}"' + (f'; filename="{filename}"' if filename is not None else "")
    return f"--b\r\nContent-Disposition: {disposition}\r\n{more}\r\n".encode() + data + b"\r\n"


MULTIPART = {
    "too many images": (b"".join([part("image", b"x")] * 65) + b"--b--\r\n", "more than 64 images"),
    "a flood of parts": (b"".join([part(f"f{n}", b"", filename=None) for n in range(5000)]) + b"--b--\r\n", "too many"),
    "a flood of headers": (part("image", b"x", more="X: y\r\n" * 500) + b"--b--\r\n", "does not follow"),
    "a long header": (part("image", b"x", more="X: " + "y" * 100_000 + "\r\n") + b"--b--\r\n", "does not follow"),
    "a long field": (part("topk", b"1" * 2000, filename=None) + b"--b--\r\n", "is no file and has over"),
    "a field twice": (part("topk", b"1", filename=None) * 2 + b"--b--\r\n", "comes twice"),
    "nested": (
        part("image", b"x", more="Content-Type: multipart/mixed; boundary=c\r\n") + b"--b--\r\n",
        "side by side",
    ),
    "encoded": (part("image", b"x", more="Content-Transfer-Encoding: base64\r\n") + b"--b--\r\n", "as they are"),
    "no name": (b"--b\r\n\r\nx\r\n--b--\r\n", "no name"),
    "no end": (part("image", png(0)), "ends before"),
    "no boundary in it": (b"anything", "does not follow"),
}


@pytest.mark.parametrize("what", MULTIPART)
def test_a_multipart_body_that_is_odd_is_refused(shared: Client, what: str) -> None:
    content, says = MULTIPART[what]
    refused = shared.post("/predict", content=content, headers=BOUNDARY)
    assert refused.status_code == 400, refused.text
    assert says in refused.json()["error"]


@pytest.mark.parametrize(
    "kind",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        f"multipart/form-data; boundary={'b' * 71}",
        "multipart/mixed; boundary=b",
    ],
)
def test_a_boundary_that_is_none_is_refused(shared: Client, kind: str) -> None:
    refused = shared.post("/predict", content=part("image", png(0)) + b"--b--", headers={"content-type": kind})
    assert refused.status_code in (400, 415)


def test_what_is_compressed_or_of_another_kind_is_not_unpacked(shared: Client) -> None:
    for headers in ({"content-encoding": "gzip"}, {"content-encoding": "br"}, {"content-type": "application/json"}):
        refused = shared.post("/predict", content=png(0), headers=headers)
        assert refused.status_code == 415
    # curl's --data-binary says that a form comes: it is the bytes that count
    kind = {"content-type": "application/x-www-form-urlencoded"}
    assert shared.post("/predict", content=png(0), headers=kind).status_code == 200
    # its -d leaves out the ends of lines
    spoilt = png(0).replace(b"\n", b"").replace(b"\r", b"")
    for path in ("/predict", "/"):
        refused = shared.post(path, content=spoilt, headers=kind)
        assert refused.status_code in (415, 422)
        assert "use --data-binary @one.jpg" in refused.json()["error"]
        assert "--data-binary" not in shared.post(path, content=spoilt).json()["error"]


def test_what_is_forgotten_is_said(shared: Client) -> None:
    for path in ("/predict", "/", "/heatmap", "/models/plain"):
        refused = shared.post(path)
        assert (refused.status_code, refused.json()["code"]) == (422, "empty")
        assert "the body is empty: got 0 bytes" in refused.json()["error"]
    content = part("image", b"hello", filename=None) + b"--b--\r\n"
    refused = shared.post("/predict", content=content, headers=BOUNDARY)
    assert refused.json()["error"].endswith("An image is to be a file: curl -F image=@one.jpg")
    for path in ("/v2/models/stats", "/v2/models/plain/stats", "/v2/models/plain/versions/1/stats"):
        refused = shared.get(path)
        assert (refused.status_code, refused.json()["code"]) == (404, "statistics")
        assert "/metrics" in refused.json()["error"]


def test_more_images_than_the_queue_holds_are_no_reason_to_try_again(folder: Path) -> None:
    with answering({"plain": folder}, queue=3) as client:
        files = [("image", (f"{number}.png", png(0))) for number in range(4)]
        refused = client.post("/predict", files=files)
        assert (refused.status_code, refused.json()["code"]) == (413, "too_many")
        assert "a request may have at most 3" in refused.json()["error"]
        assert "retry-after" not in refused.headers
        assert client.post("/predict", files=files[:3]).status_code == 200


def test_methods_that_a_path_lacks_are_refused_and_head_is_get_without_a_body(shared: Client) -> None:
    for method, path in (("GET", "/predict"), ("OPTIONS", "/predict"), ("DELETE", "/v2"), ("TRACE", "/healthz")):
        refused = shared.run(shared.send(method, path))
        assert refused.status_code == 405
        assert refused.headers["allow"]
        assert not [name for name in refused.headers if name.startswith("access-control")]
    assert shared.run(shared.send("HEAD", "/healthz")).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "127.0.0.1.evil.example",
        "",
        "0.0.0.0",
        "localhost:evil.example",
        "[::1]x",
        "127.0.0.1:80:80",
    ],
)
def test_a_name_that_is_none_of_the_servers_is_refused(shared: Client, host: str) -> None:
    refused = shared.get("/healthz", headers={"host": host})
    assert (refused.status_code, refused.json()["code"]) == (421, "unknown_host")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000"])
def test_names_of_this_machine_are_taken(shared: Client, host: str) -> None:
    assert shared.get("/healthz", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:9", "file://", "http://[", "127.0.0.1", ""]
)
def test_a_page_of_another_site_is_refused(shared: Client, origin: str) -> None:
    refused = shared.post("/predict", content=png(0), headers={"origin": origin})
    assert (refused.status_code, refused.json()["code"]) == (403, "other_origin")
    assert not [name for name in refused.headers if name.startswith("access-control")]
    assert shared.post("/predict", content=png(0), headers={"origin": "http://127.0.0.1"}).status_code == 200


@pytest.mark.parametrize("name", ["host", "authorization", "content-type"])
def test_a_header_that_comes_twice_is_refused(shared: Client, name: str) -> None:
    refused = shared.post("/predict", content=png(0), headers=[("host", "127.0.0.1"), (name, "a"), (name, "b")])
    assert (refused.status_code, refused.json()["code"]) == (400, "repeated_header")


def test_without_the_token_only_probes_are_answered(folder: Path) -> None:
    with answering({"plain": folder}, host="0.0.0.0", token=TOKEN) as client:
        for path in ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"):
            assert client.get(path).status_code == 200
        for headers in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": f"Basic {TOKEN}"},
            {"authorization": TOKEN},
            {"authorization": f"Bearer {TOKEN}x"},
            {"authorization": "Bearer " + "é" * 20},
        ):
            for path in ("/metrics", "/bundles", "/v2", "/models/plain", "/openapi.json"):
                refused = client.get(path, headers={name: value.encode() for name, value in headers.items()})
                assert refused.status_code == 401
                assert refused.headers["www-authenticate"] == "Bearer"
            assert client.post("/", content=png(0)).status_code == 401
        right = {"authorization": f"Bearer {TOKEN}"}
        assert client.post("/predict", content=png(0), headers=right).status_code == 200
        # whoever has the token may use any name
        assert client.get("/bundles", headers={**right, "host": "api.example.org"}).status_code == 200
        assert TOKEN not in str(client.log())
        assert TOKEN not in repr(client.app.settings)


def test_names_that_were_allowed_are_held_to_with_a_token_too(folder: Path) -> None:
    with answering({"plain": folder}, token=TOKEN, allow_hosts=("api.example.org",)) as client:
        assert client.get("/healthz", headers={"host": "API.example.org:443"}).status_code == 200
        assert client.get("/healthz", headers={"host": "other.example.org"}).status_code == 421


def test_an_address_beyond_this_machine_needs_a_token() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.2", "example.org", "127.0.0.1.example.org"):
        with pytest.raises(ConfigError, match="no token is set"):
            Settings(host=host)
        assert Settings(host=host, token=TOKEN).token == TOKEN
    for host in ("127.0.0.1", "::1", "localhost", "127.9.9.9"):
        assert is_loopback(host)
        assert Settings(host=host).token is None


def test_a_token_comes_from_a_file_or_the_environment_and_no_message_has_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    file.chmod(0o600)
    assert read_token(file, {}) == TOKEN
    assert read_token(None, {TOKEN_VARIABLE: TOKEN}) == TOKEN
    assert read_token(None, {}) is None
    if os.name == "posix":
        file.chmod(0o644)
        assert read_token(file, {}) == TOKEN
        assert "everybody on this machine can read the token" in capsys.readouterr().err
    for wrong in ("short", "with spaces in between it", "x" * 600, "ünïcödé-tökèn-of-some-length"):
        file.write_text(wrong)
        with pytest.raises(ConfigError) as raised:
            read_token(file, {})
        assert wrong not in str(raised.value)
    with pytest.raises(ConfigError, match="can't be read"):
        read_token(tmp_path / "none", {})
    with pytest.raises(ConfigError, match="no small file"):
        read_token(tmp_path, {})


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": 70_000},
        {"queue": 0},
        {"max_batch": 0},
        {"max_wait_ms": -1},
        {"log": "all"},
        {"host": "a b"},
        {"drain_seconds": -1},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Settings(**wrong)


def test_names_come_from_folders_and_must_differ(tmp_path: Path) -> None:
    (tmp_path / "a=b").mkdir()
    assert named([str(tmp_path / "runs/photos/bundle"), "other=x/photos"]) == {
        "photos": tmp_path / "runs/photos/bundle",
        "other": Path("x/photos"),
    }
    assert list(named([str(tmp_path / "a=b")])) == ["a-b"]
    assert list(named(["photos=x/花朵"])) == ["photos"]
    for wrong, says in (
        ([], "BUNDLE is missing"),
        (["x/photos", "y/photos"], "two bundles"),
        (["..%2f=x"], "letters"),
        (["x/花朵"], "ASCII letters.*got '花朵'. Give one before the folder: NAME=x/花朵"),
        (["花=x/photos"], "got '花'. Give one before the folder: NAME=x/photos"),
    ):
        with pytest.raises(ConfigError, match=says):
            named(wrong)


def test_a_bundle_is_opened_anew_and_one_that_does_not_do_is_refused(graph_folder: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "moving"
    shutil.copytree(graph_folder, folder)
    with answering({"moving": folder}) as client:
        before = client.post("/predict", content=png(0)).json()
        assert client.run(client.app.reload()) is True
        after = client.post("/predict", content=png(0)).json()
        assert (before["generation"], after["generation"]) == (1, 2)
        assert client.get("/v2/models/moving").json()["versions"] == ["2"]
        assert client.get("/v2/models/moving/versions/1").status_code == 404
        # a flipped bit
        graph = folder / "model.onnx"
        data = bytearray(graph.read_bytes())
        data[len(data) // 2] ^= 1
        graph.write_bytes(data)
        assert client.run(client.app.reload()) is False
        assert client.log()[-1]["event"] == "reload_refused"
        shutil.rmtree(folder)
        assert client.run(client.app.reload()) is False
        # the one before goes on, without its files
        assert client.post("/predict", content=png(0)).json()["predictions"] == after["predictions"]
        assert 'vivace_reloads_total{bundle="moving",result="refused"} 2.0' in client.get("/metrics").text


def test_no_request_is_dropped_while_a_bundle_is_opened_anew(client: Client) -> None:
    async def both() -> set[tuple[int, int]]:
        reloading = asyncio.create_task(client.app.reload())
        answers = []
        while not reloading.done() or len(answers) < 20:
            tasks = [client.send("POST", "/predict", content=png(0)) for _ in range(4)]
            answers += await asyncio.gather(*tasks)
        return {(answer.status_code, answer.json().get("generation", 0)) for answer in answers}

    assert client.run(both()) <= {(200, 1), (200, 2)}
    assert client.post("/predict", content=png(0)).json()["generation"] == 2


def test_a_certificate_that_does_not_hold_is_refused(graph_folder: Path) -> None:
    import dataclasses

    from vivace.bundle import load_bundle
    from vivace.serving.bundles import _check_certificate

    bundle = load_bundle(graph_folder)
    _check_certificate(bundle)
    worse = dataclasses.replace(bundle.info, parity={**bundle.info.parity, "top1_agreement": 0.5})
    with pytest.raises(BundleError, match="does not agree with PyTorch"):
        _check_certificate(dataclasses.replace(bundle, info=worse))


def test_ids_and_traces_are_passed_on_and_odd_ones_are_not(shared: Client) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    answer = shared.get("/healthz", headers={"x-request-id": "my-id.1", "traceparent": trace})
    assert (answer.headers["x-request-id"], answer.headers["traceparent"]) == ("my-id.1", trace)
    for odd in ("a b", "x" * 65, "<script>", ""):
        answer = shared.get("/nothing", headers={"x-request-id": odd, "traceparent": "00-zz"})
        assert answer.headers["x-request-id"] == answer.json()["request_id"] != odd
        assert "traceparent" not in answer.headers


def test_the_log_has_no_query_and_no_line_that_a_client_wrote(folder: Path) -> None:
    with answering({"plain": folder}, log="requests") as client:
        client.get("/nothing%0a%7b%22event%22:%22forged%22%7d%1b[2J?token=secret")
        client.post("/predict?topk=1", content=png(0))
        lines = client.log()
    assert [line["event"] for line in lines] == ["bundle_opened", "drift_not_watched", "request", "request"]
    assert [line["status"] for line in lines[2:]] == [404, 200]
    assert "secret" not in str(lines)
    assert (lines[3]["bundle"], lines[3]["images"]) == ("plain", 1)


def test_metrics_count_routes_and_not_what_clients_made_up(shared: Client) -> None:
    for number in range(5):
        shared.get(f"/made-up-{number}")
        shared.get(f"/v2/models/made-up-{number}")
    text = shared.get("/metrics").text
    assert "made-up" not in text
    assert 'vivace_requests_total{route="none",status="404"}' in text
    for name in ("vivace_stage_seconds_bucket", "vivace_batch_images_bucket", "vivace_pending_images"):
        assert name in text
