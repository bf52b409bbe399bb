"""What the peers in environments of their own share: their options, the clock of their loop, and their last line.

Standard library only, and imported first: `total_seconds` begins here, before any framework is imported.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

__all__ = ["Clock", "looks_folder", "options", "report"]

PROCESS_START = time.perf_counter()


def options(about: str, *, size: int, batch_size: int) -> argparse.Namespace:
    """The options of every peer; the output folder exists."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("data", type=Path, help="folder with train/CLASS/*.jpg and val/ or test/ beside it")
    parser.add_argument("--size", type=int, default=size, help="side of the images that the network sees")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=batch_size)
    parser.add_argument("--target", type=float, default=None, help="stop after the look that reaches this accuracy")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights")
    parser.add_argument("--json", action="store_true", help="print the results as JSON on the last line")
    args = parser.parse_args()
    # absolute: some frameworks take a relative path for one of their own folders
    args.data, args.out = args.data.resolve(), args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    return args


def looks_folder(data: Path) -> Path:
    """The images that are evaluated after every epoch: val/, or test/ where there is no val/."""
    return data / "val" if (data / "val").is_dir() else data / "test"


@dataclass
class Clock:
    """Seconds of a training loop and of the evaluations within it, kept apart, and the accuracy of each evaluation.

    The loop ends where its last evaluation begins. What a framework cleans up after it, as Keras does for some seconds,
    is part of `total_seconds` only.
    """

    target: float | None = None
    start_seconds: float = 0.0
    """From the start of the process to the start of the loop."""
    train_seconds: float = 0.0
    look_seconds: float = 0.0
    curve: list[tuple[float, float]] = field(default_factory=list)
    looking: bool = False
    """Whether an evaluation has begun and not ended."""
    _since: float = 0.0

    def start(self) -> None:
        """The loop begins."""
        self._since = time.perf_counter()
        self.start_seconds = self._since - PROCESS_START

    def begin_look(self) -> None:
        """The loop pauses."""
        # a GPU is still working when Python has moved on
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.train_seconds += now - self._since
        self._since, self.looking = now, True

    def end_look(self, top1: float) -> None:
        """The loop goes on; the accuracy counts from the moment at which the evaluation began."""
        assert self.looking, "a look ended that had not begun"
        now = time.perf_counter()
        self.look_seconds += now - self._since
        self._since, self.looking = now, False
        self.curve.append((self.train_seconds, float(top1)))
        print(f"epoch {len(self.curve)}  accuracy {top1:.4f}  {self.train_seconds:.1f} s", flush=True)

    @property
    def reached(self) -> bool:
        """Whether the last evaluation reached the target."""
        return self.target is not None and bool(self.curve) and self.curve[-1][1] >= self.target


def report(clock: Clock, *packages: str, json_line: bool) -> None:
    """The last line on stdout. Call it when the weights are saved: `total_seconds` ends here."""
    results = {
        "top1": clock.curve[-1][1],
        "curve": clock.curve,
        "start_seconds": clock.start_seconds,
        "train_seconds": clock.train_seconds,
        "look_seconds": clock.look_seconds,
        "total_seconds": time.perf_counter() - PROCESS_START,
        "versions": {name: version(name) for name in packages},
    }
    if json_line:
        print(json.dumps(results), flush=True)
