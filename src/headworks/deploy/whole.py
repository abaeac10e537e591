"""The head and the body of an answer of known length, sent as uvicorn sends them, in less time.

Most answers are a head that states a length, and a body of that length. Nothing has to be waited for to
send them, and their headers are mostly those of the answers before. What they come to is uvicorn's: the
same bytes, and the same state of its cycle after each message, so that it can go on at any point;
everything else is left to it. The transport sees to it that both leave in one write.
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
SHORT: Final = 256
"""Bytes of a line that is kept, at most: together they are a MiB, and longer ones seldom come again."""
_LENGTH: Final = b"content-length"
_OTHERS: Final = (b"connection", b"transfer-encoding")
"""What changes how an answer is sent: uvicorn's to deal with."""
_ENDS: Final = {True: b"\r\n", False: b"connection: close\r\n\r\n"}
"""How a head ends, by whether the connection is kept."""

_lines: Final[dict[tuple[bytes, bytes], bytes]] = {}


class Sending:
    """An application whose answer to one request goes out in this way.

    cycle  uvicorn's, of this request
    app    what is to answer it
    """

    __slots__ = ("_app", "_begun", "_cycle", "transport")

    def __init__(self, cycle: RequestResponseCycle, app: Callable[..., Awaitable[None]]) -> None:
        self._cycle, self._app, self.transport = cycle, app, cycle.transport
        self._begun = False

    def __call__(self, scope: Any, receive: Any, send: Any) -> Awaitable[None]:
        return self._app(scope, receive, self.send)

    def send(self, message: Message) -> Awaitable[None]:
        """The server's `send`, as the application is given it."""
        cycle = self._cycle
        if not cycle.flow.write_paused and not cycle.disconnected:
            if not cycle.response_started:
                self._begun = _begin(cycle, message)
                if self._begun:
                    return AT_ONCE
            elif self._begun and _complete(cycle, message):
                return AT_ONCE
        return cycle.send(message)  # type: ignore[arg-type]  # a message


def _begin(cycle: RequestResponseCycle, message: Message) -> bool:
    """Send a head that states a length. False where nothing has been done, because it is not one, or
    not as simple as nearly all of them."""
    line, headers = STATUS_LINE.get(message.get("status", 0)), message.get("headers")
    if line is None or type(headers) is not list or cycle.scope["method"] == "HEAD":
        return False
    content, length = [line], -1
    try:
        for header in cycle.default_headers + headers:
            line = _lines.get(header)
            if line is None:
                name, value = header
                if name != _LENGTH:
                    line = _line(name, value)
                elif length < 0 and value.isdigit():
                    length, line = int(value), b"content-length: " + value + b"\r\n"
            if not line:
                return False
            content.append(line)
    except (AttributeError, TypeError, ValueError):  # in another form, or in none
        return False
    if length < 0 or message["type"] != "http.response.start":
        return False
    content.append(_ENDS[cycle.keep_alive])
    cycle.response_started = True
    cycle.waiting_for_100_continue = False
    cycle.chunked_encoding, cycle.expected_content_length = False, length
    cycle.transport.write(b"".join(content))
    return True


def _complete(cycle: RequestResponseCycle, message: Message) -> bool:
    """Send all that is missing of an answer so begun. False where nothing has been done, because it is
    not that."""
    body = message.get("body", b"")
    if message["type"] != "http.response.body" or message.get("more_body", False):
        return False
    if cycle.response_complete or len(body) != cycle.expected_content_length:
        return False
    cycle.transport.write(body)
    cycle.message_event.set()
    _over(cycle)
    return True


def refuse(cycle: RequestResponseCycle, status: int, headers: Headers, body: bytes) -> bool:
    """Send a whole refusal of ours, whose headers are known to be as they must. False where nothing has
    been done, because there is something to wait for, or no body to be sent."""
    if cycle.disconnected or cycle.flow.write_paused or cycle.scope["method"] == "HEAD":
        return False
    lines = b"\r\n".join(map(b": ".join, cycle.default_headers + headers))
    content = (STATUS_LINE[status], lines, b"\r\n", _ENDS[cycle.keep_alive], body)
    cycle.response_started = True
    cycle.waiting_for_100_continue = False
    cycle.transport.write_whole(b"".join(content))  # type: ignore[attr-defined]  # a `OneWrite`
    _over(cycle)
    return True


def _over(cycle: RequestResponseCycle) -> None:
    cycle.response_complete = True
    if not cycle.keep_alive:
        cycle.transport.close()
    cycle.on_response()


def _line(name: bytes, value: bytes) -> bytes:
    """A header's line; none for one that is uvicorn's to deal with, or to refuse."""
    lower = name.lower()
    if lower == _LENGTH or lower in _OTHERS or HEADER_RE.search(name) or HEADER_VALUE_RE.search(value):
        return b""
    line = b"%b: %b\r\n" % (lower, value)
    if len(line) <= SHORT:
        if len(_lines) >= REMEMBERED:
            _lines.clear()
        _lines[name, value] = line
    return line
