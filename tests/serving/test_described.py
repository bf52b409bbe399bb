"""Every path by its own description: a hundred requests, always the same; `make fuzz` makes ten thousand."""

from __future__ import annotations

import pytest
from served import Client

described = pytest.importorskip("described", reason="needs schemathesis", exc_type=ImportError)


def test_what_the_description_allows_and_what_it_does_not_is_answered_as_it_says(server: str) -> None:
    statuses, failures = described.ask(server, 120)
    assert failures == []
    # not all of them were refused for one reason
    assert statuses[200] > 10
    assert {404, 422} <= set(statuses)


def test_an_answer_that_the_description_does_not_have_is_noticed(server: str, shared: Client) -> None:
    told = shared.get("/openapi.json").json()
    del told["paths"]["/predict"]["post"]["responses"]["422"]
    told["paths"] = {"/predict": told["paths"]["/predict"]}
    _, failures = described.ask(server, 20, told=told)
    assert failures
    assert all("Undocumented status code" in text for text in failures)
