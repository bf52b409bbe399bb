"""The findings of an audit as one HTML file, with pictures of them beside each other; every value is escaped."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata

import numpy as np

from vivace.reporting.page.phrases import in_language
from vivace.reporting.page.pictures import encoded
from vivace.reporting.page.reading import clean
from vivace.reporting.page.render import environment, told_or_own
from vivace.reporting.page.words import translator

__all__ = ["GalleryFinding", "Shown", "render_gallery"]

# findings of a kind that are shown with pictures, pictures of a finding, and characters of a message
NUM_SHOWN, NUM_PICTURES, MAX_MESSAGE = 60, 6, 600
# findings of a kind that are listed at all
NUM_LISTED = 500
# of all pictures, encoded; the page has at most 3 MB
MAX_BYTES = 2_000_000
# pairs of images before single ones; other kinds follow by their names
FIRST = (
    "near_leak",
    "near_contradiction",
    "near_duplicate",
    "label_error",
    "shortcut",
    "leak",
    "contradiction",
    "duplicate",
)


@dataclass(frozen=True)
class GalleryFinding:
    """A finding, by plain values."""

    kind: str
    severity: str
    message: str
    names: tuple[str, ...]
    """Of its images, as split:name."""


@dataclass(frozen=True)
class Shown:
    """A picture of a finding."""

    uri: str
    width: int
    height: int
    crisp: bool
    name: str


def render_gallery(
    name: str,
    lines: Sequence[str],
    findings: Sequence[GalleryFinding],
    image_of: Callable[[str], np.ndarray | None],
    *,
    lang: str = "en",
) -> str:
    """The HTML of the findings, in groups by their kinds: pairs first. lang: en or zh.

    lines: what is said above them. image_of: split:name → an image [H, W, C], or None where there is none to show.
    Raises MissingExtra without Jinja2, ConfigError for an unknown language.
    """
    spent, t = 0, translator(lang)

    @functools.cache
    def picture(image: str) -> Shown | None:
        nonlocal spent
        pixels = image_of(image) if spent < MAX_BYTES else None
        if pixels is None:
            return None
        uri, width, height, crisp = encoded(pixels)
        spent += len(uri)
        return Shown(uri, width, height, crisp, clean(image, 200))

    kinds = sorted({finding.kind for finding in findings}, key=lambda kind: (_place(kind), kind))
    groups = []
    for kind in kinds:
        members = [finding for finding in findings if finding.kind == kind]
        rows = [
            {
                "severity": finding.severity,
                "message": in_language(clean(finding.message, MAX_MESSAGE), lang),
                "count": len(finding.names),
                "pictures": []
                if place >= NUM_SHOWN
                else [shown for one in finding.names[:NUM_PICTURES] if (shown := picture(one)) is not None],
            }
            for place, finding in enumerate(members[:NUM_LISTED])
        ]
        title = told_or_own(t, kind, "audit.title.")
        groups.append({"kind": kind, "title": title, "count": len(members), "rows": rows})
    return (
        environment()
        .get_template("gallery.html")
        .render(
            name=clean(name, 200),
            lines=[in_language(clean(line), lang) for line in lines],
            groups=groups,
            t=t,
            lang=lang,
            version=metadata.version("vivace"),
        )
    )


def _place(kind: str) -> int:
    return FIRST.index(kind) if kind in FIRST else len(FIRST)
