"""One timer, at the earliest moment at which anything can happen."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable


class Alarm:
    """Calls `rang` once at the earliest time it was set to, then waits to be set again.

    It keeps that time itself: uvloop's handles of short delays cannot tell theirs.
    """

    def __init__(self, rang: Callable[[], None]) -> None:
        self._rang = rang
        self._handle: asyncio.TimerHandle | None = None
        self._at = math.inf

    def set(self, at: float) -> None:
        """Ring at this time of the loop's clock at the latest."""
        if at < self._at:
            self.cancel()
            self._handle, self._at = asyncio.get_running_loop().call_at(at, self._ring), at

    def cancel(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._handle, self._at = None, math.inf

    def _ring(self) -> None:
        self._handle, self._at = None, math.inf
        self._rang()
