"""A server in a process of its own, asked over sockets: by clients that others made, and by what is hostile."""

from __future__ import annotations

import contextlib
import http.client
import signal
import socket
import subprocess
import threading
import time
import warnings
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from served import png, process

from factories import pixels
from vivace.predictor import Predictor


def exchange(url: str, data: bytes, *, more: bytes = b"") -> bytes:
    """All that a server answers until it ends the connection, or the first 64 KiB."""
    place = urlsplit(url)
    with socket.create_connection((place.hostname, place.port), timeout=30) as connection:
        # the server may have ended it before all was sent
        with contextlib.suppress(ConnectionError):
            connection.sendall(data)
            if more:
                connection.sendall(more)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while len(answer) < 65536 and (found := connection.recv(65536)):
                answer += found
        return answer


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0


HEAD = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\n"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
LENGTH = b"Content-Length: 5\r\n"


@pytest.mark.parametrize(
    "head",
    [
        HEAD + LENGTH + CHUNKED,
        HEAD + CHUNKED + LENGTH,
        HEAD + LENGTH + b"Content-Length: 6\r\n",
        HEAD + b"Content-Length: 5, 6\r\n",
        HEAD + b"Content-Length: +5\r\n",
        HEAD + b"Content-Length: 0x5\r\n",
        HEAD + b"Content-Length: 99999999999999999999\r\n",
        HEAD + b"Transfer-Encoding: xchunked\r\n",
        HEAD + b"Transfer-Encoding: chunked, identity\r\n",
        HEAD + b"Transfer-Encoding : chunked\r\n",
        HEAD + b"Transfer-Encoding:\x0bchunked\r\n",
        HEAD + b"Content-Length: 5\r\n folded: yes\r\n",
        HEAD + b"X: a\x00b\r\n",
        HEAD + b"X: a\rY: b\r\n",
        b"POST /predict HTTP/1.1\nHost: 127.0.0.1\nContent-Length : 5\n",
        b"GET http://127.0.0.1\x00/ HTTP/1.1\r\n",
        b"PRI * HTTP/2.0\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_what_two_servers_could_read_differently_is_refused_and_ends_the_connection(server: str, head: bytes) -> None:
    answer = exchange(server, head + b"\r\n0\r\n\r\n" + SMUGGLED)
    # of a client that goes on sending, the system may throw the answer away; 501: an encoding that is not taken
    assert answer == b"" or (status_of(answer) in (400, 501) and b"connection: close" in answer)
    assert answer == b"" or b'"request_id": "' in answer
    # nothing behind it was taken for a request
    assert answer.count(b"HTTP/1.1 ") <= 1
    metrics = exchange(server, b"GET /metrics HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")
    assert b'route="none",status="404"' not in metrics


@pytest.mark.parametrize(
    ("data", "more", "status"),
    [
        (HEAD + b"".join(b"X-%d: y\r\n" % n for n in range(1000)) + b"\r\n", b"", 431),
        (HEAD + b"X: " + b"y" * 40_000 + b"\r\n\r\n", b"", 431),
        # one header that never ends
        (HEAD + b"X: ", b"y" * 3_000_000, 431),
        (b"GET /" + b"a" * 8000 + b" HTTP/1.1\r\n\r\n", b"", 414),
        (HEAD + b"Content-Length: 999999999\r\nConnection: close\r\n\r\n", b"", 413),
        (HEAD + b"Connection: close, Upgrade\r\nUpgrade: websocket\r\nContent-Length: 0\r\n\r\n", b"", 422),
    ],
)
def test_a_head_or_body_that_is_too_large_is_refused(server: str, data: bytes, more: bytes, status: int) -> None:
    answer = exchange(server, data, more=more)
    # of a client that goes on sending, the system may throw the answer away
    assert status_of(answer) == status or (more and answer == b"")


@pytest.mark.parametrize(
    "data",
    [
        HEAD,
        b"G",
        b"\r\n\r\n",
        HEAD + b"Content-Length: 100\r\n\r\nabc",
        HEAD + CHUNKED + b"\r\n5\r\nabc",
    ],
)
def test_neither_a_head_nor_a_body_that_stops_is_waited_for(impatient: str, data: bytes) -> None:
    # where the machine is slow, all of it came too late
    assert status_of(exchange(impatient, data)) in (408, 0)


def test_a_connection_that_sends_nothing_is_ended(impatient: str) -> None:
    assert exchange(impatient, b"") == b""


def test_requests_sent_ahead_are_answered_in_order_and_a_flood_of_them_is_not(server: str) -> None:
    head = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    some = exchange(server, (head + b"\r\n") * 7 + head + b"Connection: close\r\n\r\n")
    assert some.count(b'{"status": "alive"}') == 8
    image = png(0)
    one = HEAD + b"Content-Length: %d\r\n\r\n" % len(image) + image
    # many at once: the connection is given up, and the server goes on
    exchange(server, one * 2000)
    assert exchange(server, b"GET /healthz HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n").startswith(b"HTTP/1.1 200")


def test_headers_behind_a_body_change_nothing(server: str) -> None:
    image = png(0)
    body = b"%x\r\n%b\r\n0\r\nHost: evil.example\r\nAuthorization: x\r\n\r\n" % (len(image), image)
    answer = exchange(server, HEAD + CHUNKED + b"Connection: close\r\n\r\n" + body)
    assert status_of(answer) == 200


def test_the_client_of_triton_works_unmodified(server: str, graph_folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client_library = pytest.importorskip("tritonclient.http")
    expected = Predictor(graph_folder)
    client = client_library.InferenceServerClient(urlsplit(server).netloc)
    try:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("graph")
        assert not client.is_model_ready("other")
        assert client.get_server_metadata()["name"] == "vivace"
        (described,) = client.get_model_metadata("graph")["inputs"]
        images = pixels(3)
        tensor = client_library.InferInput(described["name"], list(images.shape), described["datatype"])
        for binary in (True, False):
            tensor.set_data_from_numpy(images, binary_data=binary)
            wanted = client_library.InferRequestedOutput("probs", binary_data=binary)
            found = client.infer("graph", [tensor], outputs=[wanted]).as_numpy("probs")
            np.testing.assert_allclose(found, expected.probs(images), atol=1e-5)
        # with no output named it asks for all of them, binary
        np.testing.assert_allclose(client.infer("graph", [tensor]).as_numpy("probs"), expected.probs(images), atol=1e-5)
        files = np.array([png(0), png(1)], dtype=np.object_)
        tensor = client_library.InferInput("images", [2], "BYTES")
        tensor.set_data_from_numpy(files)
        wanted = client_library.InferRequestedOutput("probs", class_count=1)
        found = client.infer("graph", [tensor], outputs=[wanted], request_id="1").as_numpy("probs")
        labels = [text.decode().split(":")[2] for text in found.ravel()]
        assert labels == [expected(image).label for image in files]
        with pytest.raises(client_library.InferenceServerException, match="no bundle has this name"):
            client.infer("other", [tensor])
        tensor.set_data_from_numpy(np.array([b"no image", b""], dtype=np.object_))
        with pytest.raises(client_library.InferenceServerException, match="not an image"):
            client.infer("graph", [tensor])
    finally:
        client.close()


def test_the_client_of_hugging_face_works_unmodified(
    server: str, graph_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    library = pytest.importorskip("huggingface_hub")
    expected, file = Predictor(graph_folder)(png(0)), tmp_path / "one.png"
    file.write_bytes(png(0))
    client = library.InferenceClient(model=f"{server}/models/graph")
    for image in (png(0), str(file)):
        found = client.image_classification(image)
        assert [(one.label, pytest.approx(one.score, abs=1e-6)) for one in found] == list(expected.topk)
    assert [one.label for one in client.image_classification(png(0), top_k=1)] == [expected.label]
    with pytest.raises(library.errors.HfHubHTTPError, match="not an image"):
        client.image_classification(b"no image")


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there is no SIGHUP")
def test_sighup_opens_the_bundles_anew_and_sigterm_loses_no_request_that_was_sent(graph_folder: Path) -> None:
    counts: Counter[object] = Counter()
    ended, started = threading.Event(), threading.Barrier(5)

    def ask(url: str) -> None:
        place, image, was_quick = urlsplit(url), png(0), False
        started.wait()
        while not ended.is_set():
            connection, began = (
                http.client.HTTPConnection(str(place.hostname), place.port, timeout=60),
                time.monotonic(),
            )
            try:
                connection.connect()
            except ConnectionError:
                # it does not listen any more
                return
            with contextlib.closing(connection):
                try:
                    connection.request("POST", "/predict", image)
                    # what takes longer, on a busy machine, is sent to a server that has ended
                    was_quick = time.monotonic() - began < 0.1
                    counts[connection.getresponse().status] += 1
                except ConnectionError:
                    counts["lost"] += was_quick

    with process({"graph": graph_folder}, drain_seconds=0.3) as (running, url):
        threads = [threading.Thread(target=ask, args=(url,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        started.wait()
        running.send_signal(signal.SIGHUP)
        asked = b"GET /v2/models/graph HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n"
        while b'"versions": ["2"]' not in exchange(url, asked):
            time.sleep(0.1)
        running.send_signal(signal.SIGTERM)
        status = running.wait(30)
        ended.set()
        for thread in threads:
            thread.join()
    assert status == 0
    assert counts[200] > 0
    assert set(counts) - {"lost"} == {200}
    assert counts["lost"] == 0


def test_an_address_that_is_taken_and_a_missing_extra_are_said_in_one_line(
    server: str, graph_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vivace.cli import main

    port = str(urlsplit(server).port)
    assert main(["serve", str(graph_folder), "--port", port]) == 2
    assert f"ConfigError: the address can't be listened on: 127.0.0.1 port {port}" in capsys.readouterr().err
    assert main(["serve", str(graph_folder), "--host", "0.0.0.0"]) == 2
    assert "no token is set. Give one (--token, a file" in capsys.readouterr().err
    monkeypatch.setitem(__import__("sys").modules, "uvicorn", None)
    assert main(["serve", str(graph_folder)]) == 2
    assert "pip install 'vivace[serve]'" in capsys.readouterr().err


def test_the_command_answers_and_says_where_as_its_schema_has_it(graph_folder: Path, tmp_path: Path) -> None:
    import json
    import sys

    from answers import last_answer

    # as from another folder, with a relative path
    command = [sys.executable, "-m", "vivace", "serve", f"mine={graph_folder.name}", "--port", "0", "--max-batch", "2"]
    running = subprocess.Popen(
        [*command, "--json"], cwd=graph_folder.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert running.stdout is not None
        told = last_answer(running.stdout.readline())
        assert [bundle["name"] for bundle in told["bundles"]] == ["mine"]
        answer = exchange(told["url"], b"GET /readyz HTTP/1.0\r\nHost: localhost\r\n\r\n")
        assert json.loads(answer.partition(b"\r\n\r\n")[2]) == {"status": "ready", "bundles": ["mine"]}
    finally:
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=30)
    assert running.returncode == 0, err
    assert "Traceback" not in err
