"""The files of ONNX Runtime Web: from npm, from the cache or given, and always the ones whose hashes stand here."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

from vivace.cachedir import default_cache_dir, filled_once
from vivace.errors import DownloadError
from vivace.exporting.progress import doing
from vivace.files import read_regular
from vivace.scratch import scratch_folder

__all__ = ["FILES", "INTEGRITY", "LICENSE", "PACKAGE", "VERSION", "web_runtime"]

VERSION = "1.30.0"
PACKAGE = f"onnxruntime-web@{VERSION}"
# of the package's archive, as npm has it: dist.integrity of `npm view`
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
# name in the package's folder dist → SHA-256: the loader with ONNX Runtime's interface, and the program itself
FILES: Mapping[str, str] = {
    "ort.wasm.bundle.min.mjs": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
# the archive has 27 MB, the largest of its files that are taken 14 MB
MAX_BYTES = 256 * 2**20
# folder in the cache
KIND = "onnxruntime-web"
RECORD = "SHA256"
NPM_SECONDS = 300
# where a folder that is given may have them: node_modules/onnxruntime-web, its dist, or an unpacked archive
PLACES = ("", "dist", "package/dist")
HOW = (
    f"Install Node.js, which has npm (https://nodejs.org), or run `npm pack {PACKAGE}` where there is one, and give "
    "the file that it writes as `onnxruntime_web`."
)
LICENSE = f"""ONNX Runtime Web {VERSION}: the files beside this one, unchanged, from https://www.npmjs.com/package/onnxruntime-web
Notices of what it is made of: https://github.com/microsoft/onnxruntime/blob/v{VERSION}/ThirdPartyNotices.txt

MIT License

Copyright (c) Microsoft Corporation

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""


def web_runtime(given: Path | None, cache_dir: Path | None) -> dict[str, bytes]:
    """Name → contents of each of `FILES`.

    given: the package's folder, its `dist`, or the archive of `npm pack`; None: from the cache, or by npm, which fills
    it. Raises DownloadError if npm is missing or fails, or if a hash is another one.
    """
    if given is not None:
        return _checked(_given(given), str(given))
    folder = (cache_dir or default_cache_dir()) / KIND / VERSION
    try:
        # another program's file, or a damaged one, is fetched anew: the hashes are the package's, not the cache's
        return _checked({name: read_regular(folder / name, MAX_BYTES) for name in FILES}, str(folder))
    except (OSError, DownloadError):
        pass
    doing(f"fetching {PACKAGE} by npm")
    found = _checked(_by_npm(), "npm's archive")
    _keep(found, folder)
    return found


def _keep(files: Mapping[str, bytes], folder: Path) -> None:
    """Keep them in the cache; one that can't be written costs the next export a download."""
    try:
        if (folder / RECORD).is_file() and not folder.is_symlink():
            # what vivace kept there is not right any more
            shutil.rmtree(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with filled_once(folder) as temporary:
            for name, data in files.items():
                (temporary / name).write_bytes(data)
            (temporary / RECORD).write_text("".join(f"{digest}  {name}\n" for name, digest in FILES.items()))
    except OSError:
        return


def _given(path: Path) -> dict[str, bytes]:
    try:
        if path.is_dir():
            place = next(
                (path / place for place in PLACES if all((path / place / name).exists() for name in FILES)), None
            )
            if place is None:
                raise DownloadError(
                    f"`onnxruntime_web` has no {' and '.join(FILES)}: got {path}. Give the folder node_modules/"
                    f"onnxruntime-web of version {VERSION}, or the archive that `npm pack {PACKAGE}` writes."
                )
            return {name: read_regular(place / name, MAX_BYTES) for name in FILES}
        return _unpacked(read_regular(path, MAX_BYTES), str(path))
    except OSError as error:
        raise DownloadError(f"`onnxruntime_web` can't be read: {path} ({error.strerror or error}). {HOW}") from None


def _by_npm() -> dict[str, bytes]:
    npm = shutil.which("npm")
    if npm is None:
        raise DownloadError(f"a page for browsers needs {PACKAGE}, and npm, which downloads it, was not found. {HOW}")
    with scratch_folder("npm") as folder:
        # or npm would follow the settings of a project that the folder may lie in
        (folder / "package.json").write_text("{}")
        settings = {"npm_config_ignore_scripts": "true", "npm_config_update_notifier": "false"}
        try:
            done = subprocess.run(
                [npm, "pack", PACKAGE],
                cwd=folder,
                env={**os.environ, **settings},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=NPM_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise DownloadError(f"npm did not fetch {PACKAGE} in {NPM_SECONDS} s. Try again. {HOW}") from None
        except OSError as error:
            raise DownloadError(f"npm can't be run: {npm} ({error.strerror or error}). {HOW}") from None
        archives = list(folder.glob("*.tgz"))
        if done.returncode != 0 or len(archives) != 1:
            said = next((line.strip() for line in done.stderr.splitlines() if "error" in line), "no word")
            raise DownloadError(f"npm could not fetch {PACKAGE}: {said[:300]}. Is there a network? {HOW}")
        return _unpacked(read_regular(archives[0], MAX_BYTES), "npm's archive")


def _unpacked(archive: bytes, name: str) -> dict[str, bytes]:
    """The files of the package's archive, which is not opened before its hash is right. Raises DownloadError."""
    digest = "sha512-" + base64.b64encode(hashlib.sha512(archive).digest()).decode()
    if digest != INTEGRITY:
        raise DownloadError(
            f"this is not the archive of {PACKAGE}: {name} has {digest[:24]}…, expected {INTEGRITY[:24]}…. It was not "
            f"opened. Fetch it again: npm pack {PACKAGE}"
        )
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as opened:
        members = {member.name: member for member in opened if member.isreg() and member.size <= MAX_BYTES}
        places = {name: members.get(f"package/dist/{name}") for name in FILES}
        files = {name: opened.extractfile(member) for name, member in places.items() if member is not None}
        return {name: file.read() for name, file in files.items() if file is not None}


def _checked(files: dict[str, bytes], where: str) -> dict[str, bytes]:
    for name, expected in FILES.items():
        found = hashlib.sha256(files.get(name, b"")).hexdigest()
        if found != expected:
            raise DownloadError(
                f"a file of ONNX Runtime Web is not that of version {VERSION}: {name} of {where} has SHA-256 "
                f"{found[:16]}…, expected {expected[:16]}…. Give `onnxruntime_web` that version: npm pack {PACKAGE}"
            )
    return files
