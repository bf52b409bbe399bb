"""A page for browsers in a real one: it sees vivace's pixels, gives its answers, and asks no other host."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image, ImageCms

import vivace
from factories import make_bundle
from vivace.bundle import Bundle, derive_bundle
from vivace.config import to_dict
from vivace.data.preprocess import Preprocess
from vivace.errors import DownloadError
from vivace.exporting.export import export
from vivace.exporting.web.folder import PIXELS, PIXELS_MEAN, shortens_first
from vivace.exporting.web.runtime import web_runtime
from vivace.statistics.conformal import SetRule, class_scores
from vivace.uncertainty.scores import generalised_entropy

browsing_library = pytest.importorskip("browsing", reason="needs websockets", exc_type=ImportError)
Tabs = Callable[[], contextlib.AbstractContextManager["browsing_library.Tab"]]
PHONE = (390, 844)
HOSTILE = "<img src=x onerror=document.title='owned'>"
# as a page that has several threads is served
ISOLATED = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real files of onnxruntime-web; without npm, or a network, these tests say that they were skipped."""
    if browsing_library.program() is None:
        pytest.skip("no Chromium: apt-get install chromium-headless-shell (as .ci/run does)")
    folder = tmp_path_factory.mktemp("onnxruntime-web")
    try:
        files = web_runtime(None, folder / "cache")
    except DownloadError as error:
        pytest.skip(str(error))
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def tabs(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tabs]:
    with browsing_library.browsing(tmp_path_factory.mktemp("profile")) as found:
        yield found


@contextlib.contextmanager
def served(folder: Path, headers: dict[str, str] | None = None) -> Iterator[str]:
    """The URL of a plain server of files, as `python -m http.server` is one."""

    class Handler(SimpleHTTPRequestHandler):
        def end_headers(self) -> None:
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            super().end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def with_classes(bundle: Bundle, folder: Path, names: tuple[str, ...]) -> Bundle:
    return derive_bundle(bundle, folder, lambda _: dataclasses.replace(bundle.info, classes=names))


@pytest.fixture(scope="module")
def made(package: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Path]:
    """A bundle whose first class has a hostile name, and its page."""
    root = tmp_path_factory.mktemp("page")
    plain = make_bundle(root / "plain", widths=[8], depth=1)
    bundle = with_classes(plain, root / "bundle", (HOSTILE, "green", "red"))
    return bundle, export(bundle, "web", root / "site", onnxruntime_web=package).path


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    path.write_bytes(encoded(picture((301, 207)), "JPEG", quality=88))
    return path


def picture(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    """Waves, edges and noise."""
    width, height = size
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:height, :width] / max(size)
    turns = np.stack([30 * columns + 7 * rows, 80 * rows * columns, 50 * (rows - columns)], -1)
    values = 128 + 80 * np.sin(turns) + 30 * np.sign(np.sin(3 * turns)) + rng.normal(0, 5, turns.shape)
    return Image.fromarray(values.clip(0, 255).astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def text(tab: Any, name: str) -> str:
    found: str = tab.run(f"document.getElementById('{name}').textContent")
    return found


def test_the_page_agrees_with_vivace_and_gives_its_answer(made: tuple[Bundle, Path], photo: Path, tabs: Tabs) -> None:
    bundle, site = made
    (expected,) = vivace.predict(bundle, photo)
    with served(site) as url, tabs() as tab:
        tab.open(f"{url}/?lang=en")
        tab.choose("#file", photo)
        tab.until("document.querySelectorAll('article').length === 1")
        labels = tab.run("[...document.querySelectorAll('.bars .name')].map(one => one.textContent)")
        assert labels == [label for label, _ in expected.topk]
        shown = tab.run("[...document.querySelectorAll('.percent')].map(one => parseFloat(one.textContent))")
        np.testing.assert_allclose(shown, [100 * probability for _, probability in expected.topk], atol=0.3)
        # what a bundle says is text
        assert HOSTILE in labels
        assert tab.run("document.querySelectorAll('img').length") == 1
        assert tab.run("document.title") == "vivace"
        tab.run("document.getElementById('compare').click()")
        tab.until("document.querySelectorAll('#goldens tr').length === 15")
        assert text(tab, "found").startswith("This browser agrees with vivace on 14 images.")
        assert "the first class is the same on 14 of 14" in text(tab, "found")
        hosts = {urlsplit(asked).netloc for asked in tab.asked if not asked.startswith("blob:")}
        assert hosts == {urlsplit(url).netloc}
        assert tab.said == []


def awkward() -> dict[str, bytes]:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # red for blue
    profile = profile.replace(b"rXYZ", b"tXYZ").replace(b"bXYZ", b"rXYZ").replace(b"tXYZ", b"bXYZ")
    clear = picture((300, 200)).convert("RGBA")
    clear.putalpha(picture((300, 200), "L"))
    wide, jpeg = picture((301, 207)), {"quality": 85}
    return {
        "4-2-0.jpg": encoded(wide, "JPEG", subsampling=2, **jpeg),
        "progressive.jpg": encoded(wide, "JPEG", progressive=True, **jpeg),
        "grey.jpg": encoded(wide.convert("L"), "JPEG"),
        "turned.jpg": encoded(wide, "JPEG", exif=turned(5), **jpeg),
        "xmp.jpg": encoded(wide, "JPEG", xmp=b'<x tiff:Orientation="8"/>', **jpeg),
        "profile.jpg": encoded(wide, "JPEG", icc_profile=profile, subsampling=0),
        "large.jpg": encoded(picture((1201, 903)), "JPEG", exif=turned(7), **jpeg),
        "plain.png": encoded(wide, "PNG"),
        "profile.png": encoded(wide, "PNG", icc_profile=profile),
        "turned.png": encoded(wide, "PNG", exif=turned(6)),
        "clear.png": encoded(clear, "PNG"),
        "palette.png": encoded(wide.quantize(32), "PNG", transparency=3),
        "tall.png": encoded(picture((60, 400)), "PNG"),
        "bits.png": encoded(picture((61, 47), "1"), "PNG"),
        "palette.gif": encoded(wide.quantize(64), "GIF"),
        "plain.bmp": encoded(wide, "BMP"),
        "turned.webp": encoded(wide, "WEBP", exif=turned(3), icc_profile=profile, **jpeg),
        "clear.webp": encoded(clear, "WEBP", **jpeg),
    }


EXACT = {"grey.jpg", "plain.png", "profile.png", "turned.png", "tall.png", "bits.png", "palette.gif", "plain.bmp"}
EXACT |= {"4-2-0.jpg", "progressive.jpg", "turned.jpg", "xmp.jpg", "profile.jpg"}


def pixels_of(tab: Any, name: str, preprocess: Preprocess) -> Any:
    told = json.dumps({**to_dict(preprocess), "down_first": shortens_first()})
    return tab.run(
        f"""(async () => {{
            const {{ loadPixels }} = await import("./page/pixels.js");
            const blob = await (await fetch("{name}")).blob();
            try {{
                return Array.from((await loadPixels(blob, {told})).pixels);
            }} catch (error) {{
                return [error.key, ...(error.values ?? [error.stack])].join(" ");
            }}
        }})()"""
    )


def test_pixels_are_those_of_preprocess(made: tuple[Bundle, Path], tmp_path: Path, tabs: Tabs) -> None:
    files = awkward()
    # of these sides all but large.jpg are decoded as they are
    chosen = [("crop", 3, "bicubic", 64), ("squash", 1, "bilinear", 60), ("pad", 3, "lanczos", 60)]
    chosen += [("crop", 1, "nearest", 56)]
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "page").symlink_to(made[1] / "page")
    (tmp_path / "index.html").write_text("<h2>pixels</h2>")
    with served(tmp_path) as url, tabs() as tab:
        tab.open(url)
        for fit, channels, interpolation, side in chosen:
            preprocess = Preprocess(
                size=side - 4,
                store_size=side,
                fit=fit,  # type: ignore[arg-type]
                channels=channels,
                interpolation=interpolation,  # type: ignore[arg-type]
                mean=(0.5,) * channels,
                std=(0.2,) * channels,
            )
            for name, data in files.items():
                expected = preprocess.load(data).astype(int)
                found = pixels_of(tab, name, preprocess)
                assert not isinstance(found, str), (name, found)
                apart = abs(np.array(found).reshape(expected.shape) - expected)
                where = (name, fit, channels, interpolation, int(apart.max()), float(apart.mean()))
                assert apart.max() <= (0 if name in EXACT else PIXELS), where
                assert apart.mean() <= PIXELS_MEAN, where


def test_what_training_refuses_is_refused_and_why(made: tuple[Bundle, Path], tmp_path: Path, tabs: Tabs) -> None:
    wide = picture((61, 47))
    files = {
        "empty": b"",
        "notImage": b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
        "format TIFF": encoded(wide, "TIFF"),
        "format PPM": encoded(wide, "PPM"),
        "damaged": encoded(wide, "JPEG")[:-200],
        "deep 16": encoded(Image.fromarray(np.zeros((47, 61), np.uint16)), "PNG"),
        "notDecoded GIF": encoded(wide.quantize(64), "GIF")[:700],
        "notDecoded BMP": encoded(wide, "BMP")[:-4000],
        "cmyk": encoded(wide.convert("CMYK"), "JPEG"),
        "tooSmall 40 3 4": encoded(picture((40, 3)), "PNG"),
        "tooLong 200 4 50": encoded(picture((200, 4)), "PNG"),
        "tooLarge 201 151 30,000": encoded(picture((201, 151)), "PNG"),
    }
    preprocess = Preprocess(size=24, store_size=64, max_pixels=30_000)
    (tmp_path / "page").symlink_to(made[1] / "page")
    (tmp_path / "index.html").write_text("<h2>pixels</h2>")
    with served(tmp_path) as url, tabs() as tab:
        tab.open(url)
        for number, (reason, data) in enumerate(files.items()):
            (tmp_path / f"{number}").write_bytes(data)
            assert pixels_of(tab, str(number), preprocess) == reason
        # a header that leads out of the file ends no otherwise
        jpeg, png = encoded(wide, "JPEG", exif=turned(6)), encoded(wide, "PNG")
        for number, data in enumerate((jpeg[:30], png[:30], jpeg[:2] + b"\xff" * 40, png[:8] + b"\xff" * 40)):
            (tmp_path / f"cut{number}").write_bytes(data)
            assert pixels_of(tab, f"cut{number}", preprocess) == "damaged" if number != 2 else True


def test_a_browser_that_changes_what_is_read_of_a_canvas_is_told_apart(made: tuple[Bundle, Path], tabs: Tabs) -> None:
    with served(made[1]) as url, tabs() as tab:
        tab.open(url)
        tab.run(
            """(() => {
                const prototype = OffscreenCanvasRenderingContext2D.prototype;
                const plain = prototype.getImageData;
                prototype.getImageData = function (...box) {
                    const found = plain.apply(this, box);
                    found.data[40] ^= 1;
                    return found;
                };
            })()"""
        )
        name = next(path.name for path in (made[1] / "golden").iterdir() if path.suffix == ".png")
        assert pixels_of(tab, f"golden/{name}", made[0].preprocess) == "altered"


def test_it_works_without_a_network_once_it_was_opened(made: tuple[Bundle, Path], photo: Path, tabs: Tabs) -> None:
    _, site = made
    with tabs() as tab:
        with served(site) as url:
            tab.open(f"{url}/?lang=en")
            tab.until("document.getElementById('offline').textContent !== ''")
            assert text(tab, "offline") == "This page now works without a network."
        # the server is gone
        tab.open(f"{url}/?lang=zh")
        tab.choose("#file", photo)
        tab.until("document.querySelectorAll('article').length === 1")
        assert tab.run("document.documentElement.lang") == "zh-Hans"


@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone_and_is_used_by_keyboard_and_heard(
    made: tuple[Bundle, Path], photo: Path, tabs: Tabs, dark: bool
) -> None:
    _, site = made
    with served(site) as url, tabs() as tab:
        tab.open(f"{url}/?lang=zh", size=PHONE, dark=dark)
        tab.until("!document.getElementById('compare').disabled")
        stops = []
        for _ in range(4):
            tab.press("Tab")
            stops.append(tab.run("document.activeElement.id || document.activeElement.textContent"))
        assert stops == ["language", "choose", "compare", "许可证"]
        tab.choose("#file", photo)
        tab.until("document.querySelectorAll('article').length === 1")
        tab.run("document.getElementById('compare').click()")
        tab.until("document.querySelectorAll('#goldens tr').length === 15")
        assert tab.run("document.documentElement.scrollWidth") <= PHONE[0]
        heights = "[...document.querySelectorAll('button')].map(one => one.offsetHeight)"
        assert min(tab.run(heights)) >= 36
        assert tab.run("document.getElementById('status').getAttribute('aria-live')") == "polite"
        assert text(tab, "status").endswith("%")
        assert tab.run("getComputedStyle(document.body).backgroundColor") == (
            "rgb(22, 22, 26)" if dark else "rgb(251, 251, 253)"
        )


def test_a_damaged_network_is_not_run(made: tuple[Bundle, Path], tmp_path: Path, tabs: Tabs) -> None:
    site = shutil.copytree(made[1], tmp_path / "site")
    data = bytearray((site / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (site / "model.onnx").write_bytes(data)
    with served(site) as url, tabs() as tab:
        tab.open(f"{url}/?lang=en")
        tab.until("!document.getElementById('problem').hidden")
        assert text(tab, "problem").startswith("The network could not be loaded: model.onnx: SHA-256")
        assert tab.run("document.getElementById('compare').disabled")


def test_isolated_from_other_pages_it_computes_in_several_threads(made: tuple[Bundle, Path], tabs: Tabs) -> None:
    _, site = made
    with served(site, ISOLATED) as url, tabs() as tab:
        tab.open(f"{url}/?lang=en")
        tab.until("!document.getElementById('compare').disabled")
        assert tab.run("crossOriginIsolated")
        threads = tab.run(
            "import('./page/network.js').then(async ({ openNetwork }) => (await openNetwork(await (await "
            "fetch('web.json')).json(), () => {})).threads)"
        )
        assert threads == min(4, tab.run("navigator.hardwareConcurrency"))
        tab.run("document.getElementById('compare').click()")
        tab.until("document.querySelectorAll('#goldens tr').length === 15")
        assert text(tab, "found").startswith("This browser agrees with vivace on 14 images.")
        assert tab.said == []


def test_sets_abstaining_and_unlike_images_are_decided_as_by_vivace(made: tuple[Bundle, Path], tabs: Tabs) -> None:
    rng = np.random.default_rng(0)
    probs_NK = rng.dirichlet(np.full(120, 0.05), 40).astype(np.float32)
    order_NK = np.argsort(-probs_NK, axis=1, kind="stable")
    entropy_N = generalised_entropy(probs_NK)
    limit = float(np.median(entropy_N))
    with served(made[1]) as url, tabs() as tab:
        tab.open(url)
        for method, threshold in (("lac", 0.9), ("aps", 0.8), ("raps", 0.9), ("lac", None)):
            told = {
                "method": method,
                "penalty": 0.01,
                "free_ranks": 2,
                "coverage": 0.9,
                "set_thresholds": [[0.8, 0.1], [0.9, threshold]],
                "risk": 0.05,
                "answered_from": [[0.05, 0.5 if threshold else None]],
                "ood": {"score": "entropy", "threshold": limit} if threshold else None,
            }
            scores_NK = class_scores(probs_NK, SetRule(method=method, penalty=0.01, free_ranks=2))
            inside_NK = scores_NK <= (np.inf if threshold is None else threshold)
            rows = json.dumps(probs_NK.tolist())
            found = tab.run(
                f"""import('./page/reliance.js').then(({{ reliance }}) =>
                    {rows}.map((row) => reliance(Float32Array.from(row), {json.dumps(told)})))"""
            )
            for row, (order_K, inside_K) in enumerate(zip(order_NK, inside_NK, strict=True)):
                assert found[row]["inside"] == [int(k) for rank, k in enumerate(order_K) if rank == 0 or inside_K[k]]
            if threshold:
                assert [row["abstain"] for row in found] == (probs_NK.max(1) < 0.5).tolist()
                assert [row["ood"] for row in found] == (entropy_N > limit).tolist()
            else:
                assert {row["abstain"] for row in found} == {row["ood"] for row in found} == {None}
