"""The kernels' C: no warning for any compiler and processor at hand, no undefined behaviour, and never skipped."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch  # noqa: F401 (before its OpenMP is asked for)

from vivace.errors import KernelError
from vivace.kernels import build, status
from vivace.kernels.build import COMPILERS, FLAGS, OPTIONS, find_compiler, load_library
from vivace.kernels.status import kernel_statuses

HERE = Path(__file__).parent
SOURCES = Path(build.__file__).parent
NAMES = ("gcc", "clang", *(f"gcc-{version}" for version in range(11, 17)))
# each once: gcc is mostly another name of one with a version
FOUND = list({os.path.realpath(path): name for name in NAMES[::-1] if (path := shutil.which(name))}.values())[::-1]
# instruction sets that this machine may lack: compiled for, not run. x86-64 has no vector that holds 16 values
PROCESSORS = ("native", "x86-64", "x86-64-v3", "sapphirerapids", "znver4", "x86-64-v4 -mavx512bf16")
needs_compiler = pytest.mark.skipif(not any(map(shutil.which, COMPILERS)), reason="there is no C compiler")


def compile_for(compiler: str, processor: str, source: Path) -> subprocess.CompletedProcess[str]:
    flags = [flag for flag in FLAGS if flag not in ("-march=native", "-shared")]
    # told by GCC alone, of static functions too: how vectors are handed over where there are no registers for them
    more = ["-Wno-psabi"] if processor.startswith("x86-64") or platform.machine() in ("x86_64", "AMD64") else []
    # warnings of values that were never set need an optimizer
    effort = ["-O1", "-c", "-o", os.devnull] if processor == "native" else ["-fsyntax-only"]
    command = [compiler, *flags, *OPTIONS.get(source.stem, ()), *f"-march={processor}".split(), *effort, *more]
    return subprocess.run(
        [*command, "-Wall", "-Wextra", "-Werror", str(source)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LC_ALL": "C"},
    )


@needs_compiler
@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize("compiler", FOUND)
def test_every_kernel_compiles_without_a_warning(compiler: str, processor: str, tmp_path: Path) -> None:
    (tmp_path / "empty.c").write_text("int nothing(void);\n")
    if compile_for(compiler, processor, tmp_path / "empty.c").returncode:
        pytest.skip(f"{compiler} knows no {processor}")
    failed = {}
    for source in sorted(SOURCES.glob("*.c")):
        done = compile_for(compiler, processor, source)
        if done.returncode:
            failed[source.name] = done.stderr[:1000]
    assert failed == {}


@needs_compiler
def test_every_c_file_is_built_with_options_of_its_own() -> None:
    assert {path.stem for path in SOURCES.glob("*.c")} == set(OPTIONS)


def run_tests(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Tests of the kernels in a process of their own, with another environment."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=HERE.parents[1],
        env={**os.environ, **environment},
    )


# the kernel that every photo goes through; of the others each takes as long
@needs_compiler
@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    ("names", "built"),
    [
        (["resize"], ["resize"]),
        pytest.param(["norms", "gradients", "winograd"], sorted(OPTIONS), marks=pytest.mark.long),
    ],
    ids=["resize", "others"],
)
def test_no_kernel_relies_on_undefined_behaviour(names: list[str], built: list[str], tmp_path: Path) -> None:
    """The tests of the kernels, their shapes and values, with checks that end the process at the first fault."""
    compiler = tmp_path / "checked"
    checks = "-O1 -g -fsanitize=undefined -fno-sanitize-recover=undefined"
    compiler.write_text(f'#!/bin/sh\nexec {find_compiler()[0]} "$@" {checks}\n')
    compiler.chmod(0o755)
    files = [str(HERE / f"test_{name}.py") for name in names]
    done = run_tests("-s", *files, CC=str(compiler), VIVACE_TEST_KERNELS=" ".join(built))
    assert "runtime error" not in done.stderr + done.stdout, done.stderr[-500:]
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-500:]


def test_a_kernel_that_does_not_compile_fails_the_tests(tmp_path: Path) -> None:
    compiler = tmp_path / "broken"
    compiler.write_text('#!/bin/sh\necho "resize.c:3:1: error: unknown type name" >&2\nexit 1\n')
    compiler.chmod(0o755)
    done = run_tests(str(HERE / "test_resize.py"), "-k", "side_by_side", CC=str(compiler))
    assert done.returncode == 1, done.stdout[-2000:]
    assert "resize.c:3:1: error: unknown type name" in done.stdout


@pytest.fixture
def wrapper(tmp_path: Path) -> Path:
    """A program that runs the command it is given, as ccache does, from a folder with a blank in its name."""
    path = tmp_path / "my tools" / "wrapper"
    path.parent.mkdir()
    path.write_text(f'#!/bin/sh\necho "$1" >> {tmp_path}/calls\nexec "$@"\n')
    path.chmod(0o755)
    return path


@needs_compiler
def test_cc_may_hold_a_wrapper_and_options(wrapper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_library.cache_clear()
    compiler = find_compiler()[0]
    monkeypatch.setenv("CC", f"'{wrapper}' {compiler} -DUNUSED=1")
    assert find_compiler() == [str(wrapper), compiler, "-DUNUSED=1"]
    assert load_library("resize", tmp_path / "kernels").resize is not None
    assert (tmp_path / "calls").read_text().split() == [compiler]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            "/nowhere/gcc -O2",
            r"^the compiler that CC names was not found: got '/nowhere/gcc'\. Correct CC, or unset it\.$",
        ),
        ("'gcc", r"^CC is no command: got \"'gcc\" \(No closing quotation\)\. Set it to a C compiler\.$"),
    ],
)
def test_a_cc_that_is_none_is_told_in_one_line(value: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", value)
    with pytest.raises(KernelError, match=message):
        find_compiler()


@needs_compiler
@pytest.mark.parametrize("value", ["", "  "])
def test_an_empty_cc_is_none(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", value)
    assert Path(find_compiler()[0]).is_absolute()


def states(folder: Path) -> dict[str, tuple[str, str]]:
    return {row.name: (row.state, row.note) for row in kernel_statuses(folder)}


def test_every_kernel_s_state_is_told(kernels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = states(kernels)
    assert set(found) == set(OPTIONS)
    assert found["norms"] == ("built", "")
    assert found["resize"] == ("built", "")
    monkeypatch.setattr(status, "cpu_features", lambda: ("avx2",))
    found = states(kernels)
    assert found["norms"] == ("built", "")
    assert found["gradients"] == ("unusable", "the processor has no amx_bf16: torch does its work")
    assert found["winograd"] == ("unusable", "the processor has no avx512_bf16: torch does its work")
    assert found["winograd_gradients"][0] == "unusable"
    monkeypatch.setattr(status, "can_resize", lambda folder: False)
    assert states(kernels)["resize"][0] == "unusable"


@pytest.mark.parametrize("tried", [False, True])
def test_winograd_is_told_as_training_chooses(kernels: Path, tried: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "cpu_features", lambda: ("avx512_bf16",))
    monkeypatch.setattr(status, "load_library", lambda *_: SimpleNamespace(usable=lambda: True))
    monkeypatch.setattr(status, "has_winograd", lambda: tried)
    assert ("training doesn't try it here" in states(kernels)["winograd"][1]) is not tried


def test_a_kernel_that_failed_is_told_with_the_compiler_s_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text(
        '#!/bin/sh\necho "In file included from here:" >&2\necho "x.c:3:1: error: no such builtin" >&2\nexit 1\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    load_library.cache_clear()
    for state, note in states(tmp_path / "kernels").values():
        assert state == "failed"
        assert f"the C compiler failed: {compiler} (x.c:3:1: error: no such builtin). Set CC to another." == note
    load_library.cache_clear()
