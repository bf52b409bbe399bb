"""The weights of a bundle as a plain file for PyTorch."""

from __future__ import annotations

import io
from pathlib import Path

from vivace.bundle import Bundle
from vivace.config import to_dict
from vivace.errors import BundleError
from vivace.files import atomic_file
from vivace.outputs import check_export, write_sidecar, writing

__all__ = ["export_state_dict"]


def export_state_dict(bundle: Bundle, path: Path) -> Path:
    """Write the weights as a plain `.pth` that torch.load(weights_only=True) and load_state_dict accept.

    Its .json has classes and preprocessing. Raises BundleError if a weight is NaN or infinite or the file
    can't be read back, OutputPathError if vivace did not write what is there, VivaceError if the disk is full.
    """
    import torch

    path = Path(path)
    check_export(path, inputs=[bundle.folder])
    bundle.check_finite()
    weights = bundle.weights()
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    with writing(path), atomic_file(path, check=lambda _: check_export(path, inputs=[bundle.folder])) as file:
        file.write(buffer.getbuffer())
        file.seek(0)
        found = torch.load(file, weights_only=True)
        if found.keys() != weights.keys() or not all(torch.equal(found[name], weights[name]) for name in weights):
            raise BundleError(f"the weights were written and are read back otherwise, so they were not kept: {path}.")
    told = to_dict(bundle.info)
    write_sidecar(
        path, {"target": "state-dict", **{key: told[key] for key in ("architecture", "classes", "preprocess")}}
    )
    return path
