"""Options of earlier versions: what follows them is a value, and nothing else."""

from __future__ import annotations

import pytest

from vivace.cli import main
from vivace.cli.deprecated import modern
from vivace.errors import ConfigError


def today(*arguments: str) -> list[str]:
    return modern("export", arguments, lambda message: None)


@pytest.mark.parametrize("value", ["--json", "--help", "--evil", "-x", "--"])
def test_a_value_behind_data_is_never_an_option(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert today("runs/s1", f"--data={value}", "--to", "onnx") == ["runs/s1", "--to", "onnx", f"./{value}"]
    # a bare -- ends the options: there is no --data before it that has a value
    for verb in ("export", "verify", "accelerate") if value != "--" else ():
        assert main([verb, "runs/s1", "--data", value]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"ConfigError: --data has no value: an option follows, {value!r}. Give DATA")


def test_data_come_behind_the_bundle() -> None:
    assert today("--data", "d", "--", "b") == ["--", "b", "d"]
    assert today("--data=d", "b") == ["b", "d"]
    with pytest.raises(ConfigError, match=r"^--data has no value"):
        today("b", "--data", "--json")
    assert today("b", "--data") == ["b", "--data"]
