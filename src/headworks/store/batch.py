"""Many decisions, one script call: what is asked in the same tick, or while calls are on their way.

    asked → the open call → queued → sent, at most `in_flight` at once → every caller's own answer

Nothing waits for a timer: a call is sent in the tick in which it was begun, or, when enough are on
their way already, as soon as one of them is back; until then it takes in whoever comes. A caller that
leaves before that is not sent at all. When all callers of a call that has been sent have left, the
call is given up.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Protocol

from headworks.store.protocol import StoreDown
from headworks.store.scripts import Script

Argument = bytes | str | int

SIZE = 64
"""Questions and reports in one call, at most."""


class ServerError(StoreDown):
    """The server answered with an error; the connection is as good as before.

    Its text is the server's, such as "READONLY You can't write …" or "MOVED 3999 127.0.0.1:6381".
    """


class Link(Protocol):
    """The way to the servers that hold the state: one, a primary behind sentinels, or a cluster.

    It keeps its own connections, bounded, and opens them again by itself after a failure.
    """

    def run(
        self, script: Script, keys: Sequence[str | bytes], args: Sequence[Argument]
    ) -> Awaitable[Any]:
        """Run a script once; its reply, strings as bytes. (An `async def` will do.)

        All keys are of one `slot`; without keys, any server will do. A server that does not know the
        script is given its source, within the same call. Raises `ServerError` for an error reply,
        `StoreDown` when there is no reply: the script may have run then, so it is never sent twice.
        May be cancelled at any await.
        """
        ...

    def slot(self, key: str) -> int | None:
        """Keys may go in one call when they have the same slot; None, for every key: all may."""
        ...

    async def aclose(self) -> None: ...


Write = Callable[[Any, list[str], list[Argument]], None]
"""Appends a question or a report to the keys and arguments of a call."""
Read = Callable[[Any, Sequence[int], int], tuple[Any, int]]
"""Its answer in the reply's numbers from an index, and where the next one's begin."""


class Call:
    """The callers that travel together, in the order in which they asked."""

    __slots__ = ("answer", "callers", "left", "slot")

    def __init__(self, slot: int | None) -> None:
        self.slot = slot
        self.callers: list[tuple[asyncio.Future[Any], Any, Write, Read]] = []
        self.left = 0
        self.answer: asyncio.Future[Any] | None = None

    def leave(self) -> None:
        """A caller was cancelled."""
        self.left += 1
        if self.left == len(self.callers) and self.answer is not None:
            self.answer.cancel()

    def fail(self, error: BaseException) -> None:
        """Everyone in it gets an error of their own."""
        for future, *_ in self.callers:
            if not future.done():
                known = isinstance(error, StoreDown)
                future.set_exception(StoreDown(str(error)) if known else error)


class Batches:
    """Gathers callers into calls of one script, and hands out the answers.

    in_flight  calls on their way at once, ≥ 1
    size       callers in one call, ≥ 1
    clock      microseconds for the script to go by, for tests; None: the server's own time
    """

    def __init__(
        self,
        link: Link,
        script: Script,
        *,
        in_flight: int,
        size: int = SIZE,
        clock: Callable[[], int] | None = None,
    ) -> None:
        self._link, self._script, self._clock = link, script, clock
        self._in_flight, self._size = in_flight, size
        self._open: dict[int | None, Call] = {}
        self._queue: deque[Call] = deque()
        self._sent: set[Call] = set()
        self._due = False
        self.trips = self.failures = 0

    def add(
        self, item: Any, write: Write, read: Read, slot: int | None = None
    ) -> tuple[Call, asyncio.Future[Any]]:
        """Put one caller into the open call of its slot. It awaits the future, and when cancelled
        meanwhile, leaves the call."""
        loop = asyncio.get_running_loop()
        call = self._open.get(slot)
        if call is None or len(call.callers) >= self._size:
            call = self._open[slot] = Call(slot)
            self._queue.append(call)
        future: asyncio.Future[Any] = loop.create_future()
        call.callers.append((future, item, write, read))
        if not self._due and len(self._sent) < self._in_flight:
            self._due = True
            loop.call_soon(self._flush)
        return call, future

    def _flush(self) -> None:
        self._due = False
        while self._queue and len(self._sent) < self._in_flight:
            call = self._queue.popleft()
            if self._open.get(call.slot) is call:
                del self._open[call.slot]
            self._send(call)

    def _send(self, call: Call) -> None:
        keys: list[str] = []
        arguments: list[Argument] = [0 if self._clock is None else self._clock()]
        call.callers = [caller for caller in call.callers if not caller[0].done()]
        call.left = 0
        for _, item, write, _ in call.callers:
            write(item, keys, arguments)
        if not call.callers:
            return
        self.trips += 1
        self._sent.add(call)
        try:
            call.answer = asyncio.ensure_future(self._link.run(self._script, keys, arguments))
        except StoreDown as error:  # a link that is closed
            self._sent.discard(call)
            self.failures += 1
            call.fail(error)
            return
        call.answer.add_done_callback(partial(self._answered, call))

    def _answered(self, call: Call, answer: asyncio.Future[Any]) -> None:
        self._sent.discard(call)
        if self._queue and not self._due:
            self._due = True
            answer.get_loop().call_soon(self._flush)
        if answer.cancelled():
            call.fail(StoreDown("given up"))
        elif (error := answer.exception()) is not None:
            self.failures += 1
            call.fail(error)
        else:
            _hand_out(call, answer.result())

    def close(self) -> None:
        """Give up what is on its way or queued: everyone waiting gets `StoreDown`."""
        for call in self._queue:
            call.fail(StoreDown("closed"))
        self._queue.clear()
        self._open.clear()
        for call in self._sent:
            if call.answer is not None:
                call.answer.cancel()


def _hand_out(call: Call, reply: Sequence[Any]) -> None:
    packed = reply[0]
    failed = dict(zip(reply[1::2], reply[2::2], strict=True)) if len(reply) > 1 else None
    numbers = struct.unpack(f"<{len(packed) // 8}q", packed)
    i, number = 1, 0
    for future, item, _, read in call.callers:
        number += 1
        if failed is not None and number in failed:
            if not future.done():
                future.set_exception(ServerError(failed[number].decode(errors="replace")))
            continue
        answer, i = read(item, numbers, i)
        if not future.done():
            future.set_result(answer)
