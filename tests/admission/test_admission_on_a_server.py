"""The gate behind a real uvicorn: large refused uploads, and clients that stop reading."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn

from headworks.admission import AdmissionGate, Slots
from headworks.cleanup import Reaper
from headworks.identity import Callers, Identifier, Rank
from headworks.telemetry import Telemetry

App = Callable[[Any, Any, Any], Awaitable[None]]


@asynccontextmanager
async def serving(
    app: App, slots: Slots, write_stall: float = 15.0
) -> AsyncIterator[tuple[int, uvicorn.Server]]:
    """A server with the gate around `app` on a port of its own."""
    identifier = Identifier(Callers(header="x-key", tiers={"free": Rank()}, default_tier="free"))
    gate = AdmissionGate(
        app,
        slots=slots,
        identifier=identifier,
        sla=60.0,
        write_stall=write_stall,
        telemetry=Telemetry(),
        reaper=Reaper(),
    )
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(gate, lifespan="off", log_level="warning"))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield listener.getsockname()[1], server
    finally:
        server.should_exit = server.force_exit = True
        await asyncio.wait((task,), timeout=10.0)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110  # the server has no event to wait for
            await asyncio.sleep(0.01)


@pytest.mark.real
async def test_a_refused_upload_of_five_megabytes_still_gets_its_answer() -> None:
    """The body is read and thrown away, so the 503 is not lost in a reset; the connection lives on."""
    slots, go = Slots(1, rng=random.Random(1)), asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await go.wait()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async with serving(app, slots) as (port, _):
        _, holder = await asyncio.open_connection("127.0.0.1", port)
        holder.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await until(lambda: slots.statistics().in_flight == 1)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        size = 5 * 1024 * 1024
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % size)
        for _ in range(size // 65_536):
            writer.write(b"x" * 65_536)
            await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503")
        assert b"application/problem+json" in head
        assert b"connection: close" not in head.lower()
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
        go.set()
        await until(lambda: slots.statistics().in_flight == 0)
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204")
        writer.close()
        holder.close()


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

    async with serving(app, slots, write_stall=0.3) as (port, server):
        client = socket.create_connection(("127.0.0.1", port))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await until(lambda: slots.statistics().stalled == 1)
        assert slots.statistics().in_flight == 0
        await until(lambda: not server.server_state.connections)
        client.close()
    assert [record for record in caplog.records if record.name.startswith("uvicorn")] == []
