"""What lies in the folder of a run or a bundle that a report tells of. Any of it may come from a stranger."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vivace.bundle import Bundle
from vivace.config import to_dict
from vivace.data.layouts.catalog import CATALOG
from vivace.errors import ConfigError, OutputPathError, VivaceError, first_line
from vivace.evaluation.kept import kept_of
from vivace.files import read_regular
from vivace.manifest import read_manifest
from vivace.notices import warn
from vivace.outputs import check_file
from vivace.plain import parse_json
from vivace.reporting.page.about import Sources
from vivace.reporting.tables import read_rows

__all__ = ["Folder", "check_no_poorer", "check_page", "data_folders", "folder_of", "manifest_of"]

RECEIPT, REPORT = "receipt.json", "report.html"
# a report of a search has some hundred kilobytes
MAX_BYTES = 8 * 2**20
# of a metrics.csv: as many validations as a figure can show a thousand times over
MAX_CURVES = 8 * 2**20
MAX_PAGE = 32 * 2**20
# what a page shows of images
SECTION = re.compile('<section id="(mistakes|confusion|classes|slices|reliability|reliance|audit)"')


@dataclass(frozen=True)
class Folder:
    """Where a report's facts lie."""

    place: Path
    """As it was given: a run or a bundle."""
    run: Path | None
    """The run's folder; None: it is a bundle outside of a run."""

    @property
    def default_out(self) -> Path:
        if self.run is not None:
            return self.run / REPORT
        # "." and ".." have no name to derive another one from
        place = self.place if self.place.name not in ("", "..") else self.place.resolve()
        return place.with_name(f"{place.name}-{REPORT}")

    def sources(self, bundle: Bundle) -> Sources:
        """All that is there but for answers to images."""
        folder, run = (self.run or self.place), self.run
        # a path of this machine says more than a reader needs to know
        place = str(folder) if not folder.is_absolute() else folder.name
        began = {} if run is None else _json(run / "run.json")
        data = began.get("data")
        return Sources(
            name=folder.resolve().name,
            place=place,
            private=[str(path) for path in (folder, folder.resolve()) if path.is_absolute()],
            manifest=manifest_of(bundle),
            is_run=run is not None,
            is_named=isinstance(data, Mapping) and data.get("name") in CATALOG,
            run=began,
            result={} if run is None else _json(run / "result.json"),
            tuned={} if run is None else _json(run / "tune.json"),
            curves=() if run is None else _curves(run / "metrics.csv"),
            receipt=_json(bundle.checked(RECEIPT)) if RECEIPT in bundle.files else {},
            robustness=kept_of(bundle),
        )


def folder_of(given: Path, bundle: Bundle) -> Folder:
    """The folder of the run that a bundle lies in, or of the bundle alone."""
    run = bundle.folder.parent if bundle.folder.name == "bundle" else None
    if run is not None and (run / "recipe.yaml").is_file() and (run / "run.json").is_file():
        return Folder(given, run)
    return Folder(bundle.folder, None)


def check_page(
    path: Path, *, own: Path | None = None, inputs: Iterable[Path] = (), outside: Iterable[Path] = (), option: str
) -> str | None:
    """What writing a page would replace, as for `vivace.outputs.check_file`, which raises more than this.

    own: the folder of the run that the page tells of. Raises OutputPathError for the report of another run: vivace
    wrote it, but what the page is about does not bring it back.
    """
    place = path.resolve()
    of_a_run = place.name == REPORT and (place.parent / "run.json").is_file()
    if of_a_run and place.exists() and (own is None or own.resolve() != place.parent):
        raise OutputPathError(f"{option} is the report of a run: {path}. Give another name.")
    return check_file(path, inputs=inputs, outside=outside, option=option)


def check_no_poorer(path: Path, html: str) -> None:
    """Raise OutputPathError if the page at `path` has sections that `html` lacks: of images that can't be seen now."""
    try:
        there = read_regular(path, MAX_PAGE).decode("utf-8", "replace")
    except (OSError, ConfigError):
        return
    lost = list(dict.fromkeys(name for name in SECTION.findall(there) if name not in SECTION.findall(html)))
    if lost:
        raise OutputPathError(
            f"the report there shows more than this one would ({', '.join(lost)}): {path}. Give `data`, or another "
            "name by `out`."
        )


def data_folders(*given: object) -> list[Path]:
    """The folders among data, in which nothing may be written: it would be read as a part of them."""
    return [Path(where) for where in given if isinstance(where, str | Path) and Path(where).is_dir()]


def manifest_of(bundle: Bundle) -> dict[str, Any]:
    """bundle.json as it was checked when the bundle was opened."""
    # of one that was just written nothing is recorded yet
    files: Mapping[str, Any] = bundle.recorded or read_manifest(bundle.folder)[1]
    return {**to_dict(bundle.info), "files": {name: files.get(name, {}) for name in bundle.files}}


def _json(path: Path) -> Mapping[str, Any]:
    """{} where it is missing; damaged contents are left out with a warning."""
    try:
        value = parse_json(read_regular(path, MAX_BYTES), path.name)
    except FileNotFoundError:
        return {}
    except (OSError, ConfigError) as error:
        warn(f"left out of the report: {path} ({getattr(error, 'strerror', None) or first_line(error)})")
        return {}
    return value if isinstance(value, Mapping) else {}


def _curves(path: Path) -> Sequence[Mapping[str, str | None]]:
    with contextlib.suppress(OSError):
        if path.stat().st_size > MAX_CURVES:
            warn(f"left out of the report: {path} (larger than the table of any run)")
            return ()
        try:
            return read_rows(path)
        except VivaceError as error:
            warn(f"left out of the report: {first_line(error)}")
    return ()
