"""What is fuzzed: one row of KINDS each for bundles, recipes, manifests, archives and images."""

from __future__ import annotations

import copy
import csv
import gzip
import hashlib
import io
import json
import math
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from mutations import CANARY, damaged_bytes, damaged_text, damaged_tree, value
from PIL import Image

from vivace.files import canonical_json

__all__ = ["KINDS", "Kind"]

COLOURS = {"blue": (40, 60, 200), "green": (40, 190, 60), "red": (210, 50, 40)}


@dataclass(frozen=True)
class Kind:
    """How inputs of a kind are made and read."""

    prepare: Callable[[Path], Any]
    """prepare(folder) → what `feed` starts from: sound inputs, made once."""
    feed: Callable[[Any, Path, np.random.Generator], object]
    """feed(prepared, folder, rng): damage one input as rng says, below an empty folder, and give how it is read."""
    share: float
    """Fraction of all inputs."""


def _picture(seed: int, colour: tuple[int, int, int] = (90, 140, 60), side: int = 24) -> Image.Image:
    rng = np.random.default_rng(seed)
    pixels = np.asarray(colour) + rng.normal(0, 30, (side, side, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


# bundles


def _prepare_bundles(folder: Path) -> list[Path]:
    import torch

    from vivace.bundle import Architecture, BundleInfo, save_bundle
    from vivace.data.preprocess import Preprocess
    from vivace.exporting.export import export
    from vivace.models.zoo import create_model

    torch.manual_seed(0)
    found = []
    for name, arguments, size in (("fast_cnn", {"widths": [8, 16, 16]}, 16), ("timm/test_resnet", {}, 32)):
        model = create_model(name, 3, size=size, **arguments)
        info = BundleInfo(
            architecture=Architecture(name=name, num_classes=3, size=size, arguments=arguments),
            classes=tuple(COLOURS),
            preprocess=Preprocess(size=size, store_size=size),
            metrics={"val": {"top1": 0.5, "num_images": 12}},
            recipe={"name": "fast", "model": {"name": name, "arguments": arguments}},
            environment={"cpu": "a processor", "num_cpus": 2, "versions": {"torch": "2.15.0"}},
            data={"name": "colours", "fingerprint": "0" * 64, "num_images": {"train": 24}},
        )
        found.append(save_bundle(folder / name.replace("/", "-"), model, info).folder)
    for target in ("onnx", "openvino"):
        found.append(export(found[0], target, folder / target).path)
    return found


def _feed_bundle(prepared: list[Path], folder: Path, rng: np.random.Generator) -> Callable[[], object]:
    # networks of other programs take longer to load, and fewer of them go further
    base = prepared[rng.choice(len(prepared), p=[0.5, 0.3, 0.12, 0.08])]
    own = folder / "bundle"
    own.mkdir()
    for path in base.iterdir():
        os.link(path, own / path.name)
    manifest = json.loads((base / "bundle.json").read_bytes())
    match rng.integers(10):
        case 0:
            _write(own / "bundle.json", damaged_bytes((base / "bundle.json").read_bytes(), rng))
        case 1:
            # a network or its weights that somebody made, sealed rightly
            names = sorted(manifest["files"])
            name = names[rng.integers(len(names))]
            data = (base / name).read_bytes()
            data = damaged_bytes(data, rng) if rng.random() < 0.8 else damaged_bytes(data[:256], rng) + data[256:]
            _write(own / name, data)
            manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
            _write(own / "bundle.json", _sealed(manifest))
        case 2:
            _swap_file(own, sorted(manifest["files"]), rng)
        case _:
            changed = damaged_tree(manifest, rng)
            if isinstance(changed, dict) and rng.random() < 0.5:
                # aimed at what builds the network
                changed = {**manifest, "architecture": damaged_tree(manifest["architecture"], rng)}
            _write(own / "bundle.json", _sealed(changed))
    return lambda: _use_bundle(own)


def _sealed(manifest: Any) -> bytes:
    """A manifest with the hash that it says of itself: anybody can make one."""
    try:
        if isinstance(manifest, dict):
            rest = {key: item for key, item in manifest.items() if key != "sha256"}
            manifest = {**rest, "sha256": hashlib.sha256(canonical_json(rest)).hexdigest()}
        return json.dumps(manifest).encode("utf-8", "surrogatepass")
    except RecursionError:
        return b'{"format": "vivace-bundle", "files": ' + b"[" * 20_000 + b"]" * 20_000 + b"}"


def _write(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def _swap_file(folder: Path, names: list[str], rng: np.random.Generator) -> None:
    """One file of a bundle gone, a link, a folder, a pipe, or beside one that nobody listed."""
    path = folder / names[rng.integers(len(names))]
    match rng.integers(5):
        case 0:
            path.unlink()
        case 1:
            path.rename(folder.parent / "elsewhere")
            path.symlink_to(folder.parent / "elsewhere")
        case 2:
            path.unlink()
            path.mkdir()
        case 3:
            path.unlink()
            os.mkfifo(path)
        case _:
            (folder / "model.bin.extra").write_bytes(b"unlisted")


def _use_bundle(folder: Path) -> object:
    from vivace.bundle import load_bundle
    from vivace.prediction import Predictor

    bundle = load_bundle(folder)
    bundle.build_model()
    predictor = Predictor(folder, device="cpu")
    image = np.zeros((40, 40, 3), np.uint8)
    return predictor.probs(np.stack([bundle.preprocess.load(image)]))


# recipes


def _prepare_recipes(folder: Path) -> list[dict[str, Any]]:
    from vivace.config import to_dict
    from vivace.training.recipes.named import RECIPES, DataFacts

    facts = DataFacts(num_images=1000, num_classes=3, side=32, channels=3)
    return [to_dict(make(facts)) for make in RECIPES.values()]


def _feed_recipe(prepared: list[dict[str, Any]], folder: Path, rng: np.random.Generator) -> Callable[[], object]:
    path = folder / "recipe.yaml"
    tree: Any = copy.deepcopy(prepared[rng.integers(len(prepared))])
    if rng.random() < 0.3:
        tree["model"]["name"] = ["fast_cnn", "timm/test_resnet", "timm/test_vit", "simple_cnn"][rng.integers(4)]
    match rng.integers(4):
        case 0:
            text = damaged_text(yaml.safe_dump(tree, sort_keys=False), rng).encode("utf-8", "surrogatepass")
        case 1:
            text = damaged_bytes(yaml.safe_dump(tree, sort_keys=False).encode(), rng)
        case 2:
            # JSON is YAML, and says what YAML's writer would not
            text = _json(damaged_tree(tree, rng))
        case _:
            tree["model"] = damaged_tree(tree["model"], rng)
            text = _json(tree)
    path.write_bytes(text)
    return lambda: _use_recipe(path)


def _json(tree: Any) -> bytes:
    try:
        return json.dumps(tree).encode()
    except RecursionError:
        return b"[" * 20_000 + b"]" * 20_000


def _use_recipe(path: Path) -> object:
    from vivace.config import from_yaml
    from vivace.models.zoo import create_model
    from vivace.training.recipes.recipe import Recipe

    recipe = from_yaml(Recipe, path)
    model = recipe.model
    if model.name == "auto" or model.pretrained or model.weights is not None:
        return recipe
    return create_model(model.name, 3, size=model.size or recipe.data.size or 32, **model.arguments)


# manifests


def _prepare_manifests(folder: Path) -> dict[str, bytes]:
    rows: list[dict[str, Any]] = []
    for index in range(12):
        name = f"image {index}.png"
        label = list(COLOURS)[index % 3]
        (folder / name).write_bytes(_encoded(_picture(index, COLOURS[label]), "PNG"))
        rows.append({"file_name": name, "label": label, "split": ("train", "train", "val")[index // 4]})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    found = {
        "m.csv": text.getvalue().encode(),
        "m.jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode(),
        "folder": os.fsencode(folder),
    }
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), folder / "base.parquet")
    found["m.parquet"] = (folder / "base.parquet").read_bytes()
    return found


def _feed_manifest(prepared: dict[str, bytes], folder: Path, rng: np.random.Generator) -> Callable[[], object]:
    name = ("m.csv", "m.csv", "m.jsonl", "m.jsonl", "m.parquet")[rng.integers(5)]
    images = Path(os.fsdecode(prepared["folder"]))
    for image in images.glob("*.png"):
        os.link(image, folder / image.name)
    data = prepared[name]
    match rng.integers(4):
        case 0:
            data = damaged_bytes(data, rng)
        case 1 if name == "m.csv":
            # one cell: what lies behind the parser is reached
            cells = data.decode().split(",")
            at = rng.integers(len(cells))
            cells[at] = _json(value(rng)).decode() if rng.random() < 0.5 else damaged_text(cells[at], rng)
            data = ",".join(cells).encode("utf-8", "surrogatepass")
        case 2 if name != "m.parquet":
            data = damaged_text(data.decode(), rng).encode("utf-8", "surrogatepass")
        case _ if name == "m.jsonl":
            lines = [json.loads(line) for line in data.splitlines()]
            data = b"\n".join(map(_json, (damaged_tree(line, rng) if rng.random() < 0.2 else line for line in lines)))
        case _:
            data = damaged_bytes(damaged_bytes(data, rng), rng)
    (folder / name).write_bytes(data)
    return lambda: _open(folder / name, folder)


def _open(path: Path, folder: Path) -> object:
    from vivace.data.sources import open_source

    return open_source(path, cache_dir=folder / "cache")


# archives

MEMBERS = (
    "../outside.png",
    f"/tmp/{CANARY}",
    "..\\outside.png",
    "C:\\outside.png",
    "a/../../outside.png",
    "a/b\x00c.png",
    "x" * 300 + ".png",
    "/".join("d" * 200) + "/deep.png",
    "a/",
    "",
    ".",
    "CON.png",
    "a/\x1b[2J.png",
    "a/\udcff.png",
)


def _prepare_archives(folder: Path) -> dict[str, bytes]:
    images = {f"{name}/{i}.png": _encoded(_picture(i, c), "PNG") for name, c in COLOURS.items() for i in range(4)}
    return {"images": json.dumps({name: data.hex() for name, data in images.items()}).encode()}


def _feed_archive(prepared: dict[str, bytes], folder: Path, rng: np.random.Generator) -> Callable[[], object]:
    images = {name: bytes.fromhex(data) for name, data in json.loads(prepared["images"]).items()}
    name, pack = (("a.zip", _zip), ("a.tar", _tar), ("a.tar.gz", _tar))[rng.integers(3)]
    strange = rng.random() < 0.5
    data = pack(images, rng if strange else None)
    if not strange or rng.random() < 0.3:
        data = damaged_bytes(data, rng)
    if name.endswith(".gz"):
        data = gzip.compress(data)
        data = data if rng.random() < 0.7 else damaged_bytes(data, rng)
    (folder / name).write_bytes(data)
    return lambda: _open(folder / name, folder)


def _zip(images: dict[str, bytes], rng: np.random.Generator | None) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in images.items():
            archive.writestr(name, data)
        if rng is not None:
            member = zipfile.ZipInfo("x")
            member.filename = MEMBERS[rng.integers(len(MEMBERS))].encode("utf-8", "replace").decode()
            # kinds of file in the upper bits: link, device, pipe, folder, plain
            member.external_attr = int(rng.choice([0o120777, 0o020644, 0o010644, 0o040755, 0o100644])) << 16
            archive.writestr(member, b"/etc/passwd" if rng.random() < 0.5 else b"\0" * 10**6)
    return buffer.getvalue()


def _tar(images: dict[str, bytes], rng: np.random.Generator | None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in images.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        if rng is not None:
            member = tarfile.TarInfo(MEMBERS[rng.integers(len(MEMBERS))] or "x")
            kinds = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE, b"Z"]
            member.type = kinds[rng.integers(len(kinds))]
            member.linkname = ["/etc/passwd", "../../x", "blue/0.png", member.name][rng.integers(4)]
            if rng.random() < 0.5:
                member.pax_headers = {["path", "size", "GNU.sparse.map", "k"][rng.integers(4)]: "9" * 2000}
            archive.addfile(member)
    return buffer.getvalue()


# images


def _prepare_images(folder: Path) -> list[bytes]:
    photo = _picture(1, side=48)
    exif = Image.Exif()
    exif[0x0112] = 6
    sixteen = np.random.default_rng(2).integers(0, 65536, (24, 24)).astype(np.uint16)
    found = [
        _encoded(photo, "JPEG"),
        _encoded(photo, "JPEG", progressive=True, quality=50, subsampling=0, exif=exif),
        _encoded(photo.convert("L"), "JPEG"),
        _encoded(photo.convert("CMYK"), "JPEG"),
        _encoded(photo, "PNG", exif=exif),
        _encoded(photo.convert("P"), "PNG", transparency=3),
        _encoded(photo.convert("RGBA"), "PNG"),
        _encoded(Image.fromarray(sixteen), "PNG"),
        _encoded(photo, "WEBP"),
        _encoded(photo.convert("RGBA"), "WEBP", lossless=True, exif=exif),
        _encoded(photo, "GIF"),
        _encoded(photo, "GIF", save_all=True, append_images=[_picture(3, side=48)] * 3),
        _encoded(photo, "BMP"),
        _encoded(photo, "PPM"),
        b"P3\n# a comment\n2 2\n255\n" + b"1 2 3 " * 4,
        _encoded(Image.fromarray(sixteen), "TIFF"),
        _encoded(Image.fromarray(sixteen.astype(np.float32) / 65535), "TIFF"),
        _encoded(photo, "AVIF"),
    ]
    found += [_encoded(photo, "TIFF", compression=how) for how in ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg")]
    return found


def _feed_image(prepared: list[bytes], folder: Path, rng: np.random.Generator) -> Callable[[], object]:
    data = damaged_bytes(prepared[rng.integers(len(prepared))], rng)
    if rng.random() < 0.05:
        other = prepared[rng.integers(len(prepared))]
        data = data[: rng.integers(len(data) + 1)] + other[rng.integers(len(other)) :]
    suffix = ("jpg", "png", "tif", "webp", "gif", "bmp", "ppm")[rng.integers(7)]
    path = folder / f"image.{suffix}"
    path.write_bytes(data)
    source = path if rng.random() < 0.3 else data
    return lambda: _load_image(source)


def _load_image(source: Path | bytes) -> object:
    from vivace.data.preprocess import Preprocess

    pixels = Preprocess(size=24, store_size=28).load(source)
    if pixels.shape != (24, 24, 3) or pixels.dtype != np.uint8:
        raise AssertionError(f"pixels are {pixels.dtype} {pixels.shape}")
    return pixels


KINDS = {
    "bundle": Kind(_prepare_bundles, _feed_bundle, 0.1),
    "recipe": Kind(_prepare_recipes, _feed_recipe, 0.1),
    "manifest": Kind(_prepare_manifests, _feed_manifest, 0.2),
    "archive": Kind(_prepare_archives, _feed_archive, 0.2),
    "image": Kind(_prepare_images, _feed_image, 0.4),
}


def emptied(folder: Path) -> Path:
    """The folder, made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def planned(num_inputs: int) -> dict[str, int]:
    """Inputs of each kind, together at least `num_inputs`."""
    return {name: math.ceil(kind.share * num_inputs) for name, kind in KINDS.items()}
