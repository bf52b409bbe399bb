"""The accuracy of a bundle's network under attack."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from vivace.config import check_choice
from vivace.errors import ConfigError
from vivace.hardware import supported_precisions
from vivace.predictor import Predictor
from vivace.robustness.attacks.losses import Network
from vivace.robustness.attacks.suite import METHODS, STANDARD, Outcome, run_attacks
from vivace.robustness.attacks.threat import Threat
from vivace.robustness.networks import answers_of, eight_bit, float_network
from vivace.robustness.results import Attacked, AttackStep, Score, score_of
from vivace.robustness.under_corruptions import check_corruptible
from vivace.runtimes.table import REFERENCE

__all__ = ["check_attackable", "measure_attack", "search_precision"]

# pixels of the images that are attacked together: an attack keeps a dozen copies of each, beside the network's maps
MAX_PIXELS = 250 * 32 * 32
MIN_BATCH = 8
# more images than that, as a fraction, found by a weaker attack alone
SUSPICIOUS, SUSPICIOUS_GRADIENTS = 0.002, 0.01
# logits of two passes that differ by more, relative to their size, come from a network with random parts
SAME = 1e-3
# of the logits' spread: what a copy in bf16 may be off by; 2^-9 in each of some dozens of layers stays well below
ALIKE = 0.05


def check_attackable(predictor: Predictor, threat: Threat, methods: Sequence[str]) -> tuple[str, ...]:
    """The attacks to run, in their order. Raises ConfigError for what can't be attacked, and unknown names."""
    check_corruptible(predictor)
    for name in methods:
        check_choice("attack_methods", name, METHODS)
    if predictor.bundle.has_code:
        return tuple(name for name in METHODS if name in methods or not methods)
    if threat.norm != "linf" or (methods and set(methods) != {"square"}):
        raise ConfigError(
            "the bundle holds the graph of a network of your own, without code or gradients: it can be asked by Square "
            f"within Linf alone, got {threat.text}{' and ' + ', '.join(methods) if methods else ''}. Give "
            "linf:8/255, or the code: `vivace.load(folder, model=...)`."
        )
    return ("square",)


def search_precision(predictor: Predictor, precision: str) -> str:
    """ "fp32" or "bf16". Raises ConfigError for other names, and for bf16 where it can't be computed or is no use."""
    check_choice("attack_precision", precision, ("auto", "fp32", "bf16"))
    has_bf16 = "bf16" in supported_precisions(predictor.device)
    if precision == "bf16" and not predictor.bundle.has_code:
        raise ConfigError("attack_precision: the bundle is asked for answers alone, got bf16. Leave the option out.")
    if precision == "bf16" and not has_bf16:
        raise ConfigError(f"attack_precision: {predictor.device.type} has no bf16 here. Give fp32 or auto.")
    return "bf16" if has_bf16 and predictor.bundle.has_code and precision != "fp32" else "fp32"


def measure_attack(
    predictor: Predictor,
    images_NHWC: np.ndarray,
    labels_N: np.ndarray,
    threat: Threat,
    *,
    methods: Sequence[str] = (),
    precision: str = "auto",
    seconds: float | None = None,
    seed: int = 0,
    clock: Callable[[], float] = time.monotonic,
    progress: Callable[[int, int], None] = lambda done, total: None,
    stage: Callable[[str, str], None] = lambda name, told: None,
) -> Attacked:
    """The accuracy that attacks leave of a bundle's network, on images as its Preprocess gives them.

    images_NHWC: uint8, at least one. labels_N: int64. methods: names of `METHODS`; none: all. precision: of the network
    that attacks ask: "fp32", or "bf16", several times as fast on some processors; "auto": bf16 where the device has it.
    What is found in bf16 counts only if it fools the network in float32. seconds: after which attacks stop; images that
    they have not finished count as robust, and the result says so. The network is the one behind the bundle in float32;
    where the bundle computes otherwise (bf16, int8, another runtime), what fooled the network is shown to the bundle
    too, in 8 bits. stage is called with (name, how many images are left to it) of each attack, then progress with
    (images, images).
    Raises what `check_attackable` and `Predictor.probs` raise.
    """
    chosen = check_attackable(predictor, threat, methods)
    started = time.perf_counter()
    bundle, device = predictor.bundle, predictor.device
    network = float_network(bundle, device) if bundle.has_code else answers_of(predictor)
    images_NCHW = torch.from_numpy(images_NHWC).permute(0, 3, 1, 2).to(device).float() / 255
    labels = torch.from_numpy(np.asarray(labels_N, np.int64)).to(device)

    def told(name: str, left: int) -> str:
        return f"attack {chosen.index(name) + 1} of {len(chosen)}, {left:,} of {len(labels):,} images"

    search, copy = _copy(predictor, precision, network, images_NCHW[: MIN_BATCH * 4])
    outcome = run_attacks(
        network,
        images_NCHW.contiguous(),
        labels,
        threat,
        methods=chosen,
        batch_size=_batch_size(images_NHWC),
        seed=seed,
        deadline=float("inf") if seconds is None else clock() + seconds,
        clock=clock,
        progress=lambda name, done, total: progress(done, total),
        begins=lambda name, left: stage(name, told(name, left)),
        searched=copy,
    )
    complete = {run.name for run in outcome.runs if run.is_complete}
    is_deployed = bundle.has_code and (predictor.runtime, predictor.precision) == (REFERENCE, "fp32")
    return Attacked(
        threat=threat.text,
        norm=threat.norm,
        eps=threat.eps,
        num_images=len(labels_N),
        seed=seed,
        clean=score_of(outcome.is_correct_N.cpu().numpy()),
        robust=score_of(outcome.is_robust_N.cpu().numpy()),
        is_standard=complete >= set(STANDARD),
        is_complete=len(complete) == len(outcome.runs),
        cut_off_by=None if len(complete) == len(outcome.runs) else "within",
        network="float32" if bundle.has_code else "answers alone",
        search=search,
        attacks=tuple(
            AttackStep(
                name=run.name,
                num_attacked=run.num_attacked,
                num_fooled=run.num_fooled,
                robust_so_far=run.num_left / len(labels_N),
                num_refused=run.num_refused,
                is_complete=run.is_complete,
                seconds=run.seconds,
            )
            for run in outcome.runs
        ),
        deployed=None if is_deployed else _deployed(predictor, images_NHWC, labels_N, outcome),
        deployed_as=f"{predictor.runtime} {predictor.precision}",
        warnings=(*_signs_of_masking(outcome), *_random_parts(network, images_NCHW[: MIN_BATCH * 4])),
        seconds=time.perf_counter() - started,
    )


def _copy(
    predictor: Predictor, precision: str, network: Network, images_BCHW: torch.Tensor
) -> tuple[str, Network | None]:
    """The precision in which attacks look for points, and the copy of the network that they ask, if there is one."""
    search = search_precision(predictor, precision)
    if search == "fp32":
        return search, None
    copy = float_network(predictor.bundle, predictor.device, search)
    if _resembles(copy, network, images_BCHW):
        return search, copy
    if precision == search:
        raise ConfigError("attack_precision: the network answers otherwise in bf16. Give fp32 or auto.")
    return "fp32", None


def _resembles(copy: Network, network: Network, images_BCHW: torch.Tensor) -> bool:
    """Whether the copy answers nearly as the network does: who looks with another one finds less."""
    with torch.no_grad():
        try:
            rounded, exact = copy(images_BCHW), network(images_BCHW)
        # networks of anybody, some of whose parts may take no bf16
        except (RuntimeError, TypeError, ValueError):
            return False
    return bool((rounded - exact).norm() <= ALIKE * (exact - exact.mean(1, keepdim=True)).norm())


def _batch_size(images_NHWC: np.ndarray) -> int:
    return max(MIN_BATCH, MAX_PIXELS // (images_NHWC.shape[1] * images_NHWC.shape[2]))


def _deployed(predictor: Predictor, images_NHWC: np.ndarray, labels_N: np.ndarray, outcome: Outcome) -> Score:
    """The accuracy of the bundle as it runs: right on an image as it is, and on what fooled the network on it."""
    shown = eight_bit(outcome.adversarial_NCHW, images_NHWC)
    right = [predictor.probs(images).argmax(1) == labels_N for images in (images_NHWC, shown)]
    return score_of(right[0] & right[1])


def _signs_of_masking(outcome: Outcome) -> tuple[str, ...]:
    """What says that gradients are masked, and that the result is better than the truth (arXiv:1802.00420)."""
    count, signs = len(outcome.is_correct_N), []
    one_step, many = (outcome.fooled_by.get(name) for name in ("fgsm", "pgd"))
    if one_step is not None and many is not None and _complete(outcome, "fgsm", "pgd"):
        gap = int(one_step.sum()) - int(many.sum())
        if gap > SUSPICIOUS * count:
            signs.append(f"one step (FGSM) fools {gap:,} images more than 50 steps (PGD)")
    square = outcome.fooled_by.get("square")
    by_gradient = [hits for name, hits in outcome.fooled_by.items() if name.startswith(("apgd", "pgd"))]
    if square is not None and by_gradient and _complete(outcome, "apgd-ce"):
        alone = int((square & ~torch.stack(by_gradient).any(0)).sum())
        if alone > SUSPICIOUS * count:
            signs.append(f"random search (Square) fools {alone:,} images that gradients did not find")
    correct = int(outcome.is_correct_N.sum())
    if outcome.num_without_gradient > SUSPICIOUS_GRADIENTS * correct:
        signs.append(f"the gradient of {outcome.num_without_gradient:,} images is zero")
    return tuple(f"gradients may be masked, and the true robustness lower: {sign}" for sign in signs)


def _complete(outcome: Outcome, *names: str) -> bool:
    return {run.name for run in outcome.runs if run.is_complete} >= set(names)


def _random_parts(network: Network, images_BCHW: torch.Tensor) -> tuple[str, ...]:
    with torch.no_grad():
        first, second = network(images_BCHW), network(images_BCHW)
    if bool(((first - second).abs() > SAME * (1 + first.abs())).any()):
        return ("the network answers the same images differently: attacks that expect it not to are too weak",)
    return ()
