"""Many decisions, one script call: what is asked in the same tick, or while calls are on their way.

    asked → the open call → queued → sent, at most `in_flight` at once → every caller's own answer

Nothing waits for a timer: a call is sent in the tick in which it was begun, or, when enough are on
their way already, as soon as one of them is back; until then it takes in whoever comes. A caller that
leaves before that is not sent at all. When all callers of a call that has been sent have left, the
call is given up.

The way back is straight: what reads the reply from the socket hands it to the call, and the call to its
callers, without a turn of the event loop in between.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from functools import lru_cache
from typing import Any, Protocol

from headworks.store.protocol import Receiver, StoreDown
from headworks.store.scripts import Script

Argument = bytes | str | int

SIZE = 64
"""Questions and reports in one call, at most."""


class ServerError(StoreDown):
    """The server answered with an error; the connection is as good as before.

    Its text is the server's, such as "READONLY You can't write …" or "MOVED 3999 127.0.0.1:6381".
    """


GiveUp = Callable[[], object]
"""Nobody waits for the reply any more. Called at most once, and only before it has come."""


class Link(Protocol):
    """The way to the servers that hold the state: one, a primary behind sentinels, or a cluster.

    It keeps its own connections, bounded, and opens them again by itself after a failure.
    """

    def post(
        self, script: Script, keys: Sequence[str | bytes], args: Sequence[Argument], to: Receiver
    ) -> GiveUp:
        """Run a script once, and tell `to` its reply, strings as bytes, never before this returns.

        All keys are of one `slot`; without keys, any server will do. A server that does not know the
        script is given its source, within the same call. The receiver gets `ServerError` for an error
        reply, `StoreDown` when there is no reply: the script may have run then, so it is never sent
        twice. Raises `StoreDown` itself when it is closed.
        """
        ...

    def slot(self, key: str) -> int | None:
        """Keys may go in one call when they have the same slot; None, for every key: all may."""
        ...

    async def aclose(self) -> None: ...


def posted(work: Coroutine[Any, Any, Any], to: Receiver) -> GiveUp:
    """`Link.post` for a link whose calls take several steps: they run as a task of their own."""
    task = asyncio.get_running_loop().create_task(work)

    def tell(task: asyncio.Task[Any]) -> None:
        if task.cancelled():
            error: BaseException | None = StoreDown("given up")
        else:
            error = task.exception()
        if to.done():
            return
        if error is not None:
            to.set_exception(error)
        else:
            to.set_result(task.result())

    task.add_done_callback(tell)
    return task.cancel


def run(
    link: Link, script: Script, keys: Sequence[str | bytes], args: Sequence[Argument]
) -> asyncio.Future[Any]:
    """`Link.post` for one who waits; cancelling the future gives the call up."""
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    give_up = link.post(script, keys, args, future)
    future.add_done_callback(lambda done: give_up() if done.cancelled() else None)
    return future


Write = Callable[[Any, list[str], list[Argument]], None]
"""Appends a question or a report to the keys and arguments of a call. Raises for one that cannot be
written, such as one whose key is half a surrogate."""
Read = Callable[[Any, Sequence[int], int], tuple[Any, int]]
"""Its answer in the reply's numbers from an index, and where the next one's begin."""
Waiting = tuple[Receiver, Any, Write, Read]
"""Who is told, and of what."""


class Call:
    """The callers that travel together, in the order in which they asked; receives their reply."""

    __slots__ = ("_batches", "_over", "callers", "give_up", "slot")

    def __init__(self, batches: Batches, slot: int | None) -> None:
        self.slot = slot
        self.callers: list[Waiting] = []
        self.give_up: GiveUp | None = None
        self._batches, self._over = batches, False

    def start(self, now: int) -> tuple[list[str], list[Argument]]:
        """The keys and arguments to send: of all but those who have left, and those whose own cannot be
        written, who hear of it."""
        while True:
            self.callers = [caller for caller in self.callers if not caller[0].done()]
            keys: list[str] = []
            arguments: list[Argument] = [now]
            try:
                for caller in self.callers:
                    caller[2](caller[1], keys, arguments)
                return keys, arguments
            except Exception as error:
                caller[0].set_exception(error)

    def leave(self) -> None:
        """A caller is done without it. The last one to go drops a call that is on its way."""
        under_way = self.give_up is not None and not self._over
        if under_way and all(to.done() for to, *_ in self.callers):
            self.drop()

    def drop(self) -> None:
        """Wait for its reply no longer."""
        give_up = self._end()
        if give_up is not None:
            give_up()

    def done(self) -> bool:
        return self._over

    def set_result(self, reply: Sequence[Any]) -> None:
        self._end()
        try:
            _hand_out(self.callers, reply)
        except Exception as error:  # what cannot be read is theirs to hear of, not the connection's
            self.fail(error)

    def set_exception(self, error: BaseException) -> None:
        self._end()
        self._batches.failures += 1
        self.fail(error)

    def fail(self, error: BaseException) -> None:
        """Everyone in it gets an error of their own."""
        for to, *_ in self.callers:
            if not to.done():
                known = isinstance(error, StoreDown)
                to.set_exception(StoreDown(str(error)) if known else error)

    def _end(self) -> GiveUp | None:
        """It is over; how to give it up leads back here, and would leave it all to the collector."""
        give_up, self.give_up, self._over = self.give_up, None, True
        self._batches.back(self)
        return give_up


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
        self._loop: asyncio.AbstractEventLoop | None = None
        self.trips = self.failures = 0

    def add(self, to: Receiver, item: Any, write: Write, read: Read, slot: int | None = None) -> Call:
        """Put one caller into the open call of its slot, which it leaves when it is done before it is
        told."""
        loop = self._loop
        if loop is None or not loop.is_running():  # asking which one runs costs more
            loop = self._move()
        call = self._open.get(slot)
        if call is None or len(call.callers) >= self._size:
            call = self._open[slot] = Call(self, slot)
            self._queue.append(call)
        call.callers.append((to, item, write, read))
        if not self._due and len(self._sent) < self._in_flight:
            self._due = True
            loop.call_soon(self._flush)
        return call

    def _move(self) -> asyncio.AbstractEventLoop:
        """To another loop: of what an earlier one has left, nobody waits for an answer."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop, self._due = loop, False
            self._open.clear()
            self._queue.clear()
            self._sent.clear()
        return loop

    def _flush(self) -> None:
        self._due = False
        while self._queue and len(self._sent) < self._in_flight:
            call = self._queue.popleft()
            if self._open.get(call.slot) is call:
                del self._open[call.slot]
            self._send(call)

    def _send(self, call: Call) -> None:
        keys, arguments = call.start(0 if self._clock is None else self._clock())
        if not call.callers:
            return
        self.trips += 1
        self._sent.add(call)
        try:
            call.give_up = self._link.post(self._script, keys, arguments, call)
        except Exception as error:  # a link that is closed
            call.set_exception(error)

    def back(self, call: Call) -> None:
        """A call is no longer on its way: there is room for the next."""
        self._sent.discard(call)
        if self._queue and not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def close(self) -> None:
        """Give up what is on its way or queued: everyone waiting gets `StoreDown`."""
        self._move()
        for call in (*self._queue, *self._sent):
            call.fail(StoreDown("closed"))
        self._queue.clear()
        self._open.clear()
        for call in list(self._sent):
            call.drop()


@lru_cache(maxsize=256)
def _numbers(size: int) -> Callable[[bytes], tuple[int, ...]]:
    """What unpacks so many bytes as numbers."""
    return struct.Struct(f"<{size // 8}q").unpack


def _hand_out(callers: Sequence[Waiting], reply: Sequence[Any]) -> None:
    packed = reply[0]
    failed = dict(zip(reply[1::2], reply[2::2], strict=True)) if len(reply) > 1 else None
    numbers = _numbers(len(packed))(packed)
    i, number = 1, 0
    for to, item, _, read in callers:
        number += 1
        if failed is not None and number in failed:
            if not to.done():
                to.set_exception(ServerError(failed[number].decode(errors="replace")))
            continue
        answer, i = read(item, numbers, i)
        if not to.done():
            to.set_result(answer)
