"""The pod's own line: who waits for a place, in what order, and who need not even begin.

A request that finds every place taken is let into the line only if it is likely to be served in time:

    wait = (ahead + 1) · holding / places / (1 − ρ) · caution

ahead    those who would go before it: everyone of higher classes, and of its own as many rounds as its
         tenant already has requests in line (`limits/line.py`)
holding  mean seconds for which a place is held; while nobody knows, as many may wait as there are
         places
ρ        the part of the places that higher classes, who go on coming and overtake, will take meanwhile:
         their arrivals per second · holding / places
caution  at least 1, learned from those of its class who waited in vain (`limits/caution.py`)

Whoever is in line ends in exactly one way: its turn comes, its patience is spent, it leaves, the pod
does, or it is cancelled. All but the last meet in one future, so the first of them decides and the
others find it decided.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from headworks.current import Criticality, Current
from headworks.errors import CallerLeft, Refused
from headworks.limits.arrivals import Arrivals
from headworks.limits.caution import Caution
from headworks.limits.line import Line, Waiter

if TYPE_CHECKING:
    from headworks.admission.slots import Slot

CROWDED: Final = 0.98
"""The part of the places that higher classes are thought to take at most."""


class Turn:
    """One request's place in line. Whoever has one awaits `take`, once."""

    def __init__(
        self, line: Waiting, current: Current, until: float, in_vain: Callable[[], Refused]
    ) -> None:
        loop = asyncio.get_running_loop()
        self._line, self._until, self._in_vain = line, until, in_vain
        self._place: asyncio.Future[Slot] = loop.create_future()
        self.joined_at = loop.time()
        self.waiter = Waiter(self, current.tenant, current.criticality, weight=current.weight)

    @property
    def open(self) -> bool:
        """Nothing has become of it yet."""
        return not self._place.done()

    def give(self, slot: Slot) -> None:
        """Its turn has come. Only while it is open."""
        self._place.set_result(slot)

    def left(self) -> None:
        """The client has gone."""
        self.refuse(CallerLeft())

    def spent(self) -> None:
        """Its patience is spent."""
        if self.open:
            self._line.in_vain(self)
            self.refuse(self._in_vain())

    def refuse(self, because: Refused) -> None:
        """It gets no place, unless it has one."""
        if self.open:
            self._place.set_exception(because)

    async def take(self) -> Slot:
        """Wait for the place, as long as patience and deadline allow.

        Raises the refusal when that time has come, `CallerLeft`, and what it was refused with. A place
        that is given in the very moment of a cancellation goes on to the next in line.
        """
        timer = asyncio.get_running_loop().call_at(self._until, self.spent)
        try:
            return await self._place
        except asyncio.CancelledError:
            if not self._place.cancelled() and self._place.exception() is None:
                self._place.result().end()
            raise
        finally:
            timer.cancel()
            self._line.leave(self)


class Waiting:
    """Who waits for a place.

    patience  seconds a request may wait, > 0; never beyond its own deadline
    places    places there are, ≥ 1
    """

    def __init__(self, patience: float, places: int) -> None:
        self.change(patience, places)
        self._line: Line[Turn] = Line()
        self._joined = {criticality: Arrivals() for criticality in Criticality}
        self._caution = {criticality: Caution() for criticality in Criticality}

    def change(self, patience: float, places: int) -> None:
        """Go by these numbers for whoever joins from now on; with a patience of 0 nobody may."""
        self.patience, self._places = patience, places

    def __len__(self) -> int:
        return len(self._line)

    def estimate(self, current: Current, holding: float, now: float) -> float:
        """Seconds until one more such request would be served; see the formula above."""
        ahead = self._line.ahead(current.tenant, current.criticality, weight=current.weight).now
        if holding <= 0:
            return 0.0 if ahead < self._places else math.inf
        interval = holding / self._places
        higher = sum(
            arrivals.now(now) for kind, arrivals in self._joined.items() if kind > current.criticality
        )
        foreseen = (ahead + 1) * interval / (1.0 - min(higher * interval, CROWDED))
        return foreseen * self._caution[current.criticality].now(now)

    def join(self, current: Current, holding: float, now: float, in_vain: Callable[[], Refused]) -> Turn:
        """A turn in the line; raises what `in_vain` makes when it would not come in time.

        holding  mean seconds for which a place is held, 0 when unknown
        """
        self._joined[current.criticality].arrived(now)
        until = min(now + self.patience, current.deadline)
        if now + self.estimate(current, holding, now) > until:
            raise in_vain()
        turn = Turn(self, current, until, in_vain)
        self._line.join(turn.waiter)
        return turn

    def leave(self, turn: Turn) -> None:
        """Step out of the line; after having been served it does nothing."""
        self._line.leave(turn.waiter)

    def in_vain(self, turn: Turn) -> None:
        """Learn from one whose patience is spent."""
        now = asyncio.get_running_loop().time()
        self._caution[turn.waiter.criticality].in_vain(turn.joined_at, now)

    def next(self) -> Turn | None:
        """Take the first whose turn is still open out of the line."""
        while (waiter := self._line.pop()) is not None:
            if waiter.payload.open:
                return waiter.payload
        return None
