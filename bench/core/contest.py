"""What takes part, under which limits, and how one slice of it is timed.

contestant  a limiter in one configuration; opened with a setup, it gives a `Hit`
hit         takes one unit of a key's limit (of two limits, where the setup says so): True if let in
slice       so many tasks on one loop, each hitting one key after another, for so many seconds
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from itertools import cycle
from statistics import quantiles

Hit = Callable[[str], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class Setup:
    """`limit` units per `period` seconds of each key, bursts of `limit` allowed.

    url      the server that keeps the state; empty: this process's memory
    two      every hit takes from two limits, the key's and that of `second(key)`
    at_once  decisions that a floor sends together
    """

    url: str = ""
    limit: int = 100
    period: int = 60
    two: bool = False
    at_once: int = 1


def second(key: str) -> str:
    """The other key of a question about two limits; in a cluster on the same slot."""
    return f"{key}:chat"


@dataclass(frozen=True, slots=True)
class Contestant:
    """A limiter, or a floor, in one configuration.

    name     as the tables say it
    family   whose it is: `headworks`, `floor`, or the peer's name
    shape    `bucket`, `window`, `counter` (a fixed or interpolated window) or `floor`
    bundles  one task sends the decisions of all of them together; for floors
    """

    name: str
    family: str
    shape: str
    open: Callable[[Setup], AbstractAsyncContextManager[Hit]] = field(repr=False)
    bundles: bool = False

    @property
    def peer(self) -> bool:
        return self.family not in {"headworks", "floor"}


Opened = AsyncIterator[Hit]
"""What the functions that open a contestant return, for `asynccontextmanager`."""


@dataclass(frozen=True, slots=True)
class Slice:
    """hits · of them refused · per second · this process's CPU time and the latencies of one, in µs"""

    hits: int
    refused: int
    rate: float
    client_us: float
    p50_us: float
    p99_us: float


async def timed(hit: Hit, keys: Sequence[str], tasks: int, seconds: float) -> Slice:
    """Hit for so many seconds with so many tasks, to which the keys are dealt in turn."""
    clock = time.perf_counter
    began, busy = clock(), time.process_time()

    async def one(mine: Sequence[str]) -> tuple[list[float], int]:
        took: list[float] = []
        refused, now = 0, clock()
        for key in cycle(mine):
            refused += not await hit(key)
            before, now = now, clock()
            took.append(now - before)
            if now >= began + seconds:
                break
        return took, refused

    parts = await asyncio.gather(*(one(keys[start::tasks]) for start in range(tasks)))
    elapsed, busy = clock() - began, time.process_time() - busy
    latencies = [t for took, _ in parts for t in took]
    cuts = quantiles(latencies, n=100) if len(latencies) > 1 else latencies * 99
    refused = sum(refused for _, refused in parts)
    hits = len(latencies)
    return Slice(hits, refused, hits / elapsed, busy / hits * 1e6, cuts[49] * 1e6, cuts[98] * 1e6)
