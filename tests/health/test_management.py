"""The management port: real sockets, a real loop, and clients that mean no good."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop

from headworks.health import Health, Management, Pages, PortTaken, management
from headworks.policy.settings import HealthSettings
from headworks.telemetry import Telemetry

pytestmark = pytest.mark.real

LOOPBACK = "127.0.0.1"
METRICS = b"numbers" * 100_000


@asynccontextmanager
async def serving() -> AsyncIterator[Management]:
    """A management port of a pod that serves; closed in the end."""
    health = Health(
        HealthSettings(),
        full_for=lambda: 0.0,
        permit=None,
        facts=lambda: {"pod": "pod-1"},
        telemetry=Telemetry(),
        rng=random.Random(1),
    )
    health.serve()
    pages = Pages(health, metrics=lambda: ("text/plain", METRICS))
    server = Management(pages, host=LOOPBACK, port=0)
    await server.start()
    try:
        yield server
    finally:
        await server.aclose()


async def ask(port: int, *pieces: bytes) -> bytes:
    """Send these pieces one by one, and read to the end."""
    reader, writer = await asyncio.open_connection(LOOPBACK, port)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        async with asyncio.timeout(60):
            return await reader.read()
    finally:
        writer.close()


def get(path: str, method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: pod\r\n\r\n".encode()


async def status(port: int, path: str) -> int:
    return int((await ask(port, get(path))).split(b" ")[1])


async def gone(reader: asyncio.StreamReader) -> bool:
    """The other side has let go."""
    try:
        async with asyncio.timeout(60):
            return await reader.read() == b""
    except ConnectionError:
        return True


async def test_it_tells_everything_to_whoever_can_reach_it() -> None:
    async with serving() as server:
        ready = await ask(server.port, get("/ready"))
        assert ready.startswith(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n")
        assert b'"pod": "pod-1"' in ready
        whole = await ask(server.port, get("/metrics?all=1"))
        assert whole.endswith(b"\r\n\r\n" + METRICS)
        assert await status(server.port, "/health") == 200


async def test_it_has_the_three_pages_and_changes_nothing() -> None:
    async with serving() as server:
        for path in ("/", "/chat", "/docs", "/health/", "http://pod/health"):
            assert await status(server.port, path) == 404
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "BREW"):
            assert b" 405 " in await ask(server.port, get("/ready", method))
        head = await ask(server.port, get("/metrics", "HEAD"))
        assert head.endswith(b"\r\n\r\n")
        assert f"content-length: {len(METRICS)}".encode() in head


async def test_a_request_in_pieces_is_answered_and_nonsense_is_refused() -> None:
    async with serving() as server:
        assert b" 200 " in await ask(server.port, b"GET /he", b"alth HTTP/1.0\r", b"\n", b"\r\n")
        assert b" 400 " in await ask(server.port, b"\x16\x03\x01\x02\x00\r\n\r\n")
        assert b" 400 " in await ask(server.port, b"GET /health\r\n\r\n")
        assert b" 400 " in await ask(server.port, b"PRI * HTTP/2.0\r\n\r\n")
        assert b" 431 " in await ask(server.port, b"GET /health HTTP/1.1\r\nX: " + b"x" * 8192)


async def test_silent_connections_beyond_all_bounds_keep_nobody_out() -> None:
    """A thousand clients that connect and never send: the oldest make room, every probe is answered."""
    async with serving() as server:
        silent = []
        try:
            for _ in range(1000):
                silent.append(await asyncio.open_connection(LOOPBACK, server.port))
                if len(silent) % 50 == 0:
                    assert await status(server.port, "/health") == 200
            assert len(server._connections) <= management.MOST
            assert await gone(silent[0][0])
        finally:
            for _, writer in silent:
                writer.close()


async def test_who_drips_a_head_or_never_reads_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """No connection outlives its time, whatever it does meanwhile."""
    monkeypatch.setattr(management, "LIFETIME", 0.3)
    async with serving() as server:
        reader, dripping = await asyncio.open_connection(LOOPBACK, server.port)
        unread = socket.socket()
        unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        unread.setblocking(False)
        await asyncio.get_running_loop().sock_connect(unread, (LOOPBACK, server.port))
        await asyncio.get_running_loop().sock_sendall(unread, get("/metrics"))

        async def drip() -> None:
            while True:
                dripping.write(b"x")
                await asyncio.sleep(0.02)

        dripper = asyncio.create_task(drip())
        assert await gone(reader)
        async with asyncio.timeout(60):
            while server._connections:  # noqa: ASYNC110  # nobody tells when a socket has gone
                await asyncio.sleep(0.02)
        dripper.cancel()
        dripping.close()
        unread.close()


async def test_a_port_in_use_is_named_with_what_would_help() -> None:
    async with serving() as server:
        second = Management(server._pages, host=LOOPBACK, port=server.port)
        with pytest.raises(PortTaken, match=rf"127\.0\.0\.1:{server.port} .*in use; choose another"):
            await second.start()
        await second.aclose()


async def test_a_page_that_cannot_be_made_is_a_500_and_no_silence() -> None:
    def broken() -> tuple[str, bytes]:
        raise ZeroDivisionError

    async with serving() as server:
        server._pages._metrics = broken
        assert await status(server.port, "/metrics") == 500
        assert await status(server.port, "/health") == 200


async def test_closing_lets_go_of_everybody() -> None:
    async with serving() as server:
        port = server.port
        reader, writer = await asyncio.open_connection(LOOPBACK, port)
        assert await status(port, "/health") == 200
        await server.aclose()
        await asyncio.sleep(0.1)
        assert not server._connections, "not only when their time is over"
        assert await gone(reader)
        writer.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(LOOPBACK, port)


@pytest.mark.parametrize(
    "scenario",
    [
        test_it_tells_everything_to_whoever_can_reach_it,
        test_a_request_in_pieces_is_answered_and_nonsense_is_refused,
        test_silent_connections_beyond_all_bounds_keep_nobody_out,
        test_closing_lets_go_of_everybody,
    ],
)
def test_the_same_on_the_loop_that_pods_run_on(
    scenario: Callable[[], Coroutine[Any, Any, None]],
) -> None:
    """`headworks serve` runs uvloop, whose transports differ in small things."""
    uvloop.run(scenario())
