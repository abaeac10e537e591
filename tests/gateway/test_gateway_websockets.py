"""Websockets through the rendered gateways: they pass, are counted, and only silence ends them."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from typing import Any

import pytest
from tests.gateway.conftest import policy_with

from headworks.local.probe import wait_until

pytestmark = pytest.mark.real
on_both = pytest.mark.parametrize("open_edge", ["nginx", "envoy"], indirect=True)
HANDSHAKE = (
    b"GET /socket HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: %s\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


class Socket:
    """A client's side, as a gateway sees it: a handshake, then bytes."""

    def __init__(self, status: int, streams: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
        self.status, (self._reader, self._writer) = status, streams

    async def echoes(self, said: bytes) -> bool:
        self._writer.write(said)
        with suppress(asyncio.IncompleteReadError):
            async with asyncio.timeout(10):
                return await self._reader.readexactly(len(said)) == said
        return False

    async def ended(self) -> bytes:
        """What comes until the other side ends it."""
        async with asyncio.timeout(20):
            return await self._reader.read()

    def close(self) -> None:
        self._writer.close()


async def connect(edge: Any, address: str = "127.0.0.9", protocol: bytes = b"websocket") -> Socket:
    streams = await edge.connect(address)
    streams[1].write(HANDSHAKE % protocol)
    async with asyncio.timeout(10):
        head = await streams[0].readuntil(b"\r\n\r\n")
    return Socket(int(head.split(b" ")[1]), streams)


@on_both
async def test_a_websocket_outlives_the_times_of_a_request(open_edge: Any) -> None:
    """The gateway waits a second for an answer and an upload; two later the websocket still echoes."""
    brief = {"request_timeout": "1s", "upload_timeout": "1s", "websocket_idle": "30s"}
    async with open_edge(**brief) as edge:
        socket = await connect(edge)
        assert socket.status == 101
        assert await socket.echoes(b"one")
        await asyncio.sleep(2)
        assert await socket.echoes(b"two" * 100)
        assert edge.pods[0].requests[0][1]["x-forwarded-for"] == "127.0.0.9"


@on_both
async def test_a_websocket_that_is_silent_ends(open_edge: Any) -> None:
    async with open_edge(websocket_idle="1s", request_timeout="60s") as edge:
        socket = await connect(edge)
        assert await socket.echoes(b"one")
        assert await socket.ended() == b""


@on_both
async def test_handshakes_and_requests_of_an_address_are_counted_together(open_edge: Any) -> None:
    async with open_edge(per_ip_rate="60/h burst 3") as edge:
        client = await edge.client("127.0.0.9")
        assert (await client.get("/x")).status_code == 200
        seen = [(await connect(edge)).status for _ in range(4)]
        assert seen == [101, 101, 429, 429]
        assert (await client.get("/x")).status_code == 429
        assert (await connect(edge, "127.0.0.8")).status == 101, "another address has its own rate"


@on_both
async def test_handshakes_and_requests_of_everybody_are_counted_together(open_edge: Any) -> None:
    async with open_edge(total_rate="60/h burst 3", per_ip_rate="50/h burst 3") as edge:
        assert (await (await edge.client("127.0.0.2")).get("/x")).status_code == 200
        seen = [(await connect(edge, f"127.0.0.{n}")).status for n in range(3, 7)]
        assert seen == [101, 101, 429, 429]


async def test_open_websockets_are_requests_in_progress_of_their_address(open_edge: Any) -> None:
    async with open_edge(per_ip_connections=2) as edge:
        held = [await connect(edge) for _ in range(2)]
        assert [socket.status for socket in held] == [101, 101]
        assert (await connect(edge)).status == 429
        held[0].close()

        async def another() -> bool:
            return (await connect(edge)).status == 101

        assert await wait_until(another, timeout=10)
        assert await held[1].echoes(b"still here")


@on_both
async def test_no_other_upgrade_passes(open_edge: Any) -> None:
    async with open_edge() as edge:
        assert (await connect(edge, protocol=b"h2c")).status in (200, 403)
        assert all("upgrade" not in headers for _, headers in edge.pods[0].requests)


@on_both
async def test_a_websocket_survives_a_changed_policy_and_its_pods_leaving(open_edge: Any) -> None:
    """A pod that says no keeps its websockets and gets no new ones; the pod's own close ends them."""
    async with open_edge(pods=2) as edge:
        sockets = [await connect(edge) for _ in range(6)]
        assert {socket.status for socket in sockets} == {101}
        leaving = edge.pods[0]
        leaving.ready = False
        assert await wait_until(lambda: _true(leaving.said_no >= 4), timeout=20)
        before = len(leaving.requests)
        assert {(await connect(edge)).status for _ in range(6)} == {101}
        assert len(leaving.requests) == before
        edge.take_over(policy_with(max_body="10B"))

        async def taken_over() -> bool:
            client = await edge.client(f"127.0.1.{random.randrange(1, 255)}")
            return bool((await client.post("/x", content=b"a" * 100)).status_code == 413)

        assert await wait_until(taken_over, timeout=20)
        await asyncio.sleep(6)  # not only for a moment: what drains is cut off after a time
        for socket in sockets:
            assert await socket.echoes(b"still here")
        leaving.kill()
        edge.pods[1].kill()
        for socket in sockets:
            with suppress(ConnectionError):
                assert await socket.ended() == b""


async def _true(value: bool) -> bool:
    return value
