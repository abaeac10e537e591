"""The house: who may import whom, and that each room keeps to it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "headworks"

GROUND = {"errors", "manifest", "problem", "verdict"}
GROUND |= {"current", "at_once", "caller", "cleanup", "clock", "address", "identity"}
LAYER = {"ground", "policy", "limits", "telemetry"}
WORKS = LAYER | {"store", "gateway", "deploy", "health", "admission", "fairness", "vendor"}
LOCAL = {"ground", "works", "gateway", "deploy", "policy", "telemetry", "testing"}
MAY_IMPORT: dict[str, set[str]] = {
    "ground": {"ground"},
    "policy": {"ground"},
    "limits": {"ground"},
    "telemetry": {"ground"},
    "store": {"ground", "limits"},
    "gateway": {"ground", "policy"},
    "deploy": {"ground", "policy", "telemetry"},
    "health": LAYER,
    "admission": LAYER,
    "fairness": LAYER | {"store"},
    "vendor": LAYER | {"store"},
    "works": WORKS,
    "testing": {"ground", "policy", "telemetry"},
    "plugin": {"ground", "policy", "telemetry", "testing", "store", "works"},
    "local": LOCAL,
    "cli": WORKS | LOCAL | {"works", "testing", "local"},
}
ENTRANCES = {"headworks", "__main__"}
"""The package itself and `python -m headworks` are doors, not rooms."""

FILES = sorted(SOURCE.rglob("*.py"))


def room_of(parts: tuple[str, ...]) -> str:
    """The room of a module, by its path below `headworks`."""
    if parts[:2] == ("testing", "plugin"):
        return "plugin"  # it puts all of it together; the vendor that judges must know no limiter
    first = parts[0] if parts else "headworks"
    return "ground" if first in GROUND else first


def imports_of(path: Path) -> set[str]:
    """The rooms of headworks that a file imports from, including inside functions."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the room"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            head, *rest = name.split(".")
            if head == "headworks":
                rooms.add(room_of(tuple(rest)))
    return rooms


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_every_room_imports_only_what_the_table_allows(path: Path) -> None:
    """Layers never import one another; importing `store` means state shared between processes."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    room = room_of(tuple(part for part in parts if part != "__init__"))
    if room in ENTRANCES:
        return
    wrong = imports_of(path) - MAY_IMPORT[room] - {room}
    assert not wrong, f"{path.name} in '{room}' may not import {sorted(wrong)}"


def test_only_the_store_knows_redis_and_only_the_vendor_the_http_client() -> None:
    """Foreign libraries stay in the rooms that own them."""
    owners = {"redis": {"store"}, "httpx2": {"vendor", "works", "local", "testing", "plugin", "cli"}}
    for path in FILES:
        room = room_of(path.relative_to(SOURCE).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            for name in names:
                allowed = owners.get(name.split(".")[0])
                assert allowed is None or room in allowed, f"{path} imports {name}"


def test_time_and_chance_enter_by_one_door() -> None:
    """No module reads a clock or the global random generator: the loop and constructors bring them."""
    forbidden = {("time", "time"), ("time", "monotonic"), ("time", "perf_counter")}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            owner, name = node.func.value, node.func.attr
            if not isinstance(owner, ast.Name):
                continue
            assert (owner.id, name) not in forbidden, f"{path}:{node.lineno} reads {owner.id}.{name}"
            if owner.id == "random":
                assert name in {"Random", "SystemRandom"}, f"{path}:{node.lineno} global chance"
            swallows = (owner.id, name) == ("asyncio", "wait_for")
            assert not swallows, f"{path}:{node.lineno} wait_for swallows cancels"


def test_no_file_and_no_function_outgrows_the_screen() -> None:
    """Files stay below 400 lines and functions below 60, so that each can be read in one go.

    A verb of the command line declares an option a line, and may take 90.
    """
    for path in FILES:
        text = path.read_text()
        assert text.count("\n") <= 400, f"{path} has {text.count(chr(10))} lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                most = 90 if path.parent.name == "cli" else 60
                assert length <= most, f"{path}:{node.lineno} {node.name} has {length} lines"
