"""The reference service, whole, in virtual time: its own policy, its own code, fake vendors beside it.

Only what a laptop without a store cannot have is changed: state is kept in this process, and the
vendors are called without sockets.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx2
import pytest

from headworks import Headworks
from headworks.policy.load import parse, read
from headworks.testing.fake_vendor import Delay, FakeVendor, Faults, InProcess, limit
from headworks.testing.fake_vendor.wire import WORDS

FOLDER = Path(__file__).parents[2] / "examples" / "service"
PRO = {"X-API-Key": "pro-1"}
SLOW = Faults(latency=Delay("const", 2.4))


@dataclass
class Running:
    """The service, a browser talking to it, and its two vendors."""

    module: ModuleType
    browser: httpx2.AsyncClient
    llm: FakeVendor
    search: FakeVendor

    async def chat(self, key: str, **more: Any) -> httpx2.Response:
        headers = {"X-API-Key": key} if key else {}
        return await self.browser.post("/chat", json={"message": "hi", **more}, headers=headers)


Run = Callable[..., AbstractAsyncContextManager[Running]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Starts the service; `quota` overrides the LLM's in the policy, the rest is about the vendors."""

    @asynccontextmanager
    async def running(
        *, quota: str = "", llm: FakeVendor | None = None, search: FakeVendor | None = None
    ) -> AsyncIterator[Running]:
        llm = llm or FakeVendor([limit("500/min"), limit("200000 tokens/min")])
        search = search or FakeVendor([limit("600/min")])
        transports = {"llm": InProcess(llm), "search": InProcess(search)}
        tables = read(FOLDER / "headworks.toml")
        del tables["store"]
        tables["deploy"]["replicas"] = 1
        if quota:
            tables["vendors"]["llm"]["quota"] = [quota]

        def in_this_process(path: Path | str, *, resolve: Any) -> Headworks:
            assert Path(path) == FOLDER / "headworks.toml"
            rng = random.Random(1)
            return Headworks(parse(tables, environ={}), resolve=resolve, transports=transports, rng=rng)

        monkeypatch.setattr(Headworks, "load", in_this_process)
        monkeypatch.delenv("HEADWORKS_POLICY", raising=False)
        module = _imported()
        transport = InProcess(module.app)
        async with (
            module.app.router.lifespan_context(module.app),
            httpx2.AsyncClient(transport=transport, base_url="http://service", timeout=70) as browser,
        ):
            yield Running(module, browser, llm, search)

    return running


def _imported() -> ModuleType:
    spec = importlib.util.spec_from_file_location("service_main", FOLDER / "main.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.openai._platform = "Linux"  # the SDK would ask a thread, and virtual time waits for none
    return module


async def test_chat_answers_through_the_sdk(run: Run) -> None:
    async with run() as service:
        answer = await service.chat("free-1")
        assert answer.status_code == 200
        assert answer.json() == {"reply": " ".join(WORDS)}
        assert service.llm.ledger.accepted == 1


async def test_the_eleventh_call_by_free_1_is_refused_and_free_2_is_served(run: Run) -> None:
    async with run() as service:
        for _ in range(10):
            assert (await service.chat("free-1")).status_code == 200
        eleventh = await service.chat("free-1")
        assert eleventh.status_code == 429
        assert 1 <= int(eleventh.headers["retry-after"]) <= 60
        assert "ratelimit" in eleventh.headers
        assert "ratelimit-policy" in eleventh.headers
        assert eleventh.headers["content-type"] == "application/problem+json"
        problem = eleventh.json()
        assert (problem["layer"], problem["reason"]) == ("fairness", "quota-exceeded")
        assert problem["limit"]
        assert (await service.chat("free-2")).status_code == 200
        assert service.llm.ledger.accepted == 11


async def test_invented_keys_share_the_limit_of_their_address(run: Run) -> None:
    async with run() as service:
        statuses = [(await service.chat(f"invented-{n}")).status_code for n in range(11)]
        assert statuses == [200] * 10 + [429]


async def test_a_stream_brings_the_words_one_by_one_and_one_terminal_event(run: Run) -> None:
    """2.4 seconds of latency, spread over the chunks: no two words come at the same moment."""
    async with run(llm=FakeVendor(faults=SLOW)) as service:
        times, events = [], []
        async with _stream(service) as response:
            assert response.status_code == 200
            assert response.headers["content-type"].startswith("text/event-stream")
            async for event in _events(response):
                events.append(event)
                times.append(asyncio.get_running_loop().time())
        *words, last = events
        assert last == ("done", {})
        assert "".join(data["text"] for _, data in words) == " ".join(WORDS)
        assert len(set(times[: len(words)])) == len(words) == len(WORDS)
        assert service.llm.ledger.streams_closed_early == 0


async def test_a_stream_that_the_vendor_cuts_ends_in_one_error_event(run: Run) -> None:
    async with run(llm=FakeVendor(faults=Faults(disconnect=5))) as service, _stream(service) as response:
        events = [event async for event in _events(response)]
    assert [name for name, _ in events[:-1]] == ["message"] * (len(events) - 1)
    name, problem = events[-1]
    assert (name, problem["layer"], problem["reason"]) == ("error", "vendor", "vendor-error")


async def test_a_browser_that_leaves_closes_the_vendors_stream(run: Run) -> None:
    async with run(llm=FakeVendor(faults=SLOW)) as service:
        async with _stream(service) as response:
            await anext(_events(response))
        await asyncio.sleep(0.05)
        assert service.llm.ledger.streams_closed_early == 1
        assert service.llm.ledger.in_flight == 0
        assert service.module.llm.statistics().in_flight == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_an_exhausted_vendor_quota_is_a_429_not_a_500(run: Run, stream: bool) -> None:
    async with run(quota="1/min") as service:
        assert (await service.chat("free-1", stream=stream)).status_code == 200
        refused = await service.chat("free-2", stream=stream)
        assert refused.status_code == 429
        assert (refused.json()["layer"], refused.json()["reason"]) == ("vendor", "vendor-quota")
        assert int(refused.headers["retry-after"]) > 3
        assert sum(service.llm.ledger.rejected.values()) == 0


async def test_a_429_of_the_vendors_own_is_a_429_too(run: Run) -> None:
    """The contract in the policy is wrong: the vendor allows less, and says so."""
    async with run(llm=FakeVendor([limit("1/min")])) as service:
        assert (await service.chat("free-1")).status_code == 200
        assert (await service.chat("free-2")).status_code in (429, 503)
        assert (await service.chat("free-3")).status_code in (429, 503)


async def test_analyze_makes_its_three_calls_at_once(run: Run) -> None:
    fast = Faults(latency=Delay("const", 1.0))
    async with run(llm=FakeVendor(faults=SLOW), search=FakeVendor(faults=fast)) as service:
        began = asyncio.get_running_loop().time()
        answer = await service.browser.post(
            "/analyze", json={"text": "ice"}, headers={"X-API-Key": "pro-1"}
        )
        took = asyncio.get_running_loop().time() - began
        assert answer.status_code == 200
        assert set(answer.json()) == {"summary", "mood", "related"}
        assert (service.llm.ledger.accepted, service.search.ledger.accepted) == (2, 1)
        assert took < 2 * 2.4


async def test_analyze_without_quota_is_a_429_not_a_500(run: Run) -> None:
    """A refusal out of a task group is a refusal still; the calls beside it are given up."""
    async with run(quota="1/min") as service:
        answer = await service.browser.post(
            "/analyze", json={"text": "ice"}, headers={"X-API-Key": "pro-1"}
        )
        assert answer.status_code == 429
        assert answer.json()["reason"] == "vendor-quota"
        await asyncio.sleep(0.05)
        assert service.llm.ledger.in_flight == service.search.ledger.in_flight == 0


async def test_search_goes_to_another_vendor_with_limits_of_its_own(run: Run) -> None:
    async with run() as service:
        answer = await service.browser.get(
            "/search", params={"q": "weir"}, headers={"X-API-Key": "pro-1"}
        )
        assert answer.status_code == 200
        assert answer.json()
        assert (service.llm.ledger.accepted, service.search.ledger.accepted) == (0, 1)


async def test_a_failing_vendor_is_a_502_that_names_it(run: Run) -> None:
    async with run(search=FakeVendor(faults=Faults(fail_ratio=1.0))) as service:
        answer = await service.browser.get(
            "/search", params={"q": "weir"}, headers={"X-API-Key": "pro-1"}
        )
        assert answer.status_code == 502
        assert (answer.json()["layer"], answer.json()["reason"]) == ("vendor", "vendor-error")


async def test_a_malformed_body_is_the_frameworks_422_and_still_counts(run: Run) -> None:
    async with run() as service:
        for _ in range(10):
            answer = await service.browser.post("/chat", content=b"{", headers={"X-API-Key": "free-1"})
            assert answer.status_code == 422
        answer = await service.browser.post("/chat", content=b"{", headers={"X-API-Key": "free-1"})
        assert answer.status_code == 429


async def test_the_page_needs_nothing_from_elsewhere(run: Run) -> None:
    async with run() as service:
        page = await service.browser.get("/")
        assert page.status_code == 200
        assert "<h1>" in page.text
        assert "http://" not in page.text
        assert "https://" not in page.text


async def test_the_table_of_keys_is_finite(run: Run) -> None:
    async with run() as service:
        tier_of_key = service.module.tier_of_key
        asked = ("free-1", "free-99", "free-100", "pro-9", "pro-10", "enterprise-3", "enterprise-4", "")
        tiers = [await tier_of_key(key) for key in asked]
        assert tiers == ["free", "free", None, "pro", None, "enterprise", None, None]


def _stream(service: Running) -> AbstractAsyncContextManager[httpx2.Response]:
    body = {"message": "hi", "stream": True}
    return service.browser.stream("POST", "/chat", json=body, headers=PRO)


async def _events(response: httpx2.Response) -> AsyncIterator[tuple[str, Any]]:
    """Server-sent events as (name, data), at the moment at which each is complete."""
    name = ""
    async for line in response.aiter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))
