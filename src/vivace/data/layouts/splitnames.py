"""Which split a file or folder name refers to, by a word in it, as in seg_train, testset or train-00000-of-00002."""

from __future__ import annotations

import itertools
import re

__all__ = ["SPLIT_NAMES", "SPLIT_ORDER", "is_system", "split_of"]

# word → split
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "trainset": "train",
    "trn": "train",
    "val": "val",
    "valid": "val",
    "validate": "val",
    "validation": "val",
    "vali": "val",
    "dev": "val",
    "development": "val",
    "eval": "val",
    "evaluation": "val",
    "test": "test",
    "testing": "test",
    "testset": "test",
    "tst": "test",
    "holdout": "test",
}
SPLIT_ORDER = ("train", "val", "test")
# suffixes that people attach to these words: traindata, test_images, valset
TAILS = re.compile(r"(?:data|dataset|set|images|imgs|img)$")
# folders that operating systems, network drives and tools create beside the user's files
SYSTEM_FOLDERS = frozenset((
    "@eadir", "#recycle", "@recycle", "@recently-snapshot", "$recycle.bin", "recycler", "system volume information",
    "lost+found", "__macosx", "__pycache__", "thumbs", "thumbnails",
))  # fmt: skip
SYSTEM_FILES = frozenset(("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r"))


def split_of(name: str) -> str | None:
    """train, val or test if exactly one of them is a word of `name`; None otherwise, as in "train_test"."""
    # "trainImages" → train Images, "val2017" → val 2017
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Za-z])(?=[0-9])|(?<=[0-9])(?=[A-Za-z])", " ", name)
    words = [word for word in re.split(r"[\W_]+", parted.lower()) if word]
    found = {SPLIT_NAMES.get(word) or SPLIT_NAMES.get(TAILS.sub("", word)) for word in words}
    if ("hold", "out") in itertools.pairwise(words):
        found.add("test")
    found.discard(None)
    return found.pop() if len(found) == 1 else None


def is_system(name: str) -> bool:
    """Whether a file or folder is hidden or was created by an operating system; it is never an image or a class."""
    folded = name.casefold()
    return name.startswith(".") or folded in SYSTEM_FOLDERS or folded in SYSTEM_FILES
