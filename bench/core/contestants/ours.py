"""headworks: one question, whatever the number of limits.

By itself, as people use it who want nothing but a limiter: `Limiter.take`, and `Limits.take` for two
limits. As the layers use it, beside that in memory: a question built anew for every hit, `Store.ask`.
"""

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
async def _by_itself(shape_of: Callable[[Setup], Shape], setup: Setup) -> Opened:
    asked, shape = store(setup), shape_of(setup)
    take = Limiter(asked, shape).take
    both = Limits(asked, {"user": shape, "chat": shape}).take

    async def one(key: str) -> bool:
        return (await take(key)).allowed

    async def two(key: str) -> bool:
        return (await both(key)).allowed

    try:
        yield two if setup.two else one
    finally:
        await asked.aclose()


@asynccontextmanager
async def _as_a_layer(
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


SHAPES: dict[str, Callable[[Setup], Shape]] = {"bucket": bucket, "window": window}

CONTESTANTS = tuple(
    Contestant(f"headworks {shape}", "headworks", shape, partial(_by_itself, make))
    for shape, make in SHAPES.items()
)
AS_A_LAYER = tuple(
    Contestant(f"headworks Store.ask, {shape}", "headworks", shape, partial(_as_a_layer, make))
    for shape, make in SHAPES.items()
)


def on_a_clock(contestant: Contestant, clock: Callable[[], int]) -> Contestant:
    """The same state by a clock moved by hand (microseconds), so that hits can lie minutes apart, and
    under the caller's own key: `Limiter` adds its name to it, "{key}:limit"."""
    opened = partial(_as_a_layer, SHAPES[contestant.shape], clock=clock)
    return Contestant(contestant.name, contestant.family, contestant.shape, opened)
