"""The software bill of materials in every bundle."""

from __future__ import annotations

import dataclasses
import json
from importlib.metadata import version
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from factories import make_bundle
from vivace.bundle import derive_bundle, load_bundle, save_bundle
from vivace.files import sha256_of, write_json
from vivace.owned import seal
from vivace.sbom import SBOM

SMALL = {"widths": [8], "depth": 1}
PUBLISHED = {
    "kind": "package",
    "network": "timm/some.net",
    "from": "the installed package some 0.1",
    "license": "Apache-2.0, copyright of somebody",
    "sha256": "0" * 64,
}


def bill_of(folder: Path) -> dict:
    """The bill, which must be valid."""
    text = (folder / SBOM).read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    return dict(json.loads(text))


def test_a_bill_names_the_weights_and_the_libraries_and_is_valid(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", size=16, **SMALL)
    assert SBOM in bundle.files
    bill = bill_of(bundle.folder)
    (digest,) = bill["metadata"]["component"]["hashes"]
    assert digest == {"alg": "SHA-256", "content": sha256_of(bundle.folder / "model.safetensors")}
    components = {component["name"]: component for component in bill["components"]}
    assert components["torch"]["version"] == version("torch")
    assert {"vivace", "numpy", "safetensors", "pillow"} <= components.keys()
    assert "timm" not in components
    assert bill["dependencies"][0]["dependsOn"] == [component["bom-ref"] for component in bill["components"]]


@pytest.mark.parametrize(
    ("license_", "licenses", "copyright_"),
    [
        ("Apache-2.0, copyright of somebody", [{"license": {"id": "Apache-2.0"}}], "copyright of somebody"),
        ("cc-by-nc-4.0", [{"license": {"id": "CC-BY-NC-4.0"}}], None),
        ("unknown", [{"license": {"name": "unknown"}}], None),
    ],
)
def test_weights_that_training_started_from_have_hash_and_licence(
    license_: str, licenses: list, copyright_: str | None, tmp_path: Path
) -> None:
    bundle = make_bundle(tmp_path / "a", size=16, **SMALL)
    info = dataclasses.replace(bundle.info, starting_weights=PUBLISHED | {"license": license_})
    save_bundle(tmp_path / "b", bundle.build_model(), info)
    weights = bill_of(tmp_path / "b")["components"][-1]
    assert (weights["type"], weights["name"]) == ("machine-learning-model", "timm/some.net")
    assert weights["hashes"] == [{"alg": "SHA-256", "content": "0" * 64}]
    assert weights["licenses"] == licenses
    assert weights.get("copyright") == copyright_


def test_a_derived_bundle_has_a_bill_of_its_own_runtime(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "a", size=16, **SMALL)
    derived = derive_bundle(bundle, tmp_path / "b", lambda folder: dataclasses.replace(bundle.info, precision="fp32"))
    assert SBOM in derived.files
    assert {"name": "vivace:precision", "value": "fp32"} in bill_of(tmp_path / "b")["metadata"]["component"][
        "properties"
    ]


def test_the_same_bundle_has_the_same_bytes(tmp_path: Path) -> None:
    first, second = (make_bundle(tmp_path / name, size=16, **SMALL).folder for name in "ab")
    for name in (SBOM, "bundle.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_a_bundle_of_before_needs_none(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "a", size=16, **SMALL).folder
    (folder / SBOM).unlink()
    manifest = json.loads((folder / "bundle.json").read_text())
    del manifest["files"][SBOM]
    write_json(folder / "bundle.json", seal(manifest))
    assert SBOM not in load_bundle(folder).files
