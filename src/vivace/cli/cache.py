"""List the caches of decoded images, or remove them."""

from __future__ import annotations

from pathlib import Path

from vivace.cli.common import print_json, verb_options


@verb_options
class Options:
    """The options of `vivace cache`."""

    remove: str | None = None
    """Remove the cache with this name, or "all"."""
    cache_dir: Path | None = None
    """Where decoded images are kept. Default: $VIVACE_CACHE or ~/.cache/vivace."""
    json: bool = False
    """Print the list as one JSON object on the last line."""


def run(options: Options) -> None:
    """Remove what was asked for, then list what is there."""
    from vivace.data.cachedir import default_cache_dir, list_caches, remove_cache
    from vivace.errors import DataError, nearest

    cache_dir = options.cache_dir or default_cache_dir()
    if options.remove is not None:
        names = [entry.name for entry in list_caches(cache_dir)]
        chosen = names if options.remove == "all" else [name for name in names if name == options.remove]
        if not chosen and options.remove != "all":
            raise DataError(
                f"there is no such cache: got {options.remove!r}.{nearest(options.remove, names)} "
                "'vivace cache' lists them."
            )
        for name in chosen:
            remove_cache(cache_dir, name)
    entries = list_caches(cache_dir)
    if options.json:
        print_json(
            {
                "cache_dir": str(cache_dir),
                "caches": [
                    {"name": entry.name, "bytes": entry.num_bytes, "num_images": entry.num_images} for entry in entries
                ],
            }
        )
        return
    for entry in entries:
        print(f"{entry.name:<40} {entry.num_images:>9,} images {entry.num_bytes / 2**20:>9,.1f} MiB")
    print(f"{len(entries)} caches in {cache_dir}")
