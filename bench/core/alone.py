"""In one process's memory: decisions per second on a hot key and on many, and bytes per key.

Seconds here are of this process's CPU time: nobody waits for anything, so on an idle machine they are
the same, and on a busy one others' work does not count.
"""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections.abc import Sequence

from bench.core.book import Book
from bench.core.contest import Contestant, Hit, Setup
from bench.core.contestants import AS_A_LAYER, FLOORS_IN_MEMORY, LIMITERS, ours

HOT = "memory, hot key"
MANY = "memory, many keys"
HOT_HITS = 10_000
HOT_LIMIT = 10_000_000
"""High enough that the hot key is never refused."""
MINUTE_US = 60_000_000


def kept_case(hits: int) -> str:
    return f"memory, kept after {hits} hit{'s' * (hits > 1)}"


def named(count: int) -> list[str]:
    return [f"user:{number:027d}" for number in range(count)]


async def speed(book: Book, keys: Sequence[str]) -> None:
    """One round: everyone hits one key many times, then each of many keys twice."""
    for contestant in (*FLOORS_IN_MEMORY, *AS_A_LAYER, *LIMITERS):
        async with contestant.open(Setup(limit=HOT_LIMIT)) as hit:
            await _hits(hit, ["hot"] * (HOT_HITS // 10))
            book.add(HOT, contestant.name, **await _hits(hit, ["hot"] * HOT_HITS))
        async with contestant.open(Setup()) as hit:
            book.add(MANY, contestant.name, **await _hits(hit, [*keys, *keys]))


async def _hits(hit: Hit, keys: Sequence[str]) -> dict[str, float]:
    gc.collect()
    began, refused = time.process_time(), 0
    for key in keys:
        refused += not await hit(key)
    busy = time.process_time() - began
    return {"rate": len(keys) / busy, "client_us": busy / len(keys) * 1e6, "refused": refused}


async def bytes_kept(book: Book, keys: Sequence[str], hits: int) -> None:
    """Bytes per key, the caller's own string not counted; ours with the hits spread over the minute."""
    for contestant in LIMITERS:
        book.add(kept_case(hits), contestant.name, bytes=await _kept(contestant, keys, hits))


async def _kept(contestant: Contestant, keys: Sequence[str], hits: int) -> float:
    now_us = [1_764_000_000_000_000]
    if contestant.family == "headworks":
        contestant = ours.on_a_clock(contestant, lambda: now_us[0])
    async with contestant.open(Setup()) as hit:
        await hit("first")
        gc.collect()
        tracemalloc.start()
        try:
            for _ in range(hits):
                for key in keys:
                    await hit(key)
                now_us[0] += MINUTE_US // hits
            gc.collect()
            return tracemalloc.get_traced_memory()[0] / len(keys)
        finally:
            tracemalloc.stop()
