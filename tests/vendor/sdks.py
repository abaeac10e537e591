"""Both SDKs on one vendor that really enforces, behind the pipeline: the same questions to either."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import anthropic
import httpx2
import openai
from tests.vendor.conftest import House

from headworks.testing.fake_vendor import FakeVendor, Faults, InProcess
from headworks.testing.fake_vendor.judge import Limit
from headworks.vendor import Vendor

MESSAGES: Any = [{"role": "user", "content": "x" * 40}]
TOOLS: dict[str, Any] = {
    "openai": [{"type": "function", "function": {"name": "search", "parameters": {}}}],
    "anthropic": [{"name": "search", "input_schema": {"type": "object"}}],
}
ERRORS: dict[str, Any] = {"openai": openai, "anthropic": anthropic}


class Recorder(httpx2.AsyncBaseTransport):
    """In front of the fake vendor: what was sent to it, as it was sent."""

    def __init__(self, vendor: FakeVendor) -> None:
        self._inner = InProcess(vendor)
        self.requests: list[httpx2.Request] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        return await self._inner.handle_async_request(request)


@dataclass
class Side:
    """One SDK, its vendor, and the vendor's own count.

    name  "openai" or "anthropic"
    """

    name: str
    retries: int = 0
    limits: tuple[Limit, ...] = ()
    faults: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    timeout: float | None = None

    def __post_init__(self) -> None:
        self.house = House()
        self.fake = FakeVendor(self.limits, faults=Faults().changed(self.faults))
        self.house.server = self.recorder = Recorder(self.fake)  # type: ignore[assignment]  # in its place
        base_url = "https://vendor.example" + ("/v1" if self.name == "openai" else "")
        asked = {"quota": ["6000/min"], "base_url": base_url} | self.settings
        self.vendor: Vendor = self.house.vendor(profile=self.name, **asked)
        options: dict[str, Any] = {"api_key": "k", "max_retries": self.retries}
        if self.timeout is not None:
            options["timeout"] = self.timeout
        self.client: Any = (
            openai.AsyncOpenAI(base_url=base_url, http_client=self.vendor.client, **options)
            if self.name == "openai"
            else anthropic.AsyncAnthropic(base_url=base_url, http_client=self.vendor.client, **options)
        )

    @property
    def attempts(self) -> int:
        """Calls that arrived at the vendor."""
        return len(self.recorder.requests)

    def error(self, name: str) -> Any:
        return getattr(ERRORS[self.name], name)

    async def ask(self, **options: Any) -> Any:
        """One call; the SDK's own answer."""
        ask = {"model": "m", "messages": MESSAGES, "max_tokens": 24} | options
        if self.name == "openai":
            return await self.client.chat.completions.create(**ask)
        return await self.client.messages.create(**ask)

    async def stream(self, **options: Any) -> Any:
        return await self.ask(stream=True, **options)

    def text(self, answer: Any) -> str:
        found: str = (
            answer.choices[0].message.content if self.name == "openai" else answer.content[0].text
        )
        return found

    async def words(self, stream: Any) -> AsyncIterator[str]:
        """The words of a stream as they come."""
        async for event in stream:
            if self.name == "openai":
                if event.choices[0].delta.content:  # an empty `choices` would raise here
                    yield event.choices[0].delta.content
            elif event.type == "content_block_delta":
                yield event.delta.text

    async def corrections(self) -> dict[str, int]:
        """By how much each limited dimension was corrected after the calls, all reports heard."""
        await self.house.reaper.drain(1)
        found: dict[str, int] = {}
        for report in self.house.store.told:
            for correction in report.corrections:
                unit = correction.key.split(":")[-3]
                found[unit] = found.get(unit, 0) + correction.units
        return found

    def clean(self) -> bool:
        """Nothing is held: no slot, no call at the vendor."""
        return self.vendor.statistics().in_flight == 0 and self.fake.ledger.in_flight == 0
