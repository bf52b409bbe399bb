"""Private training: how accurate it is for its promise, and what an attacker finds out about membership.

    python benchmarks/trust_private.py train data/cifar10 scratch
    python benchmarks/trust_private.py train data/cifar10 pretrained --size 160
    python benchmarks/trust_private.py membership runs/private data/cifar10 --images 10000 --models 16

train: `vivace.train` with the recipe `private`, from scratch (wavelet scattering, epsilon 3) or on features of
packaged weights (epsilon 1), delta 1e-5; the test split is looked at once. membership: LiRA (arXiv:2112.03570) against
heads on the features of a bundle's network: each of MODELS heads is trained on a random half of the images, privately
and without privacy, and each is attacked with what the others show of an image that they have or have not seen. The
true positive rate at a false positive rate of 0.1 %, with its interval over images, must lie below e^epsilon · FPR +
delta for the private heads. Writes benchmarks/results/trust/DATE-private-SUBJECT-HARDWARE.json and a table.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import vivace
from records import RESULTS, page, save, today, with_interval
from vivace.bundle import Bundle, load_bundle
from vivace.cachedir import default_cache_dir
from vivace.evaluation.evaluate import open_split
from vivace.hardware import describe
from vivace.models.frozen import Frozen
from vivace.models.normalize import Normalize
from vivace.optim.config import OptimizerConfig, ScheduleConfig
from vivace.training.finetuning.features import linear_head
from vivace.training.finetuning.head import fit_head
from vivace.training.private.accounting import epsilon_of, noise_for
from vivace.training.private.head import Features, fit_private_head, private_mean, secret_generator

DELTA = 1e-5
EPSILON = {"scratch": 3.0, "pretrained": 1.0}
# the false positive rates at which the attack is judged; the first is that of the goal
RATES = (0.001, 0.01, 0.1)
# fewer shadow models tell too little of an image's own spread: one for all (arXiv:2112.03570, section V)
MIN_OWN_SPREAD = 64
NUM_RESAMPLED = 200
# of the resampled rates, what lies outside of the 95 % interval on each side
LEVEL = 1 / 40


def trained(args: argparse.Namespace) -> dict[str, Any]:
    options: dict[str, Any] = {"privacy.epsilon": EPSILON[args.kind], "privacy.delta": DELTA}
    options |= dict(pair.split("=", 1) for pair in args.set)
    network: dict[str, Any] = {"from_scratch": True}
    if args.kind == "pretrained":
        network = {"model": "timm/tf_efficientnet_lite0", "pretrained": True, "size": args.size}
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        result = vivace.train(
            args.data,
            "private",
            overrides=options,
            run=args.run or Path(folder) / "run",
            quiet=True,
            cache_dir=args.cache_dir,
            **network,
        )
        seconds = time.perf_counter() - began
        metrics = load_bundle(result.bundle).info.metrics
    return {"seconds": seconds, "epsilon": result.epsilon, "delta": result.delta, "metrics": dict(metrics)}


def features_of(bundle: Bundle, data: str, count: int, cache_dir: Path, seed: int) -> tuple[Tensor, Tensor]:
    """(features_ND, labels_N) of random training images by the bundle's network without its head."""
    model = bundle.build_model()
    found = linear_head(model)
    if found is None:
        raise SystemExit("the bundle's network has no linear head")
    parent, _, child = found[0].rpartition(".")
    setattr(model.get_submodule(parent), child, nn.Identity())
    _, _, split = open_split(bundle, data, split="train", cache_dir=cache_dir)
    rows = np.sort(np.random.default_rng(seed).permutation(len(split.labels_N))[:count])
    images = bundle.preprocess.view(np.asarray(split.images_NHWC[rows]))
    frozen = Frozen(
        model,
        Normalize(bundle.preprocess.mean, bundle.preprocess.std, white=bundle.preprocess.white),
        sample=images[:8],
        device=torch.device("cpu"),
        cache_dir=cache_dir,
    )
    features_ND = torch.empty(len(rows), found[1].in_features)
    frozen.fill((images[start : start + 256] for start in range(0, len(rows), 256)), [features_ND])
    return features_ND, torch.from_numpy(np.asarray(split.labels_N[rows], np.int64))


def private_logits(
    features_ND: Tensor, labels_N: Tensor, members_N: Tensor, num_classes: int, noises: tuple[float, float | None, int]
) -> Tensor:
    """logits_NK of all images by a private head that was trained on the members."""
    noise, mean_noise, steps = noises
    secret, inside = secret_generator(), features_ND[members_N]
    # of images that are no secret: as `vivace train` takes that of noise
    scale = float(torch.linalg.vector_norm(features_ND, dim=1).median())
    mean_D = private_mean([inside], scale, mean_noise, secret)
    head = fit_private_head(
        Features(views=[inside], mean_D=mean_D, scale=scale),
        labels_N[members_N],
        num_classes,
        optimizer=OptimizerConfig(name="sgd", lr=4.0, momentum=0.9),
        schedule=ScheduleConfig(),
        clip_norm=1.0,
        noise_multiplier=noise,
        sample_rate=0.25,
        steps=steps,
        generator=secret,
    )
    return features_ND @ head.weight_KD.t() + head.bias_K


def open_logits(features_ND: Tensor, labels_N: Tensor, members_N: Tensor, num_classes: int) -> Tensor:
    """The same without privacy: logistic regression that is hardly regularized, which learns its images by heart."""
    head = fit_head(features_ND[members_N], labels_N[members_N], num_classes, is_quick=True)
    return features_ND @ head.weight_KD.t() + head.bias_K


def confidence(logits_NK: Tensor, labels_N: Tensor) -> np.ndarray:
    """log(p / (1 - p)) of the true class, stably: the paper's φ."""
    own_N = logits_NK.gather(1, labels_N[:, None])[:, 0]
    others_NK = logits_NK.scatter(1, labels_N[:, None], -math.inf)
    return (own_N - others_NK.logsumexp(1)).double().numpy()


def likelihood_ratios(scores_MN: np.ndarray, members_MN: np.ndarray, target: int) -> np.ndarray:
    """log p(score | in) - log p(score | out) of each image for a model, by what the others show (online LiRA)."""
    others = np.arange(len(scores_MN)) != target
    inside, outside = (members_MN & others[:, None]), (~members_MN & others[:, None])
    means = [np.where(part, scores_MN, 0).sum(0) / np.maximum(part.sum(0), 1) for part in (inside, outside)]
    spread = []
    for part, mean in zip((inside, outside), means, strict=True):
        squares = np.where(part, (scores_MN - mean) ** 2, 0)
        own = squares.sum(0) / np.maximum(part.sum(0) - 1, 1)
        shared = squares.sum() / max(1, (np.maximum(part.sum(0) - 1, 0)).sum())
        spread.append(own if len(scores_MN) > MIN_OWN_SPREAD else np.full_like(own, shared))
    score = scores_MN[target]
    logs = [
        -((score - mean) ** 2) / (2 * variance + 1e-30) - 0.5 * np.log(variance + 1e-30)
        for mean, variance in zip(means, spread, strict=True)
    ]
    return np.asarray(logs[0] - logs[1])


def true_positive_rate(ratios: np.ndarray, members: np.ndarray, rate: float) -> float:
    """The fraction of members above the threshold that at most `rate` of the others exceed."""
    outside = np.sort(ratios[~members])[::-1]
    allowed = math.floor(rate * len(outside))
    threshold = outside[allowed] if allowed < len(outside) else -math.inf
    return float((ratios[members] > threshold).mean())


def attacked(scores_MN: np.ndarray, members_MN: np.ndarray, seed: int) -> dict[str, Any]:
    """The rates of the attack on all models together, and their 95 % intervals over resampled images."""
    ratios_MN = np.stack([likelihood_ratios(scores_MN, members_MN, target) for target in range(len(scores_MN))])
    # an image that all others have, or none, tells nothing
    known_N = (members_MN.sum(0) >= 2) & ((~members_MN).sum(0) >= 2)
    ratios_MN, members_MN = ratios_MN[:, known_N], members_MN[:, known_N]
    rng, count = np.random.default_rng(seed), ratios_MN.shape[1]
    found = {}
    for rate in RATES:
        value = true_positive_rate(ratios_MN.ravel(), members_MN.ravel(), rate)
        again = []
        for _ in range(NUM_RESAMPLED):
            some = rng.integers(0, count, count)
            again.append(true_positive_rate(ratios_MN[:, some].ravel(), members_MN[:, some].ravel(), rate))
        low, high = np.quantile(again, (LEVEL, 1 - LEVEL))
        found[str(rate)] = {"tpr": value, "low": float(low), "high": float(high)}
    return found


def membership(args: argparse.Namespace) -> dict[str, Any]:
    bundle = load_bundle(args.bundle)
    features_ND, labels_N = features_of(bundle, args.data, args.images, args.cache_dir, args.seed)
    count, num_classes = len(labels_N), len(bundle.classes)
    # each image is in half of the models
    order_MN = np.argsort(np.random.default_rng(args.seed).random((args.models, count)), axis=0)
    members_MN = order_MN < args.models // 2
    rows = []
    for epsilon in (*args.epsilons, None):
        noises = None
        if epsilon is not None:
            noise, mean_noise = noise_for(epsilon, DELTA, sample_rate=0.25, steps=args.steps, center=0.05)
            noises = (noise, mean_noise, args.steps)
            spent = epsilon_of([(mean_noise or 1.0, 1.0, 1), (noise, 0.25, args.steps)], DELTA)
            print(f"epsilon {spent:.3f}: noise {noise:.3f}", flush=True)
        scores, right = [], []
        for members in torch.from_numpy(members_MN):
            given = features_ND, labels_N, members, num_classes
            logits = open_logits(*given) if noises is None else private_logits(*given, noises)
            scores.append(confidence(logits, labels_N))
            right.append(float((logits.argmax(1) == labels_N)[~members].float().mean()))
        found = attacked(np.stack(scores), members_MN, args.seed)
        bounds = {str(rate): None if epsilon is None else math.exp(epsilon) * rate + DELTA for rate in RATES}
        rows.append({"epsilon": epsilon, "top1_outside": float(np.mean(right)), "rates": found, "bounds": bounds})
        print(rows[-1], flush=True)
    return {"form": bundle.info.architecture.name, "images": count, "models": args.models, "rows": rows}


def markdown(record: dict[str, Any]) -> str:
    if "rows" not in record:
        spent = record["metrics"]["privacy"]
        table = ["| split | top-1, % | images |", "| --- | --- | --- |"]
        for split in ("val", "test"):
            if (found := record["metrics"].get(split)) is not None:
                cells = [100 * found[name] for name in ("top1", "top1_low", "top1_high")]
                table.append(f"| {split} | {with_interval(*cells)} | {found['num_images']:,} |")
        about = (
            f"; {record['subject']}; epsilon {record['epsilon']:.4g}, delta {record['delta']:g}, {spent['steps']} steps"
        )
        return page(record, "Private training", f"{about}; {record['seconds']:.0f} s", table)
    head = [f"TPR at {100 * rate:g} % FPR, % (bound)" for rate in RATES]
    table = [f"| heads | top-1 on others, % | {' | '.join(head)} |", "|" + " --- |" * (2 + len(head))]
    for row in record["rows"]:
        cells = []
        for rate in map(str, RATES):
            found, bound = row["rates"][rate], row["bounds"][rate]
            told = with_interval(*(100 * found[name] for name in ("tpr", "low", "high")))
            cells.append(told + ("" if bound is None else f" ({100 * min(1.0, bound):.2f})"))
        name = "without privacy" if row["epsilon"] is None else f"epsilon {row['epsilon']:g}"
        table.append(f"| {name} | {100 * row['top1_outside']:.1f} | {' | '.join(cells)} |")
    about = f"; {record['form']}; {record['models']} heads on halves of {record['images']:,} images, delta {DELTA:g}"
    return page(record, "Membership inference (LiRA)", about, table)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parts = parser.add_subparsers(dest="part", required=True)
    train = parts.add_parser("train")
    train.add_argument("data")
    train.add_argument("kind", choices=EPSILON)
    train.add_argument("--size", type=int, default=160)
    train.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    train.add_argument("--run", type=Path, help="keep the run here")
    audit = parts.add_parser("membership")
    audit.add_argument("bundle", type=Path)
    audit.add_argument("data")
    audit.add_argument("--images", type=int, default=10_000)
    audit.add_argument("--models", type=int, default=16)
    audit.add_argument("--epsilons", type=float, nargs="*", default=[1.0, 3.0])
    audit.add_argument("--steps", type=int, default=60)
    audit.add_argument("--seed", type=int, default=0)
    for part in (train, audit):
        part.add_argument("--label", default="cifar10")
        part.add_argument("--cache-dir", type=Path, default=default_cache_dir())
        part.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    subject = args.kind if args.part == "train" else "membership"
    found = trained(args) if args.part == "train" else membership(args)
    record = {
        "date": today(),
        "command": f"python benchmarks/trust_private.py {' '.join(sys.argv[1:] if arguments is None else arguments)}",
        "subject": subject,
        **found,
        "environment": describe(),
    }
    save(record, "trust", f"private-{subject}-{args.label}", markdown, args.out)


if __name__ == "__main__":
    main()
