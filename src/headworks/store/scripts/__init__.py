"""The scripts the server runs. Each file introduces itself; what runs is the file, nothing else.

`shapes.lua` and `gate.lua` are put in front of the scripts that need them, as Lua on the server has
no way to include.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True, slots=True)
class Script:
    """A script's source and the SHA-1 by which the server knows it."""

    name: str
    source: str
    sha: str


def script(name: str, *before: str) -> Script:
    """`name`.lua behind the files named `before`."""
    files = resources.files(__name__)
    source = "\n".join((files / f"{part}.lua").read_text("utf-8") for part in (*before, name))
    return Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())
