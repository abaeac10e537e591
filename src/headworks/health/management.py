"""Probes and metrics on a port of their own, which no gateway routes.

The server of the application counts sockets, and a flood of them takes the probes with it: the
platform then kills the pod for being busy. This one listens elsewhere, on the same event loop, so that
it still tells whether that turns. It answers one request per connection. It never waits for anybody:
a connection has `LIFETIME` seconds for everything, and when there are `MOST` of them, the oldest goes.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from http import HTTPStatus
from typing import Final, cast

from headworks.errors import HeadworksError
from headworks.health.probes import Page, Pages

log = logging.getLogger("headworks")

MOST: Final = 256
"""Connections at once."""
LIFETIME: Final = 5.0
"""Seconds from a connection's first moment to its last: to send a request, and to read its answer."""
MOST_HEAD: Final = 8192
"""Bytes of a request's head."""

_TOO_LARGE: Final = Page(431, "text/plain", b"the head of the request is too large\n")
_UNMADE: Final = Page(500, "text/plain", b"this page could not be made; the log says why\n")
_UNREADABLE: Final = Page(400, "text/plain", b"this is no HTTP/1 request\n")


class PortTaken(HeadworksError):
    """The management port cannot be listened on; the message says which, why, and what would help."""


class Management:
    """A small server for probes and metrics.

    host, port  where it listens; port 0: any that is free
    """

    def __init__(self, pages: Pages, *, host: str, port: int) -> None:
        self._pages, self._host, self._port = pages, host, port
        self._server: asyncio.Server | None = None
        self._connections: dict[_Connection, asyncio.Transport] = {}  # oldest first

    @property
    def port(self) -> int:
        """Where it really listens."""
        assert self._server is not None, "not started"
        return int(self._server.sockets[0].getsockname()[1])

    async def start(self) -> None:
        """Listen, or raise `PortTaken`."""
        listener = listen(self._host, self._port)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), sock=listener)

    async def aclose(self) -> None:
        """Close the port and every connection. Closing what was not started does nothing."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for transport in list(self._connections.values()):
            transport.abort()

    def open(self, connection: _Connection, transport: asyncio.Transport) -> None:
        """Count a connection; where there are too many, the oldest makes room."""
        self._connections[connection] = transport
        if len(self._connections) > MOST:
            oldest = next(iter(self._connections))
            self._connections.pop(oldest).abort()

    def closed(self, connection: _Connection) -> None:
        self._connections.pop(connection, None)

    def answer(self, head: bytes) -> bytes:
        """The whole answer to a request's head."""
        words = head.partition(b"\r\n")[0].decode("latin-1").split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return _wire(_UNREADABLE)
        try:
            page = self._pages.page(words[0], words[1].partition("?")[0], inside=True)
        except Exception:  # a number that cannot be read is no reason to hang up
            log.exception("the page %.80r could not be made", words[1])
            page = _UNMADE
        return _wire(page, body=words[0] != "HEAD")


class _Connection(asyncio.Protocol):
    """One request and its answer."""

    _transport: asyncio.Transport
    _ends: asyncio.TimerHandle

    def __init__(self, server: Management) -> None:
        self._server, self._head, self._answered = server, b"", False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it
        self._ends = asyncio.get_running_loop().call_later(LIFETIME, self._transport.abort)
        self._server.open(self, self._transport)

    def data_received(self, data: bytes) -> None:
        if self._answered:
            return
        self._head += data
        if b"\r\n\r\n" in self._head:
            self._reply(self._server.answer(self._head))
        elif len(self._head) > MOST_HEAD:
            self._reply(_wire(_TOO_LARGE))

    def connection_lost(self, error: Exception | None) -> None:
        self._ends.cancel()
        self._server.closed(self)

    def _reply(self, wire: bytes) -> None:
        self._answered, self._head = True, b""
        self._transport.write(wire)
        self._transport.close()  # once it has been read, or at the end of the lifetime


def listen(host: str, port: int) -> socket.socket:
    """A bound socket for `Management`; `PortTaken` where there is none to have."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()  # already here: two that are bound to one port differ only in this
    except OSError as error:
        listener.close()
        raise PortTaken(
            f"cannot listen on {host}:{port} for probes and metrics: {error.strerror}; choose another "
            "management.port (--management-port), or 0 for none"
        ) from None
    listener.setblocking(False)
    return listener


def _wire(page: Page, *, body: bool = True) -> bytes:
    head = (
        f"HTTP/1.1 {page.status} {HTTPStatus(page.status).phrase}\r\n"
        f"content-type: {page.content_type}\r\ncontent-length: {len(page.body)}\r\n"
        "cache-control: no-store\r\nconnection: close\r\n\r\n"
    )
    return head.encode("latin-1") + (page.body if body else b"")
