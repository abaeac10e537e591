"""Plain data as YAML, each number with the policy field it comes from: for whatever renders.

A rendered document is dicts, lists, texts, numbers and booleans, in the order in which they were
written. `Said(value, why)` puts a comment beside a value: the policy field it comes from, or
`fixed: reason` where the policy has no say. Texts are quoted unless they cannot be read as anything
else, so every YAML reader gets back what was written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

Data = Any
"""dict, list, str, int, float, bool or None, and `Said` of any of them, nested."""
Manifest = dict[str, Any]
"""One Kubernetes object."""

_PLAIN = re.compile(r"[A-Za-z_/][A-Za-z0-9_./-]*(?::[A-Za-z0-9_./-]+)*")
_BLOCK = re.compile(r"\S.*\n.*(?<!\n)\n", re.DOTALL)
_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}


@dataclass(frozen=True, slots=True)
class Said:
    """A value and where it comes from."""

    value: Data
    why: str


def plain(data: Data) -> Data:
    """The data without what was said about it."""
    if isinstance(data, Said):
        return plain(data.value)
    if isinstance(data, dict):
        return {key: plain(value) for key, value in data.items()}
    if isinstance(data, list):
        return [plain(value) for value in data]
    return data


def yaml(documents: Iterable[Data], head: str = "") -> str:
    """The documents of one file, below `head`, the comment that introduces it."""
    comment = [f"# {line}".rstrip() for line in head.splitlines()]
    bodies = ["\n".join(_lines(document)) for document in documents]
    return "\n".join([*comment, "\n---\n".join(bodies), ""])


def _lines(data: Data) -> Iterator[str]:
    """A collection, line by line, not indented."""
    value = data.value if isinstance(data, Said) else data
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _entry(f"{_quoted(str(key))}:", item)
    elif isinstance(value, list) and value:
        for item in value:
            yield from _entry("-", item)
    else:
        yield from _scalar(value).split("\n")


def _entry(lead: str, data: Data) -> Iterator[str]:
    """`lead` and its value: beside it when it is a scalar or an item of a list, below it otherwise."""
    value, why = (data.value, f"  # {data.why}") if isinstance(data, Said) else (data, "")
    lines = _lines(value)
    if not value or not isinstance(value, (dict, list)) or (lead == "-" and not why):
        yield f"{lead} {next(lines)}{why}"
    else:
        yield f"{lead}{why}"
    yield from (f"  {line}" if line else "" for line in lines)


def _scalar(value: Data) -> str:
    match value:
        case None | bool():
            return {None: "null", True: "true", False: "false"}[value]
        case int() | float():
            return repr(value)
        case dict():
            return "{}"
        case list():
            return "[]"
        case str():
            return _text(value)
    raise TypeError(f"{type(value).__name__} cannot be written as YAML")


def _text(text: str) -> str:
    if _BLOCK.fullmatch(text) and _printable(text):
        return "|\n" + text.removesuffix("\n")
    return _quoted(text)


def _quoted(text: str) -> str:
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        return text
    return "".join(map(_escaped, json.dumps(text, ensure_ascii=False)))


def _escaped(character: str) -> str:
    return character if character.isprintable() else f"\\U{ord(character):08x}"


def _printable(text: str) -> bool:
    return all(character.isprintable() or character in "\n\t" for character in text)


def files(objects: Iterable[Manifest], head: str) -> dict[str, str]:
    """Kubernetes objects as files: one each, named by kind, and by name where a kind comes twice."""
    listed = list(objects)
    kinds = [str(found["kind"]) for found in listed]
    named = {}
    for found, kind in zip(listed, kinds, strict=True):
        name = plain(found["metadata"])["name"]
        stem = kind if kinds.count(kind) == 1 else f"{kind}-{name}"
        named[f"{stem.lower()}.yaml"] = yaml([found], head)
    return named
