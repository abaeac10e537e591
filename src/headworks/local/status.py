"""Where a running stack says what it is: one small JSON file per gateway port."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

FILE = "stack.json"


@dataclass(frozen=True, slots=True)
class Part:
    """One process of the stack.

    kind        store, vendor, pod or gateway
    pid         None while it is away
    management  where a pod answers probes and metrics; empty elsewhere
    """

    name: str
    kind: str
    url: str
    pid: int | None
    log: str
    restarts: int
    management: str = ""


@dataclass(frozen=True, slots=True)
class Status:
    """A running stack.

    pid      of the supervisor
    url      of the gateway
    vendors  base URLs of the *fake* vendors by name; their `/stats` is at the same origin
    """

    pid: int
    url: str
    policy: str
    vendors: dict[str, str]
    parts: tuple[Part, ...]


def state_folder(port: int) -> Path:
    """The stack's folder, by the port of its gateway: logs, the gateway's files and `stack.json`."""
    return Path(tempfile.gettempdir(), f"headworks-{os.getuid()}-{port}")


def write(folder: Path, status: Status) -> None:
    """Replace the file whole, so that nobody reads half of it."""
    draft = folder / f"{FILE}.new"
    draft.write_text(json.dumps(asdict(status), indent=2), encoding="utf-8")
    draft.replace(folder / FILE)


def read(port: int, folder: Path | None = None) -> Status | None:
    """The stack whose gateway listens on `port`; None when none says so."""
    try:
        text = ((folder or state_folder(port)) / FILE).read_text(encoding="utf-8")
        found = json.loads(text)
        parts = tuple(Part(**part) for part in found.pop("parts"))
        return Status(**found, parts=parts)
    except (OSError, ValueError, TypeError, KeyError):
        return None
