"""Tables of docs/benchmarks.md about inference: searches, manual baselines, deployment, how good verdicts are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from records import with_interval
from tables_training import Record, Table, table
from vivace.statistics.proportions import wilson_interval

__all__ = ["baselines", "claims", "deployed", "false_verdicts", "honesty", "searches"]

# of a search, what a reader gives beside the data and the budget
OPTIONS = {"train": "--train {}", "within_seconds": "--within {:g}", "target_speedup": "--target-speedup {:g}"}


def searches(records: Sequence[Record]) -> Table:
    """A row for each search: what was asked, the fastest variant within the budget, its latency and accuracy."""
    head = ["network", "images", "budget, points", "options", "fastest variant within the budget", "p50, ms"]
    head += ["times as fast", "accuracy, points", "images that it is proven on", "search", "date"]
    return table(head, [_search(record) for record in records])


def _search(record: Record) -> list[str]:
    by_name = {row["name"]: row for row in record["rows"]}
    best, baseline = by_name[record["winner"]], by_name[record["baseline"]]
    asked, certified = record["asked"], best["certified"]
    options = [form.format(asked[key]) for key, form in OPTIONS.items() if asked[key] not in (None, "auto", "off")]
    data = record["images"]["data"]
    return [
        f"{record['model']}, {record['size']} px",
        f"{data.removesuffix('-part')}{', a part' if data.endswith('-part') else ''}",
        f"{asked['max_drop']:g}",
        f"`{' '.join(options)}`" if options else "",
        record["winner"],
        f"{baseline['timed']['p50_ms']:.2f} → {best['timed']['p50_ms']:.2f}",
        with_interval(*(best["ratio"][key] for key in ("ratio", "low", "high"))),
        _change(certified),
        f"{certified['num_images']:,}",
        f"{record['seconds']:,.0f} s",
        record["date"],
    ]


def _change(loss: Mapping[str, Any]) -> str:
    """What became of the accuracy, in points, and the proven worst case: a drop is negative."""
    # no minus before zero
    value, worst = (round(0.0 - loss[key], 2) + 0.0 for key in ("drop", "bound"))
    return f"{value:+.2f}, at worst {worst:+.2f}".replace("-", "−").replace("+0.00", "0.00")


def baselines(records: Sequence[Record]) -> Table:
    """The variant that vivace chose against the best manual baseline, a row for each network and batch size."""
    head = ["network", "batch", "vivace, p50", "best manual baseline, p50", "times as fast as that"]
    head += ["as the faster of eager and compiled float32", "A/A test", "date"]
    rows = []
    for record in records:
        for part in record["comparisons"]:
            sides = {row["name"]: row for row in part["rows"]}
            ours = sides[part["ours"]]
            best = _claim(part, "the best by hand")
            rows.append(
                [
                    f"{part['network']}, {part['size']} px",
                    str(part["batch"]),
                    f"{_variant(part['ours'], ours)}, {ours['p50_ms']:.2f} ms",
                    f"{_name(best['name'])}, {sides[best['name']]['p50_ms']:.2f} ms",
                    with_interval(*best["ratio"]),
                    with_interval(*_claim(part, "the faster of eager and compiled float32")["ratio"]),
                    with_interval(*part["claims"][-1]["ratio"]),
                    record["date"],
                ]
            )
    return table(head, rows)


def claims(records: Sequence[Record]) -> Table:
    """Every side of one comparison that is not vivace's, the fastest first."""
    (record,) = records
    (part,) = record["comparisons"]
    judged = any(row["loss"] for row in part["rows"])
    rows = []
    for row in part["rows"]:
        if row["kind"] == "vivace" and row["name"] != part["ours"]:
            continue
        ours = row["name"] == part["ours"]
        name = f"**{_variant(row['name'], row)}**" if ours else row.get("about", _name(row["name"]))
        cells = [name, f"{row['p50_ms']:.2f} ms", "" if ours else with_interval(*row["ratio"])]
        if judged:
            cells += [f"{100 * row['loss']['top1']:.2f} %", _change(row["loss"])] if row["loss"] else ["", ""]
        rows.append(cells)
    head = [f"{part['network']}, {part['size']} px, batches of {part['batch']}", "p50", "vivace is times as fast"]
    return table(head + (["top-1", "accuracy, points"] if judged else []), rows)


def _claim(part: Mapping[str, Any], against: str) -> Mapping[str, Any]:
    return next(claim for claim in part["claims"] if claim["against"] == against)


def _name(side: str) -> str:
    """A manual baseline as a reader knows it."""
    return side.removeprefix("hand ").replace("compile ", "torch.compile ").replace("openvino", "OpenVINO")


def _variant(name: str, row: Mapping[str, Any]) -> str:
    return name if name != "vivace" else f"vivace {row['runtime']} {row['precision']}"


def deployed(records: Sequence[Record]) -> Table:
    """Folders that need no torch: cold start, memory, agreement with PyTorch."""
    (record,) = records
    head = ["folder", "cold start, median (90 % below)", "memory", "files", "top-1 agreement with PyTorch", "top-1"]
    rows = []
    for row in record["summary"]:
        cells = [f"{row['runtime']} {row['precision']}", f"{row['median']['process_ms']:.0f} ms"]
        cells[-1] += f" ({row['p90_process_ms']:.0f} ms)"
        cells += [f"{row['median']['resident_mb']:.0f} MB", f"{row['graph_mb']:.1f} MB"]
        rows.append([*cells, f"{100 * row['top1_agreement']:.1f} %", f"{100 * row['top1']:.1f} %"])
    return table(head, rows)


def honesty(records: Sequence[Record]) -> Table:
    """How often a proven drop was exceeded on images that no decision saw."""
    head = ["network, data", "budget, points", "searches", "accepted", "true drop over the budget", "largest"]
    rows = []
    for record in records:
        for row in record["budgets"]:
            some = row["accepted"] > 0
            cells = [f"{record['network']}, {record['data']}", f"{row['max_drop']:g}", str(row["searches"])]
            cells += [str(row["accepted"]), f"{row['exceed']}" if some else ""]
            rows.append([*cells, f"{100 * row['largest_true_drop']:.2f} points" if some else ""])
    return table(head, rows)


def false_verdicts(records: Sequence[Record]) -> Table:
    """How often two processes of the same variant were called different."""
    (record,) = records
    pairs, verdicts = record["pairs"], record["verdicts"]
    head = ["verdict on two equals", f"of {pairs} pairs", "95 % interval (Wilson)"]
    rows = []
    for name, key in (("2 % faster", "two_percent_faster"), ("faster at all", "faster")):
        low, high = wilson_interval(verdicts[key], pairs)
        rows.append([name, str(verdicts[key]), f"{100 * low:.1f} to {100 * high:.1f} %"])
    return table(head, rows)
