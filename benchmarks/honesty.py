"""How often an accepted variant loses more accuracy than the budget: real decisions, over many divisions of the images.

    python benchmarks/honesty.py runs/cifar10/bundle --data data/cifar10 --seeds 30 --max-drop 0.25 0.5 1 2

The images that nobody trained on are shuffled by each seed: half of them is untouched, and the other half divided into
images to select on and to certify on. The search then decides as it always does (acceleration/decide.py), over the real
variants of the bundle and over variants that are made to lose: the network with noise in its weights, another one for
each seed, of several strengths. Their speeds are not timed but said, and said against honesty: what loses more on all
images is faster. A result is accepted where a variant was proven; its true loss is that on the untouched images, which
the search never saw. Since those are few, a loss on them is itself uncertain: "surely" counts where a one-sided 95 %
test on them says that the budget was exceeded. Writes benchmarks/results/honesty/DATE-DATA-HARDWARE.json and a table in
Markdown.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from records import RESULTS, page, save, today
from vivace.acceleration import decide
from vivace.acceleration.candidates import Builder, Candidate, candidates_for
from vivace.acceleration.results import Result, Status, remaining
from vivace.acceleration.splits import SELECT_SHARE, Images, Splits, open_splits
from vivace.bundle import Bundle, load_bundle
from vivace.errors import first_line
from vivace.hardware import describe, supported_precisions
from vivace.models.normalize import Normalize
from vivace.runtimes.loading import load_runtime
from vivace.statistics.paired import loss_bound, paired_loss

CPU = torch.device("cpu")
# standard deviation of the noise, as a fraction of that of a tensor's weights
NOISES = (0.02, 0.05, 0.08, 0.12, 0.18)
# those that compile for long answer as eager does
LEFT_OUT = ("inductor", "aoti")


@dataclass(frozen=True)
class Answers:
    """Whether each image was classified rightly: by the plain model, and by each form, bool [N]."""

    plain_N: np.ndarray
    forms: Mapping[str, np.ndarray]


def tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def correct(classify: Any, images: Sequence[Images]) -> np.ndarray:
    """bool [N], over several splits one after the other."""
    return np.concatenate([part.probs(classify).argmax(1) == part.labels for part in images])


def real_forms(
    bundle: Bundle, splits: Splits, work: Path, images: Sequence[Images]
) -> Iterator[tuple[str, np.ndarray]]:
    """The answers of the variants that a search builds."""
    builder = Builder(bundle, work, splits.calibrate.pixels)
    for candidate in candidates_for(CPU)[0]:
        if candidate.runtime in LEFT_OUT or candidate.name == "eager fp32":
            continue
        tell(candidate.name)
        try:
            built = builder.build(candidate)
        except Exception as error:
            tell(f"could not be built: {first_line(error)}")
            continue
        yield (
            candidate.name,
            correct(load_runtime(candidate.runtime, built, device=CPU, precision=candidate.precision), images),
        )


def noisy_forms(bundle: Bundle, seed: int, images: Sequence[Images]) -> Iterator[tuple[str, np.ndarray]]:
    """The answers of the network with noise in its weights, the strengths in their order."""
    preprocess = bundle.preprocess
    normalize = Normalize(preprocess.mean, preprocess.std)
    precision = torch.bfloat16 if "bf16" in supported_precisions(CPU) else torch.float32
    for noise in NOISES:
        generator = torch.Generator().manual_seed(seed)
        model = bundle.build_model().to(memory_format=torch.channels_last)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim > 1:
                    weight += noise * weight.std() * torch.randn(weight.shape, generator=generator)

        def classify(images_NHWC: np.ndarray, model: torch.nn.Module = model) -> np.ndarray:
            pixels = torch.from_numpy(images_NHWC).permute(0, 3, 1, 2)
            with torch.inference_mode(), torch.autocast("cpu", precision, enabled=precision != torch.float32):
                return np.asarray(model(normalize(pixels)).float().softmax(1))

        yield f"noise {noise:g}", correct(classify, images)


def decision(answers: Answers, max_drop: float, rng: np.random.Generator) -> dict[str, Any]:
    """What a search accepts where images fall as `rng` has them, and what that loses on the untouched ones.

    max_drop: a fraction. "accepted" is None where nothing was proven.
    """
    plain = answers.plain_N
    mixed = rng.permutation(len(plain))
    untouched, seen = np.split(mixed, [len(mixed) // 2])
    select, certify = np.split(seen, [round(SELECT_SHARE * len(seen))])
    rows: dict[str, Result] = {}
    # the more it loses, the faster it is said to be
    for rank, name in enumerate(sorted(answers.forms, key=lambda name: -float(answers.forms[name].mean()))):
        # a variant of the model's own network, distinguished from the others by its layers
        row = Result(
            candidate=Candidate(runtime="eager", precision="fp32", float_layers=(name,)),
            ratio=(2.0 + rank,) * 3,
            selected=paired_loss(plain[select], answers.forms[name][select]),
        )
        if not decide.loses_too_much(row, max_drop):
            rows[name] = row

    def judge(row: Result, confidence: float) -> Any:
        return paired_loss(plain[certify], answers.forms[row.candidate.float_layers[0]][certify], confidence=confidence)

    finalists = remaining(decide.finalists_of(list(rows.values())))
    judged = decide.certify_in_order(finalists, judge, max_drop=max_drop)
    certified = [row for row in judged if row.status is Status.CERTIFIED]
    winner = decide.pick_winner(certified, (1.0, 0.99, 1.01), objective="latency")
    if winner is None:
        return {"accepted": None}
    name = winner.candidate.float_layers[0]
    true = paired_loss(plain[untouched], answers.forms[name][untouched])
    # the smallest loss that the untouched images allow, at 95 %: the other way round it is a bound of a gain
    least = -loss_bound(true.gained, true.lost, true.num_images)
    return {
        "accepted": name,
        "bound": winner.certified.bound if winner.certified else None,
        "true_drop": true.drop,
        "exceeds": true.drop > max_drop,
        "surely_exceeds": least > max_drop,
    }


def summary(decisions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    accepted = [found for found in decisions if found["accepted"] is not None]
    drops = [found["true_drop"] for found in accepted]
    return {
        "searches": len(decisions),
        "accepted": len(accepted),
        "exceed": sum(found["exceeds"] for found in accepted),
        "surely_exceed": sum(found["surely_exceeds"] for found in accepted),
        "lossy_accepted": sum(str(found["accepted"]).startswith("noise") for found in accepted),
        "mean_true_drop": float(np.mean(drops)) if drops else None,
        "largest_true_drop": float(np.max(drops)) if drops else None,
    }


def markdown(record: dict[str, Any]) -> str:
    lines = [
        "| budget | searches | accepted | of them lossy ones | true loss over the budget | surely | mean, largest |"
    ]
    lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
    for found in record["budgets"]:
        drops = (
            f"{100 * found['mean_true_drop']:+.2f}, {100 * found['largest_true_drop']:+.2f}"
            if found["accepted"]
            else "–"
        )
        share = f" ({found['exceed'] / found['accepted']:.0%})" if found["accepted"] else ""
        lines.append(
            f"| {found['max_drop']:g} | {found['searches']} | {found['accepted']} | {found['lossy_accepted']} | "
            f"{found['exceed']}{share} | {found['surely_exceed']} | {drops} |"
        )
    lines += ["", "Losses on all images, points: " + ", ".join(f"{n} {v:+.2f}" for n, v in record["losses"].items())]
    conditions = (
        f". {record['num_images']:,} images that nobody trained on, divided anew by each of {record['seeds']} seeds, "
        f"{record['divisions']} times each: an eighth to select on, three to certify on, half untouched."
    )
    return page(record, f"Honesty of accepted losses: {record['data']}", conditions, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path, help="folder of a bundle, or of a run")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--max-drop", type=float, nargs="+", default=[0.25, 0.5, 1.0, 2.0], help="points")
    parser.add_argument("--seeds", type=int, default=30, help="of the noise, and of the divisions")
    parser.add_argument("--divisions", type=int, default=1, help="of the images, for each seed")
    parser.add_argument("--on-bad-image", choices=("refuse", "skip"), default="refuse")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    bundle = load_bundle(args.bundle)
    splits = open_splits(bundle, args.data, on_bad_image=args.on_bad_image)
    images = [splits.select, splits.certify]
    plain = correct(load_runtime("eager", bundle, device=CPU, precision="fp32"), images)
    with tempfile.TemporaryDirectory() as work:
        real = dict(real_forms(bundle, splits, Path(work), images))
    losses = {name: [float(plain.mean() - right.mean())] for name, right in real.items()}
    found: dict[float, list[dict[str, Any]]] = {budget: [] for budget in args.max_drop}
    for seed in range(args.seeds):
        tell(f"seed {seed + 1}/{args.seeds}")
        noisy = dict(noisy_forms(bundle, seed, images))
        for name, right in noisy.items():
            losses.setdefault(name, []).append(float(plain.mean() - right.mean()))
        for budget in args.max_drop:
            for division in range(args.divisions):
                rng = np.random.default_rng([seed, division])
                found[budget].append(decision(Answers(plain, real | noisy), budget / 100, rng))
    record = {
        "date": today(),
        "data": args.data.name,
        "network": bundle.info.architecture.name,
        "command": f"python benchmarks/honesty.py {' '.join(sys.argv[1:])}",
        "num_images": len(plain),
        "seeds": args.seeds,
        "divisions": args.divisions,
        "environment": describe(),
        "losses": {name: round(100 * float(np.mean(values)), 3) for name, values in losses.items()},
        "budgets": [{"max_drop": budget, **summary(decisions)} for budget, decisions in found.items()],
        "decisions": {f"{budget:g}": decisions for budget, decisions in found.items()},
    }
    save(record, "honesty", args.data.name, markdown, args.out)


if __name__ == "__main__":
    main()
