"""What tests/soak/overload.py makes of answers: it must not take a missing or an untold one for a good one."""

from __future__ import annotations

import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "soak"))
from overload import Found


def test_only_answers_that_may_be_hold() -> None:
    found = Found()
    assert found.p99 == math.inf
    for status in (b"200 OK", b"408 Request Timeout"):
        found.note(b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\n\r\n", 0.5)
    found.note(b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n\r\n{}", 0.1)
    assert found.holds
    assert found.statuses == {200: 1, 408: 1, 503: 1}
    # the time of a refusal is none of an answer
    assert found.p99 == 0.5
    for bad in (b"", b"HTTP/1.1 503 Service Unavailable\r\n\r\n{}", b"HTTP/1.1 500 Internal Server Error\r\n\r\n"):
        one = Found()
        one.note(bad, 0.1)
        assert not one.holds
