"""How many calls this pod may have at a vendor at once, counted without waiting.

A slot is *pledged* while a booking is on its way to the head of the line, then *held* by the call.
Nobody waits here: who waits, waits in the line.
"""

from __future__ import annotations

from collections.abc import Callable


class Slots:
    """`total` slots shared by every lane of one vendor. `freed` is told whenever one comes free."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.pledged = 0
        self.held = 0
        self.highest_held = 0
        self._freed: list[Callable[[], None]] = []

    @property
    def free(self) -> int:
        return self.total - self.pledged - self.held

    def when_freed(self, callback: Callable[[], None]) -> None:
        """Call this whenever a slot comes free; lanes are told in turn, the last served last."""
        self._freed.append(callback)

    def pledge_nowait(self) -> bool:
        """Put a free slot aside for a booking; False when there is none."""
        if self.free <= 0:
            return False
        self.pledged += 1
        return True

    def take_pledged(self) -> None:
        """The booking fell due: the pledged slot is now held by a call."""
        self.pledged -= 1
        self.held += 1
        self.highest_held = max(self.highest_held, self.held)

    def unpledge(self) -> None:
        """The booking came to nothing."""
        self.pledged -= 1
        self._tell()

    def release(self) -> None:
        """The call is over."""
        self.held -= 1
        self._tell()

    def _tell(self) -> None:
        if self._freed:
            self._freed.append(self._freed.pop(0))
        for callback in tuple(self._freed):
            callback()
