"""Validates objects against CRDs offline: structural schemas, strictly, then their CEL rules.

The CRDs lie in `../shared/crds` beside the repository. As an API server does it: unknown fields are
mistakes, defaults are filled in before rules are asked, and a rule sees its own object as `self`.
Rules about an update (`oldSelf`) say nothing about a new object.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cel
import jsonschema
import pytest
import yaml

BESIDE = [parent / "shared" / "crds" for parent in Path(__file__).resolve().parents[2:4]]
FOLDER = next((folder for folder in BESIDE if folder.is_dir()), BESIDE[0])
needs_crds = pytest.mark.skipif(
    not FOLDER.is_dir(),
    reason="the CRD schemas are data beside the repository (../shared/crds), not here",
)


def mistakes(manifest: dict[str, Any]) -> list[str]:
    """What an API server would refuse about the object."""
    found = _schemas().get((manifest["apiVersion"], manifest["kind"]))
    if found is None:
        return [f"there is no CRD for {manifest['apiVersion']} {manifest['kind']}"]
    schema, strict = found
    wrong = [f"{_path(e.absolute_path)}: {e.message}" for e in strict.iter_errors(manifest)]
    return wrong or list(_broken_rules(schema, _defaulted(schema, copy.deepcopy(manifest)), ""))


def rules() -> list[str]:
    """Every rule of every CRD that is about a new object."""
    return [rule for schema, _ in _schemas().values() for rule in _rules_in(schema)]


@functools.cache
def _schemas() -> dict[tuple[str, str], tuple[dict[str, Any], Any]]:
    found = {}
    for file in sorted(FOLDER.glob("*.yaml")):
        crd = yaml.load(file.read_text(encoding="utf-8"), yaml.CSafeLoader)
        for version in crd["spec"]["versions"]:
            key = f"{crd['spec']['group']}/{version['name']}", crd["spec"]["names"]["kind"]
            schema = version["schema"]["openAPIV3Schema"]
            found[key] = schema, jsonschema.Draft7Validator(_strict(schema, top=True))
    return found


def _strict(schema: Any, *, top: bool = False) -> Any:
    """The structural schema as JSON Schema that knows no other fields."""
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: _strict(value) for key, value in schema.items() if key != "properties"}
    if schema.get("x-kubernetes-int-or-string"):
        strict["type"] = ["integer", "string"]
    if "properties" in schema:
        strict["properties"] = {name: _strict(part) for name, part in schema["properties"].items()}
        if top:
            strict["properties"]["metadata"] = {"type": "object"}
        if schema.get("type") == "object" and not schema.get("x-kubernetes-preserve-unknown-fields"):
            strict.setdefault("additionalProperties", False)
    return strict


def _defaulted(schema: dict[str, Any], value: Any) -> Any:
    if isinstance(value, dict):
        for name, part in schema.get("properties", {}).items():
            if name not in value and "default" in part:
                value[name] = copy.deepcopy(part["default"])
            if name in value:
                value[name] = _defaulted(part, value[name])
    elif isinstance(value, list) and isinstance(schema.get("items"), dict):
        return [_defaulted(schema["items"], item) for item in value]
    return value


def _broken_rules(schema: dict[str, Any], value: Any, path: str) -> Iterator[str]:
    for rule in schema.get("x-kubernetes-validations", ()):
        if "oldSelf" not in rule["rule"] and not _holds(rule["rule"], value):
            yield f"{path}: {rule.get('message', rule['rule'])}"
    if isinstance(value, dict):
        extra = schema.get("additionalProperties")
        for name, item in value.items():
            part = schema.get("properties", {}).get(name, extra)
            if isinstance(part, dict):
                yield from _broken_rules(part, item, f"{path}.{name}")
    elif isinstance(value, list) and isinstance(schema.get("items"), dict):
        for index, item in enumerate(value):
            yield from _broken_rules(schema["items"], item, f"{path}[{index}]")


def _holds(rule: str, value: Any) -> bool:
    context = cel.Context()
    context.add_variable("self", value)
    context.add_function("upperAscii", str.upper)
    return bool(compiled(rule).execute(context))


@functools.cache
def compiled(rule: str) -> Any:
    """A rule, compiled once."""
    return cel.compile(rule)


def _rules_in(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        for rule in schema.get("x-kubernetes-validations", ()):
            if "oldSelf" not in rule["rule"]:
                yield rule["rule"]
        for part in schema.values():
            yield from _rules_in(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from _rules_in(part)


def _path(path: Any) -> str:
    return ".".join(map(str, path))
