"""The service end to end, in virtual time: real application, real layers, a vendor that enforces.

Each scenario is one promise of one layer, as its user would see it. `test_end_to_end.py` runs them
with everything on; `test_layers_bite.py` switches the layer off and expects the same scenario to fail.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2
import openai
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from starlette.requests import Request

from headworks import Headworks
from headworks.policy.load import parse
from headworks.store.deny import DenyCache
from headworks.store.memory import MemoryStore
from headworks.store.protocol import Store
from headworks.testing.fake_vendor import FakeVendor, Faults, InProcess
from headworks.testing.fake_vendor.judge import Limit
from headworks.testing.recording import RecordingSink

MINUTE = 60_000_000
TIERS = {"free": "free", "pro": "pro", "enterprise": "enterprise"}

POLICY: dict[str, Any] = {
    "schema": 1,
    "service": {"name": "scenarios", "app": "none:none", "sla": "60s"},
    "admission": {"max_in_flight": 20},
    "fairness": {
        "default_tier": "free",
        "tiers": {
            "free": {"rate": "10/min", "class": "sheddable"},
            "pro": {"rate": "100000/min", "class": "default"},
            "enterprise": {"rate": "100000/min", "class": "critical"},
        },
        "endpoints": {"/narrow": "3/min"},
    },
    "deploy": {"image": "x:1", "replicas": 1, "port": 8000},
}
VENDOR: dict[str, Any] = {
    "profile": "generic",
    "base_url": "https://vendor.example/v1",
    "quota": ["600/min"],
    "slots": 10,
    "expected_latency": "1s",
    "queue_timeout": "5s",
    "limiter_timeout": "3s",
    "call_timeout": "10s",
    "attempts": 1,
    "connections": {"max": 50, "keepalive": 20},
    "timeouts": {"connect": "5s", "pool": "5s", "write": "5s", "read": "10s"},
}


async def tier_of(key: str) -> str | None:
    """`free-1` is free, `pro-7` is pro, and so on; anything else is a stranger."""
    return TIERS.get(key.split("-")[0])


@dataclass
class Service:
    """A protected application, its vendor, and whatever the scenario wants to look at."""

    works: Headworks
    app: FastAPI
    vendor: FakeVendor
    client: httpx2.AsyncClient
    sink: RecordingSink
    inside: int = 0
    highest: int = 0
    entered: Counter[str] = field(default_factory=Counter)

    async def get(self, path: str, key: str = "pro-1") -> httpx2.Response:
        return await self.client.get(path, headers={"x-api-key": key})

    async def statuses(self, path: str, key: str, count: int) -> Counter[int]:
        """So many requests at once; the answers by status."""
        answers = await asyncio.gather(*(self.get(path, key) for _ in range(count)))
        return Counter(answer.status_code for answer in answers)


@asynccontextmanager
async def service(
    *,
    limits: tuple[Limit, ...] = (),
    latency: str = "const:1s",
    jitter: str = "0:50ms",
    vendor: dict[str, Any] | None = None,
    store: Store | None = None,
    **policy: Any,
) -> AsyncIterator[Service]:
    """The service running, with this vendor behind it; sections of the policy as overrides."""
    table = {**POLICY, **policy, "vendors": {"llm": {**VENDOR, **(vendor or {})}}}
    fake = FakeVendor(limits, faults=Faults().changed({"latency": latency, "arrival_jitter": jitter}))
    sink = RecordingSink()
    works = Headworks(
        parse(table, "scenario", {}),
        resolve=tier_of,
        store=store,
        transports={"llm": InProcess(fake)},
        sinks=[sink],
        rng=random.Random(1),
    )
    app = works.protect(FastAPI())
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url="http://pod", timeout=None) as client:
        running = Service(works, app, fake, client, sink)
        _routes(running)
        async with app.router.lifespan_context(app):
            yield running


def _routes(running: Service) -> None:
    llm = running.works.vendor("llm")
    sdk = openai.AsyncOpenAI(base_url=llm.base_url, http_client=llm.client, api_key="k", max_retries=0)

    @running.app.get("/slow")
    async def slow(request: Request) -> str:
        running.inside += 1
        running.entered[request.headers.get("x-api-key", "")] += 1
        running.highest = max(running.highest, running.inside)
        try:
            await asyncio.sleep(5)
        finally:
            running.inside -= 1
        return "done"

    @running.app.get("/hang")
    async def hang() -> None:
        await asyncio.sleep(3600)

    @running.app.get("/endless")
    async def endless() -> StreamingResponse:
        async def events() -> AsyncIterator[str]:
            while True:
                yield "data: on\n\n"
                await asyncio.sleep(1)

        return StreamingResponse(events(), media_type="text/event-stream")

    @running.app.get("/quick")
    @running.app.get("/narrow")
    async def quick() -> str:
        return "done"

    @running.app.get("/chat")
    async def chat() -> str | None:
        answer = await sdk.chat.completions.create(
            model="gpt-fake", messages=[{"role": "user", "content": "hi"}], max_tokens=10
        )
        return answer.choices[0].message.content


# -- layer 2: health -------------------------------------------------------------------------------


async def a_pod_that_is_leaving_says_so_and_still_serves() -> None:
    async with service() as pod:
        assert (await pod.get("/ready")).status_code == 200
        pod.works._health.drain()
        answer = await pod.get("/ready")
        assert (answer.status_code, answer.json()["reasons"]) == (503, ["draining"])
        assert (await pod.get("/health")).status_code == 200
        assert (await pod.get("/quick")).status_code == 200


async def strangers_learn_nothing_from_the_probes() -> None:
    """Neither numbers nor reasons leave through the gateway; who scrapes from inside gets both."""
    passed_on = {"x-forwarded-for": "203.0.113.7"}
    async with service() as pod:
        await pod.get("/quick")
        for path, status in (("/metrics", 404), ("/ready", 200), ("/health", 200)):
            answer = await pod.client.get(path, headers=passed_on)
            assert answer.status_code == status
            assert "in_flight" not in answer.text
        assert "headworks_in_flight" in (await pod.get("/metrics")).text
        assert "in_flight" in (await pod.get("/ready")).json()


# -- layer 3: admission ----------------------------------------------------------------------------


async def a_burst_never_exceeds_what_the_pod_may_hold() -> None:
    async with service() as pod:
        await pod.get("/quick", "enterprise-1")  # now its class is known
        statuses = await pod.statuses("/slow", "enterprise-1", 200)
        assert pod.highest == 20
        assert statuses == {200: 20, 503: 180}
        assert (await pod.get("/health")).status_code == 200


async def the_less_critical_are_shed_first() -> None:
    async with service() as pod:
        for key in ("pro-1", "free-1"):
            await pod.get("/quick", key)  # the resolver's answer is cached: the class is known
        filling = [asyncio.create_task(pod.get("/slow", "pro-1")) for _ in range(18)]
        await asyncio.sleep(1)
        free, pro = await asyncio.gather(pod.get("/slow", "free-1"), pod.get("/slow", "pro-1"))
        await asyncio.gather(*filling)
        assert free.status_code == 503
        assert free.json()["reason"] == "load-shed"
        assert pro.status_code == 200


async def who_matters_most_gets_the_next_place() -> None:
    """A full pod with a line: the critical are served next, a flood of others is told at once."""
    async with service(admission={"max_in_flight": 20, "queue_timeout": "10s"}) as pod:
        for key in ("enterprise-1", "pro-1"):
            await pod.get("/quick", key)
        await pod.statuses("/slow", "pro-1", 20)  # now it knows for how long a place is held
        flood = [asyncio.create_task(pod.get("/slow", "pro-1")) for _ in range(200)]
        await asyncio.sleep(1)
        refused = sum(task.done() for task in flood)
        start = asyncio.get_running_loop().time()
        assert (await pod.get("/slow", "enterprise-1")).status_code == 200
        assert asyncio.get_running_loop().time() - start <= 10
        assert refused >= 100
        served = Counter(answer.status_code for answer in await asyncio.gather(*flood))
        assert served[200] >= 39
        assert pod.highest == 20


async def a_pod_short_of_memory_takes_only_the_critical() -> None:
    async with service(admission={"max_in_flight": 20, "memory_high": "1MiB"}) as pod:
        for key in ("enterprise-1", "pro-1"):
            await pod.get("/quick", key)
        await asyncio.sleep(5)
        assert (await pod.get("/quick", "pro-1")).status_code == 503
        assert (await pod.get("/quick", "enterprise-1")).status_code == 200


async def a_handler_that_hangs_is_answered_when_the_sla_is_spent() -> None:
    async with service() as pod:
        start = asyncio.get_running_loop().time()
        answer = await pod.get("/hang")
        assert answer.status_code == 504
        assert answer.json()["reason"] == "deadline-exceeded"
        assert asyncio.get_running_loop().time() - start <= 60.1


async def a_stream_that_outlasts_its_deadline_says_so_at_its_end() -> None:
    async with service() as pod:
        start = asyncio.get_running_loop().time()
        answer = await pod.get("/endless")
        assert asyncio.get_running_loop().time() - start <= 60.1
        last = answer.text.strip().rpartition("\n\n")[2]
        assert last.startswith("event: error")
        assert "deadline-exceeded" in last


async def a_caller_who_left_costs_the_vendor_nothing_more() -> None:
    async with service() as pod:
        pod.vendor.faults = pod.vendor.faults.changed({"hang": True})
        gone = asyncio.Event()
        asyncio.get_running_loop().call_later(2.0, gone.set)

        async def receive() -> dict[str, Any]:
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            pass

        scope = _scope("/chat")
        start = asyncio.get_running_loop().time()
        await pod.app(scope, receive, send)
        assert asyncio.get_running_loop().time() - start <= 2.1


def _scope(path: str) -> dict[str, Any]:
    """A GET as a server would hand it over."""
    return {
        "type": "http",
        "method": "GET",
        "http_version": "1.1",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"pod"), (b"x-api-key", b"pro-1")],
        "client": ("203.0.113.7", 1),
        "server": ("pod", 80),
    }


# -- layer 4: fairness -----------------------------------------------------------------------------


async def the_eleventh_is_refused_and_the_next_user_served() -> None:
    async with service() as pod:
        first = await pod.statuses("/quick", "free-1", 10)
        eleventh = await pod.get("/quick", "free-1")
        assert first == {200: 10}
        assert eleventh.status_code == 429
        assert (eleventh.json()["layer"], eleventh.json()["reason"]) == ("fairness", "quota-exceeded")
        assert 1 <= int(eleventh.headers["retry-after"]) <= 60
        assert "RateLimit" in eleventh.headers
        assert (await pod.get("/quick", "free-2")).status_code == 200


async def a_refusal_by_the_endpoint_burns_nothing_of_the_user() -> None:
    async with service() as pod:
        assert await pod.statuses("/narrow", "free-1", 15) == {200: 3, 429: 12}
        assert await pod.statuses("/quick", "free-1", 10) == {200: 7, 429: 3}


async def a_flooder_is_told_so_by_a_full_pod() -> None:
    async with service(store=DenyCache(MemoryStore())) as pod:
        assert await pod.statuses("/quick", "free-1", 11) == {200: 10, 429: 1}
        await pod.get("/quick", "enterprise-1")  # whose class is known from then on
        full = asyncio.gather(*(pod.get("/slow", "enterprise-1") for _ in range(20)))
        await asyncio.sleep(1)
        assert await pod.statuses("/quick", "pro-2", 1) == {503: 1}
        assert await pod.statuses("/quick", "free-1", 50) == {429: 50}
        assert {answer.status_code for answer in await full} == {200}


async def invented_keys_gain_nothing() -> None:
    async with service() as pod:
        answers = await asyncio.gather(*(pod.get("/quick", f"invented-{n}") for n in range(15)))
        assert Counter(a.status_code for a in answers) == {200: 10, 429: 5}


async def an_sdks_refusal_becomes_the_right_answer() -> None:
    """A handler that knows nothing of limits answers 429, not 500."""
    async with service(vendor={"quota": ["2/min"]}) as pod:
        assert (await pod.get("/chat")).status_code == 200
        answer = await pod.get("/chat")
        assert answer.status_code == 429
        assert (answer.json()["layer"], answer.json()["reason"]) == ("vendor", "vendor-quota")
        assert int(answer.headers["retry-after"]) > 5


# -- layer 5: the vendor ---------------------------------------------------------------------------


async def flood(pod: Service, keys: dict[str, float], seconds: float) -> dict[str, Counter[int]]:
    """Each key sends a chat every so many seconds; the answers by key and status."""
    answers: dict[str, Counter[int]] = {key: Counter() for key in keys}

    async def one(key: str) -> None:
        answers[key][(await pod.get("/chat", key)).status_code] += 1

    async def caller(key: str, every: float) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(round(seconds / every)):
                group.create_task(one(key))
                await asyncio.sleep(every)

    await asyncio.gather(*(caller(key, every) for key, every in keys.items()))
    return answers


async def the_vendors_quota_is_used_up_and_never_exceeded() -> None:
    limit = Limit("requests", 120, MINUTE, "sliding")
    roomy = {**POLICY["admission"], "max_in_flight": 500}
    async with service(limits=(limit,), vendor={"quota": ["120/min"]}, admission=roomy) as pod:
        answers = await flood(pod, {"pro-1": 0.25, "pro-2": 0.25}, 180)
        assert not pod.vendor.ledger.rejected
        served = sum(counter[200] for counter in answers.values())
        assert served >= 0.97 * 120 * 3


async def a_flooder_in_the_line_starves_nobody() -> None:
    roomy = {**POLICY["admission"], "max_in_flight": 500}
    async with service(vendor={"quota": ["120/min"]}, admission=roomy) as pod:
        answers = await flood(pod, {"pro-flooder": 0.05, "pro-polite": 2.0}, 40)
        assert answers["pro-polite"][200] >= 19


async def the_critical_overtake_in_the_line() -> None:
    roomy = {**POLICY["admission"], "max_in_flight": 500}
    async with service(vendor={"quota": ["120/min"]}, admission=roomy) as pod:
        await pod.get("/quick", "enterprise-1")
        flooders = {f"pro-{n}": 0.4 for n in range(10)}
        answers = await flood(pod, {**flooders, "enterprise-1": 0.7}, 30)
        assert answers["enterprise-1"][200] >= 0.95 * sum(answers["enterprise-1"].values())


async def no_more_calls_are_out_than_the_pod_has_slots() -> None:
    async with service(vendor={"quota": ["60000/min"], "slots": 4}) as pod:
        await pod.statuses("/chat", "enterprise-1", 20)
        assert pod.vendor.ledger.highest_in_flight <= 4


async def a_failing_vendor_is_left_alone() -> None:
    quick = {"breaker": {"min_calls": 5, "open_for": "60s"}, "quota": ["6000/min"]}
    async with service(latency="const:10ms", vendor=quick) as pod:
        pod.vendor.faults = pod.vendor.faults.changed({"fail_ratio": 1.0})
        answers: Counter[str] = Counter()
        for _ in range(50):
            answer = await pod.get("/chat")
            answers[answer.json()["reason"]] += 1
            await asyncio.sleep(0.2)
        assert pod.vendor.ledger.failed <= 10
        assert answers["vendor-open"] >= 40


async def a_vendor_that_hangs_is_given_up() -> None:
    async with service() as pod:
        pod.vendor.faults = pod.vendor.faults.changed({"hang": True})
        start = asyncio.get_running_loop().time()
        answer = await pod.get("/chat")
        assert (answer.status_code, answer.json()["reason"]) == (504, "call-timeout")
        assert asyncio.get_running_loop().time() - start <= 10.5


async def a_passing_failure_is_not_seen_by_the_caller() -> None:
    flaky = {"attempts": 3, "quota": ["6000/min"], "breaker": {"min_calls": 100_000}}
    async with service(latency="const:10ms", vendor=flaky) as pod:
        pod.vendor.faults = pod.vendor.faults.changed({"fail_ratio": 0.2})
        statuses: Counter[int] = Counter()
        for _ in range(100):
            statuses[(await pod.get("/chat")).status_code] += 1
        assert statuses[200] >= 95


async def a_smoothed_pod_never_bursts() -> None:
    smoothed = {"smoothing": "60/min", "quota": ["6000/min"], "profile": "openai"}
    async with service(latency="const:10ms", jitter="0:0ms", vendor=smoothed) as pod:
        start = asyncio.get_running_loop().time()
        assert await pod.statuses("/chat", "pro-1", 4) == {200: 4}
        assert asyncio.get_running_loop().time() - start >= 2.9


SCENARIOS = [
    a_pod_that_is_leaving_says_so_and_still_serves,
    strangers_learn_nothing_from_the_probes,
    a_burst_never_exceeds_what_the_pod_may_hold,
    the_less_critical_are_shed_first,
    who_matters_most_gets_the_next_place,
    a_pod_short_of_memory_takes_only_the_critical,
    a_handler_that_hangs_is_answered_when_the_sla_is_spent,
    a_stream_that_outlasts_its_deadline_says_so_at_its_end,
    a_caller_who_left_costs_the_vendor_nothing_more,
    the_eleventh_is_refused_and_the_next_user_served,
    a_refusal_by_the_endpoint_burns_nothing_of_the_user,
    a_flooder_is_told_so_by_a_full_pod,
    invented_keys_gain_nothing,
    an_sdks_refusal_becomes_the_right_answer,
    the_vendors_quota_is_used_up_and_never_exceeded,
    a_flooder_in_the_line_starves_nobody,
    the_critical_overtake_in_the_line,
    no_more_calls_are_out_than_the_pod_has_slots,
    a_failing_vendor_is_left_alone,
    a_vendor_that_hangs_is_given_up,
    a_passing_failure_is_not_seen_by_the_caller,
    a_smoothed_pod_never_bursts,
]
