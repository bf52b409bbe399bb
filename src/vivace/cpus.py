"""How many processors this process was given: by its affinity, its control groups, Slurm and OMP_NUM_THREADS."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path

__all__ = ["at_most_cpus", "forked_with", "limit_threads", "num_cpus", "set_threads", "use_processors"]

# libraries that keep threads: a fork copies what waits for them and not the threads, so that the child waits for ever
THREADED = ("torch", "openvino")
_left_behind: set[str] = set()

_most: ContextVar[int | None] = ContextVar("most", default=None)


def num_cpus(*, root: Path = Path("/"), environment: Mapping[str, str] = os.environ) -> int:
    """Processors that this process may use, at least 1: the smallest of all the limits that it was given.

    root: where proc/ and sys/ are. A quota of one and a half processors counts as one. In a process that was forked
    from one with torch it is 1.
    """
    if forked_with("torch"):
        return 1
    count = len(_processors())
    return max(1, min([count, *_chosen(), *_quotas(root), *_asked_for(environment)]))


def _processors() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


@contextlib.contextmanager
def at_most_cpus(count: int | None) -> Iterator[None]:
    """Within, in this thread, `num_cpus` is `count` at most; None: as it was."""
    token = _most.set(count if count is not None else _most.get())
    try:
        yield
    finally:
        _most.reset(token)


def _chosen() -> Iterator[int]:
    if (most := _most.get()) is not None:
        yield most


def use_processors(count: int) -> None:
    """Let this process use the first `count` of its processors; libraries take their number of threads from that."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, _processors()[:count])


def limit_threads() -> None:
    """Let torch use no more threads than `num_cpus`; fewer, if the program chose so, are left as they are.

    Torch counts the machine's cores, and knows nothing of a quota.
    """
    import torch

    if torch.get_num_threads() > num_cpus():
        torch.set_num_threads(num_cpus())


def set_threads(count: int) -> None:
    """Let torch use `count` threads, or one in a process that was forked from one with torch."""
    import torch

    torch.set_num_threads(1 if forked_with("torch") else count)


def forked_with(library: str) -> bool:
    """Whether this process was forked from one that had loaded "torch" or "openvino", whose threads it lacks.

    OpenMP's pool is such: with one thread, which is what PyTorch's own DataLoader sets in its workers, it is not asked.
    """
    return library in _left_behind


def _note_fork() -> None:
    _left_behind.update(name for name in THREADED if name in sys.modules)


def _note_earlier_fork() -> None:
    # imported for the first time in a worker of multiprocessing: the parent may have had torch, and no vivace
    process = sys.modules.get("multiprocessing.process")
    if process is not None and type(process.current_process()).__name__ == "ForkProcess":
        _note_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)
    _note_earlier_fork()


def _asked_for(environment: Mapping[str, str]) -> Iterator[int]:
    # a list gives the threads of each level of nested regions
    if count := _first_number(environment.get("OMP_NUM_THREADS", "")):
        yield count
    if count := _first_number(environment.get("SLURM_CPUS_PER_TASK", "")):
        yield count
    elif cpus := _first_number(environment.get("SLURM_CPUS_ON_NODE", "")):
        # set in a step: so many processes were started beside this one, and share the node's
        tasks = _first_number(environment.get("SLURM_STEP_TASKS_PER_NODE", "")) or 1
        yield max(1, cpus // tasks)


def _first_number(text: str) -> int:
    """4 of "4", "4,2" or "4(x2),3"; 0 where there is none."""
    found = re.match(r"\s*(\d{1,9})\s*(?:[,(]|$)", text)
    return int(found[1]) if found else 0


def _quotas(root: Path) -> Iterator[int]:
    """Whole processors of each quota on the way from this process's control groups up to the root."""
    for group in _groups(root):
        with contextlib.suppress(OSError, ValueError):
            quota, period = (group / "cpu.max").read_text().split()
            if quota != "max":
                yield int(quota) // max(1, int(period))
        # version 1: -1 for none
        with contextlib.suppress(OSError, ValueError):
            allowed = int((group / "cpu.cfs_quota_us").read_text())
            if allowed > 0:
                yield allowed // max(1, int((group / "cpu.cfs_period_us").read_text()))


def _groups(root: Path) -> Iterator[Path]:
    """The folders of the control groups that may limit this process's time on processors, inner ones first."""
    mounts = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        # version 2 has no controllers in its line, and its folder may be beside those of version 1
        for mount in (mounts, mounts / "unified") if not controllers else (mounts / "cpu", mounts / controllers):
            # ".." is outside of this container's view: what can be seen are the group's parents at most
            parts = [part for part in path.split("/") if part not in ("", "..")]
            for depth in range(len(parts), -1, -1):
                yield mount.joinpath(*parts[:depth])
    if not lines:
        yield from (mounts, mounts / "cpu")
