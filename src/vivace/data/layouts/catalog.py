"""Data sets by name: digits from scikit-learn, the others downloaded and verified by torchvision."""

from __future__ import annotations

import contextlib
import http.client
import os
import traceback
import urllib.error
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vivace.cachedir import DOWNLOADED, default_cache_dir, filled_once
from vivace.data.splits import DataSource, Split
from vivace.errors import DownloadError, MissingExtra

__all__ = ["CATALOG", "is_on_disk", "open_named"]

SECONDS_TO_CONNECT = 20.0


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A class in torchvision.datasets and its arguments for each split."""

    dataset: str
    splits: Mapping[str, Mapping[str, Any]]
    channels: Literal[1, 3] = 3
    extra: str | None = None
    """A library that torchvision needs to read the data set."""


def _by_split(*names: str) -> dict[str, dict[str, str]]:
    return {("train" if name == "trainval" else name): {"split": name} for name in names}


_TRAIN_FLAG: dict[str, dict[str, Any]] = {"train": {"train": True}, "test": {"train": False}}

_TORCHVISION = {
    "cifar10": _Row(dataset="CIFAR10", splits=_TRAIN_FLAG),
    "cifar100": _Row(dataset="CIFAR100", splits=_TRAIN_FLAG),
    "mnist": _Row(dataset="MNIST", splits=_TRAIN_FLAG, channels=1),
    "fashion-mnist": _Row(dataset="FashionMNIST", splits=_TRAIN_FLAG, channels=1),
    "kmnist": _Row(dataset="KMNIST", splits=_TRAIN_FLAG, channels=1),
    "svhn": _Row(dataset="SVHN", splits=_by_split("train", "test"), extra="scipy"),
    "stl10": _Row(dataset="STL10", splits=_by_split("train", "test")),
    "eurosat": _Row(dataset="EuroSAT", splits={"train": {}}),
    "flowers102": _Row(dataset="Flowers102", splits=_by_split("train", "val", "test"), extra="scipy"),
    "food101": _Row(dataset="Food101", splits=_by_split("train", "test")),
    "imagenette": _Row(
        dataset="Imagenette",
        splits={"train": {"split": "train", "size": "160px"}, "val": {"split": "val", "size": "160px"}},
    ),
    "oxford-pets": _Row(dataset="OxfordIIITPet", splits=_by_split("trainval", "test")),
    "dtd": _Row(dataset="DTD", splits=_by_split("train", "val", "test")),
    "fgvc-aircraft": _Row(dataset="FGVCAircraft", splits=_by_split("train", "val", "test")),
    "gtsrb": _Row(dataset="GTSRB", splits=_by_split("train", "test")),
}


def open_named(name: str, data_root: Path | None = None, cache_dir: Path | None = None) -> DataSource:
    """The data source of a data set in CATALOG.

    Files in torchvision's layout are searched in `data_root`/`name` and in `data_root` itself (default: the cache's
    folder `downloads`), and downloaded to `data_root`/`name` if they are in neither. Raises DownloadError if there is
    no network or a checksum is wrong; a partial download is removed.
    """
    if name == "digits":
        return _digits()
    root = (data_root or (cache_dir or default_cache_dir()) / "downloads").expanduser()
    return _from_torchvision(name, _TORCHVISION[name], root)


def is_on_disk(name: str, cache_dir: Path) -> bool:
    """Whether `open_named` finds the data set of this name below the cache, and downloads nothing."""
    if name == "digits":
        return True
    import torchvision

    row, root = _TORCHVISION[name], cache_dir / "downloads"
    dataset_class = getattr(torchvision.datasets, row.dataset)
    try:
        return any(_on_disk(dataset_class, place, row) is not None for place in (root / name, root))
    except ImportError:
        # of the library that reads it: `open_named` says which
        return (root / name).is_dir()


def _digits() -> DataSource:
    """scikit-learn's 1,797 handwritten digits of 8 × 8 px; a fixed, stratified fifth of them is the test split."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingExtra("scikit-learn", "data", "the data set digits") from None
    from vivace.data.holdout import hold_out

    bunch = load_digits()
    # grey values run from 0 to 16
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int64)
    train, test = hold_out(labels, np.arange(len(labels)), 0.2, seed=0)
    splits = {
        split: Split(
            name=split,
            names=tuple(f"{split}/{index:05d}" for index in indices),
            labels=labels[indices],
            arrays=images[indices],
        )
        for split, indices in (("train", train), ("test", test))
    }
    return DataSource(name="digits", classes=tuple(str(digit) for digit in range(10)), splits=splits, channels=1)


def _from_torchvision(name: str, row: _Row, data_root: Path) -> DataSource:
    import torchvision

    if row.extra:
        try:
            __import__(row.extra)
        except ImportError:
            raise MissingExtra(row.extra, "data", f"the data set {name}") from None
    dataset_class = getattr(torchvision.datasets, row.dataset)
    root = data_root / name
    datasets = _on_disk(dataset_class, root, row) or _on_disk(dataset_class, data_root, row)
    if datasets is None:
        _download(name, dataset_class, root, row)
        datasets = _on_disk(dataset_class, root, row)
    if datasets is None:
        raise DownloadError(
            f"the data set {name} is not whole in {root} after its download. Move what is there away, and try again."
        )
    splits = {split: _split_of(dataset, split, root) for split, dataset in datasets.items()}
    classes = _classes_of(datasets["train"], splits["train"].labels)
    return DataSource(name=name, classes=classes, splits=splits, root=root, channels=row.channels)


def _on_disk(dataset_class: Callable[..., Any], root: Path, row: _Row) -> dict[str, Any] | None:
    """The torchvision data set per split if it lies below `root`, whole as far as torchvision can tell."""
    try:
        return {split: dataset_class(str(root), download=False, **row.splits[split]) for split in row.splits}
    except (OSError, RuntimeError):
        return None


def _download(name: str, dataset_class: Callable[..., Any], root: Path, row: _Row) -> None:
    """Download and unpack all splits into `root`, checked by torchvision against its checksums."""
    import socket

    before = _files(root)
    # torchvision takes a folder that SIGKILL left half unpacked for a whole one: unpack beside, then rename; but where
    # the user has put an archive, it is unpacked where it lies
    unpacking = contextlib.nullcontext(root) if before else filled_once(root)
    done = False
    previous = socket.getdefaulttimeout()
    # torchvision sets none: without a network some systems would wait for minutes
    socket.setdefaulttimeout(SECONDS_TO_CONNECT)
    try:
        with unpacking as target:
            for arguments in row.splits.values():
                dataset_class(str(target), download=True, **arguments)
            if not before:
                # what the user has put there is not vivace's to remove
                (target / DOWNLOADED).touch()
        done = True
    except (OSError, RuntimeError, EOFError, ValueError, http.client.HTTPException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        cause = "could not be downloaded"
        if isinstance(error, RuntimeError) and "corrupt" in reason.lower():
            cause = "was downloaded with a wrong checksum, and removed"
        elif isinstance(error, urllib.error.HTTPError):
            cause = f"could not be downloaded, the server answered {error.code}"
        # torchvision keeps the server's answers in its frames, and with them open sockets
        with warnings.catch_warnings(action="ignore", category=ResourceWarning):
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            traceback.clear_frames(error.__traceback__)
        raise DownloadError(
            f"the data set {name} {cause} ({reason[:200]}). Connect to the network, or put its files into {root}, laid "
            "out as torchvision does; `data_root` names another place."
        ) from None
    finally:
        socket.setdefaulttimeout(previous)
        if before and not done:
            # what this call left behind is partial or wrong; what was there before is the user's
            for path, _ in _files(root) - before:
                os.unlink(path)  # noqa: PTH108


def _files(root: Path) -> set[tuple[str, int]]:
    """(path, time of change) of every file, so that those which were overwritten count as new."""
    found = set()
    for folder, _, files in os.walk(root):
        for file in files:
            path = os.path.join(folder, file)  # noqa: PTH118
            with contextlib.suppress(OSError):
                found.add((path, os.lstat(path).st_mtime_ns))
    return found


def _split_of(dataset: Any, split: str, root: Path) -> Split:
    """Pixels or paths, and labels, from whichever attributes this data set keeps them in."""
    if hasattr(dataset, "data"):
        images = np.asarray(dataset.data)
        labels = np.asarray(dataset.targets if hasattr(dataset, "targets") else dataset.labels)
        if images.ndim == 3:
            images = images[..., None]
        elif images.shape[-1] not in (1, 3):
            images = images.transpose(0, 2, 3, 1)
        names = tuple(f"{split}/{index:06d}" for index in range(len(labels)))
        return Split(name=split, names=names, labels=labels.astype(np.int64), arrays=np.ascontiguousarray(images))
    samples = getattr(dataset, "_samples", None) or getattr(dataset, "samples", None)
    if samples is None:
        files = getattr(dataset, "_image_files", None) or dataset._images
        samples = list(zip(files, dataset._labels, strict=True))
    paths = tuple(os.fspath(path) for path, _ in samples)
    return Split(
        name=split,
        names=tuple(os.path.relpath(path, root) for path in paths),
        labels=np.asarray([label for _, label in samples], dtype=np.int64),
        paths=paths,
    )


def _classes_of(dataset: Any, labels_N: np.ndarray) -> tuple[str, ...]:
    names = getattr(dataset, "classes", None)
    if not names:
        return tuple(f"{index:03d}" for index in range(int(labels_N.max()) + 1))
    # some data sets give every name of a class: the first one will do
    return tuple(name if isinstance(name, str) else name[0] for name in names)


CATALOG = ("digits", *_TORCHVISION)
