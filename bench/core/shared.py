"""Over Valkey: decisions per second, latency, the server's work, and the bytes it keeps."""

from __future__ import annotations

import gc
from collections.abc import Sequence

from bench.core.book import Book
from bench.core.contest import Contestant, Setup, timed
from bench.core.contestants import FLOORS_OVER_A_SERVER, LIMITERS, ours
from bench.core.contestants.floors import SCRIPT
from bench.core.server import Server

KEYS = [f"user:{number:027d}" for number in range(5_000)]
"""32 bytes each; so many that nobody is refused while timed: a refusal may cost less."""
MINUTE_US = 60_000_000
HITS = (1, 20, 100)


def case(tasks: int, two: bool) -> str:
    limits = "two limits" if two else "one limit"
    return f"Valkey, {limits}, {tasks} task{'s' * (tasks > 1)}"


def kept_case(hits: int) -> str:
    return f"Valkey, kept after {hits} hit{'s' * (hits > 1)}"


async def speed(book: Book, server: Server, at_work: Sequence[int], seconds: float) -> None:
    """One round: every contestant in turn, at every number of tasks, with one and with two limits."""
    for two in (False, True):
        for tasks in at_work:
            for contestant in (*((SCRIPT,) if two else FLOORS_OVER_A_SERVER), *LIMITERS):
                await _slice(book, server, contestant, tasks, two, seconds)


async def _slice(
    book: Book, server: Server, contestant: Contestant, tasks: int, two: bool, seconds: float
) -> None:
    bundle = tasks if contestant.bundles else 1
    server.emptied()
    async with contestant.open(Setup(server.url, two=two, at_once=bundle)) as hit:
        at_work = tasks // bundle
        await timed(hit, KEYS, at_work, seconds / 8)
        gc.collect()
        before = server.work()
        took = await timed(hit, KEYS, at_work, seconds)
        work, decisions = server.work().since(before), took.hits * bundle
    book.add(
        case(tasks, two),
        contestant.name,
        rate=took.rate * bundle,
        client_us=took.client_us / bundle,
        p50_us=took.p50_us,
        p99_us=took.p99_us,
        cpu_us=work.cpu_us / decisions,
        trips=work.scripts / decisions,
        commands=work.commands / decisions,
        reads=work.reads / decisions,
        refused=took.refused,
    )


async def bytes_kept(book: Book, server: Server) -> None:
    """`MEMORY USAGE` per caller's key after some hits, ours spread evenly over the limit's minute.

    Spreading them is our worst case; what peers keep does not depend on it.
    """
    keys = KEYS[:5]
    for hits in HITS:
        for contestant in LIMITERS:
            server.emptied()
            now_us = [1_764_000_000_000_000]
            if contestant.family == "headworks":
                contestant = ours.on_a_clock(contestant, lambda: now_us[0])  # noqa: B023  used in this turn only
            async with contestant.open(Setup(server.url)) as hit:
                for _ in range(hits):
                    for key in keys:
                        await hit(key)
                    now_us[0] += MINUTE_US // hits
                book.add(kept_case(hits), contestant.name, bytes=server.bytes_kept() / len(keys))
