"""What a connection hears, and when: the same as of uvicorn's own protocol. In virtual time, on a wire
that notes what is done with it; where writes begin and end is all that may differ."""

from __future__ import annotations

import asyncio
import functools
import logging
from typing import Any, NamedTuple

import pytest
import wrapt
from fastapi import FastAPI
from opentelemetry.trace import INVALID_SPAN, TracerProvider
from starlette.applications import Starlette
from tests.peculiar import TAKEN_UP, Peculiar
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from headworks.deploy.protocol import Protocol
from headworks.works.door import LISTENING

BOTH: tuple[type[HttpToolsProtocol], ...] = (HttpToolsProtocol, Protocol)
KEEP_ALIVE = 5
ENOUGH = 100.0
"""Seconds after which nothing is awaited any more."""

Step = tuple[float, bytes | str]


def get(path: str = "/plain", *headers: str, method: str = "GET", version: str = "1.1") -> bytes:
    lines = [f"{method} {path} HTTP/{version}", "host: pod", *headers, "", ""]
    return "\r\n".join(lines).encode()


REFUSED = get("/refused")
POST = get("/refused", "content-length: 5", method="POST")


class Wire(asyncio.Transport):
    """A connection without a network: everything written has arrived."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.get_running_loop()
        self.began = self.loop.time()
        self.log: list[tuple[float, bytes | str]] = []
        self.closing = False
        self.protocol: Any = None

    def note(self, what: bytes | str) -> None:
        at = self.loop.time() - self.began
        if self.log and self.log[-1][0] == at and isinstance(what, bytes):
            before = self.log[-1][1]
            if isinstance(before, bytes):
                self.log[-1] = (at, before + what)
                return
        self.log.append((at, what))

    def write(self, data: Any) -> None:
        if not self.closing:
            self.note(b"" + data)

    def close(self) -> None:
        self._end("closed")

    def abort(self) -> None:
        self._end("aborted")

    def _end(self, how: str) -> None:
        if not self.closing:
            self.closing = True
            self.note(how)
            self.loop.call_soon(self.protocol.connection_lost, None)

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol


class Seen(NamedTuple):
    """All there is to see of one run."""

    log: list[tuple[float, bytes | str]]
    heard: list[str]
    events: list[str]
    told: list[str]
    requests: int


class Pod:
    """An application, and the state of the server that it is served by."""

    def __init__(self, kind: type[HttpToolsProtocol], app: Peculiar, **options: Any) -> None:
        settings = {"lifespan": "off", "proxy_headers": False, "log_config": None}
        settings |= {"timeout_keep_alive": KEEP_ALIVE, **options}
        self.kind, self.app, self.config = kind, app, Config(app.app, **settings)
        self.config.load()
        self.state = ServerState()
        self.state.default_headers = [(b"server", b"test")]

    def connect(self) -> Wire:
        wire = Wire()
        wire.protocol = self.kind(self.config, self.state, {}, wire.loop)  # type: ignore[call-arg]
        wire.protocol.access_log = self.config.access_log
        wire.protocol.connection_made(wire)
        return wire

    async def warm_up(self) -> None:
        """From here on it is known who is refused."""
        for path in TAKEN_UP:
            wire = self.connect()
            wire.protocol.data_received(get(path))
            await asyncio.sleep(0.5)
            wire.close()
            await asyncio.sleep(0.5)
        self.state.total_requests = 0
        self.app.sink.events.clear()


async def run(pod: Pod, steps: list[Step]) -> Wire:
    """Do those things at those seconds, and see what comes of it."""
    await pod.warm_up()
    wire = pod.connect()
    for at, step in steps:
        await asyncio.sleep(wire.began + at - wire.loop.time())
        if isinstance(step, bytes):
            if not wire.closing:
                wire.protocol.data_received(step)
        elif step == "lost":
            wire.closing = True
            wire.protocol.connection_lost(ConnectionResetError())
        else:
            getattr(wire.protocol, step)()
    await asyncio.sleep(wire.began + ENOUGH - wire.loop.time())
    return wire


async def seen(
    kind: type[HttpToolsProtocol], steps: list[Step], caplog: pytest.LogCaptureFixture, **options: Any
) -> Seen:
    """`within` and `app` are the application's, the other options the server's."""
    within, more = options.pop("within", lambda app: app), options.pop("app", {})
    app = Peculiar(within, **more)
    pod = Pod(kind, app, **({"access_log": False} | options))
    caplog.clear()
    wire = await run(pod, steps)
    events = sorted(map(repr, app.sink.events))  # whoever is next may be judged before one is over
    told = [record.getMessage() for record in caplog.records]
    return Seen(wire.log, app.heard, events, told, pod.state.total_requests)


SCRIPTS: dict[str, list[Step]] = {
    "idle": [(0, get())],
    "idle after a refusal": [(0, REFUSED)],
    "idle from the beginning": [],
    "another": [(0, get()), (4, get())],
    "another just before the end": [(0, get()), (4.999, get()), (9.998, get())],
    "another just after the end": [(0, get()), (5.001, get())],
    "refusals again and again": [(3.0 * n, REFUSED) for n in range(9)],
    "a first head that is slow": [(0, b"GET /pl"), (30, b"ain HTTP/1.1\r\n\r\n")],
    "a head that is slow": [(0, get()), (4, b"GET /pl"), (20, b"ain HTTP/1.1\r\n\r\n")],
    "a head that is slow after a refusal": [(0, REFUSED + b"GET /p"), (4, b"lain HTTP/1.1\r\n\r\n")],
    "work that is slow": [(0, get()), (4, get("/works"))],
    "work that is slow, then a refusal": [(0, get("/works")), (6, REFUSED)],
    "a head before its body": [(0, get("/late"))],
    "an end after the start": [(0, get("/fails-late")), (1, get())],
    "a stream": [(0, get("/stream"))],
    "refused with its body": [(0, POST + b"hello"), (1, get())],
    "refused before its body": [(0, POST), (1, b"he"), (2, b"llo" + get()), (3, REFUSED)],
    "refused, and a body that never ends": [(0, POST), (1, b"he")],
    "refused before its chunks": [
        (0, get("/refused", "transfer-encoding: chunked", method="POST")),
        (1, b"5\r\nhello\r\n"),
        (2, b"0\r\nx: y\r\n\r\n" + get()),
    ],
    "many": [(0, REFUSED + get() + get("/refused/too") + get("/works") + REFUSED * 3 + get())],
    "a refusal behind work": [(0, get("/works") + REFUSED), (1, get("/refused/too")), (3, get())],
    "refusals only": [(0, REFUSED * 50 + get("/refused/too") * 50)],
    "HEAD": [(0, get("/refused", method="HEAD") + get(method="HEAD") + REFUSED), (1, get())],
    "closed by a refused client": [(0, get("/refused", "connection: close")), (1, get())],
    "nothing follows a close": [(0, get("/refused", "connection: close") + get() + REFUSED)],
    "nothing follows a close of work": [(0, get("/works", "connection: close") + REFUSED)],
    "HTTP/1.0": [(0, get("/refused", version="1.0"))],
    "HTTP/1.0 with keep-alive": [(0, get("/refused", "connection: keep-alive", version="1.0"))],
    "HTTP/1.0, answered": [(0, get(version="1.0"))],
    "Expect, refused": [
        (0, get("/refused", "content-length: 5", "expect: 100-continue", method="POST")),
        (1, b"hello" + get()),
    ],
    "Expect, read": [
        (0, get("/echo", "content-length: 5", "expect: 100-continue", method="POST")),
        (1, b"hello"),
        (2, get()),
    ],
    "Expect, read after the head": [
        (0, get("/reads-late", "content-length: 5", "expect: 100-continue", method="POST")),
        (1, b"hello"),
        (2, get()),
    ],
    "Expect, not read": [
        (0, get("/plain", "content-length: 5", "expect: 100-continue", method="POST")),
        (1, b"hello"),
        (2, get()),
    ],
    "an upgrade that is refused": [
        (0, get("/refused", "connection: upgrade", "upgrade: h2c")),
        (1, get()),
    ],
    "an upgrade to something unknown": [(0, get("/plain", "connection: upgrade", "upgrade: h2c"))],
    "nonsense": [(0, b"nonsense\r\n\r\n")],
    "nonsense after a refusal": [(0, REFUSED), (1, b"nonsense\r\n\r\n")],
    "shutdown while idle": [(0, get()), (1, "shutdown")],
    "shutdown after a refusal": [(0, REFUSED), (1, "shutdown")],
    "shutdown before anything": [(1, "shutdown")],
    "shutdown during work": [(0, get("/works")), (1, "shutdown")],
    "shutdown between head and body": [(0, get("/late")), (1, "shutdown")],
    "shutdown before a refusal": [(0, get("/works") + REFUSED), (1, "shutdown")],
    "shutdown before refusals": [(0, get("/works") + REFUSED * 3), (1, "shutdown")],
    "shutdown during a refused upload": [(0, POST), (1, "shutdown")],
    "lost during work": [(0, get("/works")), (1, "lost")],
    "lost between head and body": [(0, get("/late")), (1, "lost")],
    "lost before a refusal": [(0, get("/works") + REFUSED), (1, "lost")],
    "lost while idle": [(0, REFUSED), (1, "lost")],
    "lost at once": [(0, get()), (0, "lost")],
    "a client that does not read": [(0, "pause_writing"), (0, get()), (3, "resume_writing")],
    "a refused client that does not read": [
        (0, "pause_writing"),
        (0, REFUSED * 2),
        (1, get()),
        (3, "resume_writing"),
    ],
    "a client that stops to read": [
        (0, get("/late")),
        (1, "pause_writing"),
        (4, "resume_writing"),
        (5, get()),
    ],
    "a client that is lost before it reads": [(0, "pause_writing"), (0, REFUSED), (1, "lost")],
    "ears after the answer": [(0, get("/background")), (1, get())],
    "ears after the answer, with a body": [
        (0, get("/background", "content-length: 5", method="POST") + b"hel"),
        (1, b"lo" + get()),
    ],
    "an error in time": [(0, get("/says-something-else")), (1, get())],
}
MIXED: list[Step] = [
    (0, get()),
    (1, REFUSED),
    (2, REFUSED + get("/works") + REFUSED + get("/api/plain")),
    (6, get("/sub/plain") + get("/sub/refused") + get("/nowhere") + get("/health")),
    (7, get("/fails")),
]


class Around:
    """Another application around it, which adds a header; it shows all that the inner one has."""

    def __init__(self, app: Any) -> None:
        self.app = app

    def __getattr__(self, name: str) -> Any:
        return getattr(self.app, name)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (b"x-around", b"yes")]}
            await send(message)

        await self.app(scope, receive, sending)


class Overriding(FastAPI):
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await Around(super().__call__)(scope, receive, send)


def mounted(app: Any) -> FastAPI:
    outer = FastAPI()
    outer.mount("/sub", app)
    return outer


def rooted(app: Any) -> Any:
    app.root_path = "/api"
    return app


OPTIONS: dict[str, dict[str, Any]] = {
    "as pods run": {},
    "an access log": {"access_log": True},
    "too many connections": {"limit_concurrency": 1},
    "the server's root path": {"root_path": "/api"},
    "the application's root path": {"within": rooted},
    "kept for no time": {"timeout_keep_alive": 0},
    "fresh contexts": {"reset_contextvars": True},
    "addresses by the server": {"proxy_headers": True},
    "another application around it": {"within": Around},
    "a subclass with a call of its own": {"app": {"kind": Overriding}},
    "mounted in another one": {"within": mounted},
}


@pytest.mark.parametrize("option", OPTIONS)
async def test_whatever_the_server_and_the_application_are_told(
    option: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    theirs, ours = [await seen(kind, MIXED, caplog, **OPTIONS[option]) for kind in BOTH]
    assert ours.log == theirs.log
    assert ours == theirs


@pytest.mark.parametrize("kind", [Starlette, FastAPI])
@pytest.mark.parametrize("put", ["plainly", "with the names of the function", "by a proxy"])
async def test_a_call_put_in_place_of_the_applications_own_is_not_passed_by(
    kind: type[Starlette], put: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As those do who trace requests; also once the application has started."""
    inner, calls = kind.__call__, 0

    def traced(self: Any, scope: Any, receive: Any, send: Any) -> Any:
        nonlocal calls
        calls += 1
        return inner(self, scope, receive, send)

    def by_proxy(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return wrapped(*args, **kwargs)

    app = Peculiar()
    pod = Pod(Protocol, app, access_log=False)
    await pod.warm_up()
    await asyncio.sleep(LISTENING)
    call: Any = traced if put == "plainly" else functools.wraps(inner)(traced)
    monkeypatch.setattr(
        kind, "__call__", wrapt.FunctionWrapper(inner, by_proxy) if put == "by a proxy" else call
    )
    await run(pod, [(2, get()), (3, REFUSED), (4, REFUSED)])
    assert calls == 5, "of these three, and of two that warmed up"


async def test_requests_are_traced_where_somebody_traces(caplog: pytest.LogCaptureFixture) -> None:
    class Tracers(TracerProvider):
        asked = 0

        def get_tracer(self, *args: Any, **options: Any) -> Any:
            return self

        def start_span(self, *args: Any, **options: Any) -> Any:
            Tracers.asked += 1
            return INVALID_SPAN

    counts = []
    for kind in BOTH:
        Tracers.asked = 0
        await seen(kind, MIXED, caplog, app={"telemetry": {"tracer_provider": Tracers()}})
        counts.append(Tracers.asked)
    requests = len(TAKEN_UP) + sum(step.count(b" HTTP/1.1") for _, step in MIXED)
    assert counts == [requests] * 2


@pytest.mark.parametrize("script", SCRIPTS)
async def test_a_connection_hears_what_uvicorn_would_say(
    script: str, caplog: pytest.LogCaptureFixture
) -> None:
    """At the same moments, to the byte; and so do the application, the log and the metrics."""
    caplog.set_level(logging.INFO)
    theirs, ours = [await seen(kind, SCRIPTS[script], caplog) for kind in BOTH]
    assert ours.log == theirs.log
    assert ours == theirs


@pytest.mark.parametrize("remembers", [True, False])
async def test_three_thousand_refusals_that_wait_behind_work_do_not_pile_up(
    remembers: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Each is decided when the answer before it has been sent: by what is known, or by the store."""
    steps: list[Step] = [(0, get("/works") + REFUSED * 3000 + get())]
    theirs, ours = [await seen(kind, steps, caplog, app={"remembers": remembers}) for kind in BOTH]
    assert ours == theirs
    assert ours.requests == 3002
