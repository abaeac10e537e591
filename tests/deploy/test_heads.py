"""A head without end is ended, at a real server; a head in pieces, and whatever else is long, passes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from itertools import repeat
from typing import Any

import pytest
from tests.policies import shipped
from tests.serving import serving

from headworks.deploy.heads import MOST
from headworks.deploy.server import ServerSettings, server_settings

pytestmark = pytest.mark.real

PATIENCE = 20.0
"""Seconds after which something has not happened."""
READ = 256 * 1024
"""Bytes that the server reads at once, at most."""
FIELD = b"x-%d: " % 7 + b"y" * 1000 + b"\r\n"
EMPTY = b"content-length: 0\r\n\r\n"
CHUNKED = b"transfer-encoding: chunked\r\n\r\n"
BEGINNING = b"POST / HTTP/1.1\r\nhost: pod\r\n"


class Server:
    """A server as pods run it, that tells what it has been asked and how many bytes it has read."""

    def __init__(self, settings: ServerSettings) -> None:
        self.read = 0
        self.lost = False
        self.more = asyncio.Condition()
        self.bodies: list[int] = []
        self.finish = asyncio.Event()
        server = self

        class Telling(settings.http):  # type: ignore[name-defined, misc]  # the class that the pod runs
            def data_received(self, data: bytes) -> None:
                super().data_received(data)
                server.read += len(data)
                server.telling = asyncio.ensure_future(server.tell())

            def connection_lost(self, exc: Exception | None) -> None:
                super().connection_lost(exc)
                server.lost = True
                server.telling = asyncio.ensure_future(server.tell())

        self.options = settings.arguments() | {"http": Telling, "loop": "asyncio", "interface": "asgi3"}
        self.options["lifespan"] = "off"

    async def tell(self) -> None:
        async with self.more:
            self.more.notify_all()

    async def application(self, scope: Any, receive: Any, send: Any) -> None:
        """Answers once it has read everything, "/early" before, and "/parts" in two parts."""
        early = scope["path"] != "/"
        begun = {"type": "http.response.start", "status": 200, "headers": []}
        if early:
            await send(begun)
            await send({"type": "http.response.body", "body": b"part", "more_body": True})
        if scope["path"] == "/parts":
            await self.finish.wait()
        got, more = 0, scope["path"] != "/early"
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            got, more = got + len(message["body"]), message["more_body"]
        self.bodies.append(got)
        if not early:
            await send(begun)
        await send({"type": "http.response.body", "body": b"%d" % got})


class Client:
    """Sends a piece once the server has read the one before: it then reads one piece at a time."""

    def __init__(self, server: Server, *streams: Any) -> None:
        self.server = server
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter
        self.reader, self.writer = streams
        self.sent = 0

    async def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)
            self.sent += len(piece)
            async with asyncio.timeout(PATIENCE), self.server.more:
                await self.server.more.wait_for(
                    lambda: self.server.read >= self.sent or self.server.lost
                )

    async def send_until_ended(self, pieces: Iterator[bytes]) -> bytes:
        """What the server has said when it ended the connection."""
        for piece in pieces:
            if self.server.lost:
                break
            await self.send(piece)
            await asyncio.sleep(0)  # a server that has closed it in this turn says so in the next
            if self.server.read > MOST + 2 * READ + 10 * len(piece):
                pytest.fail("the server goes on reading")
        return await self.rest()

    async def rest(self) -> bytes:
        async with asyncio.timeout(PATIENCE):
            return await self.reader.read()

    async def answer(self) -> bytes:
        async with asyncio.timeout(PATIENCE):
            head = await self.reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            body = b""
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                body += (await self.reader.readexactly(size + 2))[:-2]
            await self.reader.readexactly(2)
            return body


@asynccontextmanager
async def reached(**gateway: Any) -> AsyncIterator[tuple[Server, Client]]:
    policy = shipped()
    changed = policy.gateway.model_copy(update=gateway)
    server = Server(server_settings(policy.model_copy(update={"gateway": changed})))
    async with serving(server.application, **server.options) as (port, _):
        client = Client(server, *await asyncio.open_connection("127.0.0.1", port))
        try:
            yield server, client
        finally:
            client.writer.close()


@pytest.mark.parametrize(
    ("beginning", "piece"),
    [
        (BEGINNING, FIELD),
        (BEGINNING + b"x: ", b"y" * 5000),
        (BEGINNING, b"y" * 5000),
        (b"GET /", b"y" * 5000),
    ],
    ids=["fields", "a-value", "a-name", "a-path"],
)
async def test_a_head_without_end_is_answered_431_and_ended(beginning: bytes, piece: bytes) -> None:
    """Wherever it grows: within so many bytes, and the application never hears of it."""
    async with reached() as (server, client):
        await client.send(beginning)
        said = await client.send_until_ended(repeat(piece))
        head, _, body = said.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
        assert b"connection: close" in head
        problem = json.loads(body)
        assert (problem["status"], problem["layer"]) == (431, "request")
        assert problem["reason"] == "head-too-large"
        assert server.read <= len(beginning) + MOST + len(piece)
        assert server.bodies == []


async def test_who_floods_with_a_head_is_ended_and_little_is_kept() -> None:
    """Without waiting for anything; whether it still hears the 431 is its own system's affair."""
    async with reached() as (server, client):
        client.writer.write(BEGINNING)
        with suppress(ConnectionError):
            while not server.lost:
                client.writer.write(FIELD)
                await client.writer.drain()
        assert server.read <= MOST + 3 * READ
        assert server.bodies == []


async def test_a_head_in_pieces_passes_whatever_the_pieces() -> None:
    """Byte by byte, in many, and just below the bound; one after the other on one connection."""
    async with reached() as (server, client):
        small = BEGINNING + b"content-length: 2\r\n\r\n"
        for _ in range(3):
            await client.send(*(small[n : n + 1] for n in range(len(small))), b"hi")
            assert await client.answer() == b"2"
        for _ in range(3):
            await client.send(BEGINNING, *repeat(FIELD, MOST // len(FIELD)), EMPTY)
            assert await client.answer() == b"0"
        assert server.bodies == [2, 2, 2, 0, 0, 0]


async def test_bodies_of_any_length_pass() -> None:
    """With a length, and in chunks with trailers; what follows them in the same read is another head."""
    async with reached() as (server, client):
        await client.send(BEGINNING + b"content-length: 490000\r\n\r\n", *repeat(b"z" * 10_000, 39))
        await client.send(b"z" * 100_000 + BEGINNING)  # the end of one, and the beginning of the next
        assert await client.answer() == b"490000"
        chunks = repeat(b"1388\r\n" + b"z" * 5000 + b"\r\n", 40)
        await client.send(CHUNKED, *chunks, b"0\r\n", FIELD, b"\r\n")
        assert await client.answer() == b"200000"
        assert server.bodies == [490_000, 200_000]


async def test_trailers_without_end_are_ended() -> None:
    """The application has its body, but not its end: it hears that its client has gone."""
    async with reached() as (server, client):
        await client.send(BEGINNING + CHUNKED, b"1\r\nz\r\n0\r\n")
        assert await client.send_until_ended(repeat(FIELD)) == b"", "the request's answer is not begun"
        assert server.bodies == []


async def test_trailers_without_end_after_the_answer_are_ended() -> None:
    async with reached() as (_, client):
        await client.send(b"POST /early HTTP/1.1\r\n" + CHUNKED, b"1\r\nz\r\n0\r\n")
        assert await client.answer() == b"part0"
        assert b" 431 " in await client.send_until_ended(repeat(FIELD))


async def test_no_431_goes_into_the_middle_of_another_answer() -> None:
    """A head without end behind a request that is being answered: the connection ends with a part."""
    async with reached() as (server, client):
        await client.send(b"GET /parts HTTP/1.1\r\n\r\n")
        async with asyncio.timeout(PATIENCE):
            part = await client.reader.readuntil(b"part\r\n")
        await client.send(BEGINNING)
        assert b"431" not in part + await client.send_until_ended(repeat(FIELD))
        server.finish.set()


async def test_a_gateway_that_lets_more_through_raises_the_bound() -> None:
    """To twice as much: what the gateway has let pass is not refused behind it."""
    async with reached(max_header=100_000) as (_, client):
        await client.send(BEGINNING, *repeat(FIELD, 190), EMPTY)
        assert await client.answer() == b"0"
    assert server_settings(shipped()).http.most == MOST
