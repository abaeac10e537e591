"""A connection of our own: script calls in a row on one socket, replies in the same order.

redis-py knows everything about servers and spends more on one call than the call itself takes; here
is only what a script call needs: AUTH, SELECT, EVALSHA, and EVAL where a server does not know the
script. URLs and certificates are read by redis-py.

A call that nobody waits for any more costs the connection nothing: its reply is dropped when it comes.
When it does not come within `LOST_AFTER` seconds, the connection counts as lost and is closed.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Sequence
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from typing import Any

import hiredis
from redis.asyncio.connection import SSLConnection, UnixDomainSocketConnection, parse_url

from headworks.store.batch import Argument, GiveUp, ServerError
from headworks.store.protocol import Receiver, StoreDown
from headworks.store.scripts import Script

CONNECT_TIMEOUT = 2.0
"""Seconds for connecting, TLS, AUTH and SELECT together."""
LOST_AFTER = 1.0
"""Seconds to wait for a reply that no caller waits for."""
DEFAULT_PORT = 6379

_NOTHING = object()

Command = tuple[Argument, ...]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server is, and as whom to talk to it.

    path   of a unix socket, instead of host and port
    tls    None: plain
    """

    host: str = "localhost"
    port: int = DEFAULT_PORT
    path: str = ""
    username: str | None = None
    password: str | None = None
    database: int = 0
    tls: ssl.SSLContext | None = None

    def __repr__(self) -> str:
        return f"Endpoint({self.path or f'{self.host}:{self.port}'})"

    @classmethod
    def of(cls, url: str) -> Endpoint:
        """From `valkey://`, `redis://` (`valkeys://`, `rediss://`: with TLS) or `unix://`, with the
        query parameters that redis-py knows (`ssl_ca_certs`, `ssl_certfile`, `db`, …).

        Raises `ValueError` for any other scheme.
        """
        scheme, colon, rest = url.partition(":")
        scheme = {"valkey": "redis", "valkeys": "rediss"}.get(scheme, scheme)
        known: dict[str, Any] = dict(parse_url(scheme + colon + rest))
        kind = known.pop("connection_class", None)
        tls = SSLConnection(**known).ssl_context.get() if kind is SSLConnection else None
        return cls(
            host=known.get("host", "localhost"),
            port=known.get("port", DEFAULT_PORT),
            path=known.get("path", "") if kind is UnixDomainSocketConnection else "",
            username=known.get("username"),
            password=known.get("password"),
            database=known.get("db", 0),
            tls=tls,
        )


class _Wire(asyncio.Protocol):
    """One open socket. Calls wait in the order in which they were sent."""

    def __init__(self) -> None:
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self.waiting: deque[tuple[Receiver, Command, Script | None]] = deque()
        self._loop = asyncio.get_running_loop()
        self._broken = ""
        self.open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self.open = True

    def usable(self) -> bool:
        """Whether it is open, and its event loop has not ended and left it so."""
        return self.open and self._loop.is_running()

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        why = self._broken or (f"connection lost: {exc}" if exc else "connection closed by the server")
        while self.waiting:
            to, *_ = self.waiting.popleft()
            if not to.done():
                to.set_exception(StoreDown(why))

    def send(self, to: Receiver, command: Command, script: Script | None = None) -> GiveUp:
        """Send a command and tell `to` the reply; after NOSCRIPT, send it again with the source.

        What cannot be written, such as half a surrogate, raises before anything has happened: a reply
        that is waited for and never asked for would shift all that come after it.
        """
        packed = hiredis.pack_command(command)  # type: ignore[arg-type]  # its stub: of one
        self.waiting.append((to, command, script))
        self._transport.write(packed)
        return partial(self.give_up, to)

    def data_received(self, data: bytes) -> None:
        reader = self._reader
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not _NOTHING:
                self._answered(reply)
        except (hiredis.ProtocolError, IndexError) as error:
            self._broken = f"not a Valkey or Redis server: {error}"
            self.abort()

    def _answered(self, reply: Any) -> None:
        to, command, script = self.waiting.popleft()
        if isinstance(reply, hiredis.ReplyError):
            if script is not None and str(reply).startswith("NOSCRIPT"):
                self.send(to, ("EVAL", script.source, *command[2:]))
            elif not to.done():
                to.set_exception(ServerError(str(reply)))
        elif not to.done():
            to.set_result(reply)

    def give_up(self, to: Receiver) -> None:
        """Nobody waits for this reply any more: drop it, or, if it does not come, the connection."""
        if self.usable():
            self._loop.call_later(LOST_AFTER, self._still_waiting, to)

    def _still_waiting(self, to: Receiver) -> None:
        if any(waiting is to for waiting, *_ in self.waiting):
            self.abort()

    def abort(self) -> None:
        self.open = False
        self._transport.abort()


class Server:
    """A `Link` to one server, over a few connections that are opened when first needed.

    connections  how many, ≥ 1; a call takes the one with the fewest replies outstanding
    """

    def __init__(self, endpoint: Endpoint, *, connections: int = 1) -> None:
        self.endpoint = endpoint
        self._most = connections
        self._wires: list[_Wire] = []
        self._opening: asyncio.Task[_Wire] | None = None
        self._closed = False

    def slot(self, key: str) -> int | None:
        return None

    def post(
        self, script: Script, keys: Sequence[str | bytes], args: Sequence[Argument], to: Receiver
    ) -> GiveUp:
        return self._send(to, ("EVALSHA", script.sha, len(keys), *keys, *args), script)

    def command(self, *command: Argument) -> asyncio.Future[Any]:
        """The reply to any command; raises as `run` does."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        give_up = self._send(future, command)
        future.add_done_callback(lambda done: give_up() if done.cancelled() else None)
        return future

    def _send(self, to: Receiver, command: Command, script: Script | None = None) -> GiveUp:
        if self._closed:
            raise StoreDown("closed")
        wire = self._wires[0] if self._wires else None
        if wire is None or wire.waiting or not wire.usable():
            self._wires = [wire for wire in self._wires if wire.usable()]
            wire = min(self._wires, key=lambda wire: len(wire.waiting), default=None)
            if wire is None or (wire.waiting and len(self._wires) < self._most):
                return self._when_open(to, command, script)
        return wire.send(to, command, script)

    def _when_open(self, to: Receiver, command: Command, script: Script | None) -> GiveUp:
        if self._opening is None:
            # In an empty context: it is no part of whose request came first.
            loop, opening = asyncio.get_running_loop(), self._open()
            self._opening = loop.create_task(opening, name="store-connect", context=Context())
        sent: list[GiveUp] = []

        def opened(task: asyncio.Task[_Wire]) -> None:
            error = StoreDown("closed") if task.cancelled() else task.exception()
            if to.done():
                return
            try:
                if error is None and task.result().open:
                    sent.append(task.result().send(to, command, script))
                    return
            except Exception as unwritable:
                error = unwritable
            to.set_exception(error or StoreDown("connection lost"))

        self._opening.add_done_callback(opened)
        return lambda: sent[0]() if sent else None

    async def _open(self) -> _Wire:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                wire = await _connect(self.endpoint)
        except (OSError, TimeoutError) as error:
            raise StoreDown(f"ConnectionError: {self.endpoint}: {error or 'no answer'}") from error
        finally:
            self._opening = None
        self._wires.append(wire)
        return wire

    async def aclose(self) -> None:
        self._closed = True
        if self._opening is not None:
            opening = self._opening
            opening.cancel()
            await asyncio.wait((opening,))
        for wire in self._wires:
            wire.abort()
        self._wires.clear()


async def _connect(endpoint: Endpoint) -> _Wire:
    loop = asyncio.get_running_loop()
    if endpoint.path:
        _, wire = await loop.create_unix_connection(_Wire, endpoint.path, ssl=endpoint.tls)
    else:
        _, wire = await loop.create_connection(_Wire, endpoint.host, endpoint.port, ssl=endpoint.tls)
    greetings: list[tuple[Argument, ...]] = []
    if endpoint.password is not None:
        user = () if endpoint.username is None else (endpoint.username,)
        greetings.append(("AUTH", *user, endpoint.password))
    if endpoint.database:
        greetings.append(("SELECT", endpoint.database))
    try:
        for greeting in greetings:
            answer: asyncio.Future[Any] = loop.create_future()
            wire.send(answer, greeting)
            await answer
    except BaseException:
        wire.abort()
        raise
    return wire
