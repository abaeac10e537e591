"""A vendor on the in-process store, with a scripted server behind it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx2
import pytest

from headworks.cleanup import Reaper
from headworks.clock import OneLoop
from headworks.policy.profiles import profile_named
from headworks.policy.vendor_settings import VendorSettings
from headworks.store.memory import MemoryStore
from headworks.store.protocol import Question, Report, Standing, Store
from headworks.telemetry import Telemetry
from headworks.testing.recording import RecordingSink
from headworks.vendor import Vendor
from headworks.verdict import Verdict

Answer = Callable[[httpx2.Request], Awaitable[httpx2.Response]]


@dataclass
class Server(httpx2.AsyncBaseTransport):
    """A vendor's server: answers after `latency` seconds, and remembers when it was called."""

    latency: float = 0.0
    answer: Answer | None = None
    arrivals: list[float] = field(default_factory=list)
    requests: list[httpx2.Request] = field(default_factory=list)
    in_flight: int = 0
    highest: int = 0

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.arrivals.append(asyncio.get_running_loop().time())
        self.requests.append(request)
        self.in_flight += 1
        self.highest = max(self.highest, self.in_flight)
        try:
            if self.latency:
                await asyncio.sleep(self.latency)
            if self.answer is not None:
                return await self.answer(request)
            return httpx2.Response(200, json={"usage": {}}, request=request)
        finally:
            self.in_flight -= 1


class CountingStore(MemoryStore):
    """The in-process store, counting questions and keeping them."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Question] = []
        self.told: list[Report] = []
        self.round_trip = 0.0

    async def ask(self, question: Question) -> Verdict:
        self.asked.append(question)
        if self.round_trip:
            await asyncio.sleep(self.round_trip)
        return await super().ask(question)

    async def report(self, report: Report) -> Standing:
        self.told.append(report)
        return await super().report(report)


@dataclass
class House:
    """Everything around a vendor that a test may want to look at."""

    store: CountingStore = field(default_factory=CountingStore)
    server: Server = field(default_factory=Server)
    sink: RecordingSink = field(default_factory=RecordingSink)
    reaper: Reaper = field(default_factory=Reaper)
    home: OneLoop = field(default_factory=OneLoop)

    def vendor(
        self,
        *,
        profile: str = "generic",
        pod: str = "pod-1",
        replicas: int = 1,
        store: Store | None = None,
        now: Callable[[], datetime] = lambda: datetime(2026, 1, 1, tzinfo=UTC),
        **settings: Any,
    ) -> Vendor:
        """A vendor on this house's store and server; settings as in the policy."""
        table = {"base_url": "https://vendor.example/v1", "quota": ["600/min"], "attempts": 1} | settings
        return Vendor(
            "llm",
            VendorSettings.model_validate(table | {"profile": profile}),
            profile_named(profile),
            store=self.store if store is None else store,
            telemetry=Telemetry(self.sink),
            reaper=self.reaper,
            home=self.home,
            pod=pod,
            replicas=replicas,
            rng=random.Random(7),
            now=now,
            transport=self.server,
        )


@pytest.fixture
def house() -> House:
    return House()
