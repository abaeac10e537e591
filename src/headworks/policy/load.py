"""Reads a policy: the file, then the environment's overrides, then validation, all mistakes at once.

`HEADWORKS_SECTION__FIELD=value` overrides one setting: the name is the dotted path with `__` for
the dot, in any case and with `_` for `-`. The value is read as TOML where it is TOML (`3`, `true`,
`["10.0.0.0/8"]`, `{ env = "NAME" }`) and as text where it is not (`60s`, `valkey://valkey:6379`).
Names without `__` are no overrides.
"""

from __future__ import annotations

import copy
import os
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from headworks.errors import PolicyError, Problem
from headworks.policy.mistakes import Location, dotted, explain
from headworks.policy.references import broken_references
from headworks.policy.settings import Policy
from headworks.policy.units import FromEnvironment

PREFIX = "HEADWORKS_"
MAX_FILE = 1024 * 1024
"""Bytes a policy file may have."""


def load(path: Path | str, environ: Mapping[str, str] = os.environ) -> Policy:
    """The policy in a TOML file, with overrides from `environ`; `PolicyError` lists every mistake."""
    source = str(path)
    return parse(read(path), source, environ)


def read(path: Path | str) -> dict[str, Any]:
    """The file's tables; `PolicyError` says in one sentence why it cannot be read."""
    source = str(path)
    try:
        if not stat.S_ISREG(mode := Path(path).stat().st_mode):  # opening a pipe might wait for ever
            what = "a folder, not a file" if stat.S_ISDIR(mode) else "not a regular file"
            raise PolicyError(source, [Problem("", f"this is {what}")])
        with Path(path).open("rb") as file:
            content = file.read(MAX_FILE + 1)
        if len(content) > MAX_FILE:
            raise PolicyError(source, [Problem("", f"the file has more than {MAX_FILE} bytes")])
        return tomllib.loads(content.decode("utf-8-sig"))
    except FileNotFoundError:
        where = str(Path(path).absolute())  # a relative one says little when it leads nowhere
        raise PolicyError(where, [Problem("", "there is no such file")]) from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise PolicyError(source, [Problem("", f"the file cannot be read: {reason}")]) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise PolicyError(source, [Problem("", f"the file is not UTF-8 (line {line})")]) from None
    except tomllib.TOMLDecodeError as error:
        raise PolicyError(source, [Problem("", f"the file is not TOML: {error}")]) from None
    except (RecursionError, ValueError) as error:
        raise PolicyError(source, [Problem("", f"the file cannot be parsed: {error}")]) from None


def parse(
    data: Mapping[str, Any], source: str = "policy", environ: Mapping[str, str] = os.environ
) -> Policy:
    """The policy in `data`, which is left as it is; `source` names it in errors."""
    tables = copy.deepcopy(dict(data))
    origins, problems = override(tables, environ)
    try:
        policy = Policy.model_validate(
            tables, context={"environ": environ}, by_alias=True, by_name=False
        )
    except ValidationError as error:
        problems += explain(error)
    problems += broken_references(tables)
    if problems:
        raise PolicyError(source, [_with_origin(problem, origins) for problem in problems])
    return policy


def override(tables: dict[str, Any], environ: Mapping[str, str]) -> tuple[dict[str, str], list[Problem]]:
    """Write the overrides of `environ` into `tables`; returns the variable of each path, and problems.

    A table that a variable made is its path: whatever is wrong there is the variable's, not the file's.
    """
    origins: dict[str, str] = {}
    problems: list[Problem] = []
    for name in sorted(environ):
        if not name.upper().startswith(PREFIX) or "__" not in name[len(PREFIX) :]:
            continue
        parts = name[len(PREFIX) :].lower().split("__")
        location = _place(tables, parts, _value(environ[name])) if all(parts) else None
        if location is None:
            wrong = "leads through something that is no table" if all(parts) else "names an empty part"
            problems.append(Problem("", f"the variable {name} {wrong}; write {PREFIX}SECTION__FIELD"))
        else:
            origins[dotted(location)] = name
    return origins, problems


def _place(tables: dict[str, Any], parts: list[str], value: Any) -> Location | None:
    """Set the value where `parts` lead, matching existing names; None when a part is no table.

    Returns where the value stands, or the uppermost table that had to be made for it.
    """
    here, location, made = tables, [], 0
    for part in parts[:-1]:
        name = _existing(here, part)
        location.append(name)
        if name not in here:
            made = made or len(location)
        below = here.setdefault(name, {})
        if not isinstance(below, dict):
            return None
        here = below
    name = _existing(here, parts[-1])
    here[name] = value
    return (*location, name)[: made or None]


def _existing(table: Mapping[str, Any], part: str) -> str:
    """The name in `table` that `part` means, however it is cased and hyphenated; else `part`."""
    return next(
        (name for name in table if name.lower().replace("-", "_") == part.replace("-", "_")), part
    )


def _value(text: str) -> Any:
    """What an override says: a TOML value where it is one, else the text itself."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError, ValueError):
        return FromEnvironment(text)
    if set(parsed) != {"value"} or not isinstance(parsed["value"], (str, bool, int, float, list, dict)):
        return FromEnvironment(text)
    value = parsed["value"]
    return FromEnvironment(value) if isinstance(value, str) else value


def _with_origin(problem: Problem, origins: Mapping[str, str]) -> Problem:
    """The problem, naming the variable that brought the value, where one did."""
    from_variables = [
        path
        for path in origins
        if problem.path == path or problem.path.startswith((path + ".", path + "["))
    ]
    if not from_variables:
        return problem
    name = origins[max(from_variables, key=len)]
    return Problem(problem.path, f"{problem.message} (from the variable {name})")
