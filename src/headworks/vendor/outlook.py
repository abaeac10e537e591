"""What a lane can foresee for a call that stands in its line, or is about to: refusals at once."""

from __future__ import annotations

import asyncio
import heapq
import random
from collections.abc import Sequence
from dataclasses import dataclass

from headworks.current import Criticality
from headworks.errors import QueueTimeout, Refused, VendorQuota
from headworks.vendor.gate import GateCache
from headworks.vendor.grant import Booking, Grant
from headworks.vendor.pace import Pace
from headworks.vendor.quota import Cost, Quota, missing


@dataclass(slots=True, eq=False)
class Place:
    """What the line holds for one call: its cost, whom to wake, and how long it may stand."""

    cost: dict[str, int]
    woken: asyncio.Future[Grant]
    joined_at: float
    until: float
    deadline: float
    timer: asyncio.TimerHandle | None = None


@dataclass(frozen=True, slots=True)
class Full:
    """The quota has no room for a cost before `room_at` (loop's clock), nor for anything costlier.

    ask_at  when it is worth asking for it again
    """

    cost: dict[str, int]
    room_at: float
    ask_at: float

    def holds(self, cost: Cost) -> bool:
        return not missing(self.cost, cost)


ROOM = Full({}, 0.0, 0.0)


class Outlook:
    """Gate, quota and pace as this pod knows them, put together.

    full         what the store last said
    unheard      it did not answer last, and without it nobody may call
    rests_until  the lane books nothing before, on the loop's clock
    """

    def __init__(
        self,
        quota: Quota,
        gate: GateCache,
        pace: Pace,
        queue_timeout: float,
        rng: random.Random,
    ) -> None:
        self._vendor, self._quota, self._gate, self._pace = quota.vendor, quota, gate, pace
        self._queue_timeout, self._rng = queue_timeout, rng
        self.full, self.unheard = ROOM, False
        self.rests_until = 0.0

    def hopeless(self, cost: Cost, until: float, now: float) -> Refused | None:
        """The refusal of a call that surely cannot be sent in time, from what this pod knows."""
        if now + self._gate.wait(now) > until and now < self._gate.look_at:
            return self._gate.refusal(now)
        if self.full.room_at > until and self.full.holds(cost):
            return self._no_room(self.full.room_at - now)
        return None

    def _no_room(self, wait: float) -> VendorQuota:
        detail = f"the quota of vendor '{self._vendor}' has no room for {wait:.1f} s"
        return VendorQuota(detail, retry_after=wait, limit=self._vendor)

    def wait(
        self,
        ahead: int,
        cost: Cost,
        criticality: Criticality,
        bookings: Sequence[Booking],
        now: float,
        *,
        later: int = 0,
    ) -> float:
        """Seconds until a call with so many ahead of it is likely to be sent, if `later` at most of its
        class overtake it; `bookings` is a heap."""
        overtaken = self._pace.overtaken(criticality, now)
        if ahead < len(bookings):
            return max(heapq.nsmallest(ahead + 1, bookings)[-1].due - now, 0.0) * overtaken
        first = max((booking.due for booking in bookings), default=max(now, self.rests_until))
        if not bookings and self.full.room_at > now and self.full.holds(cost):
            first = self.full.room_at
        behind = self._pace.wait(ahead - len(bookings), criticality, now, later=later)
        return (max(first - now, 0.0) + behind) * overtaken

    def too_long(self, wait: float, cost: Cost) -> Refused:
        """The refusal of a call that would have to wait so many seconds.

        Where even two calls of this cost are further apart than anybody may wait, it is not the line
        that is too long: the quota is used up.
        """
        if self.unheard:
            detail = (
                f"the shared store is away or just back; calls to vendor '{self._vendor}' wait for it"
            )
            return QueueTimeout(detail, retry_after=self._rng.uniform(1.0, 2.0))
        if self._quota.spacing(cost) > self._queue_timeout:
            return self._no_room(wait)
        return QueueTimeout(
            f"the wait for vendor '{self._vendor}' is about {wait:.1f} s, "
            f"and at most {self._queue_timeout:g} s are waited",
            retry_after=max(wait - self._queue_timeout, 0.0) + self._rng.uniform(1.0, 2.0),
        )
