"""The head of an answer and its body leave in one write, and nothing else changes."""

from __future__ import annotations

import asyncio
import http.client
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.policies import shipped
from tests.serving import serving

from headworks.deploy.one_write import JOINED, Heads, OneWrite
from headworks.deploy.protocol import Protocol
from headworks.deploy.server import server_settings

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"


class Wire:
    """A transport that notes what is done with it."""

    def __init__(self) -> None:
        self.done: list[Any] = []

    def write(self, data: bytes) -> None:
        self.done.append(bytes(data))

    def close(self) -> None:
        self.done.append("closed")

    def abort(self) -> None:
        self.done.append("aborted")

    def is_closing(self) -> bool:
        return False

    def get_extra_info(self, name: str) -> str:
        return f"the wire's {name}"


def over(wire: Any) -> OneWrite:
    return OneWrite(wire, asyncio.get_running_loop(), Heads())


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_head_and_body_are_one_write(kind: type[Any]) -> None:
    wire = Wire()
    over(wire).write(HEAD)
    transport = over(wire)
    transport.write(HEAD)
    transport.write(kind(b"hello"))
    transport.write(kind(b"more"))
    assert wire.done == [HEAD + b"hello", b"more"], "the head of the other has not had its turn"
    await asyncio.sleep(0)
    assert wire.done == [HEAD + b"hello", b"more", HEAD], (
        "a head alone goes out with the loop's next turn"
    )
    await asyncio.sleep(0)
    assert len(wire.done) == 3, "and nothing goes out twice"


async def test_a_large_body_is_not_copied_behind_its_head() -> None:
    wire, large = Wire(), bytes(JOINED + 1)
    transport = over(wire)
    transport.write(HEAD)
    transport.write(large)
    assert wire.done == [HEAD, large]


async def test_closing_sends_what_is_held_and_aborting_does_not() -> None:
    wire = Wire()
    transport = over(wire)
    transport.write(HEAD)
    transport.close()
    assert wire.done == [HEAD, "closed"]
    transport.write(HEAD)
    transport.abort()
    await asyncio.sleep(0)
    assert wire.done == [HEAD, "closed", "aborted"]
    assert transport.get_extra_info("peername") == "the wire's peername"


def test_a_head_that_an_earlier_loop_has_left_keeps_no_other_waiting() -> None:
    heads, left, wire = Heads(), Wire(), Wire()
    earlier = asyncio.new_event_loop()
    OneWrite(left, earlier, heads).write(HEAD)  # type: ignore[arg-type]  # behaves as one
    earlier.close()

    async def later() -> None:
        OneWrite(wire, asyncio.get_running_loop(), heads).write(HEAD)  # type: ignore[arg-type]  # behaves as one
        await asyncio.sleep(0)

    asyncio.run(later())
    assert (left.done, wire.done) == ([], [HEAD])


async def test_everything_else_is_the_transport_s_own() -> None:
    """Whatever one of asyncio's has."""
    for name in dir(asyncio.Transport):
        assert name.startswith("_") or hasattr(OneWrite, name), name
    inner = asyncio.Transport({"peername": "its own"})
    transport = over(inner)
    assert transport.get_extra_info == inner.get_extra_info
    assert transport.set_protocol == inner.set_protocol


async def _application(scope: Any, receive: Any, send: Any) -> None:
    headers = [(b"content-length", b"5")] if scope["path"] == "/plain" else []
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if scope["path"] == "/stream":
        for part in (b"he", b"llo"):
            await asyncio.sleep(0.001)
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    else:
        await send({"type": "http.response.body", "body": b"hello"})


@asynccontextmanager
async def served() -> AsyncIterator[tuple[int, list[int]]]:
    """The port of a server as pods run it, and the lengths of all that it writes."""
    writes: list[int] = []

    class Counted(Protocol):
        def connection_made(self, transport: Any) -> None:
            real = transport.write

            class Counting:
                write = staticmethod(lambda data: (writes.append(len(data)), real(data)))

                def __getattr__(self, name: str) -> Any:
                    return getattr(transport, name)

            super().connection_made(Counting())  # type: ignore[arg-type]  # behaves as one

    options = server_settings(shipped()).arguments()
    options |= {"http": Counted, "loop": "asyncio", "lifespan": "off"}
    async with serving(_application, **options) as (port, _):
        yield port, writes


@pytest.mark.real
@pytest.mark.parametrize(("path", "written"), [("/plain", 1), ("/chunked", 1), ("/stream", 4)])
async def test_a_server_writes_small_answers_once_and_streams_as_they_come(
    path: str, written: int
) -> None:
    def ask(port: int) -> list[bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        bodies = []
        for _ in range(3):
            connection.request("GET", path)
            bodies.append(connection.getresponse().read())
        connection.close()
        return bodies

    async with served() as (port, writes):
        assert await asyncio.to_thread(ask, port) == [b"hello"] * 3
    assert len(writes) == 3 * written
