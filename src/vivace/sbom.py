"""The software bill of materials of a bundle, in CycloneDX 1.6: what it is made of, and what it needs to run.

It has no time and no random serial number, both of which CycloneDX allows to leave out: the same training with the same
libraries gives the same bytes. Nobody reads it here; it is for those who check what they deploy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from vivace.bundleinfo import BundleInfo
from vivace.files import sha256_of, write_json
from vivace.manifest import WEIGHTS
from vivace.runtimes.table import RUNTIMES

__all__ = ["SBOM", "write_sbom"]

SBOM = "sbom.cdx.json"
SPEC = "1.6"
# what reads a bundle, decodes images and makes tensors of them; the network's own libraries are added
LIBRARIES = ("vivace", "numpy", "pillow", "pyyaml", "safetensors", "simplejpeg")
# identifiers of SPDX that published weights have, by how their sources write them
SPDX = {
    name.lower(): name
    for name in ("Apache-2.0", "MIT", "BSD-3-Clause", "CC-BY-4.0", "CC-BY-NC-4.0", "CC-BY-NC-SA-4.0", "CC0-1.0")
}


def write_sbom(folder: Path, info: BundleInfo) -> None:
    """Write `sbom.cdx.json` for the bundle whose files, its manifest excepted, lie in the folder."""
    write_json(folder / SBOM, _bill(folder, info))


def _bill(folder: Path, info: BundleInfo) -> dict[str, Any]:
    model = {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": info.architecture.name,
        "description": f"image classifier with {info.architecture.num_classes} classes",
        "hashes": [_sha256(sha256_of(folder / WEIGHTS))],
        "properties": _properties({"runtime": info.runtime, "precision": info.precision}),
    }
    components = [*_libraries(info), *_starting_weights(info.starting_weights)]
    version = _version("vivace")
    return {
        "bomFormat": "CycloneDX",
        "specVersion": SPEC,
        "version": 1,
        "metadata": {
            "tools": {"components": [{"type": "application", "name": "vivace"} | _optional(version=version)]},
            "component": model,
        },
        "components": components,
        "dependencies": [{"ref": "model", "dependsOn": [component["bom-ref"] for component in components]}],
    }


def _libraries(info: BundleInfo) -> Iterator[dict[str, Any]]:
    """What is installed of the libraries that the bundle needs; of another machine they may have other versions."""
    runtime = RUNTIMES.get(info.runtime)
    own = {"torch", *(["timm"] if info.architecture.name.startswith("timm/") else [])}
    for name in sorted({*LIBRARIES, *own, *([] if runtime is None else [runtime.library])}):
        version = _version(name)
        purl = f"pkg:pypi/{name}" + ("" if version is None else f"@{quote(version, safe='')}")
        licenses = None if version is None else _metadata().metadata(name).get_all("License-Expression")
        yield {
            "type": "framework" if name == "torch" else "library",
            "bom-ref": purl,
            "name": name,
            **_optional(version=version, licenses=[{"expression": licenses[0]}] if licenses else None),
            "purl": purl,
        }


def _starting_weights(record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What the network started from: published weights, a file, another run; nothing for random weights."""
    if not record:
        return
    origin = str(record.get("from", record.get("kind")))
    text = record.get("license")
    license_, _, attribution = str(text).partition(", ")
    known = SPDX.get(license_.lower())
    licenses = None if text is None else [{"license": {"name": str(text)} if known is None else {"id": known}}]
    digest = record.get("sha256")
    yield {
        "type": "machine-learning-model",
        "bom-ref": "starting-weights",
        "name": str(record.get("network", origin)),
        "description": f"weights that training started from: {origin}",
        **_optional(
            hashes=None if digest is None else [_sha256(str(digest))],
            licenses=licenses,
            copyright=attribution or None,
        ),
    }


def _sha256(digest: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": digest}


def _properties(values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"name": f"vivace:{name}", "value": value} for name, value in values.items()]


def _optional(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _version(name: str) -> str | None:
    metadata = _metadata()
    try:
        found: str = metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
    return found


def _metadata() -> Any:
    """importlib.metadata, which a prediction does without: it takes as long as an image."""
    from importlib import metadata

    return metadata
