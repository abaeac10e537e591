"""Whoever is known to be over a limit is told so outside of everything; in virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from fastapi import APIRouter, FastAPI
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from tests.protected import POLICY, CountingStore

from headworks import Headworks
from headworks.policy.load import parse
from headworks.store.deny import DenyCache
from headworks.telemetry import Decided, Served
from headworks.testing.recording import RecordingSink

FAIRNESS: dict[str, Any] = POLICY["fairness"]
ORIGIN = {"Origin": "https://elsewhere.example"}


class Seen:
    """The application's middleware: remembers who came by, may change the path, or take its time."""

    paths: list[str]
    rewrite: dict[str, str]
    meanwhile: Callable[[], None]

    def __init__(self, app: Any) -> None:
        self.app = app
        type(self).paths, type(self).rewrite = [], {}
        type(self).meanwhile = staticmethod(lambda: None)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            self.paths.append(scope["path"])
            self.meanwhile()
            if scope["path"] == "/page":
                await PlainTextResponse("of the middleware")(scope, receive, send)
                return
            scope["path"] = self.rewrite.get(scope["path"], scope["path"])
        await self.app(scope, receive, send)


class Service:
    """A protected application whose store remembers what it refused."""

    def __init__(self, policy: dict[str, Any] | None = None, **options: Any) -> None:
        self.sink, self.store = RecordingSink(), CountingStore()
        self.policy = parse(POLICY | (policy or {}), "test", {})
        self.works = Headworks(
            self.policy,
            store=DenyCache(self.store),
            sinks=[self.sink],
            pod="pod-1",
            rng=random.Random(1),
            **options,
        )
        app = FastAPI(middleware=[Middleware(Seen)])
        router = APIRouter()

        @router.get("/hello")
        @router.get("/items/{item_id}")
        async def hello(item_id: str = "", last: float = 0.0) -> str:
            await asyncio.sleep(last)
            return "hello"

        @router.get("/free")
        @self.works.exempt
        async def free() -> str:
            return "free"

        app.include_router(router)
        self.app = self.works.protect(app)

    async def get(self, path: str = "/hello", key: str = "free-1", **headers: str) -> httpx2.Response:
        transport = httpx2.ASGITransport(app=self.app, client=("203.0.113.7", 1))
        async with httpx2.AsyncClient(transport=transport, base_url="http://svc") as client:
            return await client.get(path, headers={"X-API-Key": key, **headers})

    async def used_up(self, key: str = "free-1", path: str = "/hello") -> None:
        """The store has refused once."""
        while (await self.get(path, key)).status_code != 429:
            pass
        await asyncio.sleep(0)  # what is only watched is asked beside the request
        self.sink.events.clear()
        self.store.questions.clear()
        Seen.paths.clear()

    async def outside(self, path: str = "/hello", key: str = "free-1", **headers: str) -> bool:
        """Whether a request is refused before the application's middleware sees it."""
        Seen.paths.clear()
        answer = await self.get(path, key, **headers)
        return answer.status_code == 429 and not Seen.paths


@pytest.mark.parametrize("dialect", ["draft-11", "x-ratelimit", "off"])
@pytest.mark.parametrize("path", ["/hello", "/items/3"])
async def test_the_answer_is_the_one_that_would_come_from_inside(dialect: str, path: str) -> None:
    """Byte for byte, with the same events; only the pod's gate has nothing to say."""
    service = Service({"fairness": FAIRNESS | {"headers": dialect, "total_rate": "100/min"}})
    await service.used_up(path=path)
    await asyncio.sleep(7.25)
    inside = await service.get(path, **ORIGIN)
    events = [event for event in service.sink.events if getattr(event, "layer", "") != "admission"]
    assert Seen.paths == [path]
    service.sink.events.clear()
    assert await service.outside(path)
    outside = await service.get(path)
    assert (outside.status_code, outside.content) == (inside.status_code, inside.content)
    assert outside.headers.raw == inside.headers.raw
    assert outside.json()["retry_after"] == pytest.approx(60 - 7.25, abs=1)
    assert service.sink.events == events * 2
    assert [type(event) for event in events] == [Decided, Served]
    assert service.store.questions == []


async def test_it_takes_no_place_in_the_pod() -> None:
    """Ten of ten places are taken: others are told that the pod is full, the flooder that it floods."""
    service = Service()
    await service.used_up()
    async with asyncio.TaskGroup() as group:
        held = [group.create_task(service.get("/hello?last=1", "pro-1")) for _ in range(10)]
        await asyncio.sleep(0.5)
        assert (await service.get(key="pro-2")).status_code == 503
        assert (await service.get()).status_code == 429
        assert (await service.get(**ORIGIN)).status_code == 503
        refused = [(event.route, event.status) for event in service.sink.of(Served)]
        assert refused == [("/hello", 503), ("/hello", 429), ("/hello", 503)], (
            "by its route, all the same"
        )
    assert {task.result().status_code for task in held} == {200}


async def test_it_ends_when_the_limit_does() -> None:
    service = Service()
    await service.used_up()
    wait = (await service.get()).json()["retry_after"]
    await asyncio.sleep(wait - 0.01)
    assert await service.outside()
    await asyncio.sleep(0.01)
    assert (await service.get()).status_code == 200


async def test_what_may_make_a_difference_goes_inside() -> None:
    """Other origins, stated classes, pages of the middleware, paths of no route, exempt routes."""
    service = Service({"admission": {"max_in_flight": 10, "criticality_header": "X-Class"}})
    await service.used_up()
    assert await service.outside()
    assert not await service.outside(**ORIGIN)
    assert not await service.outside(**{"X-Class": "critical"})
    assert (await service.get("/page")).text == "of the middleware"
    assert not await service.outside("/nowhere")
    assert (await service.get("/free")).status_code == 200
    assert (await service.get(key="pro-1")).status_code == 200


async def test_of_a_pod_that_leaves_answers_end_their_connections() -> None:
    service = Service()
    await service.used_up()
    service.works._leave()
    answer = await service.get()
    assert (answer.status_code, answer.headers["connection"]) == (429, "close")


async def test_a_key_that_is_not_known_yet_is_asked_about_inside() -> None:
    """Its address may be over its limit; the key need not be."""

    async def resolve(key: str) -> str | None:
        return "pro" if key == "resolved" else None

    service = Service(resolve=resolve)
    await service.used_up(key="stranger")
    assert (await service.get(key="resolved")).status_code == 200
    assert await service.outside(key="stranger") is False
    assert await service.outside(key="")


@pytest.mark.parametrize("mode", ["shadow", "off"])
async def test_limits_that_do_not_refuse_do_not_refuse_here(mode: str) -> None:
    service = Service({"fairness": FAIRNESS | {"mode": mode}})
    assert {(await service.get()).status_code for _ in range(30)} == {200}


async def test_what_is_only_watched_is_still_asked() -> None:
    watched = {**FAIRNESS["endpoints"], "/hello": {"rate": "500/min", "mode": "shadow"}}
    service = Service({"fairness": FAIRNESS | {"endpoints": watched}})
    await service.used_up()
    assert not await service.outside()
    await asyncio.sleep(0)
    assert [ask.name for question in service.store.questions for ask in question.asks] == [
        "endpoint:/hello"
    ]


async def test_a_policy_that_changes_holds_here_too() -> None:
    """A wider limit lets in at once, a new dialect speaks at once."""
    service = Service()
    await service.used_up()
    told = FAIRNESS | {"headers": "x-ratelimit"}
    service.works._adopt(parse(POLICY | {"fairness": told}, "test", {}))
    assert (await service.get()).headers["x-ratelimit-limit"] == "10"
    assert await service.outside()
    tiers = FAIRNESS["tiers"] | {"free": {"rate": "20/min"}}
    service.works._adopt(parse(POLICY | {"fairness": FAIRNESS | {"tiers": tiers}}, "test", {}))
    assert [(await service.get()).status_code for _ in range(11)] == [200] * 10 + [429]


async def test_a_policy_that_changes_on_the_way_in_holds_inside() -> None:
    """What was found out outside was by the old one."""
    service = Service()
    await service.get()
    tiers = FAIRNESS["tiers"] | {"free": {"rate": "20/min"}}
    wider = parse(POLICY | {"fairness": FAIRNESS | {"tiers": tiers}}, "test", {})
    Seen.meanwhile = staticmethod(lambda: service.works._adopt(wider))
    assert (await service.get()).headers["ratelimit-policy"] == '"tier:free";q=20;w=60'


async def test_where_middleware_changes_paths_everybody_goes_inside() -> None:
    """There the route is another one than it seems outside, and so may its limits be."""
    endpoints = {"/hello": "1/min"}
    service = Service({"fairness": FAIRNESS | {"endpoints": endpoints}})
    await service.used_up()
    assert await service.outside()
    Seen.rewrite["/items/3"] = "/hello"
    first = await service.get("/items/3", "free-2")
    assert first.headers["ratelimit-policy"] == '"tier:free";q=10;w=60, "endpoint:/hello";q=1;w=60'
    Seen.rewrite.update({"/hello": "/free"})
    assert (await service.get()).status_code == 200


async def test_an_admitted_request_pays_once_for_being_looked_at() -> None:
    """What was found out outside is used inside: the route is looked for once."""
    service, looks = Service(), 0
    assert service.works._routes is not None
    find = service.works._routes.find

    def counted(scope: Any) -> Any:
        nonlocal looks
        looks += 1
        return find(scope)

    service.works._routes.find = counted  # type: ignore[method-assign]  # counted
    assert (await service.get("/items/3")).headers["ratelimit"].startswith('"tier:free";r=9;')
    assert looks == 1


async def test_a_rule_of_a_route_that_raises_is_answered_inside() -> None:
    """A number too long for `int` raises where the route is looked for."""
    service = Service()

    @service.app.get("/numbers/{number:int}")
    async def number(number: int) -> int:
        return number

    with pytest.raises(ValueError, match="digits"):
        await service.get("/numbers/" + "9" * 5000)
    assert len(Seen.paths) == 1
    assert [event.status for event in service.sink.of(Served)] == [500]


async def test_a_client_that_does_not_read_its_refusal_is_cut_off() -> None:
    service = Service({"admission": {"max_in_flight": 10, "write_stall": "2s"}})
    await service.used_up()

    class Transport:
        aborted = False

        def abort(self) -> None:
            self.aborted = True

    class Cycle:
        transport = Transport()

        async def send(self, message: Any) -> None:
            await asyncio.Event().wait()

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/hello",
        "headers": [(b"x-api-key", b"free-1")],
        "client": ("203.0.113.7", 1),
    }
    began, cycle = asyncio.get_running_loop().time(), Cycle()
    await service.app(scope, lambda: None, cycle.send)  # type: ignore[arg-type]  # nothing is received
    assert asyncio.get_running_loop().time() - began == pytest.approx(2)
    assert cycle.transport.aborted
    assert [event.status for event in service.sink.of(Served)] == [429]
