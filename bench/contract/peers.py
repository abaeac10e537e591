"""Other limiters in the place of ours, in virtual time and at their best.

Ten pods share one state in memory, so nobody pays a round trip in time nor races over a network; what
would be one is counted. Each waits as its documentation says: by its own blocking call where it has
one, else by asking again every 100 ms, as the source design does.

    source design   a log of the last minute: count, then add, two trips, by each pod's clock
    limits          moving window, asked every 100 ms
    pyrate-limiter  its log in memory, asked again when it says
    throttled-py    its own wait, GCRA with the limit for a burst
    aiolimiter      a leaky bucket in each pod, quota ÷ pods, no state shared; its own wait
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from unittest import mock

from bench.contract.cells import PODS
from headworks.testing.loop import VirtualTimeLoop

POLL = 0.1
"""Seconds between two questions of who has to poll."""
TRIP = 0.0005
"""Seconds between counting and adding, where these are two trips."""

MOMENT = 1e-6
"""Seconds that a timer takes at least."""

Acquire = Callable[[int, int], Awaitable[bool]]
"""May pod n send a call of this cost? Waits as long as it is let; False when it may not."""


@contextmanager
def clocks() -> Iterator[None]:
    """Libraries read the running loop's time instead of the machine's, and none of their timers goes off
    before time has passed: who sets one for the rest that rounding left over would set it for ever."""
    timer = VirtualTimeLoop.call_at

    def now() -> float:
        return asyncio.get_running_loop().time()

    def later(self: VirtualTimeLoop, when: float, *call: Any, **context: Any) -> asyncio.TimerHandle:
        return timer(self, max(when, self.time() + MOMENT), *call, **context)

    with (
        mock.patch.object(time, "time", now),
        mock.patch.object(time, "monotonic", now),
        mock.patch.object(VirtualTimeLoop, "call_at", later),
    ):
        yield


class Peer:
    """One limiter shared by the pods; `trips` counts what would go to the store."""

    def __init__(self, kind: str, limit: int, period: float, timeout: float) -> None:
        self.trips = 0
        self._limit, self._period, self._timeout = limit, period, timeout
        self.acquire: Acquire = MAKE[kind](self)

    def source_design(self) -> Acquire:
        log: list[float] = []

        async def once(cost: int) -> bool:
            now = asyncio.get_running_loop().time()
            while log and log[0] <= now - self._period:
                del log[0]
            self.trips += 1
            free = self._limit - len(log)
            await asyncio.sleep(TRIP)
            if free < cost:
                return False
            self.trips += 1
            log.extend([now] * cost)
            return True

        return lambda pod, cost: self._polled(lambda: once(cost))

    def limits(self) -> Acquire:
        from limits.aio.storage import MemoryStorage
        from limits.aio.strategies import MovingWindowRateLimiter

        from limits import RateLimitItemPerSecond

        hit = MovingWindowRateLimiter(MemoryStorage()).hit
        item = RateLimitItemPerSecond(self._limit, round(self._period))

        async def once(cost: int) -> bool:
            self.trips += 1
            return await hit(item, "vendor", cost=cost)

        return lambda pod, cost: self._polled(lambda: once(cost))

    def pyrate(self) -> Acquire:
        from pyrate_limiter import InMemoryBucket, Rate, RateItem

        bucket = InMemoryBucket([Rate(self._limit, round(self._period * 1000))])

        async def once(cost: int) -> float:
            now = round(asyncio.get_running_loop().time() * 1000)
            self.trips += 1
            bucket.leak(now)
            item = RateItem("vendor", now, weight=cost)
            return 0.0 if bucket.put(item) else max(bucket.waiting(item) / 1000, 0.001)

        return lambda pod, cost: self._told(lambda: once(cost))

    def throttled(self) -> Acquire:
        from throttled.asyncio import MemoryStore, Throttled
        from throttled.asyncio.rate_limiter import per_duration

        quota = per_duration(timedelta(seconds=self._period), limit=self._limit, burst=self._limit)
        limit = Throttled(using="gcra", quota=quota, store=MemoryStore()).limit

        async def once(cost: int) -> float:
            self.trips += 1
            result = await limit("vendor", cost=cost, timeout=-1)
            return max(result.state.retry_after, 0.001) if result.limited else 0.0

        return lambda pod, cost: self._told(lambda: once(cost))

    def aiolimiter(self) -> Acquire:
        from aiolimiter import AsyncLimiter

        limiters = [AsyncLimiter(self._limit / PODS, self._period) for _ in range(PODS)]

        async def acquire(pod: int, cost: int) -> bool:
            try:
                async with asyncio.timeout(self._timeout):
                    await limiters[pod].acquire(cost)
            except TimeoutError:
                return False
            return True

        return acquire

    async def _polled(self, once: Callable[[], Awaitable[bool]]) -> bool:
        async def told() -> float:
            return 0.0 if await once() else POLL

        return await self._told(told)

    async def _told(self, once: Callable[[], Awaitable[float]]) -> bool:
        """Ask until the answer is 0; else it says in how many seconds to ask again."""
        clock = asyncio.get_running_loop()
        ends = clock.time() + self._timeout
        while again := await once():
            if clock.time() + again > ends:
                return False
            await asyncio.sleep(again)
        return True


MAKE: dict[str, Callable[[Peer], Acquire]] = {
    "another design": Peer.source_design,
    "limits": Peer.limits,
    "pyrate-limiter": Peer.pyrate,
    "throttled-py": Peer.throttled,
    "aiolimiter": Peer.aiolimiter,
}
