"""Keyword arguments of a system, shared out over the settings that they belong to, each checked by type."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, TypeVar

__all__ = ["nearest", "read_assignment", "read_settings", "refuse_unknown"]

Settings = TypeVar("Settings")


def nearest(
    name: str,
    known: Iterable[str],
    *,
    what: str = "known",
    otherwise: str | None = None,
    most: int = 1,
    cutoff: float = 0.6,
) -> str:
    """Return the end of a message about an unknown name: the known ones that are near, else what there is.

    Args:
        name: the name as it was given; capitals do not matter.
        known: names that there are.
        what: the kind of the names, which are all listed where none is near.
        otherwise: what to say then instead of listing them.
        most: how many near names are given.
        cutoff: least similarity of a near name, from 0 to 1, as difflib measures it.

    Examples:
        >>> nearest("Strde", ["stride", "window_size"])
        "did you mean 'stride'?"
        >>> nearest("foo", ["stride", "window_size"], what="options")
        'options: stride, window_size'
    """
    folded = {each.lower(): each for each in known}
    near = [repr(folded[match]) for match in get_close_matches(name.lower(), folded, n=most, cutoff=cutoff)]
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"{what}: {', '.join(folded.values())}" if otherwise is None else otherwise


def refuse_unknown(system: str, options: Mapping[str, Any], *kinds: type[Any], others: tuple[str, ...] = ()) -> None:
    """Check that every option is a field of some settings, or one of `others`.

    Raises:
        ValueError: an option that is neither, with the nearest one there is.
    """
    known = sorted({field.name for kind in kinds for field in fields(kind)} | set(others))
    for name in options:
        if name not in known:
            raise ValueError(f"{system} has no option {name!r}; {nearest(name, known, what='options')}")


def read_settings(kind: type[Settings], system: str, options: Mapping[str, Any]) -> Settings:
    """Return the settings with those of the options that are theirs.

    Raises:
        ValueError: a value of the wrong type, or one that the settings refuse.
    """
    from pydantic import TypeAdapter, ValidationError  # takes longer to load than all else that --help needs

    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]  # a dataclass, as every caller's
    given = {name: value for name, value in options.items() if name in names}
    try:
        return TypeAdapter(kind).validate_python(given)
    except ValidationError as error:
        problem = error.errors()[0]
        wanted = problem["msg"].removeprefix("Value error, ")
        if not problem["loc"]:  # the settings' own check, which names the field
            raise ValueError(f"{system} option {wanted}") from error
        name = str(problem["loc"][0])
        raise ValueError(f"{system} option {name}: {wanted}, got {given.get(name)!r}") from error


def read_assignment(text: str) -> tuple[str, Any]:
    """Return the name and value of ``NAME=VALUE``; a value that is no JSON is a string.

    Raises:
        ValueError: no name or no equals sign.

    Examples:
        >>> read_assignment("reverse=true"), read_assignment("separator= | ")
        (('reverse', True), ('separator', ' | '))
    """
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ValueError(f"{text!r}: expected NAME=VALUE")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value
