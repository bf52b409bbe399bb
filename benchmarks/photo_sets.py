"""The photo sets of `pretrained.py`, made from folders of photos: always the same training and held-out images.

A set is a folder with train/CLASS and test/CLASS. Nobody trains on the images in test, or chooses by them: vivace is
given train alone. A split that is used whole is a link to where it lies; of others the images are copied. The sources
are only read.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from peers.protocol import looks_folder

__all__ = ["SETS", "PhotoSet", "count_images", "make_set", "pick"]


@dataclass(frozen=True, kw_only=True)
class PhotoSet:
    """What is taken of a source, and what is measured on it."""

    name: str
    source: str
    """The name of the source: its folder is an option of the benchmark."""
    about: str
    per_class: Mapping[str, int] | int | None = None
    """Training images of each class; where it is a mapping, of these classes alone. None: all."""
    held_out_per_class: int | None = None
    """None: all images that the source holds out. If it holds out too few, others that are not trained on join them."""
    budgets: tuple[float, ...] = (10, 20, 40, 90)
    """Seconds, process start to saved bundle."""
    peers: tuple[str, ...] = ()
    """As `finetuners.peer_of` reads them: with epochs for about the shorter and the longer budgets."""
    goals: tuple[tuple[float, float], ...] = field(default=())
    """(accuracy on the held-out images as a fraction, seconds that `--recipe finetune` may take to it)."""


SETS: dict[str, PhotoSet] = {
    row.name: row
    for row in (
        PhotoSet(
            name="roses-tulips",
            source="flowers",
            about="245 photos of roses and tulips, 600 others held out",
            per_class={"roses": 122, "tulips": 123},
            held_out_per_class=300,
            budgets=(10, 15, 20, 40, 90),
            peers=("probe-224", "timm-224-2", "timm-224-8", "fastai-224-1", "fastai-224-6"),
            goals=((0.94, 15),),
        ),
        PhotoSet(
            name="flowers-50",
            source="flowers",
            about="50 photos of each of five flowers, the source's validation photos held out",
            per_class=50,
            peers=("probe-224", "timm-224-2", "timm-224-8", "fastai-224-1", "fastai-224-6"),
        ),
        PhotoSet(
            name="flowers",
            source="flowers",
            about="all training photos of flowers, its validation photos held out",
            budgets=(10, 20, 25, 40, 90),
            peers=("probe-224", "timm-128-1", "timm-128-4", "timm-224-1", "fastai-128-3", "fastai-224-1"),
            goals=((0.92, 25), (0.95, 90)),
        ),
        PhotoSet(
            name="cifar10",
            source="cifar10",
            about="CIFAR-10 as JPEG files of 32 px, 5,000 test images held out",
            held_out_per_class=500,
            budgets=(20, 90, 300, 600),
            peers=("probe-96", "timm-96-1", "fastai-96-1"),
            goals=((0.94, 600),),
        ),
    )
}


def pick(names: Sequence[str], count: int, *, seed: int) -> list[str]:
    """`count` of the names, whatever their order: the same ones each time, and all of those for a smaller count.

    Raises ValueError if there are too few.
    """
    if count > len(names):
        raise ValueError(f"{count} images of a class are wanted, and there are {len(names)}")
    # not hashed, not sorted by the disk
    mixed = sorted(names)
    random.Random(seed).shuffle(mixed)
    return sorted(mixed[:count])


def make_set(chosen: PhotoSet, source: Path, folder: Path, *, seed: int = 0) -> Path:
    """Make the set in `folder`, which must not exist, and return that.

    seed: of which images are taken. Raises ValueError if the source has too few images or lacks a class.
    """
    wanted = chosen.per_class
    if wanted is None:
        counts: dict[str, int | None] = dict.fromkeys(_classes(source / "train"))
    elif isinstance(wanted, int):
        counts = dict.fromkeys(_classes(source / "train"), wanted)
    else:
        counts = dict(wanted)
    if missing := sorted(set(counts) - set(_classes(source / "train"))):
        raise ValueError(f"{source / 'train'} has no class {', '.join(missing)}")
    held_out = looks_folder(source)
    folder.mkdir(parents=True)
    if wanted is None and chosen.held_out_per_class is None:
        (folder / "train").symlink_to((source / "train").resolve())
        (folder / "test").symlink_to(held_out.resolve())
        return folder
    taken: dict[str, list[str]] = {}
    for name, count in counts.items():
        there = _images(source / "train" / name)
        taken[name] = there if count is None else pick(there, count, seed=seed)
        if wanted is not None:
            _copy(source / "train" / name, taken[name], folder / "train" / name)
    if wanted is None:
        (folder / "train").symlink_to((source / "train").resolve())
    for name in counts:
        there, number = _images(held_out / name), chosen.held_out_per_class
        # always the same ones, whatever is trained on
        first = there if number is None or number >= len(there) else pick(there, number, seed=0)
        _copy(held_out / name, first, folder / "test" / name)
        if number is not None and number > len(first):
            rest = sorted(set(_images(source / "train" / name)) - set(taken[name]))
            more = pick(rest, number - len(first), seed=0)
            _copy(source / "train" / name, more, folder / "test" / name, prefix="train-")
    return folder


def count_images(folder: Path) -> int:
    """The images in CLASS/ below `folder`."""
    return sum(len(_images(folder / name)) for name in _classes(folder))


def _classes(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def _images(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def _copy(source: Path, names: Sequence[str], folder: Path, *, prefix: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        # two photos of one name in train and val would replace each other
        shutil.copyfile(source / name, folder / f"{prefix}{name}")
