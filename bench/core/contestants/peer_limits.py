"""limits: its asyncio storages, over redis-py (its default, coredis, measures slower)."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import (
    FixedWindowRateLimiter,
    MovingWindowRateLimiter,
    RateLimiter,
    SlidingWindowCounterRateLimiter,
)

from bench.core.contest import Contestant, Opened, Setup, second
from bench.core.contestants.pool import pool
from limits import RateLimitItemPerSecond


@asynccontextmanager
async def _opened(strategy: type[RateLimiter], setup: Setup) -> Opened:
    connections = pool(setup.url) if setup.url else None
    storage: Any = MemoryStorage()
    if connections:
        options: dict[str, Any] = {"implementation": "redispy", "connection_pool": connections}
        storage = RedisStorage(f"async+{setup.url}", **options)
    hit, item = strategy(storage).hit, RateLimitItemPerSecond(setup.limit, setup.period)

    async def one(key: str) -> bool:
        return await hit(item, key)

    async def two(key: str) -> bool:
        return await hit(item, key) and await hit(item, second(key))

    yield two if setup.two else one
    if connections:
        await connections.disconnect()


def _contestant(name: str, shape: str, strategy: type[RateLimiter]) -> Contestant:
    return Contestant(name, "limits", shape, partial(_opened, strategy))


FIXED = _contestant("limits fixed window", "counter", FixedWindowRateLimiter)
CONTESTANTS = (
    FIXED,
    _contestant("limits sliding counter", "counter", SlidingWindowCounterRateLimiter),
    _contestant("limits moving window", "window", MovingWindowRateLimiter),
)
