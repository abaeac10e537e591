"""How many of the latest answers this pod failed by its own fault."""

from __future__ import annotations

from collections import deque
from typing import Final

from headworks.telemetry import Served

WINDOW: Final = 30
"""Seconds over which answers are counted."""
STEP: Final = 1.0
"""Seconds of answers that are counted, and forgotten, together."""
NOT_OURS: Final = frozenset({0, 429, 502, 503, 504})
"""Statuses that speak of a limit or of somebody behind us, and so say nothing about this pod; 0 is of
an answer that never began."""


class ErrorRate:
    """Counts answers, cheaply: when they were is only noticed by `measure`, which has to look about once
    a second for them to be forgotten in time."""

    def __init__(self) -> None:
        self._bins: deque[list[float]] = deque()
        self._answers = self._failed = 0

    def record(self, event: Served) -> None:
        """Count an answer."""
        status = event[2]
        if status not in NOT_OURS:
            self._answers += 1
            if status >= 500:
                self._failed += 1

    def measure(self, now: float) -> tuple[float, int]:
        """The failed part of the answers of the last 30 s, and how many there were.

        now  the loop's time
        """
        if not self._bins or now - self._bins[-1][0] >= STEP:
            self._bins.append([now, 0, 0])
        latest = self._bins[-1]
        latest[1] += self._answers
        latest[2] += self._failed
        self._answers = self._failed = 0
        while self._bins[0][0] <= now - WINDOW:
            self._bins.popleft()
        total = int(sum(answers for _, answers, _ in self._bins))
        failed = sum(failures for _, _, failures in self._bins)
        return (failed / total if total else 0.0), total
