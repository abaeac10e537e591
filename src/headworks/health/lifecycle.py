"""SIGTERM, heard before the server hears it.

The server closes its listener as soon as it is told to stop, while gateways still send requests for
a few seconds. Here the pod first says that it leaves, keeps serving for the drain delay, and only
then passes the signal on. A second SIGTERM is passed on at once.

It works by wrapping the server's own handler while the application starts up, when that handler is
already in place. Where there is none (tests, other servers, not the main thread) nothing is done.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable
from types import FrameType

Handler = Callable[[int, FrameType | None], object]


class Termination:
    """Delays the server's SIGTERM.

    delay    seconds the pod keeps serving after the signal, ≥ 0
    leaving  called on the event loop when the signal arrives
    """

    def __init__(self, *, delay: float, leaving: Callable[[], None]) -> None:
        self._delay, self._leaving = delay, leaving
        self._server: Handler | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._told = False

    def install(self) -> bool:
        """Stand before the server's handler; False where there is none. Call it on the event loop."""
        if threading.current_thread() is not threading.main_thread():
            return False
        handler = signal.getsignal(signal.SIGTERM)
        # Only a handler that sets its server's `should_exit` (uvicorn's) may be called later: the
        # event loop's own placeholder or somebody's function may rely on being called at once.
        if not callable(handler) or not hasattr(getattr(handler, "__self__", None), "should_exit"):
            return False
        self._server, self._loop = handler, asyncio.get_running_loop()
        signal.signal(signal.SIGTERM, self._on_signal)
        return True

    def remove(self) -> None:
        """Put the server's handler back, unless somebody else has replaced ours."""
        if self._server is not None:
            if signal.getsignal(signal.SIGTERM) == self._on_signal:
                signal.signal(signal.SIGTERM, self._server)
            self._server = None

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        assert self._server is not None
        assert self._loop is not None
        if self._told or self._delay <= 0:
            self._server(signum, frame)
        if not self._told:
            self._told = True
            self._loop.call_soon_threadsafe(self._leave, signum)

    def _leave(self, signum: int) -> None:
        self._leaving()
        if self._delay > 0 and self._server is not None and self._loop is not None:
            self._loop.call_later(self._delay, self._pass_on, signum)

    def _pass_on(self, signum: int) -> None:
        if self._server is not None:
            self._server(signum, None)
