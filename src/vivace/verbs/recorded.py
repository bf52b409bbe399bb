"""The data that two runs were trained on, opened only where this machine's cache shows that it had them before."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from vivace.cachedir import INDEX, default_cache_dir
from vivace.data.caching.index import DamagedFiles, folders_with, read_index
from vivace.data.layouts.catalog import CATALOG, is_on_disk
from vivace.data.place import AnyData
from vivace.data.sources import open_source
from vivace.errors import ConfigError, DataError
from vivace.verbs.runs import Run

__all__ = ["recorded_data"]

# as the cache writes it
FINGERPRINT = re.compile(r"[0-9a-f]{64}")


def recorded_data(first: Run, second: Run, cache_dir: str | Path | None) -> AnyData:
    """The place or the name of the data that both runs record.

    A run may come from a stranger, who could have written any place into it. So it is believed only if this user's
    cache holds images from that place with the fingerprint that the run records, which only the images give: then
    vivace opened them before, for this user. Nothing is downloaded.
    Raises DataError if the two had different data, ConfigError if the place is not believed.
    """
    if (first.data, first.place, first.file) != (second.data, second.place, second.file):
        told = " and ".join(f"{run.path} on {run.where or run.data}" for run in (first, second))
        raise DataError(f"the two were trained on different data: {told}. Give `data`: the images to compare on.")
    cache = Path(cache_dir) if cache_dir else default_cache_dir()
    if first.place is None and first.data not in CATALOG:
        raise ConfigError(
            f"`data` is missing: {first.path} was trained on {first.data}, an object of a Python program, which can't "
            "be found again, or on data of which no place is known, so it is not opened. Give `data`: the same object, "
            "or images to compare on."
        )
    for run in (first, second):
        if not _is_in_cache(run, cache):
            raise ConfigError(
                f"`data` is missing: {run.path} names {run.place or run.data}, and the cache holds no images from "
                "there that are those of the run, so it is not opened. Give `data`: the images to compare on."
            )
    if first.place is not None:
        try:
            # of a table its folder is known too, and other images may lie there
            opened = first.where
            assert opened is not None
            source = open_source(opened, cache_dir=cache, require_train=False)
            if source.root is None or os.path.realpath(source.root) != first.place:
                raise DataError(f"the images of {opened} do not lie where those of the run did: {first.place}.")
            return opened
        except DataError as error:
            if first.data not in CATALOG:
                raise DataError(f"{error} It is where the runs had their data: give `data`.") from None
    if first.data in CATALOG and is_on_disk(first.data, cache):
        return first.data
    raise ConfigError(
        f"`data` is missing: {first.data} is no longer on this machine, and is not downloaded without being asked for. "
        "Give `data`: its name, or images to compare on."
    )


def _is_in_cache(run: Run, cache: Path) -> bool:
    """Whether images from the run's place, or of its name, are in the cache with the run's fingerprint."""
    if FINGERPRINT.fullmatch(run.fingerprint or "") is None:
        return False
    for folder in folders_with(str(run.fingerprint), cache / "images" / "-"):
        with contextlib.suppress(DamagedFiles, OSError):
            index = read_index(folder / INDEX)
            if index is None or index["fingerprint"] != run.fingerprint:
                continue
            root, name = index["origin"]
            place = os.path.realpath(root) if root else None
            if place == run.place and (place is not None or name == run.data):
                return True
    return False
