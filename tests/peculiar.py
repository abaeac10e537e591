"""A protected application that answers in every way there is, right and wrong, each by its path."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.responses import FileResponse
from starlette.routing import Route
from tests.protected import POLICY

from headworks import Headworks
from headworks.policy.load import parse
from headworks.store.deny import DenyCache
from headworks.store.memory import MemoryStore
from headworks.testing.recording import RecordingSink

Send = Callable[[dict[str, Any]], Awaitable[None]]
Way = Callable[["Peculiar", Callable[[], Awaitable[Any]], Send], Awaitable[None]]

FIVE = (b"content-length", b"5")
LARGE = bytes(range(256)) * 4096
TAKEN_UP = ("/refused", "/refused/too")
"""Paths whose requests cost more than their limit ever holds: their refusals never change."""


def start(*headers: Any, status: Any = 200, **more: Any) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": list(headers), **more}


def part(body: Any = b"hello", **more: Any) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, **more}


def said(*messages: dict[str, Any]) -> Way:
    """An answer of these messages, with a turn of the loop between them where one says so."""

    async def answer(app: Peculiar, receive: Any, send: Send) -> None:
        for message in messages:
            if message["type"] == "turn":
                await asyncio.sleep(0)
            else:
                await send(message)

    return answer


async def _echo(app: Peculiar, receive: Any, send: Send) -> None:
    got, more = b"", True
    while more:
        message = await receive()
        got, more = got + message.get("body", b""), message.get("more_body", False)
    length = b"%d" % len(got)
    await said(start((b"content-length", b"%d" % len(length))), part(length))(app, receive, send)


async def _background(app: Peculiar, receive: Any, send: Send) -> None:
    """Goes on after its answer, and listens."""
    await said(start(FIVE), part())(app, receive, send)
    while (message := await receive())["type"] == "http.request":
        pass
    app.heard.append(message["type"])


async def _fails_after_start(app: Peculiar, receive: Any, send: Send) -> None:
    await send(start(FIVE))
    raise RuntimeError("after the start")


async def _reads_late(app: Peculiar, receive: Any, send: Send) -> None:
    """The body, once the head is out: nothing is left to be told to continue."""
    await send(start(FIVE))
    message = await receive()
    await send(part(message["body"]))


async def _fails_late(app: Peculiar, receive: Any, send: Send) -> None:
    await send(start(FIVE))
    await asyncio.sleep(0.01)
    raise RuntimeError("a while after the start")


async def _fails(app: Peculiar, receive: Any, send: Send) -> None:
    raise RuntimeError("before the start")


async def _says_something_else(app: Peculiar, receive: Any, send: Send) -> None:
    """Hears at once that its first answer cannot be sent, and sends another."""
    with suppress(RuntimeError):
        await send(start(FIVE, (b"x", b"a\nb")))
        app.heard.append("taken")
    await send(part())


async def _changes_its_headers(app: Peculiar, receive: Any, send: Send) -> None:
    headers = [FIVE, (b"x", b"then")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    headers[1] = (b"x", b"now")
    await send(part())


async def _generates(app: Peculiar, receive: Any, send: Send) -> None:
    headers = (header for header in (FIVE, (b"x", b"y")))
    await said({**start(), "headers": headers}, part())(app, receive, send)


async def _late(app: Peculiar, receive: Any, send: Send) -> None:
    """Sends its head, and the rest two seconds later."""
    await send(start(FIVE))
    await asyncio.sleep(2)
    await send(part())


async def _works(app: Peculiar, receive: Any, send: Send) -> None:
    """Takes two seconds."""
    await asyncio.sleep(2)
    await said(start(FIVE), part())(app, receive, send)


TURN = {"type": "turn"}
WAYS: dict[str, Way] = {
    "/plain": said(start(FIVE, (b"content-type", b"text/plain")), part()),
    "/capitals": said(start((b"Content-Length", b"5"), (b"X-Thing", b"Y")), part()),
    "/lists": said(start([b"content-length", b"5"], [b"x", b"y"]), part()),
    "/some-lists": said(start(FIVE, [b"x", b"y"]), part()),
    "/generator": _generates,
    "/tuple": said({**start(), "headers": (FIVE,)}, part()),
    "/no-headers": said({"type": "http.response.start", "status": 200}, part()),
    "/no-body": said(start((b"content-length", b"0")), {"type": "http.response.body"}),
    "/empty": said(start((b"content-length", b"0")), part(b"")),
    "/views": said(start(FIVE), part(memoryview(b"hello"))),
    "/array": said(start(FIVE), part(bytearray(b"hello"))),
    "/large": said(start((b"content-length", b"%d" % len(LARGE))), part(LARGE)),
    "/zeros": said(start((b"content-length", b"005")), part()),
    "/two-lengths": said(start(FIVE, FIVE), part()),
    "/other-lengths": said(start(FIVE, (b"content-length", b"9")), part()),
    "/length-and-chunks": said(start(FIVE, (b"transfer-encoding", b"chunked")), part()),
    "/chunks": said(start((b"transfer-encoding", b"chunked")), part()),
    "/closes": said(start(FIVE, (b"connection", b"close")), part()),
    "/no-number": said(start((b"content-length", b"five")), part()),
    "/signed": said(start((b"content-length", b"+5")), part()),
    "/too-long": said(start(FIVE), part(b"hello, you")),
    "/too-short": said(start(FIVE), part(b"hi")),
    "/parts": said(start(FIVE), TURN, part(b"he", more_body=True), TURN, TURN, part(b"llo")),
    "/hasty-parts": said(start(FIVE), part(b"he", more_body=True), part(b"llo")),
    "/open-end": said(start(FIVE), part(more_body=True), TURN, part(b"")),
    "/stream": said(start(), TURN, part(b"he", more_body=True), TURN, part(b"llo")),
    "/nothing": said(start(status=204), part(b"")),
    "/nothing-measured": said(start((b"content-length", b"0"), status=204), part(b"")),
    "/unchanged": said(start(status=304), part(b"")),
    "/unchanged-measured": said(start(FIVE, status=304), part(b"")),
    "/no-phrase": said(start(FIVE, status=299), part()),
    "/no-status": said(start(FIVE, status=700), part()),
    "/odd-status": said(start(FIVE, status="200"), part()),
    "/bad-value": said(start(FIVE, (b"x", b"a\r\nset-cookie: b")), part()),
    "/bad-name": said(start(FIVE, (b"x y", b"a")), part()),
    "/text-header": said(start(FIVE, ("x", "y")), part()),
    "/three": said(start(FIVE, (b"x", b"y", b"z")), part()),
    "/text": said(start(FIVE), part("hello")),
    "/none": said(start(FIVE), part(None)),
    "/silent": said(),
    "/body-first": said(part()),
    "/no-end": said(start(FIVE)),
    "/no-end-late": said(start(FIVE), TURN, TURN),
    "/two-starts": said(start(FIVE), start(FIVE), part()),
    "/two-ends": said(start(FIVE), part(), part()),
    "/restarts": said(start(FIVE), part(), start(FIVE)),
    "/unknown": said(start(FIVE, type="http.response.other"), part()),
    "/fails": _fails,
    "/fails-after-start": _fails_after_start,
    "/fails-late": _fails_late,
    "/reads-late": _reads_late,
    "/says-something-else": _says_something_else,
    "/changes-its-headers": _changes_its_headers,
    "/background": _background,
    "/echo": _echo,
    "/works": _works,
    "/late": _late,
}


class Peculiar:
    """The application, its works and what it has noticed; to be made where its loop runs.

    within     what to have around it, given the protected application
    kind       its class; options are its own
    remembers  whether its store knows without being asked whom it has refused
    """

    def __init__(
        self,
        within: Callable[[Any], Any] = lambda app: app,
        kind: type[FastAPI] = FastAPI,
        remembers: bool = True,
        **options: Any,
    ) -> None:
        self.heard: list[str] = []
        self.sink = RecordingSink()
        fairness = {
            "headers": "off",
            "default_tier": "free",
            "tiers": {"free": {"rate": "1000000/s"}},
            "endpoints": dict.fromkeys(TAKEN_UP, "3/min"),
        }
        policy = POLICY | {"fairness": fairness, "admission": {"max_in_flight": 100}}
        self.store = DenyCache(MemoryStore()) if remembers else MemoryStore()
        works = Headworks(parse(policy, "test", {}), store=self.store, sinks=[self.sink], pod="pod-1")
        app = kind(**options)
        for path in TAKEN_UP:
            app.api_route(path, methods=["GET", "HEAD", "POST"])(works.cost(5)(_never))
        app.get("/file")(_file)
        for path, way in WAYS.items():
            app.router.routes.append(Route(path, _Raw(self, way)))
        self.protected = works.protect(app)
        self.app = within(self.protected)


class _Raw:
    def __init__(self, app: Peculiar, way: Way) -> None:
        self.app, self.way = app, way

    async def __call__(self, scope: Any, receive: Any, send: Send) -> None:
        await self.way(self.app, receive, send)


async def _never() -> None:
    raise AssertionError("this is always refused")


async def _file() -> FileResponse:
    return FileResponse(Path(__file__), headers={"last-modified": "once", "etag": "one"})
