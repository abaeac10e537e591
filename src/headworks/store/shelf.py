"""How the store in memory keeps states by key: compactly, and no longer than they matter.

A level is the tuple `bucket.Level` without its trailing defaults: (TAT, last) for most.

A log is an array of unsigned 64-bit numbers, of which every entry takes one:

    end of the first entry · period · units altogether · then per entry  (end − first end)·2²⁴ + units

A log that does not fit (2²⁴ units in one sub-bucket, or twelve days) is kept as (period, entries).

A state is dropped once it is as good as new. A few keys are looked at, in turn, every ten
milliseconds of the clock in which something is written, and at every write as long as a quarter of
those looked at had had their time: nothing ever sweeps them all.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from headworks.limits.bucket import IDLE, Level
from headworks.limits.window import EMPTY, Log

H = TypeVar("H")

BITS = 24
UNITS = 2**BITS - 1
"""The most units that one entry of a packed log can hold."""
SPAN = 2 ** (64 - BITS)
"""Microseconds by which the last entry of a packed log may follow the first."""
HEAD = 3

LOOK_AT = 64
"""Keys looked at in one go."""
LOOK_EVERY_US = 10_000

KeptLevel = tuple[Any, ...]
KeptLog = Any
"""`array[int]`, or tuple[int, Log]; told apart by type."""


class Shelf(Generic[H]):
    """What is held by key; `until(held)` says when it may be dropped. The dictionary is open to all."""

    __slots__ = ("_until", "held", "turn")

    def __init__(self, until: Callable[[H], int]) -> None:
        self._until = until
        self.held: dict[str, H] = {}
        self.turn: deque[str] = deque()

    def __len__(self) -> int:
        return len(self.held)

    def keep(self, key: str, held: H) -> None:
        """Hold this under `key`; a key that was not held joins the turn."""
        if key not in self.held:
            self.turn.append(key)
        self.held[key] = held

    def look(self, now: int) -> bool:
        """Drop what has had its time among the next few keys: whether it was a quarter of them."""
        held, turn, until = self.held, self.turn, self._until
        looks = min(LOOK_AT, len(turn))
        dropped = 0
        for _ in range(looks):
            key = turn.popleft()
            if until(held[key]) > now:
                turn.append(key)
            else:
                del held[key]
                dropped += 1
        return dropped > 0 and 4 * dropped >= looks


def level_until(held: KeptLevel) -> int:
    return int(held[0]) + (len(held) > 2 and held[2] > 0)


def level_of(held: KeptLevel | None, now: int) -> Level:
    """The level that is held, idle when there is none or its time is over."""
    return IDLE if held is None or level_until(held) <= now else Level(*held)


def kept_level(level: Level) -> KeptLevel:
    if level.marks:
        return tuple(level)
    return tuple(level[:4] if level.rem else level[:2])


def log_until(held: KeptLog) -> int:
    if type(held) is tuple:
        period, log = held
        return int(log[-1][0]) + period if log else 0
    return int(held[0] + (held[-1] >> BITS) + held[1])


def log_of(held: KeptLog | None, now: int) -> Log:
    """The log that is held, empty when there is none or its time is over."""
    if held is None or log_until(held) <= now:
        return EMPTY
    if type(held) is tuple:
        return held[1]  # type: ignore[no-any-return] # the one of the two forms that is a tuple
    first = held[0]
    return tuple((first + (entry >> BITS), entry & UNITS) for entry in held[HEAD:])


def kept_log(log: Log, period: int) -> KeptLog:
    """How to hold a log whose entries count for `period` microseconds."""
    if not log or log[-1][0] - log[0][0] >= SPAN or any(units > UNITS for _, units in log):
        return period, log
    first, total = log[0][0], sum(units for _, units in log)
    return array("Q", (first, period, total, *((end - first << BITS) + units for end, units in log)))
