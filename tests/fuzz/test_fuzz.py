"""Two thousand damaged and hostile inputs, always the same, and proof that the sandbox notices what it is to notice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fuzzed import KINDS, planned

RUN = Path(__file__).with_name("run.py")
PLAN = planned(2000)

# what each does wrong, and the word that the report must have
FAULTS = {
    "raise KeyError('x')": "KeyError",
    "raise Raw('two\\nlines')": "control characters",
    "raise Raw('\\x1b[2J')": "control characters",
    "raise Raw('x' * 501)": "501 characters",
    "raise DataError('')": "empty message",
    "socket.create_connection(('127.0.0.1', 9), timeout=1)": "a socket",
    "hidden(lambda: socket.getaddrinfo('example.org', 80))": "a socket",
    "subprocess.run(['true'])": "a program",
    "hidden(lambda: Path('/tmp/fuzz-canary').open())": "names",
    "hidden(lambda: Path(root).parent.joinpath('outside').write_text('x'))": "written outside",
    "hidden(lambda: Path(root).parent.joinpath('outside').mkdir())": "outside",
    "np.ones(120_000_000, dtype=np.uint8)": "bytes",
    "busy(0.6)": "processor time",
}
SOUND = {
    "Path(root, 'inside').write_text('x')": "accepted",
    "raise DataError('the cause: got x. How to fix it.')": "DataError",
    "time.sleep(0.8)": "accepted",
    "np.ones(10_000_000, dtype=np.uint8)": "accepted",
}
PROGRAM = """
import json, socket, subprocess, sys, time
from pathlib import Path
import numpy as np
import sandbox as module
from vivace.errors import DataError

root = sys.argv[1]
sandbox = module.Sandbox(Path(root))
# a tenth: how much is allowed does not change how it is noticed
module.MAX_CPU_SECONDS, module.MAX_BYTES = module.MAX_CPU_SECONDS / 10, module.MAX_BYTES // 10

class Raw(DataError):
    # past what makes each message of ours one short line
    def __str__(self):
        return self.args[0]

    def __init__(self, message):
        super().__init__("")
        self.args = (message,)

def hidden(call):
    try:
        call()
    except OSError:
        pass

def busy(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass

def feed():
    {code}

outcome = sandbox.try_input(feed)
print(json.dumps([outcome.kind, outcome.message]))
"""


def _tried(code: str, folder: Path) -> tuple[str, str]:
    """(kind, message) of code that is run in a sandbox of its own."""
    root = folder / "root"
    root.mkdir()
    command = [sys.executable, "-c", PROGRAM.format(code=code), str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=RUN.parent)
    kind, message = json.loads(done.stdout)
    return kind, message


@pytest.mark.parametrize("code", FAULTS)
def test_the_sandbox_notices(code: str, tmp_path: Path) -> None:
    kind, message = _tried(code, tmp_path)
    assert kind == "FAULT"
    assert FAULTS[code] in message


@pytest.mark.parametrize("code", SOUND)
def test_the_sandbox_lets_pass_what_is_sound(code: str, tmp_path: Path) -> None:
    assert _tried(code, tmp_path)[0] == SOUND[code]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_inputs_are_read_or_refused_in_one_line(kind: str) -> None:
    command = [sys.executable, str(RUN), "--kind", kind, "--inputs", str(PLAN[kind]), "--jobs", "1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["faults"] == []
    assert result["inputs"] == PLAN[kind]
    # neither all the same: what is refused at the door tests nothing behind it
    assert result["counts"].get("accepted", 0) >= 0.02 * PLAN[kind]
    assert result["counts"].get("accepted", 0) <= 0.8 * PLAN[kind]


def test_two_thousand_inputs_are_planned() -> None:
    assert sum(PLAN.values()) >= 2000
