"""What a request's verdict that was asked ahead of the application says in its answer: once, in the head
of what the application answers, and of nothing that is answered in its place; in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from tests.protected import POLICY
from tests.test_works_ahead import HEADER, Service

from headworks import Headworks
from headworks.current import current
from headworks.errors import VendorOpen
from headworks.policy.load import parse
from headworks.store.memory import MemoryStore

START = {"type": "http.response.start", "status": 200, "headers": [(b"ratelimit", b"theirs")]}


def told_of(answer: httpx2.Response) -> list[str]:
    """What is left of the tier's ten, as often as the answer says so."""
    return answer.headers.get_list("ratelimit")


def _app(*middleware: Middleware) -> FastAPI:
    app = FastAPI(middleware=list(middleware))

    @app.get("/theirs")
    async def theirs() -> JSONResponse:
        return JSONResponse("hello", headers={"RateLimit": "theirs"})

    @app.get("/stream")
    async def stream(fails: bool = False) -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            if fails:
                raise VendorOpen("llm", retry_after=7.0)
            yield b"one"
            yield b"two"

        return StreamingResponse(parts())

    @app.get("/refused")
    async def refused() -> None:
        raise VendorOpen("llm", retry_after=7.0)

    @app.get("/late")
    async def late() -> None:
        await asyncio.sleep(1000)

    @app.get("/raises")
    async def raises() -> None:
        raise ZeroDivisionError

    return app


ZIPPED = Middleware(GZipMiddleware, minimum_size=1)


async def get(service: Service, path: str, **headers: str) -> httpx2.Response:
    service.order.clear()
    transport = httpx2.ASGITransport(
        app=service.app, client=("203.0.113.7", 1), raise_app_exceptions=False
    )
    async with httpx2.AsyncClient(transport=transport, base_url="http://svc") as client:
        answer = await client.get(path, headers={"X-API-Key": "free-1", **headers})
    assert service.order[:1] == ["asked"], "ahead of the application"
    return answer


def watched(service: Service) -> list[str]:
    """What its application sends, from here on, by type."""
    app, sent = service.app, list[str]()

    async def watching(scope: Any, receive: Any, send: Any) -> None:
        async def note(message: Any) -> None:
            sent.append(message["type"])
            await send(message)

        await app(scope, receive, note)

    service.app = watching
    return sent


@pytest.mark.parametrize("middleware", [(), (ZIPPED,)])
@pytest.mark.parametrize("path", ["/theirs", "/stream", "/refused"])
async def test_an_answer_of_the_application_tells_once(
    middleware: tuple[Middleware, ...], path: str
) -> None:
    service = Service(app=_app(*middleware))
    for left in (9, 8):
        answer = await get(service, path)
        (told,) = told_of(answer)
        assert told.startswith(f'"tier:free";r={left};')
        assert len(answer.headers.get_list("ratelimit-policy")) == 1


async def test_a_refusal_before_the_first_part_is_answered_though_a_head_waits_to_be_compressed() -> (
    None
):
    answer = await get(Service(app=_app(ZIPPED)), "/stream?fails=1")
    assert (answer.status_code, answer.json()["reason"]) == (503, "vendor-open")
    assert len(told_of(answer)) == 1


async def test_a_refusal_says_nothing_beyond_when_to_come_back() -> None:
    (told,) = told_of(await get(Service(app=_app()), "/refused"))
    assert told == '"tier:free";r=9;t=7'


async def test_a_refusal_after_the_head_is_raised_on() -> None:
    """Its client was told of the verdict, and is told nothing else."""
    service = Service(app=_app())
    sent = watched(service)
    answer = await get(service, "/stream?fails=1")
    assert (answer.status_code, len(told_of(answer))) == (200, 1)
    assert sent == ["http.response.start"]


async def test_what_is_answered_in_the_application_s_place_tells_nothing() -> None:
    service = Service(HEADER, app=_app())
    failed, late = await get(service, "/raises"), await get(service, "/late", **{"X-Timeout": "1"})
    assert (failed.status_code, late.status_code) == (500, 504)
    assert told_of(failed) == told_of(late) == []


async def test_the_framework_s_word_on_a_body_is_an_answer_like_any() -> None:
    service = Service(app=FastAPI(max_body_size=3))

    @service.app.post("/read")
    async def read(request: Request) -> int:
        return len(await request.body())

    transport = httpx2.ASGITransport(app=service.app, client=("203.0.113.7", 1))
    async with httpx2.AsyncClient(transport=transport, base_url="http://svc") as client:
        answer = await client.post("/read", content=b"long", headers={"X-API-Key": "free-1"})
    assert (answer.status_code, service.order, len(told_of(answer))) == (413, ["asked"], 1)


async def test_a_head_that_is_sent_again_and_again_is_left_as_it_is() -> None:
    """An application may send one dictionary to everybody."""
    service = Service(app=_app())

    class Plain(Response):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await send(START)
            await send({"type": "http.response.body", "body": b"hello"})

    @service.app.get("/plain")
    async def plain() -> Response:
        return Plain()

    for left in (9, 8):
        (told,) = told_of(await get(service, "/plain"))
        assert told.startswith(f'"tier:free";r={left};')
    assert START["headers"] == [(b"ratelimit", b"theirs")]


async def test_an_answer_says_what_the_latest_charge_left() -> None:
    service = Service(policy={"fairness": POLICY["fairness"] | {"headers": "x-ratelimit"}}, app=_app())

    @service.app.get("/dear")
    async def dear() -> str:
        await service.works.charge(4)
        assert current().ticket is not None
        return "dear"

    assert (await get(service, "/dear")).headers.get_list("x-ratelimit-remaining") == ["5"]


async def test_of_two_that_protect_one_application_the_inner_one_tells_and_nothing_is_sent_twice() -> (
    None
):
    """It is asked inside, and its ticket is the request's from then on."""
    service = Service(app=_app())
    second = parse(POLICY | {"service": {"name": "second"}}, "test", {})
    Headworks(second, store=MemoryStore(), sinks=[], pod="pod-1").protect(service.app)
    sent = watched(service)
    for path in ("/stream", "/stream?fails=1", "/refused"):
        sent.clear()
        transport = httpx2.ASGITransport(
            app=service.app, client=("203.0.113.7", 1), raise_app_exceptions=False
        )
        async with httpx2.AsyncClient(transport=transport, base_url="http://svc") as client:
            answer = await client.get(path, headers={"X-API-Key": "free-1"})
        assert sent.count("http.response.start") == 1
        assert len(told_of(answer)) == 1
