"""Whether the hub of published weights can be reached, asked once and quickly."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["cache_only", "hub_name", "offline_if_unreachable"]

# a name server that does not answer may take longer than this
PATIENCE_SECONDS = 5.0


def hub_name() -> str:
    """Host of the hub, such as "huggingface.co"."""
    from urllib.parse import urlsplit

    from huggingface_hub import constants

    return urlsplit(constants.ENDPOINT).netloc or constants.ENDPOINT


@contextmanager
def offline_if_unreachable() -> Iterator[bool]:
    """Within, the hub's client only reads its cache if the hub does not answer; yields whether it answers.

    By default the client tries each file six times with growing pauses, most of a minute in all.
    """
    from huggingface_hub import constants

    reachable = not constants.HF_HUB_OFFLINE and _answers()
    with _offline(not reachable):
        yield reachable


@contextmanager
def cache_only() -> Iterator[bool]:
    """Within, the hub's client reads its cache alone, without asking whether the hub answers; yields False."""
    with _offline(True):
        yield False


@contextmanager
def _offline(offline: bool) -> Iterator[None]:
    from huggingface_hub import constants

    was_offline = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = offline
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = was_offline


def _answers() -> bool:
    """Whether the hub answers within PATIENCE_SECONDS, through the client's own proxies and certificates."""
    answered = threading.Event()

    def ask() -> None:
        from huggingface_hub import constants, get_session

        try:
            get_session().head(constants.ENDPOINT, timeout=PATIENCE_SECONDS)
        except Exception:
            # any failure means that the hub can't be used
            return
        answered.set()

    # a thread, since name resolution has no timeout
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PATIENCE_SECONDS)
    return answered.is_set()
