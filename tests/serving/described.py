"""Requests that the server's own description allows, and some that it does not: python tests/serving/described.py.

schemathesis makes them from /openapi.json. A request passes if it is answered with a status, a type of content and a
body that the description has, and never with a 5xx but 503. Always the same requests for a seed. Exit status 1 if any
failed.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import requests
import schemathesis
from hypothesis import strategies
from PIL import Image
from schemathesis import checks
from schemathesis.core.failures import FailureGroup

# where `factories` is
sys.path.insert(0, str(Path(__file__).parents[1]))

__all__ = ["ask"]

CHECKS = [
    checks.not_a_server_error,
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
]
POSITIVE, NEGATIVE = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
EACH = 5
# of a deliberate refusal, with Retry-After
BUSY = 503


def _images() -> list[bytes]:
    found = []
    for number, (kind, size) in enumerate((("PNG", (48, 40)), ("JPEG", (33, 70)), ("GIF", (5, 5)), ("PNG", (1, 1)))):
        pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, kind)
        found.append(file.getvalue())
    return found


def _bodies() -> Any:
    whole = strategies.sampled_from(_images())
    cut = strategies.builds(lambda data, at: data[:at], whole, strategies.integers(0, 400))
    return strategies.one_of(whole, cut, strategies.binary(max_size=200))


def ask(url: str, cases: int, *, seed: int = 0, told: dict[str, Any] | None = None) -> tuple[Counter[int], list[str]]:
    """(how often each status was answered, the failures, a text each) of so many requests to a server.

    told: the description; None: the server's own.
    """
    for kind in ("image/*", "application/octet-stream"):
        schemathesis.openapi.media_type(kind, _bodies())
    if told is None:
        told = requests.get(f"{url}/openapi.json", timeout=30).json()
    bundle = requests.get(f"{url}/bundles", timeout=30).json()["bundles"][0]["name"]
    schema = schemathesis.openapi.from_dict(told)
    operations = [found.ok() for found in schema.get_all_operations()]
    left = [(operation, POSITIVE) for operation in operations]
    # every text may be a name or version in a path: to look for what is not allowed there takes half a minute, in vain
    left += [(one, NEGATIVE) for one in operations if one.method == "post" and "{version}" not in one.path]
    statuses: Counter[int] = Counter()
    failures: list[str] = []
    asked, turn = 0, 0
    with requests.Session() as session:
        while left and asked < cases:
            # a few of each in turn, until nothing new can be asked of it
            going_on = []
            for operation, mode in left:
                found = list(_cases(operation, mode, min(EACH, cases - asked), seed + turn))
                for case in found:
                    # else hardly any would name one that there is
                    if "name" in case.path_parameters and asked % 4:
                        case.path_parameters["name"] = bundle
                    asked += 1
                    _try(case, url, session, statuses, failures)
                if len(found) == EACH:
                    going_on.append((operation, mode))
            left, turn = going_on, turn + 1
    return statuses, failures


def _cases(operation: Any, mode: Any, count: int, seed: int) -> Iterator[Any]:
    if count < 1:
        return
    found: list[Any] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(operation.as_strategy(mode))
    def gather(case: Any) -> None:
        found.append(case)

    try:
        gather()
    except hypothesis.errors.Unsatisfiable:
        # nothing that this operation takes can be wrong
        return
    yield from found[:count]


def _try(case: Any, url: str, session: requests.Session, statuses: Counter[int], failures: list[str]) -> None:
    try:
        response = case.call(base_url=url, session=session, timeout=60)
    except (requests.RequestException, UnicodeError, ValueError) as error:
        # what the client itself refuses to send
        if isinstance(error, requests.ConnectionError | requests.Timeout):
            failures.append(f"{case.method} {case.path}: {error!r}")
        return
    statuses[response.status_code] += 1
    if response.status_code == BUSY and "retry-after" in {name.lower() for name in response.headers}:
        return
    try:
        case.validate_response(response, checks=_chosen())
    except FailureGroup as group:
        found = "\n".join(str(error) for error in group.exceptions)
        failures.append(f"{case.as_curl_command()}\n{response.status_code} {response.content[:300]!r}\n{found}")


def _chosen() -> list[Any]:
    return [one if callable(one) else checks.CHECKS.get_by_names([one])[0] for one in CHECKS]


def main() -> int:
    """Ask a server of an untrained bundle."""
    from served import process

    from factories import make_bundle
    from vivace.exporting.export import export

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        plain = make_bundle(Path(folder) / "plain", widths=[8], depth=1).folder
        export(plain, "onnx", Path(folder) / "graph")
        with process({"graph": Path(folder) / "graph"}, log="nothing") as (_, url):
            statuses, failures = ask(url, options.cases, seed=options.seed)
    print(", ".join(f"{count:,} of {status}" for status, count in sorted(statuses.items())))
    for text in failures[:20]:
        print(f"\nFAILED {text}")
    print(f"{len(failures):,} of {sum(statuses.values()):,} requests failed")
    return int(bool(failures))


if __name__ == "__main__":
    raise SystemExit(main())
