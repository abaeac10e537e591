"""Callers who leave, and those who stay, on a real uvicorn with the real stack and a vendor socket."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from tests.scenarios import VENDOR

from headworks import Headworks
from headworks.policy.load import parse

pytestmark = pytest.mark.real

Http = Literal["httptools", "h11"]
LEAVERS, STAYERS = 200, 1000


class VendorSocket:
    """A vendor that answers after `seconds`, and counts the calls whose connection was closed first."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.port = seconds, 0
        self.calls = self.open = self.aborted = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[VendorSocket]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                size = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
                await reader.readexactly(size)
                await self._answer(reader, writer, stream=b"/stream " in head)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, stream: bool
    ) -> None:
        self.calls += 1
        self.open += 1
        try:
            if stream:
                writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            async with asyncio.timeout(self.seconds):
                while await reader.read(1):  # the next byte is its end: nobody sends more
                    pass
            self.aborted += 1
            raise ConnectionError
        except TimeoutError:
            writer.write(b"0\r\n\r\n" if stream else b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
        finally:
            self.open -= 1


class Pod:
    """A protected application on a server of its own."""

    def __init__(self, vendor: VendorSocket, http: Http) -> None:
        table = {
            "schema": 1,
            "service": {"name": "leaving", "sla": "30s"},
            "admission": {"max_in_flight": 2000},
            "fairness": {"default_tier": "free", "tiers": {"free": {"rate": "1000000/min"}}},
            "vendors": {
                "llm": {
                    **VENDOR,
                    "base_url": f"http://127.0.0.1:{vendor.port}/v1",
                    "quota": ["6000000/min"],
                    "slots": 50,
                    "connections": {"max": 50, "keepalive": 20},
                    "queue_timeout": "10s",
                }
            },
        }
        self.works = Headworks(parse(table, "test", {}))
        self.llm = self.works.vendor("llm")
        self.app = self.works.protect(FastAPI())
        self.http, self.port, self.background = http, 0, 0
        self._routes()

    def _routes(self) -> None:
        @self.app.post("/call")
        @self.app.get("/call")
        async def call(request: Request) -> str:
            await request.body()
            await self.llm.client.post("/call", json={})
            return "called"

        @self.app.post("/stream")
        async def stream(request: Request) -> StreamingResponse:
            await request.body()

            async def relay() -> AsyncIterator[bytes]:
                yield b"data: begun\n\n"
                async with self.llm.client.stream("POST", "/stream", json={}) as answer:
                    async for piece in answer.aiter_raw():
                        yield piece

            return StreamingResponse(relay(), media_type="text/event-stream")

        @self.app.post("/block")
        async def block(request: Request) -> None:
            await request.body()
            async with self.llm.call():
                await asyncio.sleep(30)

        @self.app.post("/plain")
        @self.app.get("/plain")
        async def plain(request: Request) -> PlainTextResponse:
            return PlainTextResponse("ok", background=BackgroundTask(self._later))

        @self.app.get("/called")
        async def called() -> PlainTextResponse:
            await self.llm.client.post("/call", json={})
            return PlainTextResponse("ok", background=BackgroundTask(self._later))

    async def _later(self) -> None:
        await asyncio.sleep(0.05)
        await self.llm.client.post("/call", json={})
        self.background += 1

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Pod]:
        listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(self.app, lifespan="on", log_level="warning", http=self.http)
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            await until(lambda: server.started)
            yield self
        finally:
            server.should_exit = server.force_exit = True
            await asyncio.wait((task,), timeout=10.0)

    def held(self) -> tuple[int, ...]:
        slots, vendor = self.works._slots.statistics(), self.llm.statistics()
        return slots.in_flight, slots.running, vendor.waiting, vendor.in_flight, vendor.booked


async def until(holds: Any) -> None:
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110  # a server has no event to wait for
            await asyncio.sleep(0.01)


async def ask(port: int, path: bytes, body: bytes) -> asyncio.StreamWriter:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    head = b"POST " + path + b" HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    writer.write(head + b"content-length: 2\r\n\r\n" + body)
    return writer


async def leave(port: int, path: bytes, after: float, rng: random.Random) -> None:
    """Ask, and hang up after so long: at once (RST) or in order (FIN), with the body sent or half."""
    writer = await ask(port, path, rng.choice((b"{}", b"{}", b"{}", b"{")))
    await asyncio.sleep(after)
    if rng.random() < 0.5:
        writer.transport.abort()
    else:
        writer.close()


@pytest.mark.parametrize("http", ["httptools", "h11"])
async def test_two_hundred_who_leave_at_random_moments_leave_nothing_behind(http: Http) -> None:
    """No place, no slot, no call at the vendor, no task; before any of them would have been answered."""
    rng = random.Random(1)
    async with VendorSocket(seconds=25.0).running() as vendor, Pod(vendor, http).running() as pod:
        before = {task.get_coro().__qualname__ for task in asyncio.all_tasks()}  # type: ignore[union-attr]
        loop = asyncio.get_running_loop()
        began = loop.time()
        # Two are with the vendor for sure: those of the crowd may all have left before.
        early = [await ask(pod.port, path, b"{}") for path in (b"/call", b"/stream")]
        await until(lambda: vendor.calls == len(early))
        async with asyncio.TaskGroup() as group:
            for writer in early:
                writer.close()
            for _ in range(LEAVERS - len(early)):
                path = rng.choice((b"/call", b"/stream", b"/block"))
                group.create_task(leave(pod.port, path, rng.uniform(0.0, 1.5), rng))
        await until(lambda: pod.held() == (0, 0, 0, 0, 0))
        await until(lambda: vendor.open == 0)
        assert loop.time() - began < 20.0, "nothing had to wait for an answer"
        assert vendor.calls == vendor.aborted >= len(early)
        await until(lambda: pod.works._reaper.statistics().waiting == 0)
        await asyncio.sleep(0.1)
        after = {task.get_coro().__qualname__ for task in asyncio.all_tasks()}  # type: ignore[union-attr]
        assert after <= before


@pytest.mark.parametrize("http", ["httptools", "h11"])
async def test_a_thousand_who_stay_have_all_their_background_tasks_run(http: Http) -> None:
    """On kept connections, one after the other and pipelined, with a vendor call before the answer or
    without, with a body or without."""
    ways = (
        b"GET /plain HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /called HTTP/1.1\r\nhost: x\r\n\r\n",
        b"POST /plain HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}",
    )

    async def stay(number: int, pipelined: bool) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", pod.port)
        asked = [ways[(number + n) % len(ways)] for n in range(10)]
        if pipelined:
            writer.write(b"".join(asked))
        for request in asked:
            if not pipelined:
                writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            assert await reader.readexactly(2) == b"ok"
        writer.close()

    async with VendorSocket(seconds=0.02).running() as vendor, Pod(vendor, http).running() as pod:
        async with asyncio.TaskGroup() as group:
            for number in range(STAYERS // 10):
                group.create_task(stay(number, pipelined=number % 2 == 0))
        await until(lambda: pod.held() == (0, 0, 0, 0, 0))
        assert (pod.background, vendor.aborted) == (STAYERS, 0)
