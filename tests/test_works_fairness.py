"""Layer 4 through the whole way in: scopes, modes, markers, websockets, headers; in virtual time."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI, HTTPException, Response, WebSocket
from fastapi.responses import StreamingResponse
from redis.crc import key_slot
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route, WebSocketRoute
from tests.protected import CountingStore, Service

from headworks import Caller
from headworks.current import current
from headworks.errors import QuotaExceeded, VendorQuota
from headworks.fairness import limits
from headworks.store.protocol import Question
from headworks.telemetry import Decided, Shadowed
from headworks.testing.cancel import cancel_at_every_await
from headworks.verdict import Verdict

TIERS: dict[str, Any] = {
    "free": {"rate": "10/min"},
    "team": {"rate": "4/min", "tenant_rate": "6/min"},
    "pro": {"rate": "100/min"},
}
KEYS: dict[str, Any] = {
    "free-1": "free",
    "pro-1": "pro",
    "pro-2": "pro",
    "acme-1": {"tier": "team", "tenant": "acme"},
    "acme-2": {"tier": "team", "tenant": "acme"},
    "other-1": {"tier": "team", "tenant": "other"},
    "alone": "team",
}


def service(app: Any = None, *, works: dict[str, Any] | None = None, **fairness: Any) -> Service:
    """A service with a route "/hello" whose policy's fairness has these settings besides."""
    told = {"default_tier": "free", "tiers": TIERS, "keys": KEYS} | fairness
    made = Service(app, {"fairness": told}, **(works or {}))

    async def hello(request: Any) -> PlainTextResponse:
        return PlainTextResponse("hello")

    made.app.router.routes.append(Route("/hello", hello))
    return made


async def statuses(made: Service, key: str, count: int, path: str = "/hello") -> list[int]:
    async with made.client(key=key) as client:
        found = [(await client.get(path)).status_code for _ in range(count)]
    await asyncio.sleep(0)  # what is only watched is asked beside the request
    return found


# --- scopes


async def test_the_keys_of_a_tenant_share_what_it_gets() -> None:
    """Each key has its own four, all of the tenant six; another tenant, and a key of none, their own."""
    made = service()
    assert await statuses(made, "acme-1", 5) == [200] * 4 + [429]
    assert await statuses(made, "acme-2", 3) == [200] * 2 + [429]
    assert await statuses(made, "other-1", 1) == [200]
    assert await statuses(made, "alone", 5) == [200] * 4 + [429]
    async with made.client(key="acme-2") as client:
        assert (await client.get("/hello")).json()["limit"] == "tenant:team"


async def test_the_resolver_says_which_tenant_a_key_belongs_to() -> None:
    async def resolve(key: str) -> Caller | None:
        return Caller("team", "acme")

    made = service(works={"resolve": resolve}, keys={})
    assert await statuses(made, "k1", 4) == [200] * 4
    assert await statuses(made, "k2", 4) == [200, 200, 429, 429]


async def test_an_endpoint_has_limits_of_every_scope_at_once() -> None:
    """Per user, per tenant, for all; one question; a refusal by any of them takes nothing anywhere."""
    told = ["2/min", {"rate": "3/min", "scope": "tenant"}, {"rate": "4/min", "scope": "all"}]
    made = service(endpoints={"/hello": told})
    assert await statuses(made, "acme-1", 3) == [200, 200, 429]
    assert await statuses(made, "acme-2", 3) == [200, 429, 429]
    assert await statuses(made, "pro-1", 3) == [200, 429, 429]
    async with made.client(key="pro-2") as client:
        refused = await client.get("/hello")
    assert refused.json()["limit"] == "endpoint:all:/hello"
    assert refused.headers["ratelimit"].startswith('"tier:pro";r=100;t=0, "endpoint:/hello";r=2;t=0, ')
    last = made.store.questions[-1]
    assert len(made.store.questions) == 10
    assert [ask.name for ask in last.asks] == [
        "tier:pro",
        "endpoint:/hello",
        "endpoint:tenant:/hello",
        "endpoint:all:/hello",
    ]


async def test_an_endpoint_has_limits_of_several_periods() -> None:
    """So many a second and so many a minute, told apart by name."""
    made = service(endpoints={"/hello": ["2/s", "3/min"]})
    assert await statuses(made, "pro-1", 3) == [200, 200, 429]
    await asyncio.sleep(1)
    async with made.client(key="pro-1") as client:
        answers = [await client.get("/hello") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 429]
    assert answers[1].json()["limit"] == "endpoint:60s:/hello"


async def test_the_whole_service_has_a_total() -> None:
    made = service(total_rate="5/min")
    assert await statuses(made, "pro-1", 3) == [200] * 3
    assert await statuses(made, "pro-2", 3) == [200, 200, 429]
    async with made.client(key="free-1") as client:
        refused = await client.get("/hello")
    assert refused.json()["limit"] == "total"
    assert '"tier:free";r=10' in refused.headers["ratelimit"], "a refusal by the total burns no share"


async def test_limits_of_a_caller_lie_on_one_slot_of_a_cluster() -> None:
    """Its own, its tenant's and the endpoint's together; what all share is on one other."""
    told = ["2/min", {"rate": "3/min", "scope": "tenant"}, {"rate": "4/min", "scope": "all"}]
    made = service(endpoints={"/hello": told}, total_rate="100/min")
    for key in ("acme-1", "pro-1", ""):
        await statuses(made, key, 1)
        asks = made.store.questions[-1].asks
        slots = [key_slot(ask.key.encode()) for ask in asks]
        shared = [ask.key.startswith("{all:svc}") for ask in asks]
        assert len({slot for slot, all_ in zip(slots, shared, strict=True) if not all_}) == 1
        assert shared == sorted(shared), "a caller's own limits are asked first"
        assert len(set(slots)) == 2


async def test_no_two_limits_ever_share_a_key() -> None:
    """Whatever a path looks like: a scope or a period in it is not taken for one of ours."""
    paths = ["/hello", "/hello:tenant", "/hello:60s", "/tenant:/hello"]
    told = ["2/s", "3/min", {"rate": "3/min", "scope": "tenant"}, {"rate": "4/min", "scope": "all"}]
    made = service(endpoints=dict.fromkeys(paths, told), total_rate="100/min")
    for path in paths:
        made.app.router.routes.append(Route(path, lambda request: PlainTextResponse("x")))
        await statuses(made, "alone", 1, path)
    keys = [ask.key for question in made.store.questions for ask in question.asks]
    names = [ask.name for question in made.store.questions for ask in question.asks]
    assert len(set(zip(keys, names, strict=True))) == len(set(keys)) == len(set(names))


# --- modes


async def test_a_shadow_limit_refuses_nobody_and_is_counted() -> None:
    """Alone it lets three pass of five: all are served, and the metric says what it would have done."""
    made = service(endpoints={"/hello": {"rate": "3/min", "mode": "shadow"}})
    async with made.client(key="free-1") as client:
        answers = [await client.get("/hello") for _ in range(5)]
    await asyncio.sleep(0)
    assert {answer.status_code for answer in answers} == {200}
    assert answers[-1].headers["ratelimit"].startswith('"tier:free";r=5')
    assert "endpoint" not in answers[-1].headers["ratelimit"]
    seen = made.sink.of(Shadowed)
    assert [event.admitted for event in seen] == [True] * 3 + [False] * 2
    assert {(event.layer, event.rule) for event in seen} == {("fairness", "endpoint:/hello")}
    text = made.works._metrics.render()[1].decode()
    name = "headworks_shadow_decisions_total"
    assert f'{name}{{layer="fairness",outcome="refused",rule="endpoint:/hello"}} 2.0' in text


async def test_a_shadow_limit_makes_no_other_burn_or_spare() -> None:
    """Each is a question of its own: two that would refuse leave the enforced one as it is alone."""
    shadow = {"rate": "1/min", "mode": "shadow"}
    made = service(endpoints={"/hello": [shadow, shadow | {"scope": "all"}]})
    assert await statuses(made, "free-1", 11) == [200] * 10 + [429]
    assert len(made.sink.of(Shadowed)) == 22


@pytest.mark.parametrize("mode", ["shadow", "off"])
async def test_a_mode_for_the_whole_layer_weakens_every_limit(mode: str) -> None:
    made = service(mode=mode, total_rate="1/min", endpoints={"/hello": "1/min"})
    assert await statuses(made, "free-1", 12) == [200] * 12
    assert bool(made.sink.of(Shadowed)) == (mode == "shadow")
    assert [event for event in made.sink.of(Decided) if event.layer == "fairness"] == []


@pytest.mark.parametrize("theirs", [b"x-more", b"ratelimit"])
async def test_an_applications_own_headers_stay_unless_ours_take_their_place(theirs: bytes) -> None:
    """Also where it gives them as ASGI allows: something that can be read once."""

    async def plain(scope: Any, receive: Any, send: Any) -> None:
        headers = iter([(b"content-length", b"2"), (theirs, b"theirs")])
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"ok"})

    made = service()
    made.app.router.routes.append(Mount("/plain", plain))
    async with made.client() as client:
        answer = await client.get("/plain/")
    assert answer.headers["content-length"] == "2"
    told = answer.headers.get_list("ratelimit")
    assert len(told) == 1
    assert told[0].startswith('"tier:free";r=')
    assert answer.headers.get("x-more") == ("theirs" if theirs == b"x-more" else None)


async def test_a_limit_that_is_off_is_not_asked() -> None:
    """Nor its tier's, nor its tenant's; when nothing is left to ask, nothing is asked."""
    off = {"rate": "1/min", "mode": "off"}
    made = service(
        tiers={"free": {**off, "tenant_rate": off}}, keys={}, total_rate=off, endpoints={"/hello": off}
    )
    async with made.client() as client:
        answers = [await client.get("/hello") for _ in range(3)]
    assert {answer.status_code for answer in answers} == {200}
    assert made.store.questions == []
    assert "ratelimit" not in answers[0].headers


class SlowStore(CountingStore):
    """Takes its time over limits that are only watched."""

    async def ask(self, question: Question) -> Verdict:
        if question.asks[0].name.startswith("endpoint"):
            await asyncio.sleep(0.5)
        return await super().ask(question)


async def test_a_shadow_limit_delays_nobody_and_ends_with_the_service() -> None:
    made = service(endpoints={"/hello": {"rate": "3/min", "mode": "shadow"}})
    made.store = made.works._store = made.works._fairness._store = SlowStore()
    async with made.running():
        began = asyncio.get_running_loop().time()
        assert await statuses(made, "free-1", 1) == [200]
        assert asyncio.get_running_loop().time() == began
        assert made.sink.of(Shadowed) == []
    assert len(made.sink.of(Shadowed)) == 1
    assert made.works._fairness._watching == set()


# --- exempt


async def test_exempt_routes_ask_nothing_and_count_for_nothing() -> None:
    """By marker or by the policy; also a charge there takes nothing. Others of the caller's count."""
    made = service(exempt=["/hello", "/items/{item_id:int}"])
    works = made.works

    @made.app.get("/marked")
    @works.exempt
    async def marked() -> None:
        await works.charge(1000)

    @made.app.get("/items/{item_id}")
    async def item(item_id: int) -> int:
        return item_id

    for path in ("/hello", "/marked", "/items/3"):
        assert await statuses(made, "free-1", 12, path) == [200] * 12
    assert made.store.questions == []
    assert await statuses(made, "free-1", 11, "/nothing") == [404] * 10 + [429]


# --- markers


async def test_markers_hold_wherever_the_endpoint_is_and_whatever_it_is() -> None:
    """Included routers, mounts, sub-applications, parameters, classes, partials, wrappers, objects."""
    made = Service(FastAPI(), {"fairness": {"default_tier": "pro", "tiers": TIERS}})
    works, app = made.works, made.app
    limited = works.limit("2/min")

    @limited
    async def marked(request: Any = None) -> PlainTextResponse:
        return PlainTextResponse("x")

    @functools.wraps(marked)
    async def wrapped(*args: Any) -> PlainTextResponse:
        return await marked(*args)

    class Whole(HTTPEndpoint):
        async def get(self, request: Any) -> PlainTextResponse:
            return PlainTextResponse("x")

    class Part(HTTPEndpoint):
        @limited
        async def get(self, request: Any) -> PlainTextResponse:
            return PlainTextResponse("x")

        async def post(self, request: Any) -> PlainTextResponse:
            return PlainTextResponse("x")

    class Called:
        @limited
        async def __call__(self) -> str:
            return "x"

        @limited
        async def method(self) -> str:
            return "x"

    router = APIRouter(prefix="/inner")

    @router.get("/{item_id}")
    @limited
    async def item(item_id: int) -> int:
        return item_id

    router.add_api_route("/called/x", Called())
    router.add_api_route("/method/x", Called().method)
    app.include_router(router, prefix="/outer")
    sub = FastAPI()
    sub.include_router(router)
    app.mount("/sub", sub)
    starlette = Starlette(routes=[Mount("/deep", routes=[Route("/x", marked), Route("/part", Part)])])
    app.mount("/plain", starlette)
    app.router.routes += [
        Route("/partial", functools.partial(marked)),
        Route("/wrapped", wrapped),
        Route("/whole", limited(Whole)),
        Route("/files/{path:path}", functools.partial(wrapped)),
    ]
    for path in (
        "/outer/inner/3",
        "/outer/inner/called/x",
        "/outer/inner/method/x",
        "/sub/inner/4",
        "/plain/deep/x",
        "/plain/deep/part",
        "/partial",
        "/wrapped",
        "/whole",
        "/files/a/b.txt",
    ):
        assert await statuses(made, "", 3, path) == [200, 200, 429], path
    async with made.client() as client:
        assert [(await client.post("/plain/deep/part")).status_code for _ in range(3)] == [200] * 3
        assert (await client.head("/plain/deep/part")).status_code == 429, "a HEAD is the GET's"


async def test_several_limits_are_marked_and_the_policy_takes_their_place() -> None:
    """Of different scopes and periods; two alike are a mistake that is told."""
    for endpoints, expected in (({}, [200, 200, 429]), ({"/x": "4/min"}, [200, 200, 200])):
        made = service(endpoints=endpoints)
        works = made.works

        @made.app.get("/x")
        @works.limit("2/s")
        @works.limit("50/min", scope="all")
        async def x() -> int:
            return 1

        assert await statuses(made, "pro-1", 3, "/x") == expected
    with pytest.raises(ValueError, match="already"):
        works.limit("3/s")(x)
    with pytest.raises(ValueError, match="user, tenant, all"):
        works.limit("3/s", scope="everybody")


async def test_an_application_that_goes_on_adding_routes_does_not_grow_by_the_old_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is known of routes is bounded, and made again when it is needed."""
    monkeypatch.setattr(limits, "PLANS", 10)
    made = service(endpoints={"/hello": "2/min"})
    for n in range(30):
        made.app.add_api_route(f"/added/{n}", lambda: 1)
        await statuses(made, "pro-1", 1, f"/added/{n}")
        assert len(made.works._fairness.rules.limits._plans) <= 10
    assert await statuses(made, "pro-1", 3) == [200, 200, 429]


# --- charges


async def test_a_charge_is_taken_once_or_not_at_all_and_the_answer_tells_of_it() -> None:
    """From every limit of the request together; what is refused takes nothing, and may be handled."""
    made = service(endpoints={"/spend/{units}": "8/min"})
    works = made.works

    @made.app.get("/spend/{units}")
    async def spend(units: int, again: int = 0) -> str:
        try:
            await works.charge(units)
        except QuotaExceeded:
            await works.charge(again)
            return "less"
        return "all"

    async with made.client(key="free-1") as client:
        answer = await client.get("/spend/5")  # one, and five more
        assert answer.headers["ratelimit"].startswith('"tier:free";r=4;')
        assert '"endpoint:/spend/{units}";r=2;' in answer.headers["ratelimit"]
        answer = await client.get("/spend/2?again=1")  # one; two do not fit into the endpoint's
        assert answer.json() == "less"
        assert answer.headers["ratelimit"].startswith('"tier:free";r=2;')
        assert '"endpoint:/spend/{units}";r=0;' in answer.headers["ratelimit"]
    assert len(made.store.questions) == 2 + 3


async def test_charges_at_once_are_each_taken() -> None:
    made = service()
    works = made.works

    @made.app.get("/fan")
    async def fan() -> list[bool]:
        results = await asyncio.gather(*(works.charge(3) for _ in range(5)), return_exceptions=True)
        return [result is None for result in results]

    async with made.client(key="free-1") as client:
        answer = await client.get("/fan")
        assert answer.json() == [True, True, True, False, False]
        assert (await client.get("/hello")).status_code == 429, (
            "ten are gone: one, and three times three"
        )


# --- websockets


async def connect(
    made: Service, path: str, key: str = "", *, extension: bool = True, messages: int = 0
) -> list[dict[str, Any]]:
    """Open a websocket, send it so many messages, leave; what the application sent."""
    sent: list[dict[str, Any]] = []
    coming = [{"type": "websocket.connect"}]
    coming += [{"type": "websocket.receive", "text": "x"}] * messages
    coming += [{"type": "websocket.disconnect", "code": 1000}]
    scope = {
        "type": "websocket",
        "path": path,
        "root_path": "",
        "scheme": "ws",
        "query_string": b"",
        "headers": [(b"x-api-key", key.encode())] if key else [],
        "client": ("203.0.113.7", 1),
        "server": ("svc", 80),
        "subprotocols": [],
        "extensions": {"websocket.http.response": {}} if extension else {},
    }

    async def receive() -> dict[str, Any]:
        return coming.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    await made.app(scope, receive, send)
    return sent


def chatty(made: Service) -> Service:
    """An echo that charges one per message, on an included router and a plain route."""
    works, router = made.works, APIRouter(prefix="/ws")

    @router.websocket("/{room}")
    @works.cost(2)
    async def room(websocket: WebSocket, room: str) -> None:
        await websocket.accept(headers=[(b"x-own", b"1")])
        async for text in websocket.iter_text():
            await works.charge(1)
            await websocket.send_text(text)

    async def plain(websocket: WebSocket) -> None:
        raise VendorQuota(retry_after=3.0)

    made.app.include_router(router)
    made.app.router.routes.append(WebSocketRoute("/plain", plain))
    return made


async def test_a_websocket_is_asked_when_it_connects() -> None:
    """By template, with its cost; accepted, its head tells the limits; refused, it is a 429."""
    made = chatty(service(endpoints={"/ws/{room}": "5/min"}))
    for n in range(2):
        sent = await connect(made, f"/ws/{n}", "pro-1")
        assert sent[0]["type"] == "websocket.accept"
        headers = dict(sent[0]["headers"])
        assert headers[b"x-own"] == b"1"
        assert f'"endpoint:/ws/{{room}}";r={3 - 2 * n};'.encode() in headers[b"ratelimit"]
    start, body = await connect(made, "/ws/9", "pro-1")
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 429)
    assert dict(start["headers"])[b"retry-after"] == b"60"
    assert b"ratelimit" in dict(start["headers"])
    assert b"endpoint:/ws/{room}" in body["body"]
    closed = await connect(made, "/ws/9", "pro-1", extension=False)
    assert closed == [{"type": "websocket.close", "code": 1013, "reason": "quota-exceeded"}]
    assert (await connect(made, "/ws/1", "pro-2"))[0]["type"] == "websocket.accept"
    assert len(made.store.questions) == 5


async def test_inventing_identities_opens_no_more_websockets() -> None:
    """Unknown keys count by address, as for requests, and websockets and requests count together."""
    made = chatty(service())
    kinds = [(await connect(made, "/ws/1", f"invented-{n}"))[0]["type"] for n in range(6)]
    assert kinds == ["websocket.accept"] * 5 + ["websocket.http.response.start"]
    assert await statuses(made, "", 1) == [429]


async def test_a_refusal_inside_a_websocket_closes_it() -> None:
    """Before it is accepted, with the refusal's own status; after, with the code for coming back."""
    made = chatty(service())
    sent = await connect(made, "/ws/1", "free-1", messages=10)
    assert [message["type"] for message in sent] == (
        ["websocket.accept"] + ["websocket.send"] * 8 + ["websocket.close"]
    )
    assert (sent[-1]["code"], sent[-1]["reason"]) == (1013, "quota-exceeded")
    start, _ = await connect(made, "/plain", "pro-1")
    assert (start["status"], dict(start["headers"])[b"retry-after"]) == (429, b"3")


async def test_a_defect_in_a_websocket_stays_one() -> None:
    made = service()

    @made.app.websocket("/broken")
    async def broken(websocket: WebSocket) -> None:
        raise KeyError("bug")

    @made.app.websocket("/late")
    async def late(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.close()
        raise VendorQuota

    with pytest.raises(KeyError):
        await connect(made, "/broken")
    with pytest.raises(VendorQuota):
        await connect(made, "/late")


# --- headers


def headed(made: Service) -> Service:
    """Every way in which an answer comes to be."""
    app = made.app

    @app.get("/error")
    async def error() -> None:
        raise HTTPException(418, headers={"X-Own": "1"})

    @app.get("/dict")
    async def as_dict() -> dict[str, int]:
        return {"a": 1}

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(5):
                yield b"x"

        return StreamingResponse(chunks())

    @app.get("/own")
    async def own() -> Response:
        return Response(
            headers={"RateLimit": "theirs", "RateLimit-Policy": "theirs", "X-RateLimit-Limit": "theirs"}
        )

    @app.get("/vendor")
    async def vendor() -> None:
        raise VendorQuota(retry_after=2.5)

    @app.get("/validated")
    async def validated(number: int) -> int:
        return number

    return made


@pytest.mark.parametrize("dialect", ["draft-11", "x-ratelimit", "off"])
async def test_every_answer_tells_its_limits_exactly_once(dialect: str) -> None:
    """Served, streamed, not found, not allowed, invalid, raised, refused by us or by a vendor."""
    made = headed(service(headers=dialect, endpoints={"/hello": "1/min"}))
    names = {
        "draft-11": ["ratelimit-policy", "ratelimit"],
        "x-ratelimit": ["x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"],
        "off": [],
    }[dialect]
    paths = ["/dict", "/stream", "/nothing", "/validated", "/error", "/vendor", "/hello", "/hello"]
    async with made.client(key="pro-1") as client:
        answers = [await client.get(path) for path in paths]
        answers.append(await client.delete("/hello"))
        own = await client.get("/own")
    assert [a.status_code for a in answers] == [200, 200, 404, 422, 418, 429, 200, 429, 429]
    for answer in answers:
        found = [name for name, _ in answer.headers.multi_items() if "ratelimit" in name]
        assert found == names, answer.url
        assert ("retry-after" in answer.headers) == (answer.status_code == 429)
    assert answers[1].content == b"xxxxx"
    assert answers[4].headers["x-own"] == "1"
    for name in names:
        assert own.headers.get_list(name) != ["theirs"]
        assert len(own.headers.get_list(name)) == 1


async def test_no_limit_asks_to_wait_longer_than_the_answer_does() -> None:
    """`Retry-After` is the latest word: no `t` of the same refusal is beyond it, whoever refused."""
    made = headed(service(endpoints={"/hello": "1/s"}))
    async with made.client(key="pro-1") as client:
        await client.get("/dict")
        await client.get("/hello")
        for path, wait in (("/hello", 1), ("/vendor", 3)):
            refused = await client.get(path)
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) == wait
            ends = [int(item.rpartition("t=")[2]) for item in refused.headers["ratelimit"].split(", ")]
            assert max(ends) <= wait


async def test_with_cors_every_answer_has_both_kinds_of_headers_once() -> None:
    """CORS stands outside, and exposes what it is told to; refusals are no exception."""
    made = headed(service(endpoints={"/hello": "1/min"}))
    made.app.add_middleware(
        CORSMiddleware, allow_origins=["https://ui.example"], expose_headers=["RateLimit", "Retry-After"]
    )
    async with made.client(key="pro-1") as client:
        client.headers["Origin"] = "https://ui.example"
        for path, status in (("/hello", 200), ("/hello", 429), ("/error", 418), ("/stream", 200)):
            answer = await client.get(path)
            assert answer.status_code == status
            names = [name for name, _ in answer.headers.multi_items()]
            assert names.count("access-control-allow-origin") == names.count("ratelimit") == 1
            assert "RateLimit" in answer.headers["access-control-expose-headers"]


# --- peers' bugs, each under the name of what it broke


async def test_two_users_of_one_route_have_two_buckets() -> None:
    """A route's own limiter object is not the key: one user's two hits are no other's."""
    made = service(endpoints={"/hello": "2/min"})
    assert await statuses(made, "pro-1", 3) == [200, 200, 429]
    assert await statuses(made, "pro-2", 3) == [200, 200, 429]


async def test_including_a_router_breaks_no_limited_route() -> None:
    """Routes without a path of their own are no 500, and are limited themselves."""
    made = service(endpoints={"/hello": "2/min"})
    router = APIRouter()
    router.add_api_route("/late", lambda: 1)
    made.app.include_router(router)
    assert await statuses(made, "pro-1", 3) == [200, 200, 429]
    assert await statuses(made, "free-1", 11, "/late") == [200] * 10 + [429]


async def test_a_parameter_makes_no_bucket_of_its_own() -> None:
    """Six concrete URLs are one route."""
    made = service(endpoints={"/items/{name}": "3/min"})
    made.app.add_api_route("/items/{name}", lambda name: name)
    async with made.client(key="pro-1") as client:
        found = [(await client.get(f"/items/{n}")).status_code for n in range(6)]
    assert found == [200] * 3 + [429] * 3


async def test_the_first_route_that_matches_is_the_one_that_counts() -> None:
    """As in routing: a later route of the same path neither exempts nor limits."""
    made = service()
    works = made.works
    made.app.add_api_route("/same", lambda: 1)
    made.app.add_api_route("/same", works.exempt(lambda: 2))
    assert await statuses(made, "free-1", 11, "/same") == [200] * 10 + [429]


def test_a_request_cancelled_at_any_await_leaves_nothing() -> None:
    """With a shadow limit, a slow store, a resolver and a charge on the way: no task, no lookup, no
    place is left behind."""
    world: list[Service] = []

    async def resolve(key: str) -> Caller | None:
        await asyncio.sleep(0.1)
        return Caller("pro", "acme")

    class Store(CountingStore):
        async def ask(self, question: Question) -> Verdict:
            await asyncio.sleep(0.1)
            return await super().ask(question)

    @asynccontextmanager
    async def around() -> AsyncIterator[None]:
        shadow = {"rate": "3/min", "mode": "shadow"}
        made = service(works={"resolve": resolve}, endpoints={"/spend": shadow})
        made.works._fairness._store = Store()

        @made.app.get("/spend")
        async def spend() -> None:
            await made.works.charge(2)

        world[:] = [made]
        yield

    async def scenario() -> None:
        async with world[0].client(key="new") as client:
            assert (await client.get("/spend")).status_code == 200

    def snapshot() -> Any:
        works = world[0].works
        return (
            len(works._fairness._watching),
            len(works._identifier._asking),
            works._slots.statistics().in_flight,
            current().ticket,
        )

    assert cancel_at_every_await(scenario, snapshot=snapshot, around=around) >= 3


# --- what callers send reaches no log and no metric


async def test_no_key_reaches_store_log_or_metric(caplog: pytest.LogCaptureFixture) -> None:
    """Nor the path of a request, nor a line break of either."""
    caplog.set_level(logging.DEBUG)

    async def resolve(key: str) -> str | None:
        raise LookupError(f"no {key}")

    made = service(works={"resolve": resolve})
    secret = "sk-very-secret"
    async with made.client(key=secret) as client:
        for n in range(12):
            await client.get(f"/hello%0aINJECTED-{n}", headers={"X-Forwarded-For": "INJECTED\tx"})
            await client.get("/hello", headers={"X-Request-Id": "INJECTED"})
    told = [ask.key for question in made.store.questions for ask in question.asks]
    ours = [record.getMessage() for record in caplog.records if record.name == "headworks"]
    text = "".join([*told, *ours, made.works._metrics.render()[1].decode()])
    assert "the resolver raised" in text
    assert secret not in text
    assert "INJECTED" not in text
