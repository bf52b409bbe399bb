"""Links to the images that were classified, in a folder for each class."""

from __future__ import annotations

import contextlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from vivace import systems
from vivace.batch.unfinished import Unfinished
from vivace.data.decoding.decode import read_bytes
from vivace.data.decoding.formats import EXTENSIONS, FORMATS, HEAD_BYTES, sniff
from vivace.errors import OutputPathError
from vivace.notices import warn
from vivace.outputs import writing
from vivace.predictor import Prediction
from vivace.sources.items import Item, content_of

__all__ = ["Sorter", "check_place", "class_folders"]

MAX_NAME_BYTES = 200
NO_LABEL = "no-label"


def check_place(folder: Path, *, inputs: Iterable[Path]) -> None:
    """Raises OutputPathError for a folder that can't be made, or lies where images or the bundle are read."""
    place = folder.resolve()
    if folder.exists() and not folder.is_dir():
        raise OutputPathError(f"`sort_into` is no folder: {folder}. Give another name.")
    for source in (given.resolve() for given in inputs if given.is_dir()):
        if place == source or source in place.parents:
            raise OutputPathError(
                f"`sort_into` is inside what is read: {folder} in {source}, where links would be images. Give a folder "
                "outside of it."
            )


def class_folders(classes: Sequence[str]) -> dict[str, str]:
    """Class → the name of its folder: the class itself where it can be a name, and no other has the same."""
    folders: dict[str, str] = {}
    taken = {NO_LABEL}
    for number, name in enumerate(classes):
        plain = "".join(char if char.isprintable() and char not in "/\\" else "_" for char in name).strip()
        plain = systems.possible_name(os.fsdecode(os.fsencode(plain)[:MAX_NAME_BYTES]).lstrip(".")) or f"class-{number}"
        # some file systems ignore case
        while plain.casefold() in taken:
            plain = f"{plain}-{number}"
        taken.add(plain.casefold())
        folders[name] = plain
    return folders


class Sorter:
    """Links each image into the folder of its class; copies where there can be no link. Replaces nothing.

    Before a link is made its name is noted in the folder of what is unfinished, so that a run that was killed makes
    none twice.
    """

    def __init__(self, folder: Path, classes: Sequence[str], unfinished: Unfinished, *, several: bool) -> None:
        """several: images have sets of labels, and are linked for each of them."""
        self.folder, self._several = folder, several
        self._folders = class_folders(classes)
        self._log = unfinished.path("sorted")
        self._noted: dict[int, list[str]] = {}
        if self._log.is_file():
            self._read(unfinished.state.num_items)
        with writing(self._log):
            # a killed process may have left half a line
            self._file = os.fdopen(systems.open_plain(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab")
            self._file.write(b"\n")
        self._next: defaultdict[tuple[str, str], int] = defaultdict(lambda: 2)
        self._can_link = True
        for name in {*self._folders.values(), *([NO_LABEL] if several else [])}:
            with writing(folder / name):
                (folder / name).mkdir(parents=True, exist_ok=True)

    def _read(self, num_done: int) -> None:
        with self._log.open("rb") as lines:
            for line in lines:
                with contextlib.suppress(ValueError, TypeError):
                    number, names = json.loads(line)
                    if number >= num_done:
                        self._noted[number] = list(names)

    def write(self, number: int, item: Item, outcome: Prediction) -> None:
        """Link the item of this number. Raises VivaceError if that can't be written."""
        labels = outcome.labels if self._several else (outcome.label,)
        folders = [self._folders[label] for label in labels] or [NO_LABEL]
        name = _name_of(item)
        with writing(self.folder):
            if (noted := self._noted.pop(number, None)) is not None and len(noted) == len(folders):
                for place in noted:
                    self._make(self.folder / place, item, again=True)
                return
            while True:
                places = [self._free(folder, name) for folder in folders]
                self._file.write(json.dumps([number, places]).encode() + b"\n")
                self._file.flush()
                with contextlib.suppress(FileExistsError):
                    for place in places:
                        self._make(self.folder / place, item, again=False)
                    return

    def _free(self, folder: str, name: str) -> str:
        """A name in a folder that no file has."""
        if not os.path.lexists(self.folder / folder / name):
            return f"{folder}/{name}"
        stem, extension = os.path.splitext(name)  # noqa: PTH122
        while True:
            number = self._next[folder, name]
            self._next[folder, name] += 1
            if not os.path.lexists(self.folder / folder / (numbered := f"{stem}-{number}{extension}")):
                return f"{folder}/{numbered}"

    def _make(self, place: Path, item: Item, *, again: bool) -> None:
        """again: this run noted the name before it was killed, and may have made it or a part of it."""
        if item.path is not None:
            target = os.path.abspath(item.path)  # noqa: PTH100
            if again and place.is_symlink() and os.readlink(place) == target:  # noqa: PTH115
                return
        if item.path is not None and self._can_link:
            try:
                os.symlink(target, place)  # noqa: PTH211
                return
            except FileExistsError:
                raise
            except (OSError, NotImplementedError):
                # a file system without them, or Windows without the right to make them
                self._can_link = False
                warn(f"links are not possible in {self.folder}: the images are copied")
        found = content_of(item)
        content = found if isinstance(found, bytes) else read_bytes(found)
        # what is there of a copy is its start; through a link it would be an image itself that is written to
        part = again and not place.is_symlink() and place.is_file() and content.startswith(place.read_bytes())
        with place.open("wb" if part else "xb") as file:
            file.write(content)

    def close(self) -> None:
        """No more images come."""
        self._file.close()


def _name_of(item: Item) -> str:
    """The name of an image in the folder of its class, with an extension by which it is recognized."""
    name = os.path.basename(item.name) or "image"  # noqa: PTH119
    stem, extension = os.path.splitext(name)  # noqa: PTH122
    if extension.lower() not in EXTENSIONS and isinstance(item.content, bytes):
        kind = sniff(item.content[:HEAD_BYTES])
        stem, extension = name.replace("#", "-"), FORMATS[kind][0] if kind else ""
    room = MAX_NAME_BYTES - len(os.fsencode(extension))
    return systems.possible_name(os.fsdecode(os.fsencode(stem)[:room]) + extension)
