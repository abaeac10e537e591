"""The door of an application: one inside another, and how a server comes straight to it."""

from __future__ import annotations

import asyncio
import functools
import gc
import random
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, WebSocket
from fastapi.exceptions import FastAPIDeprecationWarning
from fastapi.telemetry._asgi import _legacy_otel
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from tests.ports import free_port
from tests.protected import POLICY
from tests.test_works_ahead import Service, Store
from tests.test_works_with_a_store import valkey

from headworks import Headworks
from headworks.policy.load import parse
from headworks.store.protocol import Question
from headworks.works.door import LISTENING, Door


def now() -> float:
    return asyncio.get_running_loop().time()


def door_of(app: Any) -> Door:
    app.middleware_stack = app.build_middleware_stack()
    assert isinstance(app.middleware_stack, Door)
    return app.middleware_stack


# --- one inside another


@pytest.mark.parametrize("seen_through", [True, False])
async def test_a_protected_application_inside_another_is_asked_once_by_each(seen_through: bool) -> None:
    """Neither takes the other's word for its own: each has its own callers, limits and counts. Whether
    the outer one can see the routes of the inner one, or takes all of it for one."""
    outer, inner = Service(), Service()

    async def opaque(scope: Any, receive: Any, send: Any) -> None:
        await inner.app(scope, receive, send)

    outer.app.mount("/inner", inner.app if seen_through else opaque)
    assert (await outer.get("/inner/hello")).text == '"hello"'
    assert (outer.order, inner.order) == (["asked"], ["asked"])
    for _ in range(2):
        assert (await outer.get("/inner/nowhere")).status_code == 404
    assert not outer.works._fairness.rewritten
    assert not inner.works._fairness.rewritten, "a path of no route has not been changed"
    inner.order.clear()
    assert (await inner.get()).status_code == 200
    assert inner.order == ["asked"]
    assert (outer.places, inner.places) == ((0, 0, 0), (0, 0, 0))


async def test_an_application_that_two_protect_is_asked_once_for_each() -> None:
    """The outer one cannot know what the inner one does: its question comes at its gate."""
    first = Service()
    second = Service(app=first.app)
    assert (await second.get()).status_code == 200
    assert first.order == ["asked"]
    assert second.order == ["inside", "asked"]
    costs = [[question.asks[0].cost for question in one.store.questions] for one in (first, second)]
    assert costs == [[1], [1]]


async def test_two_works_in_one_process_know_nothing_of_each_other() -> None:
    first, second = Service(), Service()
    await first.used_up()
    assert (await first.get()).status_code == 429
    assert (await second.get()).headers["ratelimit"] == '"tier:free";r=9;t=60'


async def test_websockets_are_asked_inside_when_they_connect() -> None:
    service, sent = Service(), list[Any]()

    @service.app.websocket("/ws")
    async def ws(socket: WebSocket) -> None:
        await socket.accept()

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"x-api-key", b"free-1")]
    scope = {"type": "websocket", "path": "/ws", "query_string": b"", "headers": headers}
    await service.app(scope | {"client": None}, receive, send)
    assert service.order == ["inside", "asked"]
    assert (b"ratelimit", b'"tier:free";r=9;t=60') in sent[0]["headers"]


# --- straight to the door


async def test_a_server_may_come_straight_where_the_application_s_call_adds_nothing() -> None:
    """Then the scope is as that call would have made it."""
    for app in (FastAPI(), Starlette(routes=[Route("/hello", PlainTextResponse("hello"))])):
        door, scope = door_of(Service(app=app).app), dict[str, Any]()
        assert door.straight(app, scope, now())
        assert scope == {"app": app}


class Own(FastAPI):
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await super().__call__(scope, receive, send)


async def test_no_server_does_where_it_may_add_something() -> None:
    """A call of its own, a root path to be set."""
    with pytest.warns(FastAPIDeprecationWarning):
        below = FastAPI(root_path="/api")
    for app in (Own(), below):
        assert not door_of(Service(app=app).app).straight(app, {}, now())


async def test_none_does_once_the_framework_has_been_patched(monkeypatch: pytest.MonkeyPatch) -> None:
    """As tools that trace do, in a class above, under the old name, and at any time."""
    app, call = Service().app, Starlette.__call__
    door = door_of(app)
    assert door.straight(app, {}, now())

    @functools.wraps(call)
    async def traced(self: Any, scope: Any, receive: Any, send: Any) -> None:
        await call(self, scope, receive, send)

    monkeypatch.setattr(Starlette, "__call__", traced)
    await asyncio.sleep(LISTENING + 0.1)
    assert not door.straight(app, {}, now())


async def test_none_does_while_fastapi_traces_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service()
    door, tracing = door_of(service.app), service.app._native_telemetry
    for enabled in (True, False, True):
        monkeypatch.setattr(type(tracing), "enabled", lambda self, enabled=enabled: enabled)
        await asyncio.sleep(LISTENING + 0.1)
        assert door.straight(service.app, {}, now()) is not enabled


async def test_whoever_walks_down_the_stack_passes_the_door() -> None:
    """FastAPI does, to learn whether somebody traces already."""

    class Traces:
        def __init__(self, app: Any) -> None:
            self.app = app

    Traces.__module__, Traces.__name__ = "opentelemetry.instrumentation.asgi", "OpenTelemetryMiddleware"
    assert _legacy_otel(door_of(Service(middleware=(Middleware(Traces),)).app))
    assert not _legacy_otel(door_of(Service().app))


# --- a server that has no task yet


class Putting(Store):
    """A store that hears of a question without a task, and answers a second later."""

    takes, broken = True, False

    def put(self, question: Question, to: Any, first: Any = None) -> bool:
        if self.broken:
            raise ConnectionError("closed")
        if self.takes:
            self.order.append("put")
            self.questions.append(question)
            loop = asyncio.get_running_loop()
            loop.call_later(1, lambda: to(self.ask_nowait(question)))
        return self.takes


class Asking:
    """A server that comes straight to the door with one request, and what it was told."""

    def __init__(self, service: Service, key: str = "free-1", query: bytes = b"") -> None:
        self.service, self.told = service, list[Any]()
        headers = [(b"x-api-key", key.encode())]
        self.scope: dict[str, Any] = {"type": "http", "method": "GET", "path": "/hello"}
        self.scope |= {"query_string": query, "headers": headers, "client": ("203.0.113.7", 1)}
        self.door = service.app.middleware_stack or door_of(service.app)
        self.sent = list[Any]()
        self.broken = False

    def ask(self) -> bool:
        found = self.door.begin(self.scope)
        assert not isinstance(found, tuple)
        taken: bool = self.door.put(self.scope, found, self, "the cycle")
        return taken

    def go_on(self, cycle: Any, door: Any, found: Any) -> None:
        assert (cycle, door) == ("the cycle", self.door)
        if self.broken:
            raise OSError("the connection is gone")
        self.told.append(found)

    async def run(self) -> int:
        """Give it the task that it asks for; its status."""

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            self.sent.append(message)

        (found,) = self.told
        await found(self.scope, receive, send)
        return int(self.sent[0]["status"])


def put_service(**options: Any) -> Service:
    service = Service(remembers=False, **options)
    store = Putting(service.order)
    service.store = service.works._store = service.works._fairness._store = store
    return service


async def test_a_request_waits_for_its_verdict_without_a_task() -> None:
    """It holds its place meanwhile; who passes gets a task, who is refused an answer and no more."""
    service = put_service()
    for units in (1, 10):
        asking = Asking(service)
        assert asking.ask()
        assert service.places == (1, 1, 0)
        assert asking.told == []
        await asyncio.sleep(1)
        if units == 1:
            assert service.places == (1, 1, 0), "still its own"
            assert await asking.run() == 200
            assert (b"ratelimit", b'"tier:free";r=9;t=60') in asking.sent[0]["headers"]
            for _ in range(9):
                await service.store.ask(service.store.questions[-1])
        else:
            ((status, _, body),) = asking.told
            assert (status, b"quota-exceeded" in body) == (429, True)
        assert service.places == (0, 0, 0)
    assert service.served == [200, 429]
    assert service.order.count("put") == 2
    assert "inside" not in service.order


async def test_a_full_pod_puts_no_question() -> None:
    service = put_service(policy={"admission": {"max_in_flight": 1}})
    first, second = Asking(service, "pro-1"), Asking(service, "pro-2")
    assert first.ask()
    assert second.ask()
    assert await second.run() == 503
    assert service.order == ["put"]
    await asyncio.sleep(1)
    assert await first.run() == 200
    assert service.places == (0, 0, 0)


async def test_a_store_for_tasks_only_is_asked_by_one() -> None:
    service = put_service()
    service.store.takes = False
    asking = Asking(service)
    assert asking.ask()
    assert await asking.run() == 200
    assert service.order == ["asked"]
    assert service.places == (0, 0, 0)


async def test_a_pod_that_leaves_meanwhile_ends_the_connection_of_its_refusal() -> None:
    service = put_service()
    await service.used_up()
    service.order.clear()
    asking = Asking(service)
    assert asking.ask()
    service.works._leave()
    await asyncio.sleep(1)
    assert await asking.run() == 429
    assert (b"connection", b"close") in asking.sent[0]["headers"]
    assert service.order == ["put"], "once"
    assert service.places == (0, 0, 0)


async def test_a_pod_whose_time_is_over_tells_who_was_let_in_last() -> None:
    service = put_service()
    asking = Asking(service, query=b"last=5")
    assert asking.ask()
    service.works._answers.end()
    await asyncio.sleep(1)
    assert await asking.run() == 503
    assert service.places == (0, 0, 0)


async def test_a_place_returns_whatever_fails() -> None:
    """The store that is to be asked, the server that is to be told: each request is told of once."""
    service = put_service()
    service.store.broken = True
    with pytest.raises(ConnectionError):
        Asking(service).ask()
    assert (service.places, service.served) == ((0, 0, 0), [500])
    service.store.broken = False
    gone, errors = Asking(service), list[Any]()
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context))
    gone.broken = True
    assert gone.ask()
    await asyncio.sleep(1)
    assert [type(context["exception"]) for context in errors] == [OSError]
    assert (service.places, service.served) == ((0, 0, 0), [500, 0])


# --- nothing for the collector


@pytest.mark.real
@pytest.mark.parametrize("asked", ["inside", "at the door", "without a task"])
async def test_a_request_leaves_nothing_to_the_garbage_collector(tmp_path: Path, asked: str) -> None:
    """Admitted and charged more, refused by the store, refused from memory; alone, and three at once
    that share a call to the store: wherever it is asked, what it was made of goes when it does."""
    port = free_port()
    async with valkey(tmp_path, port):
        policy = POLICY | {
            "store": {"url": f"valkey://127.0.0.1:{port}", "decision_timeout": "10s"},
            "deploy": {"replicas": 1},
        }
        works = Headworks(parse(policy, "test", {}), pod="pod-1", rng=random.Random(1))
        app = Starlette(middleware=[Middleware(Through)] if asked == "inside" else [])

        async def hello(request: Any) -> PlainTextResponse:
            await works.charge(1)
            return PlainTextResponse("hello")

        app.routes.append(Route("/hello", hello, methods=["GET"]))
        works.protect(app)
        async with app.router.lifespan_context(app):
            keys = [["pro-1"]] * 5 + [["pro-1", "pro-2", "b-1"]] + [["free-1"]] * 10
            ask = Straight(app) if asked == "without a task" else app
            found = [await _left_by(ask, *callers) for callers in keys]
    assert [statuses for statuses, _ in found] == [[200]] * 5 + [[200] * 3] + [[200]] * 5 + [[429]] * 5
    assert [left for _, left in found[1:]] == [[]] * 15, "the first one makes what is kept"


class Through:
    """The application's middleware, of which nothing is known."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


class Straight:
    """A server that comes straight to the door, as `headworks serve` does."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        door = self.app.middleware_stack or door_of(self.app)
        found, told = door.begin(scope), asyncio.get_running_loop().create_future()
        if not isinstance(found, tuple):
            assert door.put(scope, found, self, told)
            found = await told
        if isinstance(found, tuple):
            await door.telling(found)(scope, receive, send)
        else:
            await found(scope, receive, send)

    def go_on(self, cycle: asyncio.Future[Any], door: Any, found: Any) -> None:
        cycle.set_result(found)


async def _left_by(app: Any, *keys: str) -> tuple[list[int], list[str]]:
    """The statuses of requests at once, and what only the collector can free after them."""
    statuses = list[int]()

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    async def request(key: str) -> None:
        headers = [(b"x-api-key", key.encode())]
        scope = {"type": "http", "method": "GET", "path": "/hello", "headers": headers}
        await app(scope | {"client": ("203.0.113.7", 1), "root_path": ""}, receive, send)

    gc.collect()
    gc.disable()
    try:
        await asyncio.wait([asyncio.create_task(request(key)) for key in keys])
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        return statuses, [type(one).__name__ for one in gc.garbage]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
