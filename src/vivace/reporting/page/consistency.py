"""What the records of a run or bundle say that can't be true, of one number or of two together.

Records are files, which a mistaken edit, a mixed-up copy or somebody who wants to impress may have changed. Hashes tell
of damage to a bundle; whether what a run says of itself holds together, only its numbers can tell. One list of rules is
kept here, for reports, comparisons and model cards alike; a new record gets its rules here.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vivace.reporting.page.contradictions import (
    ROUNDING,
    Contradiction,
    at_most,
    found_out,
    interval,
    of_images,
    ranges,
    value_at,
)
from vivace.reporting.page.reading import clean, items, mapping
from vivace.reporting.page.words import translator

__all__ = ["MAX_SHOWN", "answers_contradict", "contradiction_lines", "contradictions_of"]

MAX_SHOWN = 12
# that a line on stderr names
NUM_TOLD = 3
# records of a kind, and rows of a table, that are looked through
MAX_RECORDS, MAX_ROWS = 40, 2000
# of an accuracy that another device or precision computes; 3 images more where there are few
PRECISION, FEW = 0.01, 3
# s between two readings of a clock
CLOCK = 1.0
# (a file's name, what it holds, the keys that lead to a number)
Place = tuple[str, Mapping[str, Any], tuple[str, ...]]
STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")


def contradictions_of(
    *,
    manifest: Mapping[str, Any],
    run: Mapping[str, Any],
    result: Mapping[str, Any],
    receipt: Mapping[str, Any],
    robustness: Mapping[str, Any],
    curves: Sequence[Mapping[str, Any]],
) -> tuple[Contradiction, ...]:
    """All that is found, each once: of bundle.json, run.json, result.json, receipt.json, robustness.json, metrics.csv.

    Values that have another type are not looked at: a report leaves them out. Raises nothing.
    """
    metrics = mapping(manifest, "metrics")
    found = [
        *ranges(metrics, "bundle.json: metrics"),
        *ranges(result, "result.json"),
        *ranges(mapping(run, "data"), "run.json: data"),
        *_curves(curves),
        *_scores(metrics, "bundle.json: metrics"),
        *_counts(manifest, run, has_search=bool(receipt)),
        *_times(run, result),
        *_two_of_one(manifest, run, result),
        *_privacy(manifest),
        *_search(receipt),
    ]
    for name, rule in (("corruptions", _corruptions), ("attack", _attack)):
        rows = items(robustness, name)[-MAX_RECORDS:] or [mapping(robustness, name)]
        for row in rows:
            if isinstance(row, Mapping) and row:
                place = f"robustness.json: {name}"
                found += [*ranges(row, place), *rule(row, place)]
                found += _count(place, row, manifest)
    return tuple({(one.rule, *one.values.items()): one for one in found}.values())


def contradiction_lines(found: Sequence[Contradiction]) -> list[str]:
    """What is said of them on stderr, in English: a line, or none."""
    t = translator("en")
    if not found:
        return []
    more = f" {t('contradiction.rest', count=len(found) - NUM_TOLD)}" if len(found) > NUM_TOLD else ""
    told = " ".join(t(f"contradiction.{one.rule}", **one.values) for one in found[:NUM_TOLD])
    return [f"these records contradict each other: {told}{more}"]


def answers_contradict(
    manifest: Mapping[str, Any], *, split: str, kind: str, num_images: int, num_right: int
) -> tuple[Contradiction, ...]:
    """Whether the accuracy that a bundle records is not that of its answers to those very images.

    kind: "top1", or "exact_match" of sets of labels.
    """
    split = _validated(split)
    values = mapping(mapping(manifest, "metrics"), split)
    recorded, count = value_at(values, kind), value_at(values, "num_images")
    if recorded is None or count != num_images:
        return ()
    right = num_right / num_images
    if abs(recorded - right) <= max(PRECISION, FEW / num_images):
        return ()
    return (found_out("answers", name=f"bundle.json: metrics.{split}.{kind}", value=recorded, expected=right),)


def _curves(rows: Sequence[Mapping[str, Any]]) -> Iterator[Contradiction]:
    for row in rows[-MAX_ROWS:]:
        numbers: dict[str, float] = {}
        for name, text in row.items():
            try:
                numbers[str(name)] = float(text)
            except (TypeError, ValueError):
                continue
        yield from ranges(numbers, "metrics.csv")


def _scores(metrics: Mapping[str, Any], place: str) -> Iterator[Contradiction]:
    for split in list(metrics)[:MAX_RECORDS]:
        values = mapping(metrics, split)
        for kind in ("top1", "top5", "exact_match"):
            ends = (value_at(values, f"{kind}_low"), value_at(values, f"{kind}_high"))
            yield from of_images(
                f"{place}.{split}.{kind}", value_at(values, "num_images"), value_at(values, kind), ends
            )
        yield from at_most(
            f"{place}.{split}.top1", value_at(values, "top1"), f"{place}.{split}.top5", value_at(values, "top5")
        )


def _validated(split: Any) -> Any:
    """Where no split was given, training validated on the images that it held out."""
    return "val" if split == "held out" else split


def _counts(manifest: Mapping[str, Any], run: Mapping[str, Any], *, has_search: bool) -> Iterator[Contradiction]:
    """Images of splits, and of what was measured on them."""
    for place, data in (("bundle.json: data", mapping(manifest, "data")), ("run.json: data", mapping(run, "data"))):
        parts = [value_at(data, f"num_{split}") for split in ("train", "val", "test")]
        if parts[0] is not None:
            total = sum(part for part in parts if part is not None)
            yield from at_most(
                f"{place}.num_train + num_val + num_test", total, f"{place}.num_images", value_at(data, "num_images")
            )
    if has_search:
        # measured on the images of the search, which may be others
        return
    for split in ("val", "test"):
        yield from at_most(
            f"bundle.json: metrics.{split}.num_images",
            value_at(manifest, "metrics", split, "num_images"),
            f"bundle.json: data.num_{split}",
            value_at(manifest, "data", f"num_{split}"),
        )


def _count(place: str, row: Mapping[str, Any], manifest: Mapping[str, Any]) -> Iterator[Contradiction]:
    """Images that were corrupted or attacked are some of a split."""
    data, split = mapping(manifest, "data"), _validated(row.get("split"))
    if split in ("val", "test") and row.get("data") == data.get("name") is not None:
        limit = value_at(data, f"num_{split}")
        yield from at_most(f"{place}.num_images", value_at(row, "num_images"), f"bundle.json: data.num_{split}", limit)


def _times(run: Mapping[str, Any], result: Mapping[str, Any]) -> Iterator[Contradiction]:
    total, name = value_at(result, "total_seconds"), "result.json: total_seconds"
    for part in ("train_seconds", "target_seconds"):
        yield from at_most(f"result.json: {part}", value_at(result, part), name, total, CLOCK)
    yield from at_most(
        "result.json: saved_epoch",
        value_at(result, "saved_epoch"),
        "result.json: epochs",
        value_at(result, "epochs"),
        0.01,
    )
    target, reached = value_at(run, "contract", "target"), result.get("target_reached")
    if target is None and reached is True:
        yield found_out("reached", name="result.json: target_reached", other="run.json: contract.target")


def _two_of_one(
    manifest: Mapping[str, Any], run: Mapping[str, Any], result: Mapping[str, Any]
) -> Iterator[Contradiction]:
    """Numbers that two files have."""
    pairs: list[tuple[Place, Place]] = [
        (("result.json", result, (f"{split}_{kind}",)), ("bundle.json", manifest, ("metrics", split, kind)))
        for split in ("val", "test")
        for kind in ("top1", "map")
    ]
    ours, theirs = mapping(result, "metrics"), mapping(manifest, "metrics")
    pairs += [
        (("result.json", result, ("metrics", split, key)), ("bundle.json", manifest, ("metrics", split, key)))
        for split in list(ours)[:MAX_RECORDS]
        for key in list(mapping(ours, split))[:MAX_RECORDS]
        if split in theirs
    ]
    pairs += [
        (("run.json", run, ("data", f"num_{part}")), ("bundle.json", manifest, ("data", f"num_{part}")))
        for part in ("images", "train", "val", "test")
    ]
    pairs += [
        (("result.json", result, (key,)), ("bundle.json", manifest, ("metrics", "privacy", key)))
        for key in ("epsilon", "delta")
    ]
    for (first, values, path), (second, others, other_path) in pairs:
        value, other = value_at(values, *path), value_at(others, *other_path)
        if value is not None and other is not None and abs(value - other) > ROUNDING * max(1.0, abs(other)):
            yield found_out(
                "differs",
                name=f"{first}: {'.'.join(path)}",
                value=value,
                other=f"{second}: {'.'.join(other_path)}",
                expected=other,
            )


def _privacy(manifest: Mapping[str, Any]) -> Iterator[Contradiction]:
    yield from at_most(
        "bundle.json: metrics.privacy.epsilon",
        value_at(manifest, "metrics", "privacy", "epsilon"),
        "bundle.json: recipe.privacy.epsilon",
        value_at(manifest, "recipe", "privacy", "epsilon"),
    )


def _search(receipt: Mapping[str, Any]) -> Iterator[Contradiction]:
    for row in items(receipt, "rows")[:MAX_RECORDS]:
        if not isinstance(row, Mapping):
            continue
        place = f"receipt.json: {clean(str(row.get('name')), 60)}"
        yield from ranges(mapping(row, "timed"), f"{place}.timed")
        ratio, low, high = (value_at(row, "ratio", key) for key in ("ratio", "low", "high"))
        if ratio is not None and low is not None and high is not None:
            yield from interval(f"{place}.ratio", ratio, low, high)
        drop, bound = (value_at(row, "certified", key) for key in ("drop", "bound"))
        yield from at_most(f"{place}.drop", drop, f"{place}.bound", bound)


def _corruptions(row: Mapping[str, Any], place: str) -> Iterator[Contradiction]:
    yield from _score(row, "clean", place)
    # each corruption and severity has the same weight
    cells = [cell for name in list(mapping(row, "cells"))[:MAX_RECORDS] for cell in items(mapping(row, "cells"), name)]
    numbers = [float(cell) for cell in cells if isinstance(cell, int | float) and not isinstance(cell, bool)]
    mean = value_at(row, "mean", "accuracy")
    if numbers and mean is not None and abs(sum(numbers) / len(numbers) - mean) > 1e-4:
        yield found_out(
            "differs", name=f"{place}.mean", value=mean, other=f"{place}.cells", expected=sum(numbers) / len(numbers)
        )
    outside = next((number for number in numbers if not 0 <= number <= 1), None)
    if outside is not None:
        yield found_out("range", name=f"{place}.cells", value=outside)


def _score(row: Mapping[str, Any], name: str, place: str) -> Iterator[Contradiction]:
    count, ends = value_at(row, "num_images"), tuple(value_at(row, name, end) for end in ("low", "high"))
    yield from of_images(f"{place}.{name}", count, value_at(row, name, "accuracy"), ends)


def _attack(row: Mapping[str, Any], place: str) -> Iterator[Contradiction]:
    """An attack finds mistakes and mends none; each leaves the next one what it has not fooled."""
    for name in ("clean", "robust", "deployed"):
        yield from _score(row, name, place)
    robust, left = value_at(row, "robust", "accuracy"), value_at(row, "clean", "accuracy")
    yield from at_most(f"{place}.robust", robust, f"{place}.clean", left)
    yield from _radius(row, place)
    before, is_complete = f"{place}.clean", {}
    for step in items(row, "attacks")[:MAX_RECORDS]:
        if not isinstance(step, Mapping):
            continue
        name, now = f"{place}.{clean(str(step.get('name')), 20)}", value_at(step, "robust_so_far")
        is_complete[step.get("name")] = step.get("is_complete") is not False
        yield from at_most(name, now, before, left)
        yield from at_most(
            f"{name}.num_fooled", value_at(step, "num_fooled"), f"{name}.num_attacked", value_at(step, "num_attacked")
        )
        yield from at_most(
            f"{name}.num_attacked", value_at(step, "num_attacked"), f"{place}.num_images", value_at(row, "num_images")
        )
        if step.get("name") in STANDARD and step.get("is_complete") is not False:
            yield from _all_left(f"{name}.num_attacked", value_at(step, "num_attacked"), before, left, row)
        before, left = (before, left) if now is None else (name, now)
    if is_complete and robust is not None and left is not None and abs(robust - left) > ROUNDING:
        yield found_out("differs", name=f"{place}.robust", value=robust, other=before, expected=left)
    missing = [name for name in STANDARD if not is_complete.get(name)]
    if row.get("is_standard") is True and missing:
        yield found_out("suite", name=f"{place}.is_standard", missing=", ".join(missing))


def _radius(row: Mapping[str, Any], place: str) -> Iterator[Contradiction]:
    """The radius as it was given, such as linf:8/255, and as a number."""
    match = re.fullmatch(r"(?:linf|l2):([0-9.]{1,20})(?:/([0-9.]{1,20}))?", str(row.get("threat")))
    eps = value_at(row, "eps")
    with contextlib.suppress(ValueError, ZeroDivisionError):
        given = None if match is None else float(match[1]) / float(match[2] or 1)
        if given is not None and eps is not None and abs(given - eps) > ROUNDING:
            yield found_out("differs", name=f"{place}.eps", value=eps, other=f"{place}.threat", expected=given)


def _all_left(
    name: str, attacked: float | None, before: str, left: float | None, row: Mapping[str, Any]
) -> Iterator[Contradiction]:
    """An attack that ran to its end saw all images that those before it had left."""
    count = value_at(row, "num_images")
    if attacked is not None and left is not None and count is not None and abs(attacked - left * count) > 0.5:
        yield found_out("differs", name=name, value=attacked, other=f"{before} × num_images", expected=left * count)
