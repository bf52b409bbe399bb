"""Keeps what corruptions and attacks left of a bundle's accuracy beside it, where `vivace report` finds it.

Of each kind one is kept, the newest: attacks of one norm and radius, by the same methods, on the same split of the same
data are of one kind; so are corruptions of one severity scale on the same split of the same data. Attacks that were cut
off do not replace those that ran to their end.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vivace.bundle import Bundle
from vivace.cachedir import default_cache_dir
from vivace.errors import ConfigError, first_line, printable
from vivace.evaluation.evaluate import Evaluation
from vivace.files import read_regular
from vivace.locks import waiting_lock
from vivace.manifest import WEIGHTS
from vivace.notices import warn
from vivace.outputs import check_file, write_sealed, writing
from vivace.owned import own_file
from vivace.plain import parse_json

__all__ = ["KEPT", "keep", "kept_beside", "kept_of", "records_of"]

KEPT = "robustness.json"
# a real one has a few kilobytes
MAX_BYTES = 2**20
# of each of the two; the oldest go
MAX_RECORDS = 20


def kept_beside(bundle: Bundle) -> Path:
    """Where it is kept: robustness.json in the folder of the run, or beside another bundle NAME-robustness.json."""
    folder = bundle.folder
    if folder.name == "bundle" and (folder.parent / "run.json").is_file():
        return folder.parent / KEPT
    place = folder if folder.name not in ("", "..") else folder.resolve()
    return place.with_name(f"{place.name}-{KEPT}")


def kept_of(bundle: Bundle) -> Mapping[str, Any]:
    """What was kept of this very bundle, as plain values that anybody may have written; {} where there is none.

    A warning says why a file that is there is of no use.
    """
    kept, problem = _read(bundle)
    if problem is not None:
        warn(f"kept results of corruptions and attacks are not used: {problem}")
    return kept


def _read(bundle: Bundle) -> tuple[Mapping[str, Any], str | None]:
    """What was kept of this very bundle; {} and, if there is a file all the same, why it is of no use."""
    path = kept_beside(bundle)
    try:
        values = parse_json(read_regular(path, MAX_BYTES), KEPT)
    except FileNotFoundError:
        return {}, None
    except (OSError, ConfigError) as error:
        return {}, f"{path}: {first_line(error)}"
    if isinstance(values, Mapping) and values.get("bundle") == _identity(bundle):
        return values, None
    return {}, f"those in {path} are of another bundle than {bundle.folder}"


def keep(bundle: Bundle, evaluation: Evaluation) -> Path:
    """Write what was measured, beside what was kept of the same bundle before, and return the file.

    A warning says which record was replaced, or left out because there are too many. Raises OutputPathError if a file
    is there that vivace did not write, or none can be written.
    """
    path = kept_beside(bundle)
    check_file(path, option="the file of results")
    on: dict[str, Any] = {"data": evaluation.data, "split": evaluation.split}
    if evaluation.num_images_trained_on is not None:
        on["num_images_trained_on"] = evaluation.num_images_trained_on
    # of what is not written in the end, nothing is true
    said: list[str] = []
    with _alone(path):
        before, problem = _read(bundle) if own_file(path) else ({}, None)
        if problem is not None:
            said.append(f"kept results of corruptions and attacks are replaced: {problem}")
        found: dict[str, Any] = {}
        for name, result in (("corruptions", evaluation.corruptions), ("attack", evaluation.attack)):
            records = list(records_of(before, name))
            found[name] = records if result is None else _with(records, {**on, **result.to_dict()}, name, said)
        with writing(path):
            write_sealed(path, {"bundle": _identity(bundle), **found})
    for line in said:
        warn(line)
    return path


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time: of two that read what is kept, the last to write would lose the other's result.

    The lock lies in the cache, for beside a bundle nobody expects one. Where it can't be had, nothing waits.
    """
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):
            folder = default_cache_dir() / "kept"
            folder.mkdir(parents=True, exist_ok=True)
            name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]
            held.enter_context(waiting_lock(folder / f"{name}.lock", f"results in {path}"))
        yield


def records_of(kept: Mapping[str, Any], name: str) -> Sequence[Mapping[str, Any]]:
    """What was kept by the name "corruptions" or "attack", the oldest first; vivace once kept the last one alone."""
    values = kept.get(name)
    rows = values if isinstance(values, list | tuple) else [values]
    return [row for row in rows if isinstance(row, Mapping)][-MAX_RECORDS:]


def _with(
    records: Sequence[Mapping[str, Any]], new: Mapping[str, Any], name: str, said: list[str]
) -> list[Mapping[str, Any]]:
    """The records with the new one, which is put in the place of the one of its kind. said: gets what goes."""
    kind = _kind(new, name)
    alike = [record for record in records if _kind(record, name) == kind]
    for record in alike:
        if _is_whole(record) and not _is_whole(new):
            said.append(f"what was cut off is not kept in place of {_told(record, name)} and ran to its end")
            return list(records)
        said.append(f"the kept result of {_told(record, name)} was replaced by this newer one")
    others = [record for record in records if record not in alike]
    for record in others[: max(0, len(others) + 1 - MAX_RECORDS)]:
        said.append(f"of more than {MAX_RECORDS} kept results the oldest is left out: {_told(record, name)}")
    return [*others, new][-MAX_RECORDS:]


def _kind(record: Mapping[str, Any], name: str) -> tuple[object, ...]:
    """What makes two records ones of the same thing."""
    on = (record.get("data"), record.get("split"))
    if name == "corruptions":
        return (*on, record.get("constants"), _names(record.get("cells")))
    return (*on, record.get("norm"), record.get("eps"), _methods(record))


def _is_whole(record: Mapping[str, Any]) -> bool:
    return record.get("is_complete") is not False


def _methods(record: Mapping[str, Any]) -> tuple[str, ...]:
    steps = record.get("attacks")
    return _names([step.get("name") for step in steps if isinstance(step, Mapping)] if isinstance(steps, list) else [])


def _names(values: object) -> tuple[str, ...]:
    return tuple(sorted(map(str, values))) if isinstance(values, list | tuple | Mapping) else ()


def _told(record: Mapping[str, Any], name: str) -> str:
    score = record.get("mean" if name == "corruptions" else "robust")
    accuracy = score.get("accuracy") if isinstance(score, Mapping) else None
    left = f"{100 * accuracy:.1f} %" if isinstance(accuracy, int | float) else "?"
    what = "corruptions" if name == "corruptions" else f"{record.get('threat')} by {', '.join(_methods(record)) or '?'}"
    of = f"{record.get('data')} ({record.get('split')}, {record.get('num_images')} images)"
    return printable(f"{what} on {of}, which left {left},"[:400])


def _identity(bundle: Bundle) -> dict[str, Any]:
    """What makes another bundle of it: its weights, and how it computes."""
    weights = bundle.recorded.get(WEIGHTS)
    digest = weights.get("sha256") if isinstance(weights, Mapping) else None
    return {"weights": digest, "runtime": bundle.info.runtime, "precision": bundle.info.precision}
