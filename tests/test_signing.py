"""Signatures of bundles: made with a private key, checked with the public one, by us and by model-signing itself."""

from __future__ import annotations

import base64
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import vivace
from answers import last_answer
from factories import make_bundle
from vivace.cli import main
from vivace.errors import BundleError, ConfigError, MissingExtra, OutputPathError
from vivace.files import sha256_of, write_json
from vivace.owned import seal
from vivace.signing import SIGNATURE, check_signature, new_key, sign

SMALL = {"widths": [8], "depth": 1}


@pytest.fixture(scope="module")
def signed_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a signed bundle and the two keys."""
    root = tmp_path_factory.mktemp("signed")
    make_bundle(root / "bundle", size=16, **SMALL)
    new_key(root / "key.pem")
    assert sign(root / "bundle", key=root / "key.pem") == root / "bundle" / SIGNATURE
    return root


@pytest.fixture
def signed(signed_once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(signed_once, tmp_path / "signed"))


def forge(bundle: Path) -> None:
    """Change the weights, and write every hash anew, as anybody can."""
    weights = bundle / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest["files"]["model.safetensors"]["sha256"] = sha256_of(weights)
    write_json(bundle / "bundle.json", seal(manifest))


def with_another_key(bundle: Path) -> None:
    (bundle / SIGNATURE).unlink()
    new_key(bundle.parent / "other.pem")
    sign(bundle, key=bundle.parent / "other.pem")


def with_another_payload(bundle: Path) -> None:
    """The signature of a bundle that leaves the weights out: its bytes no longer fit the signature itself."""
    signature = json.loads((bundle / SIGNATURE).read_text())
    payload = json.loads(base64.b64decode(signature["dsseEnvelope"]["payload"]))
    payload["predicate"]["resources"] = payload["predicate"]["resources"][:1]
    signature["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()
    (bundle / SIGNATURE).write_text(json.dumps(signature))


def with_a_linked_signature(bundle: Path) -> None:
    (bundle / SIGNATURE).rename(bundle.parent / "elsewhere.sig")
    (bundle / SIGNATURE).symlink_to(bundle.parent / "elsewhere.sig")


def with_linked_weights(bundle: Path) -> None:
    (bundle / "model.safetensors").rename(bundle.parent / "weights")
    (bundle / "model.safetensors").symlink_to(bundle.parent / "weights")


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "damaged": (lambda b: (b / "model.safetensors").write_bytes(b"x"), "is damaged"),
    "forged": (forge, "(bundle.json was changed)"),
    "removed": (lambda b: (b / "model.safetensors").unlink(), "lacks a file"),
    "added": (lambda b: (b / "notes.txt").write_text("x"), "holds more than its bundle"),
    "added for git": (lambda b: (b / ".gitignore").write_text("*"), "holds more than its bundle"),
    "added folder": (lambda b: (b / "more").mkdir(), "holds more than its bundle"),
    "linked weights": (with_linked_weights, "is a link"),
    "linked signature": (with_a_linked_signature, "no regular file"),
    "no signature": (lambda b: (b / SIGNATURE).unlink(), "is not signed"),
    "empty signature": (lambda b: (b / SIGNATURE).write_bytes(b""), "does not hold"),
    "nested signature": (lambda b: (b / SIGNATURE).write_text("[" * 100_000), "does not hold"),
    "huge signature": (lambda b: (b / SIGNATURE).write_bytes(b" " * 5_000_000), "can't be read"),
    "another payload": (with_another_payload, "does not hold"),
    "another key": (with_another_key, "does not hold"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_bundle_is_refused_in_one_line(change: str, signed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, said = CHANGES[change]
    make(signed / "bundle")
    assert main(["verify", str(signed / "bundle"), "--key", str(signed / "key.pem.pub")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("BundleError: ")
    assert said in line


def test_a_signature_that_leaves_a_file_out_is_refused(signed: Path) -> None:
    """model-signing takes from the signature itself what it leaves out."""
    from model_signing import hashing, signing, verifying

    bundle, key = signed / "bundle", signed / "key.pem"
    (bundle / SIGNATURE).unlink()
    partial = hashing.Config().set_ignored_paths(paths=[SIGNATURE, "model.safetensors"])
    signing.Config().use_elliptic_key_signer(private_key=key).set_hashing_config(partial).sign(
        bundle, bundle / SIGNATURE
    )
    verifying.Config().use_elliptic_key_verifier(public_key=f"{key}.pub").verify(bundle, bundle / SIGNATURE)
    with pytest.raises(BundleError, match=r"not over all of the bundle: 'model.safetensors' differs"):
        check_signature(bundle, key=f"{key}.pub")


def test_a_signed_bundle_holds_for_us_and_for_model_signing(signed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, key = signed / "bundle", signed / "key.pem.pub"
    # by another name, too
    (signed / "link").symlink_to(bundle)
    check_signature(signed / "link", key=key)
    assert main(["verify", str(bundle), "--key", str(key), "--json"]) == 0
    assert last_answer(capsys.readouterr().out)["signed_by"] == str(key)
    command = ["-m", "model_signing", "verify", "key", str(bundle)]
    command += ["--signature", str(bundle / SIGNATURE), "--public_key", str(key)]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "succeeded" in done.stdout
    # it works as before
    assert vivace.load(bundle).classes == ("blue", "green", "red")


def test_a_signature_that_was_not_asked_for_is_told(signed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(signed / "bundle"), "--json"]) == 0
    answer = last_answer(capsys.readouterr().out)
    assert answer["signed_by"] is None
    assert answer["warnings"] == ["the bundle has a signature that was not checked: give the public --key"]


def test_keys_and_signatures_are_never_replaced(signed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, key = signed / "bundle", signed / "key.pem"
    before = {path: path.read_bytes() for path in signed.rglob("*") if path.is_file()}
    assert main(["sign", str(bundle), "--key", str(key)]) == 2
    assert "a signature is never replaced" in capsys.readouterr().err
    assert main(["sign", "--new-key", str(key)]) == 2
    assert "a key is never replaced" in capsys.readouterr().err
    with pytest.raises(OutputPathError, match="may not lie in a bundle"):
        new_key(bundle / "key.pem")
    assert {path: path.read_bytes() for path in signed.rglob("*") if path.is_file()} == before


def test_a_new_key_is_its_owners_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sign", "--new-key", str(tmp_path / "k.pem"), "--json"]) == 0
    answer = last_answer(capsys.readouterr().out)
    assert answer["private_key"] == str(tmp_path / "k.pem")
    assert answer["public_key"] == str(tmp_path / "k.pem.pub")
    if os.name == "posix":
        assert stat.S_IMODE((tmp_path / "k.pem").stat().st_mode) == 0o600


def test_nothing_is_signed_that_is_damaged_or_more_than_a_bundle(signed: Path) -> None:
    bundle, key = signed / "bundle", signed / "key.pem"
    (bundle / SIGNATURE).unlink()
    (bundle / "notes.txt").write_text("x")
    with pytest.raises(BundleError, match="holds more than its bundle"):
        sign(bundle, key=key)
    (bundle / "notes.txt").unlink()
    (bundle / "model.safetensors").write_bytes(b"x")
    with pytest.raises(BundleError, match="is damaged"):
        sign(bundle, key=key)
    assert not (bundle / SIGNATURE).exists()


def test_keys_of_other_kinds_are_refused(signed: Path) -> None:
    from cryptography.hazmat.primitives import serialization as forms
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    bundle, key = signed / "bundle", signed / "key.pem"
    (bundle / SIGNATURE).unlink()
    pem, pkcs8 = forms.Encoding.PEM, forms.PrivateFormat.PKCS8
    made = {
        "other.pem": ed25519.Ed25519PrivateKey.generate().private_bytes(pem, pkcs8, forms.NoEncryption()),
        "locked.pem": ec.generate_private_key(ec.SECP256R1()).private_bytes(
            pem, pkcs8, forms.BestAvailableEncryption(b"secret")
        ),
        "none.pem": b"hello",
    }
    for name, data in made.items():
        (signed / name).write_bytes(data)
    for name, said in (
        ("other.pem", "of another kind: got Ed25519PrivateKey"),
        ("locked.pem", "has a password"),
        ("none.pem", "it is no key in PEM"),
        ("nowhere.pem", "can't be read"),
        ("key.pem.pub", "it is a public key"),
    ):
        (signed / name).chmod(0o600) if (signed / name).exists() else None
        with pytest.raises(ConfigError, match=said):
            sign(bundle, key=signed / name)
    sign(bundle, key=key)
    with pytest.raises(ConfigError, match="is a private key"):
        check_signature(bundle, key=key)


@pytest.mark.parametrize(
    "given", [[], ["b"], ["--key", "k"], ["b", "--key", "k", "--new-key", "n"], ["b", "--new-key", "n"]]
)
def test_sign_is_asked_for_one_thing(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sign", *given]) == 2
    assert "give BUNDLE and --key to sign, or --new-key alone" in capsys.readouterr().err


def test_without_the_library_the_extra_is_named(signed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "model_signing.verifying", None)
    with pytest.raises(MissingExtra, match=r"checking a signature needs model-signing.*vivace\[sign\]"):
        check_signature(signed / "bundle", key=signed / "key.pem.pub")
