"""What Linux, macOS and Windows do differently, and what takes the place of what one of them lacks.

All of it is in this folder, but for the stack of signals (`runtimes.signal_stack`). What is lacking is looked for by
its own name rather than by that of the system: a Python may be built without it on any.
"""

from __future__ import annotations

from vivace.systems.files import (
    CACHE_PLACES,
    OPEN_FILES_MOVE,
    PRIVATE,
    data_sizes,
    exchange,
    is_at,
    is_strangers,
    make_owners_alone,
    open_folder,
    open_plain,
    possible_name,
    read_at,
    read_into,
    reserve,
    rights,
    sync_all,
    sync_file,
    sync_files,
    sync_folder,
    user_id,
    write_at,
)
from vivace.systems.locking import Turn, close, holder, let_go, lock, open_to_lock
from vivace.systems.processes import (
    ENDS_GROUPS,
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
    "NEW_GROUP",
    "OPEN_FILES_MOVE",
    "PRIVATE",
    "WAIT_SECONDS",
    "Turn",
    "close",
    "data_sizes",
    "end_group",
    "end_own_group",
    "exchange",
    "flush_c_output",
    "holder",
    "is_at",
    "is_strangers",
    "let_go",
    "lock",
    "make_owners_alone",
    "open_folder",
    "open_plain",
    "open_to_lock",
    "peak_memory_bytes",
    "possible_name",
    "read_at",
    "read_into",
    "reserve",
    "resource",
    "rights",
    "setting",
    "sync_all",
    "sync_file",
    "sync_files",
    "sync_folder",
    "user_id",
    "write_at",
]
