"""The running event loop: its time, for who asks at every request, and whether it is the right one."""

from __future__ import annotations

import threading
from asyncio import AbstractEventLoop, get_running_loop
from collections.abc import Callable


def loop_clock() -> Callable[[], float]:
    """The running event loop's time in seconds. It remembers the loop: asking which one runs takes
    150 ns, since Python 3.11 then asks the system which process this is."""
    loop: AbstractEventLoop | None = None

    def now() -> float:
        nonlocal loop
        if loop is None or not loop.is_running():
            loop = get_running_loop()
        return loop.time()

    return now


class OneLoop:
    """What is used in one event loop at a time: that of its first use, until this ends.

    From another one nothing would wake who waits, and connections, timers and tasks of two loops would
    be taken for each other's.
    """

    def __init__(self) -> None:
        self._loop: AbstractEventLoop | None = None

    def enter(self, what: str) -> None:
        """`what` is about to be used here; `RuntimeError` while another loop runs, in another thread."""
        loop = get_running_loop()
        if loop is self._loop:
            return
        if self._loop is not None and self._loop.is_running():
            thread = threading.current_thread().name
            raise RuntimeError(
                f"{what} belongs to the event loop of the application, and was used in another one, of "
                f"thread {thread!r}; use it in an `async def`, or from a thread by "
                "anyio.from_thread.run(…) or asyncio.run_coroutine_threadsafe(…, loop), and not by "
                "asyncio.run(…)"
            )
        self._loop = loop
