"""Differences between Linux, macOS and Windows, and substitutes for features that one of them lacks.

All of them are in this package, except for the signal stack (`libraries.signal_stack`). Features are detected by their
own name rather than by the name of the system, since Python may be built without them on any system.
"""

from __future__ import annotations

from vivace.systems.files import (
    CACHE_PLACES,
    OPEN_FILES_MOVE,
    PRIVATE,
    data_sizes,
    exchange,
    is_at,
    is_foreign,
    make_private,
    mode_of,
    open_folder,
    open_plain,
    possible_name,
    read_at,
    read_into,
    reserve,
    sync_all,
    sync_file,
    sync_files,
    sync_folder,
    user_id,
    write_at,
)
from vivace.systems.locking import FileLock, close, close_if_immovable, holder, lock, open_to_lock
from vivace.systems.processes import (
    ENDS_GROUPS,
    HANGUP,
    NEW_GROUP,
    WAIT_SECONDS,
    end_group,
    end_own_group,
    flush_c_output,
    peak_memory_bytes,
    resource,
    setting,
)

__all__ = [
    "CACHE_PLACES",
    "ENDS_GROUPS",
    "HANGUP",
    "NEW_GROUP",
    "OPEN_FILES_MOVE",
    "PRIVATE",
    "WAIT_SECONDS",
    "FileLock",
    "close",
    "close_if_immovable",
    "data_sizes",
    "end_group",
    "end_own_group",
    "exchange",
    "flush_c_output",
    "holder",
    "is_at",
    "is_foreign",
    "lock",
    "make_private",
    "mode_of",
    "open_folder",
    "open_plain",
    "open_to_lock",
    "peak_memory_bytes",
    "possible_name",
    "read_at",
    "read_into",
    "reserve",
    "resource",
    "setting",
    "sync_all",
    "sync_file",
    "sync_files",
    "sync_folder",
    "user_id",
    "write_at",
]
