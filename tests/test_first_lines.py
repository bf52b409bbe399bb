"""The one line that is taken from a library's message says what went wrong."""

from __future__ import annotations

import pytest

from vivace.errors import first_line


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("Unsupported operator\nTraceback follows", "Unsupported operator"),
        ("\nShapes differ", "Shapes differ"),
        ("Exception from src/cpp/request.cpp:104:\nException from src/plugins/node.cpp:7:\n\nNo weights", "No weights"),
        ("Exception from src/cpp/request.cpp:104:", "Exception from src/cpp/request.cpp:104:"),
        ("", "RuntimeError"),
    ],
)
def test_the_first_line_is_the_first_that_says_what_went_wrong(message: str, line: str) -> None:
    assert first_line(RuntimeError(message)) == line
