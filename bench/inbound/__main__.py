"""`python -m bench.inbound`: what the way in costs, beside the bare application, floors and peers.

Starts Valkey and one process per application, loads them in turn, round after round, prints one table
and the lines to be reached, and writes JSON. Exit status: 0 all lines reached, 1 some missed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import uvloop
from rich.console import Console
from rich.table import Table

from bench.core import page
from bench.core.book import Book
from bench.core.must import Line
from bench.core.server import Server, running
from bench.core.table import verdicts
from bench.inbound.apps import CALLERS, HEADER, caller
from bench.inbound.load import driven, request

BARE, OURS, ALONE = "bare FastAPI", "headworks", "question alone"
SERVER, ANSWER, ANSWERED = "bare, our server", "answer alone", "question and answer"
INSIDE = "answer in FastAPI"
PEERS = ("limits in a dependency", "slowapi")
FAR, NEAR = "1000000000/minute", "1/hour"
CONNECTIONS = 64
STRANGERS = 400
"""Callers per connection of the case that no refusal from memory answers: more than are remembered."""
WARM = 30
"""Slices after which an application has to answer as it shall."""
COLLECTORS = ("as Python has it", "frozen")


@dataclass(frozen=True, slots=True)
class Case:
    """What is sent to whom, and what each of them must answer.

    path, rate   asked of everybody but the bare application's limits
    who          the applications
    strangers    every request by somebody else
    status       of every answer that has a limit in front
    """

    name: str
    path: str
    rate: str
    who: tuple[str, ...]
    status: int
    strangers: bool = False

    def wanted(self, name: str) -> int:
        """The status of each answer of this application."""
        return 200 if name in (BARE, SERVER) else self.status


CASES = (
    Case("admitted", "/hello", FAR, (BARE, SERVER, ALONE, OURS, *PEERS), 200),
    Case("refused, the store asked", "/hello", NEAR, (BARE, ANSWERED, OURS), 429, strangers=True),
    Case("refused from memory", "/hello", NEAR, (BARE, ANSWER, INSIDE, OURS, *PEERS), 429),
)


def requests(case: Case) -> list[list[bytes]]:
    """One list per connection."""
    if case.strangers:
        return [
            [
                request(case.path, "X-Forwarded-For", f"10.{n}.{i // 250}.{i % 250}")
                for i in range(STRANGERS)
            ]
            for n in range(CONNECTIONS)
        ]
    return [[request(case.path, HEADER, caller(n % CALLERS))] for n in range(CONNECTIONS)]


@contextmanager
def served(name: str, url: str, rate: str, *, frozen: bool) -> Iterator[tuple[int, int]]:
    """One application in a process of its own: its process id, and its port."""
    command = [sys.executable, "-m", "bench.inbound.serve", name, url, rate, *["--frozen"] * frozen]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"{name} did not start")
            yield process.pid, int(line)
        finally:
            process.kill()


def busy_us(pid: int) -> float:
    """Processor time that a process has used, in microseconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") * 1e6


async def measure(rounds: int, seconds: float, say: Callable[[str], None]) -> Book:
    """Every case under both collectors, its applications in turn, forwards and backwards."""
    book = Book()
    with running() as server:
        for collector in COLLECTORS:
            for case in CASES:
                say(f"{case.name}, collector {collector}")
                await _case(book, server, case, collector, rounds, seconds)
    return book


async def _case(
    book: Book, server: Server, case: Case, collector: str, rounds: int, seconds: float
) -> None:
    sent = requests(case)
    server.emptied()
    with ExitStack() as stack:
        frozen = collector == "frozen"
        apps = [
            (name, *stack.enter_context(served(name, server.url, case.rate, frozen=frozen)))
            for name in case.who
        ]
        for name, _, port in apps:
            await _warmed(port, sent, case.wanted(name), max(1.0, seconds / 2))
        for number in range(rounds):
            for name, pid, port in apps if number % 2 else apps[::-1]:
                before, busy = server.work(), busy_us(pid)
                took = await driven(port, sent, seconds)
                work, answers = server.work().since(before), sum(took.statuses.values())
                wanted = case.wanted(name)
                book.add(
                    f"{case.name}, collector {collector}",
                    name,
                    rate=took.rate,
                    p50_us=took.p50_us,
                    p99_us=took.p99_us,
                    cpu_us=(busy_us(pid) - busy) / answers,
                    scripts=work.scripts / answers,
                    trips=work.reads / answers,
                    strange=answers - took.statuses.get(wanted, 0),
                )


async def _warmed(port: int, sent: Sequence[Sequence[bytes]], wanted: int, seconds: float) -> None:
    """Until all answers are what they are to be: every caller has used its limit up."""
    await driven(port, sent, None)
    for _ in range(WARM):
        if set((await driven(port, sent, seconds)).statuses) == {wanted}:
            return
    raise RuntimeError(f"the answers are not all {wanted}")


def lines(book: Book) -> list[Line]:
    """Every line to be reached."""
    found: list[Line] = []
    for collector in COLLECTORS:
        admitted, asked, denied = (f"{case.name}, collector {collector}" for case in CASES)
        peers = [r for p in PEERS if (r := book.ratio(admitted, p, BARE, "rate")) is not None]
        beside = f", peers {min(peers):.2f} to {max(peers):.2f}" if peers else ""
        late = [r for p in PEERS if (r := book.ratio(admitted, p, BARE, "p99_us")) is not None]
        later = f"peers {min(late):.1f} to {max(late):.1f}" if late else ""
        refused = [r for p in PEERS if (r := book.ratio(denied, p, BARE, "rate")) is not None]
        best = f", best peer {max(refused):.2f}" if refused else ""

        def times(case: str, metric: str, who: str = OURS) -> float | None:
            return book.ratio(case, who, BARE, metric)

        def floor(case: str, who: str) -> str:
            return f"{who} {times(case, 'rate', who) or 0:.2f}"

        trips = book.median(admitted, OURS, "trips")
        beside = floor(admitted, ALONE) + beside
        found += [
            Line(f"{admitted}: requests/s × bare", times(admitted, "rate"), ">=", 0.75, beside),
            Line(f"{admitted}: p99 × bare", times(admitted, "p99_us"), "<=", 2.5, later),
            Line(f"{asked}: requests/s × bare", times(asked, "rate"), ">=", 1.8, floor(asked, ANSWERED)),
            Line(
                f"{denied}: requests/s × bare",
                times(denied, "rate"),
                ">=",
                2.5,
                f"{floor(denied, ANSWER)}, {floor(denied, INSIDE)}{best}",
            ),
            Line(f"{admitted}: round trips per request", trips, "<=", 0.1),
        ]
        wrong = [book.worst(case, OURS, "strange") for case in (admitted, asked, denied)]
        worst = None if None in wrong else max(value for value in wrong if value is not None)
        found.append(Line(f"collector {collector}: answers of another status", worst, "==", 0))
    return found


COLUMNS = (
    ("requests/s", "rate", ",.0f"),
    ("p50 µs", "p50_us", ",.0f"),
    ("p99 µs", "p99_us", ",.0f"),
    ("pod CPU µs", "cpu_us", ",.0f"),
    ("script calls", "scripts", ".3f"),
    ("round trips", "trips", ".3f"),
)


def figures(book: Book) -> Table:
    """Medians of the rounds; × bare is the median of the ratios within each round."""
    table = Table("case", "application", title="medians of rounds; CPU, calls, trips: per request")
    for heading in ("× bare", "CPU × bare", *(heading for heading, *_ in COLUMNS)):
        table.add_column(heading, justify="right")
    for case in book.cases():
        table.add_section()
        for number, name in enumerate(book.names(case)):
            cells = [f"{book.ratio(case, name, BARE, metric) or 0:.2f}" for metric in ("rate", "cpu_us")]
            cells += [format(book.median(case, name, metric) or 0, form) for _, metric, form in COLUMNS]
            table.add_row("" if number else case, name, *cells)
    return table


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.inbound", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a minute; noisy")
    parser.add_argument("--out", type=Path, default=Path("bench-inbound.json"), help="the JSON file")
    parser.add_argument("--page", type=Path, help="a Markdown page to put the verdicts into")
    options = parser.parse_args()
    console, say = Console(width=None if sys.stdout.isatty() else 160), Console(stderr=True)
    began = time.perf_counter()
    rounds, seconds = (3, 1.0) if options.quick else (7, 2.0)
    book = uvloop.run(measure(rounds, seconds, say.print))
    found = lines(book)
    ran = {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "seconds": round(time.perf_counter() - began),
    }
    must = [asdict(line) | {"reached": line.reached} for line in found]
    options.out.write_text(
        json.dumps({"ran": ran, "must": must, "cases": book.as_json()}, indent=1) + "\n"
    )
    if options.page:
        page.put(options.page, found, "bench.inbound")
    console.print(figures(book))
    console.print(verdicts(found))
    return 0 if all(line.reached for line in found) else 1


if __name__ == "__main__":
    sys.exit(main())
