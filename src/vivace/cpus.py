"""How many CPUs this process may use, by its affinity, control groups (cgroups), Slurm and OMP_NUM_THREADS."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path

__all__ = ["at_most_cpus", "forked_with", "limit_threads", "num_cpus", "set_threads", "use_processors"]

# libraries imported before a fork. Some have thread pools: a fork does not copy the threads, so that a child that uses
# the pool waits forever
_left_behind: set[str] = set()

_most: ContextVar[int | None] = ContextVar("most", default=None)


def num_cpus(*, root: Path = Path("/"), environment: Mapping[str, str] = os.environ) -> int:
    """The number of CPUs that this process may use, at least 1: the smallest of all limits.

    A quota of one and a half CPUs counts as one. In a process that was forked from one with torch it is 1.
    root: the folder of proc/ and sys/. environment: the environment variables.
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
    """In the block, in this thread, `num_cpus` is at most `count`; None: no change."""
    token = _most.set(count if count is not None else _most.get())
    try:
        yield
    finally:
        _most.reset(token)


def _chosen() -> Iterator[int]:
    if (most := _most.get()) is not None:
        yield most


def use_processors(count: int) -> None:
    """Restrict this process to the first `count` of its CPUs; libraries derive their number of threads from that."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, _processors()[:count])


def limit_threads() -> None:
    """Limit torch's threads to `num_cpus`; a smaller number set by the program stays.

    Torch counts the cores of the machine and ignores quotas.
    """
    import torch

    if torch.get_num_threads() > num_cpus():
        torch.set_num_threads(num_cpus())


def set_threads(count: int) -> None:
    """Set torch's number of threads to `count`, or to 1 in a process that was forked from one with torch."""
    import torch

    torch.set_num_threads(1 if forked_with("torch") else count)


def forked_with(library: str) -> bool:
    """Whether this process was forked from one that had loaded `library`, "torch" say, whose threads it lacks.

    Using torch's OpenMP pool would then hang, except with a single thread, which uses no pool; PyTorch's DataLoader
    sets that in its workers too.
    """
    return library in _left_behind


def _note_fork() -> None:
    _left_behind.update(name for name in list(sys.modules) if "." not in name)


def _note_earlier_fork() -> None:
    # vivace may be imported first in a worker of multiprocessing, whose parent may have loaded torch
    process = sys.modules.get("multiprocessing.process")
    if process is not None and type(process.current_process()).__name__ == "ForkProcess":
        _note_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)
    _note_earlier_fork()


def _asked_for(environment: Mapping[str, str]) -> Iterator[int]:
    # a list holds the threads for each level of nested parallel regions
    if count := _first_number(environment.get("OMP_NUM_THREADS", "")):
        yield count
    if count := _first_number(environment.get("SLURM_CPUS_PER_TASK", "")):
        yield count
    elif cpus := _first_number(environment.get("SLURM_CPUS_ON_NODE", "")):
        # set in a job step: this many processes share the CPUs of the node
        tasks = _first_number(environment.get("SLURM_STEP_TASKS_PER_NODE", "")) or 1
        yield max(1, cpus // tasks)


def _first_number(text: str) -> int:
    """The first number of a list: 4 for "4", "4,2" or "4(x2),3"; 0 if there is none."""
    found = re.match(r"\s*(\d{1,9})\s*(?:[,(]|$)", text)
    return int(found[1]) if found else 0


def _quotas(root: Path) -> Iterator[int]:
    """The whole CPUs of each quota, from this process's control groups up to the root."""
    for group in _groups(root):
        with contextlib.suppress(OSError, ValueError):
            quota, period = (group / "cpu.max").read_text().split()
            if quota != "max":
                yield int(quota) // max(1, int(period))
        # cgroup v1; -1 means no quota
        with contextlib.suppress(OSError, ValueError):
            allowed = int((group / "cpu.cfs_quota_us").read_text())
            if allowed > 0:
                yield allowed // max(1, int((group / "cpu.cfs_period_us").read_text()))


def _groups(root: Path) -> Iterator[Path]:
    """The folders of the control groups that may limit this process's CPU time, inner ones first."""
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
        # cgroup v2 lists no controllers, and its folder may be beside those of v1
        for mount in (mounts, mounts / "unified") if not controllers else (mounts / "cpu", mounts / controllers):
            # ".." is outside this container, where at most parents of the group are visible
            parts = [part for part in path.split("/") if part not in ("", "..")]
            for depth in range(len(parts), -1, -1):
                yield mount.joinpath(*parts[:depth])
    if not lines:
        yield from (mounts, mounts / "cpu")
