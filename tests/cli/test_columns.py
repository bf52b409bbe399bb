"""Tables stand straight in a terminal, whatever the script of the names in them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.cells import cell_len

from vivace.cli.columns import columns_of, left, right, widest
from vivace.cli.compare import _line
from vivace.cli.sliced import print_slices


@pytest.mark.parametrize("text", ["", "rose", "玫瑰", "バラ", "장미", "rosé", "ｆｕｌｌ", "café and 猫", "Роза"])
def test_the_width_is_what_a_terminal_takes(text: str) -> None:
    # rich's table of widths is that of terminals
    assert columns_of(text) == cell_len(text)
    assert cell_len(left(text, 20)) == cell_len(right(text, 20)) == 20


def test_a_mark_that_is_drawn_onto_its_letter_takes_no_column() -> None:
    assert columns_of("e\u0301") == 1


def test_the_widest_decides() -> None:
    assert widest(["abc", "玫瑰"]) == 4
    assert widest([]) == 0
    assert widest(["a"], least=5) == 5


def test_parts_of_images_with_chinese_names_stand_below_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"accuracy": 0.5, "high": 0.6, "low": 0.4, "expected": 0.9, "kind": "class", "num_images": 20}
    rows = [SimpleNamespace(name=name, **row) for name in ("class 玫瑰", "class rose", "class 向日葵")]
    print_slices(cast(Any, SimpleNamespace(rows=rows, num_worse=3, num_tested=9)))
    lines = [line for line in capsys.readouterr().out.splitlines() if "elsewhere" in line]
    assert len(lines) == 3
    assert len({cell_len(line.partition("50.0 %")[0]) for line in lines}) == 1


def test_compared_runs_with_chinese_names_stand_below_each_other() -> None:
    facts: dict[str, Any] = {"seconds": None, "top1": 0.5, "top1_low": 0.4, "top1_high": 0.6, "num_only_right": 3}
    runs = [SimpleNamespace(path=path, model="fast_cnn", bytes=1e6, **facts) for path in ("runs/花", "runs/a")]
    lines = [_line(cast(Any, one), 9) for one in runs]
    assert len({cell_len(line.partition("50.00 %")[0]) for line in lines}) == 1
