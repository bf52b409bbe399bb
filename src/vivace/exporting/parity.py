"""Whether another variant of a model gives the same probabilities as the PyTorch model on images: a certificate.

Shapes: images_NHWC, uint8 or float32, at the bundle's size; probs_NK float.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vivace.bundle import Bundle, load_bundle
from vivace.data.place import AnyData
from vivace.data.preprocess import Preprocess
from vivace.errors import ConfigError, ParityError
from vivace.evaluation.evaluate import open_split
from vivace.notices import warn
from vivace.runtimes.loading import Classifier, load_reference, load_runtime
from vivace.runtimes.table import PORTABLE, REFERENCE, is_quantized
from vivace.signing import check_signature, is_signed

__all__ = ["PLAIN", "Parity", "check_parity", "compare_probs", "measure_parity", "parity_images", "verify"]

# largest difference of a probability: float32 sums in another order differ by some 1e-6 in a network of fifty layers;
# bf16 keeps 8 bits of a number, and the error grows with depth
TOLERANCE = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 6e-2}
# with 8 bits for each value probabilities change by any amount where a decision is close; the top-1 class mostly stays.
# What that costs in accuracy is proven separately
INT8_TOLERANCE, INT8_AGREEMENT = 1.0, 0.9
PLAIN = (REFERENCE, "fp32")
# what a variant is compared with: the network itself, or where its code is not at hand what was compared with that
PYTORCH, GRAPH = "PyTorch", "the float32 graph"
NUM_GENERATED = 64
BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Parity:
    """A certificate: how another variant of a model agrees with the PyTorch model in float32."""

    runtime: str
    precision: str
    images: str
    """Where they are from: the name of a data set and, if it has splits, the split; or "generated"."""
    num_images: int
    top1_agreement: float | None
    """Fraction of the images with the same top-1 class, [0, 1]; ties within the tolerance count as agreement. None
    where images have sets of labels, and where `verify` had nothing to compare."""
    max_difference: float | None
    """Of any probability of any image; None where `verify` had nothing to compare."""
    tolerance: float
    agreement_needed: float = 1.0
    """Of `agreement`: less than all in int8 alone."""
    reference: str = PYTORCH
    """What it is compared with."""
    set_agreement: float | None = None
    """Fraction of the images with the same set of labels; one whose probability is within the tolerance of its
    threshold counts as the same. None where images have one class."""
    repeats: bool | None = None
    """Where nothing was compared: whether the network's probabilities are finite, and the same twice; else None."""

    @property
    def agreement(self) -> float | None:
        """That of the top-1 classes, or of the sets of labels; None: nothing was compared."""
        return self.top1_agreement if self.set_agreement is None else self.set_agreement

    @property
    def _agreement(self) -> str:
        what = "top-1 agreement" if self.set_agreement is None else "agreement of the sets of labels"
        return f"{what} {self.agreement:.2%}"

    @property
    def holds(self) -> bool:
        """Whether the two agree: every probability within the tolerance, and the agreement as high as needed.

        Where nothing was compared, whether the probabilities are finite and the same twice.
        """
        if self.repeats is not None:
            return self.repeats
        assert self.max_difference is not None
        assert self.agreement is not None
        # a NaN is not within it
        return self.max_difference <= self.tolerance and self.agreement >= self.agreement_needed

    @property
    def compared(self) -> bool:
        """Whether two different programs answered: `reference` in float32 is what the others are compared with."""
        itself = (PORTABLE, PLAIN[1]) if self.reference == GRAPH else PLAIN
        return (self.runtime, self.precision) != itself

    def summary(self) -> str:
        """One line for people."""
        if not self.compared and not self.holds:
            return (
                f"{self.runtime} in {self.precision} is what other variants are compared with, so there was nothing to "
                f"compare, and its probabilities of {self._images} are not finite or not the same twice"
            )
        if not self.compared:
            fits = "" if self.reference == GRAPH else "the weights fit the network, and "
            return (
                f"{self.runtime} in {self.precision} is what other variants are compared with, so there was nothing to "
                f"compare: {fits}its probabilities of {self._images} "
                f"are finite and the same twice. Not checked: whether they are right (vivace evaluate)"
            )
        return (
            f"{self.runtime} in {self.precision} against {self.reference} on {self._images}: "
            f"{self._agreement}, probabilities differ by at most {self.max_difference:.1e} "
            f"({self.tolerance:g} is allowed)"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; what it is compared with only where that is not PyTorch."""
        left_out = ["reference"] if self.reference == PYTORCH else []
        left_out += [name for name in ("set_agreement", "repeats") if getattr(self, name) is None]
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in left_out}

    def recorded(self) -> dict[str, Any]:
        """The same without what it does not have, for a bundle."""
        return {name: value for name, value in self.to_dict().items() if value is not None}

    @property
    def _images(self) -> str:
        """How many, and of what, for people."""
        count = f"{self.num_images:,} images"
        plain = self.images != "generated" and ", " not in self.images
        return f"{count} of {self.images}" if plain else f"{count} ({self.images})"


def parity_images(
    bundle: Bundle, data: AnyData | None, *, num_images: int = 1000, cache_dir: Path | None = None
) -> tuple[np.ndarray, str]:
    """(images_NHWC, where they are from): of `data` the test split, else val, else all; evenly spread.

    Without data they are generated: waves and noise of all frequencies, the same ones every time.
    """
    preprocess = bundle.preprocess
    if data is None:
        return _generated(preprocess), "generated"
    source, split, cached = open_split(bundle, data, cache_dir=cache_dir, on_bad_image="skip")
    stored = cached.images_NHWC
    rows = np.unique(np.linspace(0, len(stored) - 1, min(num_images, len(stored))).round().astype(int))
    # some of the images may have been trained on: without splits they are no split's
    name = source.name if list(source.splits) == ["train"] else f"{source.name}, {split}"
    return preprocess.view(np.asarray(stored[rows])), name


def _generated(preprocess: Preprocess) -> np.ndarray:
    """Of images that are kept as they are, on the scale of those that were trained on."""
    size, channels = preprocess.size, preprocess.channels
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:size, :size] / size
    frequencies = rng.uniform(0, 12, (NUM_GENERATED, channels, 2))
    phases = rng.uniform(0, 2 * np.pi, (NUM_GENERATED, channels))
    waves = np.sin(
        2 * np.pi * np.einsum("nci,ihw->nhwc", frequencies, np.stack([rows, columns])) + phases[:, None, None]
    )
    noise = rng.normal(0, rng.uniform(0, 0.5, (NUM_GENERATED, 1, 1, 1)), (NUM_GENERATED, size, size, channels))
    if preprocess.dtype != "uint8":
        values = preprocess.white * (np.array(preprocess.mean) + np.array(preprocess.std) * (waves + noise))
        return (np.rint(values).clip(0, 65535) if preprocess.pixels == "uint16" else values).astype(np.float32)
    pixels: np.ndarray = np.clip(127.5 + 100 * (waves + noise), 0, 255).astype(np.uint8)
    return pixels


def measure_parity(
    bundle: Bundle, classify: Classifier, images_NHWC: np.ndarray, *, runtime: str, precision: str, images: str
) -> Parity:
    """The certificate of a classifier against the bundle's network in PyTorch, eager, float32, on the CPU.

    Of a network of the user's own whose code is not at hand, against its float32 graph.
    """
    reference = load_reference(bundle)
    expected_NK, found_NK = (_probs(function, images_NHWC) for function in (reference, classify))
    return compare_probs(
        expected_NK,
        found_NK,
        runtime=runtime,
        precision=precision,
        images=images,
        reference=PYTORCH if bundle.has_code else GRAPH,
        thresholds_K=bundle.info.thresholds or None,
    )


def compare_probs(
    expected_NK: np.ndarray,
    found_NK: np.ndarray,
    *,
    runtime: str,
    precision: str,
    images: str,
    reference: str = PYTORCH,
    thresholds_K: Sequence[float] | None = None,
) -> Parity:
    """The certificate, from probabilities of PyTorch (eager, float32) and of another variant for the same images.

    reference: what the former are of, where they are not PyTorch's. thresholds_K: from which on each label is
    predicted, of a bundle for sets of labels.
    """
    tolerance = TOLERANCE.get(precision, INT8_TOLERANCE)
    slack = 0 if is_quantized(precision) else tolerance
    common: dict[str, Any] = {
        "runtime": runtime,
        "precision": precision,
        "images": images,
        "num_images": len(expected_NK),
        "max_difference": float(np.abs(expected_NK - found_NK).max()),
        "tolerance": tolerance,
        "agreement_needed": INT8_AGREEMENT if is_quantized(precision) else 1.0,
        "reference": reference,
    }
    if thresholds_K is not None:
        thresholds = np.asarray(thresholds_K)
        same_NK = ((expected_NK >= thresholds) == (found_NK >= thresholds)) | (abs(expected_NK - thresholds) <= slack)
        return Parity(top1_agreement=None, set_agreement=float(same_NK.all(1).mean()), **common)
    rows = np.arange(len(expected_NK))
    # where two classes are as likely as each other, which of them comes first is a matter of rounding
    lead = expected_NK.max(1) - expected_NK[rows, found_NK.argmax(1)]
    return Parity(top1_agreement=float((lead <= slack).mean()), **common)


def check_parity(parity: Parity) -> None:
    """Raises ParityError, with the figures, if the certificate does not hold."""
    if parity.repeats is False:
        raise ParityError(
            f"{parity.runtime} in {parity.precision} gives no answer to rely on: its probabilities of {parity._images} "
            "are not finite, or not the same twice. Train it again, or take another bundle."
        )
    if not parity.holds:
        raise ParityError(
            f"{parity.runtime} does not agree with {parity.reference}: probabilities differ by "
            f"{parity.max_difference:.2g} ({parity.tolerance:g} is allowed), {parity._agreement} on "
            f"{parity._images}. Nothing was kept: use another runtime or precision."
        )


def verify(
    bundle: Bundle | str | Path,
    *,
    data: AnyData | None = None,
    key: str | Path | None = None,
    cache_dir: str | Path | None = None,
) -> Parity:
    """The certificate of a bundle on disk, measured again after every hash was checked.

    Where the bundle runs in PyTorch in float32, which others are compared with, nothing is: `compared` is False, and
    agreement and difference are None.

    data: images, as for `train`; None: generated ones, which say nothing about an int8 variant: its ranges are those of
    real images. key: a file with a public key, by which the signature is checked before anything is run. Raises
    BundleError if a file is damaged, or with a key, if the bundle is not just what its owner has signed; ConfigError
    for an int8 variant without data.
    """
    if key is not None:
        check_signature(bundle, key=key)
    elif is_signed(bundle.folder if isinstance(bundle, Bundle) else bundle):
        warn("the bundle has a signature that was not checked: give the public `key`")
    bundle = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
    if is_quantized(bundle.info.precision) and data is None:
        raise ConfigError(f"an int8 variant is compared on real images: {bundle.folder}. Give `data`.")
    cpu, info = torch.device("cpu"), bundle.info
    images, name = parity_images(bundle, data, cache_dir=Path(cache_dir) if cache_dir is not None else None)
    classify = load_runtime(info.runtime, bundle, device=cpu, precision=info.precision)
    parity = measure_parity(bundle, classify, images, runtime=info.runtime, precision=info.precision, images=name)
    if parity.compared:
        return parity
    # a network agrees with itself: to call that an agreement would claim a check that there was not
    nothing: dict[str, Any] = dict.fromkeys(("top1_agreement", "set_agreement", "max_difference"))
    return dataclasses.replace(parity, repeats=parity.holds, **nothing)


def _probs(classify: Classifier, images_NHWC: np.ndarray) -> np.ndarray:
    return np.concatenate([classify(images_NHWC[i : i + BATCH]) for i in range(0, len(images_NHWC), BATCH)])
