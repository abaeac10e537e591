"""The pod's places for requests: counted, never waited for."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import Final

from headworks.current import Criticality
from headworks.errors import LoadShed, PodSaturated

FILL: Final = {Criticality.BACKGROUND: 0.8, Criticality.SHEDDABLE: 0.9}
"""Up to which part of the limit a class is let in; classes not named here use all of it."""
EASED: Final = 0.8
"""A pod that was full counts as full until fewer than this part of its places is taken."""
RETRY_AFTER: Final = (1.0, 5.0)
"""Seconds a refused caller is asked to wait, drawn evenly so that they do not return in step."""


@dataclass(frozen=True, slots=True)
class AdmissionStatistics:
    """What the pod is doing now, and what it has decided since the start.

    in_flight   requests whose answer is not complete
    running     requests and websockets the application has not returned from (background tasks too)
    websockets  websockets open
    limit       places for requests, and as many again for websockets
    full_for    seconds for which the pod has been full, 0 when it is not
    admitted    requests and websockets let in
    saturated   refused because the pod was full
    shed        refused because more critical requests may need the place
    expired     answered 504 because their time was spent before an answer began
    stalled     cut off because the client did not read
    """

    in_flight: int
    running: int
    websockets: int
    limit: int
    full_for: float
    admitted: int
    saturated: int
    shed: int
    expired: int
    stalled: int


class Slot:
    """One place. `release` returns it; `end` says that the application has returned, too."""

    __slots__ = ("_ended", "_released", "_slots", "_websocket")

    def __init__(self, slots: Slots, websocket: bool) -> None:
        self._slots, self._websocket = slots, websocket
        self._released = self._ended = False

    def release(self) -> None:
        """Give the place back; every call but the first does nothing."""
        if not self._released:
            self._released = True
            self._slots._give_back(self._websocket)

    def end(self) -> None:
        """Give the place back, and stop counting as running."""
        self.release()
        if not self._ended:
            self._ended = True
            self._slots._end()


class Slots:
    """At most `limit` requests in flight; less critical ones are refused before the pod is full.

    limit  requests in flight at once, ≥ 1; websockets have as many places of their own
    rng    draws the waits of refused callers
    """

    def __init__(self, limit: int, *, rng: random.Random) -> None:
        self._limit, self._rng = limit, rng
        self._fill = {kind: max(1, int(limit * FILL.get(kind, 1.0))) for kind in Criticality}
        self._in_flight = self._running = self._websockets = 0
        self._admitted = self._saturated = self._shed = 0
        self._full_since: float | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self.expired = self.stalled = 0

    def claim(self, criticality: Criticality) -> Slot:
        """A place for a request, or `PodSaturated` or `LoadShed` at once."""
        if self._in_flight >= self._limit:
            self._saturated += 1
            raise PodSaturated(retry_after=self._wait())
        if self._in_flight >= self._fill[criticality]:
            self._shed += 1
            raise LoadShed(retry_after=self._wait())
        self._in_flight += 1
        if self._in_flight >= self._limit and self._full_since is None:
            self._full_since = asyncio.get_running_loop().time()
        return self._begin(websocket=False)

    def claim_websocket(self) -> Slot:
        """A place for a websocket, or `PodSaturated` at once."""
        if self._websockets >= self._limit:
            self._saturated += 1
            raise PodSaturated(retry_after=self._wait())
        self._websockets += 1
        return self._begin(websocket=True)

    async def wait_idle(self) -> None:
        """Wait until the application has returned from everything; bound it from outside."""
        await self._idle.wait()

    def statistics(self) -> AdmissionStatistics:
        full = self._full_since
        return AdmissionStatistics(
            in_flight=self._in_flight,
            running=self._running,
            websockets=self._websockets,
            limit=self._limit,
            full_for=0.0 if full is None else asyncio.get_running_loop().time() - full,
            admitted=self._admitted,
            saturated=self._saturated,
            shed=self._shed,
            expired=self.expired,
            stalled=self.stalled,
        )

    def _begin(self, *, websocket: bool) -> Slot:
        self._admitted += 1
        self._running += 1
        self._idle.clear()
        return Slot(self, websocket)

    def _give_back(self, websocket: bool) -> None:
        if websocket:
            self._websockets -= 1
            return
        self._in_flight -= 1
        if self._in_flight < EASED * self._limit:
            self._full_since = None

    def _end(self) -> None:
        self._running -= 1
        if self._running == 0:
            self._idle.set()

    def _wait(self) -> float:
        return self._rng.uniform(*RETRY_AFTER)
