"""Where no middleware could make a difference, limits are asked before the application is begun; in
virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from fastapi import BackgroundTasks, FastAPI, Request
from fastapi.responses import PlainTextResponse
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Route
from starlette.testclient import TestClient
from tests.protected import POLICY, CountingStore

from headworks import Headworks
from headworks.current import current
from headworks.errors import QuotaExceeded
from headworks.policy.load import parse
from headworks.store.deny import DenyCache
from headworks.store.protocol import Question
from headworks.telemetry import Decided, Served
from headworks.testing.cancel import cancel_at_every_await
from headworks.testing.recording import RecordingSink
from headworks.verdict import Verdict

FAIRNESS: dict[str, Any] = POLICY["fairness"]
ORIGIN = {"Origin": "https://elsewhere.example"}
HEADER = {"service": POLICY["service"] | {"deadline_header": "X-Timeout"}}


class Store(CountingStore):
    """A memory that takes its time, or fails; `order` tells when it was asked."""

    def __init__(self, order: list[str]) -> None:
        super().__init__()
        self.order, self.delay, self.failures = order, 0.0, 0
        self.asked: Callable[[], object] = lambda: None

    async def ask(self, question: Question) -> Verdict:
        self.order.append("asked")
        self.asked()
        if self.delay:
            await asyncio.sleep(self.delay)
        if self.failures:
            self.failures -= 1
            raise ConnectionError("the store is away")
        return await super().ask(question)


class Service:
    """A protected application; `order` tells of each request whether its limits were asked before the
    gate inside was reached (`asked`, `inside`) or by it (`inside`, `asked`)."""

    def __init__(
        self,
        policy: dict[str, Any] | None = None,
        app: Any = None,
        *,
        remembers: bool = True,
        middleware: tuple[Middleware, ...] = (),
        **options: Any,
    ) -> None:
        self.order, self.sink = list[str](), RecordingSink()
        self.store = Store(self.order)
        self.works = Headworks(
            parse(POLICY | (policy or {}), "test", {}),
            store=DenyCache(self.store) if remembers else self.store,
            sinks=[self.sink],
            pod="pod-1",
            rng=random.Random(1),
            **options,
        )
        self.app = app or _app(self.works, middleware)
        self.works.protect(self.app)
        fairness = self.works._fairness
        admit = fairness.admit

        def inside(*args: Any) -> Awaitable[QuotaExceeded | None]:
            self.order.append("inside")
            return admit(*args)

        fairness.admit = inside  # type: ignore[method-assign]  # watched

    async def get(self, path: str = "/hello", key: str = "free-1", **headers: str) -> httpx2.Response:
        self.order.clear()
        transport = httpx2.ASGITransport(app=self.app, client=("203.0.113.7", 1))
        async with httpx2.AsyncClient(transport=transport, base_url="http://svc") as client:
            return await client.get(path, headers={"X-API-Key": key, **headers})

    async def used_up(self, units: int = 10, key: str = "free-1") -> None:
        """So many requests have been let in, and nothing has been refused yet."""
        for _ in range(units):
            assert (await self.get(key=key)).status_code == 200
        self.sink.events.clear()
        self.store.questions.clear()

    @property
    def places(self) -> tuple[int, int, int]:
        """Places taken, applications running, answers under way."""
        slots = self.works._slots.statistics()
        return slots.in_flight, slots.running, len(self.works._answers.open)

    @property
    def served(self) -> list[int]:
        return [event.status for event in self.sink.of(Served)]


def _app(works: Headworks, middleware: tuple[Middleware, ...]) -> FastAPI:
    app = FastAPI(middleware=list(middleware))

    @app.get("/hello")
    async def hello(last: float = 0.0) -> str:
        await asyncio.sleep(last)
        return "hello"

    @app.get("/free")
    @works.exempt
    async def free() -> str:
        return "free"

    @app.get("/dear")
    @works.cost(4)
    async def dear(units: int = 0) -> str:
        await works.charge(units)
        return "dear"

    @app.get("/users/health")
    async def health() -> str:
        return "a page of its own"

    return app


# --- which requests are asked where


@pytest.mark.parametrize("remembers", [True, False])
async def test_the_question_comes_before_the_application(remembers: bool) -> None:
    """Once for each request; who is let in finds the answer inside, who is refused never gets there."""
    service = Service(remembers=remembers)
    first = await service.get()
    assert (first.text, first.headers["ratelimit"]) == ('"hello"', '"tier:free";r=9;t=60')
    assert service.order == ["asked"]
    await service.used_up(9)
    assert (await service.get()).status_code == 429
    assert service.order == ["asked"]
    assert service.places == (0, 0, 0)
    (admission, fairness, served) = service.sink.events
    assert (admission.layer, admission.admitted) == ("admission", True)
    assert (fairness.layer, fairness.admitted, fairness.rule) == ("fairness", False, "tier:free")
    assert (served.route, served.status) == ("/hello", 429)


async def test_its_refusal_is_the_one_of_the_gate_inside() -> None:
    """Byte for byte, with the same events."""
    service = Service({"fairness": FAIRNESS | {"total_rate": "100/min"}}, remembers=False)
    await service.used_up()
    await asyncio.sleep(7.25)
    inside = await service.get(**ORIGIN)
    events = list(service.sink.events)
    assert service.order == ["inside", "asked"]
    service.sink.events.clear()
    ahead = await service.get()
    assert service.order == ["asked"]
    assert (ahead.status_code, ahead.content) == (429, inside.content)
    assert ahead.headers.raw == inside.headers.raw
    assert service.sink.events == events


@pytest.mark.parametrize("cls", [CORSMiddleware, GZipMiddleware])
async def test_middleware_of_the_framework_that_refuses_nobody_is_no_hindrance(cls: Any) -> None:
    service = Service(middleware=(Middleware(cls),))
    assert (await service.get()).status_code == 200
    assert service.order == ["asked"]


class Keeper:
    """The application's middleware: lets nobody in who has no ticket."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and (b"x-ticket", b"yes") not in scope["headers"]:
            await PlainTextResponse("no ticket", 401)(scope, receive, send)
            return
        await self.app(scope, receive, send)


class OwnCors(CORSMiddleware):
    """Who knows what it does."""


@pytest.mark.parametrize("later", [False, True])
async def test_whoever_is_refused_by_middleware_is_asked_nothing(later: bool) -> None:
    """Whether it is added before the application is protected, or after."""
    service = Service(middleware=() if later else (Middleware(CORSMiddleware), Middleware(Keeper)))
    if later:
        service.app.add_middleware(Keeper)
    assert (await service.get()).status_code == 401
    assert service.order == []
    assert (await service.get(**{"X-Ticket": "yes"})).status_code == 200
    assert service.order == ["inside", "asked"]


async def test_middleware_that_is_built_around_the_others_counts_as_well() -> None:
    """As tracing does: it exchanges the way in which the application builds its middleware."""
    app = FastAPI()
    build = app.build_middleware_stack
    app.build_middleware_stack = lambda: Keeper(build())  # type: ignore[method-assign]  # meant
    service = Service(app=app)
    assert (await service.get()).status_code == 401
    assert service.order == []
    subclass = Service(middleware=(Middleware(OwnCors),))
    assert (await subclass.get()).status_code == 200
    assert subclass.order == ["inside", "asked"]


async def test_cors_has_the_first_word_on_other_origins() -> None:
    """A preflight asks nothing; a refusal that a browser is to read carries its headers."""
    service = Service(middleware=(Middleware(CORSMiddleware, allow_origins=[ORIGIN["Origin"]]),))
    transport = httpx2.ASGITransport(app=service.app, client=("203.0.113.7", 1))
    async with httpx2.AsyncClient(transport=transport, base_url="http://svc") as client:
        asks = ORIGIN | {"Access-Control-Request-Method": "GET", "X-API-Key": "free-1"}
        assert (await client.options("/hello", headers=asks)).status_code == 200
    assert service.order == []
    await service.used_up()
    answer = await service.get(**ORIGIN)
    assert (answer.status_code, service.order) == (429, ["inside", "asked"])
    assert answer.headers["access-control-allow-origin"] == ORIGIN["Origin"]


async def test_what_may_make_a_difference_is_asked_inside() -> None:
    """Limits that are watched, stated classes, paths of no route; exempt ones are asked nowhere."""
    watched = FAIRNESS | {"total_rate": {"rate": "100/min", "mode": "shadow"}}
    service = Service({"fairness": watched})
    await service.get()
    assert service.order[0] == "inside"
    service = Service({"admission": {"max_in_flight": 10, "criticality_header": "X-Class"}})
    await service.get(**{"X-Class": "critical"})
    assert service.order == ["inside", "asked"]
    assert (await service.get("/nowhere")).status_code == 404
    assert service.order == ["inside", "asked"]
    assert (await service.get("/free")).status_code == 200
    assert service.order == ["inside"]


async def test_a_key_is_resolved_before_its_limits_are_asked() -> None:
    async def resolve(key: str) -> str | None:
        return "pro" if key == "new" else None

    service = Service(resolve=resolve)
    told = [(await service.get(key="new")).headers["ratelimit-policy"] for _ in range(2)]
    assert told == ['"tier:pro";q=100;w=60'] * 2
    assert service.order == ["asked"]


async def test_a_page_whose_path_ends_like_a_probe_s_is_asked_and_refused_like_any() -> None:
    service = Service()
    assert (await service.get("/users/health")).json() == "a page of its own"
    assert service.order == ["asked"]
    await service.used_up(9)
    assert [(await service.get("/users/health")).status_code for _ in range(2)] == [429, 429]
    assert service.order == []
    assert [event.layer for event in service.sink.of(Decided)] == ["admission", "fairness", "fairness"]


async def test_plain_starlette_is_asked_ahead_as_well() -> None:
    async def hello(request: Any) -> Any:
        return PlainTextResponse("hello")

    service = Service(app=Starlette(routes=[Route("/hello", hello)]))
    assert (await service.get()).text == "hello"
    assert service.order == ["asked"]


def test_a_test_client_needs_no_server() -> None:
    service = Service()
    with TestClient(service.app, headers={"X-API-Key": "free-1"}) as client:
        assert [client.get("/hello").status_code for _ in range(11)] == [200] * 10 + [429]
        assert client.get("/health").status_code == 200
    assert "inside" not in service.order


# --- the pod's gate has the first word


async def test_a_full_pod_asks_nothing() -> None:
    service = Service()
    async with asyncio.TaskGroup() as group:
        for _ in range(10):
            group.create_task(service.get("/hello?last=1", "pro-1"))
        await asyncio.sleep(0.5)
        assert (await service.get(key="pro-2")).status_code == 503
        assert service.order == []
        assert service.places == (10, 10, 10)
    assert service.places == (0, 0, 0)


async def test_a_place_is_held_while_the_store_is_asked() -> None:
    service = Service()
    service.store.delay = 1
    async with asyncio.TaskGroup() as group:
        held = [group.create_task(service.get(key="pro-1")) for _ in range(10)]
        await asyncio.sleep(0.5)
        assert service.places == (10, 10, 10)
        assert (await service.get(key="pro-2")).status_code == 503
    assert {task.result().status_code for task in held} == {200}
    assert service.places == (0, 0, 0)


async def test_one_in_shadow_asks_though_it_is_full() -> None:
    service = Service({"admission": {"max_in_flight": 1, "shadow": True}})
    async with asyncio.TaskGroup() as group:
        group.create_task(service.get("/hello?last=1", "pro-1"))
        await asyncio.sleep(0.5)
        assert (await service.get(key="pro-2")).status_code == 200
        assert service.order == ["asked"]
    assert service.places == (0, 0, 0)


@pytest.mark.parametrize("changes", [False, True])
async def test_who_waited_in_line_is_asked_when_its_place_is_there(changes: bool) -> None:
    """And who is refused then leaves it to the next in line; where the policy has changed meanwhile, by
    the new one, inside."""
    line = {"max_in_flight": 2, "queue_timeout": "30s"}
    service = Service({"admission": line})
    await service.used_up()
    async with asyncio.TaskGroup() as group:
        for seconds in (1, 9):
            group.create_task(service.get(f"/hello?last={seconds}", "pro-1"))
        await asyncio.sleep(0.5)
        waiting = [group.create_task(service.get(key=key)) for key in ("free-1", "free-2")]
        await asyncio.sleep(0.1)
        assert service.order == []
        if changes:
            tiers = FAIRNESS["tiers"] | {"free": {"rate": "5/min", "class": "sheddable"}}
            changed = POLICY | {"admission": line, "fairness": FAIRNESS | {"tiers": tiers}}
            service.works._adopt(parse(changed, "test", {}))
        answers = await asyncio.gather(*waiting)
        assert service.places == (1, 1, 1), "the one that lasts nine seconds"
    assert [answer.status_code for answer in answers] == [429, 200]
    assert answers[1].headers["ratelimit-policy"] == f'"tier:free";q={5 if changes else 10};w=60'
    assert service.order == (["inside", "asked"] if changes else ["asked"]) * 2
    assert service.places == (0, 0, 0)


async def test_whose_time_is_over_is_asked_nothing() -> None:
    service = Service(HEADER)
    answer = await service.get(**{"X-Timeout": "0"})
    assert (answer.status_code, service.order) == (504, [])


# --- while the question is on its way


async def test_a_stalled_store_keeps_nobody_beyond_its_deadline() -> None:
    """The caller's own, or the service's; whatever the store has to bound itself."""
    service = Service(HEADER)
    service.store.delay = 3600
    loop = asyncio.get_running_loop()
    for headers, seconds in (({"X-Timeout": "0.5"}, 0.5), ({}, 60)):
        began = loop.time()
        assert (await service.get(**headers)).status_code == 504
        assert loop.time() - began == pytest.approx(seconds)
        assert service.order == ["asked"]
        assert service.places == (0, 0, 0)
    assert service.served == [504, 504]


async def test_a_pod_that_begins_to_leave_ends_the_connections_of_its_refusals() -> None:
    service = Service()
    await service.used_up()
    service.store.asked = service.works._leave
    answer = await service.get()
    assert (answer.status_code, answer.headers["connection"]) == (429, "close")


async def test_a_pod_whose_time_is_over_tells_who_still_waits_for_the_store() -> None:
    service = Service()
    service.store.delay = 3600
    task = asyncio.create_task(service.get())
    await asyncio.sleep(1)
    service.works._answers.end()
    answer = await task
    assert (answer.status_code, answer.json()["reason"]) == (503, "pod-leaving")
    assert service.places == (0, 0, 0)


async def test_a_store_that_raises_once_is_asked_again() -> None:
    service = Service()
    service.store.failures = 1
    assert (await service.get()).status_code == 200
    assert service.order == ["asked", "inside", "asked"]


async def test_what_a_store_raises_is_answered_by_the_application() -> None:
    service = Service()
    service.store.failures = 2

    @service.app.exception_handler(Exception)
    async def sorry(request: Request, error: Exception) -> PlainTextResponse:
        return PlainTextResponse("sorry", 500)

    transport = httpx2.ASGITransport(app=service.app, raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url="http://svc") as client:
        answer = await client.get("/hello")
    assert (answer.status_code, answer.text) == (500, "sorry")
    assert service.served == [500]
    assert service.places == (0, 0, 0)


async def test_a_request_is_judged_by_the_policy_that_it_was_asked_by() -> None:
    """To its last header, though another holds before the answer to the question is there."""
    service = Service()
    tiers = FAIRNESS["tiers"] | {"free": {"rate": "20/min"}}
    wider = parse(POLICY | {"fairness": FAIRNESS | {"tiers": tiers}}, "test", {})
    service.store.asked = lambda: service.works._adopt(wider)
    assert (await service.get()).headers["ratelimit-policy"] == '"tier:free";q=10;w=60'
    assert service.order == ["asked"]
    service.store.asked = lambda: None
    assert (await service.get()).headers["ratelimit-policy"] == '"tier:free";q=20;w=60'


async def test_a_caller_who_leaves_meanwhile_takes_its_handler_along_where_that_is_asked_for() -> None:
    service, ended = Service(), list[str]()

    @service.app.get("/slow")
    @service.works.cancel_on_disconnect
    async def slow() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append("cancelled")

    service.store.delay = 5
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/slow",
        "query_string": b"",
        "headers": [(b"x-api-key", b"pro-1")],
        "client": ("203.0.113.7", 1),
    }

    async def left() -> Any:
        await asyncio.sleep(1)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pass

    began = asyncio.get_running_loop().time()
    await service.app(scope, left, send)
    assert asyncio.get_running_loop().time() - began < 60
    assert ended == ["cancelled"]
    assert service.places == (0, 0, 0)


def test_a_request_cancelled_at_any_await_leaves_nothing() -> None:
    """On its way to the store, in its handler, and while it is told that it is refused."""
    world: list[Service] = []

    @asynccontextmanager
    async def around() -> AsyncIterator[None]:
        service = Service(remembers=False)
        await service.used_up()
        service.store.delay = 0.1
        world[:] = [service]
        yield

    async def scenario() -> None:
        service = world[0]
        try:
            assert (await service.get("/dear?units=1", "pro-1")).status_code == 200
            assert (await service.get(key="free-1")).status_code == 429
        finally:
            assert current().ticket is None

    def snapshot() -> Any:
        service = world[0]
        served, decided = len(service.served), 0
        for event in service.sink.of(Decided):
            decided += event.layer == "admission"
        # Each request that was let in has been told of, once.
        return service.places, decided - served, current().ticket, current().caller

    assert cancel_at_every_await(scenario, snapshot=snapshot, around=around) >= 3


# --- what is charged, and told


async def test_costs_and_charges_are_of_the_same_limits() -> None:
    service = Service()
    answer = await service.get("/dear?units=3")
    assert answer.headers["ratelimit"] == '"tier:free";r=3;t=60'
    assert [question.asks[0].cost for question in service.store.questions] == [4, 3]
    refused = await service.get("/dear?units=0", "free-2")
    assert refused.headers["ratelimit"] == '"tier:free";r=6;t=60'
    assert (await service.get("/dear?units=7", "free-2")).status_code == 429
    assert service.order == ["asked", "asked"]


async def test_tasks_of_a_request_may_charge_too_also_when_it_is_over() -> None:
    service = Service()
    later = list[asyncio.Task[None]]()

    async def in_a_moment(units: int) -> None:
        await asyncio.sleep(1)
        await service.works.charge(units)

    @service.app.get("/tasks")
    async def tasks(background: BackgroundTasks) -> str:
        background.add_task(service.works.charge, 2)
        later.append(asyncio.create_task(in_a_moment(3)))
        await asyncio.create_task(service.works.charge(1))
        return "begun"

    answer = await service.get("/tasks")
    assert answer.headers["ratelimit"] == '"tier:free";r=8;t=60'
    await later[0]
    assert [question.asks[0].cost for question in service.store.questions] == [1, 1, 2, 3]
    assert (await service.get()).headers["ratelimit"].startswith('"tier:free";r=2;')


async def test_headers_that_are_added_outside_stay_with_their_answer() -> None:
    """A refusal that comes many times a moment is written once; what a wrapper adds is not."""
    service = Service()
    await service.used_up()
    app, count = service.app, 0

    async def numbered(scope: Any, receive: Any, send: Any) -> None:
        async def add(message: Any) -> None:
            nonlocal count
            if message["type"] == "http.response.start":
                count += 1
                message["headers"].append((b"x-number", b"%d" % count))
            await send(message)

        await app(scope, receive, add)

    service.app = numbered
    numbers = [(await service.get()).headers.get_list("x-number") for _ in range(3)]
    assert numbers == [["1"], ["2"], ["3"]]
