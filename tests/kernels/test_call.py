"""Structs of arguments: what Python declares is what the C files have, in the same order."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vivace import kernels as package
from vivace.kernels import depthwise, gradients, norms, winograd
from vivace.kernels.call import Address, Kernel

SOURCES = Path(package.__file__).parent
STRUCT = r"struct %s \{(.*?)\};"
FUNCTION = re.compile(r"^int (\w+)\(const struct (\w+) \*\w+\) \{", re.MULTILINE)


def declared(source: str) -> dict[str, list[str]]:
    """Function → names of its struct's fields, of every function of a C file that takes one struct."""
    text = re.sub(r"/\*.*?\*/", "", (SOURCES / source).read_text(), flags=re.DOTALL)
    found = {}
    for function, struct in FUNCTION.findall(text):
        body = re.search(STRUCT % struct, text, re.DOTALL)
        assert body is not None, f"{source} has no struct {struct}"
        lines = [line.strip() for line in body[1].split(";") if line.strip()]
        # pointers first, each with its type, then int64_t, so that no field is padded
        types = ["*" in line or line.split()[0] == "int64_t" for line in lines]
        assert all(types), lines
        found[function] = [re.findall(r"\w+", name)[-1] for line in lines for name in line.split(",")]
    return found


class Library:
    """Stands in for a library: every function is there."""

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace() if name != "usable" else lambda: True


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, list[str]]]:
    """File and function → the fields that Python declares."""
    found: dict[str, list[str]] = {}

    class Recorded(Kernel):
        def __init__(self, library: Any, name: str, **fields: str) -> None:
            super().__init__(SimpleNamespace(**{name: SimpleNamespace()}), name, **fields)  # type: ignore[arg-type]
            found[f"{library.name}.{name}"] = [field for field, _ in self._arguments._fields_]

    def load(name: str, folder: Path) -> Any:
        library = Library()
        library.name = name  # type: ignore[attr-defined]
        return library

    for module in (winograd, gradients, norms, depthwise):
        monkeypatch.setattr(module, "Kernel", Recorded)
        monkeypatch.setattr(module, "load_library", load)
    monkeypatch.setattr(gradients, "cpu_features", lambda: ("amx_bf16",))
    winograd.Winograd(tmp_path)
    gradients.weight_gradient(tmp_path / "fields")
    norms._NormKernels(tmp_path)
    depthwise.Depthwise(tmp_path)
    yield found
    gradients.weight_gradient.cache_clear()


@pytest.mark.parametrize(
    "source", ["winograd", "winograd_gradients", "gradients", "norms", "depthwise", "depthwise_gradients"]
)
def test_a_struct_has_the_same_fields_in_python_and_in_c(made: dict[str, list[str]], source: str) -> None:
    functions = declared(f"{source}.c")
    assert functions
    for name, fields in functions.items():
        assert made[f"{source}.{name}"] == fields
    assert {name.partition(".")[2] for name in made if name.startswith(f"{source}.")} == set(functions)


def test_every_function_that_python_calls_takes_one_struct() -> None:
    for source in sorted(SOURCES.glob("*.c")):
        others = re.findall(r"^int (\w+)\((?!const struct|void)", source.read_text(), re.MULTILINE)
        # without torch: it is called by the processes that decode
        assert others == (["resize"] if source.name == "resize.c" else []), source


def test_values_are_passed_by_name() -> None:
    seen: list[Any] = []

    def double(arguments: Any) -> int:
        seen.append({name: getattr(arguments, name) for name, _ in arguments._fields_})
        return 0

    kernel = Kernel(SimpleNamespace(double=double), "double", pointers="x out", sizes="N")  # type: ignore[arg-type]
    x = torch.zeros(4)
    kernel(N=-3, x=Address(x, 2), out=None)
    assert seen == [{"x": x.data_ptr() + 8, "out": None, "N": -3, "threads": torch.get_num_threads()}]
    kernel(N=2**40, x=x, out=x)
    assert (seen[1]["x"], seen[1]["N"]) == (x.data_ptr(), 2**40)
    with pytest.raises(TypeError, match="the kernel double has missing or unknown fields: out, y"):
        kernel(N=1, x=x, y=x)


def test_a_kernel_without_memory_raises() -> None:
    library = SimpleNamespace(full=lambda arguments: 1)
    with pytest.raises(MemoryError, match="out of memory in the kernel full"):
        Kernel(library, "full", pointers="x", sizes="N")(x=None, N=0)  # type: ignore[arg-type]
