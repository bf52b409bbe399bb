"""The options of a verb: a dataclass that the parser reads, and the names on the command line of its fields."""

from __future__ import annotations

import dataclasses
import types
from typing import Annotated, Any, TypeVar, Union, dataclass_transform, get_args, get_type_hints

__all__ = ["is_positional", "option_names", "verb_options"]

T = TypeVar("T")


@dataclass_transform(kw_only_default=True, frozen_default=True)
def verb_options(cls: type[T]) -> type[T]:
    """A frozen dataclass of options, whose help shows the defaults that say something: neither None nor False."""
    import tyro

    hints = get_type_hints(cls, include_extras=True)
    for name in hints:
        default = getattr(cls, name, ...)
        if default is None or default is False or default == ():
            hint = hints[name]
            if isinstance(hint, types.UnionType):
                # what "X | None" makes: to check that, the parser imports what takes longer than it does itself
                hint = Union[get_args(hint)]  # noqa: UP007
            cls.__annotations__[name] = Annotated[hint, tyro.conf.arg(help_behavior_hint="")]
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


def is_positional(hint: Any) -> bool:
    """Whether what has this type is known by its place and has no name."""
    import tyro

    (positional,) = tyro.conf.Positional[int].__metadata__  # type: ignore[attr-defined]
    return positional in getattr(hint, "__metadata__", ())


def option_names(cls: Any) -> list[str]:
    """All options of a verb, such as "--batch-size", those of its groups included, without what has no name."""
    hints, names = get_type_hints(cls, include_extras=True), []
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[field.name]):
            names += option_names(hints[field.name])
        elif not is_positional(hints[field.name]):
            names.append("--" + field.name.rstrip("_").replace("_", "-"))
    return names
