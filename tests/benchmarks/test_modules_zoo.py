"""The zoo of modules: every row makes a module with data, and the table counts what became of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fitted_modules import TEN, called, logits_of, made, samples
from module_peers import claims
from module_peers import table as peer_table
from module_zoo import ODD, ZOO
from modules import one, refusals, table
from peers.module_ways import scores_of


@pytest.mark.parametrize("name", ["linear on 20 numbers", "two inputs", "transformer, tied weights, lengths", "LSTM"])
def test_a_row_makes_a_module_that_takes_its_data(name: str) -> None:
    torch.manual_seed(0)
    module, data, _ = ODD[name]()
    item = next(iter(data))
    inputs = item[0] if isinstance(item, tuple) else item
    named = inputs if isinstance(inputs, dict) else {}
    placed = [] if named else inputs if isinstance(inputs, tuple) else [inputs]
    module.eval()
    assert module(*placed, **named) is not None


def test_a_refusal_is_a_result_with_its_reason() -> None:
    row = one("random outputs", "30s", 1.0)
    assert (row["status"], row["reason"]) == (
        "unsupported",
        "its outputs are random: two calls with the same inputs differ",
    )


def test_the_table_has_a_row_for_each_module_and_counts_results() -> None:
    assert len(ZOO) >= 60
    fast = {"name": "a", "status": "accelerated", "runtime": "openvino", "precision": "int8", "seconds": 31.5}
    fast |= {"speedup": 2.5, "speedup_low": 2.41, "drop_bound": 0.8}
    lines = table([fast, {"name": "b", "status": "crash", "reason": "it fell"}])
    assert lines[2] == "| a | accelerated | openvino int8 | 2.50 [2.41, …] | 0.80 | 31.5 |"
    assert lines[3].startswith("| b | crash | – | – | – |")
    assert lines[-1] == "2 modules: 1 accelerated, 1 crash"


def test_the_page_says_why_a_module_stayed_as_it_was() -> None:
    rows = [
        {"name": "a", "status": "accelerated", "reason": "fast"},
        {"name": "b", "status": "unsupported", "reason": "its outputs are random | really"},
    ]
    assert refusals(rows)[2:] == ["| b | unsupported | its outputs are random / really |"]


def test_a_fitted_module_does_its_task_and_is_the_same_every_time() -> None:
    task = TEN["LSTM"]
    module, again = made("LSTM"), made("LSTM")
    assert all(torch.equal(one, other) for one, other in zip(module.parameters(), again.parameters(), strict=True))
    batches = samples(task, 160, seed=3)
    with torch.no_grad():
        classes = torch.cat([logits_of(called(module, inputs)).argmax(1) for inputs, _ in batches])
    right = classes == torch.cat([labels for _, labels in batches])
    assert float(right.float().mean()) > 0.8


def test_scores_of_masks_are_the_iou_of_class_0() -> None:
    classes, targets = np.array([[0, 0, 1, 1], [2, 2, 2, 2]]), torch.tensor([[0, 1, 0, 1], [2, 2, 2, 2]])
    assert scores_of(classes, targets, masks=True).tolist() == [1 / 3, 0]
    assert scores_of(np.array([1, 2]), torch.tensor([1, 1]), masks=False).tolist() == [1, 0]


def peer_row(side: str, ms: float, bound: float, seconds: float) -> dict[str, Any]:
    row = {"side": side, "ms": ms, "drop": 0.1, "bound": bound, "prepare_seconds": seconds, "details": {}}
    return {**row, "speedup": [1.0, 0.9, 1.1]}


def test_claims_against_peers_count_only_those_within_the_budget_and_name_losses() -> None:
    def result(name: str, *rows: dict[str, Any]) -> dict[str, Any]:
        return {"name": name, "max_drop": 1.0, "rows": list(rows), "failures": {"olive": "it fell"}}

    results = [
        result("a", peer_row("vivace", 2.0, 0.5, 30), peer_row("nncf-ac", 3.0, 0.9, 60)),
        result("b", peer_row("vivace", 2.0, 0.5, 30), peer_row("nncf-ac", 1.0, 0.9, 120)),
        result("c", peer_row("vivace", 2.0, 0.5, 30), peer_row("nncf-ac", 1.0, 7.0, 120)),
    ]
    lines = claims(results)
    ours = next(line for line in lines if line.startswith("- nncf-ac"))
    assert "faster on 1 of 2, in 0.38 of its time (median); slower: b. On 1 others" in ours
    assert next(line for line in lines if line.startswith("- olive")).startswith("- olive: vivace is faster on 0 of 0.")
    lines = peer_table(results)
    assert "| c | nncf-ac | 1.00 | 1.00 [0.90, 1.10] | 0.10 | 7.00 (over) | 120.0 | – |" in lines
    assert "| a | olive | – | – | – | – | – | failed: it fell |" in lines
