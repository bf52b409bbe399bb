"""Heat maps as PNG files: the image as the network sees it, beside the places that speak for a class."""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from vivace import systems
from vivace.heatmaps.overlay import overlaid, side_by_side
from vivace.notices import warn
from vivace.outputs import check_file, warn_of_replaced, write_picture
from vivace.screen import shown_pixels

__all__ = ["HeatMapFolder", "panels"]

OPTION = "`heat_maps`"
# px; smaller images are enlarged
LEAST_SIDE = 224
# characters, and bytes, of the name of an image in that of its picture
MAX_STEM, MAX_BYTES = 60, 180


def panels(image_HWC: np.ndarray, maps: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The image, and the image under each of the maps: uint8 [H, W, 1 | 3]. Of any dtype and channels."""
    shown = shown_pixels(image_HWC)
    return [shown, *(overlaid(shown, map_HW) for map_HW in maps)]


class HeatMapFolder:
    """A folder of pictures of heat maps, one PNG for each image; a picture that vivace wrote before is replaced."""

    def __init__(
        self,
        folder: str | Path,
        names: Iterable[str],
        *,
        inputs: Iterable[Path] = (),
        outside: Iterable[Path] = (),
    ) -> None:
        """names: of the images, from which the files get theirs, with the number of the image before it.

        inputs: what is read. outside: folders of images, which must not contain `folder`.
        Raises OutputPathError, before anything is written, if a file of one of these names is there that vivace did not
        write, or none can be written.
        """
        self.folder = Path(folder)
        known = list(names)
        width = len(str(len(known)))
        self.paths = [
            self.folder / f"{number:0{width}}-{_stem(name)}.png" for number, name in enumerate(known, start=1)
        ]
        self._written: set[str] = set()
        inputs, outside = list(inputs), list(outside)
        self._replaced = {path: check_file(path, inputs=inputs, outside=outside, option=OPTION) for path in self.paths}

    def write(self, index: int, image_HWC: np.ndarray, maps: Sequence[np.ndarray]) -> Path:
        """The file of an image's picture, with one panel for each map. Raises what `write_picture` raises."""
        path, buffer = self.paths[index], io.BytesIO()
        side_by_side(panels(image_HWC, maps), least_side=LEAST_SIDE).save(buffer, "PNG")
        write_picture(path, buffer.getvalue())
        warn_of_replaced(path, self._replaced[path])
        self._written.add(path.name)
        return path

    def warn_of_others(self) -> None:
        """Warn of other pictures in the folder: of other images, by another network, or the user's own."""
        others = [path for path in self.folder.glob("*-*.png") if path.name not in self._written]
        if others:
            warn(f"other pictures in {self.folder} stay, and show nothing of this evaluation: {len(others):,}")


def _stem(name: str) -> str:
    """Letters and digits of any script and a few signs of the last part of an image's name: a file's on every system.

    In composed form, which all systems show alike; of no more bytes than any of them takes.
    """
    stem = unicodedata.normalize("NFC", Path(name.replace("\\", "/")).stem)
    # a surrogate stands for a byte that is no character
    plain = re.sub(r"[^\w.-]+", "_", stem.encode("utf-8", "replace").decode()).strip("._-")
    cut = plain[:MAX_STEM].encode()[:MAX_BYTES].decode("utf-8", "ignore")
    return systems.possible_name(cut.rstrip("._-")) or "image"
