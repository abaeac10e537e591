"""The answer of a limiter: one frozen value from one atomic question.

Answers are named tuples because every decision makes two of them: a frozen dataclass of this many
fields costs more to fill than the whole decision costs to compute.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import NamedTuple

NEVER = math.inf
"""`retry_after` of a cost that can never fit into its limit."""


class Blocked(StrEnum):
    """Why a gate in front of the limits said no, where it did."""

    OPEN = "open"
    """The breaker is open, or half-open with every probe taken."""
    COOL_DOWN = "cool-down"
    """The vendor asked the whole fleet to pause."""


class LimitState(NamedTuple):
    """One limit's part of a verdict.

    limit        units admitted per `window` seconds
    remaining    whole units left now, after this decision
    reset        seconds until the limit is entirely unused again, if nothing more is taken
    retry_after  seconds until this cost would fit: 0 when it fits now, `NEVER` when it never can
    """

    name: str
    limit: int
    window: float
    allowed: bool
    remaining: int
    reset: float
    retry_after: float


class Verdict(NamedTuple):
    """What the store decided about one question: every limit together, all or nothing.

    allowed      every limit (and the gate, if one was asked) said yes, and all of them consumed
    retry_after  seconds until the same question could succeed: 0 when allowed, else > 0, `NEVER`
                 when it cannot
    wait         seconds from now until the booked send time; 0 without a booking
    at_us        the booked send time on the store's clock, in microseconds; hand it back to settle
    epoch        the gate's epoch: a booking made under an older epoch is void
    probe        the number of the half-open probe this booking is, 0 when it is none
    blocked      why the gate refused, None when the limits decided
    demand       the whole fleet's reported demand, in units per second, 0 when unknown
    degraded     decided without the shared store
    """

    allowed: bool
    retry_after: float
    limits: tuple[LimitState, ...] = ()
    wait: float = 0.0
    at_us: int = 0
    epoch: int = 0
    probe: int = 0
    blocked: Blocked | None = None
    demand: float = 0.0
    degraded: bool = False

    @property
    def tightest(self) -> LimitState | None:
        """The limit that decided: the refusing one that takes longest, else the fullest."""
        tightest, longest, fullest = None, -1.0, 0.0
        for state in self[2]:
            again, left = state[6], state[4] / (state[1] or 1)
            if again > longest or (again == longest and left < fullest):
                tightest, longest, fullest = state, again, left
        return tightest
