"""headworks: one question, whatever the number of limits, built anew for every hit as a service does."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import asynccontextmanager
from functools import partial

from bench.core.contest import Contestant, Opened, Setup, second
from headworks.limits.shapes import Bucket, Shape, Window
from headworks.store.limiter import Limiter, Limits
from headworks.store.memory import MemoryStore
from headworks.store.protocol import Ask, Question, Store
from headworks.store.valkey import ValkeyStore


def store(setup: Setup, clock: Callable[[], int] | None = None) -> Store:
    return ValkeyStore(setup.url, clock=clock) if setup.url else MemoryStore(clock)


def bucket(setup: Setup) -> Shape:
    return Bucket.of(setup.limit, setup.period, burst=setup.limit)


def window(setup: Setup) -> Shape:
    return Window.of(setup.limit, setup.period)


@asynccontextmanager
async def _opened(
    shape_of: Callable[[Setup], Shape], setup: Setup, clock: Callable[[], int] | None = None
) -> Opened:
    asked, shape = store(setup, clock), shape_of(setup)
    ask = asked.ask

    async def one(key: str) -> bool:
        return (await ask(Question((Ask("user", key, shape),)))).allowed

    async def two(key: str) -> bool:
        asks = (Ask("user", key, shape), Ask("endpoint", second(key), shape))
        return (await ask(Question(asks))).allowed

    try:
        yield two if setup.two else one
    finally:
        await asked.aclose()


@asynccontextmanager
async def _by_itself(shape_of: Callable[[Setup], Shape], setup: Setup) -> Opened:
    asked, shape = store(setup), shape_of(setup)
    take = Limiter(asked, shape).take

    async def one(key: str) -> bool:
        return (await take(key)).allowed

    async def two(key: str) -> bool:
        return (await both(key)).allowed

    both = Limits(asked, {"user": shape, "chat": shape}).take
    try:
        yield two if setup.two else one
    finally:
        await asked.aclose()


BUCKET = Contestant("headworks bucket", "headworks", "bucket", partial(_opened, bucket))
WINDOW = Contestant("headworks window", "headworks", "window", partial(_opened, window))
CONTESTANTS = (BUCKET, WINDOW)
BY_ITSELF = (
    Contestant("headworks Limiter, bucket", "headworks", "bucket", partial(_by_itself, bucket)),
    Contestant("headworks Limiter, window", "headworks", "window", partial(_by_itself, window)),
)
"""The limiter that people use without the rest of headworks: it also names the key's limit."""


def on_a_clock(contestant: Contestant, clock: Callable[[], int]) -> Contestant:
    """The same, by a clock moved by hand (microseconds), so that hits can lie minutes apart."""
    opened = partial(_opened, {"bucket": bucket, "window": window}[contestant.shape], clock=clock)
    return Contestant(contestant.name, contestant.family, contestant.shape, opened)
