"""SIGKILL at random moments: python tests/soak/run.py --kills 200 (or `make soak`).

Every phase of a run is killed in its turn: decoding into the cache, the trial, training, a checkpoint, the bundle, an
export, an extraction. After each kill: what lies on disk under its final name can be read; the same command, or
--resume, ends well; the weights are bitwise those of a run that nothing killed; and nothing is left of the killed
process, neither a temporary file nor a process. Exit status 1 if that failed anywhere.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from colours import colour_folder

TRAIN = ["--epochs", "4", "--size", "16", "--batch-size", "16", "--quiet"]
FIXED = [*TRAIN, "--tune", "off", "--precision", "fp32"]
# names that only what is being written has
UNFINISHED = re.compile(r"^\.(.+\.(tmp|old)|build-.+)$")
# what takes so many times as long as the same command did at first hangs, whatever the machine
PATIENCE = 50
FIRST_SECONDS = 1800


@dataclass(frozen=True)
class Phase:
    """A moment that kills aim at: they come up to `spread` seconds after `begun` first holds."""

    arguments: Callable[[Path], list[str]]
    begun: Callable[[Path], bool]
    spread: float


@dataclass
class Tally:
    """What came of the kills of one phase."""

    kills: int = 0
    finished_before: int = 0
    """Commands that were done before the signal came: tried again, not counted."""
    faults: list[str] = field(default_factory=list)


def _exists(pattern: str) -> Callable[[Path], bool]:
    return lambda folder: any(folder.glob(pattern))


PHASES = {
    "cache": Phase(lambda _: ["train", "images", "--run", "run", *FIXED], _exists("cache/images/.*.tmp"), 0.15),
    "trial": Phase(lambda _: ["train", "images", "--run", "run", *TRAIN], _exists("run/recipe.yaml"), 2.0),
    "training": Phase(lambda _: ["train", "images", "--run", "run", *FIXED], _exists("run/metrics.csv"), 1.0),
    "checkpoint": Phase(lambda _: ["train", "images", "--run", "run", *FIXED], _exists("run/checkpoints/.*.tmp"), 0.01),
    "bundle": Phase(lambda _: ["train", "images", "--run", "run", *FIXED], _exists("run/.bundle.*.tmp"), 0.05),
    "export": Phase(lambda _: ["export", "trained", "--to", "onnx", "--out", "out"], lambda _: True, 2.5),
    "extraction": Phase(
        lambda _: ["train", "images.zip", "--run", "run", *FIXED], _exists("cache/archives/.*.tmp"), 0.1
    ),
}


def start(arguments: list[str], folder: Path) -> int:
    """A process group that runs one command in `folder`; its number. It is a fork: torch is imported already."""
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        os.setpgid(0, 0)
        os.chdir(folder)
        temporary = folder / "tmp"
        temporary.mkdir(exist_ok=True)
        os.environ.update(VIVACE_CACHE=str(folder / "cache"), TMPDIR=str(temporary))
        tempfile.tempdir = None
        log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        from vivace.cli import main as vivace

        status = vivace(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def finish(child: int, seconds: float) -> int:
    """Wait for a process; its exit status, 124 if it has not ended after so many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return 124


def run(arguments: list[str], folder: Path, seconds: float = FIRST_SECONDS) -> str | None:
    """Run a command to its end; what went wrong, if anything did."""
    status = finish(start(arguments, folder), seconds)
    if status == 0:
        return None
    return f"vivace {' '.join(arguments)} ended with {status}: {(folder / 'log').read_text()[-300:]!r}"


def kill(phase: Phase, folder: Path, rng: np.random.Generator) -> bool:
    """Start a phase's command and kill it at its moment; whether it was still running then."""
    child = start(phase.arguments(folder), folder)
    while not phase.begun(folder):
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        time.sleep(0.0005)
    time.sleep(phase.spread * rng.random())
    if os.waitpid(child, os.WNOHANG)[0]:
        return False
    # the process alone, as the kernel does when memory runs out: what it started must end by itself
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def orphans(folder: Path) -> list[int]:
    """Processes other than this one that still work in the folder ten seconds after they were orphaned."""
    found: list[int] = []
    for _ in range(200):
        found = []
        for link in Path("/proc").glob("[0-9]*/cwd"):
            with contextlib.suppress(OSError):
                if link.resolve() == folder.resolve():
                    found.append(int(link.parent.name))
        if not found:
            break
        time.sleep(0.05)
    return found


def unreadable(folder: Path) -> str | None:
    """What lies under its final name and can't be read, if anything."""
    from vivace.bundle import load_bundle
    from vivace.errors import VivaceError

    for path in (folder / "run" / "bundle", folder / "out", folder / "trained" / "bundle"):
        if path.exists():
            try:
                load_bundle(path).build_model()
            except VivaceError as error:
                return f"unreadable after the kill: {error}"
    return None


def left_behind(folder: Path) -> str | None:
    """A name that only something unfinished has, below what the command writes."""
    names = [str(path.relative_to(folder)) for path in folder.rglob(".*") if UNFINISHED.match(path.name)]
    names += [str(path.relative_to(folder)) for path in (folder / "tmp").glob("vivace*")]
    return f"left behind: {', '.join(sorted(names)[:5])}" if names else None


def digest(folder: Path) -> str:
    """The SHA-256 of a run's weights."""
    return hashlib.sha256((folder / "bundle" / "model.safetensors").read_bytes()).hexdigest()


class Soak:
    """The sound inputs and weights that every kill is compared with."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sound = root / "sound"
        colour_folder(self.sound / "images", per_class=40)
        with zipfile.ZipFile(self.sound / "images.zip", "w") as archive:
            for path in sorted((self.sound / "images").rglob("*.png")):
                archive.write(path, path.relative_to(self.sound / "images"))
        self.expected = {}
        began = time.monotonic()
        for name in ("images", "images.zip"):
            if fault := run(["train", name, "--run", f"ref-{name}", *FIXED], self.sound):
                raise SystemExit(fault)
            self.expected[name] = digest(self.sound / f"ref-{name}")
        self.patience = PATIENCE * (time.monotonic() - began)

    def fresh(self) -> Path:
        """A folder with the data, and a run to export, and nothing else."""
        folder = self.root / "killed"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        shutil.copytree(self.sound / "images", folder / "images", copy_function=os.link)
        os.link(self.sound / "images.zip", folder / "images.zip")
        shutil.copytree(self.sound / "ref-images", folder / "trained")
        return folder

    def once(self, name: str, rng: np.random.Generator) -> str | bool:
        """One kill of a phase and all that must hold after it: the fault, or whether the kill came in time."""
        phase, folder = PHASES[name], self.fresh()
        if not kill(phase, folder, rng):
            return False
        return self.fault_after(name, phase, folder) or True

    def fault_after(self, name: str, phase: Phase, folder: Path) -> str | None:
        if left := orphans(folder):
            return f"processes go on without the killed one: {left}"
        if fault := unreadable(folder):
            return fault
        command = phase.arguments(folder)
        if command[0] == "train" and (folder / "run" / "recipe.yaml").exists():
            command = ["train", command[1], "--run", "run", "--resume", "--quiet"]
        if fault := run(command, folder, self.patience) or unreadable(folder) or left_behind(folder):
            return fault
        if name == "export":
            return run(["verify", "out"], folder, self.patience)
        expected = self.same_execution(folder) if name == "trial" else self.expected[command[1]]
        return (
            None if digest(folder / "run") == expected else "the weights differ from those of a run that went through"
        )

    def same_execution(self, folder: Path) -> str:
        """The weights of an unbroken run with what the trial of this one chose."""
        twin = folder / "twin"
        twin.mkdir()
        for path in (folder / "run").glob("*.*"):
            if path.name in ("recipe.yaml", "env.json", "run.json", "tune.json"):
                shutil.copyfile(path, twin / path.name)
        if fault := run(["train", "images", "--run", "twin", "--resume", "--quiet"], folder, self.patience):
            raise SystemExit(fault)
        return digest(twin)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--phase", choices=tuple(PHASES))
    options = parser.parse_args()
    # threads that wait for a processor turn in circles otherwise, where other work has it
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # imported once, before any fork: threads would not survive one, and none has begun
    import torch  # noqa: F401

    rng = np.random.default_rng(options.seed)
    names = [options.phase] if options.phase else list(PHASES)
    tallies = {name: Tally() for name in names}
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="vivace-soak-") as temporary:
        soak = Soak(Path(temporary))
        while (done := sum(tally.kills for tally in tallies.values())) < options.kills:
            name = names[done % len(names)]
            outcome = soak.once(name, rng)
            tally = tallies[name]
            if outcome is False:
                tally.finished_before += 1
                if tally.finished_before > 3 * (tally.kills + 5):
                    raise SystemExit(f"{name}: the command ends before the kill comes")
                continue
            tally.kills += 1
            if (done + 1) % 20 == 0:
                print(f"{done + 1} kills, {time.monotonic() - began:,.0f} s", flush=True)
            if isinstance(outcome, str):
                tally.faults.append(outcome)
                print(f"{name}, kill {tally.kills}: {outcome}", flush=True)
    for name, tally in tallies.items():
        print(
            f"{name}: {tally.kills} kills, {len(tally.faults)} faults ({tally.finished_before} ended before the kill)"
        )
    num_faults = sum(len(tally.faults) for tally in tallies.values())
    print(f"{options.kills} kills, {num_faults} faults, {time.monotonic() - began:,.0f} s")
    return 1 if num_faults else 0


if __name__ == "__main__":
    sys.exit(main())
