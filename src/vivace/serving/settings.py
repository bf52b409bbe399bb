"""The settings of a server: where it listens, who may ask, and every bound."""

from __future__ import annotations

import ipaddress
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vivace.config import check_choice, check_range, shown_value
from vivace.errors import ConfigError
from vivace.notices import warn
from vivace.predictor import check_whole

__all__ = ["LOGS", "TOKEN_VARIABLE", "Settings", "is_loopback", "read_token"]

TOKEN_VARIABLE = "VIVACE_SERVE_TOKEN"
LOGS = ("problems", "requests", "nothing")
# shorter ones can be guessed at the rate at which a server answers
MIN_TOKEN, MAX_TOKEN = 16, 512
TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]+")
HOST = re.compile(r"[A-Za-z0-9.:_-]{1,253}")
LOCAL = frozenset({"localhost", "127.0.0.1", "[::1]", "::1"})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How bundles are served. Raises ConfigError for values out of range, and for listening beyond loopback without a
    token."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0: one that is free."""
    grpc_port: int | None = None
    """Of Open Inference Protocol v2 over gRPC; None: it is not spoken; 0: one that is free."""
    token: str | None = field(default=None, repr=False)
    """What clients send as `Authorization: Bearer …`."""
    allow_hosts: tuple[str, ...] = ()
    """Further names of this server that requests may give as their Host."""
    max_batch: int | None = None
    """Images per forward pass at most; None: by a trial at the start."""
    max_wait_ms: float | None = None
    """How long an image waits for others; None: by the trial."""
    queue: int = 256
    """Images of a bundle that wait or are worked on at most."""
    max_images: int = 64
    """In one request."""
    max_body_bytes: int = 32 << 20
    max_pending_bytes: int = 512 << 20
    """Of all bodies that are in memory at once."""
    max_connections: int = 1024
    header_seconds: float = 10.0
    """A client has to send its request line and headers."""
    idle_seconds: float = 5.0
    """Between two pieces of a body, or while a client does not read its answer."""
    min_bytes_per_second: int = 16 << 10
    """A body that comes more slowly than this after the first `header_seconds` is given up."""
    keep_alive_seconds: float = 30.0
    answer_seconds: float = 30.0
    """An image that has waited for so long is not worked on any more."""
    trial_seconds: float = 2.0
    drain_seconds: float = 1.0
    """How long requests are still taken after SIGTERM, while the server says that it is not ready."""
    log: str = "problems"

    def __post_init__(self) -> None:
        if not HOST.fullmatch(self.host):
            raise ConfigError(f"host is no address: got {shown_value(self.host)}. Give one such as 127.0.0.1.")
        check_range("port", self.port, 0, 65535)
        if self.grpc_port is not None:
            check_range("grpc_port", self.grpc_port, 0, 65535)
            if self.grpc_port == self.port != 0:
                raise ConfigError(f"grpc_port is the port of HTTP: got {self.port} for both. Give another one.")
        for name in ("queue", "max_images", "max_body_bytes", "max_connections"):
            check_whole(name, getattr(self, name))
        if self.max_batch is not None:
            check_whole("max_batch", self.max_batch)
            check_range("max_batch", self.max_batch, 1, 1024)
        if self.max_wait_ms is not None:
            check_range("max_wait", self.max_wait_ms, 0, 1000)
        check_range("drain", self.drain_seconds, 0, 600)
        check_choice("log", self.log, LOGS)
        for name in self.allow_hosts:
            if not HOST.fullmatch(name):
                raise ConfigError(f"allow_host is no name: got {shown_value(name)}. Give one such as api.example.org.")
        if self.token is None and not is_loopback(self.host):
            raise ConfigError(
                f"whoever reaches {self.host} could use the server: no token is set. Give one (`token`, a file that "
                f"holds it, or ${TOKEN_VARIABLE}), or listen on 127.0.0.1."
            )

    @property
    def known_hosts(self) -> frozenset[str] | None:
        """What a request's Host may be, in lower case and without the port; None: anything, as a token guards it.

        On loopback a page in a browser could otherwise use the server under a name of its own that it lets point to
        127.0.0.1 (DNS rebinding).
        """
        if self.allow_hosts:
            return frozenset(map(str.lower, self.allow_hosts)) | LOCAL
        return None if self.token is not None else LOCAL | {self.host.lower()}


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address. Names other than localhost may point anywhere."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_token(file: Path | None, environment: Mapping[str, str] = os.environ) -> str | None:
    """The token in a file, else in the environment; None: there is neither. No message repeats it.

    Raises ConfigError for a file that can't be read, and a token that is short or odd. Warns of one that all can read.
    """
    if file is not None:
        try:
            facts = file.stat()
            text = file.read_text("utf-8") if stat.S_ISREG(facts.st_mode) and facts.st_size <= 4096 else None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise ConfigError(
                f"the token's file can't be read: {file} ({reason}). Check its path and rights."
            ) from None
        if text is None:
            raise ConfigError(f"the token's file is no small file: {file}. Put the token into one, alone.")
        if os.name == "posix" and facts.st_mode & 0o007:
            # not refused: the secrets that are mounted into containers are like that
            warn(f"everybody on this machine can read the token: {file} has mode {stat.S_IMODE(facts.st_mode):04o}")
        source = str(file)
    elif environment.get(TOKEN_VARIABLE):
        text, source = environment[TOKEN_VARIABLE], f"${TOKEN_VARIABLE}"
    else:
        return None
    token = text.strip()
    if not MIN_TOKEN <= len(token) <= MAX_TOKEN or not TOKEN.fullmatch(token):
        raise ConfigError(
            f"the token in {source} is none: {len(token)} characters. Use {MIN_TOKEN} to {MAX_TOKEN} letters, digits "
            "and ._~+/=- (python -c 'import secrets; print(secrets.token_urlsafe(32))')."
        )
    return token
