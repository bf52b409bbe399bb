"""Reports in a real browser: they ask no host for anything, fit a phone and a desktop, and work without a script."""

from __future__ import annotations

import http.server
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reports import HOSTILE, make_measured, make_receipt, make_sources, make_versus
from vivace.reporting.page.about import page_of
from vivace.reporting.page.render import TEMPLATES, render, render_versus

# whose window is the page and nothing else, however narrow
BROWSERS = ("chromium-headless-shell", "chrome-headless-shell")
PHONE, DESKTOP = (390, 844), (1280, 900)
NAMES = ("daisy", "dandelion", "roses", "sunflowers", "a name of seventy-three letters " + "x" * 41)


class Proxy(http.server.BaseHTTPRequestHandler):
    """Counts what a browser asks for."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        self.send_error(404)

    do_CONNECT = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def asked() -> Iterator[tuple[list[str], int]]:
    """(what is asked for through the proxy, its port)."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        server.asked = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.asked, server.server_port  # type: ignore[attr-defined]
        server.shutdown()
        thread.join()


class Browser:
    """A headless Chromium, started for each look."""

    def __init__(self, program: str, port: int, folder: Path) -> None:
        self.program, self.port, self.folder = program, port, folder

    def look(self, page: Path, *options: str, size: tuple[int, int] = DESKTOP, dark: bool = False) -> str:
        """Stdout of a look at a page; all connections go through the proxy."""
        argv = [
            *(self.program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
            *(f"--proxy-server=http://127.0.0.1:{self.port}", "--proxy-bypass-list=<-loopback>"),
            *(f"--user-data-dir={self.folder}", f"--window-size={size[0]},{size[1]}"),
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            *options,
            page.as_uri() if "#" not in page.name else page.as_uri().replace("%23", "#"),
        ]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout

    def picture(self, page: Path, path: Path, size: tuple[int, int], *, dark: bool) -> np.ndarray:
        """uint8 [H, W, 3] of what is seen."""
        self.look(page, f"--screenshot={path}", size=size, dark=dark)
        with Image.open(path, formats=["PNG"]) as image:
            return np.asarray(image.convert("RGB"))

    def measured(self, page: Path, script: str, size: tuple[int, int], anchor: str = "") -> str:
        """What a script finds on a copy of the page that lets it run: the page itself lets none."""
        html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
        copy = page.with_name(f"measured-{page.name}")
        # once the page is there, and at its anchor
        then = f"setTimeout(() => document.body.dataset.found = String({script}), 20)"
        copy.write_text(html + f"<script>addEventListener('load', () => {then})</script>")
        place = copy.with_name(f"{copy.name}#{anchor}") if anchor else copy
        found = re.search(
            r'data-found="([^"]*)"', self.look(place, "--dump-dom", "--virtual-time-budget=500", size=size)
        )
        assert found is not None
        return found[1]


@pytest.fixture(scope="module")
def browser(asked: tuple[list[str], int], tmp_path_factory: pytest.TempPathFactory) -> Browser:
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium: apt-get install chromium-headless-shell (as .ci/run does)")
    return Browser(program, asked[1], tmp_path_factory.mktemp("profile"))


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reports of a run in both languages, of a search, and of hostile names."""
    folder = tmp_path_factory.mktemp("pages")
    run = make_sources(NAMES, make_measured(len(NAMES), 100, side=64))
    search = make_sources(NAMES, receipt=make_receipt(), is_run=False, run={}, result={}, curves=())
    hostile = make_sources(HOSTILE, make_measured(len(HOSTILE), 100), name=HOSTILE[0])
    written = {}
    for name, sources, lang in (
        ("en", run, "en"),
        ("zh", run, "zh"),
        ("search", search, "en"),
        ("hostile", hostile, "en"),
    ):
        written[name] = folder / f"{name}.html"
        written[name].write_text(render(page_of(sources), lang=lang))
    for name, names, lang in (("versus", NAMES, "en"), ("versus-zh", NAMES, "zh"), ("versus-hostile", HOSTILE, "en")):
        written[name] = folder / f"{name}.html"
        written[name].write_text(render_versus(make_versus(names), lang=lang))
    return written


def test_a_report_asks_no_host_for_anything(
    browser: Browser, pages: dict[str, Path], asked: tuple[list[str], int], tmp_path: Path
) -> None:
    control = tmp_path / "control.html"
    control.write_text(
        '<link rel="stylesheet" href="https://fonts.invalid/a.css"><img src="http://pictures.invalid/a">'
    )
    browser.look(control, "--dump-dom")
    assert sorted(asked[0]) == ["fonts.invalid:443", "http://pictures.invalid/a"]
    asked[0].clear()
    for name in ("hostile", "versus-hostile"):
        assert "</html>" in browser.look(pages[name], "--dump-dom")
    assert asked[0] == []


@pytest.mark.parametrize("dark", [False, True])
def test_a_table_that_goes_on_beyond_the_screen_has_a_shadow_at_that_edge(
    browser: Browser, tmp_path: Path, dark: bool
) -> None:
    def contrasts(num_columns: int) -> tuple[float, float]:
        """Of the left and the right edge of a table's place with the middle of it."""
        row = f"<tr>{'<td>&nbsp;</td>' * num_columns}</tr>"
        page = tmp_path / f"{num_columns}.html"
        page.write_text(
            f"<!doctype html><style>{(TEMPLATES / 'style.css').read_text()}body{{margin:0}}</style>"
            f'<div class="wide" style="width:390px"><table>{row * 8}</table></div>'
        )
        pixels = browser.picture(page, tmp_path / "seen.png", PHONE, dark=dark)[20:200].astype(float).mean(2)
        columns = np.median(pixels, axis=0)
        away = np.abs(columns - columns[195])
        return float(away[:4].max()), float(away[386:].max())

    assert contrasts(2) == (0, 0)
    left, right = contrasts(60)
    assert left == 0
    assert right > 40


@pytest.mark.parametrize(("name", "size"), [("en", PHONE), ("zh", DESKTOP), ("search", PHONE), ("versus", PHONE)])
def test_a_report_fits_the_width(browser: Browser, pages: dict[str, Path], name: str, size: tuple[int, int]) -> None:
    wide = "document.documentElement.scrollWidth"
    # images that are no images have no width
    broken = "[...document.images].filter(one => !one.naturalWidth).length"
    found = browser.measured(pages[name], f"[{wide}, innerWidth, {broken}].join()", size)
    assert found == f"{size[0]},{size[0]},0"


def test_a_cell_opens_its_images_without_a_script(browser: Browser, pages: dict[str, Path]) -> None:
    shown = "[...document.querySelectorAll('.gallery')].filter(one => one.offsetHeight).map(one => one.id).join()"
    assert browser.measured(pages["en"], shown, DESKTOP, "pair-0-1") == "pair-0-1"


def test_hostile_names_run_nothing_even_where_scripts_may_run(browser: Browser, pages: dict[str, Path]) -> None:
    assert browser.measured(pages["hostile"], "document.title.endsWith(': report')", DESKTOP) == "true"
    assert browser.measured(pages["versus-hostile"], "document.title.endsWith(': comparison')", DESKTOP) == "true"


@pytest.mark.parametrize(
    ("name", "size", "dark"),
    [
        ("en", PHONE, False),
        ("en", DESKTOP, True),
        ("zh", PHONE, True),
        ("zh", DESKTOP, False),
        ("versus", DESKTOP, True),
        ("versus-zh", PHONE, False),
    ],
)
def test_both_languages_are_seen_in_light_and_dark_at_both_widths(
    browser: Browser, pages: dict[str, Path], name: str, size: tuple[int, int], dark: bool, tmp_path: Path
) -> None:
    seen = browser.picture(pages[name], tmp_path / "seen.png", size, dark=dark)
    assert seen.shape == (size[1], size[0], 3)
    corner, ink = seen[:8, :8].mean(), np.abs(seen.astype(int) - seen[0, 0]).sum(2) > 60
    assert (corner < 60) if dark else (corner > 240)
    # text and figures: neither blank nor one block
    assert 0.01 < ink.mean() < 0.5
