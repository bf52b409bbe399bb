"""vivace.audit: what is wrong with the images of a data set, and what training does with them (no torch here)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vivace.bundle import Bundle
from vivace.cachedir import default_cache_dir
from vivace.config import override, to_dict
from vivace.data.alike.findings import near_findings
from vivace.data.alike.near import Alike, near_duplicates
from vivace.data.audit import Audit, Finding
from vivace.data.caching.cache import Cache, audited_cache, open_cache
from vivace.data.config import DataConfig
from vivace.data.describe import report as describe_data
from vivace.data.place import AnyData, Data
from vivace.data.preprocess import Preprocess
from vivace.data.shortcuts import Shortcut, find_shortcuts
from vivace.data.sources import open_images, open_source
from vivace.data.splits import DataSource
from vivace.data.text import count_of
from vivace.errors import ConfigError, DataError, OutputPathError
from vivace.notices import collected_warnings, worded
from vivace.outputs import warn_of_replaced
from vivace.predictor import Predictor
from vivace.reporting.page.render import check_renders
from vivace.reporting.page.words import translator
from vivace.training.dataset import as_told, stored_as
from vivace.training.recipes.recipe import Recipe
from vivace.verbs.auditfix import check_fix, removed_names, write_fixed
from vivace.verbs.auditgallery import write_gallery
from vivace.verbs.labelcheck import LabelCheck, check_labels
from vivace.verbs.reportfiles import check_page, data_folders

__all__ = ["DataAudit", "audit"]

# the most severe first
SEVERITIES = ("refuse", "quarantine", "warning")
# of the labels that are called wrong, the fraction that may be right
FDR = 0.1


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
    shortcuts: tuple[Shortcut, ...] = field(default=())
    """Facts beside the picture that tell the classes apart."""
    labels: LabelCheck | None = None
    """What a bundle's features say of the labels; None: no bundle was given, or they can't be judged."""
    report: Path | None = None
    """The page with pictures of the findings, if it was asked for."""
    fixed: Path | None = None
    """The manifest without what was found, if it was asked for."""
    num_fixed: int | None = None
    """The images that it lists."""
    has_labels: bool = True
    """False: images lie in no class folders, and nothing that needs labels was looked at."""
    more: tuple[Finding, ...] = field(default=())
    """Findings beside those of `audit`: near duplicates, shortcuts, label errors."""

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

    def lines(self) -> list[str]:
        """What is said beside the findings, for people: how much was looked at, and what `train` does."""
        said = [f"{self.num_images:,} images. vivace train {self.summary()}."]
        if not self.has_labels:
            said.append(
                "These images have no labels: labels, and one image under two of them, were not looked at. Put the "
                "images into one folder per class, or give a table of labels."
            )
        if self.alike is not None:
            flat = f"; {self.alike.num_flat:,} have too little detail" if self.alike.num_flat else ""
            said.append(
                f"{self.alike.num_compared:,} images were compared for near duplicates{flat}: "
                f"{count_of(len(self.alike.groups), 'group')}."
            )
        if self.labels is not None:
            said.append(self.labels.line())
        return said

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
        labels = None
        if self.labels is not None:
            labels = {
                "num_judged": self.labels.num_judged,
                "num_called_wrong": len(self.labels.findings),
                "fdr": self.labels.fdr,
                "expected_fdr": self.labels.expected_fdr,
                "estimated_rate": self.labels.rate,
                "agreement": self.labels.agreement,
            }
        return {
            "data": self.data,
            "num_images": self.num_images,
            "has_labels": self.has_labels,
            "findings": found,
            "near_duplicates": near,
            "shortcuts": [to_dict(shortcut) for shortcut in self.shortcuts],
            "label_errors": labels,
            "report": None if self.report is None else str(self.report),
            "fixed": None if self.fixed is None else str(self.fixed),
            "num_fixed": self.num_fixed,
            "train": self.summary(),
        }


def audit(
    data: AnyData,
    *,
    size: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    near: bool = True,
    bundle: Bundle | str | Path | None = None,
    fdr: float | None = None,
    report: str | Path | None = None,
    lang: str | None = None,
    fix: str | Path | None = None,
    fix_labels: bool = False,
    cache_dir: str | Path | None = None,
    quiet: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> DataAudit:
    """Look for corrupt, duplicate, leaked and suspect images. No file of the data is changed.

    data: as for `train`; also a folder or an archive of images without class folders, of which labels are not looked
    at. size: side of the network's input, px; None: as `train` chooses it, which then finds the
    images decoded. overrides: fields of a recipe's data, as for `train`, such as {"data.multi_label": True}. near: look
    for near duplicates too, such as resized, mirrored, turned, cropped or recoloured copies. bundle: trained on these
    data; its features judge the labels, and images are decoded as it sees them. fdr: of the labels that are called
    wrong, the fraction that may be right, in (0, 0.5]; None: 0.1. report: a page to write, with pictures of findings;
    lang: its language, "en" or "zh"; None: English.
    fix: a new manifest to write, without what `train` leaves out and without copies (`removed_names` has the rule);
    fix_labels: without training images whose labels are probably wrong too. cache_dir: where decoded images are kept.
    quiet: what the data hold is shown on stderr only if something is left out. progress is called with (images read,
    images in all), and then with (steps done, steps in all) of each search.
    Raises DataError if the data can't be opened or the cache can't be written, ConfigError for an unknown field
    or an option that would be ignored, OutputPathError for a file that may not be written, MissingExtra for a report
    without Jinja2, and what opening a bundle raises.
    """
    refused, has_labels = None, True
    _check(size=size, overrides=overrides, bundle=bundle, fdr=fdr)
    if lang is not None:
        translator(lang)
        if report is None:
            raise ConfigError(f"`lang` is of the page: got {lang!r} without one. Give `report` too, or leave it out.")
    if fix_labels and (fix is None or bundle is None):
        raise ConfigError("`fix_labels` needs `fix`, where it takes effect, and a bundle, which judges the labels.")
    pages = [None if one is None else Path(one) for one in (report, fix)]
    if pages[0] is not None and pages[1] is not None and pages[0].resolve() == pages[1].resolve():
        raise OutputPathError(f"`fix` is the report itself: got {fix} for both. Give another name for one.")
    place = Path(cache_dir) if cache_dir is not None else default_cache_dir()
    if bundle is None:
        changes = _of_data(overrides or {})
        data = as_told(data, override(Recipe(), changes), changes, None)
        source, refused, has_labels = _opened(data, place, progress)
        preprocess, predictor = stored_as(source, size=size, changes=changes), None
    else:
        predictor = Predictor(bundle)
        source, preprocess = _as_seen_by(predictor, data, place, progress), predictor.bundle.preprocess
    if "train" in source.splits:
        describe_data(source, DataConfig().val_fraction, quiet=quiet)
    page, manifest = pages
    where = Data.of(data).where
    replaced = None if page is None else check_page(page, outside=data_folders(where), option="`report`")
    if page is not None:
        # tells that Jinja2 is missing before the work and not after it
        check_renders()
    if manifest is not None:
        if not has_labels:
            raise ConfigError(f"`fix` writes a table of labels, and the images have none: got {where}. Leave it out.")
        check_fix(manifest, where)
    cache = audited_cache(source, preprocess, cache_dir=place, progress=progress)
    alike, more = _near(cache, progress) if near else (None, ())
    shortcuts = find_shortcuts(cache)
    more += tuple(
        Finding(kind="shortcut", severity="warning", names=(), message=shortcut.message()) for shortcut in shortcuts
    )
    labels = None if predictor is None else check_labels(predictor, cache, fdr=fdr or FDR, progress=progress)
    found = DataAudit(
        data=source.name,
        audit=cache.audit,
        refusal=refused or _refusal(source, preprocess, place),
        alike=alike,
        shortcuts=shortcuts,
        labels=labels,
        has_labels=has_labels,
        report=page,
        fixed=manifest,
        more=more + (() if labels is None else labels.findings),
    )
    if page is not None:
        write_gallery(page, cache, found.findings, [*map(worded, found.lines())], lang=lang or "en")
        warn_of_replaced(page, replaced)
    if manifest is None:
        return found
    out = removed_names(cache.audit, found.findings, fix_labels=fix_labels)
    return replace(found, num_fixed=write_fixed(manifest, cache, out))


def _check(*, size: int | None, overrides: Mapping[str, Any] | None, bundle: object, fdr: float | None) -> None:
    if bundle is not None and (size is not None or overrides):
        raise ConfigError("`size` and fields of data are the bundle's own: leave them out, or the bundle.")
    if fdr is not None and bundle is None:
        raise ConfigError(f"`fdr` is of labels, which only a bundle can judge: got {fdr:g}. Give a bundle too.")
    if fdr is not None and not 0 < fdr <= 0.5:
        raise ConfigError(f"`fdr` must be above 0 and at most 0.5: got {fdr:g}. The usual one is {FDR:g}.")


def _opened(
    data: AnyData, cache_dir: Path, progress: Callable[[int, int], None]
) -> tuple[DataSource, str | None, bool]:
    """The data, why `train` refuses them whatever the images are like, as with one class alone, and whether they have
    labels. None: it does not.

    Raises the DataError of `train` where there is nothing to look at.
    """
    try:
        return open_source(data, cache_dir=cache_dir, progress=progress), None, True
    except DataError as error:
        with contextlib.suppress(DataError):
            source = open_source(data, cache_dir=cache_dir, require_train=False, progress=progress)
            return source, str(error), True
        with contextlib.suppress(DataError):
            images = open_images(data, cache_dir=cache_dir)
            if images is not None:
                return images, str(error), False
        raise


def _as_seen_by(
    predictor: Predictor, data: AnyData, cache_dir: Path, progress: Callable[[int, int], None]
) -> DataSource:
    """The data with the classes and the kind of images that the bundle knows."""
    info, preprocess = predictor.bundle.info, predictor.bundle.preprocess
    return open_source(
        Data.of(data),
        cache_dir=cache_dir,
        require_train=False,
        classes=predictor.bundle.classes,
        progress=progress,
        multi_label=info.multi_label,
        pixels=preprocess.pixels,
    )


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
