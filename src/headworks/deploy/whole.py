"""An answer of one part and known length is written at once; anything else is sent as uvicorn does.

Most answers are a head that states a length, and a body of that length. Sent in two parts, each is
looked at, joined and written on its own. Here the head waits for what comes next, as ASGI lets servers
do, and where that is the whole body, both leave in one write.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import (
    HEADER_RE,
    HEADER_VALUE_RE,
    STATUS_LINE,
    RequestResponseCycle,
)

from headworks.at_once import AT_ONCE
from headworks.problem import Headers

Message = MutableMapping[str, Any]

REMEMBERED: Final = 4096
"""Headers whose lines are kept; those that come again are found faster than looked through."""
_LENGTH: Final = b"content-length"
_OTHERS: Final = (b"connection", b"transfer-encoding")
"""What changes how an answer is sent: uvicorn's to deal with."""

_lines: Final[dict[tuple[bytes, bytes], bytes]] = {}


class Sending:
    """An application whose answer to one request goes out in this way.

    cycle  uvicorn's, of this request
    app    what is to answer it
    """

    __slots__ = ("_app", "_cycle", "_start", "transport")

    def __init__(self, cycle: RequestResponseCycle, app: Callable[..., Awaitable[None]]) -> None:
        self._cycle, self._app, self.transport = cycle, app, cycle.transport
        self._start: Message | None = None

    def __call__(self, scope: Any, receive: Any, send: Any) -> Awaitable[None]:
        return self._app(scope, receive, self.send)

    def send(self, message: Message) -> Awaitable[None]:
        """The server's `send`, as the application is given it."""
        cycle, start = self._cycle, self._start
        if start is None:
            waits = message["type"] == "http.response.start" and not cycle.response_started
            if waits and type(message.get("headers")) is list:
                self._start = message
                return AT_ONCE
            return cycle.send(message)  # type: ignore[arg-type]  # a message
        self._start = None
        whole = message["type"] == "http.response.body" and not message.get("more_body", False)
        if whole and complete(cycle, start["status"], start["headers"], message.get("body", b"")):
            return AT_ONCE
        return self._in_parts(start, message)

    async def _in_parts(self, start: Message, message: Message) -> None:
        await self._cycle.send(start)  # type: ignore[arg-type]  # a message
        await self._cycle.send(message)  # type: ignore[arg-type]  # a message


def complete(cycle: RequestResponseCycle, status: int, headers: Headers, body: bytes) -> bool:
    """Send a whole answer, and end the cycle as its own `send` would. False where nothing has been done,
    because the answer, or the way to its client, is not as simple as that."""
    line = STATUS_LINE.get(status)
    if line is None or cycle.disconnected or cycle.flow.write_paused or cycle.scope["method"] == "HEAD":
        return False
    content, measured = [line], False
    for header in cycle.default_headers + headers:
        line = _lines.get(header)
        if line is None:
            if header[0] == _LENGTH:
                if measured or header[1] != b"%d" % len(body):
                    return False
                measured, line = True, b"%b: %b\r\n" % header
            else:
                line = _line(header)
        if not line:
            return False
        content.append(line)
    if not measured:
        return False
    _end(cycle, content, body)
    return True


def refuse(cycle: RequestResponseCycle, status: int, headers: Headers, body: bytes) -> bool:
    """The same for a refusal of ours, whose headers are known to be as they must."""
    if cycle.disconnected or cycle.flow.write_paused or cycle.scope["method"] == "HEAD":
        return False
    lines = [b"%b: %b\r\n" % header for header in cycle.default_headers + headers]
    _end(cycle, [STATUS_LINE[status], *lines], body)
    return True


def _end(cycle: RequestResponseCycle, content: list[bytes], body: bytes) -> None:
    content.append(b"\r\n" if cycle.keep_alive else b"connection: close\r\n\r\n")
    content.append(body)
    cycle.response_started = cycle.response_complete = True
    cycle.waiting_for_100_continue = False
    cycle.transport.write_whole(b"".join(content))  # type: ignore[attr-defined]  # a `OneWrite`
    cycle.message_event.set()
    if not cycle.keep_alive:
        cycle.transport.close()
    cycle.on_response()


def _line(header: tuple[bytes, bytes]) -> bytes:
    """A header's line; none for one that is uvicorn's to deal with, or to refuse."""
    name, value = header[0].lower(), header[1]
    if name == _LENGTH or name in _OTHERS or HEADER_RE.search(name) or HEADER_VALUE_RE.search(value):
        return b""
    if len(_lines) >= REMEMBERED:
        _lines.clear()
    line = _lines[header] = b"%b: %b\r\n" % (name, value)
    return line
