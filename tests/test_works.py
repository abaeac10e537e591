"""The whole way in, in virtual time: policy in, an application protected, requests through it."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import openai
import pytest
from fastapi import APIRouter, FastAPI
from fastapi.responses import StreamingResponse
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from headworks import Headworks, PolicyError
from headworks.current import Criticality, current
from headworks.errors import DeadlineExceeded, QuotaExceeded, VendorOpen, VendorQuota
from headworks.fairness.gate import Ticket
from headworks.health import PortTaken
from headworks.local.probe import free_ports
from headworks.policy.load import parse
from headworks.store.memory import MemoryStore
from headworks.store.protocol import Question
from headworks.telemetry import Decided, Served
from headworks.testing.loop import run
from headworks.testing.recording import RecordingSink
from headworks.verdict import Verdict

POLICY: dict[str, Any] = {
    "schema": 1,
    "service": {"name": "svc", "sla": "60s", "trust": ["10.0.0.0/8"]},
    "admission": {"max_in_flight": 10},
    "fairness": {
        "default_tier": "free",
        "tiers": {
            "free": {"rate": "10/min", "class": "sheddable"},
            "pro": {"rate": "100/min"},
            "bursty": {"rate": "60/min burst 3"},
        },
        "keys": {"free-1": "free", "free-2": "free", "pro-1": "pro", "pro-2": "pro", "b-1": "bursty"},
        "endpoints": {
            "/chat": "3/min",
            "/a/items/{item_id:int}": "2/min",
            "/b/items/{item_id:int}": "2/min",
            "/together": {"rate": "3/min", "scope": "all"},
        },
    },
}

INSIDE = "10.0.0.1"
"""An address of those who may see metrics and reasons."""


class CountingStore(MemoryStore):
    """A memory that remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.questions: list[Question] = []

    async def ask(self, question: Question) -> Verdict:
        self.questions.append(question)
        return await super().ask(question)


class Service:
    """A protected application and its works; `client` talks to it from an address."""

    def __init__(self, app: Any = None, policy: dict[str, Any] | None = None, **options: Any) -> None:
        self.sink, self.store = RecordingSink(), CountingStore()
        chosen = parse(POLICY | (policy or {}), "test", {})
        self.works = Headworks(chosen, store=self.store, sinks=[self.sink], pod="pod-1", **options)
        self.app = self.works.protect(app if app is not None else FastAPI())

    def client(self, address: str = "203.0.113.7", key: str = "") -> httpx2.AsyncClient:
        transport = httpx2.ASGITransport(app=self.app, client=(address, 1))
        headers = {"X-API-Key": key} if key else {}
        return httpx2.AsyncClient(transport=transport, base_url="http://svc", headers=headers)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with self.app.router.lifespan_context(self.app):
            yield


def chat_service(**options: Any) -> Service:
    service = Service(**options)

    @service.app.get("/hello")
    async def hello() -> str:
        return "hello"

    @service.app.post("/chat")
    async def chat(payload: dict[str, Any]) -> dict[str, Any]:
        return payload

    return service


async def test_the_eleventh_request_is_refused_and_the_next_user_served() -> None:
    """429 with Retry-After, RateLimit fields and a problem body that names layer and limit."""
    service = chat_service()
    async with service.client(key="free-1") as client:
        answers = [await client.get("/hello") for _ in range(11)]
    assert [answer.status_code for answer in answers] == [200] * 10 + [429]
    last = answers[-1]
    assert last.headers["content-type"] == "application/problem+json"
    assert int(last.headers["retry-after"]) == 60
    assert last.headers["ratelimit-policy"] == '"tier:free";q=10;w=60'
    assert last.headers["ratelimit"] == '"tier:free";r=0;t=60'
    problem = last.json()
    assert (problem["layer"], problem["reason"]) == ("fairness", "quota-exceeded")
    assert problem["limit"] == "tier:free"
    async with service.client(key="free-2") as client:
        assert (await client.get("/hello")).status_code == 200


async def test_waiting_as_long_as_told_is_long_enough() -> None:
    service = chat_service()
    async with service.client(key="free-1") as client:
        for _ in range(10):
            await client.get("/hello")
        wait = (await client.get("/hello")).json()["retry_after"]
        await asyncio.sleep(wait)
        assert (await client.get("/hello")).status_code == 200


async def test_a_served_answer_tells_the_same_limits() -> None:
    """Both limits of the route, from the verdict that admitted it."""
    service = chat_service()
    async with service.client(key="pro-1") as client:
        answer = await client.post("/chat", json={})
    assert answer.headers.get_list("ratelimit-policy") == [
        '"tier:pro";q=100;w=60, "endpoint:/chat";q=3;w=60'
    ]
    assert answer.headers["ratelimit"].startswith('"tier:pro";r=99;')
    assert "retry-after" not in answer.headers
    assert len(service.store.questions) == 1


async def test_an_application_that_tells_limits_itself_does_not_double_them() -> None:
    service = Service()

    @service.app.get("/own")
    async def own() -> PlainTextResponse:
        return PlainTextResponse("ok", headers={"RateLimit": '"mine";r=1;t=1', "X-Other": "stays"})

    async with service.client(key="pro-1") as client:
        answer = await client.get("/own")
    (told,) = answer.headers.get_list("ratelimit")
    assert told.startswith('"tier:pro";r=99;')
    assert answer.headers["x-other"] == "stays"


async def test_an_endpoint_in_a_thread_is_limited_as_any_other() -> None:
    service = Service()

    @service.app.get("/thread")
    def thread() -> str:
        return "done"

    async with service.client(key="free-1") as client:
        statuses = [(await client.get("/thread")).status_code for _ in range(11)]
    assert statuses == [200] * 10 + [429]


async def test_callers_of_different_tiers_at_the_same_time_are_each_told_their_own() -> None:
    """Nothing of a request is kept on an object that requests share."""
    service = chat_service()
    async with service.client(key="pro-1") as pro, service.client(key="b-1") as bursty:
        calls = [client.get("/hello") for _ in range(20) for client in (pro, bursty)]
        answers = await asyncio.gather(*calls)
    rules = [answer.headers["ratelimit-policy"].partition(";")[0] for answer in answers]
    assert rules == ['"tier:pro"', '"tier:bursty"'] * 20


async def test_a_refusal_by_the_endpoint_burns_nothing_of_the_user() -> None:
    """One question, all or nothing."""
    service = chat_service()
    async with service.client(key="free-1") as client:
        chats = [(await client.post("/chat", json={})).status_code for _ in range(8)]
        others = [(await client.get("/hello")).status_code for _ in range(8)]
    assert chats == [200] * 3 + [429] * 5
    assert others == [200] * 7 + [429]


async def test_included_routers_are_limited_apart_and_for_what_they_are() -> None:
    """The same router under two prefixes has two limits; parameters share one."""
    service = Service()
    router = APIRouter()

    @router.get("/items/{item_id}")
    async def item(item_id: int) -> int:
        return item_id

    service.app.include_router(router, prefix="/a")
    service.app.include_router(router, prefix="/b")
    async with service.client(key="pro-1") as client:
        first = [(await client.get(f"/a/items/{number}")).status_code for number in range(3)]
        second = [(await client.get(f"/b/items/{number}")).status_code for number in range(3)]
    assert first == second == [200, 200, 429]


async def test_a_ceiling_for_all_users_together() -> None:
    service = Service()

    @service.app.get("/together")
    async def together() -> int:
        return 1

    statuses = []
    for key in ("pro-1", "pro-2", "free-1", "free-2"):
        async with service.client(key=key) as client:
            statuses.append((await client.get("/together")).status_code)
    assert statuses == [200, 200, 200, 429]


async def test_a_bucket_lets_its_burst_through_and_no_more() -> None:
    """ "60/min burst 3": three at once, then one a second."""
    service = chat_service()
    async with service.client(key="b-1") as client:
        assert [(await client.get("/hello")).status_code for _ in range(4)] == [200, 200, 200, 429]
        await asyncio.sleep(1.0)
        assert [(await client.get("/hello")).status_code for _ in range(2)] == [200, 429]


async def test_inventing_keys_or_addresses_gains_nothing() -> None:
    """Unknown keys count by address; a spoofed X-Forwarded-For from outside changes no address."""
    service = chat_service()
    async with service.client() as client:
        statuses = [
            (
                await client.get(
                    "/hello",
                    headers={"X-API-Key": f"invented-{n}", "X-Forwarded-For": f"198.51.100.{n}"},
                )
            ).status_code
            for n in range(12)
        ]
    assert statuses == [200] * 10 + [429] * 2


async def test_behind_the_gateway_clients_are_told_apart() -> None:
    """The gateway's peer address is trusted, so the address it saw counts."""
    service = chat_service()
    async with service.client("10.0.0.2") as client:
        for number in range(12):
            answer = await client.get("/hello", headers={"X-Forwarded-For": f"198.51.100.{number}"})
            assert answer.status_code == 200


async def test_malformed_json_is_the_framework_s_422_after_the_limits() -> None:
    service = chat_service()
    async with service.client(key="pro-1") as client:
        statuses = [(await client.post("/chat", content=b"{not json")).status_code for _ in range(4)]
    assert statuses == [422, 422, 422, 429]


async def test_the_order_of_the_way_in() -> None:
    """Admission, then fairness, then the application; outside of all of them, probes."""
    order: list[str] = []

    class Step:
        def __init__(self, app: Any, name: str) -> None:
            self.app, self.name = app, name

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            order.append(self.name)
            await self.app(scope, receive, send)

    class Sink:
        def record(self, event: Any) -> None:
            if isinstance(event, Decided):
                order.append(event.layer)

    app = FastAPI(middleware=[Middleware(Step, name="added before")])
    service = Service(app)
    service.works.telemetry.add(Sink())
    app.add_middleware(Step, name="added after")

    @app.get("/hello")
    async def hello() -> str:
        order.append("handler")
        return "hello"

    async with service.client() as client:
        await client.get("/hello")
        assert order == ["admission", "added after", "added before", "fairness", "handler"]
        order.clear()
        assert (await client.get("/health")).status_code == 200
        assert order == []


async def test_refusals_carry_cors_headers_and_preflights_ask_no_limits() -> None:
    """A browser can read why it was refused."""
    service = chat_service()
    service.app.add_middleware(CORSMiddleware, allow_origins=["https://ui.example"], allow_methods=["*"])
    origin = {"Origin": "https://ui.example"}
    async with service.client(key="pro-1") as client:
        preflight = await client.options(
            "/chat", headers=origin | {"Access-Control-Request-Method": "POST"}
        )
        answers = [await client.post("/chat", json={}, headers=origin) for _ in range(4)]
    assert preflight.status_code == 200
    assert answers[-1].status_code == 429
    assert answers[-1].headers["access-control-allow-origin"] == "https://ui.example"
    assert len(service.store.questions) == 4


async def test_a_preflight_the_application_answers_itself_asks_no_limits() -> None:
    service = chat_service()
    headers = {"Origin": "https://ui.example", "Access-Control-Request-Method": "POST"}
    async with service.client() as client:
        for _ in range(20):
            assert (await client.options("/chat", headers=headers)).status_code == 405
        assert service.store.questions == []
        await client.options("/chat")
        assert len(service.store.questions) == 1


async def test_the_application_is_not_woken_for_a_full_pod() -> None:
    """Ten in flight, the eleventh is 503 from admission, and probes still answer."""
    service, go = Service(), asyncio.Event()

    @service.app.get("/slow")
    async def slow() -> int:
        await go.wait()
        return 1

    async with service.client(key="pro-1") as client:
        held = [asyncio.create_task(client.get("/slow")) for _ in range(10)]
        await asyncio.sleep(1)
        refused = await client.get("/slow")
        assert (refused.status_code, refused.json()["reason"]) == (503, "pod-saturated")
        assert len(service.store.questions) == 10
        assert (await client.get("/health")).status_code == 200
        go.set()
        assert [(await task).status_code for task in held] == [200] * 10


async def test_an_endless_handler_is_answered_504() -> None:
    service = Service()

    @service.app.get("/endless")
    async def endless() -> None:
        await asyncio.sleep(3600)

    async with service.client() as client:
        answer = await client.get("/endless")
    assert (answer.status_code, answer.json()["reason"]) == (504, "deadline-exceeded")


def sdk_error(status: int, refused: Any) -> openai.APIStatusError:
    request = httpx2.Request("POST", "https://vendor.example/v1")
    response = httpx2.Response(status, request=request, extensions={"headworks.refused": refused})
    return openai.RateLimitError("no", response=response, body=None)


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (sdk_error(429, VendorQuota(retry_after=7.2)), 429, "vendor-quota"),
        (sdk_error(503, VendorOpen(retry_after=7.2)), 503, "vendor-open"),
        (VendorOpen(retry_after=7.2), 503, "vendor-open"),
        (ExceptionGroup("fan-out", [VendorQuota(retry_after=7.2)]), 429, "vendor-quota"),
        (DeadlineExceeded(retry_after=7.2), 504, "deadline-exceeded"),
    ],
)
async def test_an_unhandled_refusal_is_the_right_answer_and_no_500(
    error: Exception, status: int, reason: str
) -> None:
    """An unmodified SDK handler whose vendor quota is exhausted answers its client 429."""
    service = Service()

    @service.app.get("/vendor")
    async def vendor() -> None:
        raise error

    async with service.client() as client:
        answer = await client.get("/vendor")
    assert (answer.status_code, answer.json()["reason"]) == (status, reason)
    assert answer.headers["retry-after"] == "8"
    assert answer.headers["ratelimit"].startswith('"tier:free";r=9')


async def test_a_defect_stays_a_500_and_a_handled_error_stays_the_application_s() -> None:
    """We translate refusals that escape, nothing else."""
    service = Service()

    @service.app.get("/defect")
    async def defect() -> None:
        raise KeyError("bug")

    @service.app.get("/handled")
    async def handled() -> None:
        raise sdk_error(429, VendorQuota())

    @service.app.exception_handler(openai.RateLimitError)
    async def theirs(request: Any, error: Exception) -> PlainTextResponse:
        return PlainTextResponse("sorry", status_code=418)

    transport = httpx2.ASGITransport(app=service.app, raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url="http://svc") as client:
        assert (await client.get("/defect")).status_code == 500
        assert (await client.get("/handled")).status_code == 418


async def test_a_stream_carries_its_limits_once_and_an_error_in_it_is_not_answered_twice() -> None:
    """One start, one set of fields; after the start a refusal is raised on, not answered."""
    service = Service()

    async def chunks(fail: bool) -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"chunk"
        if fail:
            raise VendorOpen

    @service.app.get("/stream")
    async def stream(fail: bool = False) -> StreamingResponse:
        return StreamingResponse(chunks(fail))

    async with service.client(key="pro-1") as client:
        answer = await client.get("/stream")
        assert answer.content == b"chunk" * 3
        assert len(answer.headers.get_list("ratelimit")) == 1
        with pytest.raises(VendorOpen):
            await client.get("/stream?fail=true")


async def test_markers_and_explicit_charges() -> None:
    """cost(5) takes five, limit("3/min") adds a limit, charge(n) takes n more or refuses whole."""
    service = Service()
    works = service.works

    @service.app.get("/dear")
    @works.cost(5)
    async def dear() -> int:
        return 1

    @service.app.get("/rare")
    @works.limit("2/min")
    async def rare() -> int:
        return 1

    @service.app.get("/charge/{units}")
    async def charge(units: int) -> int:
        await works.charge(units)
        return units

    async with service.client(key="free-1") as client:
        assert [(await client.get("/dear")).status_code for _ in range(3)] == [200, 200, 429]
    async with service.client(key="free-2") as client:
        assert [(await client.get("/rare")).status_code for _ in range(3)] == [200, 200, 429]
        refused = await client.get("/charge/8")  # 3 taken, 8 more do not fit
        assert (refused.status_code, refused.json()["limit"]) == (429, "tier:free")
        served = await client.get("/charge/6")  # 3 taken, then one and six more do fit
        assert served.status_code == 200
        assert served.headers["ratelimit"].startswith('"tier:free";r=0;')
    with pytest.raises(RuntimeError, match="request"):
        await works.charge(1)
    with pytest.raises(ValueError, match="whole number"):
        await _inside(works, -1)


async def _inside(works: Headworks, units: int) -> None:
    token = works._fairness.ticket.set(Ticket())
    try:
        await works.charge(units)
    finally:
        works._fairness.ticket.reset(token)


async def test_what_the_resolver_finds_out_is_known_downstream_from_the_first_request_on() -> None:
    """Tenant, class and weight of a key not seen before reach the handler and its vendor calls."""

    async def resolve(key: str) -> str | None:
        await asyncio.sleep(0.1)
        return "pro" if key == "resolved" else None

    service, seen = Service(resolve=resolve), []

    @service.app.get("/who/{name}")
    async def who(name: str) -> None:
        standing = current()
        seen.append((standing.tenant[:4], standing.criticality, standing.route))

    async with service.client() as client:
        for key in ("resolved", "invented"):
            await client.get("/who/x", headers={"X-API-Key": key})
    assert seen == [
        ("key:", Criticality.DEFAULT, "/who/{name}"),
        ("ip:2", Criticality.SHEDDABLE, "/who/{name}"),
    ]


async def test_two_headworks_live_side_by_side() -> None:
    """Neither counts, gauges nor vendors are shared, nor can one charge the other's request."""
    first, second = chat_service(), chat_service()
    async with first.client(key="free-1") as client:
        assert [(await client.get("/hello")).status_code for _ in range(11)][-1] == 429
    async with second.client(key="free-1") as client:
        assert (await client.get("/hello")).status_code == 200

    @first.app.get("/foreign")
    async def foreign() -> None:
        await second.works.charge(1)

    async with first.client(key="pro-1") as client:
        with pytest.raises(RuntimeError, match="charge"):
            await client.get("/foreign")


async def test_starlette_applications_work_too() -> None:
    async def hello(request: Any) -> PlainTextResponse:
        return PlainTextResponse("hello")

    service = Service(Starlette(routes=[Route("/chat", hello)]))
    async with service.client(key="pro-1") as client:
        assert [(await client.get("/chat")).status_code for _ in range(4)] == [200, 200, 200, 429]


def test_protect_says_clearly_what_is_wrong() -> None:
    """Twice, too late, or on something else."""
    service = Service()
    with pytest.raises(RuntimeError, match="twice"):
        service.works.protect(FastAPI())
    started = FastAPI()
    started.middleware_stack = started.build_middleware_stack()
    with pytest.raises(RuntimeError, match="too late"):
        Headworks(parse(POLICY, "test", {})).protect(started)
    with pytest.raises(TypeError, match="FastAPI or Starlette"):
        Headworks(parse(POLICY, "test", {})).protect("app")  # type: ignore[type-var]  # that is the test


def test_an_unknown_vendor_is_answered_with_the_known_ones() -> None:
    policy = POLICY | {"vendors": {"llm": {"base_url": "https://llm.example/v1", "quota": ["60/min"]}}}
    works = Headworks(parse(policy, "test", {}))
    assert works.vendor("llm").base_url == "https://llm.example/v1"
    with pytest.raises(LookupError, match=r"no vendor 'lmm'; it has: llm"):
        works.vendor("lmm")


def test_a_policy_file_is_loaded_with_its_environment(tmp_path: Any) -> None:
    """The pod's name comes from the environment; a broken file lists its mistakes."""
    file = tmp_path / "headworks.toml"
    file.write_text(
        'schema = 1\n[service]\nname = "svc"\n[fairness]\ndefault_tier = "free"\n'
        '[fairness.tiers]\nfree = { rate = "10/min" }\n'
    )
    works = Headworks.load(file, environ={"HEADWORKS_POD": "pod-7"})
    assert (works.pod, works.policy.service.name) == ("pod-7", "svc")
    file.write_text("schema = 1\n")
    with pytest.raises(PolicyError, match="service"):
        Headworks.load(file, environ={})


def test_the_environments_policy_replaces_the_one_that_is_named(tmp_path: Any) -> None:
    """`headworks serve --policy` decides; an empty variable names nothing."""
    for name in ("named", "told"):
        (tmp_path / f"{name}.toml").write_text(
            f'schema = 1\n[service]\nname = "{name}"\n[fairness]\ndefault_tier = "free"\n'
            '[fairness.tiers]\nfree = { rate = "10/min" }\n'
        )
    named, told = tmp_path / "named.toml", str(tmp_path / "told.toml")
    assert Headworks.load(named, environ={"HEADWORKS_POLICY": told}).policy.service.name == "told"
    assert Headworks.load(environ={"HEADWORKS_POLICY": told}).policy.service.name == "told"
    assert Headworks.load(named, environ={"HEADWORKS_POLICY": ""}).policy.service.name == "named"


def test_a_policy_that_is_missing_is_named_in_full(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PolicyError) as caught:
        Headworks.load(environ={})
    assert str(caught.value) == f"{tmp_path}/headworks.toml: there is no such file"


async def test_a_limit_on_a_path_no_route_has_is_said_aloud(caplog: pytest.LogCaptureFixture) -> None:
    """A limit that silently holds nobody is how limits fail."""
    service = chat_service()
    async with service.client() as client:
        await client.get("/hello")
    assert '"/together"' in caplog.text
    assert '"/chat"' not in caplog.text


async def test_the_lifespan_starts_and_stops_everything_around_the_application_s_own() -> None:
    """Ready only after the application's start-up; draining before its end; start and stop repeat."""
    seen: list[bool] = []

    @asynccontextmanager
    async def own(app: Any) -> AsyncIterator[dict[str, int]]:
        seen.append(service.works._health.ready)
        yield {"number": 7}
        seen.append(service.works._health.ready)

    service = Service(FastAPI(lifespan=own))
    async with service.client(INSIDE) as client:
        assert (await client.get("/ready")).json()["reasons"] == ["starting"]
        for _ in range(2):
            async with service.running():
                ready = await client.get("/ready")
                assert (ready.status_code, ready.json()["store"]["state"]) == (200, "up")
            assert (await client.get("/ready")).json()["reasons"] == ["draining"]
    assert seen == [False, True, False, True]
    await service.works.start()
    await service.works.start()
    await service.works.stop()
    await service.works.stop()
    assert len(asyncio.all_tasks()) == 1


async def test_the_policy_says_who_is_inside() -> None:
    """`management.allow` in place of `service.trust`; empty for nobody but this machine."""
    for allow, metrics in ({"allow": ["203.0.113.0/24"]}, [200, 404]), ({"allow": []}, [404, 404]):
        service = Service(policy={"management": allow})
        seen = []
        for address in ("203.0.113.7", INSIDE):
            async with service.client(address) as client:
                seen.append((await client.get("/metrics")).status_code)
        assert seen == metrics


@pytest.mark.real
async def test_the_management_port_is_there_from_before_the_start_until_after_the_end() -> None:
    """It says `starting` while the application starts up, and `draining` until everything has ended."""
    port = free_ports("127.0.0.1", 1, random.Random())[0]
    seen: list[tuple[int, list[str]]] = []

    async def look() -> None:
        async with httpx2.AsyncClient(trust_env=False) as client:
            answer = await client.get(f"http://127.0.0.1:{port}/ready")
        seen.append((answer.status_code, answer.json()["reasons"]))

    @asynccontextmanager
    async def own(app: Any) -> AsyncIterator[None]:
        await look()
        yield
        await look()

    class Closing(MemoryStore):
        async def aclose(self) -> None:
            await look()

    policy = parse(POLICY | {"management": {"port": port, "host": "127.0.0.1"}}, "test", {})
    app = Headworks(policy, store=Closing()).protect(FastAPI(lifespan=own))
    async with app.router.lifespan_context(app):
        await look()
        second = Headworks(policy).protect(FastAPI())
        with pytest.raises(PortTaken, match=f"127.0.0.1:{port}"):
            async with second.router.lifespan_context(second):
                pass
    assert seen == [(503, ["starting"]), (200, []), (200, []), (503, ["draining"])]
    with pytest.raises(httpx2.ConnectError):
        await look()


async def test_stopping_waits_for_requests_and_their_clean_ups() -> None:
    """In flight first, then what they left to be cleaned up."""
    service = Service()
    log: list[str] = []

    @service.app.get("/slow")
    async def slow() -> int:
        async def close() -> None:
            await asyncio.sleep(1)
            log.append("closed")

        current().closers.add(close)
        await asyncio.sleep(20)
        return 1

    async with service.client() as client:
        async with service.running():
            task = asyncio.create_task(client.get("/slow"))
            await asyncio.sleep(1)
        log.append("stopped")
        assert (await task).status_code == 200
    assert log == ["closed", "stopped"]


@pytest.mark.parametrize("stubborn", [False, True])
async def test_stopping_is_bounded(caplog: pytest.LogCaptureFixture, stubborn: bool) -> None:
    """A request that never ends is told so, and does not keep the pod; nor does one that resists."""
    service = Service(policy={"health": {"drain_timeout": "5s"}})

    @service.app.get("/endless")
    async def endless() -> None:
        try:
            await asyncio.sleep(50)
        finally:
            await asyncio.sleep(30 if stubborn else 0.1)

    async with service.client() as client:
        async with service.running():
            task = asyncio.create_task(client.get("/endless"))
            await asyncio.sleep(1)
            began = asyncio.get_running_loop().time()
        took = asyncio.get_running_loop().time() - began
        assert took == pytest.approx(6.0 if stubborn else 5.1)
        assert ("had not ended" in caplog.text) == stubborn
        answer = await task
        assert (answer.status_code, answer.json()["reason"]) == (503, "pod-leaving")


async def test_metrics_know_routes_and_reasons_but_no_caller() -> None:
    """Templates, never paths; no key, no tenant, no address."""
    service = chat_service()
    async with service.client(key="pro-1") as client:
        for _ in range(4):
            await client.post("/chat", json={})
        for number in range(30):
            await client.get(f"/nowhere/{number}")
        assert (await client.get("/metrics")).status_code == 404
    async with service.client(INSIDE) as client:
        text = (await client.get("/metrics")).text
    assert 'headworks_requests_total{method="POST",route="/chat",status="429"} 1.0' in text
    assert 'route="unmatched",status="404"} 30.0' in text
    assert 'reason="quota-exceeded",rule="endpoint:/chat"} 1.0' in text
    for secret in ("pro-1", "nowhere", "203.0.113.7", "key:"):
        assert secret not in text
    assert service.sink.of(Served)[0].route == "/chat"


async def test_no_log_line_holds_what_a_caller_sent(caplog: pytest.LogCaptureFixture) -> None:
    """Neither key nor path nor a line of its own, even if a resolver says it aloud."""

    async def resolve(key: str) -> str | None:
        raise KeyError(key)

    caplog.set_level(logging.DEBUG)
    service = chat_service(resolve=resolve)
    forged = "forged\x0b\u2028ERROR all is lost"
    async with service.running(), service.client(key="secret-key-of-somebody") as client:
        await client.get(
            "/hello", headers={"X-Request-ID": forged.encode(), "X-Forwarded-For": "forged"}
        )
        await client.get("/forged%0d%0aERROR%20all%20is%20lost")
        await client.post("/chat", content=b"{forged")
    ours = [record.getMessage() for record in caplog.records if record.name == "headworks"]
    assert any("the resolver raised KeyError" in line for line in ours)
    assert [line for line in ours if "forged" in line or "secret" in line or "\n" in line] == []


SOME_BYTES = st.binary(max_size=400).map(lambda value: value.replace(b"\r", b"").replace(b"\n", b""))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([b"x-api-key", b"x-forwarded-for"]), SOME_BYTES), max_size=6),
    st.text(max_size=60),
    st.sampled_from(["GET", "POST", "OPTIONS", "BREW"]),
)
def test_nothing_a_caller_sends_is_a_500_or_grows_a_key(
    headers: list[tuple[bytes, bytes]], path: str, method: str
) -> None:
    """Any headers, any path: an answer below 500, and short keys in the store."""

    async def scenario() -> None:
        service = chat_service()
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": method,
            "path": "/" + path,
            "raw_path": b"/",
            "query_string": b"",
            "root_path": "",
            "scheme": "http",
            "server": ("svc", 80),
            "client": ("10.0.0.9", 1),
            "headers": headers,
            "http_version": "1.1",
        }
        await service.app(scope, receive, send)
        assert sent[0]["status"] < 500
        for question in service.store.questions:
            assert all(len(ask.key) < 300 for ask in question.asks)

    run(scenario())


async def test_a_verdict_without_limits_is_still_an_answer() -> None:
    """A store that decides without knowing the limits refuses with 429 all the same."""

    class Shut(MemoryStore):
        async def ask(self, question: Question) -> Verdict:
            return Verdict(allowed=False, retry_after=2.0, degraded=True)

    works = Headworks(parse(POLICY, "test", {}), store=Shut())
    app = works.protect(FastAPI())
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://svc") as client:
        answer = await client.get("/")
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "2")
    assert json.loads(answer.content)["reason"] == QuotaExceeded.reason
