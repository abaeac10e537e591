"""throttled-py: its asyncio limiters; the memory store as large as the keys, or it would forget some."""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import Any

from throttled.asyncio import MemoryStore, RedisStore, Throttled
from throttled.asyncio.rate_limiter import per_duration

from bench.core.contest import Contestant, Opened, Setup, second
from bench.core.contestants.pool import CONNECTIONS

KEYS = 1_000_000


@asynccontextmanager
async def _opened(algorithm: str, setup: Setup) -> Opened:
    store: Any = (
        RedisStore(setup.url, options={"CONNECTION_POOL_KWARGS": {"max_connections": CONNECTIONS}})
        if setup.url
        else MemoryStore(options={"MAX_SIZE": KEYS})
    )
    quota = per_duration(timedelta(seconds=setup.period), limit=setup.limit, burst=setup.limit)
    limit = Throttled(using=algorithm, quota=quota, store=store).limit

    async def one(key: str) -> bool:
        return not (await limit(key)).limited

    async def two(key: str) -> bool:
        return not (await limit(key)).limited and not (await limit(second(key))).limited

    yield two if setup.two else one
    if setup.url:
        await store._backend.get_client().connection_pool.disconnect()  # it has no way to close


def _contestant(name: str, algorithm: str) -> Contestant:
    return Contestant(name, "throttled-py", "bucket", partial(_opened, algorithm))


CONTESTANTS = (
    _contestant("throttled-py GCRA", "gcra"),
    _contestant("throttled-py token bucket", "token_bucket"),
)
