"""pyrate-limiter: one limiter, a bucket per key, trimmed by nobody during the run.

Over a server its `try_acquire` is awaited, which hands out the call without the one lock that
`try_acquire_async` holds across every round trip.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from inspect import isawaitable
from typing import Any

from pyrate_limiter import (
    AbstractBucket,
    BucketFactory,
    InMemoryBucket,
    Limiter,
    Rate,
    RateItem,
    RedisBucket,
)
from pyrate_limiter.abstracts.algorithm import GCRA
from pyrate_limiter.buckets.redis_bucket import LuaScript
from pyrate_limiter.buckets.redis_state import RedisStateStore
from pyrate_limiter.buckets.state_bucket import StateBucket
from redis.asyncio import Redis

from bench.core.contest import Contestant, Opened, Setup, second
from bench.core.contestants.pool import client

Make = Callable[[str], AbstractBucket]


class _PerKey(BucketFactory):
    """A bucket per name, made at its first use."""

    def __init__(self, make: Make) -> None:
        self._make = make
        self._buckets: dict[str, AbstractBucket] = {}
        self._now: Any = make("clock").now

    def wrap_item(self, name: str, weight: int = 1) -> RateItem:
        return RateItem(name, self._now(), weight)

    def get(self, item: RateItem) -> AbstractBucket:
        bucket = self._buckets.get(item.name)
        if bucket is None:
            bucket = self._buckets[item.name] = self._make(item.name)
        return bucket


async def _log(rates: list[Rate], redis: Redis | None) -> Make:
    if redis is None:
        return lambda _: InMemoryBucket(rates)
    sha = await redis.script_load(LuaScript.PUT_ITEM)
    return lambda key: RedisBucket(rates, redis, key, sha)


async def _gcra(rates: list[Rate], redis: Redis | None) -> Make:
    algorithm = GCRA()
    if redis is None:
        return lambda _: StateBucket(rates, algorithm)
    return lambda key: StateBucket(rates, algorithm, RedisStateStore(redis, key))


@asynccontextmanager
async def _opened(make: Callable[..., Awaitable[Make]], setup: Setup) -> Opened:
    redis = client(setup.url) if setup.url else None
    rates = [Rate(setup.limit, setup.period * 1000)]
    acquire = Limiter(_PerKey(await make(rates, redis))).try_acquire

    async def one(key: str) -> bool:
        got = acquire(key, blocking=False)
        return bool(await got if isawaitable(got) else got)

    async def two(key: str) -> bool:
        return await one(key) and await one(second(key))

    yield two if setup.two else one
    if redis is not None:
        await redis.aclose()


CONTESTANTS = (
    Contestant("pyrate-limiter GCRA", "pyrate-limiter", "bucket", partial(_opened, _gcra)),
    Contestant("pyrate-limiter log", "pyrate-limiter", "window", partial(_opened, _log)),
)
