"""Whether what is said of a bundle's answers holds: a subcommand for each subject.

    python benchmarks/trust.py sets runs/cifar10 data/cifar10
    python benchmarks/trust.py unlike runs/cifar10 data/cifar10 --others data/flowers/test

sets: the test images, which chose nothing, are divided at random into images that calibrate and images that are looked
at; how often the coverage lies in its 95 % band, and the error among answers above what was stated. unlike: how well
each score tells other images from the test images. Writes benchmarks/results/trust/DATE-SUBJECT-DATA-HARDWARE.json and
a table in Markdown.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from records import RESULTS, save_found, with_interval
from vivace.config import to_dict
from vivace.evaluation.evaluate import evaluate
from vivace.evaluation.measuring import measure
from vivace.prediction import Predictor
from vivace.statistics.conformal import METHODS, SetRule, class_scores, coverage_band, score_threshold, true_scores
from vivace.statistics.selective import certified_level, levels_of

COVERAGES, RISKS = (0.8, 0.9, 0.95, 0.99), (0.01, 0.02, 0.05, 0.1)
# of RAPS, which a bundle chooses on its own images
RULES = [SetRule(method=method, penalty=0.01 * (method == "raps"), free_ranks=2) for method in METHODS]


def covered_splits(
    probs_NK: np.ndarray, labels_N: np.ndarray, rule: SetRule, coverage: float, splits: Sequence[np.ndarray]
) -> dict[str, Any]:
    """Of several divisions: the number whose coverage is in the band, the coverages and the sizes of sets.

    splits: orders of the images, of which the first half calibrates.
    """
    half = len(labels_N) // 2
    low, high = coverage_band(half, len(labels_N) - half, coverage)
    scores_NK, own_N = class_scores(probs_NK, rule), true_scores(probs_NK, labels_N, rule)
    found, sizes = [], []
    for order in splits:
        threshold = score_threshold(own_N[order[:half]], coverage)
        found.append(float((own_N[order[half:]] <= threshold).mean()))
        sizes.append(float(np.maximum(1, (scores_NK[order[half:]] <= threshold).sum(1)).mean()))
    inside = sum(low <= value <= high for value in found)
    return {"band": [low, high], "inside": inside, "coverages": found, "sizes": sizes}


def answered_splits(
    probs_NK: np.ndarray, labels_N: np.ndarray, risk: float, splits: Sequence[np.ndarray]
) -> dict[str, Any]:
    """Of several divisions: errors among answers, and fractions abstained; None where no level was found."""
    half, fifth = len(labels_N) // 2, len(labels_N) // 10
    confidence, right = probs_NK.max(1), probs_NK.argmax(1) == labels_N
    errors: list[float | None] = []
    abstained: list[float | None] = []
    for order in splits:
        chosen, rest, looked = order[:fifth], order[fifth:half], order[half:]
        levels = levels_of(confidence[chosen], right[chosen], confidence[rest], right[rest])
        level = certified_level(levels, risk)
        answered = confidence[looked] >= (2 if level is None else level.confidence)
        errors.append(float((~right[looked][answered]).mean()) if answered.any() else None)
        abstained.append(None if level is None else float((~answered).mean()))
    return {"errors": errors, "abstained": abstained}


def sets(args: argparse.Namespace) -> tuple[dict[str, Any], list[str], str]:
    predictor = Predictor(args.bundle, batch_size=250)
    found = measure(predictor, args.data, cache_dir=args.cache_dir)
    probs, labels = found.measured.probs_NK, found.measured.labels_N
    rng = np.random.default_rng(args.seed)
    splits = [rng.permutation(len(labels)) for _ in range(args.splits)]
    coverage_rows = [
        {"rule": str(rule), "coverage": coverage, **covered_splits(probs, labels, rule, coverage, splits)}
        for rule in RULES
        for coverage in COVERAGES
    ]
    risk_rows = [{"risk": risk, **answered_splits(probs, labels, risk, splits)} for risk in RISKS]
    table = [
        "| rule | stated | coverage, mean ± sd | 95 % band | inside | classes in a set |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in coverage_rows:
        mean, spread, size = np.mean(row["coverages"]), np.std(row["coverages"], ddof=1), np.mean(row["sizes"])
        band = " to ".join(f"{100 * end:.1f}" for end in row["band"])
        table.append(
            f"| {row['rule']} | {100 * row['coverage']:g} % | {100 * mean:.2f} ± {100 * spread:.2f} % | {band} % | "
            f"{row['inside']} of {args.splits} | {size:.2f} |"
        )
    table += [
        "",
        "| error stated | exceeded | error, mean | abstained, mean | no level |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in risk_rows:
        errors = [value for value in row["errors"] if value is not None]
        abstained = [value for value in row["abstained"] if value is not None]
        above = sum(value > row["risk"] for value in errors)
        means = [f"{100 * np.mean(values):.2f} %" if values else "–" for values in (errors, abstained)]
        none = sum(value is None for value in row["abstained"])
        table.append(f"| {100 * row['risk']:g} % | {above} of {len(errors)} | {means[0]} | {means[1]} | {none} |")
    table += ["", "“Exceeded” is of the images that were looked at, whose error scatters around the true one."]
    record = {
        "data": found.data,
        "split": found.measured.split,
        "num_images": len(labels),
        "top1": float((probs.argmax(1) == labels).mean()),
        "splits": args.splits,
        "seed": args.seed,
        "sets": coverage_rows,
        "answers": risk_rows,
    }
    about = (
        f"; {found.data}, {found.measured.split}: {len(labels):,} images, top-1 {100 * record['top1']:.2f} %, "
        f"{args.splits} divisions into halves"
    )
    return record, table, about


def unlike(args: argparse.Namespace) -> tuple[dict[str, Any], list[str], str]:
    found, others = None, {}
    for place in args.others or ["generated"]:
        found = evaluate(args.bundle, args.data, ood=place, cache_dir=args.cache_dir, batch_size=250)
        assert found.uncertainty is not None
        others |= {other.name: other for other in found.uncertainty.unlike}
    assert found is not None
    assert found.uncertainty is not None
    rows, table = [], ["| images | score | AUROC | FPR95 | called unlike |", "| --- | --- | --- | --- | --- |"]
    for name, other in others.items():
        # folders of this machine are of no use to others
        shown = "/".join(Path(name).parts[-2:])
        rows.append({**to_dict(other), "name": shown})
        for score, one in other.by_score.items():
            own = score == found.uncertainty.ood_score
            auroc = with_interval(one.auroc, one.auroc_low, one.auroc_high, form=".3f")
            fpr95 = with_interval(one.fpr95, one.fpr95_low, one.fpr95_high, form=".3f")
            table.append(
                f"| {shown} ({one.num_others:,}) | {f'**{score}**' if own else score} | {auroc} | {fpr95} | "
                f"{f'{100 * other.flagged:.1f} %' if own else ''} |"
            )
    flagged = found.uncertainty.ood_flagged
    table += ["", f"Bold: the bundle's score. Of the test images it calls {100 * (flagged or 0):.1f} % unlike."]
    record = {
        "data": found.data,
        "split": found.split,
        "num_images": found.metrics.num_images,
        "ood_score": found.uncertainty.ood_score,
        "ood_flagged": flagged,
        "unlike": rows,
    }
    return record, table, f"; {found.data}, {found.split}: {found.metrics.num_images:,} images"


SUBJECTS = {"sets": sets, "unlike": unlike}


def main() -> None:
    parser = argparse.ArgumentParser(description="Whether what is said of a bundle's answers holds.")
    parser.add_argument("subject", choices=SUBJECTS)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("data")
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--others", nargs="*", help="folders of other images; generated ones are added")
    parser.add_argument("--cache-dir", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    found, table, about = SUBJECTS[args.subject](args)
    save_found(
        {"subject": args.subject, **found},
        "trust",
        f"{args.subject}-{found['data']}",
        args.out,
        title=f"Trust: {args.subject}",
        conditions=about,
        table=table,
    )


if __name__ == "__main__":
    main()
