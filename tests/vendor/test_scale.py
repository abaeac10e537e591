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
