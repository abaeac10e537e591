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


def test_a_call_that_was_rejected_pauses_and_goes_as_the_probe() -> None:
    """A 429 with its body, the fleet's pause, a probe, and one that waits behind it."""

    def rejecting_once() -> Any:
        left = [1]

        async def answer(request: httpx2.Request) -> httpx2.Response:
            left[0] -= 1
            if left[0] >= 0:
                return httpx2.Response(429, headers={"retry-after": "1"}, json={}, request=request)
            return httpx2.Response(200, json={"usage": {}}, request=request)

        return answer

    world = World(rejecting_once, attempts=2, queue_timeout="60s")

    async def call() -> None:
        first = asyncio.create_task(world.vendor.client.post("/chat/completions", json={}))
        await asyncio.sleep(0.5)
        try:
            await world.vendor.client.post("/chat/completions", json={})
            await first
        finally:
            first.cancel()
            await asyncio.wait((first,))

    assert world.check(call) >= 4


def test_a_costly_call_that_comes_to_a_small_booking() -> None:
    """A small booking left by its caller, booked anew for a costly one, the old given back."""
    world = World(profile="openai", quota=["60/min", "60000 tokens/min"], limiter_timeout="3s")

    async def call() -> None:
        post = world.vendor.client.post
        await post("/chat/completions", json={"max_tokens": 10})
        cheap = asyncio.create_task(post("/chat/completions", json={"max_tokens": 10}))
        await asyncio.sleep(0.1)
        costly = asyncio.create_task(post("/chat/completions", json={"max_tokens": 9000}))
        await asyncio.sleep(0.1)
        cheap.cancel()
        try:
            await costly
        finally:
            costly.cancel()
            await asyncio.wait((cheap, costly))

    assert world.check(call) >= 4


def test_a_booking_that_falls_due_for_nobody() -> None:
    """Its caller has left: slot and quota go back, and the next call finds them."""
    world = World(quota=["60/min"], slots=1)

    async def call() -> None:
        post = world.vendor.client.post
        await post("/chat/completions", json={})
        gone = asyncio.create_task(post("/chat/completions", json={}))
        await asyncio.sleep(0.1)
        gone.cancel()
        await asyncio.wait((gone,))
        await asyncio.sleep(2)
        await post("/chat/completions", json={})

    assert world.check(call) >= 4


def test_a_breakers_probe() -> None:
    """Open, half-open, a probe that is left: another takes its place."""

    def failing_twice() -> Any:
        left = [2]

        async def answer(request: httpx2.Request) -> httpx2.Response:
            left[0] -= 1
            return httpx2.Response(500 if left[0] >= 0 else 200, json={}, request=request)

        return answer

    world = World(failing_twice, breaker={"min_calls": 2, "open_for": "1s", "probes": 1})

    async def call() -> None:
        post = world.vendor.client.post
        for _ in range(2):
            await post("/chat/completions", json={})
        await asyncio.sleep(1.5)
        await post("/chat/completions", json={})

    assert world.check(call) >= 4


def test_the_harness_sees_a_grant_that_is_not_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: without the give-back of a cancelled waiter the same run is not clean."""
    monkeypatch.setattr(Grant, "give_back", lambda self: None)
    world = World()

    async def call() -> None:
        await world.vendor.client.post("/chat/completions", json={})

    with pytest.raises(NotClean):
        world.check(call)
