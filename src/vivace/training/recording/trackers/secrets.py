"""Messages of a tracker's library and its server without the passwords, keys and tokens that they may repeat."""

from __future__ import annotations

import os
import re
from urllib.parse import quote, quote_plus, unquote

__all__ = ["without_secrets"]

# what is shown has far fewer characters, and a pattern's time may grow with their square
MAX_CHARACTERS = 4000
# shorter ones are ordinary words, which a message without them could not be understood
MIN_SECRET = 4
# the names of environment variables that hold a secret, and those with an address that may hold one
SECRET_VARIABLE = re.compile(r"(?!PWD$|OLDPWD$)(?:.*_)?(?:.*TOKEN|.*KEY|.*PASS(?:WORD|WD)?|PWD|.*SECRET|CREDENTIALS?)")
ADDRESS_VARIABLE = re.compile(r".*_(?:URI|URL|HOST|PROXY|DSN)")
PATTERNS = (
    # up to the last @ of an address: a password may hold one, and a slash
    (re.compile(r"(//)\S*@"), r"\1***@"),
    (re.compile(r"(?<![\w/])[\w.+-]+:(?!//)[^\s@]+@(?=\w)"), "***@"),
    # token=…, api-key: …, "password": "…", Authorization: Bearer …
    (
        re.compile(
            r"(token|key|key[_-]?id|password|passwd|passphrase|pwd|secret|signature|credentials?|authorization|cookie"
            r"|(?<![a-z0-9])(?:pass|sig|auth|jwt|sas))"
            r"""(["']?\s*(?:=|:(?!//))\s*)(?:(?:bearer|basic|digest|token)\s+\S+|"[^"]*"|'[^']*'|[^\s&]+)""",
            re.IGNORECASE,
        ),
        r"\1\2***",
    ),
    (re.compile(r"\b(bearer\s+)(?!\*\*\*)\S+", re.IGNORECASE), r"\1***"),
    (re.compile(r"\bhf_\w{8,}"), "***"),
)


def without_secrets(text: str) -> str:
    """The start of `text` with *** for what is a secret: by its place in it, or as a value in the environment."""
    text = text[:MAX_CHARACTERS]
    for secret in _of_environment():
        text = text.replace(secret, "***")
    for pattern, replacement in PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def _of_environment() -> list[str]:
    """The secrets in the environment in all their spellings, the longest first: one may be a part of another."""
    found: set[str] = set()
    for name, value in os.environ.items():
        if SECRET_VARIABLE.fullmatch(name.upper()):
            found.add(value.strip())
        elif ADDRESS_VARIABLE.fullmatch(name.upper()) and "@" in value:
            found.update(_of_address(value))
    spellings = {
        way(secret) for secret in found for way in (str, quote, _quoted, quote_plus, unquote, lambda s: repr(s)[1:-1])
    }
    return sorted((one for one in spellings if len(one) >= MIN_SECRET), key=len, reverse=True)


def _of_address(address: str) -> list[str]:
    """The part of an address before its last @, and the password in it."""
    user = address.rpartition("@")[0].rpartition("//")[2]
    password = user.partition(":")[2]
    return [user, password] if password else [user]


def _quoted(text: str) -> str:
    return quote(text, safe="")
