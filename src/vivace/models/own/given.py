"""What a user passes as a network: a class, a function or an instance, or the file and name of one.

Only this makes an `OwnNetwork`, from what is passed in a call or named on a command line; names in recipes, bundles and
run folders are compared with it, and never looked up.
"""

from __future__ import annotations

import copy
import functools
import inspect
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from vivace.errors import ModelError, first_line, nearest
from vivace.models.own.files import found_in, names_file, quietly, source_of
from vivace.models.own.fitting import fitted, run_only
from vivace.models.own.names import PASSED, PREFIX, own_name

__all__ = ["OwnNetwork", "own_network"]

# what a function without parameters of these names takes by **keywords, as torchvision's do
BY_KEYWORD = "num_classes"


@dataclass(frozen=True, kw_only=True, eq=False)
class OwnNetwork:
    """A network of the user's own: how it is built, and what is recorded of where it came from."""

    name: str
    """As recipes and bundles have it: "own/nets.py:MyNet"."""
    kind: str
    """class, function or instance."""
    module: str
    """The module that has it, for people."""
    sha256: str | None
    """Of its source, as `files.source_of` says; None: not known."""
    make: Callable[..., Any]
    """The class or function; of an instance, what gives a copy of it."""
    given: str | None = None
    """FILE.py:NAME, as the user wrote it."""
    is_trained: bool = True
    """Whether it is to be trained; one that is only run needs no gradients."""

    @property
    def shown(self) -> str:
        """The name for people: "nets.py:MyNet"."""
        return self.name.removeprefix(PREFIX)

    def build(self, num_classes: int, *, in_channels: int, size: int, arguments: Mapping[str, Any]) -> nn.Module:
        """The network on the CPU: normalised images_BCHW float of `size` px → logits_BK.

        The global random generators are left as they were. Raises ModelError for an argument that it does not take, for
        what its code raises, and for a network that can't be trained on such images, as `fitted` says.
        """
        passed = {"num_classes": num_classes, "in_channels": in_channels, "size": size}
        with _generators_restored(), quietly():
            model = self._made(passed, arguments)
            fits = fitted if self.is_trained else run_only
            return fits(model, self.shown, num_classes=num_classes, in_channels=in_channels, size=size)

    def record(self) -> dict[str, Any]:
        """Plain values for a bundle or a run: where it came from, and the hash of its source where that is known."""
        known = {} if self.sha256 is None else {"sha256": self.sha256}
        return {"name": self.shown, "kind": self.kind, "module": self.module, **known}

    def line(self, *, weights: str | None = None) -> str:
        """What is said of it at the start of a run. weights: those that it starts with; None: its own."""
        if weights is None:
            weights = "a copy of the instance, with its weights" if self.kind == "instance" else "random weights"
        source = "" if self.sha256 else "; its source is not known, so nobody can tell later whether it was changed"
        return f"network: {self.shown}, {weights}{source}"

    def _made(self, passed: Mapping[str, int], arguments: Mapping[str, Any]) -> nn.Module:
        if self.kind == "instance" and arguments:
            raise ModelError(
                f"model.arguments would be ignored: got {', '.join(arguments)} and an instance of {self.shown}. Give "
                "the class, or leave them out."
            )
        try:
            keywords = self._keywords(passed, arguments)
            try:
                model = self.make(**keywords)
            except TypeError as error:
                if BY_KEYWORD not in keywords or BY_KEYWORD in _parameters(self.make) or BY_KEYWORD not in str(error):
                    raise
                model = self.make(**{key: value for key, value in keywords.items() if key != BY_KEYWORD})
        except ModelError:
            raise
        except (Exception, SystemExit) as error:
            raise ModelError(
                f"{self.shown} can't be built: {type(error).__name__}: {first_line(error)[:200]}. "
                "Fix its constructor or model.arguments."
            ) from error
        if not isinstance(model, nn.Module):
            raise ModelError(
                f"{self.shown} gives no network: got {type(model).__name__}. Return a torch.nn.Module from it."
            )
        return model

    def _keywords(self, passed: Mapping[str, int], arguments: Mapping[str, Any]) -> dict[str, Any]:
        """What is passed to the constructor: what it has parameters for, and the arguments."""
        parameters = _parameters(self.make)
        keywords: dict[str, Any] = {}
        for key, names in PASSED.items():
            keywords.update({name: passed[key] for name in names if name in parameters})
        takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        if takes_all and BY_KEYWORD not in keywords:
            keywords[BY_KEYWORD] = passed[BY_KEYWORD]
        for name in () if takes_all else arguments:
            if name not in parameters:
                known = [one for one in parameters if one not in keywords]
                raise ModelError(
                    f"{self.shown} takes no argument {name!r}.{nearest(name, known)} "
                    f"It takes: {', '.join(known) or 'none'}."
                )
        return {**keywords, **arguments}


def _parameters(make: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters that can be passed by name; none where Python does not know them."""
    try:
        parameters = inspect.signature(make).parameters
    except (TypeError, ValueError):
        return {}
    by_name = (
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
        inspect.Parameter.VAR_KEYWORD,
    )
    return {name: parameter for name, parameter in parameters.items() if parameter.kind in by_name}


@contextmanager
def _generators_restored() -> Iterator[None]:
    """Restores the global random generators: a constructor may seed them."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def own_network(model: Any) -> OwnNetwork | None:
    """The network of the user's own that `model` is; None for nothing, and for the name of one of the zoo or of timm.

    model: a class or a function that gives a torch.nn.Module, an instance of one, which is copied, or "FILE.py:NAME".
    Raises ModelError for anything else, a file that can't be imported, and an instance that can't be copied.
    """
    if model is None or isinstance(model, OwnNetwork):
        return model
    if isinstance(model, str | Path):
        text = str(model)
        if not names_file(text):
            return None
        found, path, sha256 = found_in(text)
        return _network(found, path, sha256, given=f"{path}:{text.rpartition(':')[2]}")
    return _network(model, None, None)


def _network(model: Any, path: Path | None, sha256: str | None, *, given: str | None = None) -> OwnNetwork:
    if not callable(model):
        raise ModelError(
            f"`model` is no network: got {type(model).__name__}. Give a class or function that makes a "
            "torch.nn.Module, an instance of one, or the name of a network."
        )
    kind = "instance" if isinstance(model, nn.Module) else "class" if inspect.isclass(model) else "function"
    if kind == "class" and not issubclass(model, nn.Module):
        raise ModelError(f"`model` is no network: got the class {model.__name__}. Give a class of torch.nn.Module.")
    code = type(model) if kind == "instance" else model
    while isinstance(code, functools.partial):
        code = code.func
    code = inspect.unwrap(code)
    if path is None:
        path, sha256 = source_of(code)
    module = str(getattr(code, "__module__", "unknown"))
    qualified = str(getattr(code, "__qualname__", type(code).__name__))
    return OwnNetwork(
        name=own_name(module.rpartition(".")[2] if path is None else path.name, qualified),
        kind=kind,
        module=module if given is None else given.rpartition("/")[2].partition(":")[0],
        sha256=sha256,
        make=_copies_of(model) if isinstance(model, nn.Module) else model,
        given=given,
    )


def _copies_of(instance: nn.Module) -> Callable[[], nn.Module]:
    """What gives copies of an instance as it is now: its owner may go on with it."""
    try:
        kept = copy.deepcopy(instance)
    except Exception as error:
        raise ModelError(
            f"the network can't be copied: {type(instance).__name__}: {type(error).__name__}: "
            f"{first_line(error)[:200]}. Give its class, or let copy.deepcopy work on it."
        ) from error
    return functools.partial(copy.deepcopy, kept)
