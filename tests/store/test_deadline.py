"""Deadlines that share a timer, in virtual time: each is kept as if it had its own."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from headworks.store.deadline import LOOK_AGAIN, Deadlines, LoopLag
from headworks.testing import loop


def now() -> float:
    return asyncio.get_running_loop().time()


async def waited(deadlines: Deadlines, seconds: float) -> tuple[float, str]:
    """How long, and how it ended."""
    began = now()
    try:
        with deadlines.one():
            await asyncio.sleep(seconds)
    except TimeoutError as error:
        return round(now() - began, 6), type(error).__name__
    return round(now() - began, 6), "done"


async def test_each_ends_at_its_own_time() -> None:
    """Whenever they begin, whoever else is done before."""
    deadlines = Deadlines(0.05)
    tasks = []
    for number in range(40):
        tasks.append(asyncio.create_task(waited(deadlines, 9.0 if number % 3 else 0.02)))
        await asyncio.sleep(0.0017)
    found = [await task for task in tasks]
    assert found == [(0.05, "TimeoutError") if number % 3 else (0.02, "done") for number in range(40)]
    assert not deadlines.waiting


async def test_nothing_runs_when_nobody_waits() -> None:
    deadlines, running = Deadlines(0.05), asyncio.get_running_loop()
    await waited(deadlines, 0.001)
    await asyncio.sleep(0.05)
    assert not deadlines.timed
    assert not [handle for handle in running._scheduled if not handle.cancelled()]  # type: ignore[attr-defined]


async def test_who_is_cancelled_by_another_is_cancelled() -> None:
    """Before its deadline, and in the same turn as it."""
    deadlines = Deadlines(0.05)
    for after in (0.01, 0.05):
        task = asyncio.create_task(waited(deadlines, 9.0))
        await asyncio.sleep(after)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert not deadlines.waiting


async def test_of_two_around_each_other_the_right_one_ends() -> None:
    inner, outer = Deadlines(0.05), Deadlines(0.03)
    with pytest.raises(TimeoutError), outer.one():
        assert await waited(inner, 9.0) == (0.0, "unreachable")
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]  # this is a task
    assert await waited(inner, 9.0) == (0.05, "TimeoutError")


async def test_a_loop_that_was_held_up_gives_longer_and_blames_nobody() -> None:
    """Those who waited meanwhile; who came after it is held to his time."""
    deadlines = Deadlines(0.05)
    held: Any = asyncio.get_running_loop()
    held.call_later(0.03, held.advance, 0.1)
    before = asyncio.create_task(waited(deadlines, 9.0))
    await asyncio.sleep(0.04)
    after = asyncio.create_task(waited(deadlines, 9.0))
    took, ending = await before
    assert (ending, took) == (LoopLag.__name__, pytest.approx(0.13 + LOOK_AGAIN, abs=0.002))
    assert await after == (0.05, "TimeoutError")


async def test_it_is_good_for_the_next_loop() -> None:
    """A store may be opened before the loop that asks it, and outlast one."""
    deadlines = Deadlines(0.05)

    def in_a_loop_of_its_own() -> tuple[float, str]:
        return loop.run(waited(deadlines, 9.0))

    for _ in range(2):
        assert await asyncio.to_thread(in_a_loop_of_its_own) == (0.05, "TimeoutError")


async def test_no_two_timers_share_a_context() -> None:
    """Two threads cannot be in one at a time: the later timer would not have run, nor any after it."""
    running: Any = asyncio.get_running_loop()
    some = [Deadlines(0.05), Deadlines(0.05)]
    waiting = [asyncio.create_task(waited(one, 0.001)) for one in some]
    await asyncio.sleep(0)
    timers = [handle for handle in running._scheduled if handle._callback.__name__ == "_turn"]
    assert len({id(handle._context) for handle in timers}) == len(some)
    await asyncio.gather(*waiting)
