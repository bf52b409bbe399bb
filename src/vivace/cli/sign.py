"""Sign a bundle with a private key, so that others can check with the public one that nobody has changed it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from vivace.cli.answers import print_json
from vivace.cli.options import verb_options
from vivace.errors import ConfigError


@verb_options
class Options:
    """The options of `vivace sign`."""

    bundle: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="[BUNDLE]")] = None
    """A bundle's folder, or a run's. The signature is written into it, as model.sig."""
    key: Annotated[Path | None, tyro.conf.arg(metavar="KEY.pem")] = None
    """The private key to sign with: elliptic curve (P-256, P-384 or P-521), PEM."""
    new_key: Annotated[Path | None, tyro.conf.arg(metavar="KEY.pem")] = None
    """Make a key: the private one is KEY.pem, which stays with you, the public one KEY.pem.pub. Neither is replaced."""
    json: bool = False
    """Print the result as one JSON object on the last line."""


def run(options: Options) -> None:
    """Make a key, or sign, and say what was written."""
    if (options.bundle is None) != (options.key is None) or (options.key is None) == (options.new_key is None):
        raise ConfigError(
            "nothing to do, or too much: give BUNDLE and --key to sign, or --new-key alone to make a key."
        )

    from vivace.signing import new_key, sign

    told: dict[str, str | None] = dict.fromkeys(("bundle", "signature", "private_key", "public_key"))
    if options.new_key is not None:
        private, public = new_key(options.new_key)
        told |= {"private_key": str(private), "public_key": str(public)}
        lines = [f"wrote {private}, a private key: keep it to yourself", f"wrote {public}, its public key: hand it on"]
    else:
        assert options.bundle is not None
        assert options.key is not None
        signature = sign(options.bundle, key=options.key)
        told |= {"bundle": str(signature.parent), "signature": str(signature)}
        lines = [f"wrote {signature}", f"to check it: vivace verify {signature.parent} --key {options.key}.pub"]
    if options.json:
        print_json("sign", told)
    else:
        print("\n".join(lines))
