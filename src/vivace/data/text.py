"""Text for messages: counts, and names made printable and short (no torch here)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vivace.data.decoding.decode import shown

__all__ = ["case_hint", "count_of", "first_few", "shortened"]

NUM_SHOWN = 5


def first_few(names: Sequence[str], limit: int = NUM_SHOWN) -> str:
    """Up to `limit` names for one line of text, and how many more there are."""
    rest = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(shortened(name) for name in names[:limit]) + rest


def shortened(name: str, length: int = 60) -> str:
    """A name for one line of text: made printable, and cut to `length` characters."""
    text = shown(name)
    return text if len(text) <= length else text[: length - 1] + "…"


def count_of(count: int, noun: str, plural: str | None = None) -> str:
    """Such as "1 image" or "1,200 images"."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def case_hint(names: Iterable[str], known: Iterable[str]) -> str:
    """A hint for unknown names of which some differ from known ones only in case; "" if none do."""
    own = {name.lower() for name in names}
    same = sorted(name for name in known if name.lower() in own)
    return f" (differs only in case from {first_few(same, 3)}: rename one of them)" if same else ""
