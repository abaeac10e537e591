"""A vendor call cancelled at every one of its awaits, in every way: nothing lost, nothing doubled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from tests.vendor.conftest import House
from tests.vendor.test_sdks import Events, streaming

from headworks.testing.cancel import NotClean, cancel_at_every_await
from headworks.vendor import Vendor
from headworks.vendor.grant import Grant


class World:
    """A house and its vendor, built anew for every run."""

    def __init__(self, answer: Callable[[], Any] | None = None, **settings: Any) -> None:
        self.answer, self.settings = answer, settings
        self.house: House
        self.vendor: Vendor

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[None]:
        self.house = House()
        self.house.store.round_trip = 0.01
        self.house.server.latency = 0.2
        if self.answer is not None:
            self.house.server.answer = self.answer()
        self.vendor = self.house.vendor(**self.settings)
        yield
        await self.vendor.aclose()
        await self.house.reaper.drain(1)

    def snapshot(self) -> object:
        now = self.vendor.statistics()
        return (now.waiting, now.booked, now.in_flight, now.free, self.house.server.in_flight)

    def check(self, scenario: Callable[[], Any]) -> int:
        return cancel_at_every_await(scenario, snapshot=self.snapshot, around=self, settle=10.0)


def test_a_plain_call() -> None:
    """From the line to the last byte, the store's round trip included."""
    world = World()

    async def call() -> None:
        await world.vendor.client.post("/chat/completions", json={})

    assert world.check(call) >= 2


def test_a_call_that_waits_behind_another_and_is_retried() -> None:
    """Line, slot, back-off and a second attempt."""
    world = World(lambda: fail, slots=1, attempts=2, expected_latency="1s")

    async def fail(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(503, request=request)

    async def call() -> None:
        first = asyncio.create_task(world.vendor.client.post("/chat/completions", json={}))
        try:
            await world.vendor.client.post("/chat/completions", json={})
        finally:
            first.cancel()
            await asyncio.wait((first,))

    assert world.check(call) >= 4


def test_a_stream_read_to_its_middle() -> None:
    """The slot lives until the stream is closed, whoever closes it."""
    world = World(lambda: streaming(Events()))

    async def call() -> None:
        async with world.vendor.client.stream("POST", "/chat/completions", json={}) as response:
            number = 0
            async for _ in response.aiter_bytes():
                number += 1
                if number == 3:
                    break

    assert world.check(call) >= 4


def test_a_block_around_another_client() -> None:
    world = World()

    async def call() -> None:
        async with world.vendor.call(tokens=10) as held:
            await asyncio.sleep(0.1)
            held.settle(tokens=5)

    assert world.check(call) >= 2


def test_the_harness_sees_a_grant_that_is_not_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: without the give-back of a cancelled waiter the same run is not clean."""
    monkeypatch.setattr(Grant, "give_back", lambda self: None)
    world = World()

    async def call() -> None:
        await world.vendor.client.post("/chat/completions", json={})

    with pytest.raises(NotClean):
        world.check(call)
