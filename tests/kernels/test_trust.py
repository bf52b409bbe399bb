"""Code that others could have put into a cache is not run: folders, hashes, links, and what takes their place."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from vivace import trust
from vivace.errors import KernelError
from vivace.kernels import build
from vivace.kernels.build import load_library
from vivace.trust import (
    INDUCTOR_MARK,
    doubt,
    keep_compiled_programs,
    make_private,
    private_folder,
    say_once,
    seal,
    seal_broken,
    trusted_folder,
)

CACHED = (load_library, trusted_folder, private_folder, say_once)
# what an attacker's library does as soon as it is loaded
EVIL = '#include <stdio.h>\n__attribute__((constructor)) static void run(void) { fclose(fopen("%s", "w")); }\n'


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing remembered from another test, and no folder of the session's own."""
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    for function in CACHED:
        function.cache_clear()
    yield
    for function in CACHED:
        function.cache_clear()


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder that others may enter: pytest's own is shut, and what lies below would be safe whatever its mode."""
    with tempfile.TemporaryDirectory(prefix="vivace-test-") as made:
        path = Path(os.path.realpath(made))
        path.chmod(0o755)
        yield path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "cache" / "kernels"
    make_private(made)
    return made


def give_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `path` belong to somebody else: by its owner, or, where only root may do that, by who we are."""
    if os.geteuid() == 0:
        os.chown(path, 54321, 54321)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 54321)


def built(folder: Path) -> Path:
    (library,) = folder.glob("resize-*.so")
    return library


def evil_library(path: Path, marker: Path) -> None:
    source = marker.with_suffix(".c")
    source.write_text(EVIL % marker)
    compiler = next(filter(None, map(shutil.which, build.COMPILERS)))
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(path), str(source)], check=True)


def test_a_folder_of_ones_own_is_taken_and_made_for_oneself_alone(tmp_path: Path) -> None:
    assert trusted_folder(tmp_path / "cache" / "kernels") == tmp_path / "cache" / "kernels"
    for made in (tmp_path / "cache", tmp_path / "cache" / "kernels"):
        assert stat.S_IMODE(made.stat().st_mode) == 0o700


def test_below_a_folder_that_nobody_else_may_enter_rights_to_write_say_nothing(folder: Path, tmp_path: Path) -> None:
    folder.chmod(0o775)
    (tmp_path / "cache").chmod(0o755)
    assert "others may write" in str(doubt(folder))
    for mode, is_doubted in ((0o700, False), (0o710, True), (0o701, True)):
        (tmp_path / "cache").chmod(mode)
        assert (doubt(folder) is not None) == is_doubted


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o722, 0o1777])
@pytest.mark.parametrize("which", ["cache", "cache/kernels"])
def test_where_others_may_write_a_private_folder_takes_its_place_and_it_is_said(
    folder: Path, tmp_path: Path, mode: int, which: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # one that others may enter: below one that they may not, all is safe
    (tmp_path / "cache").chmod(0o755)
    (tmp_path / which).chmod(mode)
    taken = trusted_folder(folder)
    if which == "cache" and mode & stat.S_ISVTX:
        # as in /tmp, nobody else may remove what belongs to this user
        assert taken == folder
        return
    assert not taken.is_relative_to(tmp_path / "cache")
    assert stat.S_IMODE(taken.stat().st_mode) == 0o700
    assert doubt(taken) is None
    (line,) = capsys.readouterr().err.splitlines()
    assert f"others may write to {tmp_path / which} (mode {mode:04o})" in line
    assert "chmod go-w" in line
    # said once
    trusted_folder.cache_clear()
    trusted_folder(folder)
    assert capsys.readouterr().err == ""
    assert list(folder.iterdir()) == []


def test_nothing_is_made_in_a_folder_that_will_not_be_used(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    assert not trusted_folder(shared / "vivace" / "kernels").is_relative_to(shared)
    assert list(shared.iterdir()) == []


@pytest.mark.parametrize("which", ["cache", "cache/kernels"])
def test_a_folder_of_another_user_is_not_trusted(
    folder: Path, tmp_path: Path, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_away(tmp_path / which, monkeypatch)
    assert "belongs to another user" in str(doubt(folder))


def test_a_link_is_followed_to_what_is_then_looked_at(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder.parent)
    assert trusted_folder(tmp_path / "link" / "kernels") == folder
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    (tmp_path / "other").symlink_to(shared)
    assert not trusted_folder(tmp_path / "other" / "kernels").is_relative_to(shared)
    assert doubt(tmp_path / "link") == f"{tmp_path / 'link'} is a symbolic link"


def test_the_private_folder_is_gone_with_its_process(tmp_path: Path) -> None:
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom vivace.trust import private_folder\n"
        "print(private_folder())\n"
        "if os.fork() == 0: sys.exit()\n"
        "os.wait()\nprint(private_folder().is_dir())\n"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    path, there = done.stdout.splitlines()
    assert Path(path).parent == tmp_path
    # a child that was forked has not taken it away
    assert there == "True"
    assert not Path(path).exists()


def test_a_folder_of_the_session_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    assert private_folder() == tmp_path / "run" / "vivace"
    private_folder.cache_clear()
    (tmp_path / "run").chmod(0o777)
    assert private_folder().parent != tmp_path / "run"


def test_a_temporary_folder_that_is_not_sticky_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o777)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(trust, "TEMPORARY", ())
    with pytest.raises(
        KernelError, match=r"there is no private folder: others may write to the temporary .*Set TMPDIR to"
    ):
        private_folder()


@pytest.mark.usefixtures("kernels")
def test_a_library_that_was_laid_out_is_not_run_but_built_anew(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load_library("resize", folder)
    good, path = built(folder).read_bytes(), built(folder)
    load_library.cache_clear()
    path.unlink()
    evil_library(path, tmp_path / "marker")
    assert load_library("resize", folder).resize is not None
    assert not (tmp_path / "marker").exists()
    assert path.read_bytes() == good
    assert "is built anew: it is not the one that was built (SHA-256)" in capsys.readouterr().err
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}


@pytest.mark.usefixtures("kernels")
def test_a_library_without_a_record_is_not_run(folder: Path, tmp_path: Path) -> None:
    load_library("resize", folder)
    path = built(folder)
    load_library.cache_clear()
    for file in folder.iterdir():
        file.unlink()
    evil_library(path, tmp_path / "marker")
    load_library("resize", folder)
    assert not (tmp_path / "marker").exists()


@pytest.mark.usefixtures("kernels")
def test_a_library_in_a_folder_that_others_may_write_is_not_run_even_with_a_record(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load_library("resize", folder)
    path = built(folder)
    for file in folder.iterdir():
        file.unlink()
    load_library.cache_clear()
    trusted_folder.cache_clear()
    evil_library(path, tmp_path / "marker")
    seal(path.with_name(f"{path.name}.sha256"), [path])
    folder.parent.chmod(0o777)
    assert load_library("resize", folder).resize is not None
    assert not (tmp_path / "marker").exists()
    assert "It is built again in" in capsys.readouterr().err


@pytest.mark.usefixtures("kernels")
def test_a_library_that_is_a_link_is_not_run(folder: Path, tmp_path: Path) -> None:
    load_library("resize", folder)
    path = built(folder)
    load_library.cache_clear()
    path.rename(tmp_path / "elsewhere.so")
    path.symlink_to(tmp_path / "elsewhere.so")
    load_library("resize", folder)
    assert not path.is_symlink()


def sealed(folder: Path) -> tuple[Path, list[Path]]:
    files = [folder / "a.so", folder / "b.json"]
    for file in files:
        file.write_text(file.name)
    seal(folder / "RECORD", files)
    return folder / "RECORD", files


def test_what_was_sealed_is_known_again(folder: Path) -> None:
    record, files = sealed(folder)
    assert seal_broken(record, files) is None


def flip_a_byte(file: Path, folder: Path) -> None:
    file.write_text("a.sO")


def let_others_write(file: Path, folder: Path) -> None:
    file.chmod(0o666)


def let_others_write_the_folder(file: Path, folder: Path) -> None:
    folder.chmod(0o770)


def link_it(file: Path, folder: Path) -> None:
    file.rename(folder / "moved")
    file.symlink_to("moved")


def make_it_a_pipe(file: Path, folder: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def let_others_write_the_record(file: Path, folder: Path) -> None:
    (folder / "RECORD").chmod(0o622)


def link_the_record(file: Path, folder: Path) -> None:
    link_it(folder / "RECORD", folder)


@pytest.mark.parametrize(
    "harm",
    [
        flip_a_byte,
        let_others_write,
        let_others_write_the_folder,
        link_it,
        make_it_a_pipe,
        let_others_write_the_record,
        link_the_record,
        lambda file, folder: file.unlink(),
        lambda file, folder: (folder / "RECORD").unlink(),
        lambda file, folder: (folder / "RECORD").write_bytes(b"\xff\xfe"),
    ],
)
def test_what_was_changed_or_could_be_is_not_taken(folder: Path, harm) -> None:  # type: ignore[no-untyped-def]
    record, files = sealed(folder)
    folder.parent.chmod(0o755)
    harm(files[0], folder)
    assert seal_broken(record, files)


def test_a_file_beside_those_that_were_sealed_is_noticed(folder: Path) -> None:
    record, files = sealed(folder)
    (folder / "c.json").write_text("more")
    assert seal_broken(record, [*files, folder / "c.json"])


def test_a_file_of_another_user_is_not_taken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record, files = sealed(folder)
    give_away(files[0], monkeypatch)
    assert seal_broken(record, files)


def test_programs_of_torch_s_compiler_are_kept_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # set first, so that both are put back
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "chosen"))
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
    keep_compiled_programs(tmp_path / "cache")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "chosen")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    keep_compiled_programs(tmp_path / "cache")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "cache" / "inductor")
    assert (tmp_path / "cache" / "inductor" / INDUCTOR_MARK).is_file()
    # the user's own folder gets no mark
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    (tmp_path / "mine" / "inductor" / "circuits").mkdir(parents=True)
    keep_compiled_programs(tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine" / "inductor").iterdir()] == ["circuits"]
    (tmp_path / "cache").chmod(0o777)
    trusted_folder.cache_clear()
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    keep_compiled_programs(tmp_path / "cache")
    assert doubt(Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])) is None
