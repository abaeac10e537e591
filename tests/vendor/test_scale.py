"""A long line costs no more per call than a short one: steps and bytes, counted."""

from __future__ import annotations

import asyncio
import sys
import tracemalloc
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from headworks.current import Current
from headworks.errors import Refused
from headworks.vendor.outlook import Full

SIZES = (100, 1_000, 10_000)


def steps(work: Callable[[], object]) -> int:
    """Lines of headworks that are run."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        if "headworks" not in frame.f_code.co_filename:
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def heard(woken: asyncio.Future[Any]) -> None:
    """Nobody waits for it here."""
    _ = woken.cancelled() or woken.exception()


async def lane_with(house: Any, number: int) -> tuple[Any, list[Any]]:
    """A lane with so many in line, whose only slot is held."""
    vendor = house.vendor(slots=1, quota=["60000/min"], queue_timeout="600s", expected_latency="1ms")
    lane = vendor._lanes[""]
    lane._slots.pledge_nowait()
    who = [Current(tenant=f"t{n}") for n in range(50)]
    waiters = [lane._waiting.enter({"requests": 1}, who[n % 50]) for n in range(number)]
    for waiter in waiters:
        waiter.payload.woken.add_done_callback(heard)
    return lane, waiters


async def _ended(lane: Any) -> None:
    lane._waiting.close()
    await asyncio.sleep(0)


async def test_joining_leaving_and_being_served_take_no_more_steps_in_a_long_line(house: Any) -> None:
    """Averages, since who left is swept out once in a while. A heap's own log n is counted by nobody."""
    taken = []
    for number in SIZES:
        lane, waiters = await lane_with(house, number)
        joined = [lane._waiting.enter({"requests": 1}, Current(tenant="t1")) for _ in range(50)]
        for waiter in joined:
            waiter.payload.woken.add_done_callback(heard)

        def join(lane: Any = lane) -> None:
            for _ in range(50):
                waiter = lane._waiting.enter({"requests": 1}, Current(tenant="t2"))
                waiter.payload.woken.add_done_callback(
                    lambda woken: woken.cancelled() or woken.exception()
                )

        def leave(lane: Any = lane, waiters: Any = waiters) -> None:
            for waiter in waiters[::2]:
                lane._left(waiter)

        def serve(lane: Any = lane) -> None:
            for _ in range(50):
                lane._line.nth(10)
                lane._waiting.leave(lane._line.pop())

        taken.append((steps(join) / 50, steps(leave) / len(waiters[::2]), steps(serve) / 50))
        await _ended(lane)
    shortest, _, longest = taken
    for short, long in zip(shortest, longest, strict=True):
        assert long <= 1.5 * short + 20, f"steps at {SIZES}: {taken}"


async def test_turning_nobody_away_takes_no_more_steps_in_a_long_line(house: Any) -> None:
    """The quota is full, but everybody can wait; or it is full only for calls that cost more."""
    taken = []
    for number in SIZES:
        lane, waiters = await lane_with(house, number)
        now = asyncio.get_running_loop().time()
        waiting, outlook = lane._waiting, lane._outlook
        outlook.full = Full({"requests": 1}, now + 599.0, now + 1.0)
        patient = steps(waiting.turn_away)
        outlook.full = Full({"requests": 2}, now + 601.0, now + 1.0)
        taken.append((patient, steps(waiting.turn_away)))
        assert len(lane._line) == len(waiters)
        await _ended(lane)
    shortest, _, longest = taken
    for short, long in zip(shortest, longest, strict=True):
        assert long <= 1.5 * short + 20, f"steps at {SIZES}: {taken}"


@pytest.mark.parametrize("way", ["turned away", "trimmed"])
async def test_refusals_that_must_come_take_no_more_steps_each_in_a_long_line(
    house: Any, way: str
) -> None:
    taken = []
    for number in SIZES:
        lane, waiters = await lane_with(house, number)
        now = asyncio.get_running_loop().time()
        if way == "trimmed":
            lane._waiting._queue_timeout = 600.0
            lane._pace._interval = 1.26 * 600.0 / number
            count = steps(lane._waiting.trim)
        else:
            lane._outlook.full = Full({"requests": 1}, now + 601.0, now + 1.0)
            count = steps(lane._waiting.turn_away)
        refused = sum(waiter.payload.woken.done() for waiter in waiters)
        assert refused >= 0.1 * number
        taken.append(count / refused)
        await _ended(lane)
    assert taken[2] <= 1.5 * taken[0] + 20, f"steps at {SIZES}: {taken}"


async def test_who_has_left_is_forgotten(house: Any) -> None:
    """What keeps the order of ends keeps nobody for long who has been served or has left."""
    lane, _ = await lane_with(house, 10)
    for _ in range(5_000):
        waiter = lane._waiting.enter({"requests": 1}, Current(tenant="t"))
        waiter.payload.woken.add_done_callback(heard)
        lane._waiting.leave(waiter)
    assert len(lane._waiting._by_end) <= 100
    await _ended(lane)


@pytest.mark.parametrize("number", SIZES)
async def test_a_waiting_call_takes_four_kilobytes_at_most(house: Any, number: int) -> None:
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        lane, waiters = await lane_with(house, number)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(lane._line) == len(waiters) == number
    assert (after - before) / number <= 4096
    await _ended(lane)


async def test_a_long_line_refuses_at_once(house: Any) -> None:
    lane, _ = await lane_with(house, 10_000)
    lane._waiting._queue_timeout = 1.0
    with pytest.raises(Refused):
        lane._waiting.enter({"requests": 1}, Current(tenant="t1"))
    await _ended(lane)
