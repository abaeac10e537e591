"""Turns pydantic's errors into sentences about the file: where, which value, what would be right."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from types import UnionType
from typing import Annotated, Any, TypeGuard, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from headworks.errors import Problem
from headworks.policy.settings import Policy
from headworks.policy.units import shown

Location = tuple[str | int, ...]

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_TABLE_TYPES = {"model_type", "model_attributes_type", "dict_type", "mapping_type"}


def dotted(location: Location) -> str:
    """A location as the dotted path TOML writes: `vendors.llm.quota[0]`, `endpoints."/chat"`."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            name = part if _BARE.fullmatch(part) else json.dumps(part, ensure_ascii=False)
            path += f".{name}" if path else name
    return path


def key_shown(key: str) -> str:
    """A caller's key as messages may say it: enough to find it by, and nothing to send. One of three
    characters is no secret."""
    return key if len(key) < 4 else f"{key[: min(4, len(key) // 2)]}…"


def explain(error: ValidationError) -> list[Problem]:
    """Every error of a validation as a problem."""
    return [_problem(details) for details in error.errors(include_url=False)]


def nearest(name: str, names: Iterable[str]) -> str:
    """`did you mean 'x'?` for the nearest known name, else all that is known."""
    known = sorted(names)
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"known here: {', '.join(known)}" if known else "nothing is known here"


def _problem(details: ErrorDetails) -> Problem:
    location: Location = tuple(part for part in details["loc"] if part != "[key]")
    if location[:2] == ("fairness", "keys") and len(location) > 2:
        key, message = str(location[2]), _message(details, location)
        location = (*location[:2], key_shown(key), *location[3:])
        return Problem(dotted(location), message.replace(shown(key), shown(key_shown(key))))
    return Problem(dotted(location), _message(details, location))


def _message(details: ErrorDetails, location: Location) -> str:
    kind, given = details["type"], details["input"]
    if kind == "value_error":
        return str(details["ctx"]["error"])
    if kind == "extra_forbidden":
        return f"there is no such setting; {nearest(str(location[-1]), _names(location[:-1]))}"
    if kind == "missing":
        return "is missing, and has no default"
    if kind in _TABLE_TYPES:
        return f"{shown(given)} is not a table"
    if kind == "tuple_type":
        return f"{shown(given)} is not a list"
    if kind == "string_type":
        return f"{shown(given)} is not a text"
    if kind == "too_short":
        return "is empty; name at least one"
    return f"{shown(given)}: {details['msg']}"


def _names(location: Location) -> list[str]:
    """The names that the table at a location may hold."""
    annotation: Any = Policy
    for part in location:
        if isinstance(part, int):  # which of several: all are of one kind
            continue
        if _is_model(annotation):
            annotation = dict(_fields(annotation)).get(str(part))
        elif get_origin(annotation) is dict:
            annotation = get_args(annotation)[1]
        while get_origin(annotation) in (Annotated, tuple):  # one of several, listed or not
            annotation = get_args(annotation)[0]
        if get_origin(annotation) in (Union, UnionType):
            annotation = next(filter(_is_model, get_args(annotation)), None)
    return [name for name, _ in _fields(annotation)] if _is_model(annotation) else []


def _fields(model: type[BaseModel]) -> list[tuple[str, Any]]:
    return [(field.alias or name, field.annotation) for name, field in model.model_fields.items()]


def _is_model(annotation: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
