"""Step 7: who stands in a lane's line, how long at most, and who is told at once that it is no use."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Sequence

from headworks.current import Criticality, Current
from headworks.errors import DeadlineExceeded, QueueTimeout, Refused
from headworks.limits.line import CREDIT, Line, Waiter
from headworks.telemetry import Decided, Telemetry
from headworks.vendor.gate import GateCache
from headworks.vendor.grant import Booking
from headworks.vendor.outlook import Outlook, Place
from headworks.vendor.pace import GREEDY, MODEST, Demand, Pace

TRIM = 1.25
"""By how much the line may be longer than can be served in time before it is cut."""

PASSED_OVER = 64
"""Calls that are looked at and kept, at most, when those who cannot be served in time are refused."""

LONG = 4.0
"""Over how many times the longest wait demand is compared with the pace: a burst that the line can hold
is no overload."""


_Entry = tuple[float, int, Waiter[Place]]
"""By the end of its time: one in line, or one who has left and is only struck out."""


class Waiting:
    """A lane's line, bounded in time.

    bookings  the lane's, as they stand
    least     seconds that a caller may have to wait at least, however overloaded the vendor
    gave_up   told when somebody's time in line was over
    """

    def __init__(
        self,
        vendor: str,
        *,
        gate: GateCache,
        pace: Pace,
        outlook: Outlook,
        bookings: Sequence[Booking],
        telemetry: Telemetry,
        queue_timeout: float,
        least: float,
        gave_up: Callable[[], None],
    ) -> None:
        self.line: Line[Place] = Line()
        self.demand = Demand(LONG * queue_timeout)
        self._vendor, self._gate, self._pace, self._outlook = vendor, gate, pace, outlook
        self._bookings, self._telemetry, self._gave_up = bookings, telemetry, gave_up
        self._queue_timeout, self._least = queue_timeout, least
        self._by_end: list[_Entry] = []
        self._number = 0
        self._closed = False

    def close(self) -> None:
        """Refuse everyone in line, and whoever comes."""
        self._closed = True
        for waiter in self.line.waiters():
            self.refuse(waiter, QueueTimeout("the service is shutting down", retry_after=1.0))

    def enter(self, cost: dict[str, int], who: Current) -> Waiter[Place]:
        """Stand in line, or be refused at once."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        self.demand.arrived(who.tenant, who.criticality, now)
        until = min(now + self._queue_timeout, who.deadline)
        units = max(cost.get("tokens", 0), cost.get("input_tokens", 0) + cost.get("output_tokens", 0))
        pace = self._pace.interval(now)
        part = self.demand.part(who.tenant, pace, now)
        overload = 1.0 if part <= MODEST else self.demand.overload(who.criticality, pace, now)
        credit = CREDIT if part <= GREEDY else 0
        ahead = self.line.ahead(who.tenant, who.criticality, units, who.weight, credit)
        wait = self._outlook.wait(
            ahead.now, cost, who.criticality, self._bookings, now, later=ahead.later
        )
        refusal = self._outlook.hopeless(cost, until, now)
        if self._closed:
            refusal = QueueTimeout("the service is shutting down", retry_after=1.0)
        elif now >= who.deadline:
            refusal = DeadlineExceeded()
        elif refusal is None and now + wait > min(until, now + self._patience(overload)):
            refusal = self._outlook.too_long(wait, cost)
        if refusal is not None:
            self.decided(who.criticality, refusal)
            raise refusal
        place = Place(cost, loop.create_future(), now, until, who.deadline)
        waiter = Waiter(place, who.tenant, who.criticality, units, who.weight, credit)
        self.line.join(waiter)
        self._pace.joined(waiter.criticality, now)
        place.timer = loop.call_at(until, self._give_up, waiter)
        self._note_end(waiter)
        return waiter

    def _note_end(self, waiter: Waiter[Place]) -> None:
        """Keep in order of their ends who stands in line, and not many more."""
        if len(self._by_end) > 2 * len(self.line) + PASSED_OVER:
            self._by_end = [entry for entry in self._by_end if entry[2].standing]
            heapq.heapify(self._by_end)
        self._number += 1
        heapq.heappush(self._by_end, (waiter.payload.until, self._number, waiter))

    def _patience(self, overload: float) -> float:
        """Seconds that a caller may have to wait: the longer demand has been a multiple of the pace, its
        tenant's of its part, the fewer. Then no wait serves more calls, it only serves them late."""
        least = min(self._least, self._queue_timeout)
        return max(self._queue_timeout / (overload * overload), least)

    def _give_up(self, waiter: Waiter[Place]) -> None:
        """The time in line is over."""
        now = asyncio.get_running_loop().time()
        if now >= waiter.payload.deadline:
            self.refuse(waiter, DeadlineExceeded())
        elif self._gate.wait(now) > 0:
            self.refuse(waiter, self._gate.refusal(now))
        else:
            wait = self._tail(waiter.criticality, now)
            self.refuse(waiter, self._outlook.too_long(wait, waiter.payload.cost))
        self._gave_up()

    def refuse(self, waiter: Waiter[Place], refusal: Refused) -> None:
        """Out of the line, with an answer."""
        self.leave(waiter)
        if not waiter.payload.woken.done():
            self.decided(waiter.criticality, refusal)
            waiter.payload.woken.set_exception(refusal)

    def decided(self, criticality: Criticality, refusal: Refused | None = None) -> None:
        """Tell of a decision."""
        reason = refusal.reason if refusal else ""
        name = criticality.name.lower()
        self._telemetry.emit(Decided("vendor", refusal is None, reason, self._vendor, name))

    def leave(self, waiter: Waiter[Place]) -> None:
        """Out of the line, served or not; again does nothing."""
        self.line.leave(waiter)
        if waiter.payload.timer is not None:
            waiter.payload.timer.cancel()

    def turn_away(self) -> None:
        """Refuse at once who cannot be served in time, but not those for whom bookings are held.

        Looks at those whose time ends soonest, and only at those whose time ends too soon.
        """
        now = asyncio.get_running_loop().time()
        shut = self._gate.wait(now)
        latest = max(now + shut, self._outlook.full.room_at)
        if not self._by_end or self._by_end[0][0] >= latest:
            return
        booked = 0 if shut > 0 else len(self._bookings)
        served = {id(self.line.nth(n)) for n in range(booked)}
        kept: list[_Entry] = []
        while self._by_end and self._by_end[0][0] < latest and len(kept) < PASSED_OVER + booked:
            entry = heapq.heappop(self._by_end)
            waiter = entry[2]
            if not waiter.standing:
                continue
            refusal = self._outlook.hopeless(waiter.payload.cost, waiter.payload.until, now)
            if refusal is None or id(waiter) in served:
                kept.append(entry)
            else:
                self.refuse(waiter, refusal)
        for entry in kept:
            heapq.heappush(self._by_end, entry)

    def _tail(self, criticality: Criticality, now: float) -> float:
        """Seconds until the end of the line is likely to be served."""
        return self._outlook.wait(len(self.line), {}, criticality, self._bookings, now)

    def trim(self) -> None:
        """More stand in line than the pace now known can serve in time: refuse the last of them now."""
        now = asyncio.get_running_loop().time()
        if self._tail(Criticality.CRITICAL, now) < TRIM * self._queue_timeout:
            return
        for ahead, waiter in enumerate(self.line.in_order()):
            place, top = waiter.payload, Criticality.CRITICAL  # whom nobody overtakes
            wait = self._outlook.wait(ahead, place.cost, top, self._bookings, now)
            if now + wait > place.until + (TRIM - 1.0) * self._queue_timeout / 2:
                self.refuse(waiter, self._outlook.too_long(wait, place.cost))
