"""Calls of both SDKs, cancelled at every one of their awaits: nothing lost, nothing doubled."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.vendor.sdks import Side

from headworks.testing.cancel import cancel_at_every_await


class World:
    """One side, built anew for every run, with a store that takes its time."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.side: Side

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[None]:
        quota = {"quota": ["6000/min", "90000 tokens/min"]}
        self.side = Side(self.name, faults={"latency": "const:1s"}, settings=quota)
        self.side.house.store.round_trip = 0.01
        yield
        await self.side.vendor.aclose()
        await self.side.house.reaper.drain(1)

    def snapshot(self) -> object:
        now = self.side.vendor.statistics()
        in_flight = self.side.fake.ledger.in_flight
        return (now.waiting, now.booked, now.in_flight, now.free, in_flight)

    def check(self, scenario: Callable[[], Any]) -> int:
        return cancel_at_every_await(scenario, snapshot=self.snapshot, around=self, settle=10.0)


@pytest.mark.parametrize("name", ["openai", "anthropic"])
def test_a_stream_of_an_sdk_made_for_somebody_else(name: str) -> None:
    world = World(name)

    async def call() -> None:
        with world.side.vendor.as_("job", criticality="background"):
            async with await world.side.stream(max_tokens=3) as stream:
                async for _ in world.side.words(stream):
                    pass

    assert world.check(call) >= 4


@pytest.mark.parametrize("name", ["openai", "anthropic"])
def test_a_completion_with_a_timeout_of_its_own(name: str) -> None:
    world = World(name)

    async def call() -> None:
        await world.side.ask(timeout=5.0)

    assert world.check(call) >= 2
