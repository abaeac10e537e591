"""What the fake vendor allows, exactly. No clock, no await, no rounding.

Three mechanisms, all in integer microseconds, for an amount of L units per window of W:

    bucket   level' = min(B·W, level + Δt·L); a cost c fits while level' ≥ c·W (levels are kept
             multiplied by W, so that refilling is exact); B is the burst, L when none is given
    sliding  an exact log: the costs accepted in (now − W, now] never exceed L
    fixed    windows number ⌊now / W⌋ on the clock that is passed in, each starting from zero

`Judge` asks every limit that applies to a call; all of them consume, or none does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

REQUESTS, TOKENS, INPUT_TOKENS, OUTPUT_TOKENS = UNITS = (
    "requests",
    "tokens",
    "input_tokens",
    "output_tokens",
)
MECHANISMS = ("bucket", "sliding", "fixed")


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `amount` of `unit` per `window_us`, enforced by `mechanism`.

    burst  capacity of a bucket in units; None: the amount. Other mechanisms ignore it
    model  the model this limit is about; empty: every call
    """

    unit: str
    amount: int
    window_us: int
    mechanism: str = "bucket"
    burst: int | None = None
    model: str = ""

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise ValueError(f"unit: '{self.unit}' is not one of {', '.join(UNITS)}")
        if self.mechanism not in MECHANISMS:
            raise ValueError(f"mechanism: '{self.mechanism}' is not one of {', '.join(MECHANISMS)}")
        if self.amount < 1:
            raise ValueError(f"amount: {self.amount} must be at least 1 in a window")
        if self.window_us < 1:
            raise ValueError(f"window: {self.window_us} µs must be at least 1 µs")
        if self.burst is not None and self.burst < 1:
            raise ValueError(f"burst: {self.burst} must be at least 1")

    @property
    def name(self) -> str:
        return f"{self.model} {self.unit}" if self.model else self.unit


class Meter(Protocol):
    """One limit's state. Times are microseconds on one clock that never runs backwards."""

    @property
    def capacity(self) -> int:
        """The largest cost that can ever fit."""

    def wait_us(self, cost: int, now_us: int) -> int | None:
        """Time until the cost fits if nothing else is taken: 0 now, None never."""

    def take(self, cost: int, now_us: int) -> None:
        """Consume a cost that fits."""

    def remaining(self, now_us: int) -> int:
        """Whole units left now."""

    def reset_us(self, now_us: int) -> int:
        """Time until the limit is entirely unused again."""

    def most(self, since_us: int, now_us: int) -> int:
        """The most units the mechanism could have accepted from `since_us`, unused then, to now."""


class Bucket:
    def __init__(self, limit: Limit) -> None:
        self._rate, self._window = limit.amount, limit.window_us
        self.capacity = limit.amount if limit.burst is None else limit.burst
        self._level = self.capacity * self._window
        self._at = 0

    def _refill(self, now_us: int) -> int:
        if now_us > self._at:
            full = self.capacity * self._window
            self._level = min(full, self._level + (now_us - self._at) * self._rate)
            self._at = now_us
        return self._level

    def wait_us(self, cost: int, now_us: int) -> int | None:
        if cost > self.capacity:
            return None
        lacking = cost * self._window - self._refill(now_us)
        return max(0, -(-lacking // self._rate))

    def take(self, cost: int, now_us: int) -> None:
        self._level = self._refill(now_us) - cost * self._window

    def remaining(self, now_us: int) -> int:
        return self._refill(now_us) // self._window

    def reset_us(self, now_us: int) -> int:
        return -(-(self.capacity * self._window - self._refill(now_us)) // self._rate)

    def most(self, since_us: int, now_us: int) -> int:
        return self.capacity + (now_us - since_us) * self._rate // self._window


class Sliding:
    def __init__(self, limit: Limit) -> None:
        self.capacity, self._window = limit.amount, limit.window_us
        self._log: deque[tuple[int, int]] = deque()
        self._used = 0

    def _forget(self, now_us: int) -> None:
        while self._log and self._log[0][0] <= now_us - self._window:
            self._used -= self._log.popleft()[1]

    def wait_us(self, cost: int, now_us: int) -> int | None:
        if cost > self.capacity:
            return None
        self._forget(now_us)
        excess = self._used + cost - self.capacity
        for at_us, taken in self._log:
            if excess <= 0:
                break
            excess -= taken
            if excess <= 0:
                return at_us + self._window - now_us
        return 0

    def take(self, cost: int, now_us: int) -> None:
        self._forget(now_us)
        self._log.append((now_us, cost))
        self._used += cost

    def remaining(self, now_us: int) -> int:
        self._forget(now_us)
        return self.capacity - self._used

    def reset_us(self, now_us: int) -> int:
        self._forget(now_us)
        return self._log[-1][0] + self._window - now_us if self._log else 0

    def most(self, since_us: int, now_us: int) -> int:
        return self.capacity * ((now_us - since_us) // self._window + 1)


class Fixed:
    def __init__(self, limit: Limit) -> None:
        self.capacity, self._window = limit.amount, limit.window_us
        self._number, self._used = -1, 0

    def _turn(self, now_us: int) -> int:
        number = now_us // self._window
        if number != self._number:
            self._number, self._used = number, 0
        return self._used

    def wait_us(self, cost: int, now_us: int) -> int | None:
        if cost > self.capacity:
            return None
        fits = self._turn(now_us) + cost <= self.capacity
        return 0 if fits else self._window - now_us % self._window

    def take(self, cost: int, now_us: int) -> None:
        self._used = self._turn(now_us) + cost

    def remaining(self, now_us: int) -> int:
        return self.capacity - self._turn(now_us)

    def reset_us(self, now_us: int) -> int:
        return self._window - now_us % self._window if self._turn(now_us) else 0

    def most(self, since_us: int, now_us: int) -> int:
        return self.capacity * (now_us // self._window - since_us // self._window + 1)


def meter(limit: Limit) -> Meter:
    """A fresh, unused meter of the limit's mechanism."""
    if limit.mechanism == "bucket":
        return Bucket(limit)
    return Sliding(limit) if limit.mechanism == "sliding" else Fixed(limit)


@dataclass(frozen=True, slots=True)
class Standing:
    """One limit right after a decision, as the vendor's headers tell it."""

    limit: Limit
    remaining: int
    reset_us: int


@dataclass(frozen=True, slots=True)
class Ruling:
    """The decision about one call.

    refused_by   the limit that refused (the one with the longest wait), None when accepted
    retry_us     time until the same call would be accepted; None when it never can be
    standings    every limit that applied
    """

    refused_by: Limit | None
    retry_us: int | None
    standings: tuple[Standing, ...]

    @property
    def accepted(self) -> bool:
        return self.refused_by is None


class Judge:
    """Decides calls one after the other; synchronous, so exact however many calls run at once."""

    def __init__(self, limits: Iterable[Limit] = ()) -> None:
        self.meters: list[tuple[Limit, Meter]] = [(limit, meter(limit)) for limit in limits]

    def decide(self, costs: dict[str, int], now_us: int, *, model: str = "") -> Ruling:
        """Charge `costs` (units by name) to every limit that applies to `model`, or to none."""
        asked = [pair for pair in self.meters if pair[0].model in ("", model)]
        waits = [(limit, own.wait_us(costs.get(limit.unit, 0), now_us)) for limit, own in asked]
        refusing = [(limit, wait) for limit, wait in waits if wait != 0]
        refused_by: Limit | None = None
        retry_us: int | None = 0
        if refusing:
            refused_by, retry_us = max(refusing, key=lambda r: float("inf") if r[1] is None else r[1])
        else:
            for limit, own in asked:
                own.take(costs.get(limit.unit, 0), now_us)
        standings = tuple(Standing(limit, m.remaining(now_us), m.reset_us(now_us)) for limit, m in asked)
        return Ruling(refused_by, retry_us, standings)
