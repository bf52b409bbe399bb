"""The page at / in a real browser: it classifies what is chosen, in two languages, and asks no other host."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from served import Client, png, process

browsing_library = pytest.importorskip("browsing", reason="needs websockets", exc_type=ImportError)
Tabs = Callable[[], contextlib.AbstractContextManager["browsing_library.Tab"]]
PHONE = (390, 844)


@pytest.fixture(scope="module")
def tabs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tabs]:
    if browsing_library.program() is None:
        pytest.skip("no Chromium: apt-get install chromium-headless-shell (as .ci/run does)")
    with browsing_library.browsing(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def two(graph_folder: Path, folder: Path) -> Iterator[str]:
    """The URL of a server of two bundles, of which one has gradients."""
    with process({"fast": graph_folder, "plain": folder}, torch=True) as (_, url):
        yield url


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "it's one.png"
    path.write_bytes(png(0))
    return path


def test_an_image_is_classified_by_both_bundles_and_no_other_host_is_asked(two: str, photo: Path, tabs: Tabs) -> None:
    with tabs() as tab:
        tab.open(f"{two}/?lang=en")
        tab.choose("#file", photo)
        tab.until("document.querySelectorAll('#cards article').length === 2")
        assert tab.run("[...document.querySelectorAll('#cards article h3')].map(one => one.textContent)") == [
            "fast",
            "plain",
        ]
        assert tab.run("document.querySelectorAll('#cards article li').length") == 6
        assert tab.run("document.getElementById('status').textContent").endswith("Same answer.")
        # what all are asked about is a comparison, and no traffic of either
        assert all("live=false" in url for url in tab.asked if "/predict?" in url)
        # what can be copied is what was done, with the name of the file safe in a shell
        assert tab.run("document.getElementById('curl').textContent") == (
            f"curl --data-binary @'it'\\''s one.png' '{two}/predict?bundle=fast&topk=5'"
        )
        python = tab.run("document.getElementById('python').textContent")
        compile(python, "copied", "exec")
        # a list of times each, one median against the other
        tab.run("document.getElementById('speed').click()")
        tab.until("/median of 20/.test(document.getElementById('speed-found').textContent)")
        tab.run("document.getElementById('language').click()")
        assert tab.run("document.documentElement.lang") == "zh-Hans"
        assert tab.run("document.getElementById('status').textContent").endswith("答案相同。")
        hosts = {urlsplit(url).netloc for url in tab.asked if not url.startswith("blob:")}
        assert hosts == {urlsplit(two).netloc}
        assert tab.said == []


def test_the_heat_map_of_a_bundle_is_shown_and_one_that_has_none_says_why(two: str, photo: Path, tabs: Tabs) -> None:
    with tabs() as tab:
        tab.open(f"{two}/?lang=en")
        tab.choose("#file", photo)
        tab.until("document.querySelectorAll('#cards article').length === 2")
        cards = "[...document.querySelectorAll('#cards article')].map(one => one.innerText)"
        without, offered = tab.run(cards)
        assert "No heat map: onnx gives no gradients." in without
        assert offered.endswith("Heat map")
        assert tab.run("document.querySelectorAll('#cards button').length") == 1
        tab.run("document.querySelector('#cards button').click()")
        tab.until("document.querySelector('figure img')?.naturalWidth")
        assert tab.run("document.querySelector('figure img').naturalWidth") == 224
        label = tab.run("document.querySelectorAll('#cards .label')[1].textContent")
        assert f"Yellow speaks most for {label}." in tab.run(cards)[1]
        # it stays in the other language, and goes with the image
        tab.run("document.getElementById('language').click()")
        assert f"黄色处最支持 {label}。" in tab.run(cards)[1]
        tab.choose("#file", photo)
        tab.until("document.querySelectorAll('#cards button').length === 1")
        assert tab.said == []


def test_drift_is_shown_where_it_is_watched_and_elsewhere_why_not(two: str, tabs: Tabs) -> None:
    with tabs() as tab:
        tab.open(f"{two}/?lang=en")
        tab.until("document.querySelectorAll('#drift-cards article').length === 2")
        assert "Not watched: the bundle does not say" in tab.run("document.getElementById('drift').innerText")


def test_what_is_no_image_is_said_and_the_next_is_taken(two: str, photo: Path, tmp_path: Path, tabs: Tabs) -> None:
    text = tmp_path / "text.png"
    text.write_text("<img src=x onerror=alert(1)>")
    empty = tmp_path / "empty.png"
    with tabs() as tab:
        tab.open(f"{two}/?lang=en")
        tab.choose("#file", text)
        tab.until("!document.getElementById('problem').hidden")
        assert tab.run("document.getElementById('problem').textContent") == "That was no image."
        empty.touch()
        tab.choose("#file", empty)
        tab.until("/empty/.test(document.getElementById('problem').textContent)")
        assert tab.run("document.getElementById('results').hidden")
        tab.choose("#file", photo)
        tab.until("document.querySelectorAll('#cards article').length === 2")
        assert tab.run("document.getElementById('problem').hidden")


@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone_and_is_used_by_keyboard(two: str, photo: Path, tabs: Tabs, dark: bool) -> None:
    with tabs() as tab:
        tab.open(f"{two}/?lang=zh", size=PHONE, dark=dark)
        tab.choose("#file", photo)
        tab.until("document.querySelectorAll('#cards article').length === 2")
        assert tab.run("document.documentElement.scrollWidth") <= PHONE[0]
        # what is pressed is large enough for a finger
        heights = (
            "[...document.querySelectorAll('button')].filter(one => one.offsetParent).map(one => one.offsetHeight)"
        )
        assert min(tab.run(heights)) >= 36
        stops = []
        for _ in range(8):
            tab.press("Tab")
            stops.append(tab.run("document.activeElement.id || document.activeElement.dataset.copy || 'other'"))
        assert [stop for stop in stops if stop != "other"][:4] == ["language", "choose", "speed", "curl"]
        # every control has a name, and what changes is said
        named = "[...document.querySelectorAll('button')].every(one => one.textContent.trim())"
        assert tab.run(named)
        assert tab.run("document.getElementById('status').getAttribute('aria-live')") == "polite"
        assert tab.run("getComputedStyle(document.body).backgroundColor") == (
            "rgb(22, 22, 26)" if dark else "rgb(251, 251, 253)"
        )


def test_an_image_that_is_pasted_is_classified(two: str, tabs: Tabs) -> None:
    with tabs() as tab:
        tab.open(two)
        tab.run(
            """(async () => {
                const canvas = document.createElement("canvas");
                canvas.width = canvas.height = 40;
                const blob = await new Promise(done => canvas.toBlob(done));
                const data = new DataTransfer();
                data.items.add(new File([blob], "pasted.png", {type: "image/png"}));
                dispatchEvent(new ClipboardEvent("paste", {clipboardData: data}));
            })()"""
        )
        tab.until("document.querySelectorAll('#cards article').length === 2")


def test_a_server_with_a_token_is_used_by_whoever_has_it(graph_folder: Path, photo: Path, tabs: Tabs) -> None:
    token = "a-token-of-more-than-16"
    with process({"graph": graph_folder}, token=token) as (_, url), tabs() as tab:
        tab.open(f"{url}/?lang=en")
        tab.until("!document.getElementById('token-form').hidden")
        tab.run(f"document.getElementById('token').value = {token!r}")
        tab.run("document.querySelector('#token-form button').click()")
        tab.until("document.getElementById('token-form').hidden")
        tab.choose("#file", photo)
        tab.until("document.querySelectorAll('#cards article').length === 1")
        assert "$VIVACE_SERVE_TOKEN" in tab.run("document.getElementById('curl').textContent")
        assert token not in tab.run("document.documentElement.outerHTML")


def test_the_page_may_run_its_own_scripts_alone_and_no_file_beside_them_is_served(shared: Client) -> None:
    page = shared.get("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert "<script>" not in page.text
    assert "style=" not in page.text
    assert "onclick" not in page.text
    for name in ("files.py", "..%2ffiles.py", "%2e%2e/files.py", "index.html%00", "x"):
        assert shared.get(f"/page/{name}").status_code == 404
    words = shared.get("/page/words.js").text
    english, chinese = words.split("zh: {")
    assert [line.split(":")[0] for line in english.splitlines() if line.startswith("    ")] == [
        line.split(":")[0] for line in chinese.splitlines() if line.startswith("    ")
    ]
