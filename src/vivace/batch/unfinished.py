"""What a run has written so far, in a folder beside its output, so that it can be continued after a kill.

OUT.unfinished holds `journal.jsonl` and the files that are being written. The journal's first line says what the run is
made from; each later one, written after the files were synced, how far they are good. What lies beyond the last whole
line is cut off, and those images are classified again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from vivace import systems
from vivace.errors import OutputPathError, one_line
from vivace.files import canonical_json
from vivace.outputs import writing

__all__ = ["JOURNAL", "MADE", "State", "Unfinished", "folder_of"]

JOURNAL, SUFFIX = "journal.jsonl", ".unfinished"
FORMAT = "vivace-predict"
# the files that runs write here
PARTS = ("rows", "names", "features", "sorted")
# beside them, while a file of another format is made of them
MADE = "made"
MAX_LINE = 1 << 20
COPY = 1 << 20


@dataclass
class State:
    """How far a run is."""

    num_items: int = 0
    num_classified: int = 0
    num_failures: int = 0
    items_digest: str = ""
    """Of the names and stamps of these items."""
    begun: bool = False
    """Whether something was written outside of the folder, which must not be written again."""
    complete: bool = False
    """Whether all items are done, and only the outputs have to get their names."""
    files: dict[str, list[Any]] = field(default_factory=dict)
    """Name → [bytes, BLAKE2b of them]."""


class Unfinished:
    """The folder of an unfinished run, locked by this process.

        with Unfinished(out, made_from, resume=True) as unfinished:
            unfinished.append("rows", …)
            unfinished.commit()

    resume: continue a run that is there; False: one that has written something is refused.
    Raises OutputPathError if another process holds it, if it was made from something else, or is no such folder, and
    VivaceError if the disk is full.
    """

    def __init__(self, out: Path, made_from: Mapping[str, Any], *, resume: bool) -> None:
        self.folder = folder_of(out)
        self.out = out
        self.state = State()
        self._made_from = json.loads(canonical_json(made_from))
        self._files: dict[str, IO[bytes]] = {}
        self._digests: dict[str, Any] = {}
        self._journal = -1
        self.committed: int | None = None
        """Items that are noted as done; None: nothing is noted."""
        self.resumed = False
        """Whether it goes on with what another process has written."""
        with writing(self.folder):
            self._open(resume)

    def _open(self, resume: bool) -> None:
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            self.folder.mkdir()
        if self.folder.is_symlink() or not self.folder.is_dir():
            raise OutputPathError(f"a folder is needed beside the output: {self.folder} is none. Move it away.")
        if (foreign := self._foreign()) is not None:
            raise OutputPathError(
                f"the folder for what is unfinished holds something else: {self.folder} has {foreign!r}. Move it away, "
                "or give another `out`."
            )
        if os.path.lexists(journal := self.folder / JOURNAL) and (journal.is_symlink() or not journal.is_file()):
            raise OutputPathError(f"no journal of a prediction: {journal} is no plain file. Move the folder away.")
        self._journal = systems.open_plain(self.folder / JOURNAL, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        try:
            systems.lock(self._journal)
        except BlockingIOError:
            holder = systems.holder(self._journal) or "unknown"
            systems.close(self._journal)
            raise OutputPathError(
                f"another process is writing this output: {self.out} (process {holder}). Wait for it, or give another "
                "name."
            ) from None
        except OSError:
            # a file system without locks
            pass
        try:
            self._read(resume)
        except BaseException:
            self.close()
            raise

    def _foreign(self) -> str | None:
        """A file of the folder that no run writes."""
        names = {entry.name for entry in os.scandir(self.folder)}
        known = {JOURNAL, MADE, *PARTS}
        return min(names - known, default=None) if JOURNAL in names or not names else min(names)

    def _read(self, resume: bool) -> None:
        header, last, end = _read_journal(self.folder / JOURNAL)
        if header is not None and header.get("format") != FORMAT:
            raise OutputPathError(f"no journal of a prediction: {self.folder / JOURNAL}. Move the folder away.")
        if last is None:
            # nothing was written that counts
            os.ftruncate(self._journal, 0)
            for name in (MADE, *PARTS):
                (self.folder / name).unlink(missing_ok=True)
            self._note({"format": FORMAT, "version": 1, "made_from": self._made_from})
            systems.sync_folder(self.folder)
            return
        assert header is not None
        if not resume:
            raise OutputPathError(
                f"an unfinished run of this output is there, with {last.num_items:,} images: {self.folder}. Continue "
                "it by `resume=True`, or remove the folder to begin anew."
            )
        self._check_same(header.get("made_from"))
        for name, (num_bytes, digest) in last.files.items():
            self._continue(name, num_bytes, digest, complete=last.complete)
        os.ftruncate(self._journal, end)
        self.state, self.resumed, self.committed = last, True, last.num_items

    def _check_same(self, before: Any) -> None:
        before = before if isinstance(before, dict) else {}
        for key in sorted({*before, *self._made_from}):
            was, now = before.get(key), self._made_from.get(key)
            if was != now:
                raise OutputPathError(
                    f"it can't be resumed, for {key} changed: {one_line(json.dumps(was), limit=120)} before, "
                    f"{one_line(json.dumps(now), limit=120)} now. Give what it was, or remove {self.folder} to begin "
                    "anew."
                )

    def _continue(self, name: str, num_bytes: int, digest: str, *, complete: bool) -> None:
        """Open a file to write on where the journal ends; of a complete run only check it, if it is still here."""
        path = self.folder / name
        if complete and not path.exists():
            # it has its final name already
            return
        hashed = hashlib.blake2b(digest_size=16)
        try:
            file = os.fdopen(systems.open_plain(path, os.O_RDWR), "r+b")
        except OSError as error:
            raise OutputPathError(
                f"what was written is not there as it was: {path} is {_found_at(path, error)}. Restore it, or remove "
                f"{self.folder} to begin anew."
            ) from None
        self._files[name] = file
        left = num_bytes
        while left and (part := file.read(min(COPY, left))):
            hashed.update(part)
            left -= len(part)
        if left or hashed.hexdigest() != digest:
            raise OutputPathError(
                f"what was written is not there as it was: {path}. Remove {self.folder} to begin anew."
            )
        file.seek(num_bytes)
        file.truncate()
        self._digests[name] = hashed

    def append(self, name: str, content: bytes) -> None:
        """Write on at the end of a file of the folder, one of `PARTS`."""
        assert name in PARTS
        with writing(self.folder / name):
            if name not in self._files:
                descriptor = systems.open_plain(self.folder / name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
                self._files[name] = os.fdopen(descriptor, "r+b")
                self._digests[name] = hashlib.blake2b(digest_size=16)
            self._files[name].write(content)
            self._digests[name].update(content)

    def commit(self) -> None:
        """Sync the files, and note in the journal how far they and `state` are."""
        with writing(self.folder):
            for file in self._files.values():
                file.flush()
                os.fsync(file.fileno())
            self.state.files = {
                name: [file.tell(), self._digests[name].hexdigest()] for name, file in self._files.items()
            } or self.state.files
            self._note(vars(self.state))
        self.committed = self.state.num_items

    def _note(self, value: Mapping[str, Any]) -> None:
        text = canonical_json(value)
        line = hashlib.blake2b(text, digest_size=8).hexdigest().encode() + b" " + text + b"\n"
        os.write(self._journal, line)
        os.fsync(self._journal)

    def path(self, name: str) -> Path:
        """Where a file of the folder is."""
        return self.folder / name

    def close_files(self) -> None:
        """Close the files, whose names change next; the lock stays."""
        for file in self._files.values():
            file.close()
        self._files = {}

    def close(self) -> None:
        """Release the lock. What was committed stays."""
        with contextlib.suppress(OSError):
            self.close_files()
        systems.close(self._journal)
        self._journal = -1

    def remove(self) -> None:
        """Remove the folder: its run is finished, or has written nothing. Nothing that is not ours is removed."""
        self.close_files()
        with contextlib.suppress(OSError):
            for name in (MADE, *PARTS, JOURNAL):
                if name == JOURNAL and not systems.OPEN_FILES_MOVE:
                    self.close()
                (self.folder / name).unlink(missing_ok=True)
            self.folder.rmdir()
        self.close()

    def __enter__(self) -> Unfinished:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def folder_of(out: Path) -> Path:
    """The folder for what is unfinished of an output."""
    return out.with_name(out.name + SUFFIX)


def _found_at(path: Path, error: OSError) -> str:
    """What is there in place of a file that can't be opened."""
    if path.is_symlink():
        return "a link"
    return "gone" if not path.exists() else "a folder" if path.is_dir() else f"closed to you ({error.strerror})"


def _read_journal(path: Path) -> tuple[dict[str, Any] | None, State | None, int]:
    """(first line, the last state, the end of its line in bytes) of a journal, up to the first line that is damaged."""
    header: dict[str, Any] | None = None
    last: State | None = None
    end = 0
    with path.open("rb") as file:
        while line := file.readline(MAX_LINE):
            value = _value_of(line)
            if value is None:
                break
            if header is None:
                header = value
            elif (state := _state_of(value)) is None:
                break
            else:
                last = state
            end += len(line)
    if header is None and end == 0 and path.stat().st_size and not _is_cut(path):
        header = {}
    return header, last, end


def _is_cut(path: Path) -> bool:
    """Whether it holds no whole line, as where the process was killed while it wrote the first."""
    with path.open("rb") as file:
        return not file.readline(MAX_LINE).endswith(b"\n")


def _value_of(line: bytes) -> dict[str, Any] | None:
    digest, _, text = line.removesuffix(b"\n").partition(b" ")
    if not line.endswith(b"\n") or hashlib.blake2b(text, digest_size=8).hexdigest().encode() != digest:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _state_of(value: Mapping[str, Any]) -> State | None:
    try:
        state = State(**value)
    except TypeError:
        return None
    counts = (state.num_items, state.num_classified, state.num_failures)
    if not all(type(count) is int and count >= 0 for count in counts) or not isinstance(state.items_digest, str):
        return None
    if not isinstance(state.files, dict) or not (isinstance(state.complete, bool) and isinstance(state.begun, bool)):
        return None
    for name, facts in state.files.items():
        if name not in PARTS or not isinstance(facts, list) or len(facts) != 2:
            return None
        if type(facts[0]) is not int or facts[0] < 0 or not isinstance(facts[1], str):
            return None
    return state
