"""vivace.audit: what is wrong with the images of a data set, and what training does with them (no torch here)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vivace.cachedir import default_cache_dir
from vivace.config import override, to_dict
from vivace.data.alike.findings import near_findings
from vivace.data.alike.near import Alike, near_duplicates
from vivace.data.audit import Audit, Finding
from vivace.data.caching.cache import Cache, audited_cache, open_cache
from vivace.data.config import DataConfig
from vivace.data.describe import report
from vivace.data.place import AnyData
from vivace.data.preprocess import Preprocess
from vivace.data.sources import open_source
from vivace.data.splits import DataSource
from vivace.errors import ConfigError, DataError
from vivace.notices import collected_warnings
from vivace.training.dataset import as_told, stored_as
from vivace.training.recipes.recipe import Recipe

__all__ = ["DataAudit", "audit"]

# the most severe first
SEVERITIES = ("refuse", "quarantine", "warning")


@dataclass(frozen=True, kw_only=True)
class DataAudit:
    """What was found in a data set."""

    data: str
    """Its name."""
    audit: Audit
    refusal: str | None
    """Why `train` refuses these data; None: it takes them."""
    alike: Alike | None = None
    """The near duplicates; None: they were not looked for."""
    more: tuple[Finding, ...] = field(default=())
    """Findings beside those of `audit`: near duplicates."""

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What was found, the most severe first."""
        found = (*self.audit.findings, *self.more)
        return tuple(sorted(found, key=lambda finding: SEVERITIES.index(finding.severity)))

    @property
    def num_images(self) -> int:
        return self.audit.num_images

    def summary(self) -> str:
        """What `train` does with the data, to follow its name."""
        if self.refusal is not None:
            return f"refuses this data: {self.refusal}"
        if left_out := len(self.audit.quarantined):
            return f"leaves out {left_out:,} of {self.num_images:,} images: {self.audit.reasons()}"
        return f"takes all {self.num_images:,} of these images"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        near = None
        if self.alike is not None:
            near = {
                "num_groups": len(self.alike.groups),
                "num_compared": self.alike.num_compared,
                "num_flat": self.alike.num_flat,
            }
        found = [to_dict(finding) for finding in self.findings]
        return {
            "data": self.data,
            "num_images": self.num_images,
            "findings": found,
            "near_duplicates": near,
            "train": self.summary(),
        }


def audit(
    data: AnyData,
    *,
    size: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    near: bool = True,
    cache_dir: str | Path | None = None,
    quiet: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> DataAudit:
    """Look for corrupt, duplicate, leaked and suspect images. No file of the data is changed.

    data: as for `train`. size: side of the network's input, px; None: as `train` chooses it, which then finds the
    images decoded. overrides: fields of a recipe's data, as for `train`, such as {"data.multi_label": True}. near: look
    for near duplicates too, such as resized, mirrored, turned, cropped or recoloured copies. cache_dir: where decoded
    images are kept. quiet: what the data hold is shown on stderr only if something is left out. progress is called with
    (images read, images in all), and then with (steps done, steps in all) of the search for near duplicates.
    Raises DataError if the data can't be opened or the cache can't be written, ConfigError for an unknown field.
    """
    place = Path(cache_dir) if cache_dir is not None else default_cache_dir()
    changes = _of_data(overrides or {})
    data = as_told(data, override(Recipe(), changes), changes, None)
    source = open_source(data, cache_dir=place, progress=progress)
    report(source, DataConfig().val_fraction, quiet=quiet)
    preprocess = stored_as(source, size=size, changes=changes)
    cache = audited_cache(source, preprocess, cache_dir=place, progress=progress)
    refusal = _refusal(source, preprocess, place)
    if not near:
        return DataAudit(data=source.name, audit=cache.audit, refusal=refusal)
    alike, more = _near(cache, progress)
    return DataAudit(data=source.name, audit=cache.audit, refusal=refusal, alike=alike, more=more)


def _near(cache: Cache, progress: Callable[[int, int], None]) -> tuple[Alike, tuple[Finding, ...]]:
    # what was trained on is named first
    order = sorted(cache.splits, key=("train", "val", "test").index)
    images = {name: cache.splits[name].images_NHWC for name in order}
    alike = near_duplicates(images, padded=cache.preprocess.fit == "pad", progress=progress)
    names = {name: split.names for name, split in cache.splits.items()}
    labels = {name: split.labels_N for name, split in cache.splits.items()}
    return alike, near_findings(alike.groups, names, labels, cache.source.group_names)


def _of_data(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides. Raises ConfigError for a field of another section, which says nothing about images."""
    for name in overrides:
        if not name.startswith("data."):
            raise ConfigError(f"the field says nothing about images: got {name!r}. Give fields of data: data.fit=pad.")
    return dict(overrides)


def _refusal(source: DataSource, preprocess: Preprocess, cache_dir: Path) -> str | None:
    """Why `train` refuses the source, by the very check that it makes."""
    try:
        with collected_warnings():
            open_cache(source, preprocess, cache_dir=cache_dir)
    except DataError as error:
        return str(error)
    return None
