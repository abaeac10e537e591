"""The gate behind a real uvicorn: refused uploads, floods, clients that leave or stop reading."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import socket
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
import uvicorn
from tests.serving import serving

from headworks.admission import AdmissionGate, Answers, Slots
from headworks.cleanup import Reaper
from headworks.identity import Callers, Identifier, Rank
from headworks.telemetry import Telemetry

App = Callable[[Any, Any, Any], Awaitable[None]]


def gated(
    app: App, slots: Slots, write_stall: float = 15.0, **server_options: Any
) -> AbstractAsyncContextManager[tuple[int, uvicorn.Server]]:
    """A server with the gate around `app` on a port of its own."""
    identifier = Identifier(Callers(header="x-key", tiers={"free": Rank()}, default_tier="free"))
    gate = AdmissionGate(
        app,
        slots=slots,
        answers=Answers(write_stall),
        identifier=identifier,
        sla=60.0,
        deadline_header="",
        telemetry=Telemetry(),
        reaper=Reaper(),
    )
    return serving(gate, **server_options)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110  # the server has no event to wait for
            await asyncio.sleep(0.01)


async def answered(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Head and body of the next answer."""
    async with asyncio.timeout(60):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        return head, await reader.readexactly(length)


class Held:
    """An application that answers when told to, 200 with the number of bytes it was sent."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.served = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        size, more = 0, True
        while more:
            message = await receive()
            size, more = size + len(message.get("body", b"")), message.get("more_body", False)
        await self.go.wait()
        self.served += 1
        body = str(size).encode()
        length = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": length})
        await send({"type": "http.response.body", "body": body})


async def ask(port: int, head: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write((head or b"GET / HTTP/1.1\r\nhost: x\r\n") + b"\r\n")
    return reader, writer


async def upload(writer: asyncio.StreamWriter, size: int) -> None:
    for _ in range(size // 65_536):
        writer.write(b"x" * 65_536)
        await writer.drain()


LARGE = 20 * 1024 * 1024
POST = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n" % LARGE


@pytest.mark.real
@pytest.mark.parametrize("http", ["h11", "httptools"])
@pytest.mark.parametrize("patience", [0.0, 0.3])
async def test_a_refused_upload_of_twenty_megabytes_still_gets_its_answer(
    patience: float, http: str
) -> None:
    """The body is read and thrown away, so the 503 is not lost in a reset; the connection lives on.

    At once, or after the client has waited in line in vain, with a part of its body read ahead.
    """
    slots, app = Slots(1, rng=random.Random(1), patience=patience), Held()
    async with gated(app, slots, http=http) as (port, _):
        _, holder = await ask(port)
        await until(lambda: slots.statistics().in_flight == 1)
        reader, writer = await ask(port, POST)
        await upload(writer, LARGE)
        head, body = await answered(reader)
        assert head.startswith(b"HTTP/1.1 503")
        assert b"application/problem+json" in head
        assert b"retry-after: " in head.lower()
        assert b"connection: close" not in head.lower()
        assert b"pod-saturated" in body
        app.go.set()
        await until(lambda: slots.statistics().in_flight == 0)
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await answered(reader))[0].startswith(b"HTTP/1.1 200")
        writer.close()
        holder.close()


@pytest.mark.real
async def test_a_refused_client_that_waits_for_100_continue_is_never_asked_for_its_body() -> None:
    """The 503 comes first and alone; nothing of the body travels."""
    slots, app = Slots(1, rng=random.Random(1)), Held()
    async with gated(app, slots) as (port, _):
        _, holder = await ask(port)
        await until(lambda: slots.statistics().in_flight == 1)
        reader, writer = await ask(port, POST + b"expect: 100-continue\r\n")
        head, body = await answered(reader)
        assert head.startswith(b"HTTP/1.1 503")
        assert b"pod-saturated" in body
        app.go.set()
        writer.close()
        holder.close()


@pytest.mark.real
async def test_an_upload_that_waits_in_line_arrives_whole() -> None:
    """Read ahead up to a bound, then held up by its connection, then read on by the application."""
    slots, app = Slots(1, rng=random.Random(1), patience=60.0), Held()
    async with gated(app, slots) as (port, _):
        _, holder = await ask(port)
        await until(lambda: slots.statistics().in_flight == 1)
        reader, writer = await ask(port, POST)
        sending = asyncio.create_task(upload(writer, LARGE))
        await until(lambda: slots.statistics().waiting == 1)
        app.go.set()
        head, body = await answered(reader)
        await sending
        assert head.startswith(b"HTTP/1.1 200")
        assert body == str(LARGE).encode()
        writer.close()
        holder.close()


@pytest.mark.real
async def test_callers_who_leave_the_line_are_noticed_by_a_real_server() -> None:
    """Their connections close, the line is empty, the application never saw them."""
    slots, app = Slots(2, rng=random.Random(1), patience=60.0), Held()
    async with gated(app, slots) as (port, server):
        holders = [(await ask(port))[1] for _ in range(2)]
        await until(lambda: slots.statistics().in_flight == 2)
        waiting = [(await ask(port))[1] for _ in range(2)]
        await until(lambda: slots.statistics().waiting == 2)
        for writer in waiting:
            writer.close()
        await until(lambda: slots.statistics().left == 2)
        assert slots.statistics().waiting == 0
        app.go.set()
        await until(lambda: slots.statistics().running == 0)
        assert app.served == 2
        for writer in holders:
            writer.close()
        await until(lambda: not server.server_state.connections)


@pytest.mark.real
@pytest.mark.parametrize("backstop", [10_008, 264])
async def test_in_a_flood_of_connections_every_refusal_is_signed(backstop: int) -> None:
    """With the backstop of the policy; at one in reach, as it used to be, the server itself answers."""
    slots, app = Slots(4, rng=random.Random(1)), Held()
    async with gated(app, slots, limit_concurrency=backstop) as (port, _):
        clients = [await ask(port) for _ in range(400)]
        await until(lambda: slots.statistics().in_flight == 4)
        heads = []
        for reader, _ in clients[4:]:
            async with asyncio.timeout(60):
                heads.append(await reader.readuntil(b"\r\n\r\n"))
        unsigned = [head for head in heads if b"application/problem+json" not in head]
        assert all(head.startswith(b"HTTP/1.1 503") for head in heads)
        assert bool(unsigned) is (backstop < 400)
        app.go.set()
        for _, writer in clients:
            writer.close()


@pytest.mark.real
async def test_a_client_that_stops_reading_loses_its_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its place is free after `write_stall`, its socket is gone, and the server has no complaint."""
    slots = Slots(10, rng=random.Random(1))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": b"x" * 65_536, "more_body": True})

    async with gated(app, slots, write_stall=0.3) as (port, server):
        client = socket.create_connection(("127.0.0.1", port))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await until(lambda: slots.statistics().stalled == 1)
        assert slots.statistics().in_flight == 0
        await until(lambda: not server.server_state.connections)
        client.close()
    assert [record for record in caplog.records if record.name.startswith("uvicorn")] == []


@pytest.mark.real
async def test_refused_handshakes_are_answers_and_no_errors(caplog: pytest.LogCaptureFixture) -> None:
    """In HTTP, with the reason and when to come back; the server has nothing to complain of."""

    async def never(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("nobody is let in")

    async def handshake(port: int) -> tuple[bytes, bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b"GET /ws HTTP/1.1\r\nHost: pod\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        async with asyncio.timeout(30):
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        return head.lower(), body

    slots = Slots(1, websockets=1, rng=random.Random(1))
    slots.claim_websocket_anyway()
    async with gated(never, slots, log_config=None) as (port, _):
        answers = await asyncio.gather(*(handshake(port) for _ in range(20)))
    for head, body in answers:
        assert head.startswith(b"http/1.1 503 ")
        assert b"\r\nretry-after: " in head
        assert b"\r\ncontent-type: application/problem+json" in head
        assert json.loads(body)["reason"] == "pod-saturated"
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
