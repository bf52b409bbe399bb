"""The zoo of modules: every row makes a module with data, and the table counts what became of them."""

from __future__ import annotations

import pytest
import torch

from module_zoo import ODD, ZOO
from modules import one, table


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
