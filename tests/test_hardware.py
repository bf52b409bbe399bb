"""What vivace asks of the system for its memory."""

from __future__ import annotations

import subprocess
import sys

import pytest

from vivace.hardware import describe, huge_pages

# allocates and fills as torch does, by the C library's malloc (NumPy asks for huge pages by itself)
PROGRAM = """
import ctypes, resource, sys

if sys.argv[1] != "unlimited":
    resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
from vivace.hardware import _ask_for_huge_pages, _proc_bytes, keep_freed_memory

resident = lambda: _proc_bytes("self/status", "VmRSS")
before = resident()
kept = keep_freed_memory()
grown = resident() - before
library = ctypes.CDLL("libc.so.6")
library.malloc.argtypes, library.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
library.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]
address = library.malloc(2**26)
library.memset(address, 1, 2**26)
filled = resident()
library.free(address)
lost = filled - resident()
print(kept, _ask_for_huge_pages(), grown, _proc_bytes("self/smaps_rollup", "AnonHugePages"), lost)
"""


def run(limit: str) -> tuple[bool, bool, int, int, int]:
    """Is memory kept, and in huge pages; bytes that asking took, that are in huge pages, that `free` gave back."""
    out = subprocess.run([sys.executable, "-c", PROGRAM, limit], capture_output=True, text=True, check=True).stdout
    kept, huge, *counts = out.split()
    grown, in_huge, lost = map(int, counts)
    return kept == "True", huge == "True", grown, in_huge, lost


@pytest.mark.skipif(huge_pages() in (None, "never"), reason="this system gives no transparent huge pages")
def test_freed_memory_is_kept_in_huge_pages() -> None:
    kept, huge, grown, in_huge, lost = run("unlimited")
    assert kept
    assert huge
    assert grown < 8 * 2**20, "asking must take no memory"
    # some may be refused where memory is in pieces
    assert in_huge >= 2**25
    assert lost < 2**20


def test_where_addresses_are_limited_none_are_taken_ahead() -> None:
    kept, huge, *_, lost = run(str(4 * 2**30))
    assert kept
    assert not huge
    assert lost < 2**20


def test_the_record_of_the_machine_tells_who_gets_huge_pages() -> None:
    assert describe()["huge_pages"] in (None, "always", "madvise", "never")
