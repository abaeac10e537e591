"""An event loop whose time passes only when nothing else is left to do.

When every task is waiting, the clock jumps to the next timer, so an hour of backoff takes
milliseconds and `loop.time()` is exact. Everything asyncio moves with it: sleeps, timeouts, and
third-party code that uses them. Sockets and threads live in real time: they are served before time
jumps only if they are ready at once, so a timeout around them strikes immediately. Tests that need
them belong on a real loop. With no timer set, other threads get a second to wake the loop.
"""

from __future__ import annotations

import asyncio
import math
import selectors
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


THREADS = 1.0
"""Real seconds that other threads, where there are any, get before everything counts as stalled."""


class Stalled(RuntimeError):
    """Every task waits for something that no timer will ever bring."""


class _JumpingSelector(selectors.DefaultSelector):
    """Polls instead of waiting, and moves its loop's clock by the time it would have waited."""

    loop: VirtualTimeLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        if timeout is None:
            if threading.active_count() > 1 and (woken := super().select(THREADS)):
                return woken
            raise Stalled("deadlock: every task waits, and no timer is set")
        self.loop.advance(timeout)
        return []


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """A selector loop with a clock of its own, in seconds from `start`."""

    def __init__(self, start: float = 1000.0) -> None:
        self._now = start
        selector = _JumpingSelector()
        selector.loop = self
        super().__init__(selector)
        self.advance(0)

    def time(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Move the clock forward; timers due by then run in the next turn."""
        # Land on the timer exactly: adding the difference back can fall short by one rounding.
        timers = self._scheduled  # type: ignore[attr-defined]  # BaseEventLoop's heap, untyped
        target = self._now + seconds
        if timers and abs(timers[0].when() - target) < 1e-6:
            target = timers[0].when()
        self._now = max(self._now, target)
        # Timers within the resolution are due. Far from zero, a nanosecond is lost in the float.
        self._clock_resolution = max(1e-9, 2 * math.ulp(self._now))


def run(main: Coroutine[Any, Any, T], *, start: float = 1000.0) -> T:
    """Run a coroutine to its end in virtual time, like `asyncio.run`.

    Raises `Stalled` when everything waits for something that no timer will bring.
    """
    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(start)) as runner:
        return runner.run(main)
