"""The pod's places for requests: who takes one, who waits for one, who is refused."""

from __future__ import annotations

import asyncio
import math
import random
from dataclasses import dataclass
from typing import Final

from headworks.admission.pressure import Pressure
from headworks.admission.waiting import Turn, Waiting
from headworks.clock import loop_clock
from headworks.current import Criticality, Current
from headworks.errors import LoadShed, PodSaturated

FILL: Final = {Criticality.BACKGROUND: 0.8, Criticality.SHEDDABLE: 0.9}
"""Without a line: up to which part of the limit a class is let in; classes not named use all of it."""
EASED: Final = 0.8
"""A pod that was full counts as full until fewer than this part of its places is taken."""
REMEMBER: Final = 64
"""Requests over which the time that a place is held is averaged, the latest counting most."""
LEAST_WAIT: Final = 1.0
"""Seconds a refused caller is asked to wait at least."""
SPREAD: Final = (4.0, 60.0)
"""Seconds, at least and at most, over which refused callers are spread so that they do not return in
step: twice the time in which all who are in or in line will have gone."""


@dataclass(frozen=True, slots=True)
class AdmissionStatistics:
    """What the pod is doing now, and what it has decided since the start.

    in_flight   requests whose answer is not complete
    running     requests and websockets the application has not returned from (background tasks too)
    websockets  websockets open
    waiting     requests in line for a place
    limit       places for requests
    full_for    seconds for which the pod has been full, 0 when it is not
    holding     mean seconds for which a place has lately been held, 0 before the first
    pressure    how much is being shed: 0 nobody, 1 background, 2 sheddable too, 3 default too
    admitted    requests and websockets let in
    saturated   refused because the pod was full
    shed        refused because more critical requests may need the place, or the pod is under pressure
    left        gone while they waited in line
    expired     answered 504 because their time was spent before an answer began
    stalled     cut off because the client did not read
    """

    in_flight: int
    running: int
    websockets: int
    waiting: int
    limit: int
    full_for: float
    holding: float
    pressure: float
    admitted: int
    saturated: int
    shed: int
    left: int
    expired: int
    stalled: int


class Slot:
    """One place. `release` returns it; `end` says that the application has returned, too."""

    __slots__ = ("_began", "_ended", "_released", "_slots", "_websocket")

    def __init__(self, slots: Slots, began: float, *, websocket: bool = False) -> None:
        self._slots, self._began, self._websocket = slots, began, websocket
        self._released = self._ended = False
        slots._admitted += 1
        if websocket:
            slots._websockets += 1
            return
        slots._in_flight += 1
        if slots._in_flight >= slots._limit and slots._full_since is None:
            slots._full_since = began

    def release(self) -> None:
        """Give the place back; every call but the first does nothing."""
        if not self._released:
            self._slots._take_back(self)

    def end(self) -> None:
        """Give the place back, and stop counting as running."""
        if not self._released:
            self._slots._take_back(self)
        if not self._ended:
            self._ended = True
            slots = self._slots
            slots._ended += 1
            if slots._idle is not None and slots._ended == slots._admitted:
                slots._idle.set()
                slots._idle = None


class Slots:
    """At most `limit` requests in flight.

    Without a line, less critical requests are refused before the pod is full, so that the rest of the
    places is there for the others. With one, anybody may take any place: who matters more goes first
    whenever one is free, and no place stands empty for it.

    limit       requests in flight at once, ≥ 1
    websockets  websockets open at once, ≥ 1; default `limit`
    patience    seconds a request may wait in line for a place; 0: there is no line
    pressure    which classes the pod sheds before it is full
    rng         draws the waits of refused callers
    """

    def __init__(
        self,
        limit: int,
        *,
        rng: random.Random,
        websockets: int | None = None,
        patience: float = 0.0,
        pressure: Pressure | None = None,
    ) -> None:
        self._rng, self._pressure = rng, pressure or Pressure()
        self._line: Waiting | None = None
        self._in_flight = self._websockets = 0
        self._admitted = self._ended = self._saturated = self._shed = 0
        self._held, self._holding = 0, 0.0
        self._full_since: float | None = None
        self._idle: asyncio.Event | None = None
        self._now = loop_clock()
        self.left = self.expired = self.stalled = 0
        self.change(limit, websockets=websockets, patience=patience)

    def change(self, limit: int, *, websockets: int | None = None, patience: float = 0.0) -> None:
        """Go by these numbers from now on. Whoever is in stays in, whoever is in line keeps its turn for
        as long as it was to wait: a lower limit lets nobody in until there is room, and the places of a
        higher one go to the head of the line at once."""
        self._limit, self._websocket_limit = limit, websockets or limit
        if self._line is not None:
            self._line.change(patience, limit)
        elif patience > 0:
            self._line = Waiting(patience, limit)
        fill = {} if patience > 0 else FILL
        self._fill = {kind: max(1, int(limit * fill.get(kind, 1.0))) for kind in Criticality}
        self.let_in(limit)
        if self._in_flight < EASED * limit:
            self._full_since = None
        elif self._in_flight >= limit and self._full_since is None:
            self._full_since = self._now()

    def let_in(self, limit: float = math.inf) -> None:
        """Give places to those in line, in their order, while fewer than `limit` are taken."""
        while self._line is not None and self._in_flight < limit and (turn := self._line.next()):
            turn.give(self.claim_anyway(self._now()))

    def claim(self, current: Current, now: float) -> Slot | Turn:
        """A place for a request, a turn in the line, or `PodSaturated` or `LoadShed` at once.

        now  the loop's time
        """
        in_flight, pressure = self._in_flight, self._pressure
        if pressure.level and pressure.sheds(current.criticality, current.tenant):
            self._shed += 1
            raise LoadShed(retry_after=self._wait())
        if in_flight >= self._limit:
            return self._queue(current, now)
        if in_flight >= self._fill[current.criticality]:
            self._shed += 1
            raise LoadShed(retry_after=self._wait())
        return Slot(self, now)

    def claim_anyway(self, now: float) -> Slot:
        """A place for a request, full or not."""
        return Slot(self, now)

    def claim_websocket(self, current: Current) -> Slot:
        """A place for a websocket, or `PodSaturated` or `LoadShed` at once."""
        if self._pressure.sheds(current.criticality, current.tenant):
            self._shed += 1
            raise LoadShed(retry_after=self._wait())
        if self._websockets >= self._websocket_limit:
            self._saturated += 1
            raise PodSaturated("this pod has as many websockets as it may", retry_after=self._wait())
        return self.claim_websocket_anyway()

    def claim_websocket_anyway(self) -> Slot:
        """A place for a websocket, full or not."""
        return Slot(self, self._now(), websocket=True)

    async def wait_idle(self) -> None:
        """Wait until the application has returned from everything; bound it from outside."""
        while self._ended < self._admitted:
            if self._idle is None:
                self._idle = asyncio.Event()
            await self._idle.wait()

    def statistics(self) -> AdmissionStatistics:
        full = self._full_since
        return AdmissionStatistics(
            in_flight=self._in_flight,
            running=self._admitted - self._ended,
            websockets=self._websockets,
            waiting=len(self._line) if self._line is not None else 0,
            limit=self._limit,
            full_for=0.0 if full is None else self._now() - full,
            holding=self._holding,
            pressure=self._pressure.level,
            admitted=self._admitted,
            saturated=self._saturated,
            shed=self._shed,
            left=self.left,
            expired=self.expired,
            stalled=self.stalled,
        )

    def _queue(self, current: Current, now: float) -> Turn:
        """A turn in the line; `PodSaturated` where there is none, or where it would take too long."""
        if self._line is None or not self._line.patience:
            self._saturated += 1
            raise PodSaturated(retry_after=self._wait())
        return self._line.join(current, self._holding, now, self._in_vain)

    def _in_vain(self) -> PodSaturated:
        """The refusal of one who cannot be, or was not, served in time."""
        self._saturated += 1
        return PodSaturated("the wait for a place would be too long", retry_after=self._wait())

    def _take_back(self, slot: Slot) -> None:
        """A place is free: whoever is at the head of the line takes it, in the same step, unless more
        are taken than there are."""
        slot._released = True
        if slot._websocket:
            self._websockets -= 1
            return
        now = self._now()
        if self._held < REMEMBER:
            self._held += 1
        self._holding += (now - slot._began - self._holding) / self._held
        self._in_flight -= 1
        if self._line is not None and self._in_flight < self._limit:
            turn = self._line.next()
            if turn is not None:
                turn.give(Slot(self, now))
                return
            if not self._line.patience:  # the last of a line that nobody joins any more
                self._line = None
        if self._full_since is not None and self._in_flight < EASED * self._limit:
            self._full_since = None

    def _wait(self) -> float:
        """Seconds after which a refused caller may come again."""
        waiting = len(self._line) if self._line is not None else 0
        drained = self._holding * (1 + waiting / self._limit)
        least, most = SPREAD
        return LEAST_WAIT + self._rng.uniform(0.0, min(max(least, 2.0 * drained), most))
