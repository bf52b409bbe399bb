"""Writes the findings of an audit as a page with their pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vivace.data.audit import Finding
from vivace.data.caching.cache import Cache
from vivace.errors import VivaceError
from vivace.outputs import write_text
from vivace.reporting.page.gallery import GalleryFinding, render_gallery

__all__ = ["write_gallery"]


def write_gallery(
    path: Path, cache: Cache, findings: Sequence[Finding], lines: Sequence[str], *, lang: str = "en"
) -> None:
    """Write the page, in English (en) or Chinese (zh).

    Raises MissingExtra without Jinja2, OutputPathError, and VivaceError if it can't be written.
    """
    stored = {
        f"{split}:{name}": (part, row) for split, part in cache.splits.items() for row, name in enumerate(part.names)
    }
    files = {
        f"{split}:{name}": file
        for split, part in cache.source.splits.items()
        for name, file in zip(part.names, part.paths or (), strict=False)
    }
    view = cache.preprocess.view

    def image_of(name: str) -> np.ndarray | None:
        if name in stored:
            part, row = stored[name]
            image: np.ndarray = view(np.asarray(part.images_NHWC[row : row + 1]))[0]
            return image
        try:
            # what is left out of training is not in the cache; where it can be decoded, it can be looked at
            return cache.preprocess.load(files[name]) if name in files else None
        except VivaceError:
            return None

    shown = [GalleryFinding(one.kind, one.severity, one.message, one.names) for one in findings]
    write_text(path, render_gallery(cache.source.name, lines, shown, image_of, lang=lang), option="`report`")
