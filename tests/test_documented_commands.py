"""The commands that README and the site show for a reader's own files, run as they stand on a few small photos.

They run one after the other in a folder far from the checkout, which holds small photos under every name that the
pages use, so that all paths are relative. What would need hours or a network is shortened by the tables below, and
nothing else.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pages import DOCS, ROOT, blocks, shell_commands, site_pages
from vivace.models.pretrained import available_without_download
from vivace.models.zoo import create_model
from vivace.training.recipes.named import PACKAGED_NETWORK

# what is Chinese shows the same commands: tests/docs holds that
PAGES = (ROOT / "README.md", *(page for page in site_pages() if page.parent.name != "zh" and page.name != "recipes.md"))
OWN = DOCS / "own-network.md"
# under which name the pages speak of data, and runs whose place a small run takes
DATA = ("path/to/images", "photos", "cifar10", "DATA")
PROVEN = ("path/to/images", "photos", "cifar10")
RUNS = {
    "runs/larger": "photos",
    "runs/images": "path/to/images",
    "runs/first": "cifar10",
    "runs/cifar10-fast": "cifar10",
    "runs/cifar10-accurate": "cifar10",
    "RUN": "DATA",
}
# option → what it becomes, where it asks for minutes
SHORTER = {
    # the run is there before, for pages that come earlier
    "--run runs/images": "--run runs/from-images",
    "--within 60s": "--within 5s",
    "--within 5m": "--within 15s",
    # a photo of the flowers that the README shows
    "photos/tulips/100930342_92e8746431_n.jpg": "photos/val/cat/0.jpg",
    "--seeds 3": "--seeds 1",
    "--epochs 6": "--epochs 2",
    "--epochs 20": "--epochs 2",
    "timm/resnet50": "timm/test_resnet",
}
# verb → what is added, for the sake of time alone
ADDED = {"train": "--epochs 2", "accelerate": "--within 15s"}
# shown as console rather than sh, so that they are not run
RUNS_UNTIL_STOPPED = {"serve"}
# what ends otherwise, and how: no network is there
OTHERWISE = {"--pretrained": (2, "can't be had")}


def small_photos(root: Path, *, seed: int, count: int = 24) -> None:
    """Two classes of photos that can be told apart, of various shapes, as JPEG files."""
    rng = np.random.default_rng(seed)
    for label, colour in (("cat", (200, 90, 60)), ("dog", (60, 110, 200))):
        (root / label).mkdir(parents=True)
        for index in range(count):
            shape = (int(rng.integers(60, 100)), int(rng.integers(60, 100)), 3)
            pixels = np.asarray(colour) + rng.normal(0, 30, shape)
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(root / label / f"{index}.jpg")


# all of them take five minutes: `make pages`
RUN_ALL = os.environ.get("VIVACE_TEST_PAGES") == "all"
RUN_ALWAYS = ("README.md",)


def shown_commands() -> list[tuple[str, str]]:
    """(page, command) for each `vivace …` line of a block that is fenced as sh."""
    return [(str(page.relative_to(ROOT)), command) for page in PAGES for command in shell_commands(page)]


def shortened(command: str) -> str:
    for long, short in SHORTER.items():
        command = command.replace(long, short)
    verb = command.split()[1]
    if verb == "bench":
        return re.sub(r" --seeds \d+", "", command) + " --seeds 1 --technique flips"
    if verb in ADDED and not re.search(r"--(epochs|within|resume)", command):
        command += f" {ADDED[verb]}"
    return command


def test_the_pages_show_commands() -> None:
    shown = shown_commands()
    assert len(shown) >= 40
    verbs = {page.stem for page in (DOCS / "commands").glob("*.md")} - {"index"}
    assert {command.split()[1] for _, command in shown} >= verbs - RUNS_UNTIL_STOPPED
    consoles = [text for page in PAGES for language, text in blocks(page) if language == "console"]
    assert all(any(f"vivace {verb}" in text for text in consoles) for verb in RUNS_UNTIL_STOPPED)


@dataclass(frozen=True)
class Ground:
    """A folder far from the checkout with everything that the pages speak of, in which commands run."""

    root: Path
    programs: Path

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        env = {
            **os.environ,
            "PATH": os.pathsep.join([str(self.programs), str(Path(sys.executable).parent), os.environ["PATH"]]),
            "VIVACE_CACHE": str(self.root / "cache"),
            "HF_HUB_OFFLINE": "1",
        }
        return subprocess.run(shlex.split(command), cwd=self.root, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory, programs: Path) -> Ground:
    for library in ("onnxruntime", "openvino", "matplotlib", "sklearn"):
        pytest.importorskip(library)
    if available_without_download(PACKAGED_NETWORK) is None:
        pytest.skip("the pages name runs of finetune, which needs pretrained weights")
    root = tmp_path_factory.mktemp("pages")
    for index, name in enumerate(DATA):
        # what is accelerated needs images to prove it on
        splits = {"train": 24, "val": 24} if name in PROVEN else {"": 24}
        for split, count in splits.items():
            small_photos(root / name / split, seed=10 * index + len(split), count=count)
    small_photos(root / "path/to/more", seed=99, count=3)
    # the network that a page writes
    (root / "nets.py").write_text(next(text for language, text in blocks(OWN) if "# nets.py" in text))
    # of the network that SHORTER has in its place
    torch.save(create_model("timm/test_resnet", 1000, size=64).state_dict(), root / "resnet50.pth")
    ground = Ground(root, programs)
    for name, data in RUNS.items():
        if not any(f" {name}" in command for _, command in each_once()):
            continue
        done = ground.run(f"vivace train {data} --run {name} --epochs 2 --tune off --quiet")
        assert done.returncode == 0, done.stderr
    return ground


def each_once() -> list[tuple[str, str]]:
    """What is run, in the order of the pages: what is shown twice, once."""
    found: list[tuple[str, str]] = []
    for page, command in shown_commands():
        if not RUN_ALL and page not in RUN_ALWAYS:
            continue
        short = shortened(command)
        if short.startswith("vivace bench") and any(other.startswith("vivace bench") for _, other in found):
            # it trains many times: one is enough
            continue
        if short not in [known for _, known in found]:
            found.append((page, short))
    return found


# one after the other: many take what an earlier one has made
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("page", "command"), each_once())
def test_every_command_of_the_pages_runs_on_small_photos(ground: Ground, page: str, command: str) -> None:
    done = ground.run(command)
    status, word = next((how for option, how in OTHERWISE.items() if option in command), (0, ""))
    # 3: nothing faster could be proven, which so few photos may well lead to
    accepted = {status, 3} if command.startswith("vivace accelerate") else {status}
    assert done.returncode in accepted, f"{page}: {command}\n{done.stdout}\n{done.stderr}"
    assert word in done.stderr
    assert "Traceback" not in done.stderr
    folder = ground.root / "runs/ablation"
    if folder.exists():
        # the next one is shown to somebody who has not run this one
        folder.rename(ground.root / f"runs/ablation-{len(list(ground.root.glob('runs/*')))}")
