"""List what is kept in the cache (images, archives, downloads, kernels, compiled networks, weights), or remove it."""

from __future__ import annotations

from pathlib import Path

from vivace.cli.answers import print_json
from vivace.cli.options import verb_options


@verb_options
class Options:
    """The options of `vivace cache`."""

    remove: str | None = None
    """Remove what has this name, such as images/digits-0123456789; all of a kind, such as kernels; or "all"."""
    cache_dir: Path | None = None
    """Where the cache is. Default: $VIVACE_CACHE or ~/.cache/vivace."""
    json: bool = False
    """Print the list as one JSON object on the last line."""


def run(options: Options) -> None:
    """Remove what --remove names, then list what is left."""
    from vivace.cachedir import clear_leftovers, default_cache_dir
    from vivace.data.caching.contents import list_caches, remove_caches

    cache_dir = options.cache_dir or default_cache_dir()
    clear_leftovers(cache_dir)
    removed = [] if options.remove is None else remove_caches(cache_dir, options.remove)
    entries = list_caches(cache_dir)
    if options.json:
        listed = [
            {"kind": entry.kind, "name": entry.name, "bytes": entry.num_bytes, "num_images": entry.num_images}
            for entry in entries
        ]
        print_json(
            "cache", {"cache_dir": str(cache_dir), "caches": listed, "removed": [entry.title for entry in removed]}
        )
        return
    for entry in entries:
        images = "" if entry.num_images is None else f"{entry.num_images:,} images"
        print(f"{entry.title:<48} {images:>16} {_size(entry.num_bytes):>12}")
    total = _size(sum(entry.num_bytes for entry in entries))
    print(f"{len(entries)} entries, {total}, in {cache_dir}")
    if options.remove is not None:
        print(f"removed {len(removed)} entries, {_size(sum(entry.num_bytes for entry in removed))}")


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.1f} MiB"
