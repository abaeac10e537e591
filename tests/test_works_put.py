"""Requests that wait for their verdict without a task, on a real server as pods run it."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import uvloop
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from tests.ports import free_port
from tests.store.servers import Server

from headworks import Headworks
from headworks.deploy.server import server_settings
from headworks.fairness import Ahead
from headworks.policy.load import parse
from headworks.store.memory import MemoryStore
from headworks.store.protocol import Hears, Learns, Question
from headworks.telemetry import Served
from headworks.testing.recording import RecordingSink
from headworks.verdict import Verdict

pytestmark = pytest.mark.real

LARGE = 4_000_000
"""Bytes of a body, or an answer, that no socket takes at once."""
PATIENCE = 60.0
"""Seconds after which something has not happened."""


class Held(MemoryStore):
    """A store whose questions are out until the test has them answered, and then at its word."""

    def __init__(self) -> None:
        super().__init__()
        self.out: list[tuple[Question, Hears]] = []
        self.holds = False

    def put(self, question: Question, to: Hears, first: Learns | None = None) -> bool:
        if self.holds:
            self.out.append((question, to))
        return self.holds

    def tell(self, *, refuse: bool = False) -> None:
        """The one that was put first hears."""
        question, to = self.out.pop(0)
        verdict = self.ask_nowait(question)
        to(Verdict(False, 30.0, verdict.limits) if refuse else verdict)

    async def aclose(self) -> None:
        """As a store over a socket: those who are out hear that there will be no answer."""
        while self.out:
            self.tell()


class Pod:
    """A protected application on a server as `headworks serve` runs it, over a store that is held."""

    port: int
    server: uvicorn.Server

    def __init__(self, **admission: Any) -> None:
        table = {
            "schema": 1,
            "service": {"name": "put", "sla": "30s"},
            "admission": {"max_in_flight": 10, **admission},
            "fairness": {"default_tier": "free", "tiers": {"free": {"rate": "1000000/min"}}},
            "health": {"drain_timeout": "0.2s"},
        }
        self.policy = parse(table, "test", {})
        self.store, self.sink = Held(), RecordingSink()
        self.works = Headworks(
            self.policy, store=self.store, sinks=[self.sink], rng=random.Random(1), pod="pod-1"
        )
        self.app = self.works.protect(FastAPI())
        self.called: list[str] = []
        self.clients: list[Client] = []
        self.bodies: list[bytes] = []

        @self.app.get("/item/{name}")
        async def item(name: str) -> PlainTextResponse:
            self.called.append(name)
            return PlainTextResponse(name)

        @self.app.get("/broken")
        async def broken() -> None:
            raise RuntimeError("a bug of the handler's")

        @self.app.get("/large")
        async def large() -> PlainTextResponse:
            return PlainTextResponse("x" * LARGE)

        @self.app.post("/body")
        async def body(request: Request) -> PlainTextResponse:
            self.bodies.append(await request.body())
            return PlainTextResponse("read")

    @asynccontextmanager
    async def running(self, **options: Any) -> AsyncIterator[Pod]:
        """Ended in order, unlike `serving`'s: with its lifespan, which closes the store."""
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        settings = server_settings(self.policy).arguments() | {"log_level": "warning", **options}
        self.server = uvicorn.Server(uvicorn.Config(self.app, **settings))
        task = asyncio.create_task(self.server.serve(sockets=[listener]))
        try:
            await until(lambda: self.server.started)
            self.store.holds = True
            yield self
        finally:
            for client in self.clients:
                client.writer.transport.abort()
            self.server.should_exit = True
            await asyncio.wait((task,), timeout=PATIENCE)
        await task
        await until(lambda: self.held() == (0, 0))

    def held(self) -> tuple[int, int]:
        """Places taken, and requests that the application has not returned from."""
        slots = self.works._slots.statistics()
        return slots.in_flight, slots.running

    def served(self) -> list[int]:
        """The statuses told of."""
        return [event.status for event in self.sink.events if type(event) is Served]

    async def waiting(self, count: int = 1) -> None:
        await until(lambda: len(self.store.out) == count)


class Client:
    """One connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def to(cls, pod: Pod) -> Client:
        self = cls()
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", pod.port)
        pod.clients.append(self)
        return self

    def get(self, *paths: str) -> None:
        """All of them in one write."""
        heads = (f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode() for path in paths)
        self.writer.write(b"".join(heads))

    async def answer(self) -> tuple[int, str]:
        """The next one: its status and body."""
        async with asyncio.timeout(PATIENCE):
            head = await self.reader.readuntil(b"\r\n\r\n")
            size = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            return int(head[9:12]), (await self.reader.readexactly(size)).decode()


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not holds():  # noqa: ASYNC110  # a server has no event to wait for
            await asyncio.sleep(0.005)


Runs = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(
    request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> Runs:
    """Runs a test in either loop, where nothing may be complained of: by us, the loop, or uvicorn."""

    def running(test: Coroutine[Any, Any, None]) -> None:
        (asyncio.run if request.param == "asyncio" else uvloop.run)(test)
        assert [record.message for record in caplog.records if record.levelno >= logging.ERROR] == []
        assert "ERROR" not in capfd.readouterr().err

    return running


def test_a_request_waits_as_no_task_and_is_served(run: Runs) -> None:
    async def test() -> None:
        async with Pod().running() as pod:
            client = await Client.to(pod)
            client.get("/item/a")
            await pod.waiting()
            assert not pod.server.server_state.tasks
            assert (pod.held(), pod.called) == ((1, 1), [])
            pod.store.tell()
            assert await client.answer() == (200, "a")
            client.get("/item/b")
            await pod.waiting()
            pod.store.tell(refuse=True)
            assert not pod.server.server_state.tasks
            assert (await client.answer())[0] == 429
            client.get("/item/c")
            await pod.waiting()
            pod.store.tell()
            assert await client.answer() == (200, "c")
            assert (pod.called, pod.served(), pod.held()) == (["a", "c"], [200, 429, 200], (0, 0))

    run(test())


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("refuse", [False, True])
def test_a_client_that_leaves_while_its_request_waits_takes_no_place_with_it(
    run: Runs, refuse: bool, behind: bool
) -> None:
    """Hanging up at once, alone or with another request of its own behind."""

    async def test() -> None:
        async with Pod().running() as pod:
            client = await Client.to(pod)
            client.get("/item/a", *(["/item/b"] if behind else []))
            await pod.waiting()
            client.writer.transport.abort()
            if not behind:  # with one behind, nothing is read, and nobody hears that the client has left
                await until(lambda: not pod.server.server_state.connections)
            assert pod.held() == (1, 1)
            pod.store.tell(refuse=refuse)
            await until(lambda: pod.store.out or not pod.server.server_state.connections)
            if pod.store.out:  # the one behind was begun with the answer to the first
                pod.store.tell(refuse=refuse)
            await until(lambda: not pod.server.server_state.connections)
            await until(lambda: pod.held() == (0, 0) and not pod.server.server_state.tasks)
            assert (len(pod.store.out), len(pod.served())) in ((0, 1), (0, 1 + behind))

    run(test())


def test_those_behind_one_that_waits_keep_their_order(run: Runs) -> None:
    async def test() -> None:
        async with Pod().running() as pod:
            client = await Client.to(pod)
            client.get(*(f"/item/{number}" for number in range(6)))
            found = []
            for number in range(6):
                await pod.waiting()
                assert pod.held() == (1, 1), "one after the other"
                pod.store.tell(refuse=number in (1, 2, 5))
                found.append(await client.answer())
            assert [status for status, _ in found] == [200, 429, 429, 200, 200, 429]
            assert pod.called == ["0", "3", "4"] == [text for status, text in found if status == 200]

    run(test())


def test_the_place_of_a_refused_one_is_there_for_the_next_of_its_connection(run: Runs) -> None:
    """It was taken still when the next began, which a full pod then refused."""

    async def test() -> None:
        async with Pod(max_in_flight=1).running() as pod:
            client = await Client.to(pod)
            client.get("/item/a", "/item/b")
            await pod.waiting()
            pod.store.tell(refuse=True)
            assert (await client.answer())[0] == 429
            await pod.waiting()
            pod.store.tell()
            assert await client.answer() == (200, "b")

    run(test())


def test_a_body_that_comes_meanwhile_is_whole_and_not_read_ahead_without_bound(run: Runs) -> None:
    body = bytes(range(256)) * (LARGE // 256)

    async def test() -> None:
        async with Pod().running() as pod:
            client = await Client.to(pod)
            client.writer.write(
                b"POST /body HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body
            )
            await pod.waiting()
            (connection,) = pod.server.server_state.connections
            await until(lambda: connection.flow.read_paused)
            assert 0 < len(connection.cycle.body) < LARGE / 4
            pod.store.tell()
            assert await client.answer() == (200, "read")
            assert pod.bodies == [body]
            client.writer.write(
                b"POST /body HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body
            )
            await pod.waiting()
            await until(lambda: connection.flow.read_paused)
            pod.store.tell(refuse=True)
            assert (await client.answer())[0] == 429
            client.get("/item/next")
            await pod.waiting()
            pod.store.tell()
            assert await client.answer() == (200, "next"), "the rest of the body is thrown away"

    run(test())


def test_a_refused_client_that_does_not_read_holds_no_place_and_is_cut_off(run: Runs) -> None:
    async def test() -> None:
        async with Pod(write_stall="0.3s").running() as pod:
            client = await Client.to(pod)
            client.reader._transport.pause_reading()  # type: ignore[attr-defined]  # of a stream
            client.get("/large", "/item/a")
            await pod.waiting()
            pod.store.tell()
            await pod.waiting()
            await until(lambda: pod.held() == (1, 1))
            pod.store.tell(refuse=True)
            assert pod.held() == (0, 0)
            await until(lambda: pod.works._slots.statistics().stalled == 1)
            await until(lambda: not pod.server.server_state.connections)
            assert pod.served() == [200, 429]
            client.writer.transport.abort()

    run(test())


@pytest.mark.parametrize("loops", [asyncio.run, uvloop.run])
def test_a_handler_that_raises_returns_its_place_and_so_does_the_one_behind(
    loops: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    """Which is begun with the first one's answer, and refused when the server has hung up."""

    async def test() -> None:
        async with Pod().running() as pod:
            client = await Client.to(pod)
            client.get("/broken", "/item/a")
            await pod.waiting()
            pod.store.tell()
            assert (await client.answer())[0] == 500
            await until(lambda: not pod.server.server_state.connections)
            assert pod.held() == (1, 1)
            pod.store.tell(refuse=True)
            assert (pod.held(), pod.server.server_state.tasks) == ((0, 0), set())

    loops(test())
    said = capfd.readouterr().err
    assert "a bug of the handler's" in said
    assert said.count("Traceback") == 1


def test_nothing_of_a_request_that_has_waited_is_left_to_the_collector(run: Runs) -> None:
    """Served, refused, and refused when its client had left."""

    async def test() -> None:
        async with Pod().running() as pod:
            staying, leaving = await Client.to(pod), await Client.to(pod)
            gc.collect()
            gc.disable()
            gc.set_debug(gc.DEBUG_SAVEALL)
            try:
                for refuse in (False, True, False, True):
                    staying.get("/item/a")
                    await pod.waiting()
                    pod.store.tell(refuse=refuse)
                    await staying.answer()
                leaving.get("/item/a")
                await pod.waiting()
                leaving.writer.transport.abort()
                await until(lambda: len(pod.server.server_state.connections) == 1)
                pod.store.tell(refuse=True)
                await until(lambda: pod.held() == (0, 0) and not pod.server.server_state.tasks)
                gc.collect()
                left = {type(found).__name__ for found in gc.garbage}
            finally:
                gc.set_debug(0)
                gc.enable()
                gc.garbage.clear()
            assert left.isdisjoint({"RequestResponseCycle", "partial", "Entry", "Sending"}), left

    run(test())


def test_a_verdict_that_cannot_be_told_is_a_500(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its connection once waited for ever."""

    def answer(self: Ahead, scope: Any, standing: Any, verdict: Verdict) -> None:
        raise RuntimeError("a bug of ours")

    async def test() -> None:
        async with Pod().running() as pod:
            client = await Client.to(pod)
            client.get("/item/a")
            await pod.waiting()
            monkeypatch.setattr(Ahead, "answer", answer)
            pod.store.tell()
            assert pod.held() == (0, 0)
            assert (await client.answer())[0] == 500
            assert (pod.served(), pod.called) == ([500], [])

    asyncio.run(test())
    assert "a bug of ours" in capfd.readouterr().err


@pytest.mark.parametrize("refuse", [False, True])
def test_a_server_that_is_told_to_end_waits_for_those_who_wait(run: Runs, refuse: bool) -> None:
    async def test() -> None:
        async with Pod().running() as pod:
            client, idle = await Client.to(pod), await Client.to(pod)
            await until(lambda: len(pod.server.server_state.connections) == 2)
            client.get("/item/a")
            await pod.waiting()
            pod.server.should_exit = True
            assert await idle.reader.read() == b""
            assert pod.held() == (1, 1)
            pod.store.tell(refuse=refuse)
            assert (await client.answer())[0] == (429 if refuse else 200)
            assert await client.reader.read() == b"", "the connection ends with its answer"
            await until(lambda: pod.held() == (0, 0))

    run(test())


@pytest.mark.parametrize("loops", [asyncio.run, uvloop.run])
def test_who_is_out_when_the_store_is_closed_last_of_all_keeps_no_place(
    loops: Callable[..., None],
) -> None:
    async def test() -> None:
        pod = Pod()
        async with pod.running(timeout_graceful_shutdown=0):
            client = await Client.to(pod)
            client.get("/item/a")
            await pod.waiting()
            pod.server.should_exit = True
            await until(lambda: not pod.store.out)
            await until(lambda: pod.held() == (0, 0))

    loops(test())


POLICY = """
schema = 1
[service]
name = "put"
app = "put_app:app"
sla = "30s"
trust = ["127.0.0.1"]
[store]
url = "{url}"
decision_timeout = "10s"
[fairness]
default_tier = "free"
tiers.free = {{ rate = "100000/min" }}
[health]
drain_delay = "0s"
"""

APP = """
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from headworks import Headworks

app = Headworks.load().protect(Starlette(routes=[Route("/", lambda request: PlainTextResponse("here"))]))
"""


def test_a_pod_that_is_told_to_leave_answers_those_who_wait_for_a_frozen_server(tmp_path: Path) -> None:
    """They hear when it goes on, long after nobody listens any more; the pod ends with 0."""
    (tmp_path / "put_app.py").write_text(APP)
    server, port = Server(tmp_path), free_port()
    (tmp_path / "headworks.toml").write_text(POLICY.format(url=server.url))
    command = [sys.executable, "-m", "headworks", "serve", "--policy", str(tmp_path / "headworks.toml")]
    command += ["--host", "127.0.0.1", "--port", str(port), "--management-port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)

    async def asked() -> None:
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    assert await asyncio.to_thread(_read, port) == "here"
                    break
                except OSError:
                    await asyncio.sleep(0.05)
            pairs = [await asyncio.open_connection("127.0.0.1", port) for _ in range(20)]
            server.freeze()
            for _, writer in pairs:
                writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            await until_in_flight(port, len(pairs))
            process.send_signal(signal.SIGTERM)
            while True:
                try:
                    await asyncio.to_thread(_read, port, "health")
                except OSError:  # nobody listens any more
                    break
            server.thaw()
            for reader, writer in pairs:
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith((b"HTTP/1.1 200", b"HTTP/1.1 429")), head
                writer.close()

    try:
        asyncio.run(asked())
        _, said = process.communicate(timeout=PATIENCE)
        assert (process.returncode, b"Traceback" in said) == (0, False), said.decode()
    finally:
        process.kill()
        process.wait()
        server.close()


async def until_in_flight(port: int, count: int) -> None:
    async with asyncio.timeout(PATIENCE):
        metrics = ""
        while f"headworks_in_flight {count}.0" not in metrics:
            metrics = await asyncio.to_thread(_read, port, "metrics")


def _read(port: int, path: str = "") -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=PATIENCE) as reply:
        return str(reply.read().decode())
