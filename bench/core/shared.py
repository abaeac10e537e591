"""Over Valkey: decisions per second, latency, the server's work, and the bytes it keeps."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from statistics import median

from bench.core.book import Book
from bench.core.contest import Contestant, Hit, Setup, timed
from bench.core.contestants import FLOORS_OVER_A_SERVER, LIMITERS, ours
from bench.core.contestants.floors import OUR_SCRIPT, SCRIPT
from bench.core.server import Server

KEYS = [f"user:{number:027d}" for number in range(5_000)]
"""32 bytes each; so many that nobody is refused while timed: a refusal may cost less."""
MINUTE_US = 60_000_000
HITS = (1, 20, 100)
IN_TURN = "Valkey, 1 task, in turn"
HITS_IN_TURN = 20


def case(tasks: int, two: bool) -> str:
    limits = "two limits" if two else "one limit"
    return f"Valkey, {limits}, {tasks} task{'s' * (tasks > 1)}"


def kept_case(hits: int) -> str:
    return f"Valkey, kept after {hits} hit{'s' * (hits > 1)}"


async def speed(book: Book, server: Server, rounds: int, at_work: Sequence[int], seconds: float) -> None:
    """At every number of tasks, with one and with two limits: everyone in turn, round after round."""
    for two in (False, True):
        for tasks in at_work:
            floors = (SCRIPT,) if two else FLOORS_OVER_A_SERVER
            async with AsyncExitStack() as stack:
                opened = [
                    (contestant, await stack.enter_async_context(contestant.open(setup)))
                    for contestant in (*floors, *LIMITERS)
                    for setup in [Setup(server.url, two=two, at_once=tasks)]
                ]
                for contestant, hit in opened:
                    await _slice(Book(), server, contestant, hit, tasks, two, seconds)
                # Whatever lives by now is nobody's work: left to the collector, it is gone through in
                # the middle of somebody's slice, for as long as most of the slice.
                gc.collect()
                gc.freeze()
                for number in range(rounds):
                    for contestant, hit in opened if number % 2 else opened[::-1]:
                        await _slice(book, server, contestant, hit, tasks, two, seconds)
                gc.unfreeze()


async def _slice(
    book: Book,
    server: Server,
    contestant: Contestant,
    hit: Hit,
    tasks: int,
    two: bool,
    seconds: float,
) -> None:
    server.emptied()
    bundle = tasks if contestant.bundles else 1
    before = server.work()
    took = await timed(hit, KEYS, tasks // bundle, seconds)
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


async def in_turn(book: Book, server: Server, turns: int) -> None:
    """One task, a few hits of ours and a few of the trivial script in turn: latencies side by side."""
    server.emptied()
    async with AsyncExitStack() as stack:
        taking_turns: list[tuple[Contestant, Hit, list[float]]] = [
            (contestant, await stack.enter_async_context(contestant.open(Setup(server.url))), [])
            for contestant in (SCRIPT, OUR_SCRIPT, *ours.CONTESTANTS)
        ]
        for turn in range(turns):
            for _, hit, latencies in taking_turns:
                for key in KEYS[turn % 100 :: 100][:HITS_IN_TURN]:
                    sent = time.perf_counter()
                    await hit(key)
                    latencies.append(time.perf_counter() - sent)
    for contestant, _, latencies in taking_turns:
        book.add(IN_TURN, contestant.name, p50_us=median(latencies) * 1e6)


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
