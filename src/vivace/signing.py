"""Signatures of bundles by a local key, in the format of OpenSSF's model-signing.

A bundle's hashes detect damage, not forgery: whoever changes a file can write its hash anew. A signature over all
files, bundle.json among them, can be made with the private key alone. It lies in the bundle as `model.sig`, and
`model_signing verify key` accepts it too. What that tool allows and this one does not: a signature that leaves files
out, links, hidden files, and anything in the folder that the bundle does not list.
"""

from __future__ import annotations

import base64
import contextlib
import io
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vivace.bundle import Bundle, load_bundle
from vivace.errors import BundleError, ConfigError, OutputPathError, first_line, printable
from vivace.files import read_regular
from vivace.libraries.model_signing import cryptography_keys, model_signing
from vivace.manifest import MANIFEST, bundle_folder
from vivace.plain import parse_json

__all__ = ["SIGNATURE", "check_signature", "is_signed", "new_key", "sign"]

SIGNATURE = "model.sig"
CURVES = ("secp256r1", "secp384r1", "secp521r1")
# a signature lists up to a thousand files; keys have some hundred bytes
MAX_SIGNATURE_BYTES, MAX_KEY_BYTES = 4 * 2**20, 64 * 2**10
PURPOSE = "signing a bundle"
# how the library names a changed file
MISMATCH = re.compile(r"Hash mismatch for \\?'([^'\\]{1,200})")
# whether a private key is wanted → what to do without one
ADVICE = {
    True: "Make one: vivace sign --new-key KEY.pem",
    False: "Ask whoever signed the bundle for the public key, such as KEY.pem.pub.",
}


def is_signed(bundle: str | Path) -> bool:
    """Whether a signature lies in the bundle's folder, be it good or not."""
    return os.path.lexists(bundle_folder(bundle) / SIGNATURE)


def new_key(path: str | Path) -> tuple[Path, Path]:
    """Write a new private key (elliptic curve P-256, PEM, readable by its owner alone) and its public one, PATH.pub.

    Returns both paths. Raises OutputPathError where one of them exists or lies in a bundle: keys are never replaced,
    and a private key in a bundle would be handed on with it.
    """
    private, public = Path(path), Path(f"{path}.pub")
    serialization, curves = cryptography_keys("making a key")
    if (private.parent / MANIFEST).exists():
        raise OutputPathError(f"a private key may not lie in a bundle: {private}. Give another path.")
    for place in (private, public):
        if os.path.lexists(place):
            raise OutputPathError(f"a key is never replaced: {place} exists. Give another name.")
    key = curves.generate_private_key(curves.SECP256R1())
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    shown = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    _write_new(private, secret, 0o600)
    try:
        _write_new(public, shown, 0o644)
    except OutputPathError:
        # one without the other is of no use
        private.unlink()
        raise
    return private, public


def sign(bundle: Bundle | str | Path, *, key: str | Path) -> Path:
    """Sign the bundle with a private key, and return the signature's path, `model.sig` in its folder.

    key: a file with an elliptic curve key in PEM (P-256, P-384 or P-521), without a password. Every hash is checked
    before. Raises BundleError if a file is damaged, or the folder holds anything but the bundle; OutputPathError if
    there is a signature already; ConfigError for a key that can't be used; MissingExtra without model-signing.
    """
    signing, hashing = (model_signing(part, PURPOSE) for part in ("signing", "hashing"))
    pem = _read_key(Path(key), is_private=True)
    found = load_bundle(bundle.folder if isinstance(bundle, Bundle) else bundle)
    path = found.folder / SIGNATURE
    if os.path.lexists(path):
        raise OutputPathError(f"a signature is never replaced: {path} exists. Move it away to sign anew.")
    _check_alone(found)
    with _temporary(pem) as private, _temporary(b"") as made:
        config = signing.Config().use_elliptic_key_signer(private_key=private)
        config.set_hashing_config(_strictly(hashing)).sign(found.folder.resolve(), made)
        signature = made.read_bytes()
        # as whoever gets it will
        _check(found, signature, _public_of(pem))
    _write_new(path, signature, 0o644)
    return path


def check_signature(bundle: Bundle | str | Path, *, key: str | Path) -> None:
    """Raise BundleError unless the bundle is just what the owner of a public key has signed.

    key: a file with the public key in PEM. Every hash is checked too.
    """
    # before the library, which takes a second: what needs it not
    pem = _read_key(Path(key), is_private=False)
    found = load_bundle(bundle.folder if isinstance(bundle, Bundle) else bundle)
    path = found.folder / SIGNATURE
    if not os.path.lexists(path):
        raise BundleError(f"the bundle is not signed: {found.folder} has no {SIGNATURE}. Do not rely on its origin.")
    _check_alone(found)
    try:
        signature = read_regular(path, MAX_SIGNATURE_BYTES)
    except OSError as error:
        raise BundleError(f"the signature can't be read: {path} ({error.strerror or error}).") from None
    _check(found, signature, pem)


def _check(bundle: Bundle, signature: bytes, public_pem: bytes) -> None:
    """Raise BundleError unless the signature is right and over all of the bundle's files."""
    verifying, hashing = (model_signing(part, "checking a signature") for part in ("verifying", "hashing"))
    refused = f"the signature does not hold: {bundle.folder} is not what the owner of this key has signed"
    with _temporary(signature) as path, _temporary(public_pem) as key:
        try:
            # what it says of old formats is no answer of ours
            with contextlib.redirect_stdout(io.StringIO()):
                config = verifying.Config().use_elliptic_key_verifier(public_key=key)
                config.set_hashing_config(_strictly(hashing)).verify(bundle.folder.resolve(), path)
        except Exception as error:
            # of untrusted bytes it raises whatever its parsers do
            raise BundleError(f"{refused} ({_told(error)}). Do not use it.") from None
    # those bytes were verified; a signature may be over fewer files than there are
    try:
        payload = base64.b64decode(parse_json(signature, SIGNATURE)["dsseEnvelope"]["payload"], validate=True)
        predicate = parse_json(payload, SIGNATURE)["predicate"]
        signed = sorted(resource["name"] for resource in predicate["resources"])
        kind = predicate["serialization"]
        is_whole = (kind["method"], kind["hash_type"], kind["allow_symlinks"]) == ("files", "sha256", False)
    except (ConfigError, LookupError, TypeError, ValueError) as error:
        raise BundleError(f"{refused} ({first_line(error)[:160]}). Do not use it.") from None
    expected = sorted([MANIFEST, *bundle.files])
    if signed != expected or not is_whole:
        first = next(iter(sorted(set(expected) ^ set(signed))), "its kind")
        raise BundleError(f"the signature is not over all of the bundle: {first!r:.80} differs. Do not use it.")


def _told(error: Exception) -> str:
    """Why that library refuses; its hashes, printed as bytes of Python, would tell nobody anything."""
    changed = MISMATCH.search(str(error))
    return first_line(error)[:160] if changed is None else f"{printable(changed[1])} was changed"


def _check_alone(bundle: Bundle) -> None:
    """Raise BundleError if the folder holds anything but the bundle's own files and a signature."""
    allowed = {MANIFEST, SIGNATURE, *bundle.files}
    for path in sorted(bundle.folder.iterdir()):
        if path.name not in allowed:
            raise BundleError(f"the folder holds more than its bundle: {path} is not listed. Move it away.")
        if not stat.S_ISREG(path.lstat().st_mode):
            raise BundleError(f"the bundle holds what is no regular file: {path}. Replace it by the file itself.")


def _strictly(hashing: Any) -> Any:
    """SHA-256 of every file but the signature; by default that library leaves out what belongs to git."""
    config = hashing.Config().use_file_serialization(hashing_algorithm="sha256", allow_symlinks=False)
    return config.set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)


def _read_key(path: Path, *, is_private: bool) -> bytes:
    """The key's PEM, checked. Raises ConfigError."""
    serialization, _ = cryptography_keys(PURPOSE)
    kind, other = ("private", "public") if is_private else ("public", "private")
    try:
        pem = read_regular(path, MAX_KEY_BYTES)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"`key` can't be read: {path} ({reason}). {ADVICE[is_private]}") from None
    if b"PRIVATE KEY" in pem and not is_private:
        raise ConfigError(
            f"`key` is a private key: got {path}. Give the public one, which checks what that has signed."
        )
    try:
        key = serialization.load_pem_private_key(pem, None) if is_private else serialization.load_pem_public_key(pem)
    except TypeError:
        raise ConfigError(f"`key` has a password: got {path}. Give one without: openssl pkey -in {path}") from None
    except Exception:
        hint = f"it is a {other} key" if b"PUBLIC KEY" in pem and is_private else "it is no key in PEM"
        raise ConfigError(f"`key` is no {kind} key: got {path} ({hint}). {ADVICE[is_private]}") from None
    curve = getattr(getattr(key, "curve", None), "name", None)
    if curve not in CURVES:
        got = curve or type(key).__name__
        expected = ", ".join(CURVES)
        raise ConfigError(f"`key` is of another kind: got {got}, expected one of {expected}. {ADVICE[is_private]}")
    if is_private and os.name == "posix" and path.stat().st_mode & 0o077:
        from vivace.notices import warn

        warn(f"others can read the private key: {path}. Take that right away: chmod 600 {path}")
    return pem


def _public_of(pem: bytes) -> bytes:
    serialization, _ = cryptography_keys(PURPOSE)
    public = serialization.load_pem_private_key(pem, None).public_key()
    found: bytes = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return found


@contextlib.contextmanager
def _temporary(data: bytes) -> Iterator[Path]:
    """A file with these bytes that its owner alone can read: that library takes paths, and a path may be swapped."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "it"
        _write_new(path, data, 0o600)
        yield path


def _write_new(path: Path, data: bytes, mode: int) -> None:
    """Write a file that does not exist yet. Raises OutputPathError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags, mode)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
        except OSError:
            path.unlink()
            raise
    except OSError as error:
        raise OutputPathError(f"it can't be written: {path} ({error.strerror or error}). Give another path.") from None
