"""What a report shows of an acceleration, from the values of receipt.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vivace.reporting.page.charts import scatter
from vivace.reporting.page.facts import Candidate, Search
from vivace.reporting.page.reading import items, mapping, number, text, texts, whole

__all__ = ["search_of"]

MAX_CANDIDATES = 60
MAX_POINTS = 30
# ms of a call and points of a drop that a figure can show
FASTEST, SLOWEST, LARGEST_DROP = 1e-4, 1e7, 200.0


def search_of(receipt: Mapping[str, Any]) -> Search | None:
    """None where the receipt has no candidate."""
    rows = [row for row in items(receipt, "rows") if isinstance(row, Mapping) and text(row, "name")]
    if not rows:
        return None
    winner = text(receipt, "winner")
    budget = number(mapping(receipt, "asked"), "max_drop", 0, LARGEST_DROP)
    placed = _placed(rows, winner)
    numbers = {point[0]: place for place, point in enumerate(placed, 1)}
    found = [_candidate(row, winner, numbers) for row in rows]
    # the winner, then by speed; those that were not timed at the end
    found.sort(key=lambda row: (not row.won, row.number is None, row.p50_ms is None, row.p50_ms or 0.0))
    certify = items(mapping(receipt, "images"), "certify")
    return Search(
        winner=winner,
        baseline=text(receipt, "baseline"),
        reason=text(receipt, "reason") or text(receipt, "status") or "",
        max_drop=budget,
        num_certify=certify[1] if len(certify) == 2 and type(certify[1]) is int and 0 <= certify[1] < 1e12 else None,
        candidates=tuple(found[:MAX_CANDIDATES]),
        num_left_out=max(0, len(found) - MAX_CANDIDATES),
        figure=scatter(placed, budget),
        evidence=text(receipt, "evidence", 600),
        notes=texts(receipt, "notes", most=12, limit=500),
    )


def _times(row: Mapping[str, Any]) -> Mapping[str, Any]:
    return mapping(row, "timed") or mapping(row, "screened")


def _loss(row: Mapping[str, Any]) -> Mapping[str, Any]:
    return mapping(row, "certified") or mapping(row, "selected")


def _placed(rows: list[Mapping[str, Any]], winner: str | None) -> list[tuple[str, float, float, float, str]]:
    """(name, ms, drop, bound, kind) of what was timed and whose accuracy is known, the fastest first."""
    found = []
    for row in rows:
        name, ms = text(row, "name") or "", number(_times(row), "p50_ms", FASTEST, SLOWEST)
        drop = number(_loss(row), "drop", -LARGEST_DROP, LARGEST_DROP)
        bound = number(_loss(row), "bound", -LARGEST_DROP, LARGEST_DROP)
        if ms is None or drop is None or bound is None:
            continue
        certified = text(row, "status") == "certified"
        found.append((name, ms, drop, bound, "won" if name == winner else "certified" if certified else "other"))
    return sorted(found, key=lambda point: point[1])[:MAX_POINTS]


def _candidate(row: Mapping[str, Any], winner: str | None, numbers: Mapping[str, int]) -> Candidate:
    name, loss, ratio = text(row, "name") or "", _loss(row), mapping(row, "ratio")
    return Candidate(
        number=numbers.get(name),
        name=name,
        outcome=text(row, "reason") or text(row, "status") or "",
        won=winner is not None and name == winner,
        p50_ms=number(_times(row), "p50_ms", 0, SLOWEST),
        speedup=number(ratio, "ratio", 0, 1e6),
        speedup_low=number(ratio, "low", 0, 1e6),
        speedup_high=number(ratio, "high", 0, 1e6),
        drop=number(loss, "drop", -LARGEST_DROP, LARGEST_DROP),
        bound=number(loss, "bound", -LARGEST_DROP, LARGEST_DROP),
        num_bytes=whole(row, "bytes"),
    )
