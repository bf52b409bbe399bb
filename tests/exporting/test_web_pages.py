"""A page for browsers, written without npm and without a browser: what it holds, and what is refused."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from answers import last_answer
from factories import make_bundle
from vivace.bundle import Bundle, derive_bundle, load_bundle
from vivace.cachedir import default_cache_dir
from vivace.cli import main
from vivace.data.caching.contents import list_caches, remove_caches
from vivace.data.preprocess import Preprocess
from vivace.errors import ConfigError, DownloadError, OutputPathError, ParityError
from vivace.exporting import export as export_module
from vivace.exporting.export import Exported, export
from vivace.exporting.web import runtime, verify
from vivace.exporting.web.folder import check_browser, shortens_first


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    root = tmp_path_factory.mktemp("bundle")
    plain = make_bundle(root / "plain", widths=[8], depth=1)
    return load_bundle(export(plain, "onnx", root / "graph").path)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of small files with hashes of their own, and no Node.js: nothing runs them here."""
    folder = tmp_path / "node_modules" / "onnxruntime-web"
    (folder / "dist").mkdir(parents=True)
    for name in runtime.FILES:
        (folder / "dist" / name).write_text(name)
    hashes = {name: hashlib.sha256(name.encode()).hexdigest() for name in runtime.FILES}
    monkeypatch.setattr(runtime, "FILES", hashes)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def archive(names: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as file:
        for name, data in names.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            file.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def test_the_page_lists_its_files_and_names_no_other_host(bundle: Bundle, package: Path, tmp_path: Path) -> None:
    exported = export(bundle, "web", tmp_path / "site", onnxruntime_web=package)
    files = contents(tmp_path / "site")
    told = json.loads(files["web.json"])
    assert set(files) == {*told["files"], *told["editable"], "web.json"}
    for name, facts in {**told["files"], **told["editable"]}.items():
        assert facts == {"sha256": hashlib.sha256(files[name]).hexdigest(), "bytes": len(files[name])}
    assert exported.num_bytes == sum(map(len, files.values()))
    # of the page's own programs; what is Microsoft's is known by its hash
    for name, data in files.items():
        if name.endswith((".js", ".css")):
            assert re.findall(rb"https?:[^ \"]*", data) == [b"http://ns.adobe.com/xap/1.0/\\0"] * (
                name == "page/headers.js"
            )
    policy = files["index.html"].decode().partition('Content-Security-Policy" content="')[2].partition('"')[0]
    assert policy.startswith("default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; ")
    assert "unsafe-inline" not in policy
    assert "unsafe-eval" not in policy.replace("wasm-unsafe-eval", "")
    # all that it needs is kept for use without a network, and no golden image is
    kept = json.loads(files["sw.js"].decode().partition("FILES = ")[2].partition(";")[0])
    assert {name.partition("?")[0] for name in kept} == {
        "./",
        *(name for name in files if not name.startswith("golden/") and name not in ("README.md", "sw.js")),
    }
    assert f"model.onnx?v={told['files']['model.onnx']['sha256'][:16]}" in kept
    assert (told["classes"], told["preprocess"]["size"]) == (list(bundle.classes), 32)
    assert told["preprocess"]["down_first"] is shortens_first()
    assert "MIT License" in files["onnxruntime/LICENSE.txt"].decode()


def test_what_was_verified_is_said_and_what_was_not(
    bundle: Bundle, package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["export", str(bundle.folder), "--to", "web", "--out", str(tmp_path / "my site")]
    arguments += ["--onnxruntime-web", str(package)]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("my site, a page for browsers of fast_cnn with 3 classes")
    assert lines[2].startswith("verified: model.onnx in ONNX Runtime on 14 golden images: probabilities differ by")
    assert lines[3] == f"not verified: the page's scripts and {runtime.PACKAGE}: Node.js was not found"
    assert lines[4].startswith("not verified: how a browser decodes images")
    assert lines[5].startswith("to open it: python -m http.server --directory '")
    # what vivace wrote is replaced, and that is said
    assert main([*arguments, "--json"]) == 0
    said = last_answer(capsys.readouterr().out)
    assert (said["target"], len(said["verified"]), len(said["unverified"])) == ("web", 1, 2)
    assert "replaced a page for browsers that vivace wrote earlier" in said["warnings"][0]


def test_a_page_that_was_changed_is_not_replaced(bundle: Bundle, package: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    export(bundle, "web", site, onnxruntime_web=package)
    (site / "index.html").write_text((site / "index.html").read_text().replace("<h1>vivace", "<h1>My flowers"))
    before = contents(site)
    with pytest.raises(
        OutputPathError, match=r"a page for browsers that vivace wrote, but .*index.html was changed since"
    ):
        export(bundle, "web", site, onnxruntime_web=package)
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", bundle.folder / "site", package):
        with pytest.raises(OutputPathError):
            export(bundle, "web", out, onnxruntime_web=package)
    with pytest.raises(ConfigError, match="`to='web'` writes a folder"):
        export(bundle, "web", tmp_path / "x.onnx", onnxruntime_web=package)
    assert contents(site) == before


def test_goldens_are_of_the_data_and_say_so(
    bundle: Bundle, package: Path, tmp_path: Path, make_folder: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_folder(per_class=4, splits=("test",))
    (first, *_) = sorted((data / "test").rglob("*.png"))
    # what browsers do not decode is written as PNG
    Image.open(first).save(first.with_suffix(".tiff"))
    first.unlink()
    export(bundle, "web", tmp_path / "site", data=data, onnxruntime_web=package)
    golden = json.loads((tmp_path / "site" / "golden" / "golden.json").read_bytes())
    labels = [image["label"] for image in golden["images"]]
    assert (len(labels), labels.count(None)) == (14, 6)
    assert set(labels) == {None, *bundle.classes}
    assert {Path(image["file"]).suffix for image in golden["images"]} == {".png", ".jpg", ".webp"}
    assert "8 images of the data are in " in capsys.readouterr().err
    assert "publish the folder only if you may publish them" in (tmp_path / "site" / "README.md").read_text()


def test_pixels_that_no_browser_gives_are_refused_before_anything_is_fetched(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "_by_npm", lambda: pytest.fail("npm was asked"))
    pixels = Preprocess(size=32, store_size=32, channels=4, pixels="uint16", mean=(0.5,) * 4, std=(0.2,) * 4)
    raw = dataclasses.replace(bundle, info=dataclasses.replace(bundle.info, preprocess=pixels))
    with pytest.raises(ConfigError, match=r"takes images of 8 bits .* has 4 channels of uint16. Use `to='deploy'`"):
        check_browser(raw)
    with pytest.raises(ConfigError, match="4 channels of uint16"):
        export(raw, "web", tmp_path / "site")
    with pytest.raises(ConfigError, match="`onnxruntime_web` goes with `to='web'`: got `to='deploy'`"):
        export(bundle, "deploy", tmp_path / "site", onnxruntime_web=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_graph_that_disagrees_is_not_kept(
    bundle: Bundle, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"pixels": 0.0, "pixels_mean": 0.0, "probabilities": float("nan")}
    monkeypatch.setattr(shutil, "which", lambda _: "node")
    monkeypatch.setattr(verify, "_node", lambda *_: found)
    with pytest.raises(ParityError, match=r"in Node.js: probabilities by nan \(0.001 is allowed\). Nothing was kept"):
        export(bundle, "web", tmp_path / "site", onnxruntime_web=package)
    assert not (tmp_path / "site").exists()


def test_int8_of_another_runtime_is_left_out_and_said(
    bundle: Bundle,
    package: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parity = {"images": "generated", "num_images": 1, "max_difference": 0.0, "top1_agreement": 1.0}
    info = dataclasses.replace(bundle.info, runtime="openvino", precision="int8", parity=parity)

    def add(folder: Path) -> Any:
        for name in ("model.xml", "model.bin"):
            (folder / name).write_bytes(b"not looked at")
        return info

    int8 = derive_bundle(bundle, tmp_path / "int8", add)
    graph = Exported(bundle.folder, "onnx", 0, None)
    monkeypatch.setattr(export_module, "_as_bundle", lambda *_: graph)
    export(int8, "web", tmp_path / "site", onnxruntime_web=package)
    assert "the page is of the float32 weights: browsers compute ONNX, and int8 was made for OpenVINO" in (
        capsys.readouterr().err
    )
    assert json.loads((tmp_path / "site" / "web.json").read_bytes())["precision"] == "fp32"


def test_without_npm_the_way_to_go_is_said(monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(DownloadError, match=r"npm, which downloads it, was not found. .*`npm pack onnxruntime-web@1"):
        runtime.web_runtime(None, own_cache)


def test_an_archive_with_another_hash_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tarfile, "open", lambda **_: pytest.fail("it was opened"))
    for data in (b"", b"no archive", b"\x1f\x8b" + bytes(100)):
        (tmp_path / "x.tgz").write_bytes(data)
        with pytest.raises(DownloadError, match="this is not the archive of onnxruntime-web@"):
            runtime.web_runtime(tmp_path / "x.tgz", tmp_path)


def test_files_of_another_version_and_archives_that_hold_something_else_are_refused(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(runtime.web_runtime(package, tmp_path)) == set(runtime.FILES)
    (package / "dist" / "ort.wasm.bundle.min.mjs").write_text("another version")
    with pytest.raises(DownloadError, match=r"ort.wasm.bundle.min.mjs of .* has SHA-256 .* Give `onnxruntime_web`"):
        runtime.web_runtime(package, tmp_path)
    with pytest.raises(DownloadError, match=r"has no ort.wasm.bundle.min.mjs and"):
        runtime.web_runtime(tmp_path, tmp_path)
    with pytest.raises(DownloadError, match="can't be read"):
        runtime.web_runtime(tmp_path / "missing", tmp_path)
    # an archive whose hash is right by the code, but which lacks a file, or has a link in its place
    data = archive({"../../evil": b"x", "package/dist/ort.wasm.bundle.min.mjs": b"x"})
    digest = hashlib.sha512(data).digest()
    monkeypatch.setattr(runtime, "INTEGRITY", f"sha512-{base64.b64encode(digest).decode()}")
    (tmp_path / "x.tgz").write_bytes(data)
    with pytest.raises(DownloadError, match="is not that of version"):
        runtime.web_runtime(tmp_path / "x.tgz", tmp_path)
    assert not (tmp_path.parent / "evil").exists()


def test_what_npm_fetched_is_kept_in_the_cache_and_checked_each_time(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def by_npm() -> dict[str, bytes]:
        asked.append(1)
        return {name: name.encode() for name in runtime.FILES}

    monkeypatch.setattr(runtime, "_by_npm", by_npm)
    for _ in range(2):
        runtime.web_runtime(None, None)
    assert len(asked) == 1
    kept = default_cache_dir() / "onnxruntime-web" / runtime.VERSION
    (kept / "ort.wasm.bundle.min.mjs").write_text("somebody else's")
    assert runtime.web_runtime(None, None)["ort.wasm.bundle.min.mjs"] == b"ort.wasm.bundle.min.mjs"
    assert len(asked) == 2
    assert [entry.title for entry in list_caches(default_cache_dir())] == [f"onnxruntime-web/{runtime.VERSION}"]
    remove_caches(default_cache_dir(), "onnxruntime-web")
    assert not kept.exists()
