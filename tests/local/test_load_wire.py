"""The load client against small real servers on loopback."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from headworks.local.load.profiles import CHAT, SEARCH, Crowd, Profile
from headworks.local.load.run import CannotStart, LoadRun
from headworks.local.load.wire import Answer, Broken, Client, NotLoopback, loopback

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[int]:
    """A server on a free port that hands every connection to `handler` and closes it after."""

    async def closing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client hung up, as it may
        finally:
            writer.close()

    server = await asyncio.start_server(closing, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


class Counting:
    """Answers every request, and counts them by source address and request line."""

    def __init__(self) -> None:
        self.seen: Counter[tuple[str, str]] = Counter()
        self.connections = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        source = writer.get_extra_info("peername")[0]
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            for line in head.split(b"\r\n"):
                if line.lower().startswith(b"content-length:"):
                    await reader.readexactly(int(line.split(b":")[1]))
            self.seen[source, head.split(b"\r\n", 1)[0].decode()] += 1
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: Text/Plain; charset=x\r\nContent-Length: 2\r\n\r\nok"
            )


@pytest.mark.real
async def test_a_connection_is_kept_and_comes_from_the_address_asked_for() -> None:
    server = Counting()
    async with serving(server) as port:
        client = Client("127.0.0.1", port, timeout=60)
        for _ in range(3):
            assert await client.exchange(GET, "127.0.9.1") == Answer(200, "text/plain", b"ok")
        await client.exchange(GET, "127.0.9.2")
        client.close()
    assert server.connections == 2
    assert server.seen == {("127.0.9.1", "GET / HTTP/1.1"): 3, ("127.0.9.2", "GET / HTTP/1.1"): 1}


@pytest.mark.real
async def test_a_kept_connection_closed_by_the_server_is_replaced() -> None:
    served = 0

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal served
        await reader.readuntil(b"\r\n\r\n")
        served += 1
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async with serving(once) as port:
        client = Client("127.0.0.1", port, timeout=60)
        for _ in range(5):
            assert (await client.exchange(GET)).status == 200
        client.close()
    assert served == 5


@pytest.mark.real
@pytest.mark.parametrize(
    ("sends", "kind"),
    [
        (b"", "closed unanswered"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", "cut off"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello", "cut off"),
        (b"SMTP hello\r\n\r\n", "unreadable answer"),
    ],
)
async def test_an_incomplete_answer_is_broken_and_says_how(sends: bytes, kind: str) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(sends)

    async with serving(handler) as port:
        client = Client("127.0.0.1", port, timeout=60)
        with pytest.raises(Broken, match=kind):
            await client.exchange(GET)
        client.close()


@pytest.mark.real
async def test_an_answer_that_does_not_come_times_out() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with serving(silent) as port:
        client = Client("127.0.0.1", port, timeout=0.05)
        with pytest.raises(Broken, match="timed out"):
            await client.exchange(GET)
        client.close()


@pytest.mark.parametrize(
    "url",
    [
        *(
            "http://example.com",
            "http://10.0.0.1:80",
            "http://0.0.0.0:80",
            "http://127.0.0.1.example.com/",
        ),
        *("https://127.0.0.1", "ftp://127.0.0.1", "127.0.0.1:80", "", "http://", "http://[::1]:80"),
        *("http://127.0.0.1:99999", "http://user@example.com", "http://127.0.0.1@example.com"),
    ],
)
def test_load_goes_nowhere_but_loopback(url: str) -> None:
    with pytest.raises(NotLoopback, match="this machine only"):
        loopback(url)


def test_loopback_addresses_are_read() -> None:
    assert loopback("http://localhost:8080") == ("127.0.0.1", 8080)
    assert loopback("http://127.0.5.1") == ("127.0.5.1", 80)


@pytest.mark.real
async def test_a_run_sends_exactly_what_it_counts() -> None:
    """Every request of the tally arrived at the server once, from the address of its client."""
    crowds = (
        Crowd("many", "", 150.0, ("a", "b", "c"), ("127.0.8.1", "127.0.8.2"), (CHAT, SEARCH)),
        Crowd("clock", "", 20.0, ("d",), ("127.0.8.3",), (SEARCH,), even=True),
    )
    profile, server = Profile("test", "", crowds), Counting()
    async with serving(server) as port:
        run = LoadRun(profile, f"http://127.0.0.1:{port}", seconds=0.5, seed=1, vendors={})
        report = await run.run()
    planned = Counter(
        (shot.source, f"{shot.call.method} {shot.call.path} HTTP/1.1")
        for shot in profile.shots(0.5, seed=1)
    )
    assert server.seen - Counter({("127.0.0.1", "GET /health HTTP/1.1"): 1}) == planned
    assert report.sent == planned.total() == sum(crowd.served for crowd in report.crowds)
    assert report.served.count == report.sent
    assert report.unsent == 0


@pytest.mark.real
async def test_a_run_without_a_service_says_what_to_do() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # and nobody listens
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        run = LoadRun(Profile("test", "", ()), url, seconds=1, seed=1, vendors={})
        with pytest.raises(CannotStart, match=r"nothing answers at .*headworks up"):
            await run.run()


@pytest.mark.real
async def test_a_run_that_is_stopped_still_reports() -> None:
    crowd = Crowd("clock", "", 200.0, ("d",), ("127.0.8.3",), (SEARCH,), even=True)
    server = Counting()
    async with serving(server) as port:
        run = LoadRun(
            Profile("test", "", (crowd,)), f"http://127.0.0.1:{port}", seconds=60, seed=1, vendors={}
        )
        task = asyncio.ensure_future(run.run())
        async with asyncio.timeout(60):
            while server.seen.total() < 5:  # noqa: ASYNC110  # polls under the deadline above
                await asyncio.sleep(0.01)
            run.stop()
            report = await task
    assert 0 < report.sent < 200 * 60
    assert report.crowds[0].waiting == 0
