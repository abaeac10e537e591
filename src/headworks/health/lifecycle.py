"""SIGTERM, heard before the server hears it.

The server closes its listener as soon as it is told to stop, while gateways still send requests for
a few seconds. Here the pod first says that it leaves, keeps serving for the drain delay, and only
then passes the signal on. A second SIGTERM is passed on at once, and so is SIGINT: whoever presses
Ctrl-C is not a gateway. Either way whatever is still being answered when `patience` is over is ended,
a moment before the server would cut it off.

It works by wrapping the server's own handlers while the application starts up, when they are already
in place. Where there are none (tests, other servers, not the main thread) nothing is done.
"""

from __future__ import annotations

import asyncio
import math
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

from headworks.policy.settings import LAST_WORDS

Handler = Callable[[int, FrameType | None], object]

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class Termination:
    """Delays the server's SIGTERM, and ends what would outlast its patience.

    delay     seconds the pod keeps serving after the signal, ≥ 0
    patience  seconds that requests in flight get once the server was told; less where the server's own
              (`timeout_graceful_shutdown`) is shorter. A server without one is given ours
    leaving   called on the event loop when the signal arrives
    over      called on the event loop when the patience is over
    """

    def __init__(
        self,
        delay: float,
        patience: float,
        *,
        leaving: Callable[[], None],
        over: Callable[[], None],
    ) -> None:
        self._delay, self._patience, self._leaving, self._over = delay, patience, leaving, over
        self._handlers: dict[int, Handler] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._told = False
        self._timer: asyncio.TimerHandle | None = None
        self.ends_at: float | None = None

    def install(self) -> bool:
        """Stand before the server's handlers; False where there are none. Call it on the event loop."""
        if threading.current_thread() is not threading.main_thread():
            return False
        handlers = {number: signal.getsignal(number) for number in SIGNALS}
        for number, handler in handlers.items():
            # Only a handler that sets its server's `should_exit` (uvicorn's) may be called later: the
            # event loop's own placeholder or somebody's function may rely on being called at once.
            if callable(handler) and hasattr(getattr(handler, "__self__", None), "should_exit"):
                self._handlers[number] = handler
                signal.signal(number, self._on_signal)
        self._loop, self._told, self.ends_at = asyncio.get_running_loop(), False, None
        return bool(self._handlers)

    def remove(self) -> None:
        """Put the server's handlers back, unless somebody else has replaced ours."""
        if self._timer is not None:
            self._timer.cancel()
        for number, handler in self._handlers.items():
            if signal.getsignal(number) == self._on_signal:
                signal.signal(number, handler)
        self._handlers = {}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        assert self._loop is not None
        delay = 0.0 if self._told or number == signal.SIGINT else self._delay
        self._told = True
        if delay <= 0:
            self._handlers[number](number, frame)
        self._loop.call_soon_threadsafe(self._leave, number, delay)

    def _leave(self, number: int, delay: float) -> None:
        """The pod says that it leaves; the server is told now or after the delay."""
        if self._handlers:
            self._leaving()
            self._set(delay, self._pass_on, number) if delay > 0 else self._wait_for_the_end(number)

    def _pass_on(self, number: int) -> None:
        self._handlers[number](number, None)
        self._wait_for_the_end(number)

    def _wait_for_the_end(self, number: int) -> None:
        """The server drains from now on; a further signal does not make it begin anew."""
        if self.ends_at is not None:
            return
        patience = self._patience
        config = getattr(getattr(self._handlers[number], "__self__", None), "config", None)
        server: Any = getattr(config, "timeout_graceful_shutdown", None)
        if config is not None and server is None:
            config.timeout_graceful_shutdown = math.ceil(patience + LAST_WORDS)
        elif server is not None:
            patience = min(patience, max(server - LAST_WORDS, server / 2))
        self.ends_at = asyncio.get_running_loop().time() + patience
        self._set(patience, self._over)

    def _set(self, seconds: float, then: Callable[..., None], *arguments: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, then, *arguments)
