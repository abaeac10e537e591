"""The answers under way in this pod: each ends in time, and all of them when the pod does."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from headworks.errors import PodLeaving

if TYPE_CHECKING:
    from headworks.admission.answer import Answer
    from headworks.admission.waiting import Turn

AGAIN: Final = 1.0
"""Seconds a caller is asked to wait when the pod that answered it ends."""


class Answers:
    """The answers that are not complete, and when each has to be.

    One timer serves all of them, set for the earliest: nearly every answer is complete long before its
    time, and a timer of its own would cost it more than its place in the pod does.

    write_stall  seconds one part of an answer may take to be accepted by its client, > 0
    leaving      whether answers ask clients for another connection
    open         those not complete, which go when they are, or over
    clock        the time of the loop that `now` was asked in last, for who has asked it before
    """

    def __init__(self, write_stall: float) -> None:
        self.write_stall = write_stall
        self.open: dict[Answer, float] = {}
        self._queued: set[Turn] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._next = math.inf
        self.loop: asyncio.AbstractEventLoop | None = None
        self.clock: Callable[[], float] = self.now
        self.leaving = self._over = False

    def now(self) -> float:
        """The running loop's time, on which answers are due."""
        loop = self.loop
        if loop is None or not loop.is_running():
            loop = self._move()
        return loop.time()

    def add(self, answer: Answer, until: float) -> None:
        """An answer begins to be worked on, and is given up at `until`; it leaves `open` in the end."""
        self.open[answer] = until
        if until < self._next:
            self._set_timer(until)
        if self._over:
            answer.end(PodLeaving(retry_after=AGAIN))

    def bound(self, answer: Answer, until: float) -> bool:
        """It is given up at `until` (inf: never) instead. False when it is over, or was given up."""
        if answer not in self.open:
            return False
        self.open[answer] = until
        if until < self._next:
            self._set_timer(until)
        return True

    def queue(self, turn: Turn) -> None:
        """A request waits for its turn to be worked on; `unqueue` it in the end."""
        self._queued.add(turn)
        if self._over:
            turn.refuse(PodLeaving(retry_after=AGAIN))

    def unqueue(self, turn: Turn) -> None:
        """It does not wait any more."""
        self._queued.discard(turn)

    def begin(self) -> None:
        """The pod serves (again)."""
        self.leaving = self._over = False

    def leave(self) -> None:
        """From now on answers ask clients for another connection."""
        self.leaving = True

    def end(self) -> None:
        """End every answer that is not complete: its time in this pod is over. Who still waits for a
        place is told first, and gets none that the others leave."""
        self._over = True
        for turn in tuple(self._queued):
            turn.refuse(PodLeaving(retry_after=AGAIN))
        for answer in tuple(self.open):
            answer.end(PodLeaving(retry_after=AGAIN))

    def _move(self) -> asyncio.AbstractEventLoop:
        """To another loop: what an earlier one had not ended, it never will."""
        self.open.clear()
        self._queued.clear()
        self._timer, self._next = None, math.inf
        self.loop = asyncio.get_running_loop()
        self.clock = self.loop.time
        return self.loop

    def _set_timer(self, until: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next = until
        self._timer = asyncio.get_running_loop().call_at(until, self._look)

    def _look(self) -> None:
        """Give up what is due, and look again when the next one is."""
        due = max(self._next, self.now())  # a loop may wake a little early
        self._timer, self._next = None, math.inf
        for answer in [answer for answer, until in self.open.items() if until <= due]:
            del self.open[answer]
            answer.give_up()
        if (until := min(self.open.values(), default=math.inf)) < math.inf:
            self._set_timer(until)
