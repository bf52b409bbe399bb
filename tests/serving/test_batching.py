"""The batcher: which images are classified together, and what becomes of those that nobody waits for."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served import Client, Gate, answering, as_png, png, until

from vivace.errors import BundleError
from vivace.predictor import Predictor
from vivace.serving.trial import MAX_BATCH_SECONDS, MAX_WAIT, Batching, Trial, choose, run_trial


def probabilities(answer: dict[str, Any]) -> dict[str, float]:
    (prediction,) = answer["predictions"]
    return {row["label"]: row["probability"] for row in prediction["topk"]}


def test_answers_are_bitwise_those_of_a_predictor_that_is_given_the_same_batch(client: Client) -> None:
    gate, images = Gate(client), [png(number) for number in range(6)]

    async def ask() -> list[Any]:
        # while the network has the first image, the others become one batch
        first = asyncio.create_task(client.send("POST", "/predict", content=images[0]))
        await until(gate.entered.is_set)
        others = [asyncio.create_task(client.send("POST", "/predict", content=image)) for image in images[1:]]
        await until(lambda: client.app.bundles.get(None).batcher._ready.qsize() == 5)
        gate.opened.set()
        return [await task for task in (first, *others)]

    answers = client.run(ask())
    assert [len(batch) for batch in gate.batches] == [1, 5]
    load = gate.predictor.bundle.preprocess.load
    for batch in gate.batches:
        expected = gate.answers(batch).probs_NK
        for row, probs in zip(batch, expected, strict=True):
            (index,) = [i for i, image in enumerate(images) if np.array_equal(load(image), row)]
            assert probabilities(answers[index].json()) == {
                name: float(value) for name, value in zip(gate.predictor.classes, probs, strict=True)
            }


def test_several_files_are_answered_in_order_as_a_predictor_answers_them_together(client: Client) -> None:
    images = [png(number) for number in range(5)]
    files = [("image", (f"{number}.png", image)) for number, image in enumerate(images)]
    answer = client.post("/predict?topk=3", files=files).json()
    predictor = client.app.bundles.get(None).predictor
    found = [{row["label"]: row["probability"] for row in one["topk"]} for one in answer["predictions"]]
    assert [one["name"] for one in answer["predictions"]] == [f"{number}.png" for number in range(5)]
    # the batch may have been taken in two
    for probs, one in zip(predictor(images, topk=3), found, strict=True):
        assert dict(probs.topk) == pytest.approx(one, abs=2e-3)


def test_a_full_queue_is_refused_with_a_time_to_try_again_and_what_was_taken_is_answered(folder: Path) -> None:
    with answering({"plain": folder}, queue=3) as client:
        gate = Gate(client)

        async def ask() -> list[Any]:
            tasks = [asyncio.create_task(client.send("POST", "/predict", content=png(0))) for _ in range(3)]
            await until(lambda: client.app.bundles.get(None).batcher.is_full)
            refused = await client.send("POST", "/predict", content=png(1))
            gate.opened.set()
            return [refused, *[await task for task in tasks]]

        refused, *answered = client.run(ask())
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["code"] == "queue_full"
        assert "3 images wait" in refused.json()["error"]
        assert [answer.status_code for answer in answered] == [200] * 3
        # and there is room again
        assert client.post("/predict", content=png(1)).status_code == 200


def test_work_of_a_client_that_leaves_is_cancelled(client: Client) -> None:
    gate, sent = Gate(client), []

    async def leave() -> None:
        staying = asyncio.create_task(client.send("POST", "/predict", content=png(0)))
        await until(gate.entered.is_set)
        gone = asyncio.Event()
        messages = [{"type": "http.request", "body": png(1), "more_body": False}]

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/predict", "raw_path": b"/predict", "query_string": b""}
        scope |= {"headers": [(b"host", b"127.0.0.1")], "root_path": "", "scheme": "http", "http_version": "1.1"}
        leaving = asyncio.create_task(client.app(scope, receive, send))
        await until(lambda: client.app.bundles.get(None).batcher._ready.qsize() == 1)
        gone.set()
        await leaving
        gate.opened.set()
        await staying
        await until(lambda: client.app.bundles.get(None).batcher.pending == 0)

    client.run(leave())
    # the network had the first image alone
    assert [len(batch) for batch in gate.batches] == [1]
    assert 'vivace_images_total{bundle="plain",result="cancelled"} 1.0' in client.get("/metrics").text
    assert client.log()[-1]["code"] == "client_gone"


def test_an_image_that_has_waited_too_long_is_not_worked_on(folder: Path) -> None:
    with answering({"plain": folder}, answer_seconds=1e-6) as client:
        gate = Gate(client)
        gate.opened.set()
        refused = client.post("/predict", content=png(0))
        assert (refused.status_code, refused.json()["code"]) == (503, "late")
        assert "retry-after" in refused.headers
        assert gate.batches == []


def test_what_would_be_answered_too_late_is_refused_at_once_or_passed_over(folder: Path) -> None:
    with answering({"plain": folder}, max_batch=1, answer_seconds=20.0) as client:
        gate, batcher = Gate(client), client.app.bundles.get(None).batcher

        async def session() -> None:
            batcher.seconds_per_image = 8.0
            first = asyncio.create_task(client.send("POST", "/predict", content=png(0)))
            await until(gate.entered.is_set)
            second, third = (asyncio.create_task(client.send("POST", "/predict", content=png(1))) for _ in range(2))
            await until(lambda: batcher.pending == 3)
            # three of 8 s each are more than the 20 s that an answer may take
            refused = await client.send("POST", "/predict", content=png(2))
            assert (refused.status_code, refused.json()["code"]) == (503, "queue_full")
            assert refused.headers["retry-after"] == "24"
            gate.opened.set()
            assert {(await task).status_code for task in (first, second, third)} == {200}

        client.run(session())
    # a batch that once took long does not end all others
    with answering({"plain": folder}, answer_seconds=20.0) as client:
        client.app.bundles.get(None).batcher.seconds_per_image = 1e6
        assert client.post("/predict", content=png(0)).status_code == 200


def test_an_image_at_fault_does_not_fail_those_that_it_shares_a_batch_with(client: Client) -> None:
    predictor = client.app.bundles.get(None).predictor
    right = predictor.answers

    def failing(images_NHWC: np.ndarray) -> Any:
        if (images_NHWC == 7).all((1, 2, 3)).any():
            raise BundleError(f"the probabilities are not finite: {predictor.bundle.folder}")
        return right(images_NHWC)

    predictor.answers = failing  # type: ignore[method-assign]
    bad = as_png(np.full((48, 48, 3), 7, np.uint8))
    files = [("image", ("good", png(0))), ("image", ("bad", bad)), ("image", ("good too", png(1)))]
    answer = client.post("/predict", files=files).json()
    assert [one["name"] for one in answer["predictions"]] == ["good", "good too"]
    assert [one["code"] for one in answer["failures"]] == ["internal"]
    # alone it is a failure of the server, whose cause the log has and the client has not
    refused = client.post("/predict", content=bad)
    assert refused.status_code == 500
    assert str(predictor.bundle.folder) not in refused.text
    assert "Traceback" not in refused.text
    line = client.log()[-1]
    assert line["level"] == "error"
    assert str(predictor.bundle.folder) in line["detail"]
    assert line["id"] == refused.json()["request_id"]


def test_the_trial_takes_the_smallest_batch_that_is_nearly_the_fastest_per_image() -> None:
    found = choose({1: 0.010, 2: 0.014, 4: 0.024, 8: 0.047, 16: 0.094})
    assert found.max_batch == 4
    assert 0 < found.max_wait <= MAX_WAIT
    # where batches save nothing, nobody waits
    assert choose({1: 0.010, 2: 0.020, 4: 0.041}) == choose({1: 0.010, 2: 0.020, 4: 0.041})
    assert (choose({1: 0.010, 2: 0.020}).max_batch, choose({1: 0.010, 2: 0.020}).max_wait) == (1, 0.0)
    # a batch that holds up whoever comes next is not taken, however fast it is per image
    assert choose({1: 0.2, 2: MAX_BATCH_SECONDS * 1.1}).max_batch == 1
    assert choose({1: MAX_BATCH_SECONDS * 2}).max_batch == 1


def test_a_trial_without_time_tries_one_batch(folder: Path) -> None:
    found = run_trial(Predictor(folder), 0.0)
    assert list(found.seconds) == [1]
    assert found.max_batch == 1


def test_the_first_answer_does_not_wait_for_the_trial_and_later_batches_are_as_it_chose(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []

    def trial(predictor: Predictor, seconds: float) -> Trial:
        for count in (1, 2):
            steps.append(count)
            yield
        return Batching(2, 0.001, {1: 0.01, 2: 0.01})

    monkeypatch.setattr("vivace.serving.bundles.trial_steps", trial)
    # it begins after an answer, and not of itself
    monkeypatch.setattr("vivace.serving.batching.TRIAL_AFTER", 1e6)
    with answering({"plain": folder}, max_batch=None, max_wait_ms=3.0) as client:
        batcher = client.app.bundles.get(None).batcher
        assert (batcher.max_batch, batcher.max_wait, steps) == (1, 0.003, [])
        assert client.post("/predict", content=png(0)).status_code == 200
        client.run(until(lambda: batcher.max_batch == 2))
        # what is set stays
        assert batcher.max_wait == 0.003
        assert steps == [1, 2]
        assert client.get("/bundles").json()["bundles"][0]["max_batch"] == 2
        chosen = [line for line in client.log() if line["event"] == "batching_chosen"]
        assert [(line["max_batch"], line["trial_ms"]) for line in chosen] == [(2, {"1": 10.0, "2": 10.0})]
        # a reload tries before it takes the place of the one that answers
        assert client.run(client.app.reload()) is True
        assert client.app.bundles.get(None).batcher.max_batch == 2


def test_a_trial_goes_on_where_images_always_wait_and_one_that_fails_leaves_single_images(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trial(predictor: Predictor, seconds: float) -> Trial:
        yield
        raise MemoryError("no room for two")

    monkeypatch.setattr("vivace.serving.bundles.trial_steps", trial)
    monkeypatch.setattr("vivace.serving.batching.TRIAL_AFTER", 1e6)
    with answering({"plain": folder}, max_batch=None) as client:
        files = [("image", (str(number), png(number))) for number in range(4)]
        assert len(client.post("/predict", files=files).json()["predictions"]) == 4
        client.run(until(lambda: "batching_chosen" in str(client.log())))
        (line,) = [line for line in client.log() if line["event"] == "batching_chosen"]
        assert (line["level"], line["reason"]) == ("warning", "MemoryError: no room for two")
        assert client.post("/predict", content=png(0)).status_code == 200
        assert client.app.bundles.get(None).batcher.max_batch == 1


def test_threads_end_with_the_application(folder: Path) -> None:
    # those of an application that other tests share
    before = set(threading.enumerate())
    with answering({"plain": folder}) as client:
        client.post("/predict", content=png(0))
        assert any(thread.name == "batches" for thread in set(threading.enumerate()) - before)
    left = set(threading.enumerate()) - before
    assert not [thread.name for thread in left if thread.name.startswith(("batches", "decoder"))]
