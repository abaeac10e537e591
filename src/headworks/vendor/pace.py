"""What a lane learns about its own pace: how fast its line moves, and how much of the demand is its."""

from __future__ import annotations

import math
from collections import deque

from headworks.current import Criticality
from headworks.limits.arrivals import Arrivals
from headworks.verdict import NEVER, Verdict

REPORT_EVERY = 1.0
"""Seconds between two reports of this pod's demand."""

SMOOTH = 0.1
"""The weight of the newest in the mean spacing."""

MODEST, GREEDY = 1.5, 2.0
"""How many times its equal part a tenant may ask for and be let wait as long as ever, and catch up."""

FORGOTTEN, FORGET_EVERY = 0.05, 64
"""The part of one arrival below which a tenant is forgotten, and how many there are at least before it
is looked at."""

CROWDED = 0.98
"""The part of the pace that those who overtake are thought to take at most."""


class Pace:
    """How fast the line moves, in seconds per call, and so how long a call will stand in it.

    The slower of two: what the line was last seen to do while it had something to move (at first, what
    the slots allow: `interval`), and, while the verdicts show the quota used up, this lane's part of the
    quota.

    Others go on coming and overtake. Of the own class that is at most who can get an earlier stamp, and
    no more than lately joined; of higher classes all: where calls join at a rate λ, a wait of t becomes
    t / (1 − λ · interval).
    """

    def __init__(self, interval: float, remember: int = 32) -> None:
        self._interval = interval
        self._times: deque[float] = deque(maxlen=remember)
        self._spacing, self._tight = 0.0, False
        self._joined = {criticality: Arrivals() for criticality in Criticality}

    def joined(self, criticality: Criticality, now: float) -> None:
        """A call of this class has joined the line."""
        self._joined[criticality].arrived(now)

    def heard(self, verdict: Verdict, spacing: float) -> None:
        """A verdict; calls of its cost go `spacing` seconds apart at this lane's part of the quota."""
        if verdict.blocked is not None or verdict.retry_after == NEVER:
            return
        self._tight = not verdict.allowed or any(state.remaining <= 0 for state in verdict.limits)
        if verdict.allowed:
            self._spacing += ((spacing - self._spacing) * SMOOTH) if self._spacing else spacing

    def served(self, now: float, *, busy: bool) -> None:
        """A call left the line at `now`; the line is `busy` if others still wait."""
        if busy:
            self._times.append(now)
        else:
            self._times.clear()

    def interval(self, now: float) -> float:
        """Seconds between two calls of this line."""
        interval = self._interval
        if len(self._times) >= 4:
            interval = (now - self._times[0]) / len(self._times)
        return max(interval, self._spacing) if self._tight else interval

    def wait(self, ahead: int, criticality: Criticality, now: float, *, later: int = 0) -> float:
        """Seconds until a call of this class with so many ahead of it is likely to be served, if `later`
        at most of its class overtake it and nobody of higher ones."""
        interval = self.interval(now)
        joining = self._joined[criticality].now(now) * interval
        return min(ahead / (1.0 - min(joining, CROWDED)), ahead + later) * interval

    def overtaken(self, criticality: Criticality, now: float) -> float:
        """How many times longer a wait becomes by those of higher classes who come meanwhile."""
        higher = sum(level.now(now) for other, level in self._joined.items() if other > criticality)
        return 1.0 / (1.0 - min(higher * self.interval(now), CROWDED))


class Demand:
    """This pod's arrivals, in calls per second, and its share of the fleet's as last heard.

    half_life  seconds after which an arrival counts half for `overload`
    """

    def __init__(self, half_life: float) -> None:
        self._arrivals, self._half_life = Arrivals(), half_life
        self._lasting = {criticality: Arrivals(half_life) for criticality in Criticality}
        self._tenants: dict[str, Arrivals] = {}
        self._forget_at = FORGET_EVERY
        self._reported_at = -math.inf
        self._reported = 0.0
        self.share = 1.0

    def arrived(self, tenant: str, criticality: Criticality, now: float) -> None:
        """One call has come in."""
        self._arrivals.arrived(now)
        self._lasting[criticality].arrived(now)
        if tenant not in self._tenants:
            self._forget(now)
            self._tenants[tenant] = Arrivals(self._half_life)
        self._tenants[tenant].arrived(now)

    def part(self, tenant: str, interval: float, now: float) -> float:
        """How many times its equal part of the pace, a call every `interval`, a tenant has lately asked
        for."""
        return self._tenants[tenant].now(now) * len(self._tenants) * interval

    def overload(self, criticality: Criticality, interval: float, now: float) -> float:
        """How many times more has lately come of this class and higher ones than goes at that pace; at
        least 1."""
        come = sum(level.now(now) for other, level in self._lasting.items() if other >= criticality)
        return max(1.0, come * interval)

    def _forget(self, now: float) -> None:
        """Drop who has not asked for long, whenever there are twice as many as were left last time."""
        if len(self._tenants) < self._forget_at:
            return
        least = FORGOTTEN / self._half_life
        self._tenants = {name: come for name, come in self._tenants.items() if come.now(now) > least}
        self._forget_at = max(2 * len(self._tenants), FORGET_EVERY)

    def to_report(self, now: float) -> float:
        """Calls per second to report with the question at hand; 0 when it is not yet time."""
        if now - self._reported_at < REPORT_EVERY:
            return 0.0
        self._reported_at, self._reported = now, max(self._arrivals.now(now), 0.001)
        return self._reported

    def heard(self, fleet: float) -> None:
        """The fleet's demand from a verdict; 0 says nothing."""
        if fleet > 0 and self._reported > 0:
            self.share = min(1.0, self._reported / fleet)
