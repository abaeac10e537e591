"""What is really let in: across a boundary, under a flood, in a race. All over Valkey, side by side.

Over-admission is counted only where it is certain: a window's admissions are those *sent* after it
began and *answered* before it ended, so no delay of ours can make a limiter look worse than it is.
"""

from __future__ import annotations

import asyncio
import time

from bench.core.book import Book
from bench.core.contest import Contestant, Hit, Setup
from bench.core.contestants import LIMITERS
from bench.core.server import Server

LIMIT, PERIOD = 100, 2
BOUNDARY, FLOOD, RACE = "exact, boundary", "exact, flood", "exact, race"
PHASES = (0.0, 0.013, 0.037, 0.061, 0.083)
"""Where in a sub-bucket (a tenth of a second) the bursts fall; seconds."""
HITTERS = 8
RACERS, RACES = 200, 3
FLOODED_FOR = 2.2 * PERIOD

Admissions = list[tuple[float, float]]
"""(sent, answered) of every hit let in; seconds."""


def most_within(period: float, admissions: Admissions) -> int:
    """The most admissions that one window of this length is certain to hold."""
    sent_first = sorted(admissions)
    most = 0
    for sent, _ in sent_first:
        most = max(most, sum(sent <= s and a < sent + period for s, a in sent_first))
    return most


async def boundary(book: Book, server: Server) -> None:
    """One hit, then all at once just before a window's edge and just after it."""
    await asyncio.sleep(PERIOD - time.time() % PERIOD + 0.02)
    await asyncio.gather(
        *(
            _boundary(book, server, contestant, phase)
            for contestant in LIMITERS
            for phase in (PHASES if contestant.family == "headworks" else PHASES[:1])
        )
    )


async def _boundary(book: Book, server: Server, contestant: Contestant, phase: float) -> None:
    began, key = time.perf_counter(), f"{contestant.name}:{phase}"
    async with contestant.open(Setup(server.url, LIMIT, PERIOD)) as hit:
        admissions = await _burst(hit, key, 1)
        for at in (0.7 * PERIOD + phase, 1.05 * PERIOD + phase):
            await asyncio.sleep(began + at - time.perf_counter())
            admissions += await _burst(hit, key, LIMIT + 10)
    book.add(BOUNDARY, contestant.name, most=most_within(PERIOD, admissions))


async def _burst(hit: Hit, key: str, hits: int) -> Admissions:
    async def some(number: int) -> list[tuple[float, float, bool]]:
        took = []
        for _ in range(number):
            sent = time.perf_counter()
            admitted = await hit(key)
            took.append((sent, time.perf_counter(), admitted))
        return took

    hitters = min(hits, HITTERS)
    shares = await asyncio.gather(*(some(-(-hits // hitters)) for _ in range(hitters)))
    return [(sent, answered) for share in shares for sent, answered, admitted in share if admitted]


async def flood(book: Book, server: Server) -> None:
    """Several times the limit, steadily, for several periods."""
    await asyncio.gather(*(_flood(book, server, contestant) for contestant in LIMITERS))


async def _flood(book: Book, server: Server, contestant: Contestant) -> None:
    admissions: Admissions = []
    async with contestant.open(Setup(server.url, LIMIT, PERIOD)) as hit:
        until = time.perf_counter() + FLOODED_FOR
        while time.perf_counter() < until:
            admissions += await _burst(hit, f"{contestant.name}:flood", 1)
            await asyncio.sleep(0.004)
    book.add(FLOOD, contestant.name, most=most_within(PERIOD, admissions))


async def race(book: Book, server: Server) -> None:
    """Twice as many tasks as units, all at once, of a limit that gives nothing back meanwhile."""
    for contestant in LIMITERS:
        async with contestant.open(Setup(server.url, LIMIT, 3600)) as hit:
            for number in range(RACES):
                key = f"{contestant.name}:race:{number}"
                admitted = await asyncio.gather(*(hit(key) for _ in range(RACERS)))
                book.add(RACE, contestant.name, most=sum(admitted))


async def checks(book: Book, server: Server) -> None:
    server.emptied()
    await boundary(book, server)
    await flood(book, server)
    await race(book, server)
