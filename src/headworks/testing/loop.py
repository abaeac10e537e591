"""An event loop whose time passes only when nothing else is left to do.

When every task is waiting, the clock jumps to the next timer, so an hour of backoff takes
milliseconds and `loop.time()` is exact. Everything asyncio moves with it: sleeps, timeouts, and
third-party code that uses them. While work runs in a thread (`run_in_executor`, `anyio.to_thread`) the
clock stands still until it is done. Sockets live in real time: they are served before time jumps only
if they are ready at once, so a timeout around them strikes immediately. Tests that need them belong on
a real loop.
"""

from __future__ import annotations

import asyncio
import math
import selectors
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from anyio import CapacityLimiter, to_thread

T = TypeVar("T")


THREADS = 10.0
"""Real seconds that work in threads may take before time passes without it."""

ENDING = 1.0
"""Real seconds that threads of which nothing is known, such as an executor's on its way out, may take
to wake the loop when no timer ever will."""


class Stalled(RuntimeError):
    """Every task waits for something that no timer will ever bring."""


class _JumpingSelector(selectors.DefaultSelector):
    """Polls instead of waiting, and moves its loop's clock by the time it would have waited."""

    loop: VirtualTimeLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        if self.loop.threads_at_work() and (woken := super().select(THREADS)):
            return woken
        if timeout is None:
            # A thread that has ended since the first look has left its word: hence a second look.
            others = threading.active_count() > 1
            if woken := super().select(ENDING if others else 0):
                return woken
            raise Stalled("deadlock: every task waits, and no timer is set")
        self.loop.advance(timeout)
        return []


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """A selector loop with a clock of its own, in seconds from `start`."""

    def __init__(self, start: float = 1000.0) -> None:
        self._now = start
        self._executing = 0
        self._threads: CapacityLimiter | None = None
        selector = _JumpingSelector()
        selector.loop = self
        super().__init__(selector)
        self.advance(0)

    def time(self) -> float:
        return self._now

    def threads_at_work(self) -> bool:
        """Whether anything runs in a thread for this loop."""
        return self._executing > 0 or (self._threads is not None and self._threads.borrowed_tokens > 0)

    def run_in_executor(  # type: ignore[override]  # typeshed ties func's arguments to args
        self, executor: Any, func: Any, *args: Any
    ) -> asyncio.Future[Any]:
        future = super().run_in_executor(executor, func, *args)
        self._executing += 1
        future.add_done_callback(self._executed)
        return future

    def _executed(self, _: asyncio.Future[Any]) -> None:
        self._executing -= 1

    async def main(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work`, knowing of anyio's threads, whose limiter can only be had inside a task."""
        self._threads = to_thread.current_default_thread_limiter()
        return await work

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
    loop = VirtualTimeLoop(start)
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(loop.main(main))
