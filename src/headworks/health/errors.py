"""How many of the latest answers this pod failed by its own fault."""

from __future__ import annotations

from collections import deque
from typing import Final

WINDOW: Final = 30
"""Seconds over which answers are counted."""
NOT_OURS: Final = frozenset({429, 502, 503, 504})
"""Statuses that speak of a limit or of somebody behind us, and so say nothing about this pod."""


class ErrorRate:
    """Counts answers of the last 30 s, in seconds of their own."""

    def __init__(self) -> None:
        self._bins: deque[list[int]] = deque()
        self._latest = [-1, 0, 0]

    def record(self, status: int, now: float) -> None:
        """Count an answer sent at `now` (loop time)."""
        if status == 0 or status in NOT_OURS:
            return
        second, latest = int(now), self._latest
        if latest[0] != second:
            latest = self._latest = [second, 0, 0]
            self._bins.append(latest)
        latest[1] += 1
        if status >= 500:
            latest[2] += 1

    def measure(self, now: float) -> tuple[float, int]:
        """The failed part of the answers, and how many there were."""
        while self._bins and self._bins[0][0] <= now - WINDOW:
            self._bins.popleft()
        total = sum(answers for _, answers, _ in self._bins)
        failed = sum(failures for _, _, failures in self._bins)
        return (failed / total if total else 0.0), total
