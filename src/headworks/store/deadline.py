"""Deadlines of one length for many, who share one timer: nearly all are done long before theirs.

    the timer runs every tick, a quarter of the length, while anybody waits, and when one comes due

A deadline that comes due looks once more whether the answer has arrived, as a loop that was held up
runs timers and sockets in one go. Where the loop was held up meanwhile it looks for longer, and what
has not come even then says nothing about whom it was asked of: `LoopLag`.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextvars import Context
from types import TracebackType

LAG = 0.005
"""Seconds by which the timer must be late for the event loop to have been held up."""
TICKS = 4
"""Parts of a deadline, at the end of each of which is looked whether the event loop has been held up."""
GLANCE = 0.001
"""Seconds before its end at which a deadline comes due: for the last look."""
LOOK_AGAIN = 0.02
"""Seconds that the last look takes after the event loop has been held up."""


class LoopLag(TimeoutError):
    """The time was up, but the event loop had been held up: nobody knows who was slow."""


class Bound(ABC):
    """One of them. It waits between `Deadlines.begin` and `end`."""

    __slots__ = ("began", "lagged", "look")

    began: float
    lagged: bool
    look: asyncio.TimerHandle | None

    @abstractmethod
    def expire(self) -> None:
        """Its time is up."""

    def come_due(self, loop: asyncio.AbstractEventLoop) -> None:
        """The last look."""
        end = loop.time() + (LOOK_AGAIN if self.lagged else GLANCE)
        self.look = loop.call_at(end, self._expire, loop, end)

    def _expire(self, loop: asyncio.AbstractEventLoop, when: float) -> None:
        self.lagged = self.lagged or loop.time() - when > LAG
        self.expire()

    def late(self) -> TimeoutError:
        """What whoever waited is told."""
        return LoopLag() if self.lagged else TimeoutError()


class Deadline(Bound):
    """A task's, like `asyncio.timeout`: `TimeoutError` in place of what is awaited inside."""

    __slots__ = ("_all", "_before", "_expired", "_of")

    def __init__(self, all_: Deadlines) -> None:
        self._all, self._expired = all_, False
        self.lagged, self.look = False, None

    def __enter__(self) -> None:
        task = asyncio.current_task(self._all.begin(self))
        assert task is not None, "a deadline is a task's"
        self._of, self._before = task, task.cancelling()

    def expire(self) -> None:
        self._expired = True
        self._of.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._all.end(self)
        # As asyncio does it: where others have cancelled the task as well, theirs goes first.
        if self._expired and self._of.uncancel() <= self._before and kind is asyncio.CancelledError:
            raise self.late() from error


class Deadlines:
    """`with deadlines.one(): await …`, which may take at most `seconds`.

    length   seconds after which one comes due
    waiting  those not due yet, in the order in which they will be
    timed    whether the timer runs, on `loop`
    moved    called when one is begun in another loop than those before
    """

    def __init__(self, seconds: float, moved: Callable[[], None] = lambda: None) -> None:
        self.length, self._moved = max(0.0, seconds - GLANCE), moved
        self.waiting: dict[Bound, None] = {}
        self.loop: asyncio.AbstractEventLoop | None = None
        self.timed = False

    def one(self) -> Deadline:
        return Deadline(self)

    def begin(self, bound: Bound) -> asyncio.AbstractEventLoop:
        """Its time runs, in the loop that runs."""
        loop = self.loop
        if loop is None or not loop.is_running():  # asking which one runs costs more
            loop = self.move()
        bound.began = now = loop.time()
        self.waiting[bound] = None
        if not self.timed:
            self.turn_at(loop, now + self.length / TICKS)
        return loop

    def end(self, bound: Bound) -> None:
        """It waits no longer."""
        self.waiting.pop(bound, None)
        if bound.look is not None:
            bound.look.cancel()

    def move(self) -> asyncio.AbstractEventLoop:
        """To another loop: what waited in an earlier one does so no longer."""
        before, self.loop = self.loop, asyncio.get_running_loop()
        self.waiting, self.timed = {}, False
        if before is not None and before is not self.loop:
            self._moved()
        return self.loop

    def turn_at(self, loop: asyncio.AbstractEventLoop, when: float) -> None:
        self.timed = True
        # It is of no request, though one of them sets it; and no two threads can be in one context.
        loop.call_at(when, self._turn, loop, when, context=Context())

    def _turn(self, loop: asyncio.AbstractEventLoop, when: float) -> None:
        """Who has been held up, who is due, and when to look again."""
        now, self.timed = loop.time(), False
        if now - when > LAG:
            for deadline in self.waiting:
                deadline.lagged = deadline.lagged or now - max(when, deadline.began) > LAG
        for deadline in tuple(self.waiting):
            left = deadline.began + self.length - now
            if left > GLANCE / 2:
                self.turn_at(loop, now + min(left, self.length / TICKS))
                return
            del self.waiting[deadline]
            deadline.come_due(loop)
