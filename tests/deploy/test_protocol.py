"""No client can tell the protocol of a pod from uvicorn's own: byte for byte, over real sockets."""

from __future__ import annotations

import asyncio
import gc
import random
import re
import socket
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from contextvars import ContextVar, copy_context
from typing import Any

import pytest
import uvloop
from tests.peculiar import TAKEN_UP, WAYS, Peculiar
from tests.serving import serving

from headworks.deploy.protocol import Protocol
from headworks.telemetry import Decided, Served

pytestmark = pytest.mark.real

PATIENCE = 30.0
"""Seconds after which something has not happened."""
LAST = b"GET /plain HTTP/1.1\r\nconnection: close\r\n\r\n"
PATHS = [*WAYS, *TAKEN_UP, "/file", "/health", "/nowhere", "/plain/"]


class Unlogged(Protocol):
    """Without an access log, as pods run it, whatever pytest has put into the loggers."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.access_log = False


class Servers:
    """uvicorn's own and ours, each with an application of its own, in a thread."""

    def __init__(self, loop: str) -> None:
        self._loop: Any = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}[loop]
        self._thread = threading.Thread(target=self._run)
        self._ready = threading.Event()

    def __enter__(self) -> list[int]:
        self._thread.start()
        assert self._ready.wait(PATIENCE)
        return self.ports

    def __exit__(self, *error: object) -> None:
        self._its_loop.call_soon_threadsafe(self._over.set)
        self._thread.join(PATIENCE)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._its_loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        options = {"lifespan": "off", "proxy_headers": False, "access_log": False, "date_header": False}
        theirs = serving(Peculiar().app, http="httptools", **options)
        ours = serving(Peculiar().app, http=Unlogged, **options)
        async with theirs as (one, _), ours as (other, _):
            self.ports = [one, other]
            self._ready.set()
            await self._over.wait()


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def ports(request: pytest.FixtureRequest) -> Iterator[list[int]]:
    with Servers(request.param) as ports:
        for port in ports:  # from here on it is known who is refused
            for path in TAKEN_UP:
                with Client(port) as client:
                    client.ask(b"GET %b HTTP/1.1\r\n\r\n" % path.encode())
        yield ports


class Client:
    """Reads what it is answered as a client of HTTP would, and keeps it as it was sent."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self.got = b""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.socket.close()

    def ask(self, request: bytes) -> bytes:
        """One answer, or as much of it as came."""
        try:
            self.socket.sendall(request)
        except ConnectionError:
            return self.rest()
        return self.answer(b"HEAD" if request.startswith(b"HEAD") else b"")

    def answer(self, method: bytes = b"") -> bytes:
        head = self._until(lambda: self._after(b"\r\n\r\n"))
        if method == b"HEAD" or head[9:12] in (b"100", b"204", b"304"):
            return head
        if b"chunked" in head:
            return head + self._until(lambda: self._after(b"0\r\n\r\n"))
        if length := re.search(rb"content-length: \+?(\d+)", head):
            size = int(length[1])
            return head + self._until(lambda: size if len(self.got) >= size else -1)
        return head + self.rest()

    def rest(self) -> bytes:
        """Until the connection ends."""
        return self._until(lambda: -1)

    def _after(self, end: bytes) -> int:
        found = self.got.find(end)
        return found if found < 0 else found + len(end)

    def _until(self, found: Callable[[], int]) -> bytes:
        """What comes up to there, or to the end."""
        while (upto := found()) < 0:
            try:
                more = self.socket.recv(1 << 20)
            except ConnectionError:
                more = b""
            if not more:
                upto = len(self.got)
                break
            self.got += more
        taken, self.got = self.got[:upto], self.got[upto:]
        return taken


def request(method: str, path: str, *headers: str, version: str = "1.1", body: bytes = b"") -> bytes:
    lines = [f"{method} {path} HTTP/{version}", "host: pod", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def one_after_the_other(port: int, *requests: bytes) -> list[bytes]:
    with Client(port) as client:
        return [*map(client.ask, requests), client.ask(LAST), client.rest()]


def at_once(port: int, *requests: bytes) -> list[bytes]:
    with Client(port) as client:
        client.socket.sendall(b"".join(requests) + LAST)
        return [client.rest()]


def posted(path: str, *headers: str) -> bytes:
    return request("POST", path, "content-length: 5", *headers, body=b"hello")


FORMS: dict[str, Any] = {
    "one after the other": lambda port, path: one_after_the_other(
        port, *[request("GET", path)] * 2, request("HEAD", path), posted(path), request("GET", path)
    ),
    "at once": lambda port, path: at_once(
        port, request("GET", path), posted(path), request("HEAD", path)
    ),
    "behind another": lambda port, path: at_once(port, request("GET", "/parts"), request("GET", path)),
    "before a refusal": lambda port, path: at_once(
        port, *[request("GET", path), request("GET", "/refused")] * 2
    ),
    "connection: close": lambda port, path: one_after_the_other(
        port, request("GET", path, "connection: close")
    ),
    "1.0": lambda port, path: one_after_the_other(port, request("GET", path, version="1.0")),
    "in chunks": lambda port, path: one_after_the_other(
        port, request("POST", path, "transfer-encoding: chunked", body=b"5\r\nhello\r\n0\r\n\r\n")
    ),
}
SLOW = ("/works", "/late", "/fails-late", "/says-something-else")
"""What takes its time, or keeps its client waiting, is looked at in virtual time."""


@pytest.mark.parametrize("path", [path for path in PATHS if path not in SLOW])
def test_answers_are_uvicorns(ports: list[int], path: str) -> None:
    """To every form of request for every kind of answer, and what the connection is good for then."""
    for form, ask in FORMS.items():
        theirs, ours = [ask(port, path) for port in ports]
        assert ours == theirs, form


def test_five_thousand_refusals_at_once_are_answered_in_their_order(ports: list[int]) -> None:
    """With others between them, and though the client begins to read when it has sent them all."""
    chance = random.Random(1)
    paths = chance.choices([*TAKEN_UP, "/plain", "/stream"], [50, 50, 1, 1], k=5000)
    sent = b"".join(request("GET", path) for path in paths) + LAST
    for port in ports:
        with Client(port) as client:
            sending = threading.Thread(target=client.socket.sendall, args=(sent,))
            sending.start()
            got = client.rest()
            sending.join(PATIENCE)
        answers = got.split(b"HTTP/1.1 ")[1:]
        limits = [re.search(rb'"limit":"endpoint:([^"]+)"', answer) for answer in answers]
        told = [limit[1].decode() if limit else "" for limit in limits]
        assert told == [path if path in TAKEN_UP else "" for path in paths] + [""]


def test_a_refused_upload_hears_its_refusal_and_the_connection_goes_on(ports: list[int]) -> None:
    """Of more than the sockets' buffers hold: the client reads when it has sent everything."""
    large = bytes(16 * 1024 * 1024)
    upload = request("POST", "/refused", f"content-length: {len(large)}", body=large)
    theirs, ours = [one_after_the_other(port, upload, upload) for port in ports]
    assert ours == theirs
    assert [answer[:12] for answer in ours] == [b"HTTP/1.1 429"] * 2 + [b"HTTP/1.1 200", b""]


@asynccontextmanager
async def watched() -> AsyncIterator[tuple[Peculiar, Callable[[bytes], Awaitable[bytes]]]]:
    """An application served as by a pod in this loop, and a client of it who is known to be refused."""
    app = Peculiar()
    options = {"lifespan": "off", "proxy_headers": False, "access_log": False}
    async with serving(app.app, http=Unlogged, **options) as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)

        async def ask(sent: bytes) -> bytes:
            async with asyncio.timeout(PATIENCE):
                writer.write(sent)
                head = await reader.readuntil(b"\r\n\r\n")
                size = re.search(rb"content-length: (\d+)", head)
                return head + await reader.readexactly(int(size[1]) if size else 0)

        try:
            await ask(request("GET", "/refused"))
            yield app, ask
        finally:
            writer.close()


async def test_a_known_refusal_takes_no_task_and_is_told_of_by_its_route() -> None:
    tasks: list[object] = []

    def counted(loop: Any, coro: Any, **options: Any) -> asyncio.Task[Any]:
        tasks.append(coro)
        return asyncio.Task(coro, loop=loop, **options)

    async with watched() as (app, ask):
        loop = asyncio.get_running_loop()
        app.sink.events.clear()
        loop.set_task_factory(counted)
        try:
            for _ in range(3):
                assert (await ask(request("GET", "/refused"))).startswith(b"HTTP/1.1 429 ")
                assert (await ask(posted("/refused"))).startswith(b"HTTP/1.1 429 ")
            assert tasks == []
            assert (await ask(request("GET", "/plain"))).startswith(b"HTTP/1.1 200 ")
            assert len(tasks) == 1, "which is how one that is answered is seen"
        finally:
            loop.set_task_factory(None)
        refused = app.sink.of(Decided)[:6]
        assert [(event.layer, event.rule) for event in refused] == [
            ("fairness", "endpoint:/refused")
        ] * 6
        served = [(event.route, event.method, event.status) for event in app.sink.of(Served)]
        expected = [("/refused", "GET", 429), ("/refused", "POST", 429)] * 3
        assert served == [*expected, ("/plain", "GET", 200)]


class Marked:
    """Something that a request leaves in its scope and context."""


MARKED: ContextVar[Marked | None] = ContextVar("marked", default=None)


@pytest.mark.parametrize("path", ["/plain", "/stream", "/parts", "/refused"])
async def test_an_idle_connection_holds_nothing_of_its_last_request(path: str) -> None:
    """Neither its scope nor its context."""
    marks: list[weakref.ref[Marked]] = []

    class Marking(Unlogged):
        def on_headers_complete(self) -> None:
            self.scope["state"]["mark"] = mark = Marked()
            marks.append(weakref.ref(mark))
            context = copy_context()
            context.run(MARKED.set, mark)
            context.run(super().on_headers_complete)

    options = {"lifespan": "off", "proxy_headers": False, "access_log": False}
    options["timeout_keep_alive"] = 10 * PATIENCE
    async with serving(Peculiar().app, http=Marking, **options) as (port, server):
        # The pod's own timer is set by whoever comes first, and has its context.
        await asyncio.to_thread(one_after_the_other, port, request("GET", path))
        marks.clear()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            for n in range(3):
                writer.write(request("GET", path))
                async with asyncio.timeout(PATIENCE):
                    await reader.readuntil(b"]}" if path == "/refused" else b"llo")
                    while any(mark() for mark in marks):
                        await asyncio.sleep(0.01)
                        gc.collect()
                assert len(marks) == n + 1
            assert len(server.server_state.connections) == 1, "it is still there"
        finally:
            writer.close()


def test_refused_heads_do_not_add_up_to_one_without_end(ports: list[int]) -> None:
    """However many bytes of them a connection has brought: more than one head may have."""
    refused = request("GET", "/refused", "x: " + "y" * 5000)
    theirs, ours = [one_after_the_other(port, *[refused] * 20) for port in ports]
    assert ours == theirs
