"""Whether who asked is still there; looked at only while somebody inside depends on it.

A server tells of a disconnect through `receive()`, where the body comes from too, and says the same
once an answer is complete. So nobody looks before the body has been read to its end, and nothing that
is heard after the last byte of the answer counts: background tasks have nobody to leave them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from contextvars import Context
from types import TracebackType
from typing import Any, Final, Protocol

from headworks.errors import CallerLeft

log = logging.getLogger("headworks")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]

GONE: Final = "http.disconnect"


class Wait(Protocol):
    """Something that ends at a time of the loop's clock, such as an `asyncio.Timeout`."""

    def reschedule(self, when: float, /) -> None: ...


class Presence:
    """That of one request's caller: the `receive` its application is given, and who must not outlast it.

    While somebody waits in `staying` (or a route has asked for it), one task listens for the
    disconnect; it begins when the body is over. The server is asked by one reader at a time: while the
    application itself listens, what it hears is enough, and while the task does, the application is
    told by it.

    The one message that a request without a body has is read ahead, and kept for the application.

    budget  what bounds the whole request
    source  the server's `receive`, or who stands in for it
    """

    __slots__ = (
        "_bodiless",
        "_ended",
        "_kept",
        "_listener",
        "_over",
        "_readers",
        "_scope",
        "_waits",
        "budget",
        "seen_leaving",
        "source",
    )

    def __init__(self, scope: MutableMapping[str, Any], receive: Receive) -> None:
        self._scope, self.source = scope, receive
        self.budget: Wait | None = None
        self.seen_leaving = self._ended = self._over = False
        self._bodiless: bool | None = None
        self._kept: Message | None = None
        self._readers = 0
        self._listener: asyncio.Task[Message] | None = None
        self._waits: set[Wait] | None = None

    @property
    def left(self) -> bool:
        """Seen leaving before its answer was complete; False again once it is."""
        return self.seen_leaving and not self._over

    @property
    def over(self) -> bool:
        """Its answer is complete, or its request ended otherwise."""
        return self._over

    @property
    def body_read(self) -> bool:
        """The application has read the body to its end, or there is none."""
        return self._ended or self._has_no_body()

    async def receive(self) -> Message:
        """The server's `receive`, as the application is given it."""
        while self._listener is not None and self._kept is None:
            await asyncio.wait((self._listener,))
        if self._kept is not None:
            message, self._kept = self._kept, None
            return message
        if self.left:
            return {"type": GONE}
        self._readers += 1
        try:
            message = await self.source()
            self._heard(message)
            return message
        finally:
            self._readers -= 1
            if self._waits:
                self._listen()

    def watch(self, wait: Wait) -> None:
        """End `wait` when the caller leaves; raises `CallerLeft` when it has left already."""
        if self.left:
            raise CallerLeft
        if not self._over:
            if self._waits is None:
                self._waits = set()
            self._waits.add(wait)
            self._listen()

    def forget(self, wait: Wait) -> None:
        """Stop ending it; what is not watched any more is left alone."""
        if self._waits is not None:
            self._waits.discard(wait)

    def take_along(self) -> None:
        """The whole request ends when the caller leaves, its handler included."""
        if self.budget is not None:
            self.watch(self.budget)

    def answered(self) -> None:
        """The answer is complete, or the request over: nothing that is heard from now on counts."""
        self._over = True
        self._waits = self.budget = None
        if self._listener is not None:
            self._listener.cancel()

    def _has_no_body(self) -> bool:
        if self._bodiless is None:
            framing = {
                name: value
                for name, value in self._scope["headers"]
                if name in (b"content-length", b"transfer-encoding")
            }
            self._bodiless = framing in ({}, {b"content-length": b"0"})
        return self._bodiless

    def _listen(self) -> None:
        """Begin to listen, unless somebody does, or the body still has to be read by the application."""
        heard = self._listener is not None or self._readers or self.seen_leaving or self._over
        if not heard and (self._ended or (self._kept is None and self._has_no_body())):
            loop, listening = asyncio.get_running_loop(), self._receive_once()
            self._listener = loop.create_task(listening, name="caller", context=Context())
            self._listener.add_done_callback(self._listened)

    async def _receive_once(self) -> Message:
        message = await self.source()
        if message["type"] == GONE:
            self._heard(message)  # a turn of the loop before anybody hears that this task is done
        return message

    def _listened(self, listener: asyncio.Task[Message]) -> None:
        self._listener = None
        if listener.cancelled():
            return
        if (error := listener.exception()) is not None:
            self._over = True
            log.warning("the server does not say whether a caller is there", exc_info=error)
            return
        message, ended = listener.result(), self._ended
        if message["type"] == GONE:
            return
        self._heard(message)
        if ended:  # a message beyond the end: of this server nothing can be learnt
            self._over = True
            return
        self._kept = message
        if self._waits:
            self._listen()

    def _heard(self, message: Message) -> None:
        if message["type"] != GONE:
            self._ended = self._ended or not message.get("more_body", False)
        else:
            self.seen_leaving = True
            now = asyncio.get_running_loop().time()
            waits, self._waits = self._waits, None
            for wait in waits or ():
                with suppress(RuntimeError):  # its own time is up already: it needs no telling
                    wait.reschedule(now)


class staying:  # reads as what it says: `async with staying(caller):`
    """Raise `CallerLeft` in place of whatever is awaited inside once the caller has left.

    What is awaited is cancelled. Without a caller (outside of any request, in a websocket) it does
    nothing.
    """

    __slots__ = ("_caller", "_wait")

    def __init__(self, caller: Presence | None) -> None:
        self._caller = caller
        self._wait: asyncio.Timeout | None = None

    async def __aenter__(self) -> None:
        if self._caller is not None:
            self._wait = asyncio.timeout(None)
            await self._wait.__aenter__()
            self._caller.watch(self._wait)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._caller is None or self._wait is None:
            return
        self._caller.forget(self._wait)
        try:
            await self._wait.__aexit__(kind, error, where)
        except TimeoutError:
            raise CallerLeft from error
