"""The smallest HTTP/1.1 client that can flood: keep-alive connections, one request at a time each.

It speaks to one loopback server and can bind the address it comes from, which is how one machine
plays many clients. A general client costs several times the processor time per request, and that
time would be taken from the very stack under load.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
from collections import defaultdict
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

import httptools

MAX_BODY = 65_536
"""Bytes of a body that are kept, at least: the last ones, where a stream says how it ended."""

EXAMPLE = "http://127.0.0.1:8080"
"""A URL that load may be sent to."""


class NotLoopback(ValueError):
    """A URL that is not plain HTTP to a loopback IPv4 address."""


class Broken(Exception):
    """No complete answer came. `kind` says what happened in one or two words."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        super().__init__(kind)


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete response. `content_type` is in lower case, without parameters."""

    status: int
    content_type: str
    body: bytes


def loopback(url: str) -> tuple[str, int]:
    """Host and port of a URL, if it is plain HTTP to a loopback IPv4 address; else `NotLoopback`."""
    if url.lower().startswith("https:"):
        raise NotLoopback(
            f"{url} is refused: load speaks only http, to this machine only; give a URL like {EXAMPLE}"
        )
    try:
        parts = urlsplit(url)
        host = "127.0.0.1" if parts.hostname == "localhost" else parts.hostname or ""
        inside = ipaddress.IPv4Address(host).is_loopback
        port = 80 if parts.port is None else parts.port
    except ValueError:
        inside = False
    if not inside or parts.scheme != "http":
        raise NotLoopback(f"{url} is refused: load goes to this machine only; give a URL like {EXAMPLE}")
    return host, port


class _Connection(asyncio.Protocol):
    """One connection; httptools calls the `on_…` methods while it parses."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.waiter: asyncio.Future[Answer] | None = None
        self.reusable = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def send(self, request: bytes) -> asyncio.Future[Answer]:
        """Write a request; the future brings the answer or `Broken`."""
        self._parser = httptools.HttpResponseParser(self)
        self._type, self._body, self.begun, self.reusable = b"", bytearray(), False, False
        waiter = self.waiter = asyncio.get_running_loop().create_future()
        if self.transport is None:  # closed since it was opened
            self._fail("closed unanswered")
        else:
            self.transport.write(request)
        return waiter

    def data_received(self, data: bytes) -> None:
        if self.waiter is None:  # nobody asked: the server speaks out of turn
            self.close()
            return
        self.begun = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail("unreadable answer")
            self.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-type":
            self._type = value

    def on_body(self, body: bytes) -> None:
        self._body += body
        if len(self._body) > 2 * MAX_BODY:
            del self._body[:-MAX_BODY]

    def on_message_complete(self) -> None:
        kind = self._type.partition(b";")[0].strip().lower().decode("latin-1")
        answer = Answer(self._parser.get_status_code(), kind, bytes(self._body))
        self.reusable = self._parser.should_keep_alive()
        waiter, self.waiter = self.waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail("cut off" if self.waiter is not None and self.begun else "closed unanswered")
        self.transport = None

    def _fail(self, kind: str) -> None:
        waiter, self.waiter = self.waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_exception(Broken(kind))

    @property
    def usable(self) -> bool:
        return self.reusable and self.transport is not None and not self.transport.is_closing()

    def close(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class Client:
    """Requests to one server, from any loopback address.

    timeout  seconds for one exchange, connecting included
    """

    def __init__(self, host: str, port: int, *, timeout: float) -> None:
        self._host, self._port, self._timeout = host, port, timeout
        self._idle: defaultdict[str, list[_Connection]] = defaultdict(list)
        self._open: set[_Connection] = set()

    async def exchange(self, request: bytes, source: str = "127.0.0.1") -> Answer:
        """Send a complete request from `source`; raises `Broken` when no complete answer comes.

        A kept connection that the server closed before the first byte is replaced once: the server
        was closing it while we wrote.
        """
        try:
            async with asyncio.timeout(self._timeout):
                while idle := self._idle[source]:
                    connection = idle.pop()
                    if not connection.usable:
                        self._drop(connection)
                        continue
                    try:
                        return await self._over(connection, request, source)
                    except Broken:
                        if connection.begun:
                            raise
                return await self._over(await self._connect(source), request, source)
        except TimeoutError:
            raise Broken("timed out") from None

    async def _connect(self, source: str) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(
                _Connection, self._host, self._port, local_addr=(source, 0)
            )
        except OSError as error:
            raise Broken(_kind(error)) from error
        self._open.add(connection)
        return connection

    async def _over(self, connection: _Connection, request: bytes, source: str) -> Answer:
        kept = False
        try:
            answer = await connection.send(request)
            kept = connection.usable
            return answer
        finally:
            if kept:
                self._idle[source].append(connection)
            else:
                self._drop(connection)

    def _drop(self, connection: _Connection) -> None:
        connection.close()
        self._open.discard(connection)

    def close(self) -> None:
        """Close every connection; exchanges under way end as `Broken`."""
        for connection in list(self._open):
            self._drop(connection)
        self._idle.clear()


def _kind(error: OSError) -> str:
    if error.errno == errno.EADDRNOTAVAIL:
        return "no local address or port"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "too many open files"
    return "connection refused" if isinstance(error, ConnectionRefusedError) else "connection failed"
