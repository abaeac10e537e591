"""The question that nearly everybody asks, one limit and now, answered in place.

The formulas of `limits.bucket` and `limits.window`, written out once per shape as a function that has
the shape's numbers at hand. Whatever is not plain (a level that was given something back, a log in which
an entry is freed) is left to those modules: the function then returns None. The tests hold the two to
each other.
"""

from __future__ import annotations

from array import array
from asyncio import AbstractEventLoop, get_running_loop
from collections.abc import Callable
from typing import TYPE_CHECKING

from headworks.limits.shapes import Bucket, Shape, Window
from headworks.store.shelf import BITS, HEAD, SPAN, UNITS
from headworks.verdict import NEVER, LimitState, Verdict

if TYPE_CHECKING:
    from headworks.store.memory import MemoryStore

SECOND = 1_000_000

Take = Callable[[str, str, int], Verdict | None]
"""(limit's name, key, cost) to the verdict, None where it is not plain; takes what it allows."""

_new = tuple.__new__
"""Fills a named tuple in a third of the time its own constructor takes."""


def loop_clock() -> Callable[[], int]:
    """The running event loop's time in microseconds. It remembers the loop: asking which one runs costs
    a tenth of a whole decision."""
    loop: AbstractEventLoop | None = None

    def now() -> int:
        nonlocal loop
        if loop is None or not loop.is_running():
            loop = get_running_loop()
        return int(loop.time() * SECOND)

    return now


def taking(store: MemoryStore, shape: Shape) -> Take:
    """What takes from limits of this shape, in this store."""
    return _from_buckets(store, shape) if isinstance(shape, Bucket) else _from_windows(store, shape)


def _from_buckets(store: MemoryStore, shape: Bucket) -> Take:
    held_by, turn, clock = store.levels.held, store.levels.turn, store.clock
    limit, period, burst = shape.limit, shape.period, shape.burst
    pace, per, full = shape.pace_us, shape.pace_per, shape.burst * shape.pace_us

    def take(name: str, key: str, cost: int) -> Verdict | None:
        now = clock()
        held = held_by.get(key)
        tat, last, rem = now, 0, 0
        if held is not None:
            if len(held) == 2:
                tat, last = held
            elif len(held) == 4 and held[3] == per:
                tat, last, rem, _ = held
            else:
                return None
            if tat < now or (tat == now and not rem):
                tat, last, rem = now, 0, 0
        store.answered += 1
        need, room = cost * pace, full - (tat - now)
        if per != 1:
            room -= (tat - now) * (per - 1) + rem
        if need > room:
            retry = NEVER if cost > burst else (-((room - need) // per)) / SECOND
            left, reset = max(0, room // pace), (tat + (rem > 0) - now) / SECOND
            state = _new(LimitState, (name, limit, period, False, left, reset, retry))
            return _new(Verdict, (False, retry, (state,), 0.0, 0, 0, 0, None, 0.0, False))
        if cost:
            if per == 1:
                tat += need
            else:
                more, rem = divmod(rem + need, per)
                tat += more
            if now > last:
                last = now
            if held is None:
                turn.append(key)
            held_by[key] = (tat, last, rem, per) if rem else (tat, last)
            if now >= store.look_at:
                store.look(now)
        reset = ((tat + 1 if rem else tat) - now) / SECOND
        state = _new(LimitState, (name, limit, period, True, (room - need) // pace, reset, 0.0))
        return _new(Verdict, (True, 0.0, (state,), 0.0, now, 0, 0, None, 0.0, False))

    return take


def _from_windows(store: MemoryStore, shape: Window) -> Take:
    held_by, turn, clock = store.logs.held, store.logs.turn, store.clock
    limit, period_us, period, grain = shape.limit, shape.period_us, shape.period, shape.grain_us

    def take(name: str, key: str, cost: int) -> Verdict | None:
        now = clock()
        held = held_by.get(key)
        end = now - now % grain + grain - 1
        if held is None:
            if not 0 < cost <= limit or cost > UNITS:
                return None
            held_by[key] = array("Q", (end, period_us, cost, cost))
            turn.append(key)
            left = limit - cost
        else:
            if type(held) is not array or held[1] != period_us:
                return None
            first, newest = held[0], held[-1]
            freed = first + (held[HEAD] >> BITS) + period_us
            if freed <= now:
                return None
            left = limit - held[2] - cost
            if left < 0:
                return full(name, cost, held, freed, now)
            if cost:
                ahead = end - first - (newest >> BITS)
                if not ahead and (newest & UNITS) + cost <= UNITS:
                    held[-1] = newest + cost
                elif ahead > 0 and end - first < SPAN and cost <= UNITS:
                    held_by[key] = held = held + array("Q", ((end - first << BITS) + cost,))
                else:
                    return None
                held[2] += cost
            else:
                end = first + (newest >> BITS)
        store.answered += 1
        if now >= store.look_at:
            store.look(now)
        state = _new(
            LimitState, (name, limit, period, True, left, (end + period_us - now) / SECOND, 0.0)
        )
        return _new(Verdict, (True, 0.0, (state,), 0.0, now, 0, 0, None, 0.0, False))

    def full(name: str, cost: int, held: array[int], freed: int, now: int) -> Verdict | None:
        if cost > limit:
            wait = NEVER
        elif cost - limit + held[2] > held[HEAD] & UNITS:  # the oldest entry is not enough
            return None
        else:
            wait = (freed - now) / SECOND
        store.answered += 1
        reset = (held[0] + (held[-1] >> BITS) + period_us - now) / SECOND
        state = _new(LimitState, (name, limit, period, False, max(0, limit - held[2]), reset, wait))
        return _new(Verdict, (False, wait, (state,), 0.0, 0, 0, 0, None, 0.0, False))

    return take
