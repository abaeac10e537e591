"""A booking over a real server, cancelled at every await: no token is lost, and none is given twice.

Time is virtual, and the server is asked in between, as if by a wire with a delay. The reference is a
store in memory that is told only what stands in the end.
"""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from headworks.limits.shapes import Bucket, Shape, Window
from headworks.store import forms
from headworks.store.batch import Argument, GiveUp, posted
from headworks.store.ladder import LadderStore
from headworks.store.limiter import Limiter
from headworks.store.memory import MemoryStore
from headworks.store.protocol import Ask, Question, Receiver
from headworks.store.scripts import Script, script
from headworks.store.valkey import ValkeyStore
from headworks.testing.cancel import NotClean, cancel_at_every_await

START = 1_764_000_000_000_000
DELAY = 0.01
"""Seconds that a question is on its way, and an answer on its way back."""


def clock() -> int:
    return START + round(asyncio.get_running_loop().time() * 1_000_000)


class Wire:
    """A `Link` to a real server, in virtual time; `calls` counts them."""

    def __init__(self, client: Any, delay: float = DELAY) -> None:
        self._client, self._delay, self.calls = client, delay, 0

    def post(self, script: Script, keys: Sequence[Any], args: Sequence[Any], to: Receiver) -> GiveUp:
        return posted(self._run(script, keys, args), to)

    async def _run(self, script: Script, keys: Sequence[str | bytes], args: Sequence[Argument]) -> Any:
        self.calls += 1
        await asyncio.sleep(self._delay)
        reply = self._client.eval(script.source, len(keys), *keys, *args)
        await asyncio.sleep(self._delay)
        return reply

    def slot(self, key: str) -> int | None:
        return None

    async def aclose(self) -> None:
        """Nothing is open."""


class World:
    """A limit of ten of which five are taken, on the server and in the reference."""

    def __init__(self, client: Any, shape: Shape) -> None:
        self.client, self.shape = client, shape
        self.limiter: Limiter
        self.reference: MemoryStore

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[None]:
        self.client.flushall()
        wire = ValkeyStore(Wire(self.client), clock=clock)
        store = LadderStore(wire, rng=random.Random(1))
        self.limiter = Limiter(store, self.shape)
        self.reference = MemoryStore(clock)
        self.reference.ask_nowait(self._question(5))
        await self.limiter.take("k", 5)
        yield
        await self.limiter.aclose()
        await store.aclose()

    def _question(self, cost: int) -> Question:
        return Question((Ask("limit", "{k}:limit", self.shape, cost),))

    def snapshot(self) -> object:
        """By how much the server and the reference differ: never at all."""
        keys: list[str] = []
        arguments: list[Argument] = [clock()]
        peek = self._question(0)
        forms.Forms().question(peek, keys, arguments)
        decide = script("decide", "clock", "shapes", "gate")
        (packed,) = self.client.eval(decide.source, len(keys), *keys, *arguments)
        verdict, _ = forms.verdict(peek, struct.unpack(f"<{len(packed) // 8}q", packed), 1)
        expected = self.reference.ask_nowait(peek)
        return verdict.limits[0].remaining - expected.limits[0].remaining

    def check(self, scenario: Callable[[], Awaitable[object]]) -> int:
        return cancel_at_every_await(scenario, snapshot=self.snapshot, around=self, timeout=36_000)


SHAPES = [Window.of(10, 3600), Window.of(50, 3600), Bucket.of(10, 36_000, burst=10)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cost", [2, 7])
def test_a_booking_that_is_given_up_leaves_nothing(server: Any, shape: Shape, cost: int) -> None:
    """Two are there at once; for seven it has to wait."""
    world = World(server.client, shape)

    async def book_and_give_back() -> None:
        verdict = await world.limiter.wait("k", cost, timeout=10_000)
        assert verdict.allowed
        assert not verdict.degraded
        await world.limiter.give_back("k", verdict, cost)

    assert world.check(book_and_give_back) >= 2


def test_nor_does_it_take_from_those_it_travelled_with(server: Any) -> None:
    """Three in one call; the second is cancelled everywhere, the others keep what they have."""
    world = World(server.client, SHAPES[0])

    async def three() -> None:
        others = [asyncio.create_task(world.limiter.take("k", 1)) for _ in range(2)]
        try:
            verdict = await world.limiter.wait("k", 2, timeout=0)
            await world.limiter.give_back("k", verdict, 2)
        finally:
            for other in others:
                other.add_done_callback(lambda done: world.reference.ask_nowait(world._question(1)))

    assert world.check(three) >= 2


def test_without_giving_back_it_is_not_clean(server: Any) -> None:
    """The control."""
    world = World(server.client, SHAPES[0])

    async def book() -> None:
        await world.limiter._store.ask(world._question(2))

    with pytest.raises(NotClean):
        world.check(book)
