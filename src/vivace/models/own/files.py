"""Code that the user named by its place, FILE.py:NAME, imported from that file and nowhere else."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vivace.errors import ModelError, first_line, nearest

__all__ = ["found_in", "names_file", "quietly", "source_of"]

PLACE = re.compile(r"(.+\.py):([^\W\d]\w*(?:\.[^\W\d]\w*)*)")
# prefix of the modules made of files, so that none takes the place of an installed one
MODULE = "_own_network_"


def names_file(text: str) -> bool:
    """Whether a text is the place of a network, FILE.py:NAME, or is meant to be one."""
    return PLACE.fullmatch(text) is not None or text.endswith(".py") or ".py:" in text


def found_in(text: str) -> tuple[Any, Path, str]:
    """(what FILE.py:NAME names, the file, the SHA-256 of what was run).

    The file is run anew, so that an edited one is seen. While it runs, its folder is at the end of sys.path: it can
    import modules beside it, and installed ones of the same name come first. A file of a package (its folder has an
    __init__.py) is imported as part of it, and may import relatively. What it prints goes to stderr.
    Raises ModelError for a file that can't be read or run, and a name that is not in it.
    """
    match = PLACE.fullmatch(text)
    if match is None:
        raise ModelError(
            f"`model` names no network in its file: got {text!r}. Write FILE.py:NAME, such as nets.py:Net."
        )
    path, name = Path(match[1]).expanduser().absolute(), match[2]
    try:
        source = path.read_bytes()
    except OSError as error:
        raise ModelError(f"the file of the network can't be read: {path} ({error.strerror}). Check its name.") from None
    try:
        with quietly():
            module = _imported(path, source)
    # a script that ends the program is no reason to end this one
    except (Exception, SystemExit) as error:
        raise ModelError(
            f"the file of the network can't be imported: {path}{_line(error, path)}: {type(error).__name__}: "
            f"{first_line(error)}. Fix it; what is to run only as a script goes below if __name__ == '__main__'."
        ) from error
    found = module
    for part in name.split("."):
        if not hasattr(found, part):
            known = [key for key, value in vars(module).items() if callable(value) and key[:1] != "_"]
            own = [key for key in known if getattr(vars(module)[key], "__module__", None) == module.__name__]
            listed = ", ".join(sorted(own)[:12]) or "nothing that can be called"
            raise ModelError(f"{path} has no {name!r}.{nearest(name, known)} It has: {listed}.")
        found = getattr(found, part)
    if inspect.ismodule(found):
        raise ModelError(f"{name!r} in {path} is a module. Name a class or a function in it: FILE.py:{name}.NAME.")
    return found, path, hashlib.sha256(source).hexdigest()


def _imported(path: Path, source: bytes) -> Any:
    if (path.parent / "__init__.py").is_file():
        return _of_package(path)
    name = MODULE + re.sub(r"\W", "_", path.stem)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    # where pickle, dataclasses and torch's compiler look for it
    before, sys.modules[name] = sys.modules.get(name), module
    try:
        with _at_end_of_path(path.parent):
            exec(compile(source, str(path), "exec"), module.__dict__)
    except BaseException:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
        raise
    return module


def _of_package(path: Path) -> Any:
    """The module of a file in a package, by its full name."""
    root, parts = path.parent, [path.stem]
    while (root / "__init__.py").is_file():
        parts.insert(0, root.name)
        root = root.parent
    name = ".".join(parts)
    with _at_end_of_path(root):
        module = importlib.import_module(name)
    if Path(str(module.__file__)).resolve() != path.resolve():
        raise ImportError(f"{name} is already {module.__file__}, another file: rename the package")
    return module


@contextlib.contextmanager
def _at_end_of_path(folder: Path) -> Iterator[None]:
    before = list(sys.path)
    sys.path.append(str(folder))
    try:
        yield
    finally:
        sys.path[:] = before


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Within, what the user's code prints goes to stderr: stdout is for results."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def _line(error: BaseException, path: Path) -> str:
    """Where in the file it happened, such as ", line 12"; nothing if it is not known."""
    if isinstance(error, SyntaxError) and error.lineno is not None:
        return f", line {error.lineno}"
    number, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            number = trace.tb_lineno
        trace = trace.tb_next
    return "" if number is None else f", line {number}"


def source_of(code: Callable[..., Any]) -> tuple[Path | None, str | None]:
    """(file of a class or function, SHA-256 of its source): of the whole file, or of its own text in a notebook.

    None where Python does not know: at an interactive prompt, in a program that was frozen.
    """
    # of a class in a notebook Python says that it has no source: it looks for the file of the module
    with contextlib.suppress(OSError, TypeError):
        file = Path(inspect.getsourcefile(code) or "")
        if file.is_file():
            return file, hashlib.sha256(file.read_bytes()).hexdigest()
    try:
        return None, hashlib.sha256(_text_of(code).encode()).hexdigest()
    except (OSError, TypeError):
        return None, None


def _text_of(code: Callable[..., Any]) -> str:
    """The source of a class or function; of a class in a notebook that of its methods, which Python does find."""
    try:
        return inspect.getsource(code)
    except (OSError, TypeError):
        methods = [value for value in vars(code).values() if inspect.isfunction(value)]
        if not inspect.isclass(code) or not methods:
            raise
        return "".join(map(inspect.getsource, methods))
